"""The one wall for PKCS#10: bytes from anybody in, a CSR whose proof of possession holds out.

Invariants:
- Nothing escapes but `Refused` (or `Fault`, when the installation itself is broken): every
  exception of the libraries ends here, and nothing lazily parsed leaves.
- The key passed the allow-list before any library built it, and is not known to be weak.
- Names are in the normal form of `names`.
- Only key and proof of possession ever reach a certificate; all else is there to be compared.
"""

import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver.csr_body import MAX_CSR_BYTES, Form, decode_body, form_of
from estserver.errors import BadCSR, BadInput, Error
from estserver.model import PublicKey, Secret
from estserver.names import read_name, read_names, read_text, wrap
from estserver.public_keys import (
    ALLOWED_KEYS,
    P256_KEY,
    KeyDescription,
    allows,
    blocklist_installed,
    check_key,
    describe_key,
    read_key,
)

__all__ = [
    "ALLOWED_KEYS",
    "CSR",
    "MAX_CSR_BYTES",
    "MAX_NAMES",
    "ChangeSubjectName",
    "Form",
    "KeyDescription",
    "NamesOnly",
    "allows",
    "blocklist_installed",
    "check_key",
    "describe_key",
    "form_of",
    "holds_quick_key",
    "read_csr",
    "read_names_only",
    "reads_quickly",
]

MAX_NAMES = 100
_MAX_SECRET = 255

_EXTENSION_REQUESTS = frozenset({"1.2.840.113549.1.9.14", "1.3.6.1.4.1.311.2.1.14"})
_CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"  # noqa: S105 - an OID
_IDENTITY_LINKING = "1.2.840.113549.1.9.16.2.58"
_CHANGE_SUBJECT_NAME = "1.3.6.1.5.5.7.7.36"
_SUBJECT_ALT_NAME = "2.5.29.17"

_RSA_PSS = "1.2.840.113549.1.1.10"
_SIGNATURES = frozenset(
    {
        "1.2.840.113549.1.1.11",
        "1.2.840.113549.1.1.12",
        "1.2.840.113549.1.1.13",
        _RSA_PSS,
        "1.2.840.10045.4.3.2",
        "1.2.840.10045.4.3.3",
        "1.2.840.10045.4.3.4",
        "1.3.101.112",
    }
)
_REFUSED_SIGNATURES = {
    "1.2.840.113549.1.1.2": "MD2 with RSA",
    "1.2.840.113549.1.1.3": "MD4 with RSA",
    "1.2.840.113549.1.1.4": "MD5 with RSA",
    "1.2.840.113549.1.1.5": "SHA-1 with RSA",
    "1.2.840.113549.1.1.14": "SHA-224 with RSA",
    "1.3.14.3.2.29": "SHA-1 with RSA",
    "1.2.840.10040.4.3": "SHA-1 with DSA",
    "2.16.840.1.101.3.4.3.2": "SHA-256 with DSA",
    "1.2.840.10045.4.1": "SHA-1 with ECDSA",
    "1.2.840.10045.4.3.1": "SHA-224 with ECDSA",
    "1.3.101.113": "Ed448",
}
_ALLOWED_SIGNATURES = "SHA-256, SHA-384 or SHA-512 with RSA or ECDSA, or Ed25519"
_PSS_HASHES = frozenset(
    {"2.16.840.1.101.3.4.2.1", "2.16.840.1.101.3.4.2.2", "2.16.840.1.101.3.4.2.3"}
)

_SHA256 = ec.ECDSA(Prehashed(hashes.SHA256()))
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_SET_TAG = b"\x31"


@asn1.sequence
class _Attribute:
    type: x509.ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _RequestInfo:
    version: int
    subject: asn1.TLV
    public_key: asn1.TLV
    attributes: Annotated[asn1.SetOf[_Attribute], asn1.Implicit(0)]


@asn1.sequence
class _Request:
    info: _RequestInfo
    signature_algorithm: asn1.TLV
    signature: asn1.TLV


