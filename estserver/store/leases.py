"""Leases: who does now what one worker of all nodes should do at a time.

A lease spares work, it protects nothing: clocks differ between nodes and a holder may be slow, so
whatever is done under a lease must stay right if two do it at once.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.tables import leases


@dataclass(frozen=True, slots=True)
class Lease:
    """`holder` does `name` until `until`, unless it says by then that it goes on."""

    name: str
    holder: str
    until: datetime


def get(tx: Transaction, name: str) -> Lease | None:
    """Return the lease of that name, run out or not; None if nobody ever took it or it was left."""
    row = tx.connection.execute(sa.select(leases).where(leases.c.name == name)).one_or_none()
    return None if row is None else Lease(row.name, row.holder, from_unix(row.until))


def take(tx: Transaction, name: str, holder: str, term: timedelta) -> bool:
    """Take or prolong a lease for `term` from now; False if another holds it."""
    until = to_unix(tx.now + term)
    if tx.insert_new(leases, name=name, holder=holder, until=until):
        return True
    changed = tx.change(
        sa.update(leases)
        .where(leases.c.name == name, (leases.c.holder == holder) | (leases.c.until <= tx.at))
        .values(holder=holder, until=until)
    )
    return changed == 1


def leave(tx: Transaction, holder: str) -> None:
    """Give up everything that `holder` holds, so that others need not wait."""
    tx.change(sa.delete(leases).where(leases.c.holder == holder))


def held(tx: Transaction, prefix: str) -> list[Lease]:
    """List the leases in force whose names begin with `prefix`, by name."""
    query = (
        sa.select(leases)
        .where(leases.c.name.startswith(prefix, autoescape=True), leases.c.until > tx.at)
        .order_by(leases.c.name)
    )
    return [
        Lease(row.name, row.holder, from_unix(row.until)) for row in tx.connection.execute(query)
    ]
