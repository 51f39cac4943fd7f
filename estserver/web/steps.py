"""The pages of the three steps: what each shows of a registration, what its scripts are told."""

from base64 import b64encode
from typing import Any, Literal

from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estserver.errors import BadCredentials, BadInput, TooManyAttempts
from estserver.invitations import FREE_TRIES
from estserver.keyring import Keyring
from estserver.model import Enrollment, EnrollmentState, Invitation, KeyType, Language, Secret
from estserver.names import format_general_name
from estserver.web import server_file
from estserver.web.pages import HOME, Site
from estserver.web.platforms import KINDS, detect
from estserver.web.sessions import Sessions, WebSession
from estserver.web.standing import Standing, Taken, facts

Purpose = Literal["new", "replace", "renew"]
_SEALED_PASSWORD = "web-file-password"  # noqa: S105 - the purpose of a key, not a password
_HINT_AFTER = 3
"""Wrong PINs after which the page says how many tries are left."""
_POLL_SECONDS = 5
_REFRESH_SECONDS = 30


class StepPages:
    """Renders the steps and keeps the session of whoever they are shown to."""

    def __init__(self, site: Site, sessions: Sessions, root: str) -> None:
        """`root`: where the root certificate is downloaded, without the ending."""
        self._site = site
        self._services = site.services
        self._sessions = sessions
        self._root = root

    def ask_pin(
        self,
        request: web.Request,
        invitation: Invitation,
        *,
        error: BadCredentials | TooManyAttempts | None = None,
        confirmed: bool = False,
    ) -> web.Response:
        """STEP1, with what was wrong with the last try."""
        context: dict[str, Any] = {
            "step": 1,
            "confirmed": confirmed,
            "tries": None,
            "page": {"kind": "pin"},
        }
        if error is None:
            return self._site.page(request, "step1.html", **context)
        if invitation.pin_failures >= _HINT_AFTER:
            context["tries"] = FREE_TRIES - invitation.pin_failures
        return self._site.error(request, error, "step1.html", **context)

    def issue(
        self, request: web.Request, session: WebSession, stand: Standing, purpose: Purpose
    ) -> web.Response:
        """STEP2: exactly what will be certified, and how the key is made."""
        invitation = stand.invitation
        profile = self._services.profiles[invitation.profile]
        grant = profile.grant(invitation)
        issuer = self._services.chains[profile.settings.issuer][0]
        replaced = stand.renews if purpose == "renew" else None
        if purpose == "replace":
            replaced = stand.certificates[0]
        password = server_file.generate_password()
        now = self._services.clock.now()
        return self._show(
            request,
            session,
            "step2.html",
            step=2,
            purpose=purpose,
            stand=stand,
            profile=profile,
            subject=[
                ("" if a.oid == NameOID.COMMON_NAME else a.rfc4514_attribute_name, a.value)
                for a in grant.subject
            ],
            names=[name.split(":", 1) for name in sorted(map(format_general_name, grant.names))],
            issuer=facts(issuer.public_bytes(Encoding.DER)),
            until=min(now + profile.settings.validity, issuer.not_valid_after_utc),
            replaced=None if replaced is None else facts(replaced.der),
            key_types=[key.value for key in profile.settings.keys if key is not KeyType.ED25519],
            server_key=profile.settings.server_key and not invitation.approval,
            server_password=password.reveal(),
            sealed_password=seal_password(self._services.keyring, session, password),
            page={
                "kind": "issue",
                "action": f"{request[HOME]}/issue",
                # Every enrollment has a key of its own; a repeated one finds the key of the first.
                "key": f"{self._prefix(invitation)}{stand.attempts}",
            },
        )

    def waiting(
        self, request: web.Request, session: WebSession, stand: Standing, waiting: Enrollment
    ) -> web.Response:
        """STEP2 after Issue: who must approve, and that the key waits in the browser."""
        return self._show(
            request,
            session,
            "waiting.html",
            step=2,
            organization=self._organization(request, stand.invitation),
            undecided=waiting.state is EnrollmentState.PENDING,
            refresh=_REFRESH_SECONDS,
            page={
                "kind": "wait",
                "state": waiting.state.value,
                "home": request[HOME],
                "action": f"{request[HOME]}/issue",
                "spki": waiting.spki_sha256.hex(),
                "prefix": self._prefix(stand.invitation),
                "seconds": _POLL_SECONDS,
            },
        )

    def take(
        self, request: web.Request, session: WebSession, stand: Standing, taken: Taken
    ) -> web.Response:
        """STEP3: the file, the facts to compare, how to import it."""
        home = request[HOME]
        identifier = taken.enrollment.id
        return self._show(
            request,
            session,
            "step3.html",
            step=3,
            stand=stand,
            pem=f"{home}/certificate.pem?certificate={identifier}",
            cer=f"{home}/certificate.cer?certificate={identifier}",
            root=self._root,
            replace=f"{home}/replace" if stand.replaceable else None,
            another=f"{home}/another" if stand.units_left > 0 else None,
            revoke=f"{home}/revoke?certificate={identifier}",
            taken_action=f"{home}/taken",
            **take_context(taken),
            page=take_page(
                self._site, taken, stand.certificates, self._prefix(stand.invitation), home
            ),
        )

    def renew_elsewhere(
        self, request: web.Request, session: WebSession, stand: Standing
    ) -> web.Response:
        """Send whoever needs certificate and PIN to the listener that asks for the certificate."""
        return self._show(request, session, "renew_elsewhere.html", step=2, stand=stand)

    def ended(self, request: web.Request, session: WebSession, stand: Standing) -> web.Response:
        """Show that the certificate is revoked or expired and nothing is left to issue."""
        return self._show(request, session, "ended.html", step=3, ended=stand.ended)

    def _show(
        self, request: web.Request, session: WebSession, template: str, **context: Any
    ) -> web.Response:
        response = self._site.page(
            request,
            template,
            csrf=self._sessions.csrf_token(session.id),
            home=request[HOME],
            idle_seconds=int(self._sessions.idle.total_seconds()),
            platform=detect(request.headers.get("User-Agent", "")),
            **context,
        )
        self._sessions.keep(response, session)
        return response

    def _organization(self, request: web.Request, invitation: Invitation) -> str:
        branding = self._services.settings.branding
        own = invitation.organization in ("", branding.organization)
        if own and self._site.language(request) is Language.JA:
            return branding.organization_ja.replace("\n", " ")
        return invitation.organization or branding.organization

    def _prefix(self, invitation: Invitation) -> str:
        """Name the keys of an invitation in the browser's store, without telling its number."""
        return key_prefix(self._services.keyring, f"invitation {invitation.number}")


