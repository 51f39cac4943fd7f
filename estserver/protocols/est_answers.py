"""EST answers: one table from errors to status codes, and bodies the clients in the field can read.

Real clients are narrow. libest needs base64 in lines, `Basic` and header names spelt just so;
strongSwan up to 5.9.10 needs one line and less than 1000 octets of headers; Bouncy Castle needs
Content-Transfer-Encoding and breaks on a body in the first 401 or in a 202. So: few headers, exact
spelling, always a Content-Length, never a redirect.
"""

from collections.abc import Mapping
from json import dumps

from aiohttp import web

from estserver import http
from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    CredentialsRequired,
    Error,
    Fault,
    MistypedPIN,
    NamesNotAllowed,
    NotEntitled,
    NotFound,
    Refused,
    TooManyAttempts,
    Unavailable,
)
from estserver.http import BodyTooLarge, SlowBody, UnsupportedMediaType
from estserver.model import Pending
from estserver.protocols.encoding import wrap_base64

RENDER: Mapping[type[Error], int] = {
    Refused: 400,
    CredentialsRequired: 401,
    BadCredentials: 401,
    # The same shape as a wrong PIN: only the audit trail tells a used one from an unknown one.
    AlreadyIssued: 401,
    NotEntitled: 403,
    NamesNotAllowed: 403,
    NotFound: 404,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    TooManyAttempts: 429,
    Fault: 500,
    Unavailable: 503,
}
"""Status code by error class; a class that is not listed has that of its nearest base."""

CERTIFICATES = "application/pkcs7-mime; smime-type=certs-only"
"""Byte for byte what libest's client compares with."""
COLUMNS = 64
UNAUTHORIZED = 401
_WRONG_PIN = (
    "The invitation number or the PIN is wrong, or the PIN has expired or is used up: "
    "check both, or ask the administrator for a new PIN."
)
_ENDS = (".", "!", "?", "。")


def status_of(error: Error) -> int:
    """Return the status code of an error by its class or nearest base."""
    return next(RENDER[base] for base in type(error).__mro__ if base in RENDER)


def refusal(request: web.Request, error: Error, *, realm: str, retry_after: str) -> web.Response:
    """Render an error as `text/plain`: a sentence and the reference to ask the administrator with.

    A 401 to a request without Authorization has no body: that request was a question (libest and
    Bouncy Castle send the PIN only then) and Bouncy Castle cannot read on. Every 404 is the same,
    so that nobody learns which labels there are. `retry_after` goes with a 503 that names none.
    RFC 7030 §3.2.3, §4.2.3.
    """
    status = status_of(error)
    if status == web.HTTPNotFound.status_code:
        return text(status, "There is no such EST operation here.")
    headers: dict[str, str] = {}
    seconds = http.retry_after_seconds(error)
    if seconds is not None or isinstance(error, Unavailable):
        headers["Retry-After"] = seconds or retry_after
    if status == UNAUTHORIZED:
        headers["WWW-Authenticate"] = f'Basic realm="{realm}", charset="UTF-8"'
        if "Authorization" not in request.headers:
            return _response(status, headers)
    response = text(status, sentence(error), reference=request[http.REFERENCE], headers=headers)
    if isinstance(error, BodyTooLarge | SlowBody):
        # What is left of the body will not be read: the connection is of no more use.
        response.force_close()
    return response


def sentence(error: Error) -> str:
    """Return what the client may read: nothing of a fault, nothing that tells PINs apart."""
    match error:
        case Unavailable():
            return "The service cannot take this request now: try again later."
        case Fault():
            return "Internal error."
        case BadCredentials() | AlreadyIssued() if not isinstance(error, MistypedPIN):
            return _WRONG_PIN
    detail = error.detail[:1].upper() + error.detail[1:]
    return detail if detail.endswith(_ENDS) else detail + "."


def text(
    status: int,
    line: str,
    *,
    reference: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return a `text/plain` answer of one line, and of the reference where there is one."""
    body = f"{line}\n" if reference is None else f"{line}\nReference: {reference}\n"
    return _response(
        status, {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}, body.encode()
    )


def pending(answer: Pending) -> web.Response:
    """Say that an officer must decide: 202, Retry-After in whole seconds (RFC 7030 §4.2.3)."""
    return _response(202, {"Retry-After": str(max(1, int(answer.retry_after.total_seconds())))})


def base64(request: web.Request, der: bytes, content_type: str) -> web.Response:
    """Return `der` in base64, in lines or in one line as this client reads it.

    RFC 8951 §3 has clients ignore Content-Transfer-Encoding, but Bouncy Castle needs it.
    """
    headers = {"Content-Type": content_type, "Content-Transfer-Encoding": "base64"}
    return _response(200, headers, wrap_base64(der, columns_of(request)))


def json(body: Mapping[str, object], *, retry_after: int) -> web.Response:
    """Return JSON as it is, which the renewal information is, unlike all else of EST."""
    headers = {"Content-Type": "application/json", "Retry-After": str(retry_after)}
    return _response(200, headers, dumps(body).encode())


def columns_of(request: web.Request) -> int | None:
    """Return the line width for this client, None for one line.

    strongSwan sends neither User-Agent nor Accept, and up to 5.9.10 cannot read line breaks;
    libest cannot read without them (EST-048). Behind curl stands `openssl base64 -d -A`, which
    decodes one line to its octets and several to nothing (EST-197).
    """
    agent = request.headers.get("User-Agent")
    unbroken = agent.startswith("curl/") if agent else "Accept" not in request.headers
    return None if unbroken else COLUMNS


def multipart(content_type: str, body: bytes) -> web.Response:
    """Return an answer whose parts say their own encoding (RFC 7030 §4.4.2)."""
    return _response(200, {"Content-Type": content_type}, body)


def method_not_allowed(methods: tuple[str, ...]) -> web.Response:
    """Say which methods an operation takes (RFC 9110 §15.5.6)."""
    allowed = ", ".join(methods)
    return text(405, f"This operation takes {allowed}.", headers={"Allow": allowed})


def _response(status: int, headers: Mapping[str, str], body: bytes | None = None) -> web.Response:
    """Return a response with `Cache-Control: no-store`: CA certificates change at run time too."""
    return web.Response(status=status, body=body, headers={**headers, "Cache-Control": "no-store"})
