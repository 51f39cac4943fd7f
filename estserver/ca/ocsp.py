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

from estserver.ca.issuer import sign_bytes
from estserver.ca.keys import PrivateKey
from estserver.errors import BadInput, Error
from estserver.model import RevocationReason
from estserver.names import wrap

MAX_REQUEST_BYTES = 4096
MAX_IDS = 10
MAX_NONCE_BYTES = 32
"""RFC 8954's bound. RFC 9654 has clients send up to 128, but no more than 32 need be taken."""

_BASIC = ObjectIdentifier("1.3.6.1.5.5.7.48.1.1")
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
class _Revoked:
    time: asn1.GeneralizedTime


@asn1.sequence
class _RevokedBecause:
    time: asn1.GeneralizedTime
    reason: Annotated[asn1.TLV, asn1.Explicit(0)]


_CertStatus = (
    Annotated[asn1.Variant[asn1.Null, Literal["good"]], asn1.Implicit(0)]
    | Annotated[asn1.Variant[_Revoked, Literal["revoked"]], asn1.Implicit(1)]
    | Annotated[asn1.Variant[_RevokedBecause, Literal["revoked-because"]], asn1.Implicit(1)]
    | Annotated[asn1.Variant[asn1.Null, Literal["unknown"]], asn1.Implicit(2)]
)


@asn1.sequence
class _SingleResponse:
    cert_id: CertID
    status: _CertStatus
    this_update: asn1.GeneralizedTime
    next_update: Annotated[asn1.GeneralizedTime, asn1.Explicit(0)]


@asn1.sequence
class _ResponseData:
    responder_key_hash: Annotated[bytes, asn1.Explicit(2)]
    produced_at: asn1.GeneralizedTime
    responses: list[_SingleResponse]
    extensions: Annotated[list[_Extension] | None, asn1.Explicit(1)]


@asn1.sequence
class _BasicResponse:
    data: asn1.TLV
    algorithm: asn1.TLV
    signature: asn1.BitString
    certificates: Annotated[list[x509.Certificate], asn1.Explicit(0)]


@asn1.sequence
class _ResponseBytes:
    type: ObjectIdentifier
    response: bytes


@asn1.sequence
class _Response:
    status: asn1.TLV
    content: Annotated[_ResponseBytes, asn1.Explicit(0)]


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
    or too many certificates, a nonce of another length than 1 to 32 octets (RFC 8954), a critical
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
    """A delegated responder: the certificate, issued by the CA it answers for, and its key."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey) -> None:
        self.certificate = certificate
        self._key = key
        # RFC 6960 §4.2.1: KeyHash is SHA-1, whatever else has moved on.
        self._key_hash = hashlib.sha1(_key_bits(certificate), usedforsecurity=False).digest()

    def sign(
        self,
        verdicts: Sequence[Verdict],
        *,
        nonce: bytes | None,
        this_update: datetime,
        next_update: datetime,
    ) -> bytes:
        """Return a successful OCSPResponse, DER, produced at `this_update` (whole seconds, UTC)."""
        now, then = asn1.GeneralizedTime(this_update), asn1.GeneralizedTime(next_update)
        echo = None
        if nonce is not None:
            echo = [_Extension(oid=OCSPExtensionOID.NONCE, critical=None, value=nonce)]
        data = asn1.encode_der(
            _ResponseData(
                responder_key_hash=self._key_hash,
                produced_at=now,
                responses=[
                    _SingleResponse(
                        cert_id=verdict.cert_id,
                        status=_cert_status(verdict.status),
                        this_update=now,
                        next_update=then,
                    )
                    for verdict in verdicts
                ],
                extensions=echo,
            )
        )
        algorithm, signature = sign_bytes(self._key, data)
        basic = asn1.encode_der(
            _BasicResponse(
                data=asn1.decode_der(asn1.TLV, data),
                algorithm=asn1.decode_der(asn1.TLV, algorithm),
                signature=asn1.BitString(signature, 0),
                certificates=[self.certificate],
            )
        )
        return asn1.encode_der(
            _Response(status=_enumerated(0), content=_ResponseBytes(type=_BASIC, response=basic))
        )


def refusal(status: ResponseStatus) -> bytes:
    """Return the unsigned OCSPResponse that carries only `status`, DER."""
    return wrap(_enumerated(status))


def _enumerated(value: int) -> asn1.TLV:
    """Make an ENUMERATED, a type that `cryptography.hazmat.asn1` does not know."""
    return asn1.decode_der(asn1.TLV, bytes((0x0A, 1, value)))


def _cert_status(status: Revoked | Literal["good", "unknown"]) -> _CertStatus:
    if not isinstance(status, Revoked):
        return asn1.Variant(asn1.Null(), status)
    time = asn1.GeneralizedTime(status.time)
    if status.reason is RevocationReason.UNSPECIFIED:
        # RFC 5280 §5.3.1: absent rather than unspecified.
        return asn1.Variant(_Revoked(time=time), "revoked")
    reason = _enumerated(_REASONS[status.reason])
    return asn1.Variant(_RevokedBecause(time=time, reason=reason), "revoked-because")
