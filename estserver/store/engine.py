"""The database behind one door: `write` for every change, `read` for everything else.

A unit of work is a function of a transaction. It touches nothing but the database, so it may run
again; when `write` returns it happened durably, when `write` raises it did not happen (or, where
the connection broke during COMMIT or that took too long, `Unavailable` says that the caller must
look).

Units that wait at the same moment share one durable commit, each in a savepoint of its own: one
fsync costs as much as thirty rows, and a refusal of one unit must not undo its neighbours.
"""

import collections
import contextlib
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa

from estserver.errors import Fault, Unavailable
from estserver.failpoints import reach
from estserver.journal import Entry, Journal
from estserver.model import Clock, Event, Origin
from estserver.store import audit
from estserver.store.connecting import WAIT_SECONDS, open_engine
from estserver.store.gate import Gate
from estserver.store.kept import Kept
from estserver.store.prepared import unless_there

T = TypeVar("T")
_GROUP = 256
_LAST_SECONDS = 6
"""With WAIT_SECONDS below the 30 s that no request may hang (invariant I8): for its own commit."""


def to_unix(moment: datetime) -> int:
    """Turn an aware datetime into whole seconds since 1970 UTC."""
    return int(moment.timestamp())


def from_unix(seconds: int) -> datetime:
    """Turn seconds since 1970 UTC into an aware datetime."""
    return datetime.fromtimestamp(seconds, UTC)


_DIGESTS = sa.func.unnest(sa.bindparam("digests", type_=sa.ARRAY(sa.BigInteger))).column_valued(
    "digest"
)
_LOCK = sa.select(sa.func.pg_advisory_xact_lock(_DIGESTS))


@dataclass(slots=True)
class Transaction:
    """What a unit of work may use: the connection, the time, and the audit trail."""

    connection: sa.Connection
    now: datetime
    events: list[tuple[Event, Origin, int]] = field(default_factory=list)
    journals: bool = False
    """Whether anybody keeps what `journal` is told: facts that only a journal needs cost a read."""
    entries: list[Entry] = field(default_factory=list)
    topics: set[str] = field(default_factory=set)
    """What this transaction changes that somebody keeps in memory; see `Store.commits`."""

    @property
    def at(self) -> int:
        """`now` as the tables store it."""
        return to_unix(self.now)

    def audit(self, event: Event, origin: Origin) -> None:
        """Record `event` in this transaction; it is chained when the unit ends."""
        self.events.append((event, origin, self.at))

    def journal(self, entry: Entry) -> None:
        """Put `entry` into the journal before this transaction is committed."""
        if self.journals:
            self.entries.append(entry)

    def insert_new(self, table: sa.Table, **values: Any) -> bool:
        """Insert a row unless a unique column forbids; return whether it was inserted."""
        statement = unless_there(table, self.connection.dialect.name).values(**values)
        # SQLAlchemy forgets the count of an INSERT unless told to keep it.
        statement = statement.execution_options(preserve_rowcount=True)
        return self.connection.execute(statement).rowcount == 1

    def lock(self, digests: Sequence[bytes]) -> None:
        """Wait until no other transaction holds what `digests` (of 8 bytes or more) name.

        For rules about rows that are not there yet. SQLite has one writer at a time anyway.
        """
        if self.connection.dialect.name == "postgresql":
            # In one order for all, or two transactions would wait for each other.
            names = sorted({int.from_bytes(digest[:8], signed=True) for digest in digests})
            self.connection.execute(_LOCK, {"digests": names})

    def change(self, statement: sa.Update | sa.Delete) -> int:
        """Run a conditional UPDATE or DELETE; return how many rows it changed."""
        return self.connection.execute(statement).rowcount


@dataclass(slots=True)
class _Unit:
    run: Callable[[Transaction], Any]
    future: Future[Any]
    failed: BaseException | None = None
    result: Any = None
    topics: set[str] = field(default_factory=set)

    def claim(self) -> bool:
        """Tell whether somebody still waits for it; it cannot be withdrawn any more then."""
        future = self.future
        if future.cancelled():
            return False
        return future.running() or future.set_running_or_notify_cancel()


