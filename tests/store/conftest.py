"""Stores with the newest schema, on SQLite and on PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from estserver.store import Store, migrate
from tests.live import MovableClock
from tests.store.units import MakeStore


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
