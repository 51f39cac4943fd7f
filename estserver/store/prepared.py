"""Statements compiled once, for rows that are written and looked up hundreds of times a second.

SQLAlchemy needs several times as long to look a statement up, to bind its parameters and to make
its rows as SQLite needs to run it. The tables and the statements stay its own; only the text it
makes of a statement is kept, and run by the driver in the transaction under way.
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from json import loads
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

_SQLITE = sqlite.dialect(paramstyle="qmark")


class _Text:
    """The text of a statement and the parameters that never change, as one database wants them."""

    __slots__ = ("_fixed", "_names", "text")

    def __init__(self, statement: sa.ClauseElement, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=_SQLITE if dialect.name == "sqlite" else dialect)
        self.text = str(compiled)
        self._fixed = {key: value for key, value in compiled.params.items() if value is not None}
        # In order for SQLite, whose driver takes a sixth of an INSERT to look for names.
        self._names: list[str] | None = getattr(compiled, "positiontup", None)

    def parameters(self, row: Mapping[str, Any]) -> Mapping[str, Any] | list[Any]:
        """Return what the driver takes for `row`."""
        whole = {**self._fixed, **row} if self._fixed else row
        return whole if self._names is None else [whole[name] for name in self._names]


class _Texts:
    """The texts of one statement, each made when its database first wants it."""

    __slots__ = ("_make", "_texts")

    def __init__(self, make: Callable[[str], sa.ClauseElement]) -> None:
        """`make` makes the statement for a dialect, given its name."""
        self._make = make
        self._texts: dict[str, _Text] = {}

    def of(self, connection: sa.Connection) -> _Text:
        dialect = connection.dialect
        text = self._texts.get(dialect.name)
        if text is None:
            text = self._texts[dialect.name] = _Text(self._make(dialect.name), dialect)
        return text


class Prepared:
    """One INSERT or UPDATE, as both databases want it.

    Rows hold what the drivers take as it is: text, integers, bytes; JSON columns as text.
    """

    def __init__(
        self, make: Callable[[str], sa.Insert | sa.Update], columns: Sequence[str] = ()
    ) -> None:
        """`make` makes the statement for a dialect, given its name.

        `columns`: what it takes of all rows at once, as arrays, on PostgreSQL.
        """
        self._texts = _Texts(make)
        self._columns = columns

    def run(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run the statement for each of `rows`; return how many rows of the table it changed."""
        if not rows:
            return 0
        how = self._texts.of(connection)
        cursor = _cursor(connection)
        try:
            if self._columns and connection.dialect.name == "postgresql":
                cursor.execute(
                    how.text, {name: [row[name] for row in rows] for name in self._columns}
                )
            elif len(rows) == 1:
                cursor.execute(how.text, how.parameters(rows[0]))
            else:
                cursor.executemany(how.text, [how.parameters(row) for row in rows])
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, and nothing else
            _fail(connection, how, error)
        changed: int = cursor.rowcount
        return changed

    def run_each(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Do as `run` does; return for each of `rows` how many rows of the table it changed."""
        return [self.run(connection, [row]) for row in rows]


def insert(table: sa.Table, *columns: str) -> Prepared:
    """Prepare an INSERT of `columns` that leaves out rows which a unique column forbids."""

    def make(dialect: str) -> sa.Insert:
        new = unless_there(table, dialect)
        if dialect == "sqlite":
            return new.values({name: sa.bindparam(name) for name in columns})
        # One statement for all rows costs the server a third of what one for each does.
        arrays = (sa.bindparam(name, type_=sa.ARRAY(table.c[name].type)) for name in columns)
        rows = sa.select(*(sa.func.unnest(array) for array in arrays))
        return new.from_select(columns, rows, include_defaults=False)

    return Prepared(make, columns)


def unless_there(table: sa.Table, dialect: str) -> sa.Insert:
    """Return an INSERT that leaves out rows which a unique column forbids."""
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    # Two megabytes that only those need who use it.
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415 - see above

    return postgresql.insert(table).on_conflict_do_nothing()


def update(statement: sa.Update) -> Prepared:
    """Prepare an UPDATE; its parameters must not have the names of columns."""
    return Prepared(lambda _dialect: statement)


class Lookup:
    """One SELECT of the rows in which a column has one of some values."""

    def __init__(self, select: sa.Select[Any], column: sa.ColumnElement[Any]) -> None:
        """`select`: what to look up, without the condition on `column`."""
        # SQLite: a look at the index for each value costs less than text that fits their number.
        one = select.where(column == sa.bindparam("value"))
        values = sa.bindparam("values", type_=sa.ARRAY(column.type))
        several = select.where(column == sa.any_(values))
        self._texts = _Texts(lambda dialect: one if dialect == "sqlite" else several)
        columns = list(select.selected_columns)
        # Its fields are the columns, which no class could know.
        self._row: Any = namedtuple("Row", [column.name for column in columns])  # type: ignore[misc]  # noqa: PYI024 - see above
        self._conversions = [
            (number, convert)
            for number, column in enumerate(columns)
            if (convert := _conversion(column.type)) is not None
        ]

    def run(self, connection: sa.Connection, values: Iterable[Any]) -> Iterator[Any]:
        """Yield the rows for each of `values`, which all differ: bytes, text, integers, bool.

        The order of the SELECT holds for the rows of one value.
        """
        how = self._texts.of(connection)
        one_by_one = connection.dialect.name == "sqlite"
        asked = [{"value": v} for v in values] if one_by_one else [{"values": list(values)}]
        cursor = _cursor(connection)
        for parameters in asked:
            try:
                cursor.execute(how.text, how.parameters(parameters))
                rows = cursor.fetchall()
            except Exception as error:  # noqa: BLE001 - whatever the driver raises
                _fail(connection, how, error)
            for row in rows:
                yield self._row._make(self._converted(row))

    def _converted(self, row: Sequence[Any]) -> Sequence[Any]:
        if not self._conversions:
            return row
        fields = list(row)
        for number, convert in self._conversions:
            fields[number] = convert(fields[number])
        return fields


def _conversion(kind: sa.types.TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """Return what makes of the driver's value the one that the column means."""
    if isinstance(kind, sa.Boolean):
        return bool
    if isinstance(kind, sa.JSON):
        return _json
    return None


def _json(value: Any) -> Any:
    return loads(value) if isinstance(value, str) else value


def _cursor(connection: sa.Connection) -> Any:
    return connection.connection.cursor()


def _fail(connection: sa.Connection, how: _Text, error: Exception) -> NoReturn:
    """Raise what SQLAlchemy would have raised, without the parameters."""
    driver = connection.dialect.loaded_dbapi
    if not isinstance(error, driver.Error):
        raise error
    lost = connection.dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
    if lost:
        connection.invalidate(error)
    raise sa.exc.DBAPIError.instance(
        how.text, None, error, driver.Error, connection_invalidated=lost, dialect=connection.dialect
    ) from error
