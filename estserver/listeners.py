"""Listeners: doors put behind one socket, TLS contexts, and connections that must not linger."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
from asyncio.sslproto import SSLProtocol
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_urldispatcher import AbstractRuleMatching, MatchedSubAppResource
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import Counter

from estserver import http
from estserver.errors import ConfigurationError
from estserver.front import FRONT, Front, user_ids
from estserver.model import Secret
from estserver.protocols import EnrollmentProtocol
from estserver.settings import Limits, Listener, Listeners
from estserver.unix_sockets import unix_socket
from estserver.wording import trouble

log = structlog.get_logger("estserver.listeners")
_too_many = Counter(
    "estserver_connections_refused",
    "Connections closed because a listener had limits.connections of them",
    registry=http.registry,
)

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: expired certificates reach the application, which says so in words."""
_BACKLOG = 1024
_KEEPALIVE_SECONDS = 75
_FIELD_BYTES = 8190
_FRONT_FIELD_BYTES = 32768
_LINGER_SECONDS = 2
"""How long a body is read and thrown away after its refusal, which a reset would overtake."""
_LEAST_RATE = 500
"""Bytes a second of an answer that the slowest honest link takes."""
_TCP_INFO_BYTES, _BYTES_ACKED = 128, 120
"""`struct tcp_info` of Linux 4.1 and later up to `tcpi_bytes_acked`, and where that begins."""
_TLS_READ_BYTES = 4096
"""A request of EST fits; asyncio keeps that much for each connection, 256 KiB if left alone."""

_ADVICE = {
    errno.EADDRINUSE: ": stop what listens there, or set listeners.{name}.port",
    errno.EACCES: ": ports below 1024 are root's, or those' with CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: ": it is none of this machine: correct listeners.{name}.bind",
}
"""What to do where an address cannot be had."""

Sockets = dict[str, list[socket.socket]]
"""Bound sockets by name of their listener."""


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """PEM files: the chain, leaf first, and its key, which may lie in the same file (None).

    The key is plain or encrypted under the instance's passphrase.
    """

    certificate: Path
    key: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files there are."""
        return (self.certificate,) if self.key is None else (self.certificate, self.key)


class _UnderPrefix(AbstractRuleMatching):
    """Routes a request to the door whose prefix its path begins with."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    async def match(self, request: web.Request) -> bool:
        return request.path.startswith(self._prefix)

    def get_info(self) -> dict[str, str]:  # type: ignore[override]  # aiohttp's own TypedDict
        return {"prefix": self._prefix}

    @property
    def canonical(self) -> str:
        return self._prefix


def _arrival(front: Front | None) -> Middleware:
    """Make what every request passes first: its connection spoke, and who stands in front."""

    @web.middleware
    async def arrive(request: web.Request, handler: Handler) -> web.StreamResponse:
        if isinstance(request.protocol, _Connection):
            request.protocol.has_spoken()
        if front is not None:
            request[FRONT] = front
        return await handler(request)

    return arrive


def combine(doors: Sequence[EnrollmentProtocol], front: Front | None = None) -> web.Application:
    """Put several doors behind one listener, the longest prefix first.

    aiohttp's add_subapp cannot mount at the root, and middlewares of a parent would leak into
    every door, so each door keeps an application of its own. Without a middleware of the parent,
    aiohttp would not run those of the doors either.
    """
    parent = web.Application(middlewares=[_arrival(front)])
    parent.on_response_prepare.append(http.hide_software)
    for door in sorted(doors, key=lambda door: -len(door.prefix)):
        application = door.application()
        application.pre_freeze()
        parent.router.register_resource(
            MatchedSubAppResource(_UnderPrefix(door.prefix), application)
        )
        parent.on_startup.append(_started(application))
        parent.on_cleanup.append(_cleaned(application))
    return parent


def _started(application: web.Application) -> Callable[[web.Application], Awaitable[None]]:
    async def startup(_parent: web.Application) -> None:
        application.freeze()
        await application.startup()

    return startup


def _cleaned(application: web.Application) -> Callable[[web.Application], Awaitable[None]]:
    async def cleanup(_parent: web.Application) -> None:
        await application.cleanup()

    return cleanup


