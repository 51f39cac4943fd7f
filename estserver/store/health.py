"""What the database can tell about its own condition; `doctor` and `verify` ask."""

import json
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from estserver.store.engine import Transaction, from_unix
from estserver.store.tables import audit_events, outbox

VERIFIED, RESTORED, RECOVERED = "instance.verified", "instance.restored", "instance.recovered"
"""Events that tell how much the database can be trusted."""


def damage(tx: Transaction) -> list[str]:
    """Return what SQLite finds wrong with its file; PostgreSQL checks its pages itself."""
    if tx.connection.dialect.name != "sqlite":
        return []
    pages = tx.connection.exec_driver_sql("PRAGMA quick_check(10)").scalars()
    found = [str(line) for line in pages if line != "ok"]
    for table, row, parent, _ in tx.connection.exec_driver_sql("PRAGMA foreign_key_check"):
        found.append(f"row {row} of {table} refers to nothing in {parent}")
    return found


def newest_event(tx: Transaction) -> datetime | None:
    """Return the time of the newest audit row, or None before the first."""
    at = tx.connection.execute(sa.select(sa.func.max(audit_events.c.at))).scalar_one()
    return None if at is None else from_unix(at)


@dataclass(frozen=True, slots=True)
class Verified:
    """The last verification: when, by which version of the program, and what it found."""

    at: datetime
    version: str
    problems: int


def newest_verification(tx: Transaction) -> Verified | None:
    """Return the last verification, or None without one since the last restore."""
    query = (
        sa.select(audit_events.c.event, audit_events.c.at, audit_events.c.detail)
        .where(audit_events.c.event.in_((VERIFIED, RESTORED, RECOVERED)))
        .order_by(audit_events.c.id.desc())
        .limit(1)
    )
    row = tx.connection.execute(query).one_or_none()
    if row is None or row.event != VERIFIED:
        return None
    detail = json.loads(row.detail)
    return Verified(from_unix(row.at), detail["version"], detail["problems"])


def count_events(tx: Transaction) -> int:
    """Return how many audit rows there are."""
    count: int = tx.connection.execute(
        sa.select(sa.func.count()).select_from(audit_events)
    ).scalar_one()
    return count


def count_letters(tx: Transaction) -> dict[str, int]:
    """Return how many letters are queued, sent and failed."""
    query = sa.select(outbox.c.state, sa.func.count()).group_by(outbox.c.state)
    return {row[0]: row[1] for row in tx.connection.execute(query)}


def asynchronous_standby(tx: Transaction) -> str | None:
    """Say what the failure of the database server would lose; None: nothing, or there is one only.

    A standby that is not waited for lacks what was committed last: certificates that were handed
    out, and revocations.
    """
    connection = tx.connection
    if connection.dialect.name != "postgresql":
        return None
    standbys = connection.execute(
        sa.text(
            "SELECT (SELECT count(*) FROM pg_stat_replication)"
            " + (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical')"
        )
    ).scalar_one()
    if not standbys:
        return None
    waits_for = connection.execute(sa.text("SHOW synchronous_standby_names")).scalar_one()
    level = connection.execute(sa.text("SHOW synchronous_commit")).scalar_one()
    if waits_for and level not in {"off", "local"}:
        return None
    setting = (
        f"synchronous_commit is {level}" if waits_for else "synchronous_standby_names is empty"
    )
    return (
        f"PostgreSQL has a standby and does not wait for it ({setting}): a failover loses the last "
        "certificates and revocations; name the standby in synchronous_standby_names"
    )
