"""Programs of other people, run as their users run them."""

import os
import subprocess
from collections.abc import Mapping
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
