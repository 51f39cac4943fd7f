"""The wall for PKCS#10: nothing but a refusal comes back, whatever is thrown at it."""

import base64
import os
import random
from contextlib import suppress
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import AttributeOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estserver import csr as csr_module
from estserver.csr import CSR, read_csr, read_names_only
from estserver.errors import ConfigurationError, KeyNotAllowed, Refused
from tests.der import attribute, oid, tlv
from tests.pkcs10 import (
    CHALLENGE_PASSWORD,
    CHANGE_SUBJECT_NAME,
    EXTENSION_REQUEST,
    NEW_NAMES,
    NEW_SUBJECT,
    PLAIN,
    RSA_KEY,
    builder,
    der_of,
    pem,
    refused,
    request,
    san,
)


@pytest.mark.row("EST-097")
def test_a_panic_or_any_other_exception_of_a_library_becomes_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class PanicException(BaseException):
        pass

    for error in (PanicException(), RecursionError(), KeyError("x"), AssertionError()):

        def fail(_der: bytes, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(csr_module, "_read_info", lambda _der, _info, fail=fail: fail(_der))
        assert "not one well-formed PKCS#10" in refused(PLAIN).detail


def test_a_broken_installation_is_our_fault_and_not_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_spki: bytes) -> None:
        raise ConfigurationError("The data files of badkeys cannot be read.")

    monkeypatch.setattr(csr_module, "read_key", fail)
    with pytest.raises(ConfigurationError):
        read_csr(PLAIN)


VECTORS = Path(cryptography_vectors.__file__).parent


def outcome(body: bytes) -> CSR | None:
    """Read `body` both ways; whatever is raised but Refused fails the test."""
    with suppress(Refused):
        read_names_only(body)
    try:
        return read_csr(body)
    except Refused:
        return None


@pytest.mark.row("EST-097", "A-11")
def test_every_file_of_the_cryptography_vectors_gives_a_csr_or_a_refusal() -> None:
    taken = {
        path.name
        for path in VECTORS.rglob("*")
        if path.is_file() and path.stat().st_size < 200_000 and outcome(path.read_bytes())
    }
    assert taken == {
        "challenge-unstructured.pem",
        "challenge.pem",
        "ec_sha256.der",
        "ec_sha256.pem",
        "ec_sha256_old_header.pem",
        "freeipa-bad-critical.pem",
        "rsa_sha256.der",
        "rsa_sha256.pem",
    }


SEEDS = [
    PLAIN,
    request(
        attribute(
            EXTENSION_REQUEST, tlv(0x30, san(tlv(0x82, b"a.example"), tlv(0x87, b"\1\2\3\4")))
        ),
        attribute(CHALLENGE_PASSWORD, tlv(0x13, b"c2VjcmV0")),
        attribute(CHANGE_SUBJECT_NAME, tlv(0x30, NEW_SUBJECT.public_bytes(), NEW_NAMES)),
    ),
    der_of(builder().sign(RSA_KEY, hashes.SHA256())),
    der_of(
        builder()
        .add_attribute(AttributeOID.UNSTRUCTURED_NAME, b"x")
        .sign(ed25519.Ed25519PrivateKey.generate(), None)
    ),
    base64.b64encode(PLAIN),
    pem(PLAIN),
]


def mutate(body: bytes, rng: random.Random) -> bytes:
    data = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at : at + 1] = bytes(
                    [(data[at] if at < len(data) else 0) ^ 1 << rng.randrange(8)]
                )
            case 2:
                del data[at : at + rng.randint(1, 8)]
            case 3:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:
                data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.randint(1, 80)]
            case _:
                data[at : at + 1] = rng.choice(
                    [b"\x80", b"\x84", b"\x1f", b"\xff", b"\0", b"0", b"1"]
                )
    return bytes(data)


@pytest.mark.row("EST-097", "A-11")
@pytest.mark.timeout(900)  # the full run takes 100 s on an idle core
def test_mutated_csrs_give_a_csr_or_a_refusal_and_never_another_key(
    request: pytest.FixtureRequest,
) -> None:
    full = request.config.getoption("--full", default=False) or os.environ.get("ESTSERVER_FULL")
    keys = {csr.spki for csr in map(outcome, SEEDS) if csr is not None}

    @settings(
        max_examples=100_000 if full else 2_000,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(SEEDS), st.randoms(use_true_random=False))
    def check(seed: bytes, rng: random.Random) -> None:
        csr = outcome(mutate(seed, rng))
        assert csr is None or csr.spki in keys

    check()


@pytest.mark.row("EST-097")
@settings(max_examples=500, deadline=None, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_at_all_give_a_refusal(body: bytes) -> None:
    assert outcome(body) is None
    assert outcome(tlv(0x30, body)) is None
    with pytest.raises(KeyNotAllowed):
        read_csr(_with_key(body))


def _with_key(octets: bytes) -> bytes:
    return request(spki=tlv(0x30, tlv(0x30, oid("1.2.3")), tlv(0x03, b"\0", octets)))
