"""The wizard behind the mailed link: enter the PIN, issue, take the certificate.

GET and HEAD never change anything: mail scanners open every link. Each page follows from what the
store says about the registration, never from where the browser was before.
"""

from base64 import b64encode
from collections.abc import Coroutine, Sequence
from typing import Any, Literal

from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estserver import http
from estserver.csr import CSR, read_csr
from estserver.errors import (
    BadCredentials,
    BadInput,
    Conflict,
    NotEntitled,
    NotFound,
    TooManyAttempts,
)
from estserver.invitations import FREE_TRIES
from estserver.model import EnrollmentState, Invitation, Issued, KeyType, Origin, Pending, Renewal, Secret, Via
from estserver.names import format_general_name
from estserver.protocols import Services
from estserver.ra import EnrollmentRequest
from estserver.web import server_file
from estserver.web.forms import Form, read_csr_field, read_form
from estserver.web.pages import HOME, REGISTRATION_LANGUAGE, RENDER, Site
from estserver.web.platforms import KINDS, detect
from estserver.web.sessions import SessionEnded, Sessions, WebSession, check_origin
from estserver.web.standing import (
    Standing,
    Step,
    Taken,
    facts,
    issued_before,
    require_redeemable,
    standing,
)
from estserver.web.trust import TrustPages

__all__ = ["RENDER", "WebProtocol"]

