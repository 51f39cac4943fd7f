"""The EST door: Enrollment over Secure Transport (RFC 7030, RFC 8951, RFC 9908).

Invariants:
- Nothing is remembered between requests: identity, time and revocation are judged each time, on
  resumed TLS sessions and kept connections too.
- Credentials that are there are judged: a wrong PIN is refused even beside a good certificate.
- cacerts and csrattrs neither ask for credentials nor count them.
- A label is a profile's name; profiles whose name begins with `_` are not to be seen from here.
"""

import base64
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from aiohttp import web
from cryptography import x509

from estserver import http
from estserver.authentication import CertificateCredential, PINCredential, loosely
from estserver.csr import CSR, Form, form_of, read_csr, read_names_only, reads_quickly
from estserver.errors import (
    BadCredentials,
    BadCSR,
    CredentialsRequired,
    Error,
    Fault,
    NotEntitled,
    NotFound,
    Refused,
)
from estserver.http import UnsupportedMediaType
from estserver.model import Entitlement, Grant, Issued, Origin, Pending, Renewal, Secret, Via
from estserver.profiles import Profile
from estserver.protocols import Services, est_answers
from estserver.protocols.encoding import certs_only
from estserver.protocols.est_answers import RENDER
from estserver.protocols.est_attributes import announce
from estserver.protocols.est_keygen import check_request, key_and_certificate, make_key
from estserver.protocols.est_linking import NONE, Channel, channel_of, verify_linking
from estserver.protocols.est_names import change_names
from estserver.ra import EnrollmentRequest
from estserver.renewal_information import ASK_AGAIN_SECONDS, RenewalInformation, as_json
from estserver.steps import Steps, apart

__all__ = ["RENDER", "ESTProtocol"]

log = structlog.get_logger("estserver.est")

_PKCS10 = "application/pkcs10"
_READ = ("GET", "HEAD")
_WRITE = ("POST",)

