"""The audit trail: nobody may change it, and what is changed all the same does not stay hidden."""

import json
import random
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from estserver.anchor import AnchorFile
from estserver.errors import ConfigurationError
from estserver.model import Event
from estserver.store import Store, Transaction, audit_checks, migrate
from estserver.store.tables import audit_events
from tests.live import MovableClock
from tests.parts import ORIGIN, unguard_audit

ROWS = 60
SETTLED = timedelta(minutes=11)


def note(store: Store, count: int) -> None:
    for number in range(count):
        event = Event("test.noted", "somebody", f"thing {number}", {"n": number})
        store.write(lambda tx, event=event: tx.audit(event, ORIGIN))  # type: ignore[misc]  # defaults bind the loop variable


def make_trail(url: str, clock: MovableClock) -> Store:
    """Write a trail of several writers, some of which come back after others."""
    first, second = Store(url, clock), Store(url, clock)
    migrate(first)
    for count in (7, 5, 3):
        note(first, count)
        note(second, count)
        with closing(Store(url, clock)) as short:
            note(short, count)
    note(first, ROWS - 45)
    second.close()
    return first


def tamper(connection: sa.Connection, chance: random.Random) -> str:
    """Change the trail in one of the ways that are open to who owns the database."""
    table = audit_events
    ids = list(connection.execute(sa.select(table.c.id).order_by(table.c.id)).scalars())
    row = chance.choice(ids)
    way = chance.choice(["edit", "delete", "truncate", "swap", "move", "cut off", "behead"])
    match way:
        case "edit":
            column = chance.choice([column for column in table.c if column.name != "id"])
            value = connection.execute(sa.select(column).where(table.c.id == row)).scalar_one()
            changed: object = f"{value}x"
            if isinstance(value, bytes):
                changed = bytes([value[0] ^ 1]) + value[1:]
            elif isinstance(value, int):
                changed = value + chance.choice([100, 1000])
            connection.execute(sa.update(table).where(table.c.id == row).values({column: changed}))
        case "delete":
            connection.execute(sa.delete(table).where(table.c.id == row))
        case "truncate":
            connection.execute(sa.delete(table).where(table.c.id >= row))
        case "cut off":
            # All that one writer wrote: no link is broken if nobody continued from it.
            writers = connection.execute(sa.select(table.c.writer).distinct()).scalars()
            gone = chance.choice(sorted(writers))
            connection.execute(sa.delete(table).where(table.c.writer == gone))
        case "behead":
            connection.execute(sa.delete(table).where(table.c.id <= row))
        case _:
            # Two rows change places, or one goes behind all others: ids are what orders chains.
            row = chance.choice(ids[:-1])
            other = chance.choice([n for n in ids if n != row]) if way == "swap" else ids[-1] + 1
            for old, new in ((row, -1), (other, row), (-1, other)):
                connection.execute(sa.update(table).where(table.c.id == old).values(id=new))
    return way


@pytest.mark.timeout(600)
@pytest.mark.row("A-30", "INC-35", "I7")
def test_every_change_to_the_audit_trail_is_found(
    make_database: Callable[[], str],
    clock: MovableClock,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    changes = 1000 if request.config.getoption("--full") else 150
    store = make_trail(make_database(), clock)
    file = AnchorFile(tmp_path / "audit.anchor")
    file.drop(store, clock.now())
    clock.advance(SETTLED)
    note(store, 5)
    file.drop(store, clock.now())
    anchors = file.read()
    chance = random.Random(31)
    found = dict.fromkeys(("edit", "delete", "truncate", "swap", "move", "cut off", "behead"), 0)
    with closing(store), store.engine.connect() as plain:
        connection = plain.execution_options(estserver_write=True)
        with connection.begin():
            unguard_audit(connection)
        for number in range(changes):
            with connection.begin() as transaction:
                if number % 50 == 0:
                    assert list(audit_checks.broken_links(connection, anchors)) == []
                way = tamper(connection, chance)
                problems = list(audit_checks.broken_links(connection, anchors))
                assert problems, f"change {number} ({way}) was not found"
                found[way] += 1
                transaction.rollback()
    assert min(found.values()) > 0
    assert sum(found.values()) == changes


def test_rows_that_come_after_the_anchor_fit_it(
    make_database: Callable[[], str], clock: MovableClock, tmp_path: Path
) -> None:
    file = AnchorFile(tmp_path / "audit.anchor")
    with closing(make_trail(make_database(), clock)) as store:
        for hours in range(3):
            file.drop_due(store, clock.now())
            file.drop_due(store, clock.now())
            assert len(file.read()) == hours + 1
            clock.advance(timedelta(hours=1))
            note(store, 3)
        judge = lambda tx: list(audit_checks.broken_links(tx.connection, file.read()))  # noqa: E731 - one line twice
        assert store.read(judge) == []


@pytest.mark.row("A-30")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_events SET actor = 'nobody' WHERE id = 3",
        "UPDATE audit_events SET hash = previous WHERE id = 3",
        "UPDATE audit_events SET detail = '{}' WHERE id = 3",
        "DELETE FROM audit_events WHERE id = 3",
        "DELETE FROM audit_events",
    ],
)
def test_the_database_refuses_to_change_the_audit_trail(
    make_database: Callable[[], str], clock: MovableClock, statement: str
) -> None:
    with closing(make_trail(make_database(), clock)) as store:
        with pytest.raises(sa.exc.IntegrityError, match="append-only"):
            store.write(lambda tx: tx.connection.exec_driver_sql(statement))
        assert store.read(lambda tx: list(audit_checks.broken_links(tx.connection))) == []


def erase(tx: Transaction, through: int) -> None:
    erased = {"actor": "", "object": "", "request_id": "", "source": "", "detail": "{}"}
    tx.change(
        sa.update(audit_events)
        .where(audit_events.c.id <= through)
        .values(event=audit_checks.PURGED, **erased)
    )


def test_what_a_purge_erased_leaves_its_proof(
    make_database: Callable[[], str], clock: MovableClock, tmp_path: Path
) -> None:
    """The one change that the database allows: a row says nothing any more, but keeps its place."""
    file = AnchorFile(tmp_path / "audit.anchor")
    with closing(make_trail(make_database(), clock)) as store:
        clock.advance(SETTLED)
        file.drop(store, clock.now())

        def judge(tx: Transaction) -> list[str]:
            return list(audit_checks.broken_links(tx.connection, file.read()))

        store.write(lambda tx: erase(tx, 10))
        assert store.read(judge) == ["audit rows up to id 10 are erased, which no purge has done"]
        purge = Event(audit_checks.PURGE, "test", "audit", {"through": 10})
        store.write(lambda tx: tx.audit(purge, ORIGIN))
        assert store.read(judge) == []
        store.write(lambda tx: erase(tx, 11))
        assert len(store.read(judge)) == 1


def test_a_torn_anchor_is_passed_over_and_a_forged_one_told(
    make_database: Callable[[], str], clock: MovableClock, tmp_path: Path
) -> None:
    file = AnchorFile(tmp_path / "audit.anchor")
    with closing(make_trail(make_database(), clock)) as store:
        file.drop(store, clock.now())
        with file.path.open("a", encoding="utf-8") as torn:
            torn.write('{"at": 1')
        assert len(file.read()) == 1
        file.drop(store, clock.now())
        assert len(file.read()) == 2
        assert file.path.stat().st_mode & 0o777 == 0o600
        file.path.write_text(json.dumps({"at": 1}) + "\n", encoding="utf-8")
        with pytest.raises(ConfigurationError, match="line 1: is no anchor"):
            file.read()
