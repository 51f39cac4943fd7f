"""The wall for PKCS#10: what comes through, and that nothing but a refusal comes back."""

import base64
import os
import random
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estserver import csr as csr_module
from estserver.csr import (
    CSR,
    MAX_CSR_BYTES,
    MAX_NAMES,
    Form,
    KeyDescription,
    form_of,
    read_csr,
    read_names_only,
)
from estserver.errors import BadCSR, ConfigurationError, KeyNotAllowed, Refused

KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ada Lovelace")])

EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
MICROSOFT_EXTENSIONS = "1.3.6.1.4.1.311.2.1.14"
CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"
UNSTRUCTURED_NAME = "1.2.840.113549.1.9.2"
CHANGE_SUBJECT_NAME = "1.3.6.1.5.5.7.7.36"
SMIME = "1.2.840.113549.1.9.16.2."


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = (size.bit_length() + 7) // 8
    return bytes([tag, 0x80 | octets]) + size.to_bytes(octets) + content


def oid(dotted: str) -> bytes:
    return asn1.encode_der(x509.ObjectIdentifier(dotted))


def attribute(dotted: str, *values: bytes) -> bytes:
    return tlv(0x30, oid(dotted), tlv(0x31, *sorted(values)))


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


# --- wrapping -------------------------------------------------------------------------------


@pytest.mark.row("EST-071", "EST-074", "EST-075", "EST-076", "EST-077")
@pytest.mark.parametrize(
    ("body", "form"),
    [
        (PLAIN, Form.DER),
        (base64.b64encode(PLAIN), Form.BASE64),
        (wrapped(PLAIN, 64, "\n"), Form.BASE64),
        (wrapped(PLAIN, 64, "\r\n"), Form.BASE64),
        (wrapped(PLAIN, 76, "\r\n"), Form.BASE64),
        (wrapped(PLAIN, 1, " "), Form.BASE64),
        (b"\r\n\n \t" + wrapped(PLAIN, 20, "\t\n") + b"\n\n", Form.BASE64),
        (pem(PLAIN), Form.PEM),
        (pem(PLAIN).replace(b"\n", b"\r\n"), Form.PEM),
        (pem(PLAIN, "NEW CERTIFICATE REQUEST"), Form.PEM),
        (b"Certificate Request:\n    Data:\n" + pem(PLAIN) + b"\n", Form.PEM),
    ],
)
def test_every_usual_wrapping_gives_the_same_csr(body: bytes, form: Form) -> None:
    csr = read_csr(body)
    assert csr.der == PLAIN
    assert csr.subject == SUBJECT
    assert csr.spki == SPKI
    assert csr.key == KeyDescription("ec-p256", 256)
    assert form_of(body) is form
    assert read_names_only(body).subject == SUBJECT


@pytest.mark.row("EST-078", "EST-079")
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "is empty"),
        (b" \r\n\t", "is empty"),
        (b"{}", "holds the byte 0x7b"),
        (base64.b64encode(PLAIN)[:-5] + b"%AAAA", "holds the byte 0x25"),
        (base64.b64encode(PLAIN)[:40] + b"-_" + base64.b64encode(PLAIN)[42:], "URL-safe"),
        (base64.b64encode(PLAIN)[:-1], "cut short or its padding"),
        (base64.b64encode(PLAIN) + b"====", "cut short or its padding"),
        (base64.b64encode(PLAIN)[:41], "cut short or its padding"),
        (b"QQ==QQ==", "goes on after its padding"),
        (PLAIN[:-1], "cut short"),
        (base64.b64encode(PLAIN[:60]), "cut short"),
        (PLAIN + b"\0", "1 bytes follow"),
        (base64.b64encode(PLAIN + b"\x05\x00"), "2 bytes follow"),
        (PLAIN + PLAIN, "more than one request"),
        (base64.b64encode(PLAIN + PLAIN), "more than one request"),
        (pem(PLAIN) + pem(PLAIN), "more than one PEM block"),
        (b"0\x80" + PLAIN[4:] + b"\0\0", "indefinite length"),
        (base64.b64encode(tlv(0x31, PLAIN)), "is not a PKCS#10"),
        (b"0\x84\xff\xff\xff\xff" + PLAIN, "cut short"),
        (b"0\xff" + PLAIN, "cut short"),
        (tlv(0x30, b"\x02\x01\x00" * 50), "not one well-formed PKCS#10"),
        (pem(PLAIN, "CERTIFICATE"), "not a CERTIFICATE REQUEST"),
        (pem(PLAIN, "CERTIFICATE\x1b[1m REQUEST"), "not a CERTIFICATE REQUEST"),
        (pem(PLAIN).replace(b"END CERT", b"END NEW CERT"), "no END line"),
        (pem(PLAIN, "PRIVATE KEY") + pem(PLAIN), "private key, which must never leave"),
        (b"0" * (5 * MAX_CSR_BYTES), "larger than"),
        (tlv(0x30, bytes(MAX_CSR_BYTES)), "larger than"),
        (base64.b64encode(tlv(0x30, bytes(MAX_CSR_BYTES))), "larger than"),
    ],
)
def test_a_body_that_is_not_exactly_one_der_pkcs10_is_refused_and_told_why(
    body: bytes, sentence: str
) -> None:
    assert sentence in refused(body).detail


