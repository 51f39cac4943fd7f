"""Renewal by the certificate in use, and "test my certificate".

These pages live on the listener that asks for a client certificate in the handshake. Every answer
ends its connection: on one that lives on, a certificate imported later would never be asked for.
The certificate is ambient, as a cookie is, so each POST needs a token and a same-origin sender too.
"""

import hashlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Literal

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import http
from estserver.authentication import CertificateCredential, ConfirmedPIN, loosely
from estserver.csr import CSR, read_csr
from estserver.errors import (
    BadCredentials,
    BadInput,
    CertificateRefused,
    CredentialsRequired,
    Error,
    NotEntitled,
    NotFound,
    Refused,
)
from estserver.model import (
    CertificateRecord,
    CertificateState,
    Issued,
    KeyType,
    Language,
    Origin,
    Pending,
    RenewalAuth,
    Secret,
    Via,
)
from estserver.profiles import Profile
from estserver.protocols import Services
from estserver.ra import EnrollmentRequest
from estserver.web.forms import read_csr_field, read_form
from estserver.web.pages import HOME, REGISTRATION_LANGUAGE, RENDER, Site
from estserver.web.platforms import detect
from estserver.web.revocation import RevocationPages
from estserver.web.sessions import Sessions, check_origin
from estserver.web.standing import CertificateFacts, Taken, facts, renewals
from estserver.web.steps import key_prefix, take_context, take_page

__all__ = ["RENDER", "RenewalProtocol"]


class NoCertificate(CredentialsRequired):
    """The browser showed no certificate in the handshake."""

    code = "no-certificate"


@dataclass(frozen=True, slots=True)
class Held:
    """The certificate in use and what may become of it.

    `renewed`: the valid certificates that renew it, newest first. `needs_pin`: its profile wants a
    PIN besides.
    """

    record: CertificateRecord
    profile: Profile
    shown: CertificateFacts
    renewed: tuple[Taken, ...]
    needs_pin: bool
    language: Language | None


