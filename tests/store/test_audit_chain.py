"""The audit trail: every edit is found, and what cannot be audited does not happen."""

import hashlib
import json
import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from estserver.errors import Unavailable
from estserver.model import Event
from estserver.store import Store, Transaction, audit, audit_checks
from estserver.store.tables import audit_events
from tests.parts import ORIGIN, unguard_audit
from tests.store.units import MakeStore, findings, in_one_group, keys, note, put

TEXTS = ("writer", "event", "actor", "object", "request_id", "source", "detail", "follows")


@given(
    st.fixed_dictionaries(
        {name: st.text() for name in TEXTS}
        | {"seq": st.integers(), "at": st.integers(), "previous": st.binary()}
    )
)
def test_the_hash_of_a_row_is_that_of_its_canonical_json(row: dict[str, object]) -> None:
    previous = row["previous"]
    assert isinstance(previous, bytes)
    text = json.dumps({**row, "previous": previous.hex()}, sort_keys=True)
    assert audit.digest(row) == hashlib.sha256(text.encode()).digest()


def tamper(connection: sa.Connection, row: int, chance: random.Random, way: int) -> None:
    """Delete a row, exchange it with another, or edit one of its columns."""
    table = audit_events
    if way == 0:
        connection.execute(sa.delete(table).where(table.c.id == row))
        return
    if way == 1:
        other = chance.choice([n for n in range(1, 41) if n != row])
        for old, new in ((row, -1), (other, row), (-1, other)):
            connection.execute(sa.update(table).where(table.c.id == old).values(id=new))
        return
    column = chance.choice([column for column in table.c if column.name != "id"])
    value = connection.execute(sa.select(column).where(table.c.id == row)).scalar_one()
    changed: object = f"{value}x"
    if isinstance(value, bytes):
        changed = bytes([value[0] ^ 1]) + value[1:]
    elif isinstance(value, int):
        # Far off for seq, which a unique index guards among those in use.
        changed = value + chance.choice([100, 1000])
    connection.execute(sa.update(table).where(table.c.id == row).values({column: changed}))


@pytest.mark.row("INC-35", "A-30")
def test_every_edit_deletion_and_reordering_of_audit_rows_is_found(store: Store) -> None:
    note(store, 40)
    chance = random.Random(7)
    with store.engine.connect().execution_options(estserver_write=True) as connection:
        with connection.begin():
            unguard_audit(connection)
        for attempt in range(200):
            with connection.begin() as transaction:
                assert list(audit_checks.broken_links(connection)) == []
                # The end of the chain is guarded by the anchor outside, not by links.
                tamper(connection, chance.randrange(1, 40), chance, attempt % 4)
                assert list(audit_checks.broken_links(connection)), (
                    f"change {attempt} was not found"
                )
                transaction.rollback()


def test_a_row_slipped_in_is_found(sqlite_store: Store) -> None:
    note(sqlite_store, 5)
    path = sqlite_store.engine.url.database
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO audit_events (writer, seq, at, event, actor, object, request_id, source,"
            " detail, follows, previous, hash) SELECT writer, 6, at, 'forged', actor, object,"
            " request_id, source, detail, follows, previous, hash FROM audit_events WHERE seq = 5"
        )
    assert len(findings(sqlite_store)) == 2


def test_chains_of_several_writers_hang_together(make_store: MakeStore) -> None:
    first = make_store()
    note(first, 3, "first")
    second = make_store()
    note(second, 3, "second")
    note(first, 2, "first")
    third = make_store()
    note(third, 1, "third")
    assert findings(third) == []
    rows = third.read(
        lambda tx: tx.connection.execute(
            sa.select(audit_events.c.event, audit_events.c.seq, audit_events.c.follows).order_by(
                audit_events.c.id
            )
        ).all()
    )
    assert [(row.event, row.seq) for row in rows] == [
        *(("first", n) for n in (1, 2, 3)),
        *(("second", n) for n in (1, 2, 3)),
        *(("first", n) for n in (4, 5)),
        ("third", 1),
    ]
    follows = [row.follows for row in rows if row.follows]
    assert [text.rsplit(":", 1)[1] for text in follows] == ["3", "5"]

    def remove_first_chain(tx: Transaction) -> None:
        unguard_audit(tx.connection)
        tx.connection.execute(sa.delete(audit_events).where(audit_events.c.event == "first"))

    third.write(remove_first_chain)
    assert len(findings(third)) == 2


def test_parallel_units_of_two_writers_keep_both_chains_whole(make_store: MakeStore) -> None:
    stores = [make_store(), make_store()]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: note(stores[n % 2], 5), range(24)))
    assert findings(stores[0]) == []
    query = sa.select(sa.func.count()).select_from(audit_events)
    assert stores[1].read(lambda tx: tx.connection.execute(query).scalar_one()) == 120


@pytest.mark.row("INC-35")
def test_what_cannot_be_audited_does_not_happen(sqlite_store: Store) -> None:
    sqlite_store.write(
        lambda tx: tx.connection.exec_driver_sql(
            "CREATE TRIGGER no_audit BEFORE INSERT ON audit_events "
            "BEGIN SELECT RAISE(ABORT, 'no audit'); END"
        )
    )

    def unit(tx: Transaction) -> None:
        put(tx, "change")
        tx.audit(Event("change", "test", "it"), ORIGIN)

    answers = in_one_group(sqlite_store, [unit, lambda tx: put(tx, "unaudited")])
    assert isinstance(answers[0], sa.exc.IntegrityError)
    assert keys(sqlite_store) == {"unaudited"}
    sqlite_store.write(lambda tx: tx.connection.exec_driver_sql("DROP TRIGGER no_audit"))
    sqlite_store.write(unit)
    assert findings(sqlite_store) == []


def test_a_failed_commit_starts_a_new_chain_that_continues(sqlite_store: Store) -> None:
    note(sqlite_store, 2)
    head = sqlite_store._head
    assert head is not None
    fail = True

    def refuse(_: sa.Connection) -> None:
        if fail:
            raise sqlite3.OperationalError("disk I/O error")

    sa.event.listen(sqlite_store.engine, "commit", refuse)
    with pytest.raises(Unavailable):
        sqlite_store.write(lambda tx: put(tx, "x"))
    fail = False
    note(sqlite_store, 1)
    assert sqlite_store._head is not None
    assert sqlite_store._head.writer != head.writer
    assert findings(sqlite_store) == []