@pytest.mark.row("EST-079")
@pytest.mark.parametrize("version", [b"\x02\x01\x01", b"\x02\x01\xff", b"\x02\x09" + b"\x7f" * 9])
def test_rfc2986_any_version_but_0_is_refused(version: bytes) -> None:
    assert "version 1 (encoded as 0)" in refused(request(version=version)).detail


@pytest.mark.row("EST-079")
def test_ber_inside_the_request_is_refused() -> None:
    at = PLAIN.index(b"\x02\x01\x00")
    refused(request(version=b"\x02\x02\x00\x00"))
    refused(PLAIN[:at] + b"\x02\x81\x01\x00" + PLAIN[at + 3 :])


# --- proof of possession --------------------------------------------------------------------


@pytest.mark.row("EST-080")
@pytest.mark.parametrize(
    "body",
    [
        request(signature=b"\x30\x06\x02\x01\x01\x02\x01\x01"),
        request(signature=b""),
        request(signature=b"not a signature"),
        request(signature=KEY.sign(b"something else", ec.ECDSA(hashes.SHA256()))),
        request(
            spki=ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ),
        request(algorithm="1.2.840.10045.4.3.3"),
        request(algorithm="1.2.840.113549.1.1.11"),
        request(algorithm="1.3.101.112"),
        request(algorithm="1.2.3.4"),
    ],
)
def test_a_signature_that_is_not_by_the_key_inside_does_not_verify(body: bytes) -> None:
    assert "signature" in refused(body).detail
    assert "verify" in refused(body).detail


@pytest.mark.row("EST-083")
@pytest.mark.parametrize(
    ("algorithm", "named"),
    [
        ("1.2.840.113549.1.1.4", "MD5 with RSA"),
        ("1.2.840.113549.1.1.5", "SHA-1 with RSA"),
        ("1.2.840.10045.4.1", "SHA-1 with ECDSA"),
        ("1.2.840.10045.4.3.1", "SHA-224 with ECDSA"),
    ],
)
def test_weak_digests_are_refused_by_name_and_the_allowed_ones_named(
    algorithm: str, named: str
) -> None:
    error = refused(request(algorithm=algorithm))
    assert named in error.detail
    assert "SHA-256, SHA-384 or SHA-512" in error.detail


@pytest.mark.row("EST-083")
@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_the_three_sha2_digests_are_taken_with_every_kind_of_key(
    digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512,
) -> None:
    assert read_csr(der_of(builder().sign(KEY, digest))).key.family == "ec-p256"
    assert read_csr(der_of(builder().sign(RSA_KEY, digest))).key.family == "rsa"
    pss = padding.PSS(padding.MGF1(digest), padding.PSS.DIGEST_LENGTH)
    csr = builder().sign(RSA_KEY, digest, rsa_padding=pss)
    assert read_csr(der_of(csr)).key == KeyDescription("rsa", 2048)


RSA_KEY = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("place", [0, 1])
def test_rsa_pss_with_another_digest_for_message_or_mask_is_refused(place: int) -> None:
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    der = bytearray(der_of(builder().sign(RSA_KEY, hashes.SHA256(), rsa_padding=pss)))
    sha256 = oid("2.16.840.1.101.3.4.2.1")
    at = der.index(sha256)
    if place:
        at = der.index(sha256, at + 1)
    der[at + len(sha256) - 1] = 4  # SHA-224
    assert "same SHA-256, SHA-384 or SHA-512" in refused(bytes(der)).detail


def test_an_ed25519_csr_is_taken() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    assert read_csr(der_of(builder().sign(key, None))).key == KeyDescription("ed25519", 256)


