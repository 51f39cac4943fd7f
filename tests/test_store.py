"""The unit of work, the audit trail and the schema, on SQLite and on PostgreSQL."""

import fcntl
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from estserver.errors import ConfigurationError, Conflict, Fault, Unavailable
from estserver.model import Event, Origin
from estserver.protocols.acme.tables import accounts
from estserver.store import (
    Store,
    Transaction,
    audit_checks,
    engine,
    health,
    migrate,
    require_current,
)
from estserver.store.migrate import newest
from estserver.store.tables import attempts, audit_events, compatibility, metadata
from scripts.benchmarks.postgresql import cluster, server_programs
from tests.live import MovableClock
from tests.parts import ORIGIN, unguard_audit
from tests.postgres import make_schema

MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(make_database: Callable[[], str], clock: MovableClock) -> Iterator[MakeStore]:
    """Return a function that opens a store on one database, migrated, as often as called."""
    url = make_database()
    opened: list[Store] = []

    def make() -> Store:
        store = Store(url, clock)
        if not opened:
            migrate(store)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


@pytest.fixture
def sqlite_store(tmp_path: Path, clock: MovableClock) -> Iterator[Store]:
    with closing(Store(f"sqlite:///{tmp_path}/one.db", clock)) as store:
        migrate(store)
        yield store


def put(tx: Transaction, key: str, count: int = 1) -> None:
    """Write a row: any table serves."""
    tx.connection.execute(sa.insert(attempts).values(key=key, failures=count, window_start=0))


def add_one(tx: Transaction, key: str) -> None:
    """Read, then write: what loses updates where transactions begin late."""
    query = sa.select(attempts.c.failures).where(attempts.c.key == key).with_for_update()
    count = tx.connection.execute(query).scalar_one()
    tx.connection.execute(
        sa.update(attempts).where(attempts.c.key == key).values(failures=count + 1)
    )


def keys(store: Store) -> set[str]:
    return set(store.read(lambda tx: tx.connection.execute(sa.select(attempts.c.key)).scalars()))


def count_of(store: Store, key: str) -> int:
    query = sa.select(attempts.c.failures).where(attempts.c.key == key)
    count: int = store.read(lambda tx: tx.connection.execute(query).scalar_one())
    return count


class Gate:
    """Holds the writer thread so that the units behind it end up in one group."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entered, self._leave = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._store.write, args=(self._wait,))
        self._thread.start()
        assert self._entered.wait(10)

    def _wait(self, _: Transaction) -> None:
        self._entered.set()
        assert self._leave.wait(10)

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._thread.join()


def in_one_group(store: Store, units: list[Callable[[Transaction], Any]]) -> list[Any]:
    """Run units in one commit; return each one's result or what it raised."""

    def run(unit: Callable[[Transaction], Any]) -> Any:
        try:
            return store.write(unit)
        except Exception as error:  # noqa: BLE001 - given to the test
            return error

    with ThreadPoolExecutor(len(units)) as pool:
        with Gate(store):
            futures = []
            for waiting, unit in enumerate(units, start=1):
                futures.append(pool.submit(run, unit))
                while store._queue.qsize() < waiting:
                    pass
        return [future.result(30) for future in futures]


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
        monkeypatch.setattr(engine, "_WAIT_SECONDS", 0.1)
        monkeypatch.setattr(engine, "_LAST_SECONDS", 0.1)
        with pytest.raises(Unavailable):
            sqlite_store.write(lambda tx: put(tx, "y"))
        with pytest.raises(Unavailable):
            sqlite_store.write(lambda tx: put(tx, "z"))
        blocker.execute("ROLLBACK")
    monkeypatch.undo()
    sqlite_store.write(lambda tx: put(tx, "after"))
    # y had begun, so its caller had to look; z was withdrawn for good.
    assert keys(sqlite_store) - {"y"} == {"after"}


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

    def limit(pages: int) -> Callable[[sqlite3.Connection, object], None]:
        def listener(connection: sqlite3.Connection, _: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}")

        return listener

    pool = sqlite_store.engine.pool
    full = limit(1)
    sa.event.listen(pool, "connect", full)
    sqlite_store.engine.dispose()

    def big(tx: Transaction) -> None:
        put(tx, "big" + "x" * 500_000)

    answers = in_one_group(sqlite_store, [lambda tx: put(tx, "small"), big])
    assert any(isinstance(answer, Unavailable) for answer in answers)
    assert "before" in keys(sqlite_store)
    sa.event.remove(pool, "connect", full)
    sqlite_store.engine.dispose()
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


