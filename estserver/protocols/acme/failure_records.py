"""What accounts order again and again and never get: rows in, frozen values out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from estserver.protocols.acme.problems import Identifier
from estserver.protocols.acme.tables import accounts, failures
from estserver.store import Transaction, from_unix, to_unix


@dataclass(frozen=True, slots=True)
class Failure:
    """One order that keeps failing; `identifiers` are sorted texts such as `dns:a.example.org`.

    `times` is in how many hours it has failed since `first_at`; `paused_at` is None while it may
    still be tried. `invitation` is what the account is bound to.
    """

    account: str
    invitation: str | None
    identifiers: tuple[str, ...]
    reason: str
    times: int
    first_at: datetime
    last_at: datetime
    paused_at: datetime | None


def name_order(identifiers: Sequence[Identifier]) -> tuple[str, ...]:
    """Return what makes two orders the same one: the identifiers whatever their sequence."""
    return tuple(sorted(f"{one.type}:{one.value}" for one in identifiers))


def _digest(identifiers: Sequence[str]) -> bytes:
    return hashlib.sha256(" ".join(identifiers).encode()).digest()


def _failure(row: sa.Row[Any]) -> Failure:
    return Failure(
        account=row.account,
        invitation=row.invitation,
        identifiers=tuple(row.identifiers.split()),
        reason=row.reason,
        times=row.times,
        first_at=from_unix(row.first_at),
        last_at=from_unix(row.last_at),
        paused_at=None if row.paused_at is None else from_unix(row.paused_at),
    )


_SELECT = sa.select(failures, accounts.c.invitation).join(
    accounts, accounts.c.id == failures.c.account
)


def failure(tx: Transaction, account: str, identifiers: Sequence[str]) -> Failure | None:
    """Find how an account has fared with an order of these identifiers."""
    row = tx.connection.execute(
        _SELECT.where(failures.c.account == account, failures.c.digest == _digest(identifiers))
    ).one_or_none()
    return None if row is None else _failure(row)


def listing(tx: Transaction, *, paused: bool) -> list[Failure]:
    """List what keeps failing, the longest first; `paused`: only what is paused."""
    query = _SELECT.order_by(failures.c.first_at, failures.c.account, failures.c.digest)
    if paused:
        query = query.where(failures.c.paused_at.is_not(None))
    return [_failure(row) for row in tx.connection.execute(query)]


def count_paused(tx: Transaction) -> int:
    """Return how many orders are paused."""
    query = sa.select(sa.func.count()).where(failures.c.paused_at.is_not(None))
    return int(tx.connection.execute(query).scalar_one())


def put(tx: Transaction, failure: Failure) -> None:
    """Store a failure in the place of an earlier one of the same order."""
    forget(tx, failure.account, failure.identifiers)
    tx.insert_new(
        failures,
        account=failure.account,
        digest=_digest(failure.identifiers),
        identifiers=" ".join(failure.identifiers),
        reason=failure.reason,
        times=failure.times,
        first_at=to_unix(failure.first_at),
        last_at=to_unix(failure.last_at),
        paused_at=None if failure.paused_at is None else to_unix(failure.paused_at),
    )


def forget(tx: Transaction, account: str, identifiers: Sequence[str]) -> None:
    """Forget how an account has fared with an order of these identifiers."""
    tx.change(
        sa.delete(failures).where(
            failures.c.account == account, failures.c.digest == _digest(identifiers)
        )
    )


def forget_before(tx: Transaction, before: datetime) -> int:
    """Forget what nobody has tried since `before`; return how many."""
    return tx.change(sa.delete(failures).where(failures.c.last_at < to_unix(before)))
