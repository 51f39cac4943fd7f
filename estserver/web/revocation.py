"""Revocation by the owner: whoever holds the certificate, or the link and the PIN.

It is told as done only once our own OCSP says so.
"""

import asyncio
from datetime import timedelta

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver import http
from estserver.errors import BadInput, Conflict, Unavailable
from estserver.model import CertificateRecord, CertificateState, RevocationReason
from estserver.protocols import Services
from estserver.web.forms import Form
from estserver.web.pages import Site
from estserver.web.standing import facts

REASONS = (
    RevocationReason.KEY_COMPROMISE,
    RevocationReason.SUPERSEDED,
    RevocationReason.AFFILIATION_CHANGED,
    RevocationReason.CESSATION_OF_OPERATION,
    RevocationReason.UNSPECIFIED,
)
"""What an owner can know; the others are the administrator's to say."""
_PATIENCE = timedelta(seconds=10)
_PAUSE = timedelta(milliseconds=200)


class RevocationPages:
    """The page that asks why, and the one that says it is done."""

    def __init__(self, site: Site, services: Services) -> None:
        self._site = site
        self._services = services

    def ask(
        self,
        request: web.Request,
        der: bytes,
        *,
        action: str,
        csrf: str,
        back: str,
        enrollment: str = "",
    ) -> web.Response:
        """Ask for the reason, and once more whether it is meant; `back` leads away from it."""
        return self._site.page(
            request,
            "revoke.html",
            certificate=facts(der),
            action=action,
            csrf=csrf,
            back=back,
            enrollment=enrollment,
            reasons=[reason.value for reason in REASONS],
        )

    async def revoke(
        self,
        request: web.Request,
        record: CertificateRecord,
        der: bytes,
        form: Form,
        *,
        by: str,
        back: str | None = None,
    ) -> web.Response:
        """Revoke, wait until OCSP says so, and say what was done.

        Raises BadInput: no reason, or not confirmed. Conflict: it is revoked or over already.
        """
        reason = _reason(form)
        if record.state_at(self._services.clock.now()) is CertificateState.EXPIRED:
            raise Conflict("the certificate has expired: nobody takes it any more")
        await self._services.run(
            self._services.ra.revoke,
            record.enrollment,
            reason=reason,
            comment="by the owner",
            by=by,
            origin=http.origin(request),
        )
        http.note(request, serial=record.serial_hex)
        return self._site.page(
            request,
            "revoked.html",
            certificate=facts(der),
            seen=await self._is_seen(record, der),
            reason=reason.value,
            back=back,
        )

    async def _is_seen(self, record: CertificateRecord, der: bytes) -> bool:
        """Ask our own OCSP until it says revoked."""
        issuer = self._services.chains[record.issuer][0]
        certificate = x509.load_der_x509_certificate(der)
        builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA256())
        question = builder.build().public_bytes(Encoding.DER)
        for _ in range(_PATIENCE // _PAUSE):
            try:
                answer = await self._services.run(self._services.status.answer, question)
            except Unavailable:
                return False
            response = ocsp.load_der_ocsp_response(answer.der)
            if (
                response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
                and response.certificate_status is ocsp.OCSPCertStatus.REVOKED
            ):
                return True
            await asyncio.sleep(_PAUSE.total_seconds())
        return False


def _reason(form: Form) -> RevocationReason:
    """Read reason and confirmation. Raises BadInput."""
    chosen = form.text("reason")
    if chosen not in REASONS:
        raise BadInput("choose why it is revoked", values={"reason": "no-reason"})
    if form.text("confirm") != "yes":
        raise BadInput(
            "tick the box: revocation cannot be undone", values={"reason": "not-confirmed"}
        )
    return RevocationReason(chosen)
