"""The status door: CRLs, OCSP and CA certificates over plain HTTP, where relying parties look.

Everything here is public and signed, so nothing is asked of a client and nothing needs TLS.
RFC 5280 §4.2.1.13 and §4.2.2.1, RFC 6960 Appendix A, RFC 5019 §5 and §6.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Coroutine, Mapping, Sequence
from functools import lru_cache
from urllib.parse import unquote

from aiohttp import web
from aiohttp.typedefs import Handler
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import http
from estserver.ca import ocsp
from estserver.errors import BadInput, Error, Fault, NotFound, Refused, Unavailable
from estserver.protocols import Services
from estserver.protocols.encoding import certs_only
from estserver.protocols.status_documents import Document, Packer, respond
from estserver.status import CRL, OCSPAnswer

RENDER: Mapping[type[Error], int] = {
    Refused: 400,
    NotFound: 404,
    http.SlowBody: 408,
    http.BodyTooLarge: 413,
    http.UnsupportedMediaType: 415,
    Fault: 500,
    Unavailable: 503,
}
"""HTTP status of each error, by its nearest class; the body is the error's sentence."""

_CRL = "application/pkix-crl"
_CERTIFICATE = "application/pkix-cert"
_CERTIFICATES = "application/pkcs7-mime; smime-type=certs-only"
_REQUEST = "application/ocsp-request"
_RESPONSE = "application/ocsp-response"
_BRIEFLY = "public, max-age=5, must-revalidate, no-transform"
"""A revocation must get through caches in seconds; a revalidated CRL costs 304 and no body."""
_UNCACHED = {"Content-Type": _RESPONSE, "Cache-Control": "no-store"}
_DAILY = "public, max-age=86400, no-transform"
_WHERE = "look for /crl/ISSUER.crl, /ca/ISSUER.cer or /ocsp"


class StatusProtocol:
    """`/crl/ISSUER.crl`, `/ca/ISSUER.cer`, `/ca/ISSUER-root.cer`, `/ca/ISSUER.p7c`, `/ocsp`.

    `/crl/ISSUER/PROFILE.crl` where a profile has a CRL of its own; `/delta/…` in place of `/crl/…`
    where the issuer makes delta CRLs.
    """

    name = "status"
    prefix = ""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._authorities = _authorities(services)
        self._packer = Packer(services.run)

    def application(self) -> web.Application:
        """Return the routes; every error is one sentence in text/plain."""
        application = web.Application(middlewares=[http.observer("status", _render), _say])
        for path, handler in (("crl", self._crl), ("delta", self._delta)):
            application.router.add_get(f"/{path}/{{file}}", handler)
            application.router.add_get(f"/{path}/{{issuer}}/{{file}}", handler)
        application.router.add_get("/ca/{file}", self._authority)
        application.router.add_post("/ocsp", self._ocsp_post)
        # Some clients join URL and request without a slash, some with two.
        application.router.add_get("/ocsp{request:.+}", self._ocsp_get)
        return application

    def background(self) -> Sequence[Coroutine[None, None, None]]:
        """Nothing runs besides the requests: the server publishes."""
        return ()

    async def _crl(self, request: web.Request) -> web.StreamResponse:
        """Give an issuer's newest CRL, or its shard. RFC 5280 §4.2.1.13, RFC 2585 §4.2."""
        http.note(request, operation="crl")
        crl = await self._newest(request)
        return await self._send(request, crl, crl.pieces)

    async def _delta(self, request: web.Request) -> web.StreamResponse:
        """Give the delta CRL that goes with it. RFC 5280 §5.2.6."""
        http.note(request, operation="delta")
        crl = await self._newest(request)
        delta = crl.delta
        if delta is None:
            raise NotFound(f"{crl.issuer} makes no delta CRLs: take /crl/{crl.issuer}.crl")
        return await self._send(request, crl, delta)

    async def _newest(self, request: web.Request) -> CRL:
        folder = request.match_info.get("issuer")
        file, dot, extension = request.match_info["file"].rpartition(".")
        if dot + extension != ".crl":
            raise NotFound(f"there is no such file here: {_WHERE}")
        issuer, profile = (file, "") if folder is None else (folder, file)
        crl = self._services.status.crl_at_hand(issuer, profile)
        if crl is None:
            crl = await self._services.run(self._services.status.crl, issuer, profile)
        http.note(request, label=issuer)
        return crl

    async def _send(
        self, request: web.Request, crl: CRL, pieces: Sequence[bytes]
    ) -> web.StreamResponse:
        # The same number is never two CRLs, but a restored database may have lost some.
        etag = f"{crl.number:x}-{int(crl.this_update.timestamp()):x}-{len(pieces[-1]):x}"
        etag = f"{request.path.split('/', 2)[1]}-{crl.issuer}-{crl.scope}-{etag}"
        document = Document(pieces, _CRL, etag, crl.this_update, _BRIEFLY)
        return await respond(request, document, self._packer)

    async def _authority(self, request: web.Request) -> web.StreamResponse:
        """Give a CA certificate. RFC 5280 §4.2.2.1, RFC 2585 §4.1."""
        http.note(request, operation="ca")
        document = self._authorities.get(request.match_info["file"])
        if document is None:
            raise NotFound(f"there is no such file here: {_WHERE}")
        return await respond(request, document, self._packer)

    async def _ocsp_post(self, request: web.Request) -> web.Response:
        """Answer a request sent as the body. RFC 6960 §A.1."""
        http.note(request, operation="ocsp")
        if request.content_type != _REQUEST:
            raise http.UnsupportedMediaType(f"send the OCSP request as {_REQUEST}")
        limits = self._services.settings.limits
        body = await http.read_body(
            request, limit=limits.body_bytes, seconds=limits.request_seconds
        )
        answer = await self._answer(request, body)
        return web.Response(body=answer.der, headers=_UNCACHED)

    async def _ocsp_get(self, request: web.Request) -> web.Response:
        """Answer a request that stands in the path. RFC 6960 §A.1, RFC 5019 §5."""
        http.note(request, operation="ocsp")
        try:
            der = _request_in(request.raw_path)
        except BadInput:
            # OCSP has an answer of its own for what cannot be read; the authority gives it.
            der = b""
        answer = await self._answer(request, der)
        return web.Response(body=answer.der, headers=_headers_of(answer))

    async def _answer(self, request: web.Request, request_der: bytes) -> OCSPAnswer:
        status = self._services.status
        if (at_hand := status.answer_at_hand(request_der)) is not None:
            # A log line costs as much as all the rest of such an answer (measured).
            request[http.QUIET] = True
            return at_hand
        return await self._services.run(status.answer, request_der)


