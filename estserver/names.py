"""The rules of names: what may stand in a subject or subjectAltName, and when two are the same.

One set of rules for CSRs, for what officers type and for what imports carry, because
`cryptography` checks nothing: NUL, line breaks and bidirectional controls pass it (INC-36).

Invariants: a GeneralName returned by `parse_general_name`, `check_general_name` or `read_names`
is in its normal form (host names in lower case, A-labels), so that sets of them compare by `==`.
No error text repeats a character that a terminal or a log would act upon.
"""

import ipaddress
import unicodedata
from collections.abc import Hashable
from functools import lru_cache
from typing import Annotated, Literal

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.x509.oid import NameOID

from estserver.name_grammar import (
    bad,
    check_dns,
    check_email,
    check_ip,
    check_text,
    check_uri,
    fold_uri,
    shown,
    visible,
)

__all__ = [
    "canonical_general_name",
    "canonical_name",
    "check_general_name",
    "check_text",
    "decode_name",
    "decode_names",
    "display_name",
    "encode_name",
    "encode_names",
    "format_general_name",
    "is_wildcard",
    "parse_general_name",
    "read_name",
    "read_names",
    "read_text",
    "same_name",
    "wrap",
]

_MAX_ATTRIBUTE = 255
_EMPTY = b"\x30\x00"
"""A Name or GeneralNames with nothing in it."""

# Names for messages, and the upper bounds of RFC 5280 Appendix A.1.
_ATTRIBUTES = {
    NameOID.COMMON_NAME: ("commonName", 64),
    NameOID.COUNTRY_NAME: ("countryName", 2),
    NameOID.DN_QUALIFIER: ("dnQualifier", 64),
    NameOID.DOMAIN_COMPONENT: ("domainComponent", 63),
    NameOID.EMAIL_ADDRESS: ("emailAddress", 255),
    NameOID.GIVEN_NAME: ("givenName", 64),
    NameOID.JURISDICTION_COUNTRY_NAME: ("jurisdictionCountryName", 2),
    NameOID.LOCALITY_NAME: ("localityName", 128),
    NameOID.ORGANIZATION_NAME: ("organizationName", 64),
    NameOID.ORGANIZATIONAL_UNIT_NAME: ("organizationalUnitName", 64),
    NameOID.PSEUDONYM: ("pseudonym", 128),
    NameOID.SERIAL_NUMBER: ("serialNumber", 64),
    NameOID.STATE_OR_PROVINCE_NAME: ("stateOrProvinceName", 128),
    NameOID.SURNAME: ("surname", 64),
    NameOID.TITLE: ("title", 64),
    NameOID.USER_ID: ("userId", 256),
}
_COUNTRIES = frozenset({NameOID.COUNTRY_NAME, NameOID.JURISDICTION_COUNTRY_NAME})

# Tag -> codec. TeletexString is Latin-1 in practice; nobody ever wrote true T.61.
_STRINGS = {
    b"\x0c": "utf-8",
    b"\x13": "ascii",
    b"\x14": "latin-1",
    b"\x16": "ascii",
    b"\x1c": "utf-32-be",
    b"\x1e": "utf-16-be",
}


@asn1.sequence
class _Wrapped:
    value: asn1.TLV


@asn1.sequence
class _AttributeValue:
    type: x509.ObjectIdentifier
    value: asn1.TLV


@asn1.sequence
class _RDNSequence:
    rdns: list[asn1.SetOf[_AttributeValue]]


@asn1.sequence
class _OtherName:
    type_id: x509.ObjectIdentifier
    value: Annotated[asn1.TLV, asn1.Explicit(0)]


# The strings are read as bytes, so that a wrong one can be named in the refusal.
_GeneralName = (
    Annotated[asn1.Variant[_OtherName, Literal["othername"]], asn1.Implicit(0)]
    | Annotated[asn1.Variant[bytes, Literal["email"]], asn1.Implicit(1)]
    | Annotated[asn1.Variant[bytes, Literal["dns"]], asn1.Implicit(2)]
    | Annotated[asn1.Variant[asn1.TLV, Literal["dirname"]], asn1.Explicit(4)]
    | Annotated[asn1.Variant[bytes, Literal["uri"]], asn1.Implicit(6)]
    | Annotated[asn1.Variant[bytes, Literal["ip"]], asn1.Implicit(7)]
    | Annotated[asn1.Variant[x509.ObjectIdentifier, Literal["rid"]], asn1.Implicit(8)]
)


@asn1.sequence
class _GeneralNames:
    names: list[_GeneralName]


def wrap(value: asn1.TLV) -> bytes:
    """Return the DER of SEQUENCE { value }.

    `cryptography.hazmat.asn1` knows SEQUENCE OF only as the field of a sequence.
    """
    return asn1.encode_der(_Wrapped(value=value))