@pytest.mark.row("EST-082")
def test_a_csr_whose_key_usage_forbids_signing_still_proves_possession() -> None:
    usage = extension("2.5.29.15", bytes.fromhex("03020520"))
    csr = read_csr(request(attribute(EXTENSION_REQUEST, tlv(0x30, usage))))
    assert csr.requested_extensions == ("2.5.29.15",)


# --- extensions and names -------------------------------------------------------------------


@pytest.mark.row("EST-088", "EST-089")
def test_requested_extensions_are_recorded_by_oid_and_no_more() -> None:
    csr = (
        builder()
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("A.example")]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier(b"1"), critical=False)
        .add_extension(x509.PolicyConstraints(0, 0), critical=True)
        .add_extension(x509.InhibitAnyPolicy(0), critical=True)
        .add_extension(x509.OCSPNoCheck(), critical=False)
        .add_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False)
        .sign(KEY, hashes.SHA256())
    )
    read = read_csr(der_of(csr))
    assert read.requested_extensions == tuple(e.oid.dotted_string for e in csr.extensions)
    assert "2.5.29.19" in read.requested_extensions
    assert read.names == (x509.DNSName("a.example"),)
    assert read.attributes == (EXTENSION_REQUEST,)


@pytest.mark.row("EST-088")
def test_an_extension_that_nobody_reads_may_hold_anything() -> None:
    """FreeIPA writes `critical FALSE` out; values other than the SAN are never decoded."""
    odd = tlv(0x30, oid("2.5.29.19"), b"\x01\x01\x00", tlv(0x04, b"garbage"))
    csr = read_csr(request(attribute(EXTENSION_REQUEST, tlv(0x30, odd))))
    assert csr.requested_extensions == ("2.5.29.19",)


@pytest.mark.row("EST-090")
def test_the_microsoft_attribute_is_an_extension_request_like_any() -> None:
    csr = read_csr(
        request(attribute(MICROSOFT_EXTENSIONS, tlv(0x30, san(tlv(0x82, b"a.example")))))
    )
    assert csr.names == (x509.DNSName("a.example"),)


@pytest.mark.row("EST-090")
@pytest.mark.parametrize(
    "attributes",
    [
        [(EXTENSION_REQUEST, 1), (EXTENSION_REQUEST, 1)],
        [(EXTENSION_REQUEST, 1), (MICROSOFT_EXTENSIONS, 1)],
        [(EXTENSION_REQUEST, 2)],
        [(EXTENSION_REQUEST, 0)],
    ],
)
def test_there_is_at_most_one_extension_request_with_one_value(
    attributes: Sequence[tuple[str, int]],
) -> None:
    value = tlv(0x30, san(tlv(0x82, b"a.example")))
    parts = [attribute(dotted, *[value] * count) for dotted, count in attributes]
    assert "extensionRequest" in refused(request(*parts)).detail


@pytest.mark.row("EST-090")
def test_an_extension_asked_for_twice_is_refused() -> None:
    twice = tlv(0x30, san(tlv(0x82, b"a.example")), san(tlv(0x82, b"b.example")))
    error = refused(request(attribute(EXTENSION_REQUEST, twice)))
    assert "same extension twice" in error.detail


@pytest.mark.row("EST-091")
def test_unknown_attributes_are_listed_and_otherwise_ignored() -> None:
    csr = read_csr(
        request(
            attribute(UNSTRUCTURED_NAME, tlv(0x16, b"x"), tlv(0x0C, b"y")),
            attribute("1.2.3.4"),
            attribute("1.2.840.113549.1.9.15", tlv(0x30)),
            attribute(SMIME + "37", tlv(0x04, b"id")),
            attribute(SMIME + "54", tlv(0x04, b"id")),
        )
    )
    assert set(csr.attributes) == {
        UNSTRUCTURED_NAME,
        "1.2.3.4",
        "1.2.840.113549.1.9.15",
        SMIME + "37",
        SMIME + "54",
    }
    assert csr.names == ()


