"""HTTP octet by octet: requests as given, answers as they came, for clients written in C."""

import re
import socket
import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.live import Live

PATIENCE_SECONDS = 30
_CHUNK = 65536
_APPLICATION_DATA = 23
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t -~\x80-\xff]*)")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `headers` in the order and spelling of the wire."""

    status: int
    head: bytes
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def value(self, name: str) -> str:
        """Return the value of the one header that is spelt exactly so."""
        (found,) = [value for key, value in self.headers if key == name]
        return found

    def has(self, name: str) -> bool:
        """Tell whether there is such a header in any spelling."""
        return name.lower() in {key.lower() for key, _ in self.headers}


def parse(answer: bytes) -> Reply:
    """Read one answer that ends where the connection ended: framed by Content-Length alone."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    assert separator, answer
    first, *lines = head.split(b"\r\n")
    match = re.fullmatch(rb"HTTP/1\.[01] (\d{3}) [ -~]+", first)
    assert match, first
    headers = []
    for line in lines:
        header = _HEADER.fullmatch(line)
        assert header, line
        headers.append((header[1].decode("ascii"), header[2].decode("latin-1")))
    reply = Reply(int(match[1]), head + separator, tuple(headers), body)
    assert not reply.has("Transfer-Encoding")
    assert int(reply.value("Content-Length")) == len(body)
    return reply


class Connection:
    """A TLS connection to the devices listener, over which octets go as they are given."""

    def __init__(self, live: Live, context: ssl.SSLContext) -> None:
        self._socket = socket.create_connection(
            ("127.0.0.1", live.port("devices")), PATIENCE_SECONDS
        )
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._received = bytearray()
        self._handshake()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _handshake(self) -> None:
        try:
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    self._flush()
                    assert self._fill(), "the server hung up"
                else:
                    break
            self._flush()
        except BaseException:
            self._socket.close()
            raise
        self._received.clear()

    def _flush(self) -> None:
        self._socket.sendall(self._outgoing.read())

    def _fill(self) -> bytes:
        data = self._socket.recv(_CHUNK)
        self._incoming.write(data)
        self._received += data
        return data

    @property
    def version(self) -> str | None:
        """The TLS version that was agreed on."""
        return self._tls.version()

    @property
    def tls_unique(self) -> bytes:
        """The channel binding of RFC 5929 §3."""
        binding = self._tls.get_channel_binding("tls-unique")
        assert binding is not None
        return binding

    @property
    def data_records(self) -> int:
        """How many TLS records of application data have come; TLS 1.2 only."""
        records, rest = 0, bytes(self._received)
        while rest:
            records += rest[0] == _APPLICATION_DATA
            rest = rest[5 + int.from_bytes(rest[3:5], "big") :]
        return records

    def send(self, data: bytes) -> None:
        """Send octets."""
        self._tls.write(data)
        self._flush()

    def read_to_end(self) -> bytes:
        """Read until the server has said close_notify."""
        answer = b""
        while True:
            try:
                data = self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                assert self._fill(), f"the connection ended without close_notify: {answer!r}"
            else:
                if not data:
                    return answer
                answer += data


def ask(live: Live, request: bytes, context: ssl.SSLContext | None = None) -> Reply:
    """Send one request on a connection of its own and read to the end."""
    with Connection(live, context or live.tls()) as connection:
        connection.send(request)
        return parse(connection.read_to_end())
