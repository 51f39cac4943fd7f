"""Programs of other people, run as their users run them."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program left behind; stdout and stderr as text."""

    status: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit status {self.status}\n{self.out}\n{self.err}"


@dataclass(frozen=True, slots=True)
class Shell:
    """A folder to work in, and variables that stand for what differs from test to test."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, script: str, **variables: str) -> str:
        """Run a line of shell that must succeed in each part of its pipes; return its output."""
        outcome = self.attempt(script, **variables)
        assert outcome.status == 0, f"{script}\n{outcome}"
        return outcome.out

    def attempt(self, script: str, **variables: str) -> Outcome:
        """Run a line of shell, whatever comes of it."""
        return run(
            ["bash", "-c", f"set -o pipefail\n{script}"],
            self.folder,
            {**self.variables, **variables},
        )

    @contextlib.contextmanager
    def serving(self, command: str, **variables: str) -> Iterator["Running"]:
        """Keep a program running until the block is left."""
        log = self.folder / "serving.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=environment(self.folder, {**self.variables, **variables}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            yield Running(process, log)
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


@dataclass(frozen=True, slots=True)
class Running:
    """A program that runs, and the file that takes what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    def until(self, condition: Callable[[], object]) -> None:
        """Look again and again until something is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            threading.Event().wait(0.05)


def environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Return `variables` and nothing else of whoever runs the tests but the path."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8", **variables}


def run(
    command: list[str],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    *,
    text: str | None = None,
) -> Outcome:
    """Run a program in `folder` with `text` for its standard input."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, variables or {}),
        input=text,
        stdin=None if text is not None else subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