class RenewalProtocol:
    """`/renew` and `/test` on the listener that asks for a client certificate."""

    name = "renewal"
    prefix = ""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._site = Site(services, url=services.settings.listeners.devices.url, close=True)
        # Only for the form's token: who asks is what the handshake proved, again each time.
        self._sessions = Sessions(
            services.keyring, services.clock, services.settings.web.session_idle
        )

        self._revocation = RevocationPages(self._site, services)

    def application(self) -> web.Application:
        """Return the routes of the renewal pages."""
        application = web.Application(
            middlewares=[
                http.observer("renewal", self._site.error_page, self._services.record_refusal)
            ]
        )
        router = application.router
        router.add_get("/", self._landing)
        router.add_get("/renew", self._show)
        router.add_post("/renew/issue", self._issue)
        router.add_post("/renew/taken", self._take)
        router.add_get("/renew/certificate.{ending}", self._download)
        router.add_get("/test", self._test)
        router.add_get("/revoke", self._ask_revocation)
        router.add_post("/revoke", self._revoke)
        self._site.routes(application)
        return application

    def background(self) -> Sequence[Coroutine[None, None, None]]:
        """Nothing runs besides the requests."""
        return ()

    # -- pages -------------------------------------------------------------------------------------

    async def _landing(self, request: web.Request) -> web.Response:
        http.note(request, operation="landing")
        return self._site.page(request, "devices.html")

    async def _test(self, request: web.Request) -> web.Response:
        """Say what the browser presented and whether it works; the diagnosis is the answer: 200."""
        http.note(request, operation="test")
        der = http.peer_certificate(request)
        verdict: Refused | None = None
        record: CertificateRecord | None = None
        if der is None:
            verdict = NoCertificate("the browser showed no certificate")
        else:
            language = await self._services.run(self._language, der)
            if language is not None:
                request[REGISTRATION_LANGUAGE] = language
            try:
                record = await self._services.run(
                    self._services.authenticator.holder, CertificateCredential(der)
                )
            except Refused as error:
                verdict = error
        newer: tuple[Taken, ...] = ()
        if record is not None:
            http.note(request, serial=record.serial_hex, profile=record.profile)
            newer = await self._services.run(renewals, self._services, record)
        return self._site.page(
            request,
            "test.html",
            certificate=_readable(der),
            verdict=None if verdict is None else self._site.said(request, verdict),
            expired=record is not None
            and record.state_at(self._services.clock.now()) is CertificateState.EXPIRED,
            newer=[facts(taken.der) for taken in newer],
            platform=detect(request.headers.get("User-Agent", "")),
        )

    async def _show(self, request: web.Request) -> web.Response:
        http.note(request, operation="renew")
        request[HOME] = "/renew"
        der = http.peer_certificate(request)
        try:
            held = await self._held(request, der)
        except NoCertificate as error:
            http.note(request, outcome=error.code)
            return self._nothing_shown(request, error, "renew")
        except Refused as error:
            http.note(request, outcome=error.code)
            on_hold = isinstance(error, CertificateRefused) and error.reason == "on-hold"
            return self._site.error(
                request, error, "refused.html", held=_readable(der), on_hold=on_hold
            )
        untaken = [taken for taken in held.renewed if taken.enrollment.taken_at is None]
        wanted = request.query.get("certificate")
        chosen = next((t for t in held.renewed if t.enrollment.id == wanted), None)
        if chosen is None and untaken and "again" not in request.query:
            chosen = untaken[0]
        if chosen is not None:
            return self._renewed(request, held, chosen)
        issuer = self._services.chains[held.profile.settings.issuer][0]
        now = self._services.clock.now()
        return self._site.page(
            request,
            "renew.html",
            held=held,
            step=2,
            renewal=True,
            purpose="renew",
            profile=held.profile,
            issuer=facts(issuer.public_bytes(Encoding.DER)),
            until=min(now + held.profile.settings.validity, issuer.not_valid_after_utc),
            days_left=(held.record.not_after - now).days,
            key_types=[k.value for k in held.profile.settings.keys if k is not KeyType.ED25519],
            server_key=False,
            needs_pin=held.needs_pin,
            newest=facts(held.renewed[0].der).serial if held.renewed else None,
            platform=detect(request.headers.get("User-Agent", "")),
            csrf=self._token(held.shown.der),
            home="/renew",
            page={
                "kind": "issue",
                "action": "/renew/issue",
                "key": f"{self._prefix(held.record)}{len(held.renewed)}",
            },
        )

    def _renewed(self, request: web.Request, held: Held, taken: Taken) -> web.Response:
        renewal = held.profile.settings.renewal
        identifier = taken.enrollment.id
        return self._site.page(
            request,
            "renewed.html",
            step=3,
            renewal=True,
            held=held,
            overlap_days=renewal.overlap.days,
            revokes=renewal.revoke_superseded,
            pem=f"/renew/certificate.pem?certificate={identifier}",
            cer=f"/renew/certificate.cer?certificate={identifier}",
            platform=detect(request.headers.get("User-Agent", "")),
            replace=None,
            another=None,
            taken_action="/renew/taken",
            csrf=self._token(held.shown.der),
            **take_context(taken),
            page=take_page(self._site, taken, held.renewed, self._prefix(held.record), "/renew"),
        )

    async def _download(self, request: web.Request) -> web.Response:
        http.note(request, operation="download")
        request[HOME] = "/renew"
        held = await self._held(request, http.peer_certificate(request))
        wanted = request.query.get("certificate")
        taken = next((t for t in held.renewed if t.enrollment.id == wanted), None)
        if taken is None:
            raise NotFound("there is no such certificate")
        chain = self._services.chains.in_file(taken.record.issuer)
        return self._site.certificate_file((taken.der, *chain), request.match_info["ending"])

    # -- POST --------------------------------------------------------------------------------------

    async def _issue(self, request: web.Request) -> web.StreamResponse:
        http.note(request, operation="issue")
        request[HOME] = "/renew"
        check_origin(request, self._site.url)
        der = _presented(request)
        form = await read_form(request, self._services.settings.limits)
        self._sessions.check_csrf_token(form.text("csrf"), _fingerprint(der))
        csr = await self._services.run(read_csr, read_csr_field(form))
        answer = await self._services.run(
            self._enroll,
            der,
            csr,
            Secret(form.text("pin")),
            origin=http.origin(request),
        )
        http.note(request, enrollment=answer.enrollment)
        if isinstance(answer, Pending):
            # Renewals are approved by the certificate shown; nothing else can be.
            raise NotEntitled("renewals do not wait for approval")
        location = f"/renew?certificate={answer.enrollment}"
        return await http.delivered(self._site.see(location), request)

    def _enroll(self, der: bytes, csr: CSR, pin: Secret, *, origin: Origin) -> Issued | Pending:
        authenticator, invitations = self._services.authenticator, self._services.invitations
        credential = CertificateCredential(der)
        record = authenticator.holder(credential)
        self._require_renewal_by_certificate(record)
        confirmed = None
        if pin.reveal() and record.invitation is not None:
            invitation = invitations.get(record.invitation)
            invitations.confirm(invitation, pin, source=origin.source)
            confirmed = ConfirmedPIN(invitation.number, invitation.pin_generation)
        entitlement = authenticator.renew(credential, pin=confirmed)
        return self._services.ra.enroll(
            EnrollmentRequest(loosely(entitlement), csr, Via.RENEWAL, origin)
        )

    async def _take(self, request: web.Request) -> web.Response:
        http.note(request, operation="taken")
        request[HOME] = "/renew"
        check_origin(request, self._site.url)
        der = _presented(request)
        form = await read_form(request, self._services.settings.limits)
        self._sessions.check_csrf_token(form.text("csrf"), _fingerprint(der))
        held = await self._held(request, der)
        wanted = form.text("enrollment")
        if wanted not in {taken.enrollment.id for taken in held.renewed}:
            raise NotFound("there is no such certificate")
        await self._services.run(
            self._services.ra.mark_taken,
            wanted,
            by=f"certificate {held.record.serial_hex}",
            origin=http.origin(request),
        )
        return self._site.see(f"/renew?certificate={wanted}")

    # -- revocation --------------------------------------------------------------------------------

    async def _ask_revocation(self, request: web.Request) -> web.Response:
        http.note(request, operation="revoke")
        try:
            der = _presented(request)
        except NoCertificate as error:
            http.note(request, outcome=error.code)
            return self._nothing_shown(request, error, "revoke")
        await self._holder(request, der)
        return self._revocation.ask(
            request, der, action="/revoke", csrf=self._token(der), back="/test"
        )

    async def _revoke(self, request: web.Request) -> web.Response:
        http.note(request, operation="revoke")
        check_origin(request, self._site.url)
        der = _presented(request)
        form = await read_form(request, self._services.settings.limits)
        self._sessions.check_csrf_token(form.text("csrf"), _fingerprint(der))
        record = await self._holder(request, der)
        by = f"certificate {record.serial_hex}"
        return await self._revocation.revoke(request, record, der, form, by=by)

    async def _holder(self, request: web.Request, der: bytes) -> CertificateRecord:
        """Return the row of the certificate shown. Raises CertificateRefused."""
        language = await self._services.run(self._language, der)
        if language is not None:
            request[REGISTRATION_LANGUAGE] = language
        record = await self._services.run(
            self._services.authenticator.holder, CertificateCredential(der)
        )
        http.note(request, applicant=f"certificate {record.serial_hex}")
        return record

    # -- shared ------------------------------------------------------------------------------------

    def _nothing_shown(
        self, request: web.Request, error: NoCertificate, purpose: Literal["renew", "revoke"]
    ) -> web.Response:
        """Say what it means that no certificate came, and what else leads to `purpose`."""
        platform = detect(request.headers.get("User-Agent", ""))
        return self._site.error(
            request, error, "no_certificate.html", platform=platform, purpose=purpose
        )

    async def _held(self, request: web.Request, der: bytes | None) -> Held:
        """Return the certificate in use if it may be renewed.

        Raises NoCertificate, CertificateRefused, RegistrationClosed, NotEntitled.
        """
        if der is None:
            raise NoCertificate("the browser showed no certificate")
        try:
            held = await self._services.run(self._look, der)
        except Error:
            language = await self._services.run(self._language, der)
            if language is not None:
                request[REGISTRATION_LANGUAGE] = language
            raise
        if held.language is not None:
            request[REGISTRATION_LANGUAGE] = held.language
        http.note(
            request,
            serial=held.record.serial_hex,
            profile=held.record.profile,
            applicant=f"certificate {held.record.serial_hex}",
        )
        return held

    def _look(self, der: bytes) -> Held:
        credential = CertificateCredential(der)
        record = self._services.authenticator.holder(credential)
        self._require_renewal_by_certificate(record)
        needs_pin = False
        try:
            self._services.authenticator.renew(credential)
        except BadCredentials:
            needs_pin = True
        return Held(
            record=record,
            profile=self._services.profiles[record.profile],
            shown=facts(der),
            renewed=renewals(self._services, record),
            needs_pin=needs_pin,
            language=self._language(der),
        )

    def _require_renewal_by_certificate(self, record: CertificateRecord) -> None:
        rules = self._services.profiles.get(record.profile)
        if rules is not None and rules.settings.renewal.auth is RenewalAuth.PIN:
            raise NotEntitled(
                "certificates of this kind are renewed with a PIN: ask for one",
                values={"reason": "pin-only"},
            )

    def _language(self, der: bytes) -> Language | None:
        """Return the language of the registration behind a certificate, whatever its state."""
        try:
            record = self._services.authenticator.holder(CertificateCredential(der))
        except Refused:
            return None
        if record.invitation is None:
            return None
        return self._services.invitations.get(record.invitation).language

    def _token(self, der: bytes) -> str:
        return self._sessions.csrf_token(_fingerprint(der))

    def _prefix(self, record: CertificateRecord) -> str:
        return key_prefix(self._services.keyring, f"renewal {record.enrollment}")


def _presented(request: web.Request) -> bytes:
    der = http.peer_certificate(request)
    if der is None:
        raise NoCertificate("the browser showed no certificate")
    return der


def _fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def _readable(der: bytes | None) -> CertificateFacts | None:
    """Return what a page shows of a certificate that may be anybody's and anything."""
    if der is None:
        return None
    try:
        return facts(der)
    except (ValueError, TypeError, BadInput, x509.UnsupportedGeneralNameType):
        return None
