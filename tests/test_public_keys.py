"""Key policy: what may stand in a certificate, judged before any library builds a key."""

import hashlib
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from textwrap import dedent

import gmpy2  # type: ignore[import-untyped]  # comes with badkeys, without types
import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x448, x25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver import public_keys
from estserver.csr import KeyDescription, allows, check_key, describe_key, read_csr
from estserver.errors import ConfigurationError, KeyNotAllowed
from estserver.model import KeyType
from tests.der import oid, tlv

P256 = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
RSA_2048 = rsa.generate_private_key(65537, 2048)
MODULUS = RSA_2048.public_key().public_numbers().n


def spki(algorithm: str, parameters: bytes, key: bytes) -> bytes:
    return tlv(0x30, tlv(0x30, oid(algorithm), parameters), tlv(0x03, b"\0", key))


def rsa_spki(modulus: int, exponent: int, parameters: bytes = b"\x05\x00") -> bytes:
    numbers = tlv(0x30, asn1.encode_der(modulus), asn1.encode_der(exponent))
    return spki("1.2.840.113549.1.1.1", parameters, numbers)


def ec_spki(parameters: bytes, point: bytes = P256) -> bytes:
    return spki("1.2.840.10045.2.1", parameters, point)


def unsigned_csr(key: bytes) -> bytes:
    """Make a CSR for any SubjectPublicKeyInfo; its signature is nonsense."""
    info = tlv(0x30, b"\x02\x01\x00", tlv(0x30), key, tlv(0xA0))
    return tlv(0x30, info, tlv(0x30, oid("1.2.840.10045.4.3.2")), tlv(0x03, b"\0nonsense"))


