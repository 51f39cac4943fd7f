"""The audit trail: append-only, hash-chained rows, written in the transaction of the change.

Each writer process has one chain. Its first row continues from the newest row it found, so that
the chains of short-lived commands hang together too. A row's hash covers all its columns and the
hash before it; editing, removing or reordering rows breaks a link.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from estserver.errors import Fault
from estserver.model import Event, Origin
from estserver.store import prepared
from estserver.store.tables import audit_events

_NOTHING = bytes(32)
_CANONICAL = json.JSONEncoder(ensure_ascii=True).encode
_READABLE = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
_INSERT = prepared.insert(
    audit_events,
    *("writer", "seq", "at", "event", "actor", "object", "request_id", "source", "detail"),
    *("follows", "previous", "hash"),
)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of one writer's chain: how many rows, the last hash, and what it continues."""

    writer: str
    seq: int = 0
    hash: bytes = _NOTHING
    follows: str = ""


def digest(row: Mapping[str, object]) -> bytes:
    """Hash the canonical JSON of a row, its keys in order; `previous` goes in as hex."""
    # Put together here: for a whole object json takes more than twice as long.
    previous = row["previous"]
    assert isinstance(previous, bytes)  # noqa: S101 - narrows the column for mypy
    text = (
        f'{{"actor": {_CANONICAL(row["actor"])}, "at": {row["at"]}, '
        f'"detail": {_CANONICAL(row["detail"])}, "event": {_CANONICAL(row["event"])}, '
        f'"follows": {_CANONICAL(row["follows"])}, "object": {_CANONICAL(row["object"])}, '
        f'"previous": "{previous.hex()}", "request_id": {_CANONICAL(row["request_id"])}, '
        f'"seq": {row["seq"]}, "source": {_CANONICAL(row["source"])}, '
        f'"writer": {_CANONICAL(row["writer"])}}}'
    )
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
    """Insert `events` (event, origin, unix time) after `head`; return the new head.

    Raises Fault: another process writes this chain.
    """
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
            "detail": _READABLE.encode(dict(event.detail)),
            "follows": head.follows if head.seq == 0 else "",
            "previous": head.hash,
        }
        row["hash"] = end = digest(row)
        rows.append(row)
        head = Head(head.writer, head.seq + 1, end)
    if _INSERT.run(connection, rows) != len(rows):
        raise Fault("the audit chain has gone on elsewhere")
    return head