class Store:
    """One database. Thread-safe; `close()` waits for what is under way."""

    def __init__(self, url: str, clock: Clock, journal: Journal | None = None) -> None:
        """`journal` None: what is written stands in the database alone."""
        self._clock = clock
        self._journal = journal
        self._engine = open_engine(url)
        self._gate = Gate(self._engine.url)
        # PostgreSQL would show each statement of a read another moment; SQLite never does.
        self._reader = (
            self._engine.execution_options(isolation_level="REPEATABLE READ")
            if self._engine.dialect.name == "postgresql"
            else self._engine
        )
        self._writer = Kept(self._engine.execution_options(estserver_write=True))
        self._queue: queue.SimpleQueue[list[_Unit] | None] = queue.SimpleQueue()
        self._closed = False
        self._closing = threading.Lock()
        self._head: audit.Head | None = None
        self._writer_id = f"{clock.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        self._commits: collections.Counter[str] = collections.Counter()
        self._thread = threading.Thread(target=self._write_forever, name="store", daemon=True)
        self._thread.start()

    @property
    def engine(self) -> sa.Engine:
        """The engine, for migrations."""
        return self._engine

    def write(self, run: Callable[[Transaction], T]) -> T:
        """Run one unit of work and return its result once it is durable.

        Raises whatever `run` raises (nothing is written then), and Unavailable: the database is
        busy, full, read-only, gone or closing.
        """
        (outcome,) = self.write_all([run])
        result: T = outcome()
        return result

    def write_all(self, runs: Sequence[Callable[[Transaction], T]]) -> list[Callable[[], T]]:
        """Run several units of work as `write` runs one, sharing one commit.

        Returns for each a function that returns its result, or raises what `write` would raise.
        Raises Unavailable: the database is closing.
        """
        if threading.current_thread() is self._thread:
            raise Fault("a unit of work started another one")
        units = [_Unit(run, Future()) for run in runs]
        with self._closing:
            # Nothing may queue behind the end mark: nobody would ever answer it.
            if self._closed:
                raise Unavailable("the server is stopping", retry_after=timedelta(seconds=5))
            self._queue.put(units)
        begun_by = time.monotonic() + WAIT_SECONDS
        return [_outcome(unit.future, begun_by) for unit in units]

    def read(self, run: Callable[[Transaction], T]) -> T:
        """Run `run` on a snapshot and return its result.

        Raises Unavailable: the database is busy or gone.
        """
        with database_errors(), self._reader.connect() as connection, connection.begin():
            return run(Transaction(connection, self._clock.now()))

    def reader(self) -> "Reader":
        """Return what reads for one thread that does so all the time; the caller closes it."""
        return Reader(self._reader, self._clock)

    def commits(self, topic: str) -> int:
        """Count the commits of this process that named `topic`: memory is stale once it grew."""
        return self._commits[topic]

    def close(self) -> None:
        """Finish what is queued, then let go of the database."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._writer.close()
        self._engine.dispose()
        self._gate.close()

    def _write_forever(self) -> None:
        while (arrived := self._queue.get()) is not None:
            group = arrived
            following: list[_Unit] | None = []
            while len(group) < _GROUP:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    break
                group = group + following
            self._write_group(group)
            if following is None:
                return

    def _write_group(self, group: list[_Unit]) -> None:
        try:
            with database_errors():
                try:
                    head = self._commit(group, savepoints=False)
                except _Failed:
                    head = self._commit(group, savepoints=True)
        except _Divided:
            self._head = None
            for unit in group:
                self._write_group([_Unit(unit.run, unit.future)])
            return
        except BaseException as error:  # noqa: BLE001 - handed to every waiting caller below
            self._head = None
            self._count(group)
            for unit in group:
                if unit.claim():
                    unit.future.set_exception(unit.failed or error)
            return
        self._head = head
        self._count(group)
        for unit in group:
            if unit.future.cancelled():
                continue
            if unit.failed is not None:
                unit.future.set_exception(unit.failed)
            else:
                unit.future.set_result(unit.result)

    def _count(self, group: list[_Unit]) -> None:
        """Count what was committed, or may have been, before anybody is told."""
        for unit in group:
            self._commits.update(unit.topics)

    def _commit(self, group: list[_Unit], *, savepoints: bool) -> audit.Head:
        """Commit units; with savepoints without those that fail, else all or none.

        Raises _Failed: one of them has failed, and there are no savepoints.
        """
        with self._gate.passing(), self._writer.transaction() as connection:
            head = self._head or audit.open_chain(connection, self._next_writer())
            entries: list[Entry] = []
            # Not before it is our turn to write: until then units may be withdrawn.
            for unit in filter(_Unit.claim, group):
                transaction = Transaction(
                    connection, self._clock.now(), journals=self._journal is not None
                )
                try:
                    unit.topics = transaction.topics
                    with connection.begin_nested() if savepoints else contextlib.nullcontext():
                        unit.result = unit.run(transaction)
                        following = audit.append(connection, head, transaction.events)
                    head = following
                    entries += transaction.entries
                except _OUTAGES as error:
                    # The whole transaction is lost, not only this unit's savepoint.
                    if len(group) > 1 and getattr(error.orig, "sqlstate", None) in _ENTANGLED:
                        raise _Divided from error
                    raise
                except Exception as error:
                    if not savepoints:
                        raise _Failed from error
                    unit.failed = error
            self._write_journal(entries, alone=len(group) == 1)
        return head

    def _write_journal(self, entries: list[Entry], *, alone: bool) -> None:
        """Write down what is about to be committed. Raises Unavailable: it must not be."""
        if self._journal is None:
            return
        try:
            self._journal.append(entries)
        except Unavailable as error:
            if alone:
                raise
            # Units that have nothing to write there need not suffer.
            raise _Divided from error
        for entry in entries:
            if entry.kind in _JOURNALLED:
                reach(_JOURNALLED[entry.kind])

    def _next_writer(self) -> str:
        """Name a chain: after a failed commit nobody knows whether the old one has grown."""
        self._writer_id = f"{self._writer_id.rsplit('.', 1)[0]}.{secrets.token_hex(2)}"
        return self._writer_id


class Reader:
    """Reads as `Store.read` does, over a connection of its own. For one thread at a time."""

    def __init__(self, engine: sa.Engine, clock: Clock) -> None:
        self._kept = Kept(engine)
        self._clock = clock

    def read(self, run: Callable[[Transaction], T]) -> T:
        """Run `run` on a snapshot and return its result. Raises Unavailable."""
        with database_errors(), self._kept.transaction() as connection:
            return run(Transaction(connection, self._clock.now()))

    def close(self) -> None:
        """Let go of the connection."""
        self._kept.close()


def _outcome(future: Future[T], begun_by: float) -> Callable[[], T]:
    """Wait for a unit, and return what tells how it ended.

    One that has not begun in time is withdrawn; one that has gets a moment more to tell.
    """
    if _settled(future, begun_by - time.monotonic()) or (
        not future.cancel() and _settled(future, begun_by + _LAST_SECONDS - time.monotonic())
    ):
        return future.result
    return _tell_busy


def _tell_busy() -> NoReturn:
    raise _busy()


def _settled(future: Future[Any], seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        future.exception(seconds)
    return future.done()


class _Failed(Exception):
    """A unit of a group has failed, and its changes cannot be told from its neighbours'.

    Most groups have no such unit, and savepoints cost each of them as much as a row.
    """


class _Divided(Exception):
    """A group of units cannot be committed together: each is tried by itself.

    Somebody else's transaction and ours waited for each other, which one unit cannot; or the
    journal, which some of them need, is full.
    """


_JOURNALLED = {"intent": "intent-journalled", "certificate": "stored-journalled"}
"""Failpoints by kind of entry."""

_OUTAGES = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError)
_ENTANGLED = ("40P01", "40001")
"""SQLSTATE of deadlocks and of conflicts between transactions."""


_DAMAGED = "the database file is damaged: restore it from a backup"
"""SQLite's DatabaseError itself, none of its kinds, tells of a file whose pages make no sense."""


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turn a busy, full, read-only or lost database into Unavailable, a damaged one into Fault."""
    try:
        yield
    # Bare sqlite3 errors come from new connections and from BEGIN, OSError from the gate.
    except (*_OUTAGES, sa.exc.TimeoutError, sqlite3.OperationalError, OSError) as error:
        raise _busy() from error
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise _busy() from error
        if type(error.orig) is sqlite3.DatabaseError:
            raise Fault(_DAMAGED) from error
        raise
    except sqlite3.DatabaseError as error:
        raise Fault(_DAMAGED) from error


def _busy() -> Unavailable:
    sentence = "the database is busy or cannot be written now: try again"
    return Unavailable(sentence, retry_after=timedelta(seconds=5))