def refused(key: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return why `key` is refused, having made sure that no library was asked to build it."""

    def forbidden(_der: bytes) -> None:
        pytest.fail("a key that is not allowed was built")

    monkeypatch.setattr(public_keys, "load_der_public_key", forbidden)
    with pytest.raises(KeyNotAllowed) as caught:
        read_csr(unsigned_csr(key))
    assert "RSA of 2048 to 4096 bits" in caught.value.detail
    return caught.value.detail


PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1
EXPLICIT_P256 = tlv(
    0x30,
    asn1.encode_der(1),
    tlv(0x30, oid("1.2.840.10045.1.1"), asn1.encode_der(PRIME)),
    tlv(0x30, tlv(0x04, (PRIME - 3).to_bytes(32)), tlv(0x04, bytes(32))),
    tlv(0x04, P256),
    asn1.encode_der(0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
)


@pytest.mark.row("EST-083", "INC-23", "A-10", "A-11")
@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (ec_spki(EXPLICIT_P256), "explicit curve parameters"),
        (ec_spki(b""), "explicit curve parameters"),
        (ec_spki(b"\x05\x00"), "explicit curve parameters"),
        (ec_spki(oid("1.2.840.10045.3.1.1"), P256[:49]), "The curve P-192"),
        (ec_spki(oid("1.3.132.0.33"), P256[:57]), "The curve P-224"),
        (ec_spki(oid("1.3.132.0.10")), "The curve secp256k1"),
        (ec_spki(oid("1.3.36.3.3.2.8.1.1.7")), "The curve brainpoolP256r1"),
        (ec_spki(oid("1.3.132.0.1")), "The curve 1.3.132.0.1"),
        (rsa_spki(MODULUS >> 1536, 65537), "RSA key of 512 bits"),
        (rsa_spki(MODULUS >> 1024, 65537), "RSA key of 1024 bits"),
        (rsa_spki(MODULUS >> 1, 65537), "RSA key of 2047 bits"),
        (rsa_spki(MODULUS << 4, 65537), "RSA key of 2052 bits"),
        (rsa_spki((1 << 4103) + 1, 65537), "RSA key of 4104 bits"),
        (rsa_spki((1 << 65535) + 1, 65537), "RSA key of 65536 bits"),
        (rsa_spki(-MODULUS, 65537), "RSA key of 0 bits"),
        (rsa_spki(0, 65537), "RSA key of 0 bits"),
        (rsa_spki(MODULUS, 1), "exponent of 1"),
        (rsa_spki(MODULUS, 2), "exponent of 2"),
        (rsa_spki(MODULUS, 3), "exponent of 3"),
        (rsa_spki(MODULUS, -65537), "exponent of this size"),
        (rsa_spki(MODULUS, MODULUS - 2), "exponent of this size"),
        (rsa_spki(MODULUS, 65537, b""), "parameters other than NULL"),
        (rsa_spki(MODULUS, 65537, oid("1.2.3")), "parameters other than NULL"),
        (spki("1.2.840.113549.1.1.1", b"\x05\x00", b"garbage"), "not well-formed"),
        (spki("1.2.840.113549.1.1.10", b"", b"x"), "The key type RSASSA-PSS"),
        (spki("1.2.840.10040.4.1", tlv(0x30), b"x"), "The key type DSA"),
        (spki("1.3.101.113", b"", bytes(57)), "The key type Ed448"),
        (spki("1.3.101.112", b"\x05\x00", bytes(32)), "Ed25519 key with parameters"),
        (spki("2.16.840.1.101.3.4.3.18", b"", b"x"), "The key type ML-DSA-65"),
        (spki("1.2.3.4", b"", b"x"), "The key type 1.2.3.4"),
        (tlv(0x30, tlv(0x30), tlv(0x03, b"\0x")), "not well-formed"),
        (tlv(0x30, tlv(0x30, b"\x05\x00"), tlv(0x03, b"\0x")), "not well-formed"),
    ],
)
def test_a_key_off_the_allow_list_is_refused_before_any_library_builds_it(
    key: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sentence in refused(key, monkeypatch)


@pytest.mark.row("EST-081")
@pytest.mark.parametrize(
    ("key", "named"),
    [
        (spki("1.3.101.110", b"", bytes(32)), "X25519"),
        (spki("1.3.101.111", b"", bytes(56)), "X448"),
        (spki("1.2.840.10046.2.1", tlv(0x30), b"\x02\x01\x05"), "DH"),
        (spki("2.16.840.1.101.3.4.4.2", b"", b"x"), "ML-KEM-768"),
    ],
)
def test_rfc7030_4_2_1_a_key_that_cannot_sign_is_told_to_use_one_that_can(
    key: bytes, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detail = refused(key, monkeypatch)
    assert f"{named} key cannot sign" in detail
    assert "simple enroll needs a signed CSR" in detail


@pytest.mark.row("EST-083")
@pytest.mark.parametrize(
    "point", [b"", b"\0", b"\x04" + bytes(64), P256[:-1] + b"\0", P256 + b"\0"]
)
def test_a_point_that_is_not_on_its_curve_is_refused(point: bytes) -> None:
    with pytest.raises(KeyNotAllowed, match="not well-formed"):
        read_csr(unsigned_csr(ec_spki(oid("1.2.840.10045.3.1.7"), point)))


def test_a_compressed_point_is_taken_and_named_by_its_usual_form() -> None:
    key = ec.derive_private_key(1, ec.SECP256R1())
    compressed = ec_spki(oid("1.2.840.10045.3.1.7"), b"\x03" + P256[1:33])
    info = tlv(0x30, b"\x02\x01\x00", tlv(0x30), compressed, tlv(0xA0))
    signature = tlv(0x03, b"\0", key.sign(info, ec.ECDSA(hashes.SHA256())))
    csr = read_csr(tlv(0x30, info, tlv(0x30, oid("1.2.840.10045.4.3.2")), signature))
    assert csr.spki == ec_spki(oid("1.2.840.10045.3.1.7"))
    assert csr.spki_sha256 == hashlib.sha256(csr.spki).digest()


@pytest.mark.parametrize(
    ("key", "described"),
    [
        (RSA_2048.public_key(), KeyDescription("rsa", 2048)),
        (ec.generate_private_key(ec.SECP256R1()).public_key(), KeyDescription("ec-p256", 256)),
        (ec.generate_private_key(ec.SECP384R1()).public_key(), KeyDescription("ec-p384", 384)),
        (ec.generate_private_key(ec.SECP521R1()).public_key(), KeyDescription("ec-p521", 521)),
        (ed25519.Ed25519PrivateKey.generate().public_key(), KeyDescription("ed25519", 256)),
    ],
)
def test_an_allowed_key_is_described_by_family_and_size(
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    described: KeyDescription,
) -> None:
    assert check_key(key) == described == describe_key(key)
    assert str(described) in set(KeyType)


@pytest.mark.row("EST-083")
@pytest.mark.parametrize(
    "key",
    [
        x25519.X25519PrivateKey.generate().public_key(),
        x448.X448PrivateKey.generate().public_key(),
        ed448.Ed448PrivateKey.generate().public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        ec.generate_private_key(ec.BrainpoolP256R1()).public_key(),
        rsa.generate_private_key(65537, 1024).public_key(),
        rsa.generate_private_key(3, 2048).public_key(),
    ],
)
def test_a_key_that_came_without_a_csr_meets_the_same_policy(
    key: PublicKeyTypes,
) -> None:
    with pytest.raises(KeyNotAllowed):
        check_key(key)


def test_describing_a_curve_off_the_list_is_refused() -> None:
    with pytest.raises(KeyNotAllowed, match="secp256k1"):
        describe_key(ec.generate_private_key(ec.SECP256K1()).public_key())


@pytest.mark.parametrize(
    ("key_types", "key", "allowed"),
    [
        ([KeyType.RSA_3072], KeyDescription("rsa", 2048), False),
        ([KeyType.RSA_3072], KeyDescription("rsa", 3072), True),
        ([KeyType.RSA_3072], KeyDescription("rsa", 3584), True),
        ([KeyType.RSA_4096, KeyType.RSA_2048], KeyDescription("rsa", 2048), True),
        ([KeyType.RSA_2048], KeyDescription("rsa", 4096), True),
        ([KeyType.EC_P256], KeyDescription("rsa", 4096), False),
        ([KeyType.EC_P256], KeyDescription("ec-p256", 256), True),
        ([KeyType.EC_P256], KeyDescription("ec-p384", 384), False),
        ([KeyType.EC_P384, KeyType.ED25519], KeyDescription("ed25519", 256), True),
        ([], KeyDescription("ec-p256", 256), False),
    ],
)
def test_a_profile_takes_rsa_from_its_smallest_size_up_and_others_as_listed(
    key_types: list[KeyType],
    key: KeyDescription,
    allowed: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert allows(key_types, key) is allowed


# --- weak keys ------------------------------------------------------------------------------


def private_key(p: int, q: int) -> rsa.RSAPrivateKey:
    d = int(gmpy2.invert(65537, (p - 1) * (q - 1)))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), int(gmpy2.invert(q, p)), public
    )
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def random_prime(bits: int, rng: random.Random) -> int:
    """The two highest bits are set, so that a product has its full length."""
    while True:
        prime = int(gmpy2.next_prime(rng.getrandbits(bits) | 3 << (bits - 2)))
        if prime.bit_length() == bits and prime % 65537 != 1:
            return prime


def close_primes(rng: random.Random) -> tuple[int, int]:
    p = random_prime(1024, rng)
    q = int(gmpy2.next_prime(p + (1 << 500)))
    return p, q


def roca_primes(rng: random.Random) -> tuple[int, int]:
    """Primes as Infineon's library made them: k * M + (65537^a mod M), CVE-2017-15361."""
    primorial, prime = 1, 2
    for _ in range(126):
        primorial, prime = primorial * prime, int(gmpy2.next_prime(prime))

    def make() -> int:
        while True:
            k = rng.randrange((3 << 1022) // primorial, (1 << 1024) // primorial - 1)
            candidate = k * primorial + pow(65537, rng.getrandbits(64), primorial)
            if candidate.bit_length() == 1024 and gmpy2.is_prime(candidate):
                return candidate

    return make(), make()


def small_factor(rng: random.Random) -> tuple[int, int]:
    while True:
        q, p = random_prime(2033, rng), 32749
        if (p * q).bit_length() == 2048:
            return q, p


@pytest.mark.row("EST-083", "A-10")
@pytest.mark.parametrize(
    ("make", "weakness"),
    [(close_primes, "fermat"), (roca_primes, "roca"), (small_factor, "smallfactors")],
)
def test_a_well_signed_csr_for_a_weak_rsa_key_is_refused_and_the_weakness_named(
    make: object, weakness: str
) -> None:
    assert callable(make)
    key = private_key(*make(random.Random(17)))
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
    )
    assert csr.is_signature_valid
    with pytest.raises(KeyNotAllowed, match=rf"known to be weak .*\b{weakness}\b"):
        read_csr(csr.public_bytes(Encoding.DER))
    with pytest.raises(KeyNotAllowed, match=weakness):
        check_key(key.public_key())


def test_missing_data_of_badkeys_is_our_fault_and_lets_nothing_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave(_pem: str) -> list[str]:
        sys.exit(1)

    monkeypatch.setattr(public_keys, "_weak_key_checks", lambda: leave)
    with pytest.raises(ConfigurationError):
        check_key(RSA_2048.public_key())


@pytest.mark.row("A-10")
def test_published_keys_are_refused_once_the_blocklist_is_installed(tmp_path: Path) -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1()).public_key()
    numbers = [MODULUS, elliptic.public_numbers().x]
    records = sorted(
        hashlib.sha256(n.to_bytes((n.bit_length() + 7) // 8)).digest()[:15] + b"\1" for n in numbers
    )
    cache = tmp_path / "badkeys"
    cache.mkdir()
    (cache / "blocklist.dat").write_bytes(b"".join(records))
    listed = {"blocklists": [{"id": 1, "name": "published"}]}
    (cache / "badkeysdata.json").write_text(json.dumps(listed))
    program = dedent(
        """
        import sys
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from estserver.csr import blocklist_installed, check_key
        from estserver.errors import KeyNotAllowed
        assert blocklist_installed()
        for pem in sys.stdin.read().split("|"):
            try:
                print(check_key(load_pem_public_key(pem.encode())))
            except KeyNotAllowed as refused:
                print(refused.values["weakness"])
        """
    )
    keys: list[PublicKeyTypes] = [
        RSA_2048.public_key(),
        elliptic,
        ec.generate_private_key(ec.SECP384R1()).public_key(),
    ]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        input="|".join(
            key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
            for key in keys
        ),
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["blocklist", "blocklist", "ec-p384"]


def test_looking_for_weaknesses_changes_no_warning_filter_for_good() -> None:
    before = list(warnings.filters)
    public_keys._weak_key_checks.cache_clear()
    check_key(RSA_2048.public_key())
    assert list(warnings.filters) == before
