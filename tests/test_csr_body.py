"""The wall for PKCS#10: what is one request, and what proves possession of its key."""

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver.csr import MAX_CSR_BYTES, Form, KeyDescription, form_of, read_csr, read_names_only
from tests.der import attribute, oid, tlv
from tests.pkcs10 import (
    EXTENSION_REQUEST,
    KEY,
    PLAIN,
    RSA_KEY,
    SMIME,
    SPKI,
    SUBJECT,
    builder,
    der_of,
    extension,
    pem,
    refused,
    request,
    san,
    wrapped,
)

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