@pytest.mark.row("EST-092")
def test_every_form_of_alternative_name_is_read() -> None:
    names = read_csr(
        request(
            attribute(
                EXTENSION_REQUEST,
                tlv(
                    0x30,
                    san(
                        tlv(0x82, b"*.Example.org"),
                        tlv(0x82, b"xn--bcher-kva.example"),
                        tlv(0x87, b"\xc0\0\2\1"),
                        tlv(0x87, bytes(15) + b"\1"),
                        tlv(0x86, b"https://example.org/"),
                        tlv(0x81, b"ada@Example.org"),
                        tlv(0xA0, oid("1.2.3"), tlv(0xA0, tlv(0x0C, b"x"))),
                        tlv(0xA4, SUBJECT.public_bytes()),
                        tlv(0x88, oid("1.2.3")[2:]),
                    ),
                ),
            )
        )
    ).names
    assert [type(general_name).__name__ for general_name in names] == [
        "DNSName",
        "DNSName",
        "IPAddress",
        "IPAddress",
        "UniformResourceIdentifier",
        "RFC822Name",
        "OtherName",
        "DirectoryName",
        "RegisteredID",
    ]
    assert names[0] == x509.DNSName("*.example.org")
    assert names[5] == x509.RFC822Name("ada@example.org")


@pytest.mark.row("EST-093")
def test_an_empty_subject_is_read_with_and_without_alternative_names() -> None:
    empty = x509.Name([])
    assert read_csr(request(subject=empty.public_bytes())).subject == empty
    value = tlv(0x30, san(tlv(0x82, b"a.example")))
    csr = read_csr(request(attribute(EXTENSION_REQUEST, value), subject=empty.public_bytes()))
    assert (csr.subject, csr.names) == (empty, (x509.DNSName("a.example"),))


MALFORMED_NAMES = [
    tlv(0x82, b""),
    tlv(0x82, b"a\0.example"),
    tlv(0x82, b"bank.example\0.evil.example"),
    tlv(0x82, b"a\r\nb.example"),
    tlv(0x82, b"a\x1b[2Jb.example"),
    tlv(0x82, b"a\x7f.example"),
    tlv(0x82, "bücher.example".encode()),
    tlv(0x82, "bücher.example".encode("latin-1")),
    tlv(0x82, "a\u202e.example".encode()),
    tlv(0x82, b"a.example."),
    tlv(0x82, b".a.example"),
    tlv(0x82, b"a..example"),
    tlv(0x82, b" a.example"),
    tlv(0x82, b"a.example "),
    tlv(0x82, b"a_b.example"),
    tlv(0x82, b"a b.example"),
    tlv(0x82, b"w*.example"),
    tlv(0x82, b"a.*.example"),
    tlv(0x82, b"192.0.2.1"),
    tlv(0x82, b"::1"),
    tlv(0x82, b"a" * 64 + b".example"),
    tlv(0x82, b".".join([b"a" * 63] * 4)),
    tlv(0x82, b"a" * 65000),
    tlv(0x82, b"xn--\xff.example"),
    tlv(0x82, b"xn--0.example"),
    tlv(0x82, b"-a.example"),
    tlv(0x82, b"<svg onload=alert(1)>"),
    tlv(0x82, b"a.example/path"),
    tlv(0x82, b"a.example:443"),
    tlv(0x82, b"user@a.example"),
    tlv(0x81, b""),
    tlv(0x81, b"a"),
    tlv(0x81, b"a@b\r\nBcc: c@d"),
    tlv(0x81, b"a@b\0.example"),
    tlv(0x81, b'"a b"@example.org'),
    tlv(0x81, b"Ada <a@example.org>"),
    tlv(0x81, "é@example.org".encode()),
    tlv(0x86, b""),
    tlv(0x86, b"/relative"),
    tlv(0x86, b"https://a\0b/"),
    tlv(0x86, b"https://a.example/\r\nX: y"),
    tlv(0x86, "https://é.example/".encode()),
    tlv(0x87, b""),
    tlv(0x87, b"\1\2\3"),
    tlv(0x87, b"\xc0\0\2\0\xff\xff\xff\0"),
    tlv(0x87, bytes(17)),
    tlv(0x87, bytes(32)),
    tlv(0x88, b""),
    tlv(0xA0, b""),
    tlv(0xA0, oid("1.2.3")),
    tlv(0xA3, b""),
    tlv(0xA5, tlv(0xA1, tlv(0x0C, b"x"))),
    tlv(0xA4, b""),
    tlv(0xA4, tlv(0x30, tlv(0x31, tlv(0x30, oid("2.5.4.3"), tlv(0x0C, b"a\0b"))))),
    tlv(0xA4, tlv(0x30, tlv(0x31, tlv(0x30, oid("2.5.4.6"), tlv(0x13, b"J"))))),
    tlv(0x89, b"x"),
    tlv(0x0C, b"a.example"),
    b"",
]