# -- the audit trail ---------------------------------------------------------------------------


def noting(number: int, name: str) -> Callable[[Transaction], None]:
    detail: dict[str, str | int | bool | None] = {"n": number, "text": "\u2028é", "no": None}
    event = Event(name, "admin 山田", f"thing {number}", detail)
    return lambda tx: tx.audit(event, Origin(f"r{number}", "::1"))


def note(store: Store, count: int, name: str = "thing.happened") -> None:
    for number in range(count):
        store.write(noting(number, name))


def findings(store: Store) -> list[str]:
    return store.read(lambda tx: list(audit_checks.broken_links(tx.connection)))


def tamper(connection: sa.Connection, row: int, chance: random.Random, way: int) -> None:
    """Delete a row, exchange it with another, or edit one of its columns."""
    table = audit_events
    if way == 0:
        connection.execute(sa.delete(table).where(table.c.id == row))
        return
    if way == 1:
        other = chance.choice([n for n in range(1, 41) if n != row])
        for old, new in ((row, -1), (other, row), (-1, other)):
            connection.execute(sa.update(table).where(table.c.id == old).values(id=new))
        return
    column = chance.choice([column for column in table.c if column.name != "id"])
    value = connection.execute(sa.select(column).where(table.c.id == row)).scalar_one()
    changed: object = f"{value}x"
    if isinstance(value, bytes):
        changed = bytes([value[0] ^ 1]) + value[1:]
    elif isinstance(value, int):
        # Far off for seq, which a unique index guards among those in use.
        changed = value + chance.choice([100, 1000])
    connection.execute(sa.update(table).where(table.c.id == row).values({column: changed}))


@pytest.mark.row("INC-35", "A-30")
def test_every_edit_deletion_and_reordering_of_audit_rows_is_found(store: Store) -> None:
    note(store, 40)
    chance = random.Random(7)
    with store.engine.connect().execution_options(estserver_write=True) as connection:
        with connection.begin():
            unguard_audit(connection)
        for attempt in range(200):
            with connection.begin() as transaction:
                assert list(audit_checks.broken_links(connection)) == []
                # The end of the chain is guarded by the anchor outside, not by links.
                tamper(connection, chance.randrange(1, 40), chance, attempt % 4)
                assert list(audit_checks.broken_links(connection)), (
                    f"change {attempt} was not found"
                )
                transaction.rollback()


def test_a_row_slipped_in_is_found(sqlite_store: Store) -> None:
    note(sqlite_store, 5)
    path = sqlite_store.engine.url.database
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO audit_events (writer, seq, at, event, actor, object, request_id, source,"
            " detail, follows, previous, hash) SELECT writer, 6, at, 'forged', actor, object,"
            " request_id, source, detail, follows, previous, hash FROM audit_events WHERE seq = 5"
        )
    assert len(findings(sqlite_store)) == 2


def test_chains_of_several_writers_hang_together(make_store: MakeStore) -> None:
    first = make_store()
    note(first, 3, "first")
    second = make_store()
    note(second, 3, "second")
    note(first, 2, "first")
    third = make_store()
    note(third, 1, "third")
    assert findings(third) == []
    rows = third.read(
        lambda tx: tx.connection.execute(
            sa.select(audit_events.c.event, audit_events.c.seq, audit_events.c.follows).order_by(
                audit_events.c.id
            )
        ).all()
    )
    assert [(row.event, row.seq) for row in rows] == [
        *(("first", n) for n in (1, 2, 3)),
        *(("second", n) for n in (1, 2, 3)),
        *(("first", n) for n in (4, 5)),
        ("third", 1),
    ]
    follows = [row.follows for row in rows if row.follows]
    assert [text.rsplit(":", 1)[1] for text in follows] == ["3", "5"]

    def remove_first_chain(tx: Transaction) -> None:
        unguard_audit(tx.connection)
        tx.connection.execute(sa.delete(audit_events).where(audit_events.c.event == "first"))

    third.write(remove_first_chain)
    assert len(findings(third)) == 2


