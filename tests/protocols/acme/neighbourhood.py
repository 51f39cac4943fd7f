"""What stands around a validator: a DNS server, web servers and TLS servers, all on loopback."""

import asyncio
import contextlib
import socket
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from types import TracebackType
from typing import Any, Self, cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from estserver.config import Settings
from estserver.model import Clock
from estserver.protocols.acme.challenge import Challenge, ChallengeFailed
from estserver.protocols.acme.validation import Validator
from estserver.settings import ACME, Listener, Listeners
from tests.live import MovableClock, free_ports

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
THUMBPRINT = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
KEY_AUTHORIZATION = f"{TOKEN}.{THUMBPRINT}"
DIGEST = urlsafe_b64encode(sha256(KEY_AUTHORIZATION.encode()).digest()).rstrip(b"=").decode()
ACCOUNT = "https://ca.test/acme/account/one"
PATH = f"/.well-known/acme-challenge/{TOKEN}"
HOST = "127.0.0.21"
"""Where well-behaved hosts live; their network is open to validations."""

Answer = Callable[[str], bytes]
Records = list[str] | dns.rcode.Rcode | None
"""Rdata in presentation form, an error, or None for no answer at all."""


def ok(body: str | bytes = KEY_AUTHORIZATION, *headers: str) -> bytes:
    octets = body.encode() if isinstance(body, str) else body
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(octets)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + octets


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def challenge(
    kind: str = "http-01",
    identifier: str = "www.example.test",
    *,
    wildcard: bool = False,
    identifier_type: str = "dns",
) -> Challenge:
    return Challenge(
        type=kind,
        identifier_type=identifier_type,
        identifier=identifier,
        wildcard=wildcard,
        token=TOKEN,
        key_authorization=KEY_AUTHORIZATION,
        account_uri=ACCOUNT,
    )


