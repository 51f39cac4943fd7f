"""Bring a database to the newest schema: Alembic, configured in code.

Nodes are upgraded one after another, so the program before runs on the schema of the program
after: a release's migrations only add (tables, indexes, columns that are nullable or have a
server's default), and what a release no longer uses is dropped by the next. First `migrate` with
the new program, then restart node after node.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from estserver.errors import ConfigurationError
from estserver.store.engine import Store
from estserver.store.tables import compatibility
from estserver.wording import whose

OLDEST = "0006"
"""The schema of the oldest program that works with the newest schema.

Raise it together with a migration that takes away what an older program uses.
"""
_FOLDER = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x657374
"""Two nodes must not migrate at once; any constant that nobody else uses will do."""
_revision = sa.table("alembic_version", sa.column("version_num", sa.Text))


def migrate(store: Store) -> str:
    """Upgrade to the newest schema and return its revision. Runs again without harm.

    A newer schema that this program can work with is left as it is.
    Raises ConfigurationError: the schema is newer than this program can use, or the database holds
    something else or cannot be opened.
    """
    with _explained(store), store.engine.connect() as connection:
        connection.execution_options(estserver_write=True)
        with _rebuilding(connection), connection.begin():
            _wait_for_others(connection)
            present = _present(connection)
            if present is not None and present > newest():
                _require_compatible(connection, present)
                return present
            if present != newest():
                _upgrade(connection)
                _require_whole(connection)
            connection.execute(sa.delete(compatibility))
            connection.execute(sa.insert(compatibility).values(oldest=OLDEST))
    return newest()


def require_current(store: Store) -> None:
    """Raise ConfigurationError unless this program can work with the schema of the database."""
    with _explained(store), store.engine.connect() as connection, connection.begin():
        present = _present(connection)
        if present is not None and present > newest():
            _require_compatible(connection, present)
        elif present != newest():
            if present is None:
                raise ConfigurationError(
                    "the database is empty: if it was not before, restore it from a backup "
                    "(`estserver migrate` begins a new one, which knows no certificate)"
                )
            raise ConfigurationError(
                f"the database schema is {present}, this program needs {newest()}: "
                "run `estserver migrate`"
            )


def is_empty(store: Store) -> bool:
    """Tell whether the database has no schema at all."""
    with _explained(store), store.engine.connect() as connection:
        return _present(connection) is None


def newest() -> str:
    """Return the revision of this program's schema."""
    found = [path.name[:4] for path in (_FOLDER / "versions").glob("[0-9]*.py")]
    if not found:
        raise ConfigurationError("the installation lacks its database migrations")
    return max(found)


def _present(connection: sa.Connection) -> str | None:
    """Return the revision of the database, None if it holds nothing of ours yet."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(sa.select(_revision)).scalar_one_or_none()
    return revision


def _require_compatible(connection: sa.Connection, present: str) -> None:
    """Raise ConfigurationError unless a program as old as this one may use a newer schema."""
    oldest = None
    if sa.inspect(connection).has_table(compatibility.name):
        oldest = connection.execute(sa.select(compatibility.c.oldest)).scalar_one_or_none()
    if oldest is None or newest() < oldest:
        raise ConfigurationError(
            f"the database schema is {present}, which is not known to this program (its own is "
            f"{newest()}) and asks for a newer one: upgrade this node"
        )


def _wait_for_others(connection: sa.Connection) -> None:
    if connection.dialect.name != "postgresql":
        return
    # However long the other node takes; and our own migrations may work on large tables.
    connection.execute(sa.text("SET LOCAL lock_timeout = 0"))
    connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    # Tables in use are another matter: who waits for one keeps everybody behind out.
    connection.execute(sa.text("SET LOCAL lock_timeout = '5s'"))


def _upgrade(connection: sa.Connection) -> None:
    # Imported here: a tenth of the time in which `serve` starts, which migrates nothing.
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415 - see above
    from alembic.util import CommandError  # noqa: PLC0415 - see above

    config = Config()
    # A percent sign in the path would be taken as an interpolation.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigurationError(
            f"the database schema is not known to this program, which may be too old: {error}"
        ) from error


@contextlib.contextmanager
def _rebuilding(connection: sa.Connection) -> Iterator[None]:
    """Let SQLite drop a table to which others refer, because it was made anew.

    Only outside of transactions can that be said (https://sqlite.org/lang_altertable.html).
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    bare = connection.connection.cursor()
    bare.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        bare.execute("PRAGMA foreign_keys=ON")


def _require_whole(connection: sa.Connection) -> None:
    """Raise ConfigurationError if rows refer to what is not there; on PostgreSQL none can."""
    if connection.dialect.name != "sqlite":
        return
    lost = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if lost is not None:
        raise ConfigurationError(
            f"the database cannot be brought to this schema: row {lost[1]} of {lost[0]} refers to "
            f"a row of {lost[2]} that is not there: restore a backup that `verify` finds whole"
        )


@contextlib.contextmanager
def _explained(store: Store) -> Iterator[None]:
    """Say what is wrong with a database that cannot be brought to our schema, or be reached."""
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        # libpq speaks in several lines.
        cause = " ".join(str(getattr(error, "orig", error)).split())
        url = store.engine.url
        place = "database.url"
        if url.get_backend_name() == "sqlite":
            place = str(url.database)
            if not os.access(place, os.R_OK | os.W_OK):
                cause += f": {whose(Path(place))}"
        raise ConfigurationError(f"the database ({place}) cannot be used: {cause}") from error
