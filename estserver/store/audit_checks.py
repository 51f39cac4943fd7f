"""The audit trail read again: whether its chains hold, and whether it is what was anchored.

A chain guards what stands before its last row. An anchor, kept outside the database, guards the
rest: the ends of all chains, and the order of rows between chains.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from estserver.store.audit import digest
from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.tables import audit_events
from estserver.wording import counted

PURGED = "purged"
"""The event of a row whose content was erased: its place and its hash stay."""
PURGE = "audit.purged"
"""The event that says so: its detail names the last row erased, `through`, by id."""
_PAGE = 1000

Ends = Mapping[str, tuple[int, bytes]]
"""The last row of each chain by writer: its number in the chain and its hash."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """How the trail stood at one moment: `ends` of the chains that had grown since the one before.

    `order` is over id and hash of the rows after the `through` of the anchor before, up to its own.
    """

    at: int
    rows: int
    through: int
    order: bytes
    ends: Ends


def chain_ends(tx: Transaction) -> dict[str, tuple[int, bytes]]:
    """Return where every chain ends."""
    longest = (
        sa.select(audit_events.c.writer, sa.func.max(audit_events.c.seq).label("seq"))
        .group_by(audit_events.c.writer)
        .subquery()
    )
    query = sa.select(audit_events.c.writer, audit_events.c.seq, audit_events.c.hash).join(
        longest,
        sa.and_(audit_events.c.writer == longest.c.writer, audit_events.c.seq == longest.c.seq),
    )
    return {row.writer: (row.seq, bytes(row.hash)) for row in tx.connection.execute(query)}


def last_before(tx: Transaction, moment: datetime) -> int:
    """Return the id of the newest row dated before `moment`, 0 without any."""
    query = (
        sa.select(audit_events.c.id)
        .where(audit_events.c.at < to_unix(moment))
        .order_by(audit_events.c.id.desc())
        .limit(1)
    )
    return tx.connection.execute(query).scalar_one_or_none() or 0


def order_of(tx: Transaction, after: int, through: int) -> bytes:
    """Return the hash over id and hash of the rows in (`after`, `through`]."""
    hasher = hashlib.sha256()
    columns = sa.select(audit_events.c.id, audit_events.c.hash).order_by(audit_events.c.id)
    while page := tx.connection.execute(
        columns.where(audit_events.c.id > after, audit_events.c.id <= through).limit(_PAGE)
    ).all():
        for row in page:
            hasher.update(_place(row.id, row.hash))
        after = page[-1].id
    return hasher.digest()


def _place(identifier: int, link: bytes) -> bytes:
    return f"{identifier}:".encode() + bytes(link)


def events(
    tx: Transaction, *, after: int = 0, since: datetime | None = None
) -> list[dict[str, Any]]:
    """Return a page of rows in order, hashes in hex; `after` is the id of the last one before."""
    query = sa.select(audit_events).where(audit_events.c.id > after)
    if since is not None:
        query = query.where(audit_events.c.at >= to_unix(since))
    rows = tx.connection.execute(query.order_by(audit_events.c.id).limit(_PAGE)).mappings()
    return [
        {name: bytes(v).hex() if name in {"previous", "hash"} else v for name, v in row.items()}
        for row in rows
    ]


def broken_links(connection: sa.Connection, anchors: Sequence[Anchor] = ()) -> Iterator[str]:
    """Yield a sentence for every row that does not fit its chain or the anchors.

    `anchors`, oldest first, were read before this begins. Rows that come in meanwhile are left
    for another time.
    """
    newest = connection.execute(sa.select(sa.func.max(audit_events.c.id))).scalar_one() or 0
    ends = {writer: end for anchor in anchors for writer, end in anchor.ends.items()}
    followed = sa.select(audit_events.c.follows).where(audit_events.c.follows != "")
    wanted = {f"{writer}:{seq}" for writer, (seq, _) in ends.items()}
    check = _Check(anchors, wanted | set(connection.execute(followed).scalars()))
    query = sa.select(audit_events).order_by(audit_events.c.id).limit(_PAGE)
    after = -sys.maxsize
    while page := connection.execute(
        query.where(audit_events.c.id > after, audit_events.c.id <= newest)
    ).all():
        for row in page:
            yield from check.row(row)
        after = page[-1].id
    yield from check.end(ends)


@dataclass(slots=True)
class _Check:
    """What is known of the rows read so far, in the order of their ids."""

    anchors: Sequence[Anchor]
    wanted: set[str]
    """Rows, as `writer:seq`, from which a chain continues or that an anchor names."""
    found: dict[str, bytes] = field(default_factory=dict)
    last: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    segment: int = 0
    hasher: Any = field(default_factory=hashlib.sha256)
    rows: int = 0
    last_erased: int = 0
    erasable: int = 0

    def row(self, row: sa.Row[Any]) -> Iterator[str]:
        """Judge the next row."""
        while self.segment < len(self.anchors) and row.id > self.anchors[self.segment].through:
            yield from self._end_segment()
        self.hasher.update(_place(row.id, row.hash))
        self.rows += 1
        name = f"{row.writer}:{row.seq}"
        if self._is_erased(row):
            self.last_erased = row.id
        elif digest({**row._mapping, "previous": bytes(row.previous)}) != bytes(row.hash):  # noqa: SLF001 - public in SQLAlchemy
            yield f"audit row {name}: content does not match its hash"
        elif row.event == PURGE:
            self.erasable = max(self.erasable, int(json.loads(row.detail).get("through", 0)))
        yield from self._link(row, name)
        self.last[row.writer] = (row.seq, bytes(row.hash))
        if name in self.wanted:
            self.found[name] = bytes(row.hash)

    @staticmethod
    def _is_erased(row: sa.Row[Any]) -> bool:
        said = (row.event, row.actor, row.object, row.request_id, row.source, row.detail)
        return said == (PURGED, "", "", "", "", "{}")

    def _link(self, row: sa.Row[Any], name: str) -> Iterator[str]:
        before = self.last.get(row.writer)
        if before is not None:
            if (row.seq, bytes(row.previous)) != (before[0] + 1, before[1]):
                yield f"audit row {name}: does not follow {row.writer}:{before[0]}"
        elif row.seq != 1:
            yield f"audit row {name}: the rows before it are missing"
        elif row.follows and self.found.get(row.follows) != bytes(row.previous):
            yield f"audit row {name}: continues {row.follows}, which is not there as it was"

    def _end_segment(self) -> Iterator[str]:
        anchor = self.anchors[self.segment]
        if self.hasher.digest() != anchor.order:
            yield (
                f"audit rows up to id {anchor.through}: are not those that were anchored at "
                f"{from_unix(anchor.at):%Y-%m-%d %H:%M:%S} UTC"
            )
        self.hasher = hashlib.sha256()
        self.segment += 1

    def end(self, ends: Ends) -> Iterator[str]:
        """Judge what can only be told once all rows were read."""
        while self.segment < len(self.anchors):
            yield from self._end_segment()
        for writer, (seq, anchored) in ends.items():
            if self.found.get(f"{writer}:{seq}") != anchored:
                yield f"audit row {writer}:{seq}: was anchored and is not there as it was"
        if self.anchors and self.rows < self.anchors[-1].rows:
            missing = self.anchors[-1].rows - self.rows
            gone = counted(missing, "audit row is", "audit rows are")
            yield f"{gone} missing of those that were anchored"
        if self.last_erased > self.erasable:
            yield f"audit rows up to id {self.last_erased} are erased, which no purge has done"
