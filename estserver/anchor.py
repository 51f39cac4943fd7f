"""The audit anchor: a file outside the database that remembers how the audit trail stood.

One JSON line an hour. Rows that are changed, reordered or cut off afterwards no longer agree with
it, even where every link of every chain was made anew; only what is younger than the newest anchor
can be cut off unseen, and the order of rows of different chains is anchored once it has settled. It
proves most where whoever can write the database cannot write the file. A line torn by a crash is
passed over.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from estserver.errors import ConfigurationError
from estserver.files import give, make_folder
from estserver.store import Store, Transaction, audit_checks, from_unix
from estserver.store.audit_checks import Anchor

EVERY = timedelta(hours=1)
_SETTLING = timedelta(minutes=10)
"""Longer than any transaction: older rows have all been committed, so their order is settled."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """How many rows that were anchored the trail lacks; `at` is that of the newest anchor."""

    path: Path
    at: datetime
    rows: int


class AnchorFile:
    """The anchors of one trail. Processes may share the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Anchor]:
        """Return the anchors since the trail was last begun anew, oldest first.

        Raises ConfigurationError: the file cannot be read or a line is none of ours.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self.path}: cannot be read: {error}") from error
        anchors: list[Anchor] = []
        *lines, _torn = text.split("\n")
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                if "begun_anew" in fields:
                    anchors.clear()
                else:
                    anchors.append(_anchor(fields))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(f"{self.path} line {number}: is no anchor") from error
        return anchors

    def drop(self, store: Store, now: datetime) -> Anchor:
        """Note how the trail stands now. Raises Unavailable, ConfigurationError, OSError."""
        with self._alone() as descriptor:
            before = self.read()
            anchor = store.read(lambda tx: _take(tx, now, before))
            fields = {
                "at": anchor.at,
                "rows": anchor.rows,
                "through": anchor.through,
                "order": anchor.order.hex(),
                "ends": {writer: [seq, end.hex()] for writer, (seq, end) in anchor.ends.items()},
            }
            _append(descriptor, fields)
        return anchor

    def drop_due(self, store: Store, now: datetime) -> None:
        """Note how the trail stands unless that was done within the hour. Raises as `drop`."""
        newest = age(self.read(), now)
        if newest is None or newest >= EVERY:
            self.drop(store, now)

    def shortfall(self, store: Store) -> Shortfall | None:
        """Say how many rows at the ends of chains were anchored and are not there; None: none.

        Raises ConfigurationError: the file cannot be read; Unavailable.
        """
        anchors = self.read()
        ends = {writer: end for anchor in anchors for writer, end in anchor.ends.items()}
        there = store.read(audit_checks.chain_ends)
        rows = sum(
            max(0, seq - there.get(writer, (0, b""))[0]) for writer, (seq, _) in ends.items()
        )
        return Shortfall(self.path, from_unix(anchors[-1].at), rows) if rows else None

    def begin_anew(self, now: datetime, why: str) -> None:
        """Let what is anchored so far count no more; it stays readable. Raises OSError."""
        with self._alone() as descriptor:
            _append(descriptor, {"at": int(now.timestamp()), "begun_anew": why})

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Open the file for appending, which nobody else does meanwhile; end a torn line."""
        make_folder(self.path.parent)
        is_new = not self.path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        descriptor = os.open(self.path, flags, 0o600)
        try:
            if is_new:
                give(descriptor, self.path.parent.stat())
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            whole = os.pread(descriptor, os.fstat(descriptor).st_size, 0).rfind(b"\n") + 1
            os.ftruncate(descriptor, whole)
            yield descriptor
        finally:
            os.close(descriptor)


def _append(descriptor: int, fields: dict[str, object]) -> None:
    os.write(descriptor, json.dumps(fields, sort_keys=True).encode() + b"\n")
    os.fsync(descriptor)


def _anchor(fields: dict[str, object]) -> Anchor:
    """Turn a line into an anchor. Raises ValueError, KeyError, TypeError."""
    match fields:
        case {
            "at": int(at),
            "rows": int(rows),
            "through": int(through),
            "order": str(order),
            "ends": dict(ends),
        }:
            told = {writer: (int(seq), bytes.fromhex(end)) for writer, (seq, end) in ends.items()}
            return Anchor(at, rows, through, bytes.fromhex(order), told)
        case _:
            raise ValueError("not the fields of an anchor")


def _take(tx: Transaction, now: datetime, before: list[Anchor]) -> Anchor:
    ends = audit_checks.chain_ends(tx)
    known = {writer: end for anchor in before for writer, end in anchor.ends.items()}
    after = before[-1].through if before else 0
    through = max(after, audit_checks.last_before(tx, now - _SETTLING))
    return Anchor(
        at=int(now.timestamp()),
        rows=sum(seq for seq, _ in ends.values()),
        through=through,
        order=audit_checks.order_of(tx, after, through),
        ends={writer: end for writer, end in ends.items() if known.get(writer) != end},
    )


def age(anchors: list[Anchor], now: datetime) -> timedelta | None:
    """Return how old the newest anchor is, or None without any."""
    return None if not anchors else now - datetime.fromtimestamp(anchors[-1].at, UTC)
