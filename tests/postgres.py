"""A PostgreSQL of our own for tests that must hold on both databases: private, on a Unix socket."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from scripts.benchmarks.postgresql import cluster, server_programs


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Path]:
    """Start a cluster for the session and return the folder of its socket."""
    programs = server_programs()
    if programs is None:
        pytest.skip("the Debian package postgresql is not installed")
    with cluster(programs, Path("/tmp"), "fsync=off", "max_connections=200") as folder:
        yield folder


_numbers = count(1)


def make_schema(folder: Path) -> str:
    """Make an empty schema and return the URL of a database that sees nothing else.

    A schema is made in a hundredth of the time of a database.
    """
    name = f"test{next(_numbers)}"
    with psycopg.connect(host=str(folder), user="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    return f"postgresql+psycopg://postgres@/postgres?host={folder}&options=-csearch_path%3D{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def make_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Return a function that makes an empty database and returns its URL; runs on both kinds."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/{next(_numbers)}.db"
    folder: Path = request.getfixturevalue("postgresql")
    return lambda: make_schema(folder)
