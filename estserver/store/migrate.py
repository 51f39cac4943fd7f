"""Bring a database to the newest schema: Alembic, configured in code."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
import sqlalchemy as sa

from estserver.errors import ConfigurationError
from estserver.store.engine import Store

_ADVISORY_LOCK = 0x657374
"""Two nodes must not migrate at once; any constant that nobody else uses will do."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    # A percent sign in the path would be taken as an interpolation.
    return config


def migrate(store: Store) -> str:
    """Upgrade to the newest schema and return its revision. Runs again without harm."""
    config = _config()
    with store.engine.connect().execution_options(estserver_write=True) as connection:
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    return _newest()


def require_current(store: Store) -> None:
    """Raise ConfigurationError unless the database has exactly the schema of this program."""
    with store.engine.connect() as connection, connection.begin():
        present = MigrationContext.configure(connection).get_current_revision()
    if present != _newest():
        raise ConfigurationError(
            f"the database schema is {present or 'empty'}, this program needs {_newest()}: "
            "run `estserver migrate`"
        )


def _newest() -> str:
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise ConfigurationError("the installation lacks its database migrations")
    return revision