def read_text(value: asn1.TLV, what: str) -> str:
    """Decode an ASN.1 character string of any usual type.

    Raises BadInput: not a character string, or bytes that its type does not allow.
    """
    codec = _STRINGS.get(value.tag_bytes)
    if codec is None:
        raise bad(what, "is not a character string")
    try:
        return bytes(value.data).decode(codec)
    except UnicodeDecodeError as error:
        raise bad(what, "holds bytes that its string type does not allow") from error


def read_name(der: bytes, what: str = "subject") -> x509.Name:
    """Read a Name from outside: every value is text by `check_text` within RFC 5280's bounds.

    `der`: DER, one Name. The empty Name is fine.
    Raises BadInput: not a Name, a value that is not clean text, a bound exceeded.
    """
    if der == _EMPTY:
        return x509.Name([])
    try:
        sequence = asn1.decode_der(_RDNSequence, wrap(asn1.decode_der(asn1.TLV, der)))
        # Checked before x509.Name is built: that would warn, not refuse, outside the bounds.
        for rdn in sequence.rdns:
            for attribute in rdn.as_list():
                _check_attribute(attribute, what)
        return x509.Name.from_bytes(der)
    except ValueError as error:
        raise bad(what, "is not a well-formed distinguished name") from error


def _check_attribute(attribute: _AttributeValue, what: str) -> None:
    oid = attribute.type
    label, bound = _ATTRIBUTES.get(oid, (oid.dotted_string, _MAX_ATTRIBUTE))
    field = f"{label} in the {what}"
    text = check_text(read_text(attribute.value, field), field, bound)
    if oid in _COUNTRIES and not (len(text) == bound and text.isascii() and text.isalpha()):
        raise bad(field, "is not a two-letter country code")


def read_names(der: bytes, what: str = "subjectAltName") -> tuple[x509.GeneralName, ...]:
    """Read GeneralNames from outside, in their order, normal form, doubles dropped.

    `der`: DER, one GeneralNames: the value of a subjectAltName extension.
    Raises BadInput: not GeneralNames, none at all, or one that breaks its grammar.
    """
    names = decode_names(der, what)
    if not names:
        raise bad(what, "is empty")
    return tuple(dict.fromkeys(check_general_name(name, what) for name in names))


def check_general_name(name: x509.GeneralName, what: str = "subjectAltName") -> x509.GeneralName:
    """Return the normal form of `name` if it keeps the grammar of its kind.

    Kinds other than dns, ip, email and uri come back as they are: policy decides on them.
    Raises BadInput: the grammar is broken; the text names the kind and shows the name.
    """
    match name:
        case x509.DNSName():
            return x509.DNSName(check_dns(name.value, f"dNSName in the {what}"))
        case x509.RFC822Name():
            return x509.RFC822Name(check_email(name.value, f"rfc822Name in the {what}"))
        case x509.UniformResourceIdentifier():
            text = check_uri(name.value, f"URI in the {what}")
            return x509.UniformResourceIdentifier(text)
        case x509.IPAddress():
            if not isinstance(name.value, ipaddress.IPv4Address | ipaddress.IPv6Address):
                raise bad(f"iPAddress in the {what}", "is a network, not one address")
        case x509.DirectoryName():
            read_name(name.value.public_bytes(), f"directoryName in the {what}")
        case _:
            pass
    return name


@lru_cache(maxsize=4096)
def parse_general_name(text: str) -> x509.GeneralName:
    """Read `dns:host.example`, `ip:192.0.2.1`, `email:a@b.example` or `uri:https://…`.

    Host names may be typed in any script; they come back as A-labels (RFC 5890).
    Raises BadInput: unknown kind, or a name that breaks the grammar of its kind.
    """
    kind, colon, value = text.partition(":")
    match kind.strip().lower() if colon else "":
        case "dns":
            return x509.DNSName(check_dns(value, "dns name"))
        case "ip":
            return x509.IPAddress(check_ip(value))
        case "email":
            return x509.RFC822Name(check_email(value, "mail address"))
        case "uri":
            return x509.UniformResourceIdentifier(check_uri(value, "uri"))
        case _:
            raise bad(f"name {shown(text)}", "needs one of the forms dns:…, ip:…, email:… or uri:…")


def format_general_name(name: x509.GeneralName) -> str:
    """Return the text form of any GeneralName, fit for terminals and logs. Never fails."""
    match name:
        case x509.DNSName():
            text = f"dns:{name.value}"
        case x509.IPAddress():
            text = f"ip:{name.value}"
        case x509.RFC822Name():
            text = f"email:{name.value}"
        case x509.UniformResourceIdentifier():
            text = f"uri:{name.value}"
        case x509.DirectoryName():
            text = f"dirname:{display_name(name.value)}"
        case x509.OtherName():
            text = f"othername:{name.type_id.dotted_string}"
        case x509.RegisteredID():
            text = f"rid:{name.value.dotted_string}"
        case _:
            text = f"unknown:{type(name).__name__}"
    return visible(text)


