"""Statements compiled once, for rows that are written hundreds of times a second.

SQLAlchemy needs several times as long to look a statement up and to bind a row as SQLite needs to
write it. The tables stay its own; only the text it makes of a statement is kept and run by the
driver, for all rows of a group at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg

_DIALECTS: Mapping[str, sa.Dialect] = {
    "sqlite": sqlite.dialect(paramstyle="named"),
    "postgresql": psycopg.dialect(),  # type: ignore[no-untyped-call]  # SQLAlchemy has no type there
}
_KEEP_COUNT = {"preserve_rowcount": True}


class Prepared:
    """One statement without result rows, as both databases want it.

    Rows hold what the drivers take as it is: text, integers, bytes; JSON columns as text.
    """

    def __init__(self, statements: Mapping[str, sa.Insert | sa.Update]) -> None:
        """`statements` by name of the dialect."""
        self._texts = {}
        for name, dialect in _DIALECTS.items():
            compiled = statements[name].compile(dialect=dialect)
            fixed = {key: value for key, value in compiled.params.items() if value is not None}
            self._texts[name] = str(compiled), fixed

    def run(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run the statement for each of `rows`; return how many rows of the table it changed."""
        if not rows:
            return 0
        text, fixed = self._texts[connection.dialect.name]
        parameters = [{**fixed, **row} for row in rows]
        result = connection.exec_driver_sql(text, parameters, execution_options=_KEEP_COUNT)
        return result.rowcount


def insert(table: sa.Table, *columns: str) -> Prepared:
    """Prepare an INSERT of `columns` that leaves out rows which a unique column forbids."""
    values: dict[str, sa.BindParameter[Any]] = {name: sa.bindparam(name) for name in columns}
    return Prepared(
        {
            name: dialect.insert(table).values(values).on_conflict_do_nothing()
            for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
        }
    )


def update(statement: sa.Update) -> Prepared:
    """Prepare an UPDATE; its parameters must not have the names of columns."""
    return Prepared(dict.fromkeys(_DIALECTS, statement))
