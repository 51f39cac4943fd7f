"""Web sessions: a cookie that says which PIN was confirmed here; the server stores nothing of it.

The cookie is sealed with a key derived from the master secret. What it says is never enough: each
request asks the authenticator again whether the invitation and this generation of its PIN live.
"""

import hmac
import json
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass, replace
from datetime import timedelta

from aiohttp import web

from estserver.authentication import ConfirmedPIN
from estserver.errors import BadInput, CredentialsRequired
from estserver.keyring import Keyring
from estserver.model import Clock, Invitation

_SEALED_FOR = "web-session"
_LONGEST = timedelta(hours=12)
"""A session that is kept alive, by a page waiting for approval perhaps, still ends."""


class SessionEnded(CredentialsRequired):
    """There is no session, or it has ended: the PIN must be entered (again)."""

    code = "session-ended"


class ForgedRequest(CredentialsRequired):
    """The request did not come from a page of ours."""

    code = "forged-request"


@dataclass(frozen=True, slots=True)
class WebSession:
    """One browser in which one PIN was confirmed. `id` is random and never leaves the cookie."""

    id: str
    number: str
    pin_generation: int
    begun: int
    seen: int

    @property
    def credential(self) -> ConfirmedPIN:
        """What the authenticator takes for it."""
        return ConfirmedPIN(self.number, self.pin_generation)


class Sessions:
    """Begins, finds and keeps web sessions.

    One cookie for each invitation, so that two links in two tabs do not disturb each other.
    """

    def __init__(self, keyring: Keyring, clock: Clock, idle: timedelta) -> None:
        self._keyring = keyring
        self._clock = clock
        self.idle = idle

    def begin(self, invitation: Invitation) -> WebSession:
        """Make the session of a browser that has just confirmed the PIN."""
        now = self._now()
        return WebSession(
            secrets.token_hex(16), invitation.number, invitation.pin_generation, now, now
        )

    def find(self, request: web.Request, number: str) -> WebSession | None:
        """Return the session that the request's cookie proves for an invitation, if it lives."""
        sealed = request.cookies.get(self._cookie(number))
        if sealed is None:
            return None
        try:
            facts = json.loads(self._keyring.unseal(_SEALED_FOR, sealed))
        except BadInput:
            # An old cookie after the master secret changed is no crime: the PIN opens a new one.
            return None
        if facts.keys() != set(WebSession.__slots__):
            # Sealed by another version of this program.
            return None
        session = WebSession(**facts)
        now = self._now()
        fresh = now - session.seen <= self.idle.total_seconds()
        young = now - session.begun <= _LONGEST.total_seconds()
        return session if session.number == number and fresh and young else None

    def keep(self, response: web.StreamResponse, session: WebSession) -> None:
        """Set the cookie, with the idle time beginning anew."""
        seen = replace(session, seen=self._now())
        facts = {name: getattr(seen, name) for name in WebSession.__slots__}
        response.set_cookie(
            self._cookie(session.number),
            self._keyring.seal(_SEALED_FOR, json.dumps(facts).encode()),
            max_age=int(self.idle.total_seconds()),
            path="/",
            secure=True,
            httponly=True,
            # Strict would lose the session of whoever opens the link again from web mail.
            samesite="Lax",
        )

    def csrf_token(self, secret: str) -> str:
        """Return the token that proves a form is ours; `secret` is what only our page can know."""
        return (
            urlsafe_b64encode(self._keyring.mac("web-csrf", secret.encode())).decode().rstrip("=")
        )

    def check_csrf_token(self, token: str, secret: str) -> None:
        """Raise ForgedRequest unless the token is that of `secret`."""
        if not hmac.compare_digest(token.encode(), self.csrf_token(secret).encode()):
            raise ForgedRequest("this form does not belong to your session: reload the page")

    def _cookie(self, number: str) -> str:
        return "__Host-enroll-" + self._keyring.mac("web-cookie", number.encode()).hex()[:12]

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


def check_origin(request: web.Request, own: str) -> None:
    """Raise ForgedRequest unless a browser says that a page of ours sent this POST.

    `own`: the listener's public base URL. Our pages say `Referrer-Policy: no-referrer`, with which
    browsers send `Origin: null` on forms (Fetch, "append a request Origin header"): then
    Sec-Fetch-Site decides, and where that is missing the form's token alone.
    """
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if len(request.headers.getall("Origin", [])) > 1:
        raise ForgedRequest("the request names more than one origin")
    if site is None and origin is None:
        raise ForgedRequest("the request does not say which page sent it")
    if site is not None and site != "same-origin":
        raise ForgedRequest("the request was sent by another site")
    if origin is not None and origin != "null":
        host = request.headers.get("Host", "")
        if origin.lower() not in {own.lower(), f"https://{host}".lower()}:
            raise ForgedRequest("the request was sent by another site")
