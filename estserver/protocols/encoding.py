"""Wire encodings that several protocols share: certs-only PKCS#7, base64 bodies, CsrAttrs."""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.ca.der import SEQUENCE, tlv
from estserver.model import KeyType

CHALLENGE_PASSWORD = x509.ObjectIdentifier("1.2.840.113549.1.9.7")
EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")
RSA_ENCRYPTION = x509.ObjectIdentifier("1.2.840.113549.1.1.1")
EC_PUBLIC_KEY = x509.ObjectIdentifier("1.2.840.10045.2.1")
ED25519 = x509.ObjectIdentifier("1.3.101.112")
_CURVES = {
    KeyType.EC_P256: x509.ObjectIdentifier("1.2.840.10045.3.1.7"),
    KeyType.EC_P384: x509.ObjectIdentifier("1.3.132.0.34"),
    KeyType.EC_P521: x509.ObjectIdentifier("1.3.132.0.35"),
}

# What stands around the certificates of a certs-only PKCS#7.
_TAGGED, _VERSION, _EMPTY_SET = 0xA0, b"\x02\x01\x01", b"\x31\x00"
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_NO_CONTENT = tlv(SEQUENCE, bytes.fromhex("06092a864886f70d010701"))


@asn1.sequence
class _Attribute:
    type: x509.ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _CsrAttrs:
    elements: list[x509.ObjectIdentifier | _Attribute]


@asn1.sequence
class _Extension:
    extension_id: x509.ObjectIdentifier
    # Not DEFAULT FALSE: None leaves it out, which is the DER of FALSE.
    critical: bool | None
    value: bytes


@asn1.sequence
class _Extensions:
    extensions: list[_Extension]


@asn1.sequence
class _Wrapped:
    value: asn1.TLV


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of CsrAttrs that carries values; `values` are DER, at least one."""

    oid: x509.ObjectIdentifier
    values: tuple[bytes, ...]


CSRAttribute = x509.ObjectIdentifier | Attribute
"""AttrOrOID of RFC 7030 §4.5.2."""


def certs_only(certificates: Sequence[bytes | x509.Certificate]) -> bytes:
    """Return the DER of a certs-only PKCS#7: SignedData with neither content nor signer.

    `certificates`: DER or parsed, at least one. Their order means nothing: DER sorts the SET.
    RFC 5272 §4.1, RFC 5652 §5.1.
    """
    # `cryptography` would read what was written a moment ago, at five times the price of this.
    ordered = sorted(
        certificate if isinstance(certificate, bytes) else certificate.public_bytes(Encoding.DER)
        for certificate in certificates
    )
    bag = tlv(_TAGGED, b"".join(ordered))
    signed_data = tlv(SEQUENCE, _VERSION + _EMPTY_SET + _NO_CONTENT + bag + _EMPTY_SET)
    return tlv(SEQUENCE, _SIGNED_DATA + tlv(_TAGGED, signed_data))


def wrap_base64(der: bytes, columns: int | None) -> bytes:
    """Return `der` in base64 with a final LF: in lines of `columns`, or None: all in one.

    libest needs lines in cacerts, strongSwan up to 5.9.10 needs one line (EST-048).
    RFC 4648 §4, RFC 8951 §3.1.
    """
    if columns is None:
        return binascii.b2a_base64(der)
    text = binascii.b2a_base64(der, newline=False)
    lines = [text[at : at + columns] for at in range(0, len(text), columns)]
    return b"\n".join([*lines, b""])


def csr_attributes(
    *,
    challenge_password: bool = False,
    key_type: KeyType | None = None,
    extensions: Sequence[x509.Extension[x509.ExtensionType]] = (),
    others: Sequence[CSRAttribute] = (),
    signature: x509.ObjectIdentifier | None = None,
) -> bytes:
    """Return the DER of CsrAttrs; nothing asked for gives the empty SEQUENCE.

    `extensions` come with complete values; "there MUST be only one such attribute", so they
    stand together in one id-ExtensionReq. `signature` names the algorithm for signing the CSR.
    The order is that of the examples in RFC 9908 §5: challengePassword, key, extensions, others,
    signature algorithm.
    RFC 7030 §4.5.2, RFC 9908 §3.2.
    """
    attributes: list[CSRAttribute] = [CHALLENGE_PASSWORD] if challenge_password else []
    if key_type is not None:
        attributes.append(_key_attribute(key_type))
    if extensions:
        attributes.append(_extension_attribute(extensions))
    attributes.extend(others)
    # For Ed25519 one OID names the key type and the signature; it shall stand there once.
    if signature is not None and signature not in attributes:
        attributes.append(signature)
    return _unwrap(_CsrAttrs(elements=[_element(attribute) for attribute in attributes]))


def _key_attribute(key_type: KeyType) -> CSRAttribute:
    """Ask for a key: "exactly one Attribute with the type field being the OID" of the type.

    Ed25519 has no parameters. RFC 9908 would have an empty SET there, which RFC 7030's SIZE
    (1..MAX) forbids and older clients cannot read, so it is asked for by the bare OID (EST-151).
    """
    if key_type.rsa_bits is not None:
        return Attribute(RSA_ENCRYPTION, (asn1.encode_der(key_type.rsa_bits),))
    if key_type in _CURVES:
        return Attribute(EC_PUBLIC_KEY, (asn1.encode_der(_CURVES[key_type]),))
    return ED25519


def _extension_attribute(extensions: Sequence[x509.Extension[x509.ExtensionType]]) -> Attribute:
    """Put all extensions in one Extensions. Raises ValueError: one of them stands there twice."""
    oids = [extension.oid for extension in extensions]
    if len(set(oids)) < len(oids):
        raise ValueError("RFC 9908 §3.2: no extnID may stand twice")
    value = _Extensions(
        extensions=[
            _Extension(
                extension_id=extension.oid,
                critical=extension.critical or None,
                value=extension.value.public_bytes(),
            )
            for extension in extensions
        ]
    )
    return Attribute(EXTENSION_REQUEST, (_unwrap(value),))


def _element(attribute: CSRAttribute) -> x509.ObjectIdentifier | _Attribute:
    if isinstance(attribute, x509.ObjectIdentifier):
        return attribute
    values = [asn1.decode_der(asn1.TLV, value) for value in attribute.values]
    return _Attribute(type=attribute.oid, values=asn1.SetOf(values))


def _unwrap(wrapped: _CsrAttrs | _Extensions) -> bytes:
    """Return the DER of the SEQUENCE OF inside; the asn1 module knows it only as a field."""
    return asn1.encode_der(asn1.decode_der(_Wrapped, asn1.encode_der(wrapped)).value)