def _authorities(services: Services) -> dict[str, Document]:
    """Lay out the CA certificates by file name; they stay the same while the server runs."""
    files: dict[str, tuple[bytes, str]] = {}
    for name, chain in services.chains.items():
        files[f"{name}-root.cer"] = (chain[-1].public_bytes(Encoding.DER), _CERTIFICATE)
    for name, chain in services.chains.items():
        # An issuer's own certificate wins over the root of one with a shorter name.
        files[f"{name}.cer"] = (chain[0].public_bytes(Encoding.DER), _CERTIFICATE)
        files[f"{name}.p7c"] = (certs_only(chain), _CERTIFICATES)
    return {
        file: Document((body,), kind, hashlib.sha256(body).hexdigest()[:32], None, _DAILY)
        for file, (body, kind) in files.items()
    }


def _request_in(raw_path: str) -> bytes:
    """Take the OCSP request out of a path: base64 of DER, percent-encoded or not.

    `raw_path`: as the request line has it. base64 of a DER SEQUENCE never begins with a slash, so
    any number may stand before it; those inside are digits. Padding may be missing.
    Raises BadInput: not base64.
    """
    path, _, _ = raw_path.partition("?")
    text = unquote(path.partition("/ocsp")[2]).lstrip("/")
    # A space was a plus sign that somebody decoded as if it stood in a form.
    text = text.replace(" ", "+").rstrip("=")
    if not re.fullmatch(r"[A-Za-z0-9+/]*", text):
        raise BadInput("the path holds no base64")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise BadInput("the path holds no base64") from error


@lru_cache(maxsize=256)
def _headers_of(answer: OCSPAnswer) -> Mapping[str, str]:
    """Return what caches need of an answer to GET (RFC 5019 §6.2), made once for each answer."""
    response = web.Response(headers=_UNCACHED)
    if answer.cacheable:
        response.headers["Cache-Control"] = _BRIEFLY
        response.etag = hashlib.sha256(answer.der).hexdigest()[:32]
        response.last_modified = answer.this_update
    return response.headers


@web.middleware
async def _say(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn the router's own refusals into sentences."""
    try:
        return await handler(request)
    except web.HTTPNotFound as error:
        raise NotFound(f"there is nothing here: {_WHERE}") from error
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return web.Response(
            status=405,
            text=f"{error.method} is not possible here: use {allowed}\n",
            headers={"Allow": allowed},
        )


async def _render(request: web.Request, error: Error) -> web.StreamResponse:
    """Say an error in text/plain, and a fault to an OCSP client in OCSP."""
    status = next(RENDER[kind] for kind in type(error).__mro__ if kind in RENDER)
    headers = {"Cache-Control": "no-store"}
    if (seconds := http.retry_after_seconds(error)) is not None:
        headers["Retry-After"] = seconds
    if not isinstance(error, Fault):
        return web.Response(status=status, text=f"{error.detail}\n", headers=headers)
    if request[http.EVENT]["operation"] == "ocsp":
        later = isinstance(error, Unavailable)
        kind = ocsp.ResponseStatus.TRY_LATER if later else ocsp.ResponseStatus.INTERNAL_ERROR
        return web.Response(
            status=status, body=ocsp.refusal(kind), content_type=_RESPONSE, headers=headers
        )
    text = f"the server cannot answer this now. Reference: {request[http.REFERENCE]}\n"
    return web.Response(status=status, text=text, headers=headers)
