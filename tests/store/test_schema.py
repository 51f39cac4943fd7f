"""The schema: migrations, and whom a database suits."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from estserver.errors import ConfigurationError, Fault, Unavailable
from estserver.protocols.acme.tables import accounts
from estserver.store import Store, Transaction, health, migrate, require_current
from estserver.store.migrate import newest
from estserver.store.tables import attempts, compatibility, metadata
from scripts.benchmarks.postgresql import cluster, server_programs
from tests.live import MovableClock
from tests.store.units import keys, put


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

    for index in [index for table in metadata.sorted_tables for index in table.indexes]:
        index.dialect_options["postgresql"]["where"] = index.dialect_options["sqlite"]["where"]
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
