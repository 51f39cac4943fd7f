"""Who runs a command, on which instance, and what becomes of an error: the frame of the CLI.

Exit status 0: done. 1: refused or failed, one sentence on stderr. 2: usage.
"""

import contextlib
import getpass
import os
import pkgutil
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal

import click
import structlog

from estserver import config, logs
from estserver.config import Settings
from estserver.core import Core, SystemClock, open_core
from estserver.errors import Error
from estserver.model import Origin
from estserver.settings import Log, parse_duration
from estserver.wording import trouble

log = structlog.get_logger("estserver.cli")

_SENTENCE = 200
"""Longer than the first sentence of any command's help."""


@dataclass(frozen=True, slots=True)
class Operator:
    """The person at the terminal: `by` is how the audit trail names them."""

    configuration: Path | None
    debug: bool = False
    by: str = field(default_factory=lambda: f"operator {_login()}")
    origin: Origin = field(default_factory=lambda: Origin(secrets.token_hex(8), "cli"))

    def settings(self) -> Settings:
        """Read the configuration. Raises ConfigurationError."""
        settings = config.load(config.find(self.configuration, os.environ))
        if not self.debug:
            return settings
        # `serve` logs as the configuration says, and shall say where it went wrong all the same.
        log_in_full = settings.log.model_copy(update={"level": "debug"})
        return settings.model_copy(update={"log": log_in_full})

    @contextlib.contextmanager
    def core(self) -> Iterator[Core]:
        """Open the instance without its CA keys: no command but `serve` and `doctor` loads one."""
        core = open_core(self.settings(), SystemClock(), with_keys=False)
        try:
            yield core
        finally:
            core.close()


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user often has a number but no name.
        return f"uid {os.getuid()}"


class Topic(click.Group):
    """A group of commands whose help says each of them in a whole sentence."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, wrapped where click would cut their sentences short."""
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(_SENTENCE))
                    for name, command in found.items()
                    if command is not None
                ]
            )


class Commands(Topic):
    """The outermost group: turns every error into one sentence and an exit status.

    `places` names each command and where it is, as module:name; it is imported when called.
    """

    def __init__(self, *, places: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(**attributes)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names, as they stand in `--help`."""
        del ctx
        return sorted(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None: there is no such."""
        del ctx
        if cmd_name not in self._places:
            return None
        command: click.Command = pkgutil.resolve_name(self._places[cmd_name])
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command behind the last wall."""
        try:
            return super().invoke(ctx)
        except Error as error:
            log.debug("command.refused", error=error.code, exc_info=error)
            raise click.ClickException(error.detail) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except OSError as error:
            # A folder that may not be written, a disk that is full.
            _teller(ctx)("command.refused", error=type(error).__name__, exc_info=error)
            raise click.ClickException(trouble(error)) from None
        except Exception as error:  # noqa: BLE001 - the last wall: nobody is shown a traceback unasked
            reference = secrets.token_hex(4)
            _teller(ctx)("command.failed", request_id=reference, exc_info=error)
            where = "the log says" if _serves(ctx) else "run the command again with --debug to see"
            raise click.ClickException(
                f"internal error {reference} ({type(error).__name__}): {where} where"
            ) from None


def _serves(ctx: click.Context) -> bool:
    """Tell whether this command has a log that is kept, and nobody who could run it once more."""
    return ctx.invoked_subcommand == "serve"


def _teller(ctx: click.Context) -> Callable[..., None]:
    """Return what logs a traceback: for people only if they ask for it."""
    tell: Callable[..., None] = log.error if _serves(ctx) else log.debug
    return tell


def log_to_stderr(*, debug: bool) -> None:
    """Keep log lines away from stdout, which belongs to the command's answer."""
    level: Literal["debug", "warning"] = "debug" if debug else "warning"
    logs.configure(Log(format="console", level=level), sys.stderr)


def confirm(question: str) -> None:
    """Ask the person; go on only after a yes. The command has an option --yes.

    Raises click.ClickException: they said no, or there is nobody to ask.
    """
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        # The question stands there without an end.
        click.echo(err=True)
        raise click.ClickException(
            "nobody is there to answer, so nothing was done: say --yes to go on without asking"
        ) from None
    if not agreed:
        raise click.ClickException("nothing was done")


class AnyCase(click.Choice[str]):
    """One of some words as they are written, whatever the case they are typed in."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word as it is written."""
        meant = (one for one in self.choices if one.casefold() == value.casefold())
        return super().convert(next(meant, value), param, ctx)


class DurationType(click.ParamType[timedelta]):
    """`90d`, `12h`, `30m`, `10s` or `2w`."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Parse strictly; a number without a unit is refused."""
        try:
            parsed = parse_duration(value)
        except (ValueError, OverflowError):
            parsed = value
        if not isinstance(parsed, timedelta):
            self.fail(f"{value!r} is not a duration such as 90d, 12h or 2w", param, ctx)
        return parsed


class DateType(click.ParamType[datetime]):
    """A day as YYYY-MM-DD; becomes its last second in UTC, so that the day itself counts."""

    name = "date"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Parse strictly: four, two and two digits."""
        if isinstance(value, datetime):
            return value
        text = str(value)
        try:
            if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
                raise ValueError(text)
            day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            self.fail(f"{text!r} is not a date as YYYY-MM-DD", param, ctx)
        return datetime.combine(day, time(23, 59, 59), UTC)


@dataclass(frozen=True, slots=True)
class Serial:
    """What was typed as a serial: all numbers it can mean. Only digits can mean two."""

    text: str
    numbers: tuple[int, ...]


class SerialType(click.ParamType[Serial]):
    """A serial in hex, colon hex (as Firefox shows it) or decimal."""

    name = "serial"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Serial:
        """Colons, a-f or 0x mean hex; digits alone are looked up both ways."""
        if isinstance(value, Serial):
            return value
        text = str(value).strip()
        digits = text.removeprefix("0x").removeprefix("0X")
        if not re.fullmatch(r"[0-9A-Fa-f]{1,64}|[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){0,31}", digits):
            self.fail(f"{text!r} is not a serial in hex, colon hex or decimal", param, ctx)
        as_hex = int(digits.replace(":", ""), 16)
        if digits != text or not digits.isdecimal():
            return Serial(text, (as_hex,))
        return Serial(text, tuple(dict.fromkeys((as_hex, int(digits)))))


DURATION = DurationType()
DATE = DateType()
SERIAL = SerialType()