@pytest.mark.row("EST-092", "INC-36", "A-9")
@pytest.mark.parametrize("general_name", MALFORMED_NAMES, ids=lambda n: n[:24].hex())
def test_a_malformed_alternative_name_is_refused_without_echoing_controls(
    general_name: bytes,
) -> None:
    body = request(attribute(EXTENSION_REQUEST, tlv(0x30, san(general_name))))
    refused(body)
    with pytest.raises(BadCSR):
        read_names_only(body)


@pytest.mark.row("INC-36")
@pytest.mark.parametrize(
    "value",
    [
        tlv(0x0C, b""),
        tlv(0x0C, b"a\0b"),
        tlv(0x0C, b"a\nb"),
        tlv(0x0C, b"a\x1bb"),
        tlv(0x0C, "a\u202eb".encode()),
        tlv(0x0C, "a\u2028b".encode()),
        tlv(0x0C, "a\ue000b".encode()),
        tlv(0x0C, b"\xff\xfe"),
        tlv(0x0C, b" a"),
        tlv(0x0C, b"a" * 65),
        tlv(0x13, b"a\0"),
        tlv(0x13, b"a*b@c"),
        tlv(0x16, b"a\x80"),
        tlv(0x1E, b"\0a\0"),
        tlv(0x1E, b"\xd8\x00"),
        tlv(0x1C, b"\0\x11\0\0"),
        tlv(0x03, b"\0\1"),
        tlv(0x02, b"\1"),
        tlv(0x30, b""),
    ],
    ids=lambda v: v[:24].hex(),
)
def test_a_malformed_subject_value_is_refused_without_echoing_controls(value: bytes) -> None:
    subject = tlv(0x30, tlv(0x31, tlv(0x30, oid("2.5.4.3"), value)))
    assert "subject" in refused(request(subject=subject)).detail


def test_the_refusal_of_a_name_says_which() -> None:
    body = request(
        attribute(EXTENSION_REQUEST, tlv(0x30, san(tlv(0x82, b"a.b"), tlv(0x82, b"c\0d"))))
    )
    assert r'dNSName in the subjectAltName "c\00d"' in refused(body).detail


@pytest.mark.row("A-9")
def test_a_hundred_names_are_taken_and_more_are_refused() -> None:
    names = [tlv(0x82, f"host{n}.example".encode()) for n in range(MAX_NAMES + 1)]
    csr = read_csr(request(attribute(EXTENSION_REQUEST, tlv(0x30, san(*names[:-1])))))
    assert len(csr.names) == MAX_NAMES
    error = refused(request(attribute(EXTENSION_REQUEST, tlv(0x30, san(*names)))))
    assert "more than 100 names" in error.detail
    ten_thousand = tlv(0x30, san(*names * 100))
    assert "larger than" in refused(request(attribute(EXTENSION_REQUEST, ten_thousand))).detail


# --- challengePassword and its kin ----------------------------------------------------------


@pytest.mark.row("EST-098", "EST-106", "EST-110")
@pytest.mark.parametrize(
    "value",
    [
        tlv(0x13, b"c2VjcmV0"),
        tlv(0x0C, b"c2VjcmV0"),
        tlv(0x16, b"c2VjcmV0"),
        tlv(0x14, b"c2VjcmV0"),
        tlv(0x1E, "c2VjcmV0".encode("utf-16-be")),
        tlv(0x1C, "c2VjcmV0".encode("utf-32-be")),
    ],
)
def test_rfc2985_5_4_1_a_challenge_password_counts_by_its_text(value: bytes) -> None:
    csr = read_csr(request(attribute(CHALLENGE_PASSWORD, value), attribute(SMIME + "58", value)))
    assert csr.challenge_password is not None
    assert csr.challenge_password.reveal() == "c2VjcmV0"
    assert csr.identity_linking is not None
    assert csr.identity_linking.reveal() == "c2VjcmV0"
    assert "c2VjcmV0" not in repr(csr)
    assert "c2VjcmV0" not in repr(read_names_only(request(attribute(CHALLENGE_PASSWORD, value))))


