"""Units of work, the commits they share, and databases that are busy, full or gone."""

import fcntl
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from estserver.errors import Conflict, Fault, Unavailable
from estserver.model import Event
from estserver.store import Store, Transaction, engine, migrate
from estserver.store.connecting import open_engine
from estserver.store.tables import attempts, audit_events
from tests.live import MovableClock
from tests.parts import ORIGIN
from tests.postgres import make_schema
from tests.store.units import Gate, MakeStore, findings, in_one_group, keys, note, put


def add_one(tx: Transaction, key: str) -> None:
    """Read, then write: what loses updates where transactions begin late."""
    query = sa.select(attempts.c.failures).where(attempts.c.key == key).with_for_update()
    count = tx.connection.execute(query).scalar_one()
    tx.connection.execute(
        sa.update(attempts).where(attempts.c.key == key).values(failures=count + 1)
    )


def count_of(store: Store, key: str) -> int:
    query = sa.select(attempts.c.failures).where(attempts.c.key == key)
    count: int = store.read(lambda tx: tx.connection.execute(query).scalar_one())
    return count


# -- units of work -----------------------------------------------------------------------------


def test_a_unit_returns_its_result_once_it_is_there_for_others(make_store: MakeStore) -> None:
    store, other = make_store(), make_store()

    def unit(tx: Transaction) -> str:
        put(tx, "a")
        return "done"

    assert store.write(unit) == "done"
    assert keys(other) == {"a"}


def test_units_that_wait_together_share_one_commit(sqlite_store: Store) -> None:
    commits: list[object] = []
    sa.event.listen(sqlite_store.engine, "commit", commits.append)
    in_one_group(sqlite_store, [partial(put, key=f"{n}") for n in range(20)])
    assert len(keys(sqlite_store)) == 20
    # One for the unit that held the gate, one for the twenty; reads commit too.
    assert len(commits) == 3


@pytest.mark.parametrize(
    "refusal", [Conflict("no"), Fault("no"), Unavailable("no"), ValueError("no"), TimeoutError()]
)
def test_a_unit_that_raises_writes_nothing_and_spares_its_neighbours(
    store: Store, refusal: Exception
) -> None:
    def refused(tx: Transaction) -> None:
        put(tx, "refused")
        tx.audit(Event("refused", "test", "it"), ORIGIN)
        raise refusal

    def kept(tx: Transaction, key: str) -> str:
        put(tx, key)
        tx.audit(Event("kept", "test", key), ORIGIN)
        return key

    answers = in_one_group(
        store, [lambda tx: kept(tx, "before"), refused, lambda tx: kept(tx, "after")]
    )
    assert answers == ["before", refusal, "after"]
    assert keys(store) == {"before", "after"}
    query = sa.select(audit_events.c.event)
    names = store.read(lambda tx: tx.connection.execute(query).scalars().all())
    assert names == ["kept", "kept"]
    assert findings(store) == []


def test_a_new_row_is_told_from_one_that_was_there(store: Store) -> None:
    def add(tx: Transaction) -> bool:
        return tx.insert_new(attempts, key="a", failures=1, window_start=0)

    assert [store.write(add), store.write(add)] == [True, False]


def test_a_statement_that_fails_spares_its_neighbours(store: Store) -> None:
    store.write(lambda tx: put(tx, "there"))
    answers = in_one_group(
        store,
        [lambda tx: put(tx, "x"), lambda tx: put(tx, "there"), lambda tx: put(tx, "y")],
    )
    assert isinstance(answers[1], sa.exc.IntegrityError)
    assert keys(store) == {"there", "x", "y"}


def test_what_a_unit_sees_of_its_group_is_what_will_be_committed(store: Store) -> None:
    def look(tx: Transaction) -> int:
        return len(tx.connection.execute(sa.select(attempts.c.key)).all())

    assert in_one_group(store, [lambda tx: put(tx, "a"), look])[1] == 1


def test_a_unit_that_starts_a_unit_is_refused(store: Store) -> None:
    with pytest.raises(Fault, match="started another"):
        store.write(lambda _: store.write(lambda inner: put(inner, "x")))
    assert keys(store) == set()


@pytest.mark.row("A-35")
def test_two_stores_on_one_database_lose_no_update(make_store: MakeStore) -> None:
    stores = [make_store(), make_store()]
    stores[0].write(lambda tx: put(tx, "n", 0))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: stores[n % 2].write(lambda tx: add_one(tx, "n")), range(200)))
    assert count_of(stores[0], "n") == 200


def test_units_that_take_rows_in_opposite_order_all_succeed(make_store: MakeStore) -> None:
    """Two groups that wait for each other's rows are a deadlock on PostgreSQL."""
    stores = [make_store(), make_store()]
    for key in "ab":
        stores[0].write(partial(put, key=key, count=0))

    def hammer(number: int) -> None:
        order = "ab" if number % 2 else "ba"
        with ThreadPoolExecutor(4) as pool:
            for _ in range(10):
                list(
                    pool.map(
                        lambda key: stores[number % 2].write(lambda tx: add_one(tx, key)), order * 2
                    )
                )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(hammer, range(2)))
    assert [count_of(stores[0], key) for key in "ab"] == [40, 40]


