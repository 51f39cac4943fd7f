"""The ACME door: RFC 8555, RFC 8737, RFC 8738, RFC 9773, and the profiles extension.

Invariants:
- Nothing is done for a request before `gate` let it in; handlers see verified values only.
- Certificates come from `ra.enroll` and are revoked by `ra.revoke`, nowhere else.
- What an account may have is read from its registration at each request: cancelling an invitation
  stops the account at once.
- Every answer but the directory links to it; every answer to a POST carries one fresh nonce.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from estserver import http
from estserver.duties import Duty
from estserver.errors import BadCredentials, Error, Fault, NotFound
from estserver.http import BodyTooLarge, SlowBody, UnsupportedMediaType
from estserver.model import Origin
from estserver.protocols import Services
from estserver.protocols.acme import faults
from estserver.protocols.acme.accounts import Accounts
from estserver.protocols.acme.answers import Answer
from estserver.protocols.acme.attempts import Attempts
from estserver.protocols.acme.authorizations import Authorizations
from estserver.protocols.acme.failures import Failures
from estserver.protocols.acme.gate import Gate, Handler, Received, Signed, Signer
from estserver.protocols.acme.issued import IssuedCertificates
from estserver.protocols.acme.limits import OrderLimits
from estserver.protocols.acme.nonces import Nonces
from estserver.protocols.acme.orders import Orders
from estserver.protocols.acme.problems import CONTENT_TYPE, Problem, document, kind_and_status
from estserver.protocols.acme.renewals import Predecessors
from estserver.protocols.acme.terms import Terms
from estserver.protocols.acme.tidying import SECONDS, Tidying
from estserver.protocols.acme.urls import URLs
from estserver.protocols.acme.validation import Validator
from estserver.steps import Steps, apart

_JOSE = "application/jose+json"
_FAULT_RETRY_SECONDS = 60
_ALTERNATES = frozenset("123456789")
"""Numbers of further chains: one for each further root (RFC 8555 §7.4.2)."""
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Link, Location, Replay-Nonce, Retry-After",
}


@dataclass(frozen=True, slots=True)
class _Operation:
    """What a path stands for: `read` answers GET, `handle` answers POST signed by `signer`.

    `submit` answers the POST of a form, which nobody signs.
    """

    name: str
    handle: Handler | None
    read: Callable[[], Answer] | None = None
    signer: Signer = Signer.ACCOUNT
    submit: Callable[[Origin], Answer] | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that the path takes, OPTIONS aside."""
        reads = () if self.read is None else ("GET", "HEAD")
        posts = self.handle is not None or self.submit is not None
        return (*reads, "POST") if posts else reads


