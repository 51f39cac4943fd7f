"""`estserver serve` as a process of its own, as an operator runs it, and clients that insist."""

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import cycle
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estserver.invitations import Handover
from tests.live import Live, basic, make_csr, new_key

PATIENCE_SECONDS = 60
_HANGING_SECONDS = 30
_REPOSITORY = Path(__file__).parent.parent.parent


@dataclass(slots=True)
class Process:
    """The server of an instance that is not started in here; its output goes to a file."""

    live: Live
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ("-m", "estserver")
    child: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Everything the process has written."""
        return self.live.directory / "serve.log"

    def start(self) -> None:
        """Start, and wait until it is ready."""
        self.begin()
        self.until(self._ready)

    def begin(self) -> None:
        """Start, and wait for nothing: a failpoint may end it before it is ready."""
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [*self._command, "serve", *self.arguments],
                # What a killed one leaves behind goes with the test.
                env={**os.environ, "TMPDIR": str(self.live.directory), **self.environment},
                stdout=log,
                stderr=log,
                cwd=_REPOSITORY,
            )

    @property
    def _command(self) -> list[str]:
        configuration = str(self.live.directory / "estserver.toml")
        return [sys.executable, *self.program, "--config", configuration]

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that the process, which must not end before, brings about."""
        assert self.child is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            assert time.monotonic() < deadline, self.log.read_text()
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(0.05)
                raise AssertionError(self.log.read_text())

    def until_told(self, event: str, times: int) -> None:
        """Wait until the log has so many lines of an event."""
        self.until(lambda: self.told(event) == times)

    def told(self, event: str) -> int:
        """Count the log lines of an event so far."""
        return len(re.findall(rf"\b{re.escape(event)}\b", self.log.read_text()))

    def _ready(self) -> bool:
        port = self.live.settings.listeners.management.port
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command on the same instance, which must succeed."""
        return subprocess.run(
            [*self._command, *arguments],
            cwd=_REPOSITORY,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_SECONDS,
            check=True,
        )

    def stop(self) -> None:
        """End it in order."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait(PATIENCE_SECONDS)

    def wait_killed(self) -> None:
        """Wait for the failpoint to end it."""
        assert self.child is not None
        assert self.child.wait(PATIENCE_SECONDS) == -signal.SIGKILL

    def kill(self) -> None:
        """End it without a word."""
        assert self.child is not None
        self.child.kill()
        self.child.wait(PATIENCE_SECONDS)

    def proc(self, name: str) -> bytes:
        """Return a file of the process' folder in /proc."""
        assert self.child is not None
        return Path(f"/proc/{self.child.pid}/{name}").read_bytes()

    @property
    def workers(self) -> list[int]:
        """The processes that serve for this one, oldest first."""
        assert self.child is not None
        return [int(pid) for pid in self.proc(f"task/{self.child.pid}/children").split()]

    @property
    def resident_bytes(self) -> int:
        """How much memory the process holds."""
        match = re.search(rb"VmRSS:\s+(\d+) kB", self.proc("status"))
        assert match is not None
        return int(match[1]) * 1024


@dataclass
class Client:
    """A device that keeps trying with one PIN and one key until it has a final answer.

    `others`: further nodes that serve the same, asked in turn. `answered` is released with
    each certificate that comes; `hung` counts the requests that got no answer in 30 s (I8).
    """

    live: Live
    handover: Handover
    patience: int = 2 * PATIENCE_SECONDS
    others: tuple[Live, ...] = ()
    answered: threading.Semaphore = field(default_factory=partial(threading.Semaphore, 0))
    received: list[bytes] = field(default_factory=list)
    final: int = 0
    hung: int = 0

    def run(self) -> None:
        body = base64.b64encode(make_csr(new_key()))
        headers = {"Content-Type": "application/pkcs10", "Authorization": basic(self.handover)}
        context = self.live.tls()
        deadline = time.monotonic() + self.patience
        pause = threading.Event()
        nodes = cycle((self.live, *self.others))
        while time.monotonic() < deadline:
            port = next(nodes).settings.listeners.devices.port
            connection = HTTPSConnection(
                "localhost", port, timeout=_HANGING_SECONDS, context=context
            )
            try:
                connection.request("POST", "/.well-known/est/simpleenroll", body, headers)
                response = connection.getresponse()
                answer = response.read()
            except (OSError, HTTPException) as error:
                self.hung += isinstance(error, TimeoutError)
                pause.wait(0.1)
                continue
            finally:
                connection.close()
            if response.status == 200:
                certificate = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))[0]
                self.received.append(certificate.public_bytes(Encoding.DER))
                self.answered.release()
                if len(self.received) == 2:
                    # The second answer proves that the same question got the same bytes.
                    self.final = 200
                    return
            elif response.status not in {500, 502, 503}:
                # 502: what a proxy says of a server that died meanwhile.
                self.final = response.status
                return
            pause.wait(0.02)
