"""Key policy: which public keys may stand in a certificate at all.

Allow-list by OID on the raw SubjectPublicKeyInfo, before any library builds a key from it:
explicit curve parameters made OpenSSL loop for ever (CVE-2022-0778, INC-23), and P-192,
secp256k1 or RSA with e=3 all load in cryptography. Profiles narrow this further (`allows`).
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from estserver.errors import ConfigurationError, KeyNotAllowed
from estserver.model import KeyType, PublicKey

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 4096
_RSA_EXPONENT = 65537
ALLOWED_KEYS = (
    f"RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits with exponent {_RSA_EXPONENT}, "
    "EC on P-256, P-384 or P-521, or Ed25519"
)

KeyFamily = Literal["rsa", "ec-p256", "ec-p384", "ec-p521", "ed25519"]

_RSA = "1.2.840.113549.1.1.1"
_EC = "1.2.840.10045.2.1"
_ED25519 = "1.3.101.112"
_CURVES = frozenset({"1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"})

_ED25519_PRIME = 2**255 - 19
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
# y of the points of order 1, 2, 4 and 8 on the curve of Ed25519.
_SMALL_ORDER = frozenset({1, _ED25519_PRIME - 1, 0, _ORDER_8, _ED25519_PRIME - _ORDER_8})

# Keys that agree on secrets or wrap them, and cannot make the signature of a CSR (EST-081).
_UNSIGNING = {
    "1.2.840.113549.1.1.7": "RSAES-OAEP",
    "1.2.840.113549.1.3.1": "DH",
    "1.2.840.10046.2.1": "DH",
    "1.3.101.110": "X25519",
    "1.3.101.111": "X448",
    "1.3.132.1.12": "ECDH",
    "2.16.840.1.101.3.4.4.1": "ML-KEM-512",
    "2.16.840.1.101.3.4.4.2": "ML-KEM-768",
    "2.16.840.1.101.3.4.4.3": "ML-KEM-1024",
}
_REFUSED = {
    "1.2.840.10040.4.1": "DSA",
    "1.2.840.113549.1.1.10": "RSASSA-PSS",
    "1.3.101.113": "Ed448",
    "2.16.840.1.101.3.4.3.17": "ML-DSA-44",
    "2.16.840.1.101.3.4.3.18": "ML-DSA-65",
    "2.16.840.1.101.3.4.3.19": "ML-DSA-87",
}
_REFUSED_CURVES = {
    "1.2.840.10045.3.1.1": "P-192",
    "1.3.132.0.10": "secp256k1",
    "1.3.132.0.33": "P-224",
    "1.3.36.3.3.2.8.1.1.7": "brainpoolP256r1",
    "1.3.36.3.3.2.8.1.1.11": "brainpoolP384r1",
    "1.3.36.3.3.2.8.1.1.13": "brainpoolP512r1",
}

P256_KEY = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""How the SubjectPublicKeyInfo of every P-256 key begins: 64 octets follow, the point."""
_OID_TAG = b"\x06"
_NULL_TAG = b"\x05"


@asn1.sequence
class PublicKeyInfo:
    """SubjectPublicKeyInfo as it stands on the wire; the algorithm is OID and parameters."""

    algorithm: list[asn1.TLV]
    key: asn1.BitString


@asn1.sequence
class _RSAPublicKey:
    modulus: int
    exponent: int


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """What policy and pages say of a key; `bits` is the size of the modulus or the curve."""

    family: KeyFamily
    bits: int

    def __str__(self) -> str:
        """Return the name in the manner of `KeyType`; RSA with its true size."""
        return f"rsa-{self.bits}" if self.family == "rsa" else self.family


_FAMILIES = {
    "secp256r1": KeyDescription("ec-p256", 256),
    "secp384r1": KeyDescription("ec-p384", 384),
    "secp521r1": KeyDescription("ec-p521", 521),
}


def describe_key(public_key: PublicKey) -> KeyDescription:
    """Name the family and size of a key. Raises KeyNotAllowed: a curve outside the allow-list."""
    match public_key:
        case ec.EllipticCurvePublicKey():
            if public_key.curve.name not in _FAMILIES:
                raise _not_allowed(f"The curve {public_key.curve.name}")
            return _FAMILIES[public_key.curve.name]
        case rsa.RSAPublicKey():
            return KeyDescription("rsa", public_key.key_size)
        case ed25519.Ed25519PublicKey():
            return KeyDescription("ed25519", 256)


def allows(key_types: Sequence[KeyType], key: KeyDescription) -> bool:
    """Tell whether a profile that lists `key_types` takes `key`.

    RSA: any size from the smallest one listed up to 4096 bits. Others: by membership.
    """
    if key.family == "rsa":
        sizes = [bits for key_type in key_types if (bits := key_type.rsa_bits) is not None]
        return bool(sizes) and min(sizes) <= key.bits <= MAX_RSA_BITS
    return KeyType(key.family) in key_types


def check_key(public_key: PublicKeyTypes) -> KeyDescription:
    """Apply the whole key policy to a key that did not come in a CSR.

    Raises KeyNotAllowed: type, size, exponent or curve outside the allow-list, or known weak.
    """
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return describe_key(read_key(spki))