def test_a_busy_database_is_unavailable_within_the_wait(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sqlite_store.engine.url.database
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as refused:
            sqlite_store.write(lambda tx: put(tx, "x"))
        assert refused.value.retry_after is not None
        # Those who have not begun by the time their own patience ends are withdrawn.
        monkeypatch.setattr(engine, "WAIT_SECONDS", 0.1)
        monkeypatch.setattr(engine, "_LAST_SECONDS", 0.1)
        for key in "yz":
            with pytest.raises(Unavailable):
                sqlite_store.write(partial(put, key=key))
        blocker.execute("ROLLBACK")
    monkeypatch.undo()
    sqlite_store.write(lambda tx: put(tx, "after"))
    # Withdrawn for good: y, which waited for the database, and z, which waited for y.
    assert keys(sqlite_store) == {"after"}


def test_what_waited_too_long_for_another_process_is_never_written(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(engine, "_LAST_SECONDS", 0.1)
    database = sqlite_store.engine.url.database
    with Path(f"{database}.lock").open("ab") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        with pytest.raises(Unavailable):
            sqlite_store.write(lambda tx: put(tx, "late"))
    monkeypatch.undo()
    sqlite_store.write(lambda tx: put(tx, "after"))
    assert keys(sqlite_store) == {"after"}


def test_a_database_that_is_gone_is_unavailable_and_comes_back(
    postgresql: Path, clock: MovableClock
) -> None:
    # Cuts every connection but its own, as a restart of the server does.
    cut = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    url = make_schema(postgresql)
    with closing(Store(url, clock)) as store, closing(Store(url, clock)) as other:
        migrate(store)
        note(store, 2)
        for _ in range(3):
            other.read(lambda tx: tx.connection.execute(cut).all())
            try:
                note(store, 1)
            except Unavailable:
                note(store, 1)
        assert findings(store) == []
        query = sa.select(sa.func.count()).select_from(audit_events)
        assert store.read(lambda tx: tx.connection.execute(query).scalar_one()) == 5


def test_a_full_database_is_unavailable_and_recovers(sqlite_store: Store) -> None:
    sqlite_store.write(lambda tx: put(tx, "before"))

    def full(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")

    def roomy(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")

    sa.event.listen(sqlite_store.engine, "begin", full)

    def big(tx: Transaction) -> None:
        put(tx, "big" + "x" * 500_000)

    answers = in_one_group(sqlite_store, [lambda tx: put(tx, "small"), big])
    assert any(isinstance(answer, Unavailable) for answer in answers)
    assert "before" in keys(sqlite_store)
    sa.event.remove(sqlite_store.engine, "begin", full)
    sa.event.listen(sqlite_store.engine, "begin", roomy)
    sqlite_store.write(big)
    assert len(keys(sqlite_store)) in {2, 3}


def test_a_closed_store_refuses_and_answers_everybody(sqlite_store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(sqlite_store.write, partial(put, key=f"{n}")) for n in range(50)]
        sqlite_store.close()
        outcomes = [future.exception(10) for future in futures]
    assert all(error is None or isinstance(error, Unavailable) for error in outcomes)
    with pytest.raises(Unavailable):
        sqlite_store.write(lambda tx: put(tx, "late"))
    sqlite_store.close()


def test_a_read_sees_one_moment(make_store: MakeStore) -> None:
    store, other = make_store(), make_store()

    def look(tx: Transaction) -> tuple[int, int]:
        query = sa.select(sa.func.count()).select_from(attempts)
        before = tx.connection.execute(query).scalar_one()
        other.write(lambda inner: put(inner, "meanwhile"))
        return before, tx.connection.execute(query).scalar_one()

    assert store.read(look) == (0, 0)


# -- the schema --------------------------------------------------------------------------------


def test_sqlite_commits_durably(sqlite_store: Store) -> None:
    def pragmas(tx: Transaction) -> list[Any]:
        return [
            tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]

    assert sqlite_store.read(pragmas) == ["wal", 2, 1]


def test_writers_of_one_file_wait_at_its_gate(tmp_path: Path, clock: MovableClock) -> None:
    url = f"sqlite:///{tmp_path}/one.db"
    with closing(Store(url, clock)) as store, closing(Store(url, clock)) as other:
        migrate(store)
        with ThreadPoolExecutor(1) as pool, Gate(store):
            waiting = pool.submit(other.write, lambda tx: put(tx, "second"))
            with (tmp_path / "one.db.lock").open() as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert not waiting.done()
        waiting.result(10)
        assert keys(other) == {"second"}


# -- what connections keep ---------------------------------------------------------------------


def _pages_kept(tx: Transaction) -> int:
    """Return how many KiB of pages SQLite keeps for the connection."""
    kept: int = tx.connection.exec_driver_sql("PRAGMA cache_size").scalar_one()
    return -kept


def test_connections_keep_few_pages_unless_they_write(sqlite_store: Store) -> None:
    assert sqlite_store.read(_pages_kept) == 512
    assert sqlite_store.write(_pages_kept) == 2048


def test_a_connection_that_has_written_keeps_few_pages_in_the_pool(tmp_path: Path) -> None:
    writing = open_engine(f"sqlite:///{tmp_path}/one.db")
    writer = writing.execution_options(estserver_write=True)
    with writer.connect() as connection:
        first = connection.connection.dbapi_connection
        assert connection.exec_driver_sql("PRAGMA cache_size").scalar_one() == -2048
    with writing.connect() as connection:
        assert connection.connection.dbapi_connection is first
        assert connection.exec_driver_sql("PRAGMA cache_size").scalar_one() == -512
    writing.dispose()
