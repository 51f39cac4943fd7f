"""The wizard behind the mailed link: enter the PIN, issue, take the certificate.

GET and HEAD never change anything: mail scanners open every link. Each page follows from what the
store says about the registration, never from where the browser was before.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from aiohttp import web

from estserver import http
from estserver.csr import CSR, read_csr
from estserver.errors import (
    BadCredentials,
    BadInput,
    Conflict,
    NotEntitled,
    NotFound,
    TooManyAttempts,
    Unavailable,
)
from estserver.model import Invitation, Issued, KeyType, Origin, Pending, RenewalAuth, Secret, Via
from estserver.protocols import Services
from estserver.ra import EnrollmentRequest
from estserver.web import server_file
from estserver.web.forms import Form, read_csr_field, read_form
from estserver.web.pages import HOME, REGISTRATION_LANGUAGE, RENDER, Site
from estserver.web.revocation import RevocationPages
from estserver.web.sessions import SessionEnded, Sessions, WebSession, check_origin
from estserver.web.standing import (
    Standing,
    Step,
    Taken,
    facts,
    require_redeemable,
    standing,
)
from estserver.web.steps import StepPages, unseal_password
from estserver.web.trust import TrustPages

__all__ = ["RENDER", "WebProtocol"]

_CONFIRMING = 4
"""PINs that are hashed, or wait for it, at a time: a crowd must leave threads to others."""
_TURN_SECONDS = 10


class WebProtocol:
    """Landing and trust pages, and the three steps of `/e/TOKEN`."""

    name = "web"
    prefix = ""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._site = Site(services, url=services.settings.listeners.web.url)
        self._trust = TrustPages(self._site)
        self._sessions = Sessions(
            services.keyring, services.clock, services.settings.web.session_idle
        )
        self._revocation = RevocationPages(self._site, services)
        self._steps = StepPages(self._site, self._sessions, self._trust.root_path)
        self._confirming = asyncio.Semaphore(_CONFIRMING)

    def application(self) -> web.Application:
        """Return the routes of the web listener."""
        application = web.Application(
            middlewares=[http.observer("web", self._site.error_page, self._services.record_refusal)]
        )
        router = application.router
        router.add_get("/e/{token}", self._show)
        router.add_post("/e/{token}", self._confirm)
        router.add_get("/e/{token}/pin", self._ask_pin)
        router.add_get("/e/{token}/another", self._show_another)
        router.add_get("/e/{token}/replace", self._show_replace)
        router.add_post("/e/{token}/issue", self._issue)
        router.add_post("/e/{token}/taken", self._take)
        router.add_get("/e/{token}/revoke", self._ask_revocation)
        router.add_post("/e/{token}/revoke", self._revoke)
        router.add_get("/e/{token}/certificate.{ending}", self._download)
        self._trust.routes(application)
        self._site.routes(application)
        return application

    def background(self) -> Sequence[Coroutine[None, None, None]]:
        """Nothing runs besides the requests."""
        return ()

    # -- STEP1 -------------------------------------------------------------------------------------

    async def _ask_pin(self, request: web.Request) -> web.Response:
        http.note(request, operation="pin")
        invitation = await self._open(request)
        await self._services.run(require_redeemable, self._services, invitation)
        confirmed = self._session(request, invitation) is not None
        return self._steps.ask_pin(request, invitation, confirmed=confirmed)

    async def _confirm(self, request: web.Request) -> web.Response:
        http.note(request, operation="pin")
        check_origin(request, self._site.url)
        invitation = await self._open(request)
        form = await read_form(request, self._services.settings.limits)
        await self._services.run(require_redeemable, self._services, invitation)
        try:
            async with self._turn():
                await self._services.run(
                    self._services.invitations.confirm,
                    invitation,
                    Secret(form.text("pin")),
                    source=http.source(request),
                )
        except (BadCredentials, TooManyAttempts) as error:
            applicant = f"invitation {invitation.number}"
            http.note(request, outcome=error.code, applicant=applicant)
            if type(error) is BadCredentials and error.reason == "wrong":
                # Of these there are a hundred at most: then the PIN is dead.
                await self._services.record_refusal(applicant, error, http.origin(request))
            present = await self._services.run(self._services.invitations.get, invitation.number)
            return self._steps.ask_pin(request, present, error=error)
        http.note(request, applicant=f"invitation {invitation.number}")
        response = self._site.see(request[HOME])
        self._sessions.keep(response, self._sessions.begin(invitation))
        return response

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait to be one of the few whose PIN is looked at. Raises Unavailable: too long."""
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._confirming.acquire()
        except TimeoutError:
            sentence = "too many people type their PINs now: try again"
            raise Unavailable(sentence, retry_after=timedelta(seconds=_TURN_SECONDS)) from None
        try:
            yield
        finally:
            self._confirming.release()

    # -- STEP2 and STEP3 ---------------------------------------------------------------------------

    async def _show(self, request: web.Request) -> web.Response:
        http.note(request, operation="step")
        invitation = await self._open(request)
        session = self._session(request, invitation)
        if session is None:
            await self._services.run(require_redeemable, self._services, invitation)
            return self._steps.ask_pin(request, invitation)
        try:
            stand = await self._services.run(standing, self._services, session)
        except BadCredentials as error:
            if error.reason != "replaced":
                raise
            http.note(request, outcome=error.code)
            return self._steps.ask_pin(request, invitation, error=error)
        return self._step(request, session, stand)

    def _step(self, request: web.Request, session: WebSession, stand: Standing) -> web.Response:
        if stand.waiting is not None:
            return self._steps.waiting(request, session, stand, stand.waiting)
        if stand.step is Step.TAKE:
            return self._steps.take(request, session, stand, _chosen(request, stand))
        if stand.renews is not None:
            rules = self._services.profiles[stand.invitation.profile].settings.renewal
            if rules.auth is RenewalAuth.CERTIFICATE_AND_PIN:
                return self._steps.renew_elsewhere(request, session, stand)
            return self._steps.issue(request, session, stand, "renew")
        if stand.ended is not None and stand.units_left < 1:
            return self._steps.ended(request, session, stand)
        return self._steps.issue(request, session, stand, "new")

    async def _show_another(self, request: web.Request) -> web.Response:
        http.note(request, operation="step")
        session = await self._signed_in(request)
        stand = await self._services.run(standing, self._services, session)
        if stand.units_left < 1 or stand.waiting is not None:
            raise Conflict(
                "this registration allows no further certificate", values={"reason": "no-units"}
            )
        return self._steps.issue(request, session, stand, "new")

    async def _show_replace(self, request: web.Request) -> web.Response:
        http.note(request, operation="replace")
        session = await self._signed_in(request)
        # Says in words why it is not possible, where it is not.
        await self._services.run(self._services.authenticator.replacement, session.credential)
        stand = await self._services.run(standing, self._services, session)
        return self._steps.issue(request, session, stand, "replace")

    async def _download(self, request: web.Request) -> web.Response:
        http.note(request, operation="download")
        session = await self._signed_in(request)
        stand = await self._services.run(standing, self._services, session)
        if not stand.certificates:
            raise NotFound("there is no certificate to take")
        taken = _chosen(request, stand)
        chain = self._services.chains.in_file(taken.record.issuer)
        ending = request.match_info["ending"]
        return self._kept(session, self._site.certificate_file((taken.der, *chain), ending))

    # -- POST --------------------------------------------------------------------------------------

    async def _issue(self, request: web.Request) -> web.StreamResponse:
        http.note(request, operation="issue")
        session, form = await self._submitted(request)
        if form.text("method") == "server":
            return await self._issue_with_server_key(request, session, form)
        csr = await self._services.run(read_csr, read_csr_field(form))
        answer = await self._services.run(
            self._enroll,
            session,
            csr,
            replace=form.text("purpose") == "replace",
            origin=http.origin(request),
        )
        http.note(request, enrollment=answer.enrollment)
        response = self._kept(session, self._site.see(request[HOME]))
        if isinstance(answer, Pending):
            http.note(request, outcome="pending")
            return response
        return await http.delivered(response, request)

    def _enroll(
        self, session: WebSession, csr: CSR, *, replace: bool, origin: Origin
    ) -> Issued | Pending:
        """Enroll, or replace what was lost; a repeated question is never a second replacement."""
        authenticator, ra = self._services.authenticator, self._services.ra
        rows = ra.of_invitation(session.number)
        repeated = any(e.spki_sha256 == csr.spki_sha256 for e, _ in rows)
        entitlement = (
            authenticator.replacement(session.credential)
            if replace and not repeated
            else authenticator.entitle(session.credential)
        )
        return ra.enroll(EnrollmentRequest(entitlement, csr, Via.WEB, origin))

    async def _issue_with_server_key(
        self, request: web.Request, session: WebSession, form: Form
    ) -> web.StreamResponse:
        invitation = await self._services.run(
            self._services.authenticator.invitation, session.credential
        )
        profile = self._services.profiles[invitation.profile]
        if not profile.settings.server_key or invitation.approval:
            raise NotEntitled("the server makes no keys for this registration")
        key_type = _key_type(form.text("key-type"), profile.settings.keys)
        password = unseal_password(self._services.keyring, session, form.text("server-password"))
        file, name = await self._services.run(
            self._make_file,
            session,
            key_type,
            password,
            compatible=form.text("format") == "compatible",
            replace=form.text("purpose") == "replace",
            origin=http.origin(request),
        )
        response = self._site.file(file, server_file.CONTENT_TYPE, name)
        return await http.delivered(self._kept(session, response), request)

    def _make_file(
        self,
        session: WebSession,
        key_type: KeyType,
        password: Secret,
        *,
        compatible: bool,
        replace: bool,
        origin: Origin,
    ) -> tuple[bytes, str]:
        key, csr = server_file.make_key(key_type)
        answer = self._enroll(session, csr, replace=replace, origin=origin)
        if isinstance(answer, Pending):
            raise Conflict("a key made here cannot wait for approval")
        issuer = self._services.ra.certificate(answer.enrollment).issuer
        shown = facts(answer.der)
        file = server_file.make_file(
            key,
            (answer.der, *self._services.chains.in_file(issuer)),
            name=shown.label,
            password=password,
            compatible=compatible,
        )
        return file, f"{shown.file_stem}.p12"

    async def _take(self, request: web.Request) -> web.Response:
        http.note(request, operation="taken")
        session, form = await self._submitted(request)
        stand = await self._services.run(standing, self._services, session)
        wanted = _named(stand, form.text("enrollment")).enrollment.id
        await self._services.run(
            self._services.ra.mark_taken,
            wanted,
            by=f"invitation {session.number}",
            origin=http.origin(request),
        )
        return self._kept(session, self._site.see(f"{request[HOME]}?certificate={wanted}"))

    # -- revocation --------------------------------------------------------------------------------

    async def _ask_revocation(self, request: web.Request) -> web.Response:
        http.note(request, operation="revoke")
        session = await self._signed_in(request)
        stand = await self._services.run(standing, self._services, session)
        taken = _named(stand, request.query.get("certificate"))
        response = self._revocation.ask(
            request,
            taken.der,
            action=f"{request[HOME]}/revoke",
            csrf=self._sessions.csrf_token(session.id),
            enrollment=taken.enrollment.id,
            back=f"{request[HOME]}?certificate={taken.enrollment.id}",
        )
        return self._kept(session, response)

    async def _revoke(self, request: web.Request) -> web.Response:
        http.note(request, operation="revoke")
        session, form = await self._submitted(request)
        stand = await self._services.run(standing, self._services, session)
        taken = _named(stand, form.text("enrollment"))
        response = await self._revocation.revoke(
            request,
            taken.record,
            taken.der,
            form,
            by=f"invitation {session.number}",
            back=request[HOME],
        )
        return self._kept(session, response)

    # -- shared ------------------------------------------------------------------------------------

    async def _open(self, request: web.Request) -> Invitation:
        """Find the invitation of the URL; its language and page go into whatever is rendered."""
        token = request.match_info["token"]
        invitation = await self._services.run(self._services.invitations.by_token, token)
        request[REGISTRATION_LANGUAGE] = invitation.language
        request[HOME] = f"/e/{token}"
        http.note(request, profile=invitation.profile)
        return invitation

    def _session(self, request: web.Request, invitation: Invitation) -> WebSession | None:
        """Find the session; whoever has one is the applicant, the link alone proves nothing."""
        session = self._sessions.find(request, invitation.number)
        if session is not None:
            http.note(request, applicant=f"invitation {invitation.number}")
        return session

    async def _signed_in(self, request: web.Request) -> WebSession:
        """Return the session. Raises SessionEnded."""
        session = self._session(request, await self._open(request))
        if session is None:
            raise SessionEnded("the session has ended: enter the PIN again")
        return session

    async def _submitted(self, request: web.Request) -> tuple[WebSession, Form]:
        """Return session and form of a POST that a page of this session sent."""
        check_origin(request, self._site.url)
        session = await self._signed_in(request)
        form = await read_form(request, self._services.settings.limits)
        self._sessions.check_csrf_token(form.text("csrf"), session.id)
        return session, form

    def _kept(self, session: WebSession, response: web.Response) -> web.Response:
        self._sessions.keep(response, session)
        return response


def _named(stand: Standing, identifier: str | None) -> Taken:
    """Return the valid certificate of an enrollment. Raises NotFound."""
    for taken in stand.certificates:
        if taken.enrollment.id == identifier:
            return taken
    raise NotFound("there is no such certificate in this registration")


def _chosen(request: web.Request, stand: Standing) -> Taken:
    wanted = request.query.get("certificate")
    return next((t for t in stand.certificates if t.enrollment.id == wanted), stand.certificates[0])


def _key_type(name: str, allowed: Sequence[KeyType]) -> KeyType:
    if name not in allowed or name == KeyType.ED25519:
        raise BadInput("the profile has no such key type")
    return KeyType(name)