def read_key(spki: bytes) -> PublicKey:
    """Build a key once the allow-list has let it pass, and look for weaknesses.

    `spki`: one SubjectPublicKeyInfo; ValueError unless it is DER.
    Raises KeyNotAllowed: as `check_key`, or numbers that are no key, such as a point off its curve.
    """
    # The commonest kind is known by its first octets; what follows them is the point.
    info = None if spki.startswith(P256_KEY) else asn1.decode_der(PublicKeyInfo, spki)
    try:
        if info is not None:
            _check_algorithm(info)
        key = load_der_public_key(spki)
    except (ValueError, TypeError, IndexError, UnsupportedAlgorithm) as error:
        raise KeyNotAllowed(f"The public key is not well-formed. Use {ALLOWED_KEYS}.") from error
    if not isinstance(key, PublicKey):  # the allow-list admits no other type
        raise _not_allowed("A key of this type")
    if isinstance(key, ed25519.Ed25519PublicKey):
        _check_order(key)
    _check_weakness(key)
    return key


def _check_algorithm(info: PublicKeyInfo) -> None:
    """Allow-list the raw AlgorithmIdentifier, and of RSA the numbers (EST-083)."""
    oid = info.algorithm[0].parse(x509.ObjectIdentifier).dotted_string
    parameters = info.algorithm[1:]
    tags = [parameter.tag_bytes for parameter in parameters]
    if oid == _RSA:
        # RFC 3279 §2.3.1: the parameters MUST be NULL.
        if tags != [_NULL_TAG]:
            raise _not_allowed("An RSA key with parameters other than NULL")
        _check_rsa(asn1.decode_der(_RSAPublicKey, info.key.as_bytes()))
    elif oid == _EC:
        if tags != [_OID_TAG]:
            raise _not_allowed("An EC key with explicit curve parameters")
        curve = parameters[0].parse(x509.ObjectIdentifier).dotted_string
        if curve not in _CURVES:
            raise _not_allowed(f"The curve {_REFUSED_CURVES.get(curve, curve)}")
    elif oid == _ED25519:
        # RFC 8410 §3: the parameters MUST be absent.
        if tags:
            raise _not_allowed("An Ed25519 key with parameters")
    elif oid in _UNSIGNING:
        raise KeyNotAllowed(
            f"An {_UNSIGNING[oid]} key cannot sign, and simple enroll needs a signed CSR. "
            f"Use {ALLOWED_KEYS}.",
            values={"key": _UNSIGNING[oid]},
        )
    else:
        raise _not_allowed(f"The key type {_REFUSED.get(oid, oid)}")


def _check_rsa(key: _RSAPublicKey) -> None:
    bits = key.modulus.bit_length() if key.modulus > 0 else 0
    # A size that is no multiple of 8 is a broken generator; public CAs refuse it too (BR 6.1.6).
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS or bits % 8:
        raise _not_allowed(f"An RSA key of {bits} bits")
    if key.exponent != _RSA_EXPONENT:
        shown = str(key.exponent) if 0 < key.exponent < 1 << 32 else "this size"
        raise _not_allowed(f"An RSA key with an exponent of {shown}")


def _check_order(key: ed25519.Ed25519PublicKey) -> None:
    """Refuse the points of small order: anybody makes signatures that such a key verifies.

    RFC 8032 §5.1.3 has the encoding: y, little-endian, and in the top bit the sign of x.
    """
    y = int.from_bytes(key.public_bytes_raw(), "little") & ((1 << 255) - 1)
    if y >= _ED25519_PRIME or y in _SMALL_ORDER:
        raise _not_allowed("An Ed25519 key of small order")


def _check_weakness(key: PublicKey) -> None:
    """Refuse keys that badkeys knows: ROCA, close or small or shared primes, published keys."""
    if not isinstance(key, rsa.RSAPublicKey) and not blocklist_installed():
        return
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
    try:
        findings = _weak_key_checks()(pem)
    except (OSError, SystemExit) as error:
        # badkeys exits when its own files are missing: ours to mend, and no reason to let pass.
        raise ConfigurationError("The data files of badkeys cannot be read.") from error
    if findings:
        weakness = ", ".join(findings)
        raise KeyNotAllowed(
            f"This key is known to be weak or published ({weakness}). Make a new one.",
            values={"weakness": weakness},
        )


@cache
def blocklist_installed() -> bool:
    """Tell whether `badkeys --update-bl` has fetched its list of published keys for this user.

    The list (some 10 MB) is no part of the package: without it, published keys are not known.
    """
    # The place is the one badkeys documents: XDG_CACHE_HOME or ~/.cache.
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "badkeys"
    return all((home / name).is_file() for name in ("blocklist.dat", "badkeysdata.json"))


@cache
def _weak_key_checks() -> Callable[[str], list[str]]:
    """Return a function from a PEM public key to the names of its weaknesses.

    badkeys takes 0.1 s to import, so only whoever sees an RSA key pays for it.
    """
    with warnings.catch_warnings():
        # Its imports warn of DSA and of pyOpenSSL; it also sets a filter of its own for good.
        warnings.simplefilter("ignore")
        import badkeys  # noqa: PLC0415 - see above
    checks = [name for name, check in badkeys.defaultchecks.items() if check["type"] == "rsa"]
    if blocklist_installed():
        checks.append("blocklist")

    def find(pem: str) -> list[str]:
        return sorted(badkeys.checkpubkey(pem, checks=checks)["results"])

    return find


def _not_allowed(what: str) -> KeyNotAllowed:
    return KeyNotAllowed(f"{what} is not allowed. Use {ALLOWED_KEYS}.", values={"key": what})
