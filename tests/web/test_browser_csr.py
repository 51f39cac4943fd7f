"""The browser's modules for keys and requests, ciphers and certificates, under Node.js."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.web.browser_modules import (
    FRIENDLY_NAME,
    KEY_TYPES,
    Ask,
    Issued,
    der,
    every_key_type,
    output_of,
    program,
)

# --- CSR ---


def test_key_types_are_the_six_agreed_ones(ask: Ask) -> None:
    assert tuple(ask("keyTypes")) == KEY_TYPES


@every_key_type
def test_rfc2986_request_proves_possession(
    issue: Callable[[str], Issued], key_type: str, tmp_path: Path
) -> None:
    path = tmp_path / "request.der"
    path.write_bytes(issue(key_type).csr)
    openssl = program("openssl", "openssl")
    text = output_of(openssl, "req", "-verify", "-noout", "-inform", "DER", "-in", path)
    assert "verify OK" in text


@every_key_type
def test_rfc2986_request_carries_the_key_and_nothing_else(
    issue: Callable[[str], Issued], key_type: str
) -> None:
    issued = issue(key_type)
    request = x509.load_der_x509_csr(issued.csr)
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == ""
    assert len(request.attributes) == 0
    assert request.public_bytes(serialization.Encoding.DER) == issued.csr
    assert request.public_bytes(serialization.Encoding.PEM).decode() == issued.pem
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public_key = request.public_key()
    assert public_key.public_bytes(serialization.Encoding.DER, spki) == issued.public_key
    family, _, size = key_type.partition("-")
    assert isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    assert isinstance(public_key, rsa.RSAPublicKey) == (family == "rsa")
    assert public_key.key_size == int(size.removeprefix("p"))


@pytest.mark.parametrize(
    ("key_type", "digest"),
    [
        ("rsa-3072", hashes.SHA256),
        ("ec-p256", hashes.SHA256),
        ("ec-p384", hashes.SHA384),
        ("ec-p521", hashes.SHA512),
    ],
)
def test_request_is_signed_with_the_hash_of_its_key(
    issue: Callable[[str], Issued], key_type: str, digest: type[hashes.HashAlgorithm]
) -> None:
    request = x509.load_der_x509_csr(issue(key_type).csr)
    assert isinstance(request.signature_hash_algorithm, digest)


@pytest.mark.parametrize("key_type", ["ec-p256", "ec-p521"])
def test_rfc3279_2_2_3_short_signature_numbers_stay_der(ask: Ask, key_type: str) -> None:
    requests = ask("manyECRequests", {"keyType": key_type, "count": 600})
    loaded = [x509.load_der_x509_csr(bytes.fromhex(request)) for request in requests]
    assert all(request.is_signature_valid for request in loaded)
    assert len({len(request.signature) for request in loaded}) > 2


def test_unknown_key_type_is_refused(ask: Ask) -> None:
    refused = ask("requestRefusal", "rsa-1024")
    assert refused == {"name": "UnsupportedKeyType", "code": "unsupported-key-type"}


# --- Certificates ---


@every_key_type
def test_certificate_facts_are_read(
    ask: Ask, issue: Callable[[str], Issued], key_type: str
) -> None:
    issued = issue(key_type)
    facts = ask("certificate", der(issued.certificate).hex())
    serial = facts["serialNumber"]
    assert re.fullmatch(r"[0-9A-F]{2}(:[0-9A-F]{2})*", serial)
    assert int(serial.replace(":", ""), 16) == issued.certificate.serial_number
    assert facts["commonName"] == FRIENDLY_NAME
    assert bytes.fromhex(facts["publicKey"]) == issued.public_key


def test_damaged_certificates_are_refused(ask: Ask, issue: Callable[[str], Issued]) -> None:
    good = der(issue("ec-p256").certificate)
    cut = [good[:length].hex() for length in range(0, len(good), 7)]
    refusals = ask("certificateRefusals", [*cut, (good + b"\0").hex(), "3000", "30023000"])
    assert {refused["code"] for refused in refusals} == {"bad-der"}


# --- Hash and cipher ---


def test_fips180_4_sha256_equals_hashlib(ask: Ask) -> None:
    messages = [bytes(range(256)) * 4][:1] + [os.urandom(length) for length in range(200)]
    digests = ask("sha256", [message.hex() for message in messages])
    assert digests == [hashlib.sha256(message).hexdigest() for message in messages]


def test_sha256_chain_equals_hashlib(ask: Ask) -> None:
    digest = start = hashlib.sha256(b"").digest()
    rounds = 1000
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
    assert ask("sha256Chain", {"digest": start.hex(), "rounds": rounds}) == digest.hex()


# SP 800-20: every table of DES is exercised; MMT3 has three different keys and several blocks.
@pytest.mark.parametrize(
    "file",
    ["TCBCvartext", "TCBCinvperm", "TCBCvarkey", "TCBCpermop", "TCBCsubtab", "TCBCMMT3"],
)
def test_sp800_20_triple_des_vectors(ask: Ask, file: str) -> None:
    with cryptography_vectors.open_vector_file(f"ciphers/3DES/CBC/{file}.rsp", "r") as lines:
        vectors = list(encryption_vectors(lines))
    assert len(vectors) >= 10
    assert ask("tripleDES", vectors) == [vector["ciphertext"] for vector in vectors]


def encryption_vectors(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    vector: dict[str, str] = {}
    for line in map(str.strip, lines):
        if line == "[DECRYPT]":
            return
        name, separator, value = line.partition(" = ")
        if separator:
            vector[name] = value
        if name == "CIPHERTEXT":
            keys = vector["KEYs"] * 3 if "KEYs" in vector else ""
            yield {
                "key": keys or vector["KEY1"] + vector["KEY2"] + vector["KEY3"],
                "iv": vector["IV"],
                "plaintext": vector["PLAINTEXT"],
                "ciphertext": vector["CIPHERTEXT"],
            }
            vector = {}


# --- Key store ---


def test_missing_storage_is_a_typed_error(ask: Ask) -> None:
    refusals = ask("storageRefusals")
    assert refusals == [{"name": "StorageBlocked", "code": "storage-blocked"}] * 4
