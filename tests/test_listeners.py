"""Listeners: connections that take nothing of their answer, or that are over, hold nothing."""

import asyncio
import gc
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web
from aiohttp.web_protocol import RequestHandler

from estserver.listeners import listen
from estserver.settings import Limits, Listener
from tests.live import Live

BODY = bytes(range(256)) * (1 << 15)
"""8 MiB: more than the system's buffers take on both sides."""
SLICE = 1 << 16
REQUEST = "GET /{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Library:
    """A door that serves a large document, whole or in slices as CRLs are, and a small one."""

    name = "library"
    prefix = "/"

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/large", self._large)
        application.router.add_get("/whole", self._whole)
        application.router.add_get("/small", self._small)
        return application

    def background(self) -> Sequence[Coroutine[None, None, None]]:
        return ()

    async def _large(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(BODY)
        await response.prepare(request)
        for start in range(0, len(BODY), SLICE):
            await response.write(BODY[start : start + SLICE])
        await response.write_eof()
        return response

    async def _whole(self, request: web.Request) -> web.Response:
        # Closing waits for all to be sent. Twice, as when a server stops that is closing it.
        for _ in range(2):
            asyncio.get_running_loop().call_later(0.1, _closer(request))
        return web.Response(body=BODY)

    async def _small(self, _request: web.Request) -> web.Response:
        return web.Response(text="small")


@asynccontextmanager
async def serving(
    limits: Limits, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[web.Server, int]]:
    """Serve the library on a port; yields aiohttp's server and the port."""
    taken = socket.create_server(("127.0.0.1", 0))
    port: int = taken.getsockname()[1]
    listener = Listener(port=port, url=f"http://localhost:{port}", serves=("library",))
    runner, servers = await listen("web", listener, [Library()], context, limits, [taken])
    assert runner.server is not None
    try:
        yield runner.server, port
    finally:
        for server in servers:
            server.close()
        await runner.cleanup()


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happened():  # noqa: ASYNC110 - sockets of the system tell nobody
            await asyncio.sleep(0.01)


def _closer(request: web.Request) -> Callable[[], None]:
    assert request.transport is not None
    return request.transport.close


def _connect(port: int, context: ssl.SSLContext | None) -> socket.socket:
    """Open a connection that takes little by itself."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLICE)
    raw.settimeout(30)
    raw.connect(("127.0.0.1", port))
    return raw if context is None else context.wrap_socket(raw, server_hostname="localhost")


def _ask(port: int, context: ssl.SSLContext | None, path: str = "large") -> socket.socket:
    """Ask for a document over a connection that takes little by itself."""
    asked = _connect(port, context)
    asked.sendall(REQUEST.format(path).encode())
    return asked


def _crawl(asked: socket.socket, seconds: float) -> bytes:
    """Read the whole answer, for `seconds` at 200 kilobytes a second.

    Slower would look like nothing for a while: the loopback's segments have 64 kilobytes.
    """
    parts = []
    end = time.monotonic() + seconds
    while part := asked.recv(20000 if time.monotonic() < end else 1 << 20):
        parts.append(part)
        if time.monotonic() < end:
            time.sleep(0.1)
    return b"".join(parts)


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest, shared: Live) -> tuple[ssl.SSLContext, ...]:
    """Return nothing for HTTP; for HTTPS the contexts of a server and of its client."""
    if request.param == "http":
        return ()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own = shared.directory / "keys/tls.pem"
    passphrase = (shared.directory / "secrets/passphrase").read_text().strip()
    context.load_cert_chain(own, password=passphrase)
    return context, shared.tls()


@pytest.mark.row("I8")
@pytest.mark.parametrize("path", ["large", "whole"])
async def test_who_takes_nothing_of_an_answer_is_cut_off_and_others_are_served(
    tls: tuple[ssl.SSLContext, ...], path: str
) -> None:
    ours, theirs = tls or (None, None)
    async with serving(Limits(stalled_seconds=1), ours) as (server, port):
        greedy = [await asyncio.to_thread(_ask, port, theirs, path) for _ in range(3)]
        await until(lambda: len(server.connections) == len(greedy))
        scheme = "https" if theirs else "http"
        async with (
            ClientSession() as session,
            session.get(f"{scheme}://localhost:{port}/small", ssl=theirs or True) as answer,
        ):
            assert await answer.text() == "small"
        await until(lambda: not server.connections)
        for one in greedy:
            one.close()


async def test_a_slow_link_gets_all_of_a_long_answer(tls: tuple[ssl.SSLContext, ...]) -> None:
    ours, theirs = tls or (None, None)
    async with serving(Limits(stalled_seconds=1), ours) as (_, port):
        asked = await asyncio.to_thread(_ask, port, theirs)
        answer = await asyncio.to_thread(_crawl, asked, 2.5)
        asked.close()
    assert answer.endswith(BODY)


async def test_one_connection_too_many_is_closed_at_once_and_the_others_are_served(
    tls: tuple[ssl.SSLContext, ...],
) -> None:
    ours, theirs = tls or (None, None)
    async with serving(Limits(connections=2, header_seconds=600), ours) as (server, port):
        kept = [await asyncio.open_connection("localhost", port, ssl=theirs) for _ in range(2)]
        await until(lambda: len(server.connections) == 2)
        # It has nothing to say, not even goodbye.
        silent = await asyncio.to_thread(_connect, port, theirs)
        await until(lambda: len(server.connections) == 2)
        silent.close()
        for reader, writer in kept:
            writer.write(REQUEST.format("small").encode())
            assert (await reader.read()).endswith(b"small")
            writer.close()
        await until(lambda: not server.connections)


async def test_a_connection_that_is_over_is_kept_nowhere() -> None:
    def left() -> list[object]:
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, RequestHandler)]

    before = len(left())
    async with serving(Limits(header_seconds=600)) as (server, port):
        for path in ("small", "nothing"):
            async with (
                ClientSession() as session,
                session.get(f"http://localhost:{port}/{path}") as answer,
            ):
                await answer.read()
        silent = socket.create_connection(("127.0.0.1", port))
        await until(lambda: len(server.connections) == 1)
        silent.close()
        await until(lambda: not server.connections)
        await until(lambda: len(left()) == before)
