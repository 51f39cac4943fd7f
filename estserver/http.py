"""What every HTTP door shares: one event and one log line a request, the peer, body limits.

The event is a dictionary that handlers add known fields to; it becomes the canonical log line and
the counters. Secrets have no field to go into.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import lru_cache

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry, Counter, Histogram

from estserver.errors import Error, Fault, Refused, Unavailable
from estserver.failpoints import reach
from estserver.front import FRONT, Front
from estserver.model import Origin
from estserver.store.outages import explained

log = structlog.get_logger("estserver.http")

FIELDS = frozenset(
    {
        "applicant",
        "duration_ms",
        "enrollment",
        "error",
        "label",
        "method",
        "operation",
        "outcome",
        "profile",
        "proof",
        "request_id",
        "serial",
        "source",
        "status",
        "via",
    }
)
EVENT: web.RequestKey[dict[str, object]] = web.RequestKey("event", dict)
REFERENCE: web.RequestKey[str] = web.RequestKey("reference", str)
QUIET: web.RequestKey[bool] = web.RequestKey("quiet", bool)
"""Set where the same answer goes out by the thousand: it is counted, and its line is for debug."""

registry = CollectorRegistry()
requests_total = Counter(
    "estserver_requests_total",
    "Requests by door, operation, label and outcome",
    ["via", "operation", "label", "outcome"],
    registry=registry,
)
request_seconds = Histogram(
    "estserver_request_seconds",
    "Time to answer by door and operation",
    ["via", "operation"],
    registry=registry,
)


class BodyTooLarge(Refused):
    """The request body is larger than this operation takes."""

    code = "body-too-large"


class UnsupportedMediaType(Refused):
    """The request's Content-Type or Content-Encoding is not one this operation takes."""

    code = "unsupported-media-type"


class SlowBody(Refused):
    """The request body did not arrive in time."""

    code = "slow-body"


def note(request: web.Request, **fields: object) -> None:
    """Add `fields` (names from FIELDS only) to the request's event."""
    unknown = fields.keys() - FIELDS
    if unknown:
        raise Fault(f"not a log field: {', '.join(sorted(unknown))}")
    request[EVENT].update(fields)


def origin(request: web.Request) -> Origin:
    """Return where a request came from, for audit rows."""
    return Origin(request[REFERENCE], source(request))


def source(request: web.Request) -> str:
    """Return the client's address; behind a front, the one the front tells."""
    front = request.get(FRONT)
    return request.remote or "local" if front is None else front.source(request)


def peer_certificate(request: web.Request) -> bytes | None:
    """Return the client certificate of the TLS handshake, DER, or None if none was presented.

    Its key was proven by the handshake; chain, time and revocation are for the application.
    Raises BadInput, CertificateRefused: what the front of this listener says cannot be used.
    """
    front: Front | None = request.get(FRONT)
    if front is not None:
        return front.certificate(request)
    transport = request.transport
    ssl_object = None if transport is None else transport.get_extra_info("ssl_object")
    der: bytes | None = None if ssl_object is None else ssl_object.getpeercert(binary_form=True)
    return der