class ACMEProtocol:
    """The door as `EnrollmentProtocol` has it."""

    name = "acme"
    prefix = "/acme"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings.acme
        base = services.settings.acme_url
        if base is None:
            base = services.settings.listeners.web.url + self.prefix
        self._origin = base.removesuffix(self.prefix)
        self._urls = urls = URLs(base)
        self._nonces = Nonces(services.keyring, self._settings.nonce_lifetime)
        self._gate = Gate(services, urls, self._nonces)
        self._accounts = Accounts(services, urls)
        limits = OrderLimits(self._settings, services.clock)
        self._authorizations = Authorizations(services, urls, limits)
        self._terms = Terms(services, urls)
        self._failures = Failures(services.store, self._settings.pause_after)
        self._orders = Orders(
            services,
            urls,
            self._gate,
            self._authorizations,
            self._terms,
            limits=limits,
            failures=self._failures,
        )
        self._issued = IssuedCertificates(services, urls, self._authorizations)
        self._predecessors = Predecessors(services)
        validator = Validator(services.settings, services.clock)
        self._attempts = Attempts(services, urls, validator, self._failures)
        self._tidying = Tidying(services)
        self._single = self._singles()

    def application(self) -> web.Application:
        """Return one route: paths are told apart here, so that every refusal is a problem."""
        application = web.Application(middlewares=[http.observer(self.name, self._refuse)])
        application.router.add_route("*", "/{tail:.*}", self._answer)
        return application

    def background(self) -> Sequence[Coroutine[None, None, None]]:
        """Make attempts at challenges, and forget what is over."""
        services = self._services
        tidying = Duty("acme-tidying", SECONDS, lambda: services.run(self._tidying.tidy))
        report = Duty(
            "acme-paused", SECONDS, lambda: services.run(self._failures.report), alone=False
        )
        duties = (services.duties.perform(duty) for duty in (tidying, report))
        return (self._attempts.run_forever(), *duties)

    # -- from path to operation ------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        operation = self._operation(request)
        http.note(request, operation=operation.name)
        if request.method == "OPTIONS":
            return self._preflight(operation)
        if request.method not in operation.methods:
            return await self._not_allowed(request, ", ".join(operation.methods))
        if request.method == "POST" and operation.handle is not None:
            if faults.armed.delay:
                await asyncio.sleep(faults.armed.seconds())
            answer = await self._post(request, operation, operation.handle)
            if operation.name == "challenge":
                self._attempts.wake()
        elif request.method == "POST" and operation.submit is not None:
            answer = await self._services.run(operation.submit, http.origin(request))
        elif operation.name == "newNonce" and request.method == "HEAD":
            answer = Answer(content_type="")
        elif operation.read is not None:
            answer = await self._services.run(operation.read)
        else:
            raise Fault("a method without a handler was let in")
        return await self._send(request, operation, answer)

    def _operation(self, request: web.Request) -> _Operation:
        """Return what a path stands for. Raises NotFound."""
        segments = request.rel_url.path_safe.removeprefix(self.prefix).split("/")[1:]
        match segments:
            case [name] if (found := self._single.get(name)) is not None:
                return found
            case ["renewal-info", certificate]:
                return _Operation(
                    "renewalInfo", None, lambda: self._predecessors.information(certificate)
                )
            case ["terms", token]:
                return _Operation(
                    "terms",
                    None,
                    lambda: self._terms.show(token),
                    submit=lambda origin: self._terms.agree(token, origin),
                )
            case ["certificate", order, number] if number in _ALTERNATES:
                return _Operation(
                    "certificate", lambda signed: self._issued.show(signed, order, int(number))
                )
            case [kind, identifier, *rest] if identifier:
                handle = self._handler(kind, identifier, rest, request)
                if handle is not None:
                    return _Operation("-".join((kind, *rest)), handle)
        raise NotFound("there is nothing here: begin at the directory")

    def _singles(self) -> dict[str, _Operation]:
        directory, nothing = self._directory, Answer(status=204, content_type="")
        bare = Answer(content_type="")
        either = Signer.EITHER
        return {
            "directory": _Operation("directory", _apart(lambda _: directory()), directory, either),
            "new-nonce": _Operation("newNonce", _apart(lambda _: bare), lambda: nothing, either),
            "new-account": _Operation(
                "newAccount", _apart(self._accounts.create), signer=Signer.KEY
            ),
            "new-order": _Operation("newOrder", self._orders.create),
            "new-authz": _Operation("newAuthz", self._authorizations.create),
            "revoke-cert": _Operation("revokeCert", _apart(self._issued.revoke), signer=either),
            "key-change": _Operation("keyChange", _apart(self._accounts.change_key)),
        }

    def _handler(
        self, kind: str, identifier: str, rest: list[str], request: web.Request
    ) -> Handler | None:
        handlers: dict[tuple[str, ...], Handler] = {
            ("account",): _apart(lambda signed: self._accounts.change(signed, identifier)),
            ("account", "orders"): lambda signed: self._orders.listing(
                signed, identifier, request.query.get("cursor")
            ),
            ("order",): lambda signed: self._orders.show(signed, identifier),
            ("order", "finalize"): lambda signed: self._orders.finalize(signed, identifier),
            ("certificate",): lambda signed: self._issued.show(signed, identifier),
            ("authz",): lambda signed: self._authorizations.change(signed, identifier),
            ("challenge",): lambda signed: self._authorizations.respond(signed, identifier),
        }
        return handlers.get((kind, *rest))

    async def _post(self, request: web.Request, operation: _Operation, handle: Handler) -> Answer:
        media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type != _JOSE:
            raise UnsupportedMediaType(f"send Content-Type: {_JOSE} (RFC 8555 6.2)")
        body = await http.read_body(
            request,
            limit=self._settings.body_bytes,
            seconds=self._services.settings.limits.request_seconds,
        )
        received = Received(
            # The path as it was sent, undecoded: only the very same characters are the same URL.
            url=f"{self._origin}{request.raw_path}",
            body=body,
            accept=request.headers.get("Accept", ""),
            origin=http.origin(request),
        )

        def noted(signed: Signed) -> Steps[Answer]:
            if signed.account is not None:
                http.note(request, applicant=f"account {signed.account.id}")
            return handle(signed)

        return await self._services.walk(self._gate.answering(received, operation.signer, noted))

    # -- directory -------------------------------------------------------------------------------

    def _directory(self) -> Answer:
        """Say where everything is (RFC 8555 §7.1.1, RFC 9773 §4, profiles draft §3)."""
        settings = self._settings
        meta: dict[str, Any] = {"externalAccountRequired": settings.require_eab}
        if settings.terms_of_service is not None:
            meta["termsOfService"] = settings.terms_of_service
        if settings.website is not None:
            meta["website"] = settings.website
        if settings.caa_identities:
            meta["caaIdentities"] = list(settings.caa_identities)
        meta["profiles"] = {
            name: profile.settings.title
            for name, profile in sorted(self._services.profiles.items())
            if "acme" in profile.settings.doors and not name.startswith("_")
        }
        urls = self._urls
        return Answer(
            {
                "newNonce": urls("new-nonce"),
                "newAccount": urls("new-account"),
                "newOrder": urls("new-order"),
                "newAuthz": urls("new-authz"),
                "revokeCert": urls("revoke-cert"),
                "keyChange": urls("key-change"),
                "renewalInfo": urls("renewal-info"),
                "meta": meta,
            }
        )

    # -- answering -------------------------------------------------------------------------------

    async def _send(
        self, request: web.Request, operation: _Operation, answer: Answer
    ) -> web.StreamResponse:
        headers = dict(_CORS)
        if answer.location is not None:
            headers["Location"] = answer.location
        if answer.retry_after is not None:
            headers["Retry-After"] = str(answer.retry_after)
        content = answer.content
        if answer.body is not None:
            content = _json(answer.body)
        if answer.content_type:
            headers["Content-Type"] = answer.content_type
        response = web.Response(status=answer.status, body=content, headers=headers)
        index = operation.name != "directory"
        # Caches may keep renewal information, and nothing else (RFC 9773 §6).
        fresh = request.method == "POST" or operation.name == "newNonce"
        self._finish(response, answer.links, index=index, nonce=fresh)
        if answer.enrollment is not None:
            http.note(request, enrollment=answer.enrollment)
        if answer.carries_certificate:
            return await http.delivered(response, request)
        return response

    def _finish(
        self,
        response: web.Response,
        links: Sequence[tuple[str, str]],
        *,
        index: bool = True,
        nonce: bool = True,
    ) -> None:
        """Add what answers have in common (RFC 8555 §6.5, §7.1)."""
        response.headers["Cache-Control"] = "no-store" if nonce else "public, max-age=0"
        if nonce:
            response.headers["Replay-Nonce"] = self._nonces.make(self._services.clock.now())
        shown = [("index", self._urls("directory"))] if index else []
        for rel, url in (*shown, *links):
            # One header for each, and quoted, as the clients' patterns want it.
            response.headers.add("Link", f'<{url}>;rel="{rel}"')

    async def _refuse(self, request: web.Request, error: Error) -> web.Response:
        """Render an error as a problem document (RFC 8555 §6.7, RFC 9457)."""
        if isinstance(error, BadCredentials):
            http.note(request, error=error.reason)
        _, status = kind_and_status(error)
        headers = {**_CORS, "Content-Type": CONTENT_TYPE, "Content-Language": "en"}
        seconds = http.retry_after_seconds(error)
        if seconds is None and isinstance(error, Fault):
            seconds = str(_FAULT_RETRY_SECONDS)
        if seconds is not None:
            headers["Retry-After"] = seconds
        links: tuple[tuple[str, str], ...] = ()
        if isinstance(error, Problem):
            links = error.links
            if error.location is not None:
                headers["Location"] = error.location
        body = _json(document(error, request[http.REFERENCE]))
        response = web.Response(status=status, body=body, headers=headers)
        self._finish(response, links)
        if isinstance(error, BodyTooLarge | SlowBody):
            # What is left of the body will not be read: the connection is of no more use.
            response.force_close()
        return response

    async def _not_allowed(self, request: web.Request, methods: str) -> web.Response:
        problem = Problem("malformed", f"this resource takes {methods}", status=405)
        response = await self._refuse(request, problem)
        response.headers["Allow"] = methods
        return response

    def _preflight(self, operation: _Operation) -> web.Response:
        """Let scripts in browsers in (RFC 8555 §6.1)."""
        headers = {
            **_CORS,
            "Access-Control-Allow-Methods": ", ".join(operation.methods),
            "Access-Control-Allow-Headers": "Content-Type",
            "Access-Control-Max-Age": "86400",
        }
        return web.Response(status=204, headers=headers)


def _apart(handle: Callable[[Signed], Answer]) -> Handler:
    """Answer what is seldom asked on the thread pool, where it may block."""
    return lambda signed: apart(partial(handle, signed))


def _json(value: object) -> bytes:
    # Compact: acme.sh looks for "status":"valid" without a blank.
    return json.dumps(value, separators=(",", ":")).encode()
