"""Account keys: which JWKs may sign, what they are called, and the one algorithm each goes with.

josepy builds the JWK and its thumbprint and verifies with the algorithm; what may reach it is
decided here, because it takes keys of any size, private members and symmetric keys.
"""

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from josepy import jwa
from josepy.jwk import JWK, JWKEC, JWKRSA

from estserver.errors import KeyNotAllowed
from estserver.model import PublicKey
from estserver.protocols.acme.problems import Problem, malformed
from estserver.public_keys import MAX_RSA_BITS, MIN_RSA_BITS, check_key

ALGORITHMS = ("ES256", "ES384", "ES512", "EdDSA", "RS256")
"""What a request may be signed with; the order is our preference."""
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_MAX_MEMBER = 4096
"""Characters of one JWK member; an RSA modulus of 4096 bits has 683."""
_AT_WORK = 512
"""Keys of 3 KB. An order is done in seconds: of a fleet only so many are at it together."""
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_CURVES: Mapping[str, tuple[ec.EllipticCurve, int, str]] = {
    "P-256": (ec.SECP256R1(), 32, "ES256"),
    "P-384": (ec.SECP384R1(), 48, "ES384"),
    "P-521": (ec.SECP521R1(), 66, "ES512"),
}
_EC_ALGORITHMS = {curve.name: algorithm for curve, _, algorithm in _CURVES.values()}
_QUICK = frozenset({"ES256", "EdDSA", "RS256"})
_VERIFIERS: Mapping[str, jwa.JWASignature] = {
    "ES256": jwa.ES256,
    "ES384": jwa.ES384,
    "ES512": jwa.ES512,
    "RS256": jwa.RS256,
}


def decode_base64url(text: object, what: str) -> bytes:
    """Decode base64url without padding, canonical to its last bit (RFC 8555 §6.1, RFC 7515 §2).

    Raises Problem malformed.
    """
    if not isinstance(text, str):
        raise malformed(f"{what} must be a string of base64url")
    if not _BASE64URL.fullmatch(text):
        raise malformed(f"{what} is not base64url without padding")
    if len(text) % 4 == 1:
        raise malformed(f"{what} is cut off: no base64url has this length")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode_base64url(raw) != text:
        raise malformed(f"{what} is not canonical base64url: its last character has stray bits")
    return raw


def encode_base64url(raw: bytes) -> str:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


class _JWKOKP(JWK):
    """Ed25519 as a JWK (RFC 8037 §2), which josepy does not know."""

    typ = "OKP"
    __slots__ = ("key",)
    cryptography_key_types = (ed25519.Ed25519PublicKey,)
    required = ("crv", JWK.type_field_name, "x")
    key: ed25519.Ed25519PublicKey

    def fields_to_partial_json(self) -> dict[str, Any]:
        x = self.key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return {"crv": "Ed25519", "x": encode_base64url(x)}

    @classmethod
    def fields_from_json(cls, jobj: Mapping[str, Any]) -> "_JWKOKP":
        x = decode_base64url(jobj["x"], "x")
        return cls(key=ed25519.Ed25519PublicKey.from_public_bytes(x))

    def public_key(self) -> "_JWKOKP":
        return self


@dataclass(frozen=True, slots=True)
class AccountKey:
    """A public key that may sign requests. `jwk` holds the required members only (RFC 7638).

    `thumbprint` is base64url; `algorithm` the one `alg` that goes with the key.
    """

    public_key: PublicKey = field(compare=False)
    jwk: Mapping[str, str] = field(compare=False)
    thumbprint: str
    algorithm: str

    @property
    def spki_sha256(self) -> bytes:
        """SHA-256 of the SubjectPublicKeyInfo, as certificates and the block list know the key."""
        spki = self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).digest()

    @property
    def verifies_quickly(self) -> bool:
        """Whether `verifies` takes much less than a millisecond."""
        return self.algorithm in _QUICK

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Tell whether `signature` is this key's over exactly these bytes."""
        if isinstance(self.public_key, ed25519.Ed25519PublicKey):
            try:
                self.public_key.verify(signature, message)
            except InvalidSignature:
                return False
            return True
        return bool(_VERIFIERS[self.algorithm].verify(self.public_key, message, signature))