Handler = Callable[[web.Request, str | None], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a request shows of who is asking, not yet judged."""

    pin: PINCredential | None
    certificate: CertificateCredential | None


_NOTHING = _Shown(None, None)
Judge = Callable[[str | None, _Shown], Steps[Entitlement]]


class ESTProtocol:
    """EST at `/.well-known/est/OP` and `/.well-known/est/LABEL/OP`."""

    name = "est"
    prefix = "/.well-known/est"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings.est
        self._operations: dict[str, tuple[tuple[str, ...], Handler]] = {
            "cacerts": (_READ, self._cacerts),
            "csrattrs": (_READ, self._csrattrs),
            "simpleenroll": (_WRITE, self._simpleenroll),
            "simplereenroll": (_WRITE, self._simplereenroll),
            "renewal-info": (_READ, self._renewal_information),
        }
        self._information = RenewalInformation(services.store, services.clock, services.chains)
        if self._settings.serverkeygen:
            self._operations["serverkeygen"] = (_WRITE, self._serverkeygen)

    def application(self) -> web.Application:
        """Return one route for all paths: what is not EST is answered here, never redirected."""
        application = web.Application(
            middlewares=[http.observer(self.name, self._refuse, self._services.record_refusal)]
        )
        application.router.add_route("*", self.prefix + r"{rest:[\s\S]*}", self._answer)
        return application

    def background(self) -> Sequence[Coroutine[None, None, None]]:
        """EST has nothing to do unasked."""
        return ()

    # -- from path to operation ------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        label, name = self._target(request)
        http.note(request, operation=name, label=label or "")
        methods, handler = self._operations[name]
        if request.method not in methods:
            return est_answers.method_not_allowed(methods)
        return await handler(request, label)

    def _target(self, request: web.Request) -> tuple[str | None, str]:
        """Return label and operation. Raises NotFound. RFC 7030 §3.2.2."""
        # Percent-decoded but for %2F: an encoded slash never separates segments.
        path = request.rel_url.path_safe.removeprefix(self.prefix)
        match path.split("/"):
            case ["", "renewal-info" as name, _]:
                label = None
            case ["", label, "renewal-info" as name, _] if self._is_label(label):
                pass
            case ["", name] if name != "renewal-info":
                label = None
            case ["", label, name] if self._is_label(label) and name != "renewal-info":
                pass
            case _:
                raise NotFound("no such label")
        if name not in self._operations:
            raise NotFound("no such operation")
        return label, name

    def _is_label(self, name: str) -> bool:
        return name in self._services.profiles and name[0] != "_"

    async def _refuse(self, request: web.Request, error: Error) -> web.StreamResponse:
        if isinstance(error, BadCredentials):
            http.note(request, error=error.reason)
        seconds = int(self._settings.retry_after.total_seconds())
        return est_answers.refusal(
            request, error, realm=self._settings.realm, retry_after=str(max(1, seconds))
        )

    # -- for everybody ---------------------------------------------------------------------------

    async def _cacerts(self, request: web.Request, label: str | None) -> web.StreamResponse:
        """Distribute the CA certificates of a label: issuing CA up to the root (§4.1).

        While another issuer takes over, those of both and the links between their roots (§4.1.3).
        """
        profile, _ = await self._addressed(request, label)
        bag = self._services.chains.bag(profile.settings.issuer)
        # Bare: older Bouncy Castle refuses a parameter here.
        return est_answers.base64(request, certs_only(bag), "application/pkcs7-mime")

    async def _csrattrs(self, request: web.Request, label: str | None) -> web.StreamResponse:
        """Say what a CSR should hold; to a known applicant, for their very registration (§4.5)."""
        profile, entitlement = await self._addressed(request, label)
        grant = None if entitlement is None else entitlement.grant
        return est_answers.base64(request, announce(profile, grant), "application/csrattrs")

    async def _renewal_information(
        self, request: web.Request, label: str | None
    ) -> web.StreamResponse:
        """Say when to renew a certificate, to anybody, as ACME does (RFC 9773 §4.2)."""
        identifier = request.rel_url.path_safe.rpartition("/")[2]
        record = await self._services.run(self._information.find, identifier)
        if label not in (None, record.profile):
            raise NotFound("there is no such certificate")
        window = await self._services.run(self._information.window_of, record)
        return est_answers.json(as_json(window), retry_after=ASK_AGAIN_SECONDS)

    async def _addressed(
        self, request: web.Request, label: str | None
    ) -> tuple[Profile, Entitlement | None]:
        """Return the profile a GET is about, and the entitlement if good credentials came along.

        Azure's and other clients send the PIN with every request: here a wrong one is no failure
        and a right one is no use (EST-065). Nobody guesses 65 bits faster for not being counted.
        """
        profiles = self._services.profiles
        anonymous = profiles[label or self._settings.default_profile]
        try:
            shown = _shown(request)
            if shown == _NOTHING:
                return anonymous, None
            entitlement = await self._services.walk(self._recognize(label, shown))
        except Refused:
            return anonymous, None
        http.note(request, profile=entitlement.profile, applicant=str(entitlement.applicant))
        return profiles[entitlement.profile], entitlement

    def _recognize(self, label: str | None, shown: _Shown) -> Steps[Entitlement]:
        authenticator = self._services.authenticator
        if shown.pin is not None:
            return (yield from authenticator.entitling(shown.pin, label, counted=False))
        if shown.certificate is not None:
            return (yield from authenticator.renewing(shown.certificate, profile=label))
        raise _ask_for_pin()

    # -- enrollment ------------------------------------------------------------------------------

    async def _simpleenroll(self, request: web.Request, label: str | None) -> web.StreamResponse:
        """Enroll with a PIN, or with the applicant's own certificate (§4.2.1)."""
        return await self._enroll(request, label, self._entitle_to_enroll)

    async def _simplereenroll(self, request: web.Request, label: str | None) -> web.StreamResponse:
        """Renew or rekey the certificate that the TLS client shows (§4.2.2)."""
        return await self._enroll(request, label, self._entitle_to_renew)

    def _entitle_to_enroll(self, label: str | None, shown: _Shown) -> Steps[Entitlement]:
        """Judge who asks for a certificate.

        A certificate of the applicant alone is enough, since "a server MUST NOT assume client
        support for HTTP-based authentication"; it gives what its renewal would, so names cannot
        change on the way, but a CSR may leave them out.
        Raises CredentialsRequired and what `Authenticator` raises.
        """
        authenticator = self._services.authenticator
        if shown.pin is not None:
            return (yield from authenticator.entitling(shown.pin, label))
        if shown.certificate is not None:
            renewal = yield from authenticator.renewing(shown.certificate, profile=label)
            return loosely(renewal)
        raise _ask_for_pin()

    def _entitle_to_renew(self, label: str | None, shown: _Shown) -> Steps[Entitlement]:
        """Judge who renews: the TLS client certificate is the one being renewed (§3.3.2).

        Raises NotEntitled and what `Authenticator` raises.
        """
        authenticator = self._services.authenticator
        if shown.certificate is None:
            raise NotEntitled(
                "re-enroll needs the certificate being renewed: present it in the TLS handshake; "
                "if it is lost or expired, ask for a new PIN and use simpleenroll"
            )
        entitlement = yield from authenticator.renewing(
            shown.certificate, profile=label, pin=shown.pin
        )
        authority = entitlement.authority
        if shown.pin is not None and isinstance(authority, Renewal) and not authority.spends_pin:
            # The PIN is not needed, but a credential that is shown must be right (EST-057).
            invitation = yield from authenticator.finding_invitation(shown.pin)
            if invitation.number != authority.invitation:
                raise NotEntitled("the PIN belongs to another registration than the certificate")
        return entitlement

    async def _enroll(
        self, request: web.Request, label: str | None, judge: Judge
    ) -> web.StreamResponse:
        body = await self._read(request)
        judging = judge(label, _shown(request))
        answer, proof = await self._services.walk(
            self._enrolling(request, body, judging, channel_of(request))
        )
        http.note(request, enrollment=answer.enrollment, proof=proof)
        if isinstance(answer, Pending):
            return est_answers.pending(answer)
        _note_serial(request, answer)
        response = est_answers.base64(request, certs_only([answer.der]), est_answers.CERTIFICATES)
        return await http.delivered(response, request)

    async def _read(self, request: web.Request) -> bytes:
        """Read the body. Raises BodyTooLarge, SlowBody, UnsupportedMediaType."""
        limits = self._services.settings.limits
        return await http.read_body(
            request, limit=limits.body_bytes, seconds=limits.request_seconds
        )

    def _admit(
        self, request: web.Request, body: bytes, judging: Steps[Entitlement]
    ) -> Steps[Entitlement]:
        """Say who asks; the body is looked into only for those who may ask.

        Raises UnsupportedMediaType, BadCSR, and what `judging` raises.
        """
        entitlement = yield from judging
        http.note(request, profile=entitlement.profile, applicant=str(entitlement.applicant))
        _check_content_type(request)
        self._check_form(request, body)
        return entitlement

    def _check_form(self, request: web.Request, body: bytes) -> None:
        """Take PEM and DER only where the settings do. Raises BadCSR. RFC 8951 §3."""
        form = form_of(body)
        if form is Form.BASE64:
            return
        if not self._settings.pem:
            raise BadCSR(f"the body is not base64 of DER but {form.value.upper()}")
        log.info("csr.tolerated", request_id=request[http.REFERENCE], error=f"sent as {form.value}")

    def _enrolling(
        self, request: web.Request, body: bytes, judging: Steps[Entitlement], channel: Channel
    ) -> Steps[tuple[Issued | Pending, str]]:
        """Turn a request body into a certificate; return it and the proof."""
        entitlement = yield from self._admit(request, body, judging)
        if reads_quickly(body):
            csr = read_csr(body)
        else:
            csr = yield from apart(partial(read_csr, body))
        profile = self._services.profiles[entitlement.profile]
        proof = verify_linking(csr, channel, profile.settings.pop_linking)
        if csr.change_subject is not None:
            csr, entitlement = change_names(
                csr,
                entitlement,
                profile=profile,
                registered=(yield from self._registered(entitlement, profile)),
                now=self._services.clock.now(),
            )
        answer = yield from self._ask(csr, entitlement, http.origin(request), proof)
        return answer, proof

    def _ask(
        self, csr: CSR, entitlement: Entitlement, origin: Origin, proof: str
    ) -> Steps[Issued | Pending]:
        via = Via.RENEWAL if isinstance(entitlement.authority, Renewal) else Via.EST
        return self._services.ra.enrolling(EnrollmentRequest(entitlement, csr, via, origin, proof))

    def _registered(self, entitlement: Entitlement, profile: Profile) -> Steps[Grant | None]:
        """Return what the registration behind a renewal grants today, None if there is none."""
        authority = entitlement.authority
        if not isinstance(authority, Renewal) or authority.invitation is None:
            return None
        invitation = yield from self._services.invitations.getting(authority.invitation)
        return profile.grant(invitation)

    # -- keys made here --------------------------------------------------------------------------

    async def _serverkeygen(self, request: web.Request, label: str | None) -> web.StreamResponse:
        """Make a key for the applicant and enroll it; the answer is its only copy (§4.4)."""
        body = await self._read(request)
        judging = self._entitle_to_enroll(label, _shown(request))
        issued, key = await self._services.walk(
            self._enrolling_with_key(request, body, judging, channel_of(request))
        )
        http.note(request, enrollment=issued.enrollment)
        _note_serial(request, issued)
        content_type, parts = key_and_certificate(key, certs_only([issued.der]))
        return await http.delivered(est_answers.multipart(content_type, parts), request)

    def _enrolling_with_key(
        self, request: web.Request, body: bytes, judging: Steps[Entitlement], channel: Channel
    ) -> Steps[tuple[Issued, bytes]]:
        """Make a key, send its CSR down the common street; return certificate and PKCS#8 DER."""
        entitlement = yield from self._admit(request, body, judging)
        if not entitlement.approved:
            raise NotEntitled(
                "an officer must approve this enrollment, and a server-made key cannot wait: "
                "make the key yourself and use simpleenroll"
            )
        asked = read_names_only(body)
        check_request(asked)
        settings = self._services.profiles[entitlement.profile].settings
        # The client proves no possession, so linking is not required; what is there must be right.
        verify_linking(asked, channel, "off" if settings.pop_linking == "off" else "optional")
        csr, key = yield from apart(partial(make_key, asked, settings.keys[0]))
        answer = yield from self._ask(csr, entitlement, http.origin(request), NONE)
        if isinstance(answer, Pending):
            raise Fault("an approved enrollment with a server-made key is pending")
        return answer, key


def _ask_for_pin() -> CredentialsRequired:
    return CredentialsRequired("send the invitation number and the PIN as HTTP Basic")


def _shown(request: web.Request) -> _Shown:
    """Return the credentials of a request. Raises BadCredentials: Authorization is malformed."""
    certificate = http.peer_certificate(request)
    return _Shown(
        pin=_pin(request),
        certificate=None if certificate is None else CertificateCredential(certificate),
    )


def _pin(request: web.Request) -> PINCredential | None:
    """Read HTTP Basic: invitation number, which may be empty, and PIN (RFC 7030 §3.2.3).

    Octets that are no UTF-8 are taken for Latin-1, which some clients send (RFC 7617 §2.1).
    Raises BadCredentials: another scheme, no base64, no colon, more than one header.
    """
    values = request.headers.getall("Authorization", [])
    if not values:
        return None
    scheme, _, encoded = values[0].strip().partition(" ")
    if len(values) > 1 or scheme.lower() != "basic":
        raise BadCredentials("only one HTTP Basic credential is taken", reason="scheme")
    try:
        octets = base64.b64decode(encoded.strip(), validate=True)
    except ValueError as error:  # of which binascii.Error is one
        raise BadCredentials("the Basic credential is not base64", reason="malformed") from error
    try:
        decoded = octets.decode("utf-8")
    except UnicodeDecodeError:
        decoded = octets.decode("latin-1")
    number, colon, typed = decoded.partition(":")
    if not colon:
        raise BadCredentials("the Basic credential has no colon", reason="malformed")
    return PINCredential(number, Secret(typed), http.source(request))


def _check_content_type(request: web.Request) -> None:
    """Take application/pkcs10 in any case with any parameters, or no Content-Type at all.

    Raises UnsupportedMediaType. RFC 9110 §8.3, EST-072, EST-073.
    """
    value = request.headers.get("Content-Type", "")
    media_type = value.partition(";")[0].strip().lower()
    if not media_type:
        log.warning(
            "csr.tolerated", request_id=request[http.REFERENCE], error="without Content-Type"
        )
    elif media_type != _PKCS10:
        raise UnsupportedMediaType(f"send the CSR with Content-Type: {_PKCS10}")


def _note_serial(request: web.Request, issued: Issued) -> None:
    serial = x509.load_der_x509_certificate(issued.der).serial_number
    http.note(request, serial=f"{serial:x}")