@asn1.sequence
class _Extension:
    extension_id: x509.ObjectIdentifier
    # Not DEFAULT FALSE: FreeIPA writes the FALSE out, and nobody here reads the flag.
    critical: bool | None
    value: bytes


@asn1.sequence
class _Extensions:
    extensions: list[_Extension]


@asn1.sequence
class _Elements:
    elements: list[asn1.TLV]


@asn1.sequence
class _PSSParameters:
    hash: Annotated[asn1.TLV, asn1.Explicit(0)]
    mask: Annotated[asn1.TLV, asn1.Explicit(1)]
    salt_length: Annotated[int, asn1.Explicit(2), asn1.Default(20)]
    trailer: Annotated[int, asn1.Explicit(3), asn1.Default(1)]


@dataclass(frozen=True, slots=True)
class ChangeSubjectName:
    """The names wanted in place of the present ones: RFC 6402 §2.8. At least one is not None.

    What is None stays empty in the new certificate: it is not kept from the old one.
    """

    subject: x509.Name | None
    names: tuple[x509.GeneralName, ...] | None


@dataclass(frozen=True, slots=True)
class NamesOnly:
    """What a PKCS#10 asks for, its key and signature left unread (RFC 7030 §4.4.1).

    `requested_extensions` and `attributes` are OIDs in dotted form, in the order sent;
    `attributes` lists every attribute type that is there, known or not.
    """

    der: bytes = field(repr=False)  # it may hold a challengePassword
    subject: x509.Name
    names: tuple[x509.GeneralName, ...]
    requested_extensions: tuple[str, ...]
    challenge_password: Secret | None
    identity_linking: Secret | None
    change_subject: ChangeSubjectName | None
    attributes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CSR:
    """A PKCS#10 whose proof of possession holds. Only `read_csr` makes one.

    `der` as received. `spki` is DER in the form that a certificate will carry, whatever form of
    the point was sent, so that its digest names the key. Other fields as in `NamesOnly`.
    """

    der: bytes = field(repr=False)  # it may hold a challengePassword
    subject: x509.Name
    names: tuple[x509.GeneralName, ...]
    public_key: PublicKey
    spki: bytes = field(repr=False)
    spki_sha256: bytes
    key: KeyDescription
    requested_extensions: tuple[str, ...]
    challenge_password: Secret | None
    identity_linking: Secret | None
    change_subject: ChangeSubjectName | None
    attributes: tuple[str, ...]


def read_csr(body: bytes) -> CSR:
    """Turn a request body into a CSR whose proof of possession holds.

    `body`: one PKCS#10 as base64 of DER with any white space, as DER, or as PEM.
    Raises BadCSR: not exactly one well-formed PKCS#10, signature of a weak kind or not by this
    key, names or attributes that break their rules; KeyNotAllowed: weak or of a type not taken.
    RFC 7030 §4.2.1, RFC 8951 §3, RFC 2986.
    """
    with _wall():
        der = decode_body(body)
        request = asn1.decode_der(_Request, der)
        asked = _read_info(der, request.info)
        spki = asn1.encode_der(request.info.public_key)
        public_key = read_key(spki)
        if not _is_signed(der, public_key, request.signature_algorithm):
            raise BadCSR("The signature of the request does not verify with the key inside it.")
        if not spki.startswith(P256_KEY):
            # Other points may have come compressed, parameters in more than one form.
            spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return CSR(
            der=der,
            subject=asked.subject,
            names=asked.names,
            public_key=public_key,
            spki=spki,
            spki_sha256=sha256(spki).digest(),
            key=describe_key(public_key),
            requested_extensions=asked.requested_extensions,
            challenge_password=asked.challenge_password,
            identity_linking=asked.identity_linking,
            change_subject=asked.change_subject,
            attributes=asked.attributes,
        )


def reads_quickly(body: bytes) -> bool:
    """Tell whether `read_csr` will take much less than a millisecond: by its looks, a P-256 key."""
    try:
        return holds_quick_key(binascii.a2b_base64(body))
    except binascii.Error:
        return False


