"""How the two databases are connected to: what each connection is told, and how many there are."""

import sqlite3

import sqlalchemy as sa
from sqlalchemy import event as sa_event

from estserver.errors import ConfigurationError

_BUSY_SECONDS = 5
WAIT_SECONDS = 20
"""How long a unit of work or a statement may take."""
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    # What is purged must not lie on in free pages: not every build of SQLite sees to it.
    "secure_delete=ON",
)
_READERS_KIB, _WRITERS_KIB = 512, 2048
"""Pages that a connection keeps. A reader's are worthless after each commit; the writer changes
most of 2 MB for a group of 64."""
_KEPT, _CROWD = 4, 48
"""Connections to SQLite: between requests, and at most."""
_SQLITE = ("sqlite", "sqlite+pysqlite")
_POSTGRESQL = ("postgresql+psycopg", "postgresql")
_WANTED = "database.url: must be sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
_POSTGRESQL_LIMITS = {
    "connect_timeout": _BUSY_SECONDS,
    # A server that is gone without a word is noticed before the callers give up, milliseconds.
    "tcp_user_timeout": WAIT_SECONDS * 1000,
}
_POSTGRESQL_OPTIONS = f"-c lock_timeout={_BUSY_SECONDS}s -c statement_timeout={WAIT_SECONDS}s"


def open_engine(url: str) -> sa.Engine:
    """Return the engine of a database; its transactions write if `estserver_write` is set.

    Raises ConfigurationError: there is no such database, or its driver is not installed.
    """
    try:
        where = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ConfigurationError(_WANTED) from error
    if where.drivername in _POSTGRESQL:
        return _open_postgresql(url, where)
    if where.drivername in _SQLITE:
        return _open_sqlite(where)
    raise ConfigurationError(_WANTED)


def _open_sqlite(where: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        where,
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
        # Each connection keeps pages, statements and the schema to itself, a megabyte in all, which
        # took half an hour to fill up in one that was seldom needed. So few are kept, that which
        # was used last is used next, and a crowd opens more for as long as it lasts.
        pool_size=_KEPT,
        max_overflow=_CROWD - _KEPT,
        pool_timeout=_BUSY_SECONDS,
        pool_use_lifo=True,
    )

    @sa_event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own transactions begin late and lose concurrent updates.
        connection.isolation_level = None
        for pragma in (*_PRAGMAS, f"cache_size=-{_READERS_KIB}"):
            connection.execute(f"PRAGMA {pragma}")

    @sa_event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("estserver_write", False)
        # Not through SQLAlchemy, which takes longer to say it than SQLite to do it.
        cursor = connection.connection.cursor()
        if write and "writes" not in connection.info:
            connection.info["writes"] = True
            cursor.execute(f"PRAGMA cache_size=-{_WRITERS_KIB}")
        cursor.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    @sa_event.listens_for(engine, "checkin")
    def _return(connection: sqlite3.Connection | None, record: sa.pool.ConnectionPoolEntry) -> None:
        if connection is None:
            return
        if record.info.pop("writes", False):
            connection.execute(f"PRAGMA cache_size=-{_READERS_KIB}")
        # The next commit makes its pages worthless, and it may be long until it is needed again.
        connection.execute("PRAGMA shrink_memory")

    return engine


def _open_postgresql(url: str, where: sa.URL) -> sa.Engine:
    if url.count("@") > 1:
        # The rest of the password would stand in whatever the driver says of the host.
        raise ConfigurationError("database.url: write %40 for each @ but the one before the host")
    # What the operator's URL says wins over our limits.
    limits = {key: n for key, n in _POSTGRESQL_LIMITS.items() if key not in where.query}
    options = f"{_POSTGRESQL_OPTIONS} {where.query.get('options', '')}"
    try:
        return sa.create_engine(
            where,
            pool_pre_ping=True,
            pool_size=16,
            max_overflow=16,
            pool_timeout=_BUSY_SECONDS,
            connect_args={**limits, "options": options},
        )
    except ImportError as error:
        # psycopg, or the libpq that it needs.
        raise ConfigurationError(
            "database.url is PostgreSQL, whose driver is not installed: "
            "pip install 'estserver[postgres]'"
        ) from error