@dataclass
class Host:
    """A listener that counts: `requests` are the heads it has received, `connections` all."""

    connections: int = 0
    requests: list[str] = field(default_factory=list)
    tls: list[ssl.SSLObject] = field(default_factory=list)
    after_handshake: list[bytes] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """A recursive name server with a small world. `scripts` answer once each, then `records`."""

    records: dict[tuple[str, str], Records] = field(default_factory=dict)
    scripts: dict[tuple[str, str], list[Records]] = field(default_factory=dict)
    questions: list[tuple[str, str]] = field(default_factory=list)
    over_tcp: int = 0
    transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own datagram transport does not inherit from the class that documents it.
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = self.answer(dns.message.from_wire(data))
        if answer is not None and self.transport is not None:
            octets = answer.to_wire(max_size=65535)
            if len(octets) > 1232:
                answer.answer.clear()
                answer.flags |= dns.flags.TC
                octets = answer.to_wire()
            self.transport.sendto(octets, addr)

    async def serve_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = self.answer(dns.message.from_wire(await reader.readexactly(size)))
        assert answer is not None
        self.over_tcp += 1
        octets = answer.to_wire(max_size=65535)
        writer.write(len(octets).to_bytes(2, "big") + octets)
        await writer.drain()
        writer.close()

    def answer(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        name = question.name.to_text(omit_final_dot=True).lower()
        self.questions.append((name, kind))
        response = dns.message.make_response(query, recursion_available=True)
        while (alias := self.records.get((name, "CNAME"))) is not None:
            assert isinstance(alias, list)
            response.answer.append(dns.rrset.from_text(f"{name}.", 0, "IN", "CNAME", *alias))
            name = alias[0].removesuffix(".")
        script = self.scripts.get((name, kind))
        found = script.pop(0) if script else self.records.get((name, kind), [])
        if found is None:
            return None
        if isinstance(found, dns.rcode.Rcode):
            response.set_rcode(found)
        elif found:
            response.answer.append(dns.rrset.from_text(f"{name}.", 0, "IN", kind, *found))
        elif not any(known == name for known, _ in (*self.records, *self.scripts)):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response


class Neighbourhood:
    """All of them together, with the ports that this test's validations use."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()
        self.http_port, self.tls_port, self.dns_port = self._take_ports()
        self.dns = NameServer()
        self.clock = MovableClock()

    def _take_ports(self) -> tuple[int, int, int]:
        """Take three ports that no neighbourhood of another test run has.

        Free ports are looked for at 127.0.0.1, which is not where we listen: a datagram socket
        at a place of its own marks each one as taken.
        """
        while True:
            found = free_ports()
            ports = (found.web, found.devices, found.status)
            with contextlib.ExitStack() as marks:
                try:
                    for port in ports:
                        mark = marks.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                        mark.bind(("127.0.0.50", port))
                except OSError:
                    continue
                self._stack.callback(marks.pop_all().close)
                return ports

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        address = ("127.0.0.53", self.dns_port)
        transport, _ = await loop.create_datagram_endpoint(lambda: self.dns, local_addr=address)
        self._stack.callback(transport.close)
        server = await asyncio.start_server(self.dns.serve_stream, *address)
        self._stack.push_async_callback(server.wait_closed)
        self._stack.callback(server.close)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def name(self, name: str = "www.example.test", *addresses: str) -> str:
        """Give a name its addresses, those of IPv6 as AAAA."""
        for address in addresses or (HOST,):
            kind = "AAAA" if ":" in address else "A"
            found = self.dns.records.setdefault((name, kind), [])
            assert isinstance(found, list)
            found.append(address)
        return name

    async def web(
        self,
        answer: bytes | Answer | None,
        address: str = HOST,
        *,
        port: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Host:
        """Serve: `answer` is sent as it is to every request head; None keeps silent."""
        host = Host()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host.connections += 1
            if tls is not None:
                host.tls.append(writer.get_extra_info("ssl_object"))
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                host.requests.append(head)
                if answer is None:
                    await reader.read()
                else:
                    octets = answer if isinstance(answer, bytes) else answer(head.split()[1])
                    writer.write(octets)
                    await writer.drain()
            writer.close()

        await self._listen(serve, address, port or self.http_port, tls)
        return host

    async def tls(self, context: ssl.SSLContext | None, address: str = HOST) -> Host:
        """Shake hands and read what else comes; without a context, answer with plain text."""
        host = Host()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host.connections += 1
            if context is None:
                writer.write(b"220 no TLS here\r\n")
            else:
                host.tls.append(writer.get_extra_info("ssl_object"))
                with contextlib.suppress(OSError):
                    host.after_handshake.append(await reader.read())
            writer.close()
            host.ended.set()

        await self._listen(serve, address, self.tls_port, context)
        return host

    async def stubborn(
        self, address: str, opening: bytes = b"", *, port: int | None = None
    ) -> Host:
        """Take connections, begin to answer and never say another word."""
        host = Host()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host.connections += 1
            with contextlib.suppress(OSError):
                writer.write(opening)
                while await reader.read(1024):
                    pass
            writer.close()

        await self._listen(serve, address, port or self.http_port, None)
        return host

    async def first_octets(self, port: int) -> asyncio.Future[bytes]:
        """Listen once at the usual address and return what comes first, then hang up."""
        came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.set_result(await reader.read(4096))
            writer.close()

        await self._listen(serve, HOST, port, None)
        return came

    async def _listen(
        self,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
        address: str,
        port: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        server = await asyncio.start_server(serve, address, port, ssl=tls)
        self._stack.push_async_callback(server.wait_closed)
        self._stack.callback(server.close)

    def settings(self, listeners: Mapping[str, Listener] | None = None, **acme: Any) -> Settings:
        chosen = {
            "http_port": self.http_port,
            "tls_port": self.tls_port,
            "resolvers": (f"127.0.0.53:{self.dns_port}",),
            "allow_networks": (f"{HOST}/32", "::1/128"),
            **acme,
        }
        return Settings(acme=ACME(**chosen), listeners=Listeners(**(listeners or {})))

    def validator(
        self, *, seconds: float = 10, clock: Clock | None = None, **acme: Any
    ) -> Validator:
        return Validator(
            self.settings(**acme), clock or self.clock, deadline=timedelta(seconds=seconds)
        )

    async def problem(self, asked: Challenge, *, seconds: float = 10, **acme: Any) -> str:
        """Validate and return the problem; `valid` where there is none."""
        return (await self.failure(asked, seconds=seconds, **acme))[0]

    async def failure(
        self, asked: Challenge, *, seconds: float = 10, **acme: Any
    ) -> tuple[str, str]:
        """Validate and return problem and detail."""
        try:
            await self.validator(seconds=seconds, **acme).validate(asked)
        except ChallengeFailed as error:
            return error.problem, error.detail
        return "valid", ""
