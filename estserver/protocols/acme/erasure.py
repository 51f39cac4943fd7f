"""Erasure: what ACME remembers of people goes with the registration or certificate it belongs to.

An account is deleted with all that hangs on it, its key too: a client that comes back with it is
told accountDoesNotExist (RFC 8555 §7.3.1).
"""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from estserver.model import ACMEOrder
from estserver.protocols.acme.tables import accounts, authorizations, challenges, failures, orders
from estserver.store import Transaction, to_unix
from estserver.store.tables import enrollments as enrolled

_BATCH = 500
_IS_NEEDED = sa.exists().where(
    orders.c.account == authorizations.c.account,
    # An order names what lived when it was made, give or take a request; the index knows when.
    orders.c.created_at >= authorizations.c.created_at - 86400,
    orders.c.created_at <= authorizations.c.expires_at,
    sa.cast(orders.c.authorizations, sa.Text).contains(authorizations.c.id),
)
"""Of an authorization: an order of its account names it."""


class ACMEMemory:
    """A `retention.Memory`: contacts, orders, authorizations and failures."""

    def actors(self, tx: Transaction, number: str) -> list[str]:
        """Return the account that is bound to a registration, as audit rows name it."""
        query = sa.select(accounts.c.id).where(accounts.c.invitation == number)
        return [f"account {one}" for one in tx.connection.execute(query).scalars()]

    def forget_registrations(self, tx: Transaction, numbers: Sequence[str]) -> None:
        """Delete the accounts that are bound to these registrations."""
        _delete_accounts(tx, accounts.c.invitation.in_(numbers))

    def forget_certificates(self, tx: Transaction, enrollments: Sequence[str]) -> None:
        """Delete the orders that led to these certificates, with what only they needed."""
        keys = sa.select(enrolled.c.authority_key).where(enrolled.c.id.in_(enrollments))
        drawn_on = tx.connection.execute(keys).scalars()
        # Not by a join: no index has a key that is put together, and each batch read all orders.
        led = orders.c.id.in_([one for key in drawn_on if (one := ACMEOrder.of(key))])
        listed = tx.connection.execute(sa.select(orders.c.authorizations).where(led)).scalars()
        named = [one for authorized in listed for one in authorized]
        tx.change(sa.delete(orders).where(led))
        for first in range(0, len(named), _BATCH):
            needless = sa.select(authorizations.c.id).where(
                authorizations.c.id.in_(named[first : first + _BATCH]),
                # What was granted by rule no other order was given: no look at a month of orders.
                sa.or_(authorizations.c.rule.is_not(None), ~_IS_NEEDED),
            )
            found = tx.connection.execute(needless).scalars().all()
            _delete_authorizations(tx, authorizations.c.id.in_(found))

    def forget_idle(self, tx: Transaction, before: datetime) -> None:
        """Delete accounts without a registration, older than `before`, that have no order left.

        And authorizations that ended before and that no order names.
        """
        ordered = sa.exists().where(orders.c.account == accounts.c.id)
        _delete_accounts(
            tx,
            sa.and_(
                accounts.c.invitation.is_(None), accounts.c.created_at < to_unix(before), ~ordered
            ),
        )
        ended = authorizations.c.expires_at < to_unix(before)
        _delete_authorizations(tx, sa.and_(ended, ~_IS_NEEDED))


def _delete_accounts(tx: Transaction, condition: sa.ColumnElement[bool]) -> None:
    which = sa.select(accounts.c.id).where(condition)
    _delete_authorizations(tx, authorizations.c.account.in_(which))
    for table in (orders, failures):
        tx.change(sa.delete(table).where(table.c.account.in_(which)))
    tx.change(sa.delete(accounts).where(condition))


def _delete_authorizations(tx: Transaction, condition: sa.ColumnElement[bool]) -> None:
    which = sa.select(authorizations.c.id).where(condition)
    tx.change(sa.delete(challenges).where(challenges.c.authorization.in_(which)))
    tx.change(sa.delete(authorizations).where(condition))
