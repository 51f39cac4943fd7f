"""The load: many connections in processes of their own, on cores that the server does not use.

One epoll loop a process, over non-blocking sockets, because the client's side of a TLS handshake
costs more than the server's and nothing may be wasted beside it. What is sent is made before the
clock starts and what came back is looked at after it has stopped.
"""

import multiprocessing
import os
import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

_PATIENCE_SECONDS = 30
_LOST_LIMIT = 100
"""So many connections lost in a row mean that the server is gone."""


class Unexpected(Exception):
    """An answer that is not the one the dialogue is about; the text tells which."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; `headers` as they came, status line included."""

    status: int
    headers: bytes
    body: bytes

    def header(self, name: str) -> str:
        """Return the value of a header, empty without it."""
        at = self.headers.lower().find(f"\r\n{name.lower()}:".encode())
        if at < 0:
            return ""
        return self.headers[at + len(name) + 3 :].partition(b"\r\n")[0].strip().decode()


Dialogue = Generator[bytes, Answer, bytes]
"""Yields requests, is sent their answers, returns what is to be checked."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect; `tls` false for plain HTTP.

    `holders`: PEM files with key and certificate; connections show them in turn.
    """

    port: int
    host: str = "127.0.0.1"
    name: str = "localhost"
    root: Path | None = None
    tls: bool = True
    holders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """What the generator shall do: one dialogue for each item until none or no time is left.

    `dialogue`: a function of a module, called with the item and with what its connection remembers.
    """

    target: Target
    dialogue: Callable[[Any, dict[str, Any]], Dialogue]
    items: tuple[Any, ...]
    connections: int
    keep_alive: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a load. Times are in seconds.

    `results`: by the item's number and in that order. `failures`: by their kind. `busy`: CPU
    seconds that the generator used. `started`: how many items were begun.
    """

    begun: float
    ended: float
    busy: float
    started: int
    latencies: tuple[float, ...]
    results: tuple[tuple[int, bytes], ...]
    failures: Counter[str]

    @property
    def seconds(self) -> float:
        """From the first connection to the last answer."""
        return self.ended - self.begun


class LoadGenerator:
    """Generator processes on given cores, one a core."""

    def __init__(self, cores: tuple[int, ...]) -> None:
        self._workers = [
            ProcessPoolExecutor(
                1,
                multiprocessing.get_context("spawn"),
                initializer=os.sched_setaffinity,
                initargs=(0, {core}),
            )
            for core in cores
        ]

    @property
    def processes(self) -> int:
        """How many there are."""
        return len(self._workers)

    def run(self, load: Load) -> Outcome:
        """Run a load, shared among the processes, to its end."""
        return self.begin(load)()

    def begin(self, load: Load) -> Callable[[], Outcome]:
        """Start a load; call what is returned to wait for its end."""
        workers = self._workers[: load.connections]
        count = len(workers)
        shares = [
            worker.submit(
                drive,
                Load(
                    load.target,
                    load.dialogue,
                    load.items[number::count],
                    len(range(number, load.connections, count)),
                    load.keep_alive,
                    load.seconds,
                ),
            )
            for number, worker in enumerate(workers)
        ]

        def wait() -> Outcome:
            return _together([share.result() for share in shares])

        return wait

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.shutdown()


def _together(parts: list[Outcome]) -> Outcome:
    count = len(parts)
    return Outcome(
        begun=min(part.begun for part in parts),
        ended=max(part.ended for part in parts),
        busy=sum(part.busy for part in parts),
        # Items are dealt in turn: what a lagging share has not begun is counted as begun.
        started=max(part.started for part in parts) * count,
        latencies=tuple(latency for part in parts for latency in part.latencies),
        results=tuple(
            sorted(
                (index * count + number, result)
                for number, part in enumerate(parts)
                for index, result in part.results
            )
        ),
        failures=sum((part.failures for part in parts), Counter()),
    )


def drive(load: Load) -> Outcome:
    """Run one load in this process."""
    return _Driver(load).run()


class _Phase(Enum):
    CONNECTING = auto()
    SHAKING_HANDS = auto()
    SENDING = auto()
    RECEIVING = auto()


@dataclass(slots=True)
class _Slot:
    """One connection at a time, and the dialogue that goes over it."""

    number: int
    memory: dict[str, Any] = field(default_factory=dict)
    sock: socket.socket | None = None
    phase: _Phase = _Phase.CONNECTING
    watched: int = 0
    index: int = 0
    dialogue: Dialogue | None = None
    begun: float = 0.0
    moved: float = 0.0
    out: bytes = b""
    received: bytearray = field(default_factory=bytearray)


class _Driver:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._items: Iterator[tuple[int, Any]] = enumerate(load.items)
        self._started = 0
        self._poll = select.epoll()
        self._slots: dict[int, _Slot] = {}
        self._latencies: list[float] = []
        self._results: list[tuple[int, bytes]] = []
        self._failures: Counter[str] = Counter()
        self._lost = 0
        self._contexts = _contexts(load.target)
        self._deadline = 0.0

    def run(self) -> Outcome:
        cpu, begun = time.process_time(), time.monotonic()
        self._deadline = begun + self._load.seconds
        for number in range(self._load.connections):
            self._next(_Slot(number))
        looked = begun
        while self._slots:
            for descriptor, _ in self._poll.poll(1.0):
                slot = self._slots[descriptor]
                try:
                    self._advance(slot)
                except (OSError, Unexpected) as error:
                    self._fail(slot, error)
            if (now := time.monotonic()) - looked > 1:
                looked = now
                for slot in tuple(self._slots.values()):
                    if now - slot.moved > _PATIENCE_SECONDS:
                        self._fail(slot, TimeoutError("no answer in 30 s"))
        ended = time.monotonic()
        self._poll.close()
        return Outcome(
            begun,
            ended,
            time.process_time() - cpu,
            self._started,
            tuple(self._latencies),
            tuple(self._results),
            self._failures,
        )

    # -- from item to item -------------------------------------------------------------------------

    def _next(self, slot: _Slot) -> None:
        """Begin the next dialogue on this slot, if there is one and time for it."""
        now = time.monotonic()
        item = next(self._items, None) if now < self._deadline else None
        if item is None or self._lost >= _LOST_LIMIT:
            self._hang_up(slot)
            return
        self._started += 1
        slot.index, subject = item
        slot.begun = slot.moved = now
        slot.dialogue = self._load.dialogue(subject, slot.memory)
        slot.out = next(slot.dialogue)
        if slot.sock is None:
            self._connect(slot)
        else:
            self._send(slot)

    def _finish(self, slot: _Slot, result: bytes) -> None:
        self._lost = 0
        self._latencies.append(time.monotonic() - slot.begun)
        self._results.append((slot.index, result))
        if not self._load.keep_alive:
            self._hang_up(slot)
        self._next(slot)

    def _fail(self, slot: _Slot, error: Exception) -> None:
        text = str(error) if isinstance(error, Unexpected) else type(error).__name__
        self._failures[text] += 1
        self._lost += isinstance(error, OSError)
        self._hang_up(slot)
        slot.memory.clear()
        self._next(slot)

    # -- one connection ----------------------------------------------------------------------------

    def _connect(self, slot: _Slot) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex((self._load.target.host, self._load.target.port))
        slot.sock, slot.phase = sock, _Phase.CONNECTING
        slot.received.clear()
        self._slots[sock.fileno()] = slot
        slot.watched = select.EPOLLOUT
        self._poll.register(sock.fileno(), slot.watched)

    def _hang_up(self, slot: _Slot) -> None:
        if slot.sock is not None:
            descriptor = slot.sock.fileno()
            self._poll.unregister(descriptor)
            del self._slots[descriptor]
            slot.sock.close()
            slot.sock = None

    def _watch(self, slot: _Slot, events: int) -> None:
        if slot.watched != events and slot.sock is not None:
            slot.watched = events
            self._poll.modify(slot.sock.fileno(), events)

    def _advance(self, slot: _Slot) -> None:
        """Go on with what the slot's connection was waiting for."""
        slot.moved = time.monotonic()
        sock = slot.sock
        assert sock is not None
        if slot.phase is _Phase.CONNECTING:
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            if self._contexts:
                context = self._contexts[slot.number % len(self._contexts)]
                slot.sock = sock = context.wrap_socket(
                    sock, server_hostname=self._load.target.name, do_handshake_on_connect=False
                )
                slot.phase = _Phase.SHAKING_HANDS
            else:
                slot.phase = _Phase.SENDING
        if slot.phase is _Phase.SHAKING_HANDS:
            assert isinstance(sock, ssl.SSLSocket)
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                return self._watch(slot, select.EPOLLIN)
            except ssl.SSLWantWriteError:
                return self._watch(slot, select.EPOLLOUT)
            slot.phase = _Phase.SENDING
        if slot.phase is _Phase.SENDING:
            return self._send(slot)
        return self._receive(slot, sock)

    def _send(self, slot: _Slot) -> None:
        assert slot.sock is not None
        slot.phase = _Phase.SENDING
        try:
            while slot.out:
                slot.out = slot.out[slot.sock.send(slot.out) :]
        except (ssl.SSLWantWriteError, BlockingIOError):
            return self._watch(slot, select.EPOLLOUT)
        slot.phase = _Phase.RECEIVING
        return self._watch(slot, select.EPOLLIN)

    def _receive(self, slot: _Slot, sock: socket.socket) -> None:
        while True:
            try:
                chunk = sock.recv(65536)
            except (ssl.SSLWantReadError, BlockingIOError):
                return None
            if not chunk:
                raise ConnectionResetError
            slot.received += chunk
            answer = take_answer(slot.received)
            if answer is None:
                continue
            assert slot.dialogue is not None
            try:
                slot.out = slot.dialogue.send(answer)
            except StopIteration as end:
                return self._finish(slot, end.value)
            return self._send(slot)