async def read_body(request: web.Request, *, limit: int, seconds: int) -> bytes:
    """Read the whole body, chunked or not.

    Raises BodyTooLarge (by Content-Length before a byte is read, else as soon as it is passed),
    SlowBody, UnsupportedMediaType (any Content-Encoding: a zip bomb is not worth a decoder).
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")
    if request.content_length is not None and request.content_length > limit:
        raise BodyTooLarge(f"the body is larger than {limit} bytes")
    if request.content.is_eof():
        # It came with the headers, as short ones do: there is nothing to wait for.
        body = request.content.read_nowait()
        if len(body) > limit:
            raise BodyTooLarge(f"the body is larger than {limit} bytes")
        return body
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.content.iter_any():
                size += len(part)
                if size > limit:
                    raise BodyTooLarge(f"the body is larger than {limit} bytes")
                parts.append(part)
    except TimeoutError:
        raise SlowBody(f"the body did not arrive within {seconds} seconds") from None
    return b"".join(parts)


def retry_after_seconds(error: Error) -> str | None:
    """Return an error's Retry-After as whole seconds, at least 1: many clients parse integers."""
    if error.retry_after is None:
        return None
    return str(max(1, -(-error.retry_after // timedelta(seconds=1))))


def observer(
    via: str,
    render: Callable[[web.Request, Error], Awaitable[web.StreamResponse]],
    record: Callable[[str, Refused, Origin], Awaitable[None]] | None = None,
) -> Middleware:
    """Make the outermost middleware of a door.

    `render` turns an error of the tree into the door's own kind of answer. Whatever is not of the
    tree is logged in full under the request's reference and rendered as a bare Fault. `record`
    takes the refusals of applicants that were identified, for the audit trail; a stranger's are
    only counted and logged, so that strangers cause no durable writes.
    """

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        request[REFERENCE] = secrets.token_hex(8)
        event: dict[str, object] = {"via": via, "operation": "other", "label": ""}
        request[EVENT] = event
        try:
            response = await handler(request)
            event.setdefault("outcome", "ok" if response.status < 400 else "refused")
        except web.HTTPException as answer:
            event.setdefault("outcome", "not-found" if answer.status == 404 else "refused")
            _finish(request, event, answer.status, started)
            raise
        except Refused as error:
            event["outcome"] = error.code
            # A GET changes nothing, not even the audit trail: mail scanners open every link.
            safe = request.method in ("GET", "HEAD")
            applicant = None if safe else _identified(event, error)
            if record is not None and applicant is not None:
                await record(applicant, error, origin(request))
            response = await render(request, error)
        except Error as error:
            event["outcome"] = error.code
            _log_fault(request, error)
            response = await render(request, error)
        except asyncio.CancelledError:
            event["outcome"] = "client-gone"
            _finish(request, event, 499, started)
            raise
        except Exception as error:  # noqa: BLE001 - the last wall: nothing may reach the client
            event["outcome"] = Fault.code
            _log_fault(request, error)
            response = await render(request, Fault("internal error"))
        _finish(request, event, response.status, started)
        return response

    return observe


def _identified(event: dict[str, object], error: Refused) -> str | None:
    """Name who was refused, if it is known: by the door, or by the certificate in the refusal."""
    if "applicant" in event:
        return str(event["applicant"])
    serial = error.values.get("serial")
    return None if serial is None else f"certificate {serial}"


def _log_fault(request: web.Request, error: Exception) -> None:
    if isinstance(error, Unavailable):
        log.warning("request.unavailable", request_id=request[REFERENCE], error=explained(error))
    else:
        log.error("request.failed", request_id=request[REFERENCE], exc_info=error)


@lru_cache(maxsize=1024)
def _meters(via: str, operation: str, label: str, outcome: str) -> tuple[Counter, Histogram]:
    found = requests_total.labels(via, operation, label, outcome)
    return found, request_seconds.labels(via, operation)


def _finish(request: web.Request, event: dict[str, object], status: int, started: float) -> None:
    seconds = time.perf_counter() - started
    via, operation = str(event["via"]), str(event["operation"])
    outcome = str(event["outcome"])
    counted, timed = _meters(via, operation, str(event["label"]), outcome)
    counted.inc()
    timed.observe(seconds)
    tell = log.debug if QUIET in request else log.info
    tell(
        "request.answered",
        request_id=request[REFERENCE],
        method=request.method,
        status=status,
        source=source(request),
        duration_ms=round(seconds * 1000, 1),
        **event,
    )


async def hide_software(_request: web.Request, response: web.StreamResponse) -> None:
    """Drop aiohttp's Server header, which tells versions; an `on_response_prepare` signal."""
    response.headers.popall("Server", None)


async def delivered(response: web.StreamResponse, request: web.Request) -> web.StreamResponse:
    """Send an answer that carries a certificate, between the failpoints around its bytes.

    A client that has hung up meanwhile is no fault: it asks again and gets the same answer.
    """
    reach("first-byte")
    try:
        await response.prepare(request)
        await response.write_eof()
    except ConnectionError:
        note(request, outcome="client-gone")
        return response
    reach("last-byte")
    return response