def read_jwk(value: object) -> AccountKey:
    """Turn the JWK of a request into a key that passed the whole key policy.

    Raises Problem badPublicKey: private, symmetric, weak, malformed or of a type not taken.
    RFC 7517 §4, RFC 7518 §6, RFC 8037 §2.
    """
    if not isinstance(value, dict):
        raise malformed("jwk must be an object")
    if private := _PRIVATE & value.keys():
        names = ", ".join(sorted(private))
        raise _bad_key(f"the jwk holds secret members ({names}): this key is no secret any more")
    try:
        public_key = _build(value)
        check_key(public_key)
    except KeyNotAllowed as error:
        raise _bad_key(error.detail) from error
    # ValueError: a point off its curve, a modulus that is none.
    except (Problem, ValueError) as error:
        detail = error.detail if isinstance(error, Problem) else "its numbers are no public key"
        raise _bad_key(f"the jwk is not well-formed: {detail}") from error
    return account_key(public_key)


def account_key(public_key: PublicKey) -> AccountKey:
    """Return a public key as one that signs requests."""
    match public_key:
        case rsa.RSAPublicKey():
            jwk: JWK = JWKRSA(key=public_key)
            algorithm = "RS256"
        case ec.EllipticCurvePublicKey():
            jwk = JWKEC(key=public_key)
            algorithm = _EC_ALGORITHMS[public_key.curve.name]
        case _:
            jwk = _JWKOKP(key=public_key)
            algorithm = "EdDSA"
    return AccountKey(
        public_key=public_key,
        jwk={str(name): str(member) for name, member in jwk.to_json().items()},
        thumbprint=encode_base64url(jwk.thumbprint()),
        algorithm=algorithm,
    )


def stored_key(jwk: Mapping[str, str]) -> AccountKey:
    """Read back the `jwk` of a key that passed `read_jwk` before."""
    return _stored_key(tuple(sorted(jwk.items())))


@functools.lru_cache(maxsize=_AT_WORK)
def _stored_key(members: tuple[tuple[str, str], ...]) -> AccountKey:
    """Keep the keys of accounts at work: each of their requests needs one."""
    return account_key(_build(dict(members)))


def _build(jwk: Mapping[str, object]) -> PublicKey:
    match jwk.get("kty"):
        case "EC":
            return _build_ec(jwk)
        case "OKP":
            if jwk.get("crv") != "Ed25519":
                raise _bad_key("of the OKP curves only Ed25519 signs here")
            x = _member(jwk, "x")
            if len(x) != 32:
                raise _bad_key("x of an Ed25519 key has 32 octets")
            return ed25519.Ed25519PublicKey.from_public_bytes(x)
        case "RSA":
            n, e = (int.from_bytes(_member(jwk, name)) for name in ("n", "e"))
            # Before any library computes with it.
            if not MIN_RSA_BITS <= n.bit_length() <= MAX_RSA_BITS or n % 2 == 0:
                raise _bad_key(
                    f"an RSA modulus must be odd and have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits; "
                    f"this one has {n.bit_length()}"
                )
            if e != 65537:
                raise _bad_key("an RSA exponent must be 65537")
            return rsa.RSAPublicNumbers(e, n).public_key()
        case _:
            raise _bad_key("kty must be EC, OKP or RSA")


def _build_ec(jwk: Mapping[str, object]) -> PublicKey:
    curve_name = jwk.get("crv")
    if not isinstance(curve_name, str) or curve_name not in _CURVES:
        raise _bad_key("crv must be P-256, P-384 or P-521")
    curve, octets, _ = _CURVES[curve_name]
    x, y = (_member(jwk, name) for name in ("x", "y"))
    # RFC 7518 §6.2.1.2: "The length of this octet string MUST be the full size of a coordinate".
    if len(x) != octets or len(y) != octets:
        raise _bad_key(f"x and y of a {curve_name} key have {octets} octets each")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve)
    return numbers.public_key()


def _member(jwk: Mapping[str, object], name: str) -> bytes:
    text = jwk.get(name)
    if not isinstance(text, str) or not text:
        raise _bad_key(f"the jwk lacks {name}")
    if len(text) > _MAX_MEMBER:
        raise _bad_key(f"{name} is longer than any key that is taken")
    return decode_base64url(text, name)


def _bad_key(detail: str) -> Problem:
    return Problem("badPublicKey", detail)
