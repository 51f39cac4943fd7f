"""The wall for PKCS#10: names, extensions and attributes that a request asks for."""

from collections.abc import Callable, Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from estserver.csr import MAX_NAMES, read_csr, read_names_only
from estserver.errors import BadCSR
from tests.der import attribute, oid, tlv
from tests.pkcs10 import (
    CHALLENGE_PASSWORD,
    CHANGE_SUBJECT_NAME,
    EXTENSION_REQUEST,
    KEY,
    NEW_NAMES,
    NEW_SUBJECT,
    SMIME,
    SUBJECT,
    builder,
    der_of,
    refused,
    request,
    san,
)

MICROSOFT_EXTENSIONS = "1.3.6.1.4.1.311.2.1.14"
UNSTRUCTURED_NAME = "1.2.840.113549.1.9.2"


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