def holds_quick_key(der: bytes) -> bool:
    """Tell the same of a CSR in DER."""
    return P256_KEY in der


def read_names_only(body: bytes) -> NamesOnly:
    """Read what a request asks for when the server makes the key: key and signature are ignored.

    `body` as in `read_csr`; the key and the signature may be any ASN.1 value.
    Raises BadCSR: not exactly one PKCS#10, names or attributes that break their rules.
    RFC 7030 §4.4.1.
    """
    with _wall():
        der = decode_body(body)
        return _read_info(der, asn1.decode_der(_Request, der).info)


@contextmanager
def _wall() -> Iterator[None]:
    """Turn whatever goes wrong inside into BadCSR."""
    try:
        yield
    except BadInput as error:
        detail = f"The request cannot be read: {error.detail}"
        raise BadCSR(detail, values=error.values) from error
    except (Error, KeyboardInterrupt, SystemExit):
        raise
    # BaseException, because a panic in Rust is no Exception; there is no narrower list of what
    # the parsers raise: ValueError, TypeError, InvalidVersion, UnsupportedAlgorithm, ...
    except BaseException as error:
        raise BadCSR("The request is not one well-formed PKCS#10 in DER.") from error


def _is_signed(der: bytes, public_key: PublicKey, algorithm: asn1.TLV) -> bool:
    """Tell whether a request is signed with its key. Raises BadCSR: by an algorithm not allowed."""
    request = x509.load_der_x509_csr(der)
    ecdsa = asn1.encode_der(algorithm) == _ECDSA_WITH_SHA256
    if not ecdsa or not isinstance(public_key, ec.EllipticCurvePublicKey):
        _check_signature_algorithm(algorithm)
        return request.is_signature_valid
    try:
        # The same as is_signature_valid, which would build the key once more.
        digest = sha256(request.tbs_certrequest_bytes).digest()
        public_key.verify(request.signature, digest, _SHA256)
    except InvalidSignature:
        return False
    return True


def _check_signature_algorithm(value: asn1.TLV) -> None:
    """Allow-list the signature algorithm before anything is verified with it (EST-083)."""
    parts = _elements(value)
    oid = parts[0].parse(x509.ObjectIdentifier).dotted_string
    if oid not in _SIGNATURES:
        name = _REFUSED_SIGNATURES.get(oid, oid)
        raise BadCSR(
            f"The signature does not verify: the algorithm {name} is not allowed. "
            f"Use {_ALLOWED_SIGNATURES}.",
            values={"algorithm": name},
        )
    if oid == _RSA_PSS:
        _check_pss(parts[1])


def _check_pss(value: asn1.TLV) -> None:
    """Take RSASSA-PSS with one SHA-2 for digest and mask, as RFC 4055 §3.1 recommends."""
    parameters = value.parse(_PSSParameters)
    digest = _elements(parameters.hash)[0].parse(x509.ObjectIdentifier).dotted_string
    mask_digest = _elements(_elements(parameters.mask)[1])[0].parse(x509.ObjectIdentifier)
    if digest not in _PSS_HASHES or mask_digest.dotted_string != digest:
        raise BadCSR("RSASSA-PSS needs the same SHA-256, SHA-384 or SHA-512 for digest and mask.")


def _elements(sequence: asn1.TLV) -> list[asn1.TLV]:
    return asn1.decode_der(_Elements, wrap(sequence)).elements