Purpose = Literal["new", "replace", "renew"]
_SEALED_PASSWORD = "web-file-password"  # noqa: S105 - the purpose of a key, not a password
_HINT_AFTER = 3
"""Wrong PINs after which the page says how many tries are left."""
_POLL_SECONDS = 5


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

    def application(self) -> web.Application:
        """Return the routes of the web listener."""
        application = web.Application(middlewares=[http.observer("web", self._site.error_page)])
        router = application.router
        router.add_get("/e/{token}", self._show)
        router.add_post("/e/{token}", self._confirm)
        router.add_get("/e/{token}/pin", self._ask_pin)
        router.add_get("/e/{token}/another", self._show_another)
        router.add_get("/e/{token}/replace", self._show_replace)
        router.add_post("/e/{token}/issue", self._issue)
        router.add_post("/e/{token}/taken", self._take)
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
        confirmed = self._sessions.find(request, invitation.number) is not None
        return await self._step1(request, invitation, confirmed=confirmed)

    async def _step1(
        self,
        request: web.Request,
        invitation: Invitation,
        *,
        error: BadCredentials | TooManyAttempts | None = None,
        confirmed: bool = False,
    ) -> web.Response:
        if error is None:
            await self._services.run(require_redeemable, self._services, invitation)
            return self._site.page(
                request, "step1.html", step=1, confirmed=confirmed, tries=None, page={"kind": "pin"}
            )
        http.note(request, outcome=error.code)
        tries = FREE_TRIES - invitation.pin_failures
        return self._site.error(
            request,
            error,
            "step1.html",
            step=1,
            confirmed=confirmed,
            tries=tries if invitation.pin_failures >= _HINT_AFTER else None,
            page={"kind": "pin"},
        )

    async def _confirm(self, request: web.Request) -> web.Response:
        http.note(request, operation="pin")
        check_origin(request, self._site.url)
        invitation = await self._open(request)
        form = await read_form(request, self._services.settings.limits)
        await self._services.run(require_redeemable, self._services, invitation)
        try:
            await self._services.run(
                self._services.invitations.confirm,
                invitation,
                Secret(form.text("pin")),
                source=http.source(request),
            )
        except (BadCredentials, TooManyAttempts) as error:
            present = await self._services.run(self._services.invitations.get, invitation.number)
            return await self._step1(request, present, error=error)
        response = self._site.see(request[HOME])
        self._sessions.keep(response, self._sessions.begin(invitation))
        return response

    # -- STEP2 and STEP3 -----------------------------------------------------------------------------

    async def _show(self, request: web.Request) -> web.Response:
        http.note(request, operation="step")
        invitation = await self._open(request)
        session = self._sessions.find(request, invitation.number)
        if session is None:
            return await self._step1(request, invitation)
        try:
            stand = await self._services.run(standing, self._services, session)
        except BadCredentials as error:
            if error.reason != "replaced":
                raise
            return await self._step1(request, invitation, error=error)
        match stand.step:
            case Step.ISSUE if stand.ended is not None and stand.units_left < 1:
                page = self._site.page(request, "ended.html", step=3, ended=stand.ended)
                return self._kept(session, page)
            case Step.ISSUE:
                purpose: Purpose = "new" if stand.renews is None else "renew"
                return self._step2(request, session, stand, purpose)
            case Step.WAIT:
                return self._waiting(request, session, stand)
            case Step.TAKE:
                return self._step3(request, session, stand)

    async def _show_another(self, request: web.Request) -> web.Response:
        http.note(request, operation="step")
        session = await self._signed_in(request)
        stand = await self._services.run(standing, self._services, session)
        if stand.units_left < 1 or stand.waiting is not None:
            raise Conflict("this registration allows no further certificate", values={"reason": "no-units"})
        return self._step2(request, session, stand, "new")

    async def _show_replace(self, request: web.Request) -> web.Response:
        http.note(request, operation="replace")
        session = await self._signed_in(request)
        stand = await self._services.run(standing, self._services, session)
        if not stand.replaceable:
            # Says which of the reasons it is.
            await self._services.run(self._services.authenticator.replacement, session.credential)
        return self._step2(request, session, stand, "replace")

    def _step2(
        self, request: web.Request, session: WebSession, stand: Standing, purpose: Purpose
    ) -> web.Response:
        invitation = stand.invitation
        profile = self._services.profiles[invitation.profile]
        grant = profile.grant(invitation)
        issuer = self._services.chains[profile.settings.issuer][0]
        password = server_file.generate_password().reveal()
        now = self._services.clock.now()
        return self._kept(
            session,
            self._site.page(
                request,
                "step2.html",
                step=2,
                purpose=purpose,
                stand=stand,
                profile=profile,
                subject=[
                    ("" if a.oid == NameOID.COMMON_NAME else a.rfc4514_attribute_name, a.value)
                    for a in grant.subject
                ],
                names=[shown.split(":", 1) for shown in sorted(map(format_general_name, grant.names))],
                issuer=facts(issuer.public_bytes(Encoding.DER)),
                until=min(now + profile.settings.validity, issuer.not_valid_after_utc),
                replaced=facts(stand.certificates[0].der) if purpose != "new" else None,
                key_types=[key.value for key in profile.settings.keys if key is not KeyType.ED25519],
                server_key=profile.settings.server_key and not invitation.approval,
                server_password=password,
                sealed_password=self._services.keyring.seal(
                    _SEALED_PASSWORD, f"{session.id} {password}".encode()
                ),
                platform=detect(request.headers.get("User-Agent", "")),
                **self._form_context(request, session),
                page={
                    "kind": "issue",
                    "action": f"{request[HOME]}/issue",
                    "key": f"{self._prefix(invitation.number)}{stand.attempts}",
                },
            ),
        )

    def _waiting(
        self, request: web.Request, session: WebSession, stand: Standing
    ) -> web.Response:
        if stand.waiting is None:
            raise NotFound("nothing waits")
        profile = self._services.profiles[stand.invitation.profile]
        response = self._site.page(
            request,
            "waiting.html",
            step=2,
            stand=stand,
            profile=profile,
            undecided=stand.waiting.state is EnrollmentState.PENDING,
            refresh=30,
            **self._form_context(request, session),
            page={
                "kind": "wait",
                "state": stand.waiting.state.value,
                "home": request[HOME],
                "action": f"{request[HOME]}/issue",
                "spki": stand.waiting.spki_sha256.hex(),
                "prefix": self._prefix(stand.invitation.number),
                "seconds": _POLL_SECONDS,
            },
        )
        return self._kept(session, response)

    def _step3(
        self, request: web.Request, session: WebSession, stand: Standing
    ) -> web.Response:
        taken = _chosen(request, stand)
        chain = self._services.ra.chain(taken.record.profile)
        shown = facts(taken.der)
        home = request[HOME]
        response = self._site.page(
            request,
            "step3.html",
            step=3,
            stand=stand,
            certificate=shown,
            taken=taken.enrollment.taken_at is not None,
            enrollment=taken.enrollment.id,
            pem=f"{home}/certificate.pem?certificate={taken.enrollment.id}",
            cer=f"{home}/certificate.cer?certificate={taken.enrollment.id}",
            root=self._trust.root_path,
            platform=detect(request.headers.get("User-Agent", "")),
            kinds=KINDS,
            replace=f"{home}/replace" if stand.replaceable else None,
            another=f"{home}/another" if stand.units_left > 0 else None,
            taken_action=f"{home}/taken",
            **self._form_context(request, session),
            page={
                "kind": "take",
                "prefix": self._prefix(stand.invitation.number),
                "spki": taken.enrollment.spki_sha256.hex(),
                "others": {
                    other.enrollment.spki_sha256.hex(): f"{home}?certificate={other.enrollment.id}"
                    for other in stand.certificates
                    if other is not taken
                },
                "certificates": [b64encode(der).decode() for der in (taken.der, *chain)],
                "name": shown.label,
                "file": f"{shown.file_stem}.p12",
            },
        )
        return self._kept(session, response)

    # -- POST ------------------------------------------------------------------------------------------

    async def _issue(self, request: web.Request) -> web.StreamResponse:
        http.note(request, operation="issue")
        session, form = await self._submitted(request)
        replace = form.text("purpose") == "replace"
        origin = http.origin(request)
        if form.text("method") == "server":
            return await self._issue_with_server_key(request, session, form)
        csr = await self._services.run(read_csr, read_csr_field(form))
        answer = await self._services.run(self._enroll, session, csr, replace, origin)
        http.note(request, enrollment=answer.enrollment)
        response = self._kept(session, self._site.see(request[HOME]))
        if isinstance(answer, Pending):
            http.note(request, outcome="pending")
            return response
        return await http.delivered(response, request)

    def _enroll(
        self, session: WebSession, csr: CSR, replace: bool, origin: Origin  # noqa: FBT001
    ) -> Issued | Pending:
        """Enroll; the same key gets the same certificate, whatever has been spent meanwhile."""
        authenticator, ra = self._services.authenticator, self._services.ra
        entitlement = authenticator.entitle(session.credential)
        if not isinstance(entitlement.authority, Renewal):
            # A renewal PIN stands for a new certificate even for a key that has one.
            before = issued_before(self._services, session.number, csr.spki_sha256)
            if before is not None:
                return before
            rows = ra.of_invitation(session.number)
            if replace and not any(e.spki_sha256 == csr.spki_sha256 for e, _ in rows):
                entitlement = authenticator.replacement(session.credential)
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
        unsealed = self._services.keyring.unseal(_SEALED_PASSWORD, form.text("server-password"))
        owner, _, password = unsealed.decode().partition(" ")
        if owner != session.id:
            raise BadInput("the password belongs to another session: reload the page")
        file, name = await self._services.run(
            self._make_file,
            session,
            key_type,
            Secret(password),
            compatible=form.text("format") == "compatible",
            replace=form.text("purpose") == "replace",
            origin=http.origin(request),
        )
        response = self._site.file(file, server_file.CONTENT_TYPE, name)
        return await http.delivered(self._kept(session, response), request)

    def _make_file(  # noqa: PLR0913 - one call over the thread border
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
        answer = self._enroll(session, csr, replace, origin)
        if isinstance(answer, Pending):
            raise Conflict("a key made here cannot wait for approval")
        profile = self._services.ra.enrollment(answer.enrollment).profile
        shown = facts(answer.der)
        file = server_file.make_file(
            key,
            (answer.der, *self._services.ra.chain(profile)),
            name=shown.label,
            password=password,
            compatible=compatible,
        )
        return file, f"{shown.file_stem}.p12"

    async def _take(self, request: web.Request) -> web.Response:
        http.note(request, operation="taken")
        session, form = await self._submitted(request)
        stand = await self._services.run(standing, self._services, session)
        wanted = form.text("enrollment")
        if wanted not in {taken.enrollment.id for taken in stand.certificates}:
            raise NotFound("there is no such certificate in this registration")
        await self._services.run(
            self._services.ra.mark_taken,
            wanted,
            by=f"invitation {session.number}",
            origin=http.origin(request),
        )
        return self._kept(session, self._site.see(f"{request[HOME]}?certificate={wanted}"))

    async def _download(self, request: web.Request) -> web.Response:
        http.note(request, operation="download")
        session = await self._signed_in(request)
        stand = await self._services.run(standing, self._services, session)
        if not stand.certificates:
            raise NotFound("there is no certificate to take")
        taken = _chosen(request, stand)
        chain = self._services.ra.chain(taken.record.profile)
        ending = request.match_info["ending"]
        return self._kept(session, self._site.certificate_file((taken.der, *chain), ending))

    # -- shared ----------------------------------------------------------------------------------------

    async def _open(self, request: web.Request) -> Invitation:
        """Find the invitation of the URL and remember its language and page for what is rendered."""
        token = request.match_info["token"]
        invitation = await self._services.run(self._services.invitations.by_token, token)
        request[REGISTRATION_LANGUAGE] = invitation.language
        request[HOME] = f"/e/{token}"
        http.note(
            request, applicant=f"invitation {invitation.number}", profile=invitation.profile
        )
        return invitation

    async def _signed_in(self, request: web.Request) -> WebSession:
        """Return the session. Raises SessionEnded."""
        invitation = await self._open(request)
        session = self._sessions.find(request, invitation.number)
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

    def _form_context(self, request: web.Request, session: WebSession) -> dict[str, Any]:
        return {
            "csrf": self._sessions.csrf_token(session.id),
            "home": request[HOME],
            "idle_seconds": int(self._sessions.idle.total_seconds()),
        }

    def _prefix(self, number: str) -> str:
        """Name the keys of an invitation in the browser's store; the number is nobody's business."""
        return self._services.keyring.mac("web-keystore", number.encode()).hex()[:32] + "/"


def _chosen(request: web.Request, stand: Standing) -> Taken:
    wanted = request.query.get("certificate")
    return next((t for t in stand.certificates if t.enrollment.id == wanted), stand.certificates[0])


def _key_type(name: str, allowed: Sequence[KeyType]) -> KeyType:
    if name not in allowed or name == KeyType.ED25519:
        raise BadInput("the profile has no such key type")
    return KeyType(name)
