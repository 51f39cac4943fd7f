"""`estserver serve` as a process of its own, as an operator runs it."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests.live import Live

PATIENCE_SECONDS = 60
_REPOSITORY = Path(__file__).parent.parent.parent


@dataclass(slots=True)
class Process:
    """The server of an instance that is not started in here; its output goes to a file."""

    live: Live
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    child: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Everything the process has written."""
        return self.live.directory / "serve.log"

    def start(self) -> None:
        """Start, and wait until it is ready."""
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "estserver",
                    "--config",
                    str(self.live.directory / "estserver.toml"),
                    "serve",
                    *self.arguments,
                ],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                cwd=_REPOSITORY,
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._ready():
            assert time.monotonic() < deadline, self.log.read_text()
            with suppress(subprocess.TimeoutExpired):
                self.child.wait(0.05)
                raise AssertionError(self.log.read_text())

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
            [
                sys.executable,
                "-m",
                "estserver",
                "--config",
                str(self.live.directory / "estserver.toml"),
                *arguments,
            ],
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

    def proc(self, name: str) -> bytes:
        """Return a file of the process' folder in /proc."""
        assert self.child is not None
        return Path(f"/proc/{self.child.pid}/{name}").read_bytes()

    @property
    def resident_bytes(self) -> int:
        """How much memory the process holds."""
        match = re.search(rb"VmRSS:\s+(\d+) kB", self.proc("status"))
        assert match is not None
        return int(match[1]) * 1024
