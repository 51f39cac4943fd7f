"""Commands about the audit trail."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, time
from functools import partial
from typing import Any

import click

from estserver.cli.operator import DATE, Operator, Topic
from estserver.store import Store, audit_checks, from_unix


@click.group(cls=Topic)
def audit() -> None:
    """The audit trail."""


@audit.command("export")
@click.option("--since", type=DATE, metavar="DATE", help="First day, UTC.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def export_command(operator: Operator, *, since: datetime | None, as_json: bool) -> None:
    """Print the audit trail, oldest row first.

    With --json each row has all that its hash covers, so that it can be re-checked elsewhere.
    """
    first = None if since is None else datetime.combine(since.date(), time(), UTC)
    with operator.core() as core:
        for row in _rows(core.store, first):
            click.echo(json.dumps(row, sort_keys=True) if as_json else _line(row))


def _rows(store: Store, since: datetime | None) -> Iterator[dict[str, Any]]:
    after = 0
    while page := store.read(partial(audit_checks.events, after=after, since=since)):
        yield from page
        after = page[-1]["id"]


def _line(row: dict[str, Any]) -> str:
    """Return what people want to see of a row."""
    said = json.loads(row["detail"])
    # As JSON, so that what somebody typed cannot steer the terminal.
    detail = [f"{name}={json.dumps(value)}" for name, value in said.items() if value is not None]
    at = f"{from_unix(row['at']):%Y-%m-%dT%H:%M:%SZ}"
    about = f"{row['event']} {row['object']} by {row['actor']} from {row['source']}"
    return " ".join([at, about, *detail])