@pytest.mark.row("EST-099", "EST-107")
@pytest.mark.parametrize("dotted", [CHALLENGE_PASSWORD, SMIME + "58"])
@pytest.mark.parametrize(
    "build",
    [
        lambda a: [a(tlv(0x13, b""))],
        lambda a: [a(tlv(0x0C, b"x" * 256))],
        lambda a: [a(tlv(0x0C, b"x"), tlv(0x0C, b"y"))],
        lambda a: [a()],
        lambda a: [a(tlv(0x0C, b"x")), a(tlv(0x0C, b"y"))],
        lambda a: [a(tlv(0x0C, b"x"))] * 2,
        lambda a: [a(tlv(0x04, b"x"))],
        lambda a: [a(tlv(0x0C, b"\xff"))],
        lambda a: [a(tlv(0x16, b"\xff"))],
        lambda a: [a(tlv(0x1E, b"x"))],
    ],
)
def test_a_challenge_password_is_one_value_of_1_to_255_characters(
    dotted: str, build: Callable[[Callable[..., bytes]], list[bytes]]
) -> None:
    name = "challengePassword" if dotted == CHALLENGE_PASSWORD else "estIdentityLinking"
    error = refused(request(*build(lambda *values: attribute(dotted, *values))))
    assert name in error.detail


def test_a_challenge_password_of_255_characters_beyond_ascii_is_taken() -> None:
    csr = read_csr(request(attribute(CHALLENGE_PASSWORD, tlv(0x0C, ("山" * 255).encode()))))
    assert csr.challenge_password is not None
    assert len(csr.challenge_password.reveal()) == 255


@pytest.mark.row("EST-110")
def test_rfc7894_otp_and_revocation_challenges_are_recorded_and_never_trusted() -> None:
    value = tlv(0x0C, b"x")
    csr = read_csr(request(attribute(SMIME + "56", value), attribute(SMIME + "57", value)))
    assert csr.attributes == (SMIME + "56", SMIME + "57")
    assert (csr.challenge_password, csr.identity_linking) == (None, None)


# --- ChangeSubjectName ----------------------------------------------------------------------

NEW_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ada King")])
NEW_NAMES = tlv(0x30, tlv(0x82, b"New.example"))


@pytest.mark.row("EST-131")
@pytest.mark.parametrize(
    ("value", "subject", "names"),
    [
        (tlv(0x30, NEW_SUBJECT.public_bytes()), NEW_SUBJECT, None),
        (tlv(0x30, NEW_NAMES), None, (x509.DNSName("new.example"),)),
        (
            tlv(0x30, NEW_SUBJECT.public_bytes(), NEW_NAMES),
            NEW_SUBJECT,
            (x509.DNSName("new.example"),),
        ),
        (tlv(0x30, tlv(0x30), NEW_NAMES), x509.Name([]), (x509.DNSName("new.example"),)),
    ],
)
def test_rfc6402_2_8_change_subject_name_holds_subject_or_names_or_both(
    value: bytes, subject: x509.Name | None, names: tuple[x509.GeneralName, ...] | None
) -> None:
    csr = read_csr(request(attribute(CHANGE_SUBJECT_NAME, value)))
    assert csr.change_subject is not None
    assert csr.change_subject.subject == subject
    assert csr.change_subject.names == names
    assert csr.subject == SUBJECT


@pytest.mark.row("EST-132")
@pytest.mark.parametrize(
    "values",
    [
        [tlv(0x30)],
        [],
        [tlv(0x30, NEW_NAMES), tlv(0x30, NEW_SUBJECT.public_bytes())],
        [tlv(0x30, NEW_NAMES, NEW_SUBJECT.public_bytes())],
        [tlv(0x30, NEW_SUBJECT.public_bytes(), NEW_NAMES, NEW_NAMES)],
        [tlv(0x30, tlv(0x30, tlv(0x82, b"a\0b")))],
        [tlv(0x30, NEW_SUBJECT.public_bytes(), tlv(0x30))],
        [tlv(0x0C, b"x")],
    ],
)
def test_rfc6402_2_8_a_change_subject_name_that_is_empty_or_malformed_is_refused(
    values: list[bytes],
) -> None:
    refused(request(attribute(CHANGE_SUBJECT_NAME, *values)))


# --- serverkeygen ---------------------------------------------------------------------------


@pytest.mark.row("EST-166")
def test_rfc7030_4_4_1_key_and_signature_are_ignored_where_the_server_makes_the_key() -> None:
    body = request(
        attribute(EXTENSION_REQUEST, tlv(0x30, san(tlv(0x82, b"a.example")))),
        attribute(SMIME + "37", tlv(0x04, b"id")),
        spki=tlv(0x30, tlv(0x30, oid("1.2.3")), tlv(0x03, b"\0garbage")),
        signature=b"garbage",
    )
    asked = read_names_only(body)
    assert asked.subject == SUBJECT
    assert asked.names == (x509.DNSName("a.example"),)
    assert SMIME + "37" in asked.attributes
    refused(body)


# --- nothing but a refusal ------------------------------------------------------------------


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