def take_answer(received: bytearray) -> Answer | None:
    """Take one whole HTTP/1.1 answer off the front of `received`; None while some is missing."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    headers = bytes(received[: end + 2])
    status = int(headers[9:12])
    answer = Answer(status, headers, b"")
    start = end + 4
    if status in (204, 304):
        body, stop = b"", start
    elif answer.header("transfer-encoding") == "chunked":
        body, stop = _chunked(received, start)
    else:
        length = int(answer.header("content-length") or 0)
        stop = start + length
        body = bytes(received[start:stop])
        if len(body) < length:
            return None
    if stop < 0:
        return None
    del received[:stop]
    return Answer(status, headers, body)


def _chunked(received: bytearray, start: int) -> tuple[bytes, int]:
    """Return a chunked body and where it ends, -1 while some of it is missing. RFC 9112 §7.1."""
    body = b""
    while True:
        line = received.find(b"\r\n", start)
        if line < 0:
            return b"", -1
        size = int(received[start:line].split(b";")[0], 16)
        start = line + 2 + size + 2
        if len(received) < start:
            return b"", -1
        if size == 0:
            return body, start
        body += received[line + 2 : line + 2 + size]


def _contexts(target: Target) -> list[ssl.SSLContext]:
    """Make the client's contexts: one, or one for each holder; none for plain HTTP.

    The chain is not verified here: `instances` and `against` do so once before the load, and the
    client's time is not what is measured.
    """
    if not target.tls:
        return []
    contexts = []
    for holder in target.holders or (None,):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if holder is not None:
            context.load_cert_chain(holder)
        contexts.append(context)
    return contexts