def tls_context(
    *, asks: bool, trust: Sequence[x509.Certificate], files: TLSFiles, passphrase: Secret
) -> ssl.SSLContext:
    """Make a server context: TLS 1.2 and 1.3; `asks` for an optional client certificate.

    Raises ConfigurationError: the key or certificate in `files` cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    load_certificate(context, files, passphrase)
    if asks:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME) | ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(
            cadata="".join(c.public_bytes(Encoding.PEM).decode() for c in trust)
        )
        # A resumed session carries the old certificate, or none: a fresh import would never be
        # asked for.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def load_certificate(context: ssl.SSLContext, files: TLSFiles, passphrase: Secret) -> None:
    """Load key and chain into a context; into a live one on the event loop only, once tried.

    OpenSSL lets no other thread begin a handshake while a context changes: certificate and key are
    replaced one after the other, and between the two there is no key.
    Raises ConfigurationError.
    """
    try:
        context.load_cert_chain(files.certificate, files.key, password=passphrase.reveal)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"{files.certificate}: cannot be used for TLS: it and its key do not fit, or one of "
            "them is no PEM under the instance's passphrase"
        ) from error
    except OSError as error:
        unreadable = next((one for one in files.paths if not os.access(one, os.R_OK)), None)
        raise ConfigurationError(trouble(error, unreadable)) from error


def try_certificate(files: TLSFiles, passphrase: Secret) -> None:
    """Raise ConfigurationError unless the files can be used: a bad one breaks a live context."""
    load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files, passphrase)


class _Connection(RequestHandler):
    """aiohttp's connection, but one that neither speaks nor takes its answer is cut off.

    What is not HTTP is answered without version and without echo.
    """

    __slots__ = ("_front", "_limits", "_silence", "_socket", "_stall")

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        front: Front | None,
        limits: Limits,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # how aiohttp is told to write none
            keepalive_timeout=_KEEPALIVE_SECONDS,
            lingering_time=_LINGER_SECONDS,
            # Nobody here takes compressed bodies; unpacking one would be work for a stranger.
            auto_decompress=False,
            # A certificate in a header is longer than headers of clients may be.
            max_field_size=_FIELD_BYTES if front is None else _FRONT_FIELD_BYTES,
        )
        self._front = front
        self._limits = limits
        self._silence: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        # aiohttp forgets its transport when it closes it, which may still have much to send; and
        # asyncio's over TLS, closed twice, neither names its socket nor aborts.
        self._socket: socket.socket | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many, or not the proxy is at the other end of its socket.

        TLS calls this after the handshake: those that have none yet are not counted.
        """
        super().connection_made(transport)
        if self._manager is not None and len(self._manager.connections) > self._limits.connections:
            _too_many.inc()
            if self.transport is not None:
                # To close it would wait for the client, which need not say goodbye.
                self.transport.abort()
            self.force_close()
            return
        if self._front is None and self.transport is not None:
            self._socket = transport.get_extra_info("socket")
            # "Paused" shall mean that the system takes no more. A proxy has limits of its own.
            self.transport.set_write_buffer_limits(high=1, low=0)
        self._silence = self._loop.call_later(self._limits.header_seconds, self.force_close)
        if self._front is not None and not self._front.trusts(transport):
            log.warning("front.refused", error=self._front.refusal(transport))
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End, and keep nothing."""
        super().connection_lost(exc)
        for timer in (self._silence, self._stall):
            if timer is not None:
                timer.cancel()
        self._socket = None

    def has_spoken(self) -> None:
        """Note that the headers of a request have come."""
        if self._silence is not None:
            self._silence.cancel()

    def pause_writing(self) -> None:
        """Begin to watch whether the client takes what is to be sent."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """All is sent."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def _watch(self, least: int = 0) -> None:
        """Cut the connection off unless the client has taken `least` bytes in all; look again."""
        if self._socket is None:
            return
        seconds = self._limits.stalled_seconds
        # The client may have gone by itself since the loop looked.
        with contextlib.suppress(OSError):
            taken = _acknowledged(self._socket)
            if taken < least:
                self._socket.shutdown(socket.SHUT_RDWR)
                return
            enough = taken + seconds * _LEAST_RATE
            self._stall = self._loop.call_later(seconds, self._watch, enough)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Log as aiohttp does, see `logs`; `message` and `exc` quote the request and stay here."""
        super().handle_error(request, status, exc, message)
        # A Server header has to be there, or aiohttp adds its own with the versions.
        answer = web.Response(status=status, text="malformed request\n", headers={"Server": "-"})
        answer.force_close()
        return answer


async def listen(
    name: str,
    listener: Listener,
    doors: Sequence[EnrollmentProtocol],
    context: ssl.SSLContext | None,
    limits: Limits,
    sockets: Sequence[socket.socket],
) -> tuple[web.AppRunner, list[asyncio.Server]]:
    """Listen on `sockets`; the caller closes the servers first and cleans the runner up after.

    Raises ConfigurationError, OSError.
    """
    front = None
    if listener.socket is not None:
        try:
            front = Front(name, listener.front, user_ids(listener.front_users))
        except ConfigurationError as error:
            raise ConfigurationError(f"listeners.{name}: {error.detail}") from error
    runner = web.AppRunner(
        combine(doors, front), handle_signals=False, shutdown_timeout=limits.request_seconds
    )
    await runner.setup()
    server = runner.server
    if server is None:
        raise ConfigurationError("aiohttp did not set up its server")
    loop = asyncio.get_running_loop()
    # Nothing else sets it. Larger bodies are read in more steps.
    SSLProtocol.max_size = _TLS_READ_BYTES

    def connected() -> RequestHandler:
        return _Connection(server, loop=loop, front=front, limits=limits)

    servers = [
        await loop.create_server(
            connected,
            sock=taken,
            ssl=context,
            backlog=_BACKLOG,
            ssl_handshake_timeout=None if context is None else limits.header_seconds,
        )
        for taken in sockets
    ]
    return runner, servers


def bind(listeners: Listeners, directory: Path, *, beside: Sockets | None = None) -> Sockets:
    """Take the addresses of all listeners that serve something, without listening yet.

    `directory` is where paths of Unix sockets start. `beside`: workers share the addresses, the
    kernel spreads the connections over their TCP sockets, and the Unix sockets are these.
    Raises ConfigurationError: an address is in use or cannot be had.
    """
    taken: Sockets = {}
    for name, listener in listeners.each():
        if not listener.serves:
            continue
        taken[name] = []
        try:
            if listener.socket is None:
                for family, address in _addresses(listener):
                    taken[name].append(_tcp_socket(family, address, shared=beside is not None))
            elif beside is not None:
                taken[name] += [one.dup() for one in beside[name]]
            else:
                taken[name].append(unix_socket(directory / listener.socket, listener.socket_group))
        except OSError as error:
            close(taken)
            if listener.socket is None:
                where = f"{listener.bind} port {listener.port}"
                advice = _ADVICE.get(error.errno or 0, "").format(name=name)
            else:
                where, advice = str(directory / listener.socket), ""
            raise ConfigurationError(
                f"listeners.{name}: cannot listen on {where}: {trouble(error)}{advice}"
            ) from error
        except ConfigurationError as error:
            close(taken)
            raise ConfigurationError(f"listeners.{name}: {error.detail}") from error
    return taken


def close(taken: Sockets) -> None:
    """Let go of what `bind` took."""
    for sockets in taken.values():
        for one in sockets:
            one.close()


def _addresses(listener: Listener) -> list[tuple[socket.AddressFamily, Any]]:
    found = socket.getaddrinfo(
        listener.bind or None, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _tcp_socket(family: socket.AddressFamily, address: Any, *, shared: bool) -> socket.socket:
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # IPv4 has a socket of its own.
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(address)
    except BaseException:
        taken.close()
        raise
    return taken


def _acknowledged(sending: socket.socket) -> int:
    """Count the bytes that have arrived at the other end of a TCP connection, TLS included.

    Linux fills its own buffers long before, and tells of room in them only now and then.
    """
    facts = sending.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return int(struct.unpack_from("=Q", facts, _BYTES_ACKED)[0])
