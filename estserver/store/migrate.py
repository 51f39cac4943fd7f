"""Bring a database to the newest schema: Alembic, configured in code."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from estserver.errors import ConfigurationError
from estserver.store.engine import Store

_ADVISORY_LOCK = 0x657374
"""Two nodes must not migrate at once; any constant that nobody else uses will do."""


def _config() -> Config:
    config = Config()
    # A percent sign in the path would be taken as an interpolation.
    folder = str(Path(__file__).parent / "migrations").replace("%", "%%")
    config.set_main_option("script_location", folder)
    return config


def migrate(store: Store) -> str:
    """Upgrade to the newest schema and return its revision. Runs again without harm.

    Raises ConfigurationError: the schema is newer than this program, or the database holds
    something else or cannot be opened.
    """
    config = _config()
    with _explained(), store.engine.connect() as connection:
        connection.execution_options(estserver_write=True)
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    return _newest()


def require_current(store: Store) -> None:
    """Raise ConfigurationError unless the database has exactly the schema of this program."""
    with _explained(), store.engine.connect() as connection, connection.begin():
        present = MigrationContext.configure(connection).get_current_revision()
    if present != _newest():
        raise ConfigurationError(
            f"the database schema is {present or 'empty'}, this program needs {_newest()}: "
            "run `estserver migrate`"
        )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what is wrong with a database that cannot be brought to our schema."""
    try:
        yield
    except CommandError as error:
        raise ConfigurationError(
            f"the database schema is not known to this program, which may be too old: {error}"
        ) from error
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        cause = getattr(error, "orig", error)
        raise ConfigurationError(f"the database cannot be used: {cause}") from error


def _newest() -> str:
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise ConfigurationError("the installation lacks its database migrations")
    return revision
