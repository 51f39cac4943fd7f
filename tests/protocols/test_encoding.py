"""Wire encodings that protocols share, against the RFCs' own vectors and a second decoder."""

import base64
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from asn1crypto import cms, core
from asn1crypto import x509 as asn1crypto_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID
from hypothesis import given
from hypothesis import strategies as st

from estserver.model import KeyType
from estserver.protocols.encoding import (
    ED25519,
    Attribute,
    CSRAttribute,
    certs_only,
    csr_attributes,
    wrap_base64,
)
from tests.protocols.csr_attributes import CsrAttrs

OID = x509.ObjectIdentifier
KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(name: str) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime(2030, 1, 1, tzinfo=UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .sign(KEY, hashes.SHA256())
    )


CERTIFICATES = [certificate("one"), certificate("the second, which is longer")]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_certs_only_is_byte_for_byte_what_the_library_makes(count: int) -> None:
    bag = [certificate(f"number {n}" * (n % 3 + 1)) for n in range(count)]
    assert certs_only(bag) == pkcs7.serialize_certificates(bag, Encoding.DER)
    assert certs_only([one.public_bytes(Encoding.DER) for one in reversed(bag)]) == certs_only(bag)


@pytest.mark.row("EST-038", "EST-039")
def test_rfc5272_4_1_certs_only_has_neither_content_nor_signer() -> None:
    der = certs_only(CERTIFICATES)
    info = cms.ContentInfo.load(der, strict=True)
    assert info["content_type"].native == "signed_data"
    data = info["content"]
    assert data["version"].native == "v1"
    assert len(data["digest_algorithms"]) == 0
    assert data["encap_content_info"]["content_type"].native == "data"
    assert isinstance(data["encap_content_info"]["content"], core.Void)
    assert len(data["signer_infos"]) == 0
    assert len(data["crls"]) == 0
    assert {choice.chosen.dump() for choice in data["certificates"]} == {
        one.public_bytes(Encoding.DER) for one in CERTIFICATES
    }


@pytest.mark.row("EST-039", "EST-115")
def test_certs_only_takes_der_as_well_and_its_order_means_nothing() -> None:
    ders = [one.public_bytes(Encoding.DER) for one in CERTIFICATES]
    assert certs_only(ders) == certs_only(CERTIFICATES) == certs_only(ders[::-1])
    assert len(cms.ContentInfo.load(certs_only(ders[:1]))["content"]["certificates"]) == 1


@pytest.mark.row("EST-038", "EST-048", "EST-198")
@given(st.binary(max_size=300), st.sampled_from([None, 64, 76]))
def test_base64_comes_in_lines_or_on_one_and_always_ends_with_a_line_feed(
    der: bytes, columns: int | None
) -> None:
    text = wrap_base64(der, columns)
    lines = text.split(b"\n")
    assert lines.pop() == b""
    assert base64.b64decode(b"".join(lines), validate=True) == der
    if columns is None:
        assert len(lines) <= 1
    else:
        assert all(len(line) == columns for line in lines[:-1])
        assert all(0 < len(line) <= columns for line in lines)


ACP_NAME = x509.Extension(
    x509.SubjectAlternativeName.oid,
    critical=True,
    value=x509.SubjectAlternativeName(
        [
            x509.OtherName(
                OID("1.3.6.1.5.5.7.8.10"),
                b"\x16\x39rfc8994+fd739fc23c3440112233445500000000+@acp.example.com",
            )
        ]
    ),
)


@pytest.mark.row("EST-150", "EST-152")
def test_rfc9908_5_1_extensions_stand_in_one_extension_request() -> None:
    assert base64.b64encode(csr_attributes(extensions=[ACP_NAME])) == (
        b"MGgwZgYJKoZIhvcNAQkOMVkwVzBVBgNVHREBAf8ESzBJoEcGCCsGAQUFBwgKoDsWOXJmYzg5OTQrZmQ3Mzlm"
        b"YzIzYzM0NDAxMTIyMzM0NDU1MDAwMDAwMDArQGFjcC5leGFtcGxlLmNvbQ=="
    )


