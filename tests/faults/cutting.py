"""A TCP proxy in front of PostgreSQL that loses answers, as networks do at the worst moment."""

import socket
import threading
from contextlib import suppress
from pathlib import Path

_TEXT = 5
"""Where the text of a simple query begins: after its type and length."""


class CuttingProxy:
    """Passes connections on to the PostgreSQL whose socket lies in `folder`.

    `cut_every`: of that many COMMITs of writers one reaches the server, and its answer nobody.
    """

    def __init__(self, folder: Path) -> None:
        self._target = folder / ".s.PGSQL.5432"
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._lock = threading.Lock()
        self._commits = 0
        self._open: set[socket.socket] = set()
        self.cut_every: int | None = None
        self.cuts = 0
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        number: int = self._listening.getsockname()[1]
        return number

    def close(self) -> None:
        """Cut all connections and let no more in: what is under way arrives no more."""
        with suppress(OSError):
            # Wakes the thread that accepts, which close() alone does not.
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for one in self._open:
                _cut(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._target))
            except OSError:
                client.close()
                server.close()
                continue
            _Passage(self, client, server).begin()

    def enter(self, *sockets: socket.socket) -> None:
        """Keep in mind what `close` must cut."""
        with self._lock:
            self._open.update(sockets)

    def leave(self, *sockets: socket.socket) -> None:
        """Close sockets for good."""
        with self._lock:
            self._open.difference_update(sockets)
            for one in sockets:
                one.close()

    def is_to_be_cut(self) -> bool:
        """Count one more COMMIT; tell whether its answer gets lost."""
        with self._lock:
            self._commits += 1
            cut = self.cut_every is not None and self._commits % self.cut_every == 0
            self.cuts += cut
            return cut


class _Passage:
    """One connection from a node to the server."""

    def __init__(self, proxy: CuttingProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._writes = False
        self._swallows = False

    def begin(self) -> None:
        self._proxy.enter(self._client, self._server)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        back = threading.Thread(target=self._pass_back, daemon=True)
        back.start()
        with suppress(OSError):
            while octets := self._client.recv(65536):
                text = octets[_TEXT:]
                if text.startswith(b"BEGIN"):
                    # Who only reads wants one snapshot for all of it.
                    self._writes = b"REPEATABLE READ" not in text
                elif text.startswith(b"COMMIT") and self._writes:
                    self._swallows = self._proxy.is_to_be_cut()
                self._server.sendall(octets)
        _cut(self._server)
        back.join()
        self._proxy.leave(self._client, self._server)

    def _pass_back(self) -> None:
        with suppress(OSError):
            while (octets := self._server.recv(65536)) and not self._swallows:
                self._client.sendall(octets)
        _cut(self._client)


def _cut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
