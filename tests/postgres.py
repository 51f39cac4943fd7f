"""A PostgreSQL of our own for tests that must hold on both databases: private, on a Unix socket."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest


def _programs() -> Path | None:
    """Return the folder of the newest PostgreSQL server programs, None without any."""
    packaged = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    if packaged:
        return packaged[-1].parent
    found = shutil.which("initdb")
    return None if found is None else Path(found).parent


def _run(*command: str | Path) -> None:
    """Run a server program as the user postgres: it refuses to work for root."""
    if os.geteuid() == 0:
        command = ("runuser", "-u", "postgres", "--", *command)
    # No pipes: the server that pg_ctl starts would keep them open.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Path]:
    """Start a cluster for the session and return the folder of its socket."""
    programs = _programs()
    if programs is None:
        pytest.skip("the Debian package postgresql is not installed")
    # A socket's path is at most 107 octets, shorter than many a temporary folder of pytest.
    folder = Path(tempfile.mkdtemp(prefix="estserver-pg-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    _run(
        programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"
    )
    options = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=200"
    control = (programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options)
    _run(*control, "start")
    try:
        yield folder
    finally:
        _run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


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