@pytest.mark.parametrize(
    ("key_type", "others", "signature", "expected"),
    [
        pytest.param(
            KeyType.EC_P384,
            ["1.3.6.1.1.1.1.22"],
            SignatureAlgorithmOID.ECDSA_WITH_SHA384,
            "MDIGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiBgcrBgEBAQEWBggqhkjOPQQDAw==",
            marks=pytest.mark.row("EST-153"),
            id="5.2",
        ),
        pytest.param(
            KeyType.RSA_4096,
            [],
            SignatureAlgorithmOID.RSA_WITH_SHA256,
            "MCkGCSqGSIb3DQEJBzARBgkqhkiG9w0BAQExBAICEAAGCSqGSIb3DQEBCw==",
            marks=pytest.mark.row("EST-154"),
            id="5.4",
        ),
        pytest.param(
            KeyType.EC_P384,
            ["2.5.4.5"],
            SignatureAlgorithmOID.ECDSA_WITH_SHA384,
            "MC4GCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiBgNVBAUGCCqGSM49BAMD",
            marks=pytest.mark.row("EST-155"),
            id="5.5",
        ),
        pytest.param(
            KeyType.EC_P521,
            ["1.2.840.113549.1.9.20", "0.9.2342.19200300.100.1.5", "2.5.4.5"],
            SignatureAlgorithmOID.ECDSA_WITH_SHA512,
            "MEUGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAjBgkqhkiG9w0BCRQGCgmSJomT8ixkAQUGA1UEBQYI"
            "KoZIzj0EAwQ=",
            marks=pytest.mark.row("EST-156"),
            id="5.6",
        ),
    ],
)
@pytest.mark.row("EST-148", "EST-149", "EST-151")
def test_rfc9908_5_the_vectors_come_out_byte_for_byte(
    key_type: KeyType, others: list[str], signature: OID, expected: str
) -> None:
    der = csr_attributes(
        challenge_password=True,
        key_type=key_type,
        others=[OID(dotted) for dotted in others],
        signature=signature,
    )
    assert base64.b64encode(der).decode() == expected


def read_csr_attributes(der: bytes) -> list[CSRAttribute]:
    """Read CsrAttrs as a tolerant client does: any OID, any value, an empty SET too."""
    found: list[CSRAttribute] = []
    for element in CsrAttrs.load(der, strict=True):
        if element.name == "oid":
            found.append(OID(element.chosen.dotted))
        else:
            values = tuple(cast("bytes", value.dump()) for value in element.chosen["values"])
            found.append(Attribute(OID(element.chosen["type"].dotted), values))
    return found


@pytest.mark.row("EST-147")
def test_nothing_to_ask_for_is_the_empty_sequence() -> None:
    assert base64.b64encode(csr_attributes()) == b"MAA="
    assert read_csr_attributes(csr_attributes()) == []


@pytest.mark.row("EST-150")
def test_rfc9908_3_2_all_extensions_share_one_attribute_with_one_value() -> None:
    usage = x509.Extension(
        x509.ExtendedKeyUsage.oid,
        critical=False,
        value=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
    )
    [attribute] = read_csr_attributes(csr_attributes(extensions=[ACP_NAME, usage]))
    assert isinstance(attribute, Attribute)
    assert attribute.oid == OID("1.2.840.113549.1.9.14")
    [value] = attribute.values
    extensions = asn1crypto_x509.Extensions.load(value, strict=True)
    assert [one["extn_id"].dotted for one in extensions] == ["2.5.29.17", "2.5.29.37"]
    assert [one["critical"].native for one in extensions] == [True, False]
    assert b"\x01\x01\x00" not in value  # DER leaves the default out
    with pytest.raises(ValueError, match="RFC 9908"):
        csr_attributes(extensions=[usage, usage])


@pytest.mark.row("EST-148", "EST-151")
@pytest.mark.parametrize("key_type", list(KeyType))
def test_rfc9908_3_2_there_is_one_key_requirement_and_never_an_empty_set(
    key_type: KeyType,
) -> None:
    elements = read_csr_attributes(csr_attributes(key_type=key_type))
    assert len(elements) == 1
    if key_type is KeyType.ED25519:
        assert elements == [ED25519]
        assert elements == read_csr_attributes(csr_attributes(key_type=key_type, signature=ED25519))
    else:
        assert isinstance(elements[0], Attribute)
        assert len(elements[0].values) == 1


def test_attributes_with_values_of_their_own_go_out_as_given() -> None:
    own: list[CSRAttribute] = [Attribute(OID("1.2.3"), (b"\x05\x00", b"\x0c\x01x")), OID("1.2.4")]
    assert read_csr_attributes(csr_attributes(others=own)) == own
