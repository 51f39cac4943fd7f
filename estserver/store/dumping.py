"""A copy of a whole database while it is in use, and a database made of such a copy."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from estserver.errors import BadInput, ConfigurationError
from estserver.files import PRIVATE, drafted
from estserver.store.engine import Store
from estserver.store.tables import metadata

_BY_HAND = (
    "install postgresql-client, or take the database with pg_basebackup and keep with it the "
    "configuration, ca/, secrets/ and keys/"
)


def dump(store: Store, target: Path) -> None:
    """Write a consistent copy of the database into `target`, a new or empty file.

    SQLite: its own backup. PostgreSQL: what pg_dump writes, in its custom format.
    Raises ConfigurationError: pg_dump is missing or fails; BadInput: the disk is full.
    """
    url = store.engine.url
    if store.engine.dialect.name == "postgresql":
        with store.engine.connect() as connection:
            schema = connection.execute(sa.text("SELECT current_schema()")).scalar_one()
        _run_postgresql("pg_dump", url, "--format=custom", f"--schema={schema}", f"--file={target}")
        return
    try:
        with (
            closing(sqlite3.connect(f"file:{url.database}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            # One file that needs no other beside it.
            copy.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise BadInput(f"{target}: the database cannot be copied there: {error}") from error


def require_empty(url: str) -> None:
    """Raise BadInput if the database that is to be filled holds something."""
    where = sa.make_url(url)
    if where.get_backend_name() == "sqlite":
        for suffix in ("", "-wal", "-shm", "-journal"):
            if (file := Path(f"{where.database}{suffix}")).exists():
                raise BadInput(f"{file} is there already: nothing was restored")
        return
    engine = sa.create_engine(where)
    try:
        with engine.connect() as connection:
            if set(sa.inspect(connection).get_table_names()) & metadata.tables.keys():
                raise BadInput("the database is not empty: nothing was restored")
    except sa.exc.DBAPIError as error:
        raise ConfigurationError(f"the database cannot be used: {error.orig}") from error
    finally:
        engine.dispose()


def refill(url: str, source: Path) -> None:
    """Make the empty database at `url` what it was when `source` was dumped.

    Raises BadInput, ConfigurationError as `require_empty`; ConfigurationError: pg_restore fails.
    """
    require_empty(url)
    where = sa.make_url(url)
    if where.get_backend_name() == "sqlite":
        target = Path(str(where.database))
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with source.open("rb") as copy, drafted(target, copy, mode=PRIVATE):
            pass
        return
    options = ("--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges")
    _run_postgresql("pg_restore", where, *options, str(source))


def _run_postgresql(program: str, url: sa.URL, *options: str) -> None:
    """Run a PostgreSQL program on a database; its password never stands in a command line."""
    found = shutil.which(program)
    if found is None:
        raise ConfigurationError(f"{program} is not installed: {_BY_HAND}")
    password = {} if url.password is None else {"PGPASSWORD": str(url.password)}
    plain = url.set(drivername="postgresql", password=None)
    where = plain.render_as_string(hide_password=False)
    result = subprocess.run(  # noqa: S603 - no shell, and the URL is the operator's own
        [found, f"--dbname={where}", *options],
        env={**os.environ, **password},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        with contextlib.suppress(IndexError):
            raise ConfigurationError(f"{program}: {result.stderr.strip().splitlines()[0]}")
        raise ConfigurationError(f"{program} ended with status {result.returncode}")
