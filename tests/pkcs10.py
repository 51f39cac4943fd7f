"""PKCS#10 requests built octet by octet, right and wrong ones."""

import base64
import textwrap
import unicodedata

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from estserver.csr import read_csr
from estserver.errors import BadCSR
from tests.der import oid, tlv

KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ada Lovelace")])
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"
CHANGE_SUBJECT_NAME = "1.3.6.1.5.5.7.7.36"
SMIME = "1.2.840.113549.1.9.16.2."


def extension(dotted: str, value: bytes) -> bytes:
    return tlv(0x30, oid(dotted), tlv(0x04, value))


def san(*names: bytes) -> bytes:
    return extension("2.5.29.17", tlv(0x30, *names))


def request(
    *attributes: bytes,
    subject: bytes | None = None,
    spki: bytes = SPKI,
    version: bytes = b"\x02\x01\x00",
    algorithm: str = "1.2.840.10045.4.3.2",
    signature: bytes | None = None,
) -> bytes:
    """Build a PKCS#10 piece by piece and sign it with KEY, whatever the pieces are."""
    info = tlv(
        0x30,
        version,
        SUBJECT.public_bytes() if subject is None else subject,
        spki,
        tlv(0xA0, *sorted(attributes, key=lambda a: a.ljust(70000, b"\0"))),
    )
    signed = KEY.sign(info, ec.ECDSA(hashes.SHA256())) if signature is None else signature
    return tlv(0x30, info, tlv(0x30, oid(algorithm)), tlv(0x03, b"\0", signed))


def builder() -> x509.CertificateSigningRequestBuilder:
    return x509.CertificateSigningRequestBuilder().subject_name(SUBJECT)


def der_of(csr: x509.CertificateSigningRequest) -> bytes:
    return csr.public_bytes(Encoding.DER)


PLAIN = request()


def refused(body: bytes) -> BadCSR:
    with pytest.raises(BadCSR) as caught:
        read_csr(body)
    detail = caught.value.detail
    assert detail.endswith(".")
    assert not {unicodedata.category(c) for c in detail} & {
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
        "Zp",
    }
    return caught.value


def wrapped(der: bytes, columns: int, end: str) -> bytes:
    return (end.join(textwrap.wrap(base64.b64encode(der).decode(), columns)) + end).encode()


def pem(der: bytes, label: str = "CERTIFICATE REQUEST") -> bytes:
    text = wrapped(der, 64, "\n").decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


RSA_KEY = rsa.generate_private_key(65537, 2048)
NEW_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ada King")])
NEW_NAMES = tlv(0x30, tlv(0x82, b"New.example"))
