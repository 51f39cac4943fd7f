"""OCSP messages (RFC 6960): DER in, values out, and signed answers back. No policy, no I/O.

`cryptography.x509.ocsp` reads requests for one certificate and builds answers for one, but "the
response MUST include a SingleResponse for each certificate in the request" (§4.2.2.3), so both
are spelled out here. What comes in passes one wall: nothing but BadInput escapes it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Annotated, Literal

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier, OCSPExtensionOID

from estserver.ca import der
from estserver.ca.issuer import sign_bytes
from estserver.ca.keys import PrivateKey
from estserver.errors import BadInput, Error
from estserver.model import RevocationReason
from estserver.names import wrap

MAX_REQUEST_BYTES = 4096
MAX_IDS = 10
MAX_NONCE_BYTES = 128
"""RFC 9654 §2.1: more octets, or none, are malformed."""

_BASIC_OID = asn1.encode_der(ObjectIdentifier("1.3.6.1.5.5.7.48.1.1"))
_NONCE_OID = asn1.encode_der(OCSPExtensionOID.NONCE)
_UNDERSTOOD = frozenset(
    {
        OCSPExtensionOID.NONCE,
        # There is one type of answer and one signing key: what these prefer cannot be obeyed more.
        OCSPExtensionOID.ACCEPTABLE_RESPONSES,
        ObjectIdentifier("1.3.6.1.5.5.7.48.1.8"),  # preferred signature algorithms
    }
)
_VERSION_1 = b"\x02\x01\x00"
_HASHES = {
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
_REASONS = {
    RevocationReason.KEY_COMPROMISE: 1,
    RevocationReason.CA_COMPROMISE: 2,
    RevocationReason.AFFILIATION_CHANGED: 3,
    RevocationReason.SUPERSEDED: 4,
    RevocationReason.CESSATION_OF_OPERATION: 5,
    RevocationReason.CERTIFICATE_HOLD: 6,
    RevocationReason.PRIVILEGE_WITHDRAWN: 9,
}

IssuerHashes = tuple[str, bytes, bytes]
"""How a CertID names an issuer: OID of the hash, hash of its name, hash of its key."""


class ResponseStatus(IntEnum):
    """OCSPResponseStatus of answers that tell no certificate's status. RFC 6960 §4.2.1."""

    MALFORMED_REQUEST = 1
    INTERNAL_ERROR = 2
    TRY_LATER = 3
    UNAUTHORIZED = 6


# -- what goes over the wire, RFC 6960 §4.1.1 and §4.2.1 -----------------------------------------


@asn1.sequence
class _Algorithm:
    oid: ObjectIdentifier
    parameters: asn1.Null | None


@asn1.sequence
class CertID:
    """Which certificate is meant. It returns in the answer octet by octet: clients compare."""

    algorithm: _Algorithm
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int


@asn1.sequence
class _Extension:
    oid: ObjectIdentifier
    # Not DEFAULT FALSE: a FALSE written out is no reason to leave a client without an answer.
    critical: bool | None
    value: bytes


@asn1.sequence
class _Extensions:
    extensions: list[_Extension]


@asn1.sequence
class _SingleRequest:
    cert_id: CertID
    extensions: Annotated[list[_Extension] | None, asn1.Explicit(0)]


@asn1.sequence
class _RequestList:
    requests: list[_SingleRequest]


@asn1.sequence
class _Elements:
    elements: list[asn1.TLV]


@asn1.sequence
class _SubjectPublicKeyInfo:
    algorithm: asn1.TLV
    key: asn1.BitString


# -- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """The certificates asked about, 1 to MAX_IDS, and the nonce as its extension holds it (DER)."""

    ids: tuple[CertID, ...]
    nonce: bytes | None


def read_request(der: bytes) -> Request:
    """Read one OCSPRequest. A signature on it is not looked at: everybody may ask.

    Raises BadInput: not one OCSPRequest of version 1 in DER, longer than MAX_REQUEST_BYTES, none
    or too many certificates, a nonce of another length than 1 to 128 octets (RFC 9654), a critical
    extension that is not understood (§4.1.2).
    """
    if len(der) > MAX_REQUEST_BYTES:
        raise BadInput(f"the request is longer than {MAX_REQUEST_BYTES} bytes")
    with _wall():
        outer = _elements(asn1.decode_der(asn1.TLV, der))
        if len(outer) not in {1, 2} or (outer[1:] and outer[1].tag_bytes != b"\xa0"):
            raise BadInput("not an OCSPRequest")
        rest = _elements(outer[0])
        version = _optional(rest, b"\xa0")
        _optional(rest, b"\xa1")  # requestorName: nobody is refused or served for who they are
        requests = asn1.decode_der(_RequestList, wrap(rest.pop(0))).requests
        tagged = _optional(rest, b"\xa2")
        if rest or (version is not None and bytes(version.data) != _VERSION_1):
            raise BadInput("not a TBSRequest of version 1")
        if not 1 <= len(requests) <= MAX_IDS:
            raise BadInput(f"ask about 1 to {MAX_IDS} certificates at once")
        for request in requests:
            _check_extensions(request.extensions or [])
        extensions = [] if tagged is None else _extensions(bytes(tagged.data))
        return Request(tuple(request.cert_id for request in requests), _nonce(extensions))


@contextmanager
def _wall() -> Iterator[None]:
    """Turn whatever goes wrong inside into BadInput."""
    try:
        yield
    except (Error, KeyboardInterrupt, SystemExit):
        raise
    # BaseException, because a panic in Rust is no Exception.
    except BaseException as error:
        raise BadInput("not one OCSPRequest in DER") from error