def test_parallel_units_of_two_writers_keep_both_chains_whole(make_store: MakeStore) -> None:
    stores = [make_store(), make_store()]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: note(stores[n % 2], 5), range(24)))
    assert findings(stores[0]) == []
    query = sa.select(sa.func.count()).select_from(audit_events)
    assert stores[1].read(lambda tx: tx.connection.execute(query).scalar_one()) == 120


@pytest.mark.row("INC-35")
def test_what_cannot_be_audited_does_not_happen(sqlite_store: Store) -> None:
    sqlite_store.write(
        lambda tx: tx.connection.exec_driver_sql(
            "CREATE TRIGGER no_audit BEFORE INSERT ON audit_events "
            "BEGIN SELECT RAISE(ABORT, 'no audit'); END"
        )
    )

    def unit(tx: Transaction) -> None:
        put(tx, "change")
        tx.audit(Event("change", "test", "it"), ORIGIN)

    answers = in_one_group(sqlite_store, [unit, lambda tx: put(tx, "unaudited")])
    assert isinstance(answers[0], sa.exc.IntegrityError)
    assert keys(sqlite_store) == {"unaudited"}
    sqlite_store.write(lambda tx: tx.connection.exec_driver_sql("DROP TRIGGER no_audit"))
    sqlite_store.write(unit)
    assert findings(sqlite_store) == []


def test_a_failed_commit_starts_a_new_chain_that_continues(sqlite_store: Store) -> None:
    note(sqlite_store, 2)
    head = sqlite_store._head
    assert head is not None
    fail = True

    def refuse(_: sa.Connection) -> None:
        if fail:
            raise sqlite3.OperationalError("disk I/O error")

    sa.event.listen(sqlite_store.engine, "commit", refuse)
    with pytest.raises(Unavailable):
        sqlite_store.write(lambda tx: put(tx, "x"))
    fail = False
    note(sqlite_store, 1)
    assert sqlite_store._head is not None
    assert sqlite_store._head.writer != head.writer
    assert findings(sqlite_store) == []


# -- the schema --------------------------------------------------------------------------------


