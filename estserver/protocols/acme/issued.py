"""Certificates handed out and revoked (RFC 8555 §7.4.2, §7.6)."""

from collections.abc import Sequence
from functools import lru_cache
from ssl import DER_cert_to_PEM_cert

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.errors import Conflict, NotFound, Refused
from estserver.model import CertificateRecord, CertificateState, RevocationReason
from estserver.protocols import Services
from estserver.protocols.acme.answers import Answer, OrderView
from estserver.protocols.acme.authorizations import Authorizations
from estserver.protocols.acme.gate import Signed
from estserver.protocols.acme.keys import decode_base64url
from estserver.protocols.acme.orders import own_views
from estserver.protocols.acme.problems import Identifier, Problem, unauthorized
from estserver.protocols.acme.renewals import account_of
from estserver.protocols.acme.states import OrderStatus
from estserver.protocols.acme.urls import URLs
from estserver.protocols.encoding import certs_only
from estserver.steps import Steps, read
from estserver.store import Transaction, certificates, ordered
from estserver.store.ordered import Issued

PEM = "application/pem-certificate-chain"
_DER = "application/pkix-cert"
_PKCS7 = "application/pkcs7-mime"
_REASONS = {
    0: RevocationReason.UNSPECIFIED,
    1: RevocationReason.KEY_COMPROMISE,
    3: RevocationReason.AFFILIATION_CHANGED,
    4: RevocationReason.SUPERSEDED,
    5: RevocationReason.CESSATION_OF_OPERATION,
    9: RevocationReason.PRIVILEGE_WITHDRAWN,
}


class IssuedCertificates:
    """Handlers of certificate and revokeCert."""

    def __init__(self, services: Services, urls: URLs, authorizations: Authorizations) -> None:
        self._services = services
        self._urls = urls
        self._authorizations = authorizations

    def show(self, request: Signed, order: str, number: int = 0) -> Steps[Answer]:
        """Return the certificate of an order with the chain above it, leaf first (§7.4.2).

        There is one chain to each root in use, the oldest one first, which most clients trust;
        `number` counts them. Each answer links the others as alternates.
        """
        request.require_fetch()
        found = yield from read(_own_certificates, (request, order))
        if found.issuer not in self._services.chains:
            raise _nothing_issued()
        ways = self._services.chains.ways(found.issuer)
        if number >= len(ways):
            raise NotFound("this certificate has no such chain")
        chain = ways[number].certificates
        media_type = preferred(request.accept)
        urls = [
            self._urls.certificate(order),
            *(self._urls.alternate(order, other) for other in range(1, len(ways))),
        ]
        links = [("alternate", url) for other, url in enumerate(urls) if other != number]
        match media_type:
            case "application/pkix-cert":
                content = found.der
                status = self._services.settings.listeners.status.url
                links = [("up", f"{status}/ca/{found.issuer}.cer")]
            case "application/pkcs7-mime":
                content = certs_only([x509.load_der_x509_certificate(found.der), *chain])
            case _:
                content = DER_cert_to_PEM_cert(found.der).encode() + _pem(chain)
        return Answer(
            content=content,
            content_type=media_type,
            links=tuple(links),
            carries_certificate=True,
            enrollment=found.enrollment,
        )

    def revoke(self, request: Signed) -> Answer:
        """Revoke a certificate for its account, for an account with its names, or by its key.

        One that an officer has put on hold can be revoked for good; no client puts any on hold.

        Blocks: call it on the thread pool.
        """
        asked = request.object()
        der = decode_base64url(asked.get("certificate"), "certificate")
        reason = _reason(asked.get("reason", 0))
        record = self._services.store.read(lambda tx: certificates.by_der(tx, der))
        if record is None:
            raise NotFound("this certificate was not issued here")
        by = self._revoker(request, record)
        if record.state is CertificateState.REVOKED and not record.on_hold:
            raise _already_revoked()
        try:
            self._services.ra.revoke(
                record.enrollment, reason=reason, comment="over ACME", by=by, origin=request.origin
            )
        except Conflict as error:
            raise _already_revoked() from error
        return Answer(content_type="", enrollment=record.enrollment)

    def _revoker(self, request: Signed, record: CertificateRecord) -> str:
        """Return who revokes, as the audit names it. Raises Problem unauthorized. §7.6."""
        account = request.account
        if account is None:
            if request.key.spki_sha256 != record.spki_sha256:
                raise unauthorized("the request is not signed by the key of the certificate")
            return f"certificate {record.serial_hex}"
        read = self._services.store.read
        if read(lambda tx: account_of(tx, record)) != account.id:
            names = identifiers_of(record)
            if names is None or not read(
                lambda tx: self._authorizations.holds_all(tx, account, names)
            ):
                raise unauthorized("this account may not revoke this certificate")
        return f"account {account.id}"


def identifiers_of(record: CertificateRecord) -> frozenset[Identifier] | None:
    """Return a certificate's names as identifiers, None where one of them is of another kind."""
    pairs = [name.partition(":") for name in record.names]
    if any(kind not in {"dns", "ip"} for kind, _, _ in pairs):
        return None
    return frozenset(Identifier(kind, value) for kind, _, value in pairs)


def _own_certificates(
    tx: Transaction, asked: Sequence[tuple[Signed, str]]
) -> list[Issued | Refused]:
    """Find what came of orders given by their ids, for the accounts that signed."""
    views = own_views(tx, asked)
    found = ordered.issued(
        tx,
        {
            view.enrollment
            for view in views
            if isinstance(view, OrderView)
            and view.status is OrderStatus.VALID
            and view.enrollment is not None
        },
    )
    return [
        view if isinstance(view, Refused) else found.get(view.enrollment or "") or _nothing_issued()
        for view in views
    ]


def _nothing_issued() -> NotFound:
    return NotFound("this order has no certificate")


@lru_cache(maxsize=64)
def _pem(chain: tuple[x509.Certificate, ...]) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


def preferred(accept: str) -> str:
    """Choose the media type of a certificate by `Accept`; PEM where nothing else is preferred.

    RFC 8555 §7.4.2; RFC 9110 §12.5.1. What cannot be had is answered with PEM all the same.
    """
    best, best_quality = PEM, 0.0
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        chosen = {"*/*": PEM, "application/*": PEM}.get(media_type, media_type)
        quality = _quality(parameters)
        if chosen in {PEM, _DER, _PKCS7} and quality > best_quality:
            best, best_quality = chosen, quality
    return best


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _reason(value: object) -> RevocationReason:
    # bool is an int to Python; JSON's true is no reason code.
    if not isinstance(value, int) or isinstance(value, bool) or value not in _REASONS:
        allowed = ", ".join(f"{code} ({reason})" for code, reason in _REASONS.items())
        raise Problem("badRevocationReason", f"the reason must be one of {allowed}")
    return _REASONS[value]


def _already_revoked() -> Problem:
    return Problem("alreadyRevoked", "this certificate is revoked already")
