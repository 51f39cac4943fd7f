"""The command line in process: commands run on one instance, their answers read back."""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from estserver.cli import main


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Commands configure logging for a process of their own; give the tests theirs back.

    A server in here logs to stderr as it is outside of commands: what is written to stdout while
    one runs is the command's own.
    """
    # A fixture for many tests may have run commands before this one was asked for.
    structlog.reset_defaults()
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.__stderr__))
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)


@dataclass(slots=True)
class Shell:
    """Runs commands on one instance."""

    directory: Path

    def run(self, *arguments: str, status: int = 0) -> Result:
        """Run a command; it must end with `status`, and never in a traceback."""
        configuration = str(self.directory / "estserver.toml")
        result = CliRunner().invoke(main, ["--config", configuration, *arguments])
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        return result

    def json(self, *arguments: str) -> Any:
        """Run a command with --json; stdout must be JSON and nothing else."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def refused(self, *arguments: str) -> str:
        """Run a command that must be refused; return its one sentence."""
        result = self.run(*arguments, status=1)
        assert not result.stdout
        sentence = result.stderr
        assert sentence.startswith("Error: ")
        assert sentence.count("\n") == 1
        return sentence
