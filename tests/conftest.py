"""Fixtures: instances that really run, and the option for the long forms of the fault tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from estserver.settings import Database
from estserver.store import Store, migrate
from tests.command_line import Shell, own_logging
from tests.live import Live, MovableClock, Workshop, make_template
from tests.parts import Hierarchy, Parts, make_ca, open_parts
from tests.postgres import make_database, postgresql

__all__ = ["make_database", "own_logging", "postgresql"]

# A busy machine is slow, not wrong.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="long forms: 25 kills a failpoint, long fuzzing"
    )


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: random keys in test ids would differ from worker to worker."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template") / "instance")


@pytest.fixture
def make_live(template: Path, tmp_path: Path) -> Iterator[Callable[[str], Live]]:
    """Return a function that makes and starts an instance with some TOML added."""
    workshop = Workshop(template)
    numbers = iter(range(1000))

    def make(toml: str = "") -> Live:
        return workshop.make(tmp_path / f"instance{next(numbers)}", toml)

    yield make
    workshop.close()


@pytest.fixture
def live(make_live: Callable[[str], Live]) -> Live:
    """Return an instance of its own for this test."""
    return make_live("")


@pytest.fixture
def both_live(template: Path, tmp_path: Path, make_database: Callable[[], str]) -> Iterator[Live]:
    """Return a running instance, once on SQLite and once on PostgreSQL."""
    live = Workshop(template).make(tmp_path / "instance", start=False)
    database = Database(url=make_database())
    live.settings = live.settings.model_copy(update={"database": database})
    store = Store(live.settings.database_url, live.clock)
    migrate(store)
    store.close()
    live.start()
    yield live
    live.stop()


@pytest.fixture(scope="module")
def shared(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Return an instance that the tests of one module share: only for tests that do not mind."""
    workshop = Workshop(template)
    yield workshop.make(tmp_path_factory.mktemp("shared") / "instance")
    workshop.close()


@pytest.fixture
def shell(template: Path, tmp_path: Path) -> Shell:
    """Return the command line of an instance that is not served."""
    return Shell(Workshop(template).make(tmp_path / "instance", start=False).directory)


@pytest.fixture(scope="session")
def ca() -> Hierarchy:
    """Return a hierarchy of P-256 keys for cores in process."""
    return make_ca()


@pytest.fixture
def make_parts(ca: Hierarchy, tmp_path: Path) -> Iterator[Callable[..., Parts]]:
    """Return a function that puts a core together, on SQLite unless a URL is given."""
    made: list[Parts] = []

    def make(url: str | None = None, **fields: Any) -> Parts:
        url = url or f"sqlite:///{tmp_path}/parts{len(made)}.db"
        made.append(open_parts(url, ca=fields.pop("ca", ca), **fields))
        return made[-1]

    yield make
    for parts in made:
        parts.store.close()


@pytest.fixture
def parts(make_parts: Callable[..., Parts]) -> Parts:
    """Return a core in process with a database of its own."""
    return make_parts()


@pytest.fixture
def both(make_database: Callable[[], str], make_parts: Callable[..., Parts]) -> Parts:
    """Return a core in process, once on SQLite and once on PostgreSQL."""
    return make_parts(make_database())


@pytest.fixture
def clock() -> MovableClock:
    """Return the real time, which a test may advance."""
    return MovableClock()
