"""The audit trail: append-only, hash-chained rows, written in the transaction of the change.

Each writer process has one chain. Its first row continues from the newest row it found, so that
the chains of short-lived commands hang together too. A row's hash covers all its columns and the
hash before it; editing, removing or reordering rows breaks a link.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from estserver.model import Event, Origin
from estserver.store.tables import audit_events

_NOTHING = bytes(32)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of one writer's chain: how many rows, the last hash, and what it continues."""

    writer: str
    seq: int = 0
    hash: bytes = _NOTHING
    follows: str = ""


def _digest(row: dict[str, object]) -> bytes:
    """Hash the canonical JSON of a row; `previous` goes in as hex."""
    fields = ("writer", "seq", "at", "event", "actor", "object", "request_id", "source")
    content = {name: row[name] for name in (*fields, "detail", "follows")}
    previous = row["previous"]
    assert isinstance(previous, bytes)  # noqa: S101 - narrows the column for mypy
    text = json.dumps({**content, "previous": previous.hex()}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).digest()


def open_chain(connection: sa.Connection, writer: str) -> Head:
    """Start a chain that continues from the newest row in the database."""
    newest = connection.execute(
        sa.select(audit_events.c.writer, audit_events.c.seq, audit_events.c.hash)
        .order_by(audit_events.c.id.desc())
        .limit(1)
    ).one_or_none()
    if newest is None:
        return Head(writer)
    return Head(writer, hash=bytes(newest.hash), follows=f"{newest.writer}:{newest.seq}")


def append(connection: sa.Connection, head: Head, events: list[tuple[Event, Origin, int]]) -> Head:
    """Insert `events` (event, origin, unix time) after `head`; return the new head."""
    rows = []
    for event, origin, at in events:
        row: dict[str, object] = {
            "writer": head.writer,
            "seq": head.seq + 1,
            "at": at,
            "event": event.name,
            "actor": event.actor,
            "object": event.object,
            "request_id": origin.request_id,
            "source": origin.source,
            "detail": json.dumps(dict(event.detail), sort_keys=True, ensure_ascii=False),
            "follows": head.follows if head.seq == 0 else "",
            "previous": head.hash,
        }
        row["hash"] = _digest(row)
        rows.append(row)
        head = Head(head.writer, head.seq + 1, _digest(row))
    if rows:
        connection.execute(sa.insert(audit_events), rows)
    return head


def broken_links(connection: sa.Connection) -> Iterator[str]:
    """Yield a sentence for every row that does not fit its chain."""
    last: dict[str, tuple[int, bytes]] = {}
    starts: dict[str, bytes] = {}
    for record in connection.execute(sa.select(audit_events).order_by(audit_events.c.id)):
        row = {**record._mapping, "previous": bytes(record.previous)}  # noqa: SLF001 - public in SQLAlchemy
        where = f"audit row {record.writer}:{record.seq}"
        if _digest(row) != bytes(record.hash):
            yield f"{where}: content does not match its hash"
        if record.writer in last:
            seq, previous = last[record.writer]
            if record.seq != seq + 1 or bytes(record.previous) != previous:
                yield f"{where}: does not follow {record.writer}:{seq}"
        elif record.seq != 1:
            yield f"{where}: the rows before it are missing"
        elif record.follows and starts.get(record.follows) != bytes(record.previous):
            yield f"{where}: continues {record.follows}, which is not there as it was"
        last[record.writer] = (record.seq, bytes(record.hash))
        starts[f"{record.writer}:{record.seq}"] = bytes(record.hash)