def take_context(taken: Taken) -> dict[str, Any]:
    """Return what STEP3 of an enrollment and of a renewal both show."""
    return {
        "certificate": facts(taken.der),
        "taken": taken.enrollment.taken_at is not None,
        "enrollment": taken.enrollment.id,
        "kinds": KINDS,
    }


def take_page(
    site: Site, taken: Taken, all_taken: tuple[Taken, ...], prefix: str, home: str
) -> dict[str, Any]:
    """Return what take.js needs to build the file, or to find the page for the key it has."""
    shown = facts(taken.der)
    chain = site.services.chains.in_file(taken.record.issuer)
    return {
        "kind": "take",
        "prefix": prefix,
        "spki": taken.enrollment.spki_sha256.hex(),
        "others": {
            other.enrollment.spki_sha256.hex(): f"{home}?certificate={other.enrollment.id}"
            for other in all_taken
            if other is not taken
        },
        "certificates": [b64encode(der).decode() for der in (taken.der, *chain)],
        "name": shown.label,
        "file": f"{shown.file_stem}.p12",
    }


def key_prefix(keyring: Keyring, owner: str) -> str:
    """Name the records of one owner in the browser's key store: opaque, and the same for ever."""
    return keyring.mac("web-keystore", owner.encode()).hex()[:32] + "/"


def seal_password(keyring: Keyring, session: WebSession, password: Secret) -> str:
    """Put a file password into a form so that only this session can send it back, unchanged."""
    return keyring.seal(_SEALED_PASSWORD, f"{session.id} {password.reveal()}".encode())


def unseal_password(keyring: Keyring, session: WebSession, sealed: str) -> Secret:
    """Undo `seal_password`. Raises BadInput: not sealed by us for this session."""
    owner, _, password = keyring.unseal(_SEALED_PASSWORD, sealed).decode().partition(" ")
    if owner != session.id:
        raise BadInput("the password belongs to another session: reload the page")
    return Secret(password)