def is_wildcard(name: x509.GeneralName) -> bool:
    """Tell whether `name` is a dNSName with a wildcard, which policy may refuse."""
    return isinstance(name, x509.DNSName) and name.value.startswith("*.")


def display_name(name: x509.Name) -> str:
    """Return `name` on one readable line (RFC 4514), fit for terminals and logs."""
    return visible(name.rfc4514_string())


def same_name(a: x509.Name, b: x509.Name) -> bool:
    """Tell whether two Names are the same by RFC 5280 §7.1.

    Letter case, runs of blanks and the string type make no difference; the order of RDNs does,
    the order inside a multi-valued RDN does not.
    """
    return canonical_name(a) == canonical_name(b)


def canonical_name(name: x509.Name) -> tuple[frozenset[tuple[str, str | bytes]], ...]:
    """Return a hashable value that is equal for Names that are the same by RFC 5280 §7.1."""
    return tuple(
        frozenset((attribute.oid.dotted_string, _folded(attribute.value)) for attribute in rdn)
        for rdn in name.rdns
    )


def _folded(value: str | bytes) -> str | bytes:
    """Prepare one value for comparison: RFC 4518 §2 in the parts that RFC 5280 §7.1 asks for."""
    if isinstance(value, bytes):
        return value
    # Folding can undo the normal form, so it is made anew (Unicode Standard, D145).
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
    return " ".join(folded.split())


def canonical_general_name(  # noqa: PLR0911 - one return for each kind
    name: x509.GeneralName,
) -> tuple[str, Hashable]:
    """Return a hashable value that is equal for names that are the same by RFC 5280 §7.2-7.5.

    Takes any GeneralName, also one that `check_general_name` would refuse. Never fails.
    """
    match name:
        case x509.DNSName():
            return "dns", name.value.lower()
        case x509.RFC822Name():
            local, at, domain = name.value.rpartition("@")
            return "email", local + at + domain.lower()
        case x509.UniformResourceIdentifier():
            return "uri", fold_uri(name.value)
        case x509.IPAddress():
            return "ip", str(name.value)
        case x509.DirectoryName():
            return "dirname", canonical_name(name.value)
        case x509.OtherName():
            return "othername", (name.type_id.dotted_string, name.value)
        case _:
            return "other", name


def encode_name(name: x509.Name) -> bytes:
    """Return the DER of a Name."""
    return name.public_bytes()


def decode_name(der: bytes) -> x509.Name:
    """Read back what `encode_name` wrote; string types are kept. Raises BadInput: not a Name."""
    try:
        return x509.Name.from_bytes(der)
    except ValueError as error:
        raise bad("name", "is not DER of a distinguished name") from error


def encode_names(names: tuple[x509.GeneralName, ...]) -> bytes:
    """Return the DER of GeneralNames: the value of a subjectAltName extension."""
    return x509.SubjectAlternativeName(names).public_bytes() if names else _EMPTY


def decode_names(der: bytes, what: str = "names") -> tuple[x509.GeneralName, ...]:
    """Read back what `encode_names` wrote, order kept, grammar not checked again.

    Raises BadInput: not DER of GeneralNames, or one of a kind never used (x400Address, ediParty).
    """
    try:
        parsed = asn1.decode_der(_GeneralNames, wrap(asn1.decode_der(asn1.TLV, der)))
        return tuple(_build(choice, what) for choice in parsed.names)
    except ValueError as error:
        raise bad(what, "holds a name that is malformed or of an unknown kind") from error


def _build(  # noqa: PLR0911 - one return for each kind
    choice: _GeneralName, what: str
) -> x509.GeneralName:
    """Turn one parsed GeneralName into its value. Raises ValueError when it cannot be one."""
    match choice.tag, choice.value:
        case "dns", bytes(octets):
            return x509.DNSName(_ascii(octets, f"dNSName in the {what}"))
        case "email", bytes(octets):
            return x509.RFC822Name(_ascii(octets, f"rfc822Name in the {what}"))
        case "uri", bytes(octets):
            return x509.UniformResourceIdentifier(_ascii(octets, f"URI in the {what}"))
        case "ip", bytes(octets):
            return x509.IPAddress(ipaddress.ip_address(octets))
        case "dirname", asn1.TLV() as name:
            return x509.DirectoryName(
                read_name(asn1.encode_der(name), f"directoryName in the {what}")
            )
        case "rid", x509.ObjectIdentifier() as oid:
            return x509.RegisteredID(oid)
        case "othername", _OtherName() as other:
            return x509.OtherName(other.type_id, asn1.encode_der(other.value))
        case _:
            raise ValueError(choice.tag)


def _ascii(octets: bytes, what: str) -> str:
    try:
        return octets.decode("ascii")
    except UnicodeDecodeError as error:
        raise bad(f"{what} {shown(octets.decode('latin-1'))}", "is not ASCII") from error