def _elements(sequence: asn1.TLV) -> list[asn1.TLV]:
    return asn1.decode_der(_Elements, wrap(sequence)).elements


def _optional(elements: list[asn1.TLV], tag: bytes) -> asn1.TLV | None:
    """Take the first element if it has `tag`."""
    return elements.pop(0) if elements and elements[0].tag_bytes == tag else None


def _extensions(der: bytes) -> list[_Extension]:
    extensions = asn1.decode_der(_Extensions, wrap(asn1.decode_der(asn1.TLV, der))).extensions
    _check_extensions(extensions)
    return extensions


def _check_extensions(extensions: list[_Extension]) -> None:
    if len({extension.oid for extension in extensions}) < len(extensions):
        raise BadInput("an extension stands twice in the request")
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise BadInput(f"the critical extension {extension.oid.dotted_string} is unknown here")


def _nonce(extensions: list[_Extension]) -> bytes | None:
    for extension in extensions:
        if extension.oid == OCSPExtensionOID.NONCE:
            if not 1 <= len(asn1.decode_der(bytes, extension.value)) <= MAX_NONCE_BYTES:
                raise BadInput(f"a nonce has 1 to {MAX_NONCE_BYTES} octets")
            return extension.value
    return None


def issuer_hashes(issuer: x509.Certificate) -> list[IssuerHashes]:
    """List every way in which a CertID may name `issuer`. RFC 6960 §4.1.1."""
    name, key = issuer.subject.public_bytes(), _key_bits(issuer)
    return [
        (
            oid,
            hashlib.new(algorithm, name, usedforsecurity=False).digest(),
            hashlib.new(algorithm, key, usedforsecurity=False).digest(),
        )
        for oid, algorithm in _HASHES.items()
    ]


def named_issuer(cert_id: CertID) -> IssuerHashes:
    """Return how `cert_id` names its issuer."""
    oid = cert_id.algorithm.oid.dotted_string
    return oid, cert_id.issuer_name_hash, cert_id.issuer_key_hash


def _key_bits(certificate: x509.Certificate) -> bytes:
    """Return what key hashes cover: the BIT STRING's content without tag, length, unused bits."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return asn1.decode_der(_SubjectPublicKeyInfo, spki).key.as_bytes()


# -- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Revoked:
    """The certificate is revoked since `time`."""

    time: datetime
    reason: RevocationReason


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said about one certificate."""

    cert_id: CertID
    status: Revoked | Literal["good", "unknown"]


class Responder:
    """A delegated responder: the certificate, issued by the CA it answers for, and its key.

    What its answers have in common is laid out once.
    """

    def __init__(self, certificate: x509.Certificate, key: PrivateKey) -> None:
        self.certificate = certificate
        self._key = key
        # RFC 6960 §4.2.1: KeyHash is SHA-1, whatever else has moved on.
        key_hash = hashlib.sha1(_key_bits(certificate), usedforsecurity=False).digest()
        self._identity = der.tlv(0xA2, der.tlv(der.OCTET_STRING, key_hash))
        encoded = der.tlv(der.SEQUENCE, certificate.public_bytes(Encoding.DER))
        self._certificates = der.tlv(0xA0, encoded)

    def sign(
        self,
        verdicts: Sequence[Verdict],
        *,
        nonce: bytes | None,
        this_update: datetime,
        next_update: datetime,
    ) -> bytes:
        """Return a successful OCSPResponse, DER, produced at `this_update` (whole seconds, UTC)."""
        now = der.generalized_time(this_update)
        times = now + der.tlv(0xA0, der.generalized_time(next_update))
        singles = b"".join(
            der.tlv(
                der.SEQUENCE,
                asn1.encode_der(verdict.cert_id) + _cert_status(verdict.status) + times,
            )
            for verdict in verdicts
        )
        content = self._identity + now + der.tlv(der.SEQUENCE, singles)
        if nonce is not None:
            echo = der.tlv(der.SEQUENCE, _NONCE_OID + der.tlv(der.OCTET_STRING, nonce))
            content += der.tlv(0xA1, der.tlv(der.SEQUENCE, echo))
        data = der.tlv(der.SEQUENCE, content)
        algorithm, signature = sign_bytes(self._key, data)
        basic = data + algorithm + der.bit_string(signature) + self._certificates
        response = _BASIC_OID + der.tlv(der.OCTET_STRING, der.tlv(der.SEQUENCE, basic))
        body = der.tlv(0xA0, der.tlv(der.SEQUENCE, response))
        return der.tlv(der.SEQUENCE, der.tlv(der.ENUMERATED, b"\0") + body)


def refusal(status: ResponseStatus) -> bytes:
    """Return the unsigned OCSPResponse that carries only `status`, DER."""
    return der.tlv(der.SEQUENCE, der.tlv(der.ENUMERATED, bytes((status,))))


def _cert_status(status: Revoked | Literal["good", "unknown"]) -> bytes:
    """Return a CertStatus: NULL or RevokedInfo under an implicit tag."""
    if not isinstance(status, Revoked):
        return b"\x80\0" if status == "good" else b"\x82\0"
    info = der.generalized_time(status.time)
    if status.reason is not RevocationReason.UNSPECIFIED:
        # RFC 5280 §5.3.1: absent rather than unspecified.
        info += der.tlv(0xA0, der.tlv(der.ENUMERATED, bytes((_REASONS[status.reason],))))
    return der.tlv(0xA1, info)