def _read_info(der: bytes, info: _RequestInfo) -> NamesOnly:
    """Read all of a request but its key and signature."""
    if info.version != 0:
        raise BadCSR("The request is not of version 1 (encoded as 0), the only one there is.")
    extensions: list[_Extension] | None = None
    challenge_password = identity_linking = change_subject = None
    attributes: dict[str, None] = {}
    for attribute in info.attributes.as_list():
        oid = attribute.type.dotted_string
        if oid in _EXTENSION_REQUESTS:
            if extensions is not None:
                raise BadCSR("The request holds more than one extensionRequest attribute.")
            value = _single(attribute, "extensionRequest")
            extensions = asn1.decode_der(_Extensions, wrap(value)).extensions
        elif oid in attributes and oid in _SINGLE:
            raise BadCSR(f"The request holds more than one {_SINGLE[oid]} attribute.")
        elif oid == _CHALLENGE_PASSWORD:
            challenge_password = _read_secret(attribute)
        elif oid == _IDENTITY_LINKING:
            identity_linking = _read_secret(attribute)
        elif oid == _CHANGE_SUBJECT_NAME:
            change_subject = _read_change(_single(attribute, _SINGLE[oid]))
        attributes[oid] = None
    requested = {e.extension_id.dotted_string: e.value for e in extensions or ()}
    if len(requested) < len(extensions or ()):
        raise BadCSR("The request asks for the same extension twice.")
    san = requested.get(_SUBJECT_ALT_NAME)
    return NamesOnly(
        der=der,
        subject=read_name(asn1.encode_der(info.subject)),
        names=() if san is None else _read_alt_names(san, "subjectAltName"),
        requested_extensions=tuple(requested),
        challenge_password=challenge_password,
        identity_linking=identity_linking,
        change_subject=change_subject,
        attributes=tuple(attributes),
    )


_SINGLE = {
    _CHALLENGE_PASSWORD: "challengePassword",
    _IDENTITY_LINKING: "estIdentityLinking",
    _CHANGE_SUBJECT_NAME: "ChangeSubjectName",
}


def _single(attribute: _Attribute, name: str) -> asn1.TLV:
    values = attribute.values.as_list()
    if len(values) != 1:
        raise BadCSR(f"The {name} attribute needs exactly one value, not {len(values)}.")
    return values[0]


def _read_secret(attribute: _Attribute) -> Secret:
    """Read a challengePassword or estIdentityLinking by its text, whatever its string type.

    RFC 2985 §5.4.1, RFC 7894 §3: DirectoryString of 1 to 255 characters; IA5String is tolerated.
    """
    name = _SINGLE[attribute.type.dotted_string]
    text = read_text(_single(attribute, name), name)
    if not 0 < len(text) <= _MAX_SECRET:
        raise BadCSR(f"The {name} attribute needs 1 to {_MAX_SECRET} characters.")
    return Secret(text)


def _read_change(value: asn1.TLV) -> ChangeSubjectName:
    """Read ChangeSubjectName: a Name, GeneralNames, or both in this order (RFC 6402 §2.8).

    The RFC gives neither a tag: a Name is known by holding SETs (or nothing), GeneralNames by
    holding context tags. "At least one of the fields in the sequence MUST be present".
    """
    match _elements(value):
        case [only] if only.data[:1].tobytes() in (b"", _SET_TAG):
            return ChangeSubjectName(_read_new_subject(only), None)
        case [only]:
            return ChangeSubjectName(None, _read_new_names(only))
        case [subject, names]:
            return ChangeSubjectName(_read_new_subject(subject), _read_new_names(names))
        case []:
            raise BadCSR("The ChangeSubjectName attribute holds neither subject nor subjectAlt.")
        case _:
            raise BadCSR("The ChangeSubjectName attribute holds more than subject and subjectAlt.")


def _read_new_subject(value: asn1.TLV) -> x509.Name:
    return read_name(asn1.encode_der(value), "subject of ChangeSubjectName")


def _read_new_names(value: asn1.TLV) -> tuple[x509.GeneralName, ...]:
    return _read_alt_names(asn1.encode_der(value), "subjectAlt of ChangeSubjectName")


def _read_alt_names(der: bytes, what: str) -> tuple[x509.GeneralName, ...]:
    names = read_names(der, what)
    if len(names) > MAX_NAMES:
        raise BadCSR(f"The {what} holds more than {MAX_NAMES} names.")
    return names