def test_the_migrations_make_the_schema_of_the_tables(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        # A protocol's tables are in the same schema once its module is loaded.
        assert accounts.metadata is metadata
        assert compare_metadata(context, metadata) == []


def test_the_migrations_make_every_check_and_index_of_the_tables(
    store: Store, make_database: Callable[[], str], clock: MovableClock
) -> None:
    def plain(index: Any) -> str:
        options = {key: str(value) for key, value in index.get("dialect_options", {}).items()}
        return str({**index, "dialect_options": options})

    def described(of: sa.Engine) -> dict[str, Any]:
        inspector = sa.inspect(of)
        return {
            table.name: {
                "checks": sorted(map(str, inspector.get_check_constraints(table.name))),
                "unique": sorted(map(str, inspector.get_unique_constraints(table.name))),
                "indexes": sorted(map(plain, inspector.get_indexes(table.name))),
                "foreign": sorted(map(str, inspector.get_foreign_keys(table.name))),
            }
            for table in metadata.sorted_tables
        }

    with closing(Store(make_database(), clock)) as made:
        metadata.create_all(made.engine)
        wanted = described(made.engine)
    assert any(table["checks"] for table in wanted.values())
    assert described(store.engine) == wanted


def test_migrating_again_changes_nothing(store: Store) -> None:
    store.write(lambda tx: put(tx, "kept"))
    assert migrate(store) == migrate(store)
    require_current(store)
    assert keys(store) == {"kept"}


def test_two_that_migrate_at_once_both_succeed(
    make_database: Callable[[], str], clock: MovableClock
) -> None:
    url = make_database()
    stores = [Store(url, clock) for _ in range(3)]
    try:
        with ThreadPoolExecutor(3) as pool:
            assert len(set(pool.map(migrate, stores))) == 1
        require_current(stores[0])
    finally:
        for store in stores:
            store.close()


def test_an_empty_database_is_refused(
    make_database: Callable[[], str], clock: MovableClock
) -> None:
    with (
        closing(Store(make_database(), clock)) as store,
        pytest.raises(ConfigurationError, match=r"empty.*estserver migrate"),
    ):
        require_current(store)


def _become(store: Store, revision: str, oldest: str) -> None:
    def unit(tx: Transaction) -> None:
        tx.connection.execute(
            sa.text("UPDATE alembic_version SET version_num = :new"), {"new": revision}
        )
        tx.connection.execute(sa.update(compatibility).values(oldest=oldest))

    store.write(unit)


def test_a_node_goes_on_with_the_schema_of_the_next_program(store: Store) -> None:
    _become(store, "9998", newest())
    require_current(store)
    # Its unit starts with `migrate`, which must neither fail nor go back.
    assert migrate(store) == "9998"


def test_a_schema_that_no_longer_suits_this_program_is_refused(store: Store) -> None:
    _become(store, "9998", "9997")
    for use in (migrate, require_current):
        with pytest.raises(ConfigurationError, match=r"9998.*upgrade this node"):
            use(store)


def test_a_schema_that_does_not_say_whom_it_suits_is_refused(store: Store) -> None:
    _become(store, "9998", newest())
    store.write(lambda tx: tx.change(sa.delete(compatibility)))
    with pytest.raises(ConfigurationError, match="9998"):
        require_current(store)


def test_the_schema_is_named_as_alembic_names_it(store: Store) -> None:
    with store.engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == newest()


def test_a_database_of_something_else_is_refused(
    make_database: Callable[[], str], clock: MovableClock
) -> None:
    with closing(Store(make_database(), clock)) as store:
        with store.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE invitations (a INTEGER)")
        with pytest.raises(ConfigurationError, match="invitations"):
            migrate(store)
        assert sa.inspect(store.engine).get_table_names() == ["invitations"]


def test_a_database_that_cannot_be_opened_is_a_configuration_error(
    tmp_path: Path, clock: MovableClock
) -> None:
    with closing(Store(f"sqlite:///{tmp_path}/missing/x.db", clock)) as store:
        for use in (migrate, require_current):
            with pytest.raises(ConfigurationError, match="cannot be used"):
                use(store)
        with pytest.raises(Unavailable):
            store.write(lambda tx: put(tx, "x"))
        with pytest.raises(Unavailable):
            store.read(lambda tx: tx.connection.execute(sa.select(attempts.c.key)).all())


def test_a_file_that_is_no_database_is_a_configuration_error(
    tmp_path: Path, clock: MovableClock
) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"this is no database at all" * 100)
    with closing(Store(f"sqlite:///{path}", clock)) as store:
        with pytest.raises(ConfigurationError, match="cannot be used"):
            require_current(store)
        with pytest.raises(Fault, match="damaged"):
            store.write(lambda tx: put(tx, "x"))


def test_sqlite_commits_durably(sqlite_store: Store) -> None:
    def pragmas(tx: Transaction) -> list[Any]:
        return [
            tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]

    assert sqlite_store.read(pragmas) == ["wal", 2, 1]


def test_a_standby_that_is_not_waited_for_is_told_of(clock: MovableClock) -> None:
    programs = server_programs()
    if programs is None:
        pytest.skip("the Debian package postgresql is not installed")
    with cluster(programs, Path("/tmp"), "fsync=off") as folder:
        url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
        administrator = psycopg.connect(host=str(folder), user="postgres", autocommit=True)
        with closing(administrator), closing(Store(url, clock)) as store:
            assert store.read(health.asynchronous_standby) is None
            # As a standby makes it: what it has not got yet is kept for it.
            administrator.execute("SELECT pg_create_physical_replication_slot('standby')")
            told = store.read(health.asynchronous_standby)
            assert told is not None
            assert "synchronous_standby_names is empty" in told
            # From now on commits wait for ever, so nothing here may commit.
            administrator.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            administrator.execute("SELECT pg_reload_conf()")
        with closing(Store(url, clock)) as store:
            assert store.read(health.asynchronous_standby) is None
        with closing(Store(f"{url}&options=-csynchronous_commit%3Dlocal", clock)) as store:
            assert "synchronous_commit is local" in str(store.read(health.asynchronous_standby))


def test_a_file_has_no_standby(sqlite_store: Store) -> None:
    assert sqlite_store.read(health.asynchronous_standby) is None


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
