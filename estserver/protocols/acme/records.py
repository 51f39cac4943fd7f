"""Accounts, nonces and orders: rows in, frozen values out."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from estserver.model import Invitation
from estserver.protocols.acme import authorization_records
from estserver.protocols.acme.keys import AccountKey, stored_key
from estserver.protocols.acme.nonces import Nonce
from estserver.protocols.acme.problems import Identifier
from estserver.protocols.acme.states import AccountStatus
from estserver.protocols.acme.tables import accounts, nonces, orders
from estserver.store import Transaction, from_unix, prepared, registrations, to_unix
from estserver.store.tables import ORDERED, enrollments


@dataclass(frozen=True, slots=True)
class Account:
    """One account; `terms` is the URL that was agreed to, `binding` the EAB as it was sent."""

    id: str
    key: AccountKey
    status: AccountStatus
    contacts: tuple[str, ...]
    terms: str | None
    invitation: str | None
    binding: Mapping[str, Any] | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Caller:
    """An account that signs, and its registration, None where it needs none."""

    account: Account
    registration: Invitation | None


@dataclass(frozen=True, slots=True)
class Order:
    """One order; `authorizations` are ids in the order of `identifiers`.

    `not_before` and `not_after` are None where the client leaves them to the profile.
    """

    id: str
    account: str
    identifiers: tuple[Identifier, ...]
    profile: str
    authorizations: tuple[str, ...]
    replaces: str | None
    not_before: datetime | None
    not_after: datetime | None
    expires_at: datetime
    created_at: datetime

    @property
    def authority_key(self) -> str:
        """The key of the authority its enrollment draws on (`model.ACMEOrder`)."""
        return f"order:{self.id}"


# -- nonces ---------------------------------------------------------------------------------------


_NONCES = prepared.insert(nonces, "nonce", "expires_at")


def redeem_nonces(tx: Transaction, used: Sequence[Nonce]) -> bool:
    """Note that nonces were used; False if one had been: then the unit must not be kept."""
    rows = [{"nonce": one.text, "expires_at": to_unix(one.expires_at) + 1} for one in used]
    return _NONCES.run(tx.connection, rows) == len(rows)


def forget_nonces(tx: Transaction) -> int:
    """Delete used nonces that are too old to be taken anyway; return how many."""
    return tx.change(sa.delete(nonces).where(nonces.c.expires_at < tx.at))


# -- accounts -------------------------------------------------------------------------------------


def _account(row: Any) -> Account:
    return Account(
        id=row.id,
        key=stored_key(row.jwk),
        status=AccountStatus(row.status),
        contacts=tuple(row.contacts),
        terms=row.terms,
        invitation=row.invitation,
        binding=row.binding,
        created_at=from_unix(row.created_at),
    )


def add_account(tx: Transaction, account: Account) -> bool:
    """Insert an account; False if its key or its invitation has one already."""
    return tx.insert_new(
        accounts,
        id=account.id,
        thumbprint=account.key.thumbprint,
        jwk=dict(account.key.jwk),
        status=account.status.value,
        contacts=list(account.contacts),
        terms=account.terms,
        invitation=account.invitation,
        binding=sa.null() if account.binding is None else dict(account.binding),
        created_at=to_unix(account.created_at),
    )


_BY_ID = prepared.Lookup(sa.select(accounts), accounts.c.id)


def account(tx: Transaction, identifier: str) -> Account | None:
    """Find an account by its id."""
    return next(map(_account, _BY_ID.run(tx.connection, [identifier])), None)


def callers(tx: Transaction, identifiers: Sequence[str]) -> list[Caller | None]:
    """Find accounts by their ids, with their registrations as they stand."""
    found = [_account(row) for row in _BY_ID.run(tx.connection, set(identifiers))]
    numbers = {one.invitation for one in found if one.invitation is not None}
    invitations = registrations.by_numbers(tx, numbers)
    known = {
        one.id: Caller(one, None if one.invitation is None else invitations[one.invitation])
        for one in found
    }
    return [known.get(identifier) for identifier in identifiers]


_BY_KEY = prepared.Lookup(sa.select(accounts.c.thumbprint), accounts.c.thumbprint)


def account_keys(tx: Transaction, thumbprints: Sequence[str]) -> list[bool]:
    """Tell of each of some keys, by its thumbprint, whether it is an account's."""
    found = {row.thumbprint for row in _BY_KEY.run(tx.connection, set(thumbprints))}
    return [thumbprint in found for thumbprint in thumbprints]


def account_by_key(tx: Transaction, thumbprint: str) -> Account | None:
    """Find the account whose key has this thumbprint."""
    query = sa.select(accounts).where(accounts.c.thumbprint == thumbprint)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _account(row)


def account_of_invitation(tx: Transaction, number: str) -> Account | None:
    """Find the account that an invitation was bound to."""
    query = sa.select(accounts).where(accounts.c.invitation == number)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _account(row)


def change_account(tx: Transaction, identifier: str, *, contacts: Sequence[str]) -> bool:
    """Change the contacts of a valid account; False if it is not valid any more."""
    changed = tx.change(
        sa.update(accounts)
        .where(accounts.c.id == identifier, accounts.c.status == AccountStatus.VALID.value)
        .values(contacts=list(contacts))
    )
    return changed == 1


def agree(tx: Transaction, identifier: str, *, terms: str) -> bool:
    """Note that a valid account agreed to the terms at this URL; False if it is not valid."""
    changed = tx.change(
        sa.update(accounts)
        .where(accounts.c.id == identifier, accounts.c.status == AccountStatus.VALID.value)
        .values(terms=terms)
    )
    return changed == 1


def close_account(tx: Transaction, identifier: str, status: AccountStatus) -> bool:
    """Deactivate or revoke a valid account; False if it is not valid any more."""
    return (
        tx.change(
            sa.update(accounts)
            .where(accounts.c.id == identifier, accounts.c.status == AccountStatus.VALID.value)
            .values(status=status.value)
        )
        == 1
    )


def change_key(tx: Transaction, before: Account, key: AccountKey) -> bool:
    """Give a valid account another key; False if account or old key are not as they were."""
    return (
        tx.change(
            sa.update(accounts)
            .where(
                accounts.c.id == before.id,
                accounts.c.thumbprint == before.key.thumbprint,
                accounts.c.status == AccountStatus.VALID.value,
            )
            .values(thumbprint=key.thumbprint, jwk=dict(key.jwk))
        )
        == 1
    )


# -- orders ---------------------------------------------------------------------------------------


def _order(row: Any) -> Order:
    return Order(
        id=row.id,
        account=row.account,
        identifiers=tuple(Identifier(*pair) for pair in row.identifiers),
        profile=row.profile,
        authorizations=tuple(row.authorizations),
        replaces=row.replaces,
        not_before=None if row.not_before is None else from_unix(row.not_before),
        not_after=None if row.not_after is None else from_unix(row.not_after),
        expires_at=from_unix(row.expires_at),
        created_at=from_unix(row.created_at),
    )


_ADD_ORDERS = prepared.insert(
    orders,
    *("id", "account", "identifiers", "profile", "authorizations", "replaces"),
    *("not_before", "not_after", "expires_at", "created_at"),
)


def add_orders(tx: Transaction, new: Sequence[Order]) -> None:
    """Insert orders."""
    rows = [
        {
            "id": order.id,
            "account": order.account,
            "identifiers": json.dumps([[one.type, one.value] for one in order.identifiers]),
            "profile": order.profile,
            "authorizations": json.dumps(order.authorizations),
            "replaces": order.replaces,
            "not_before": None if order.not_before is None else to_unix(order.not_before),
            "not_after": None if order.not_after is None else to_unix(order.not_after),
            "expires_at": to_unix(order.expires_at),
            "created_at": to_unix(order.created_at),
        }
        for order in new
    ]
    _ADD_ORDERS.run(tx.connection, rows)


_ORDERS = prepared.Lookup(sa.select(orders), orders.c.id)


def orders_by_id(tx: Transaction, identifiers: Collection[str]) -> dict[str, Order]:
    """Find orders by their ids."""
    return {row.id: _order(row) for row in _ORDERS.run(tx.connection, set(identifiers))}


def order(tx: Transaction, identifier: str) -> Order | None:
    """Find an order by its id."""
    return orders_by_id(tx, [identifier]).get(identifier)


def orders_page(
    tx: Transaction, account_id: str, *, after: Order | None, limit: int
) -> list[Order]:
    """List an account's orders, newest first; `after` is the last one of the page before."""
    query = (
        sa.select(orders)
        .where(orders.c.account == account_id)
        .order_by(orders.c.created_at.desc(), orders.c.id.desc())
        .limit(limit)
    )
    if after is not None:
        query = query.where(
            sa.tuple_(orders.c.created_at, orders.c.id)
            < sa.tuple_(to_unix(after.created_at), after.id)
        )
    return [_order(row) for row in tx.connection.execute(query)]


def orders_replacing(tx: Transaction, certificate_id: str) -> list[Order]:
    """List the orders that said they replace a certificate (RFC 9773 §5)."""
    query = sa.select(orders).where(orders.c.replaces == certificate_id)
    return [_order(row) for row in tx.connection.execute(query)]


def orders_since(tx: Transaction, account_id: str, since: datetime) -> list[Order]:
    """List an account's orders that were made at `since` or later."""
    query = sa.select(orders).where(
        orders.c.account == account_id, orders.c.created_at >= to_unix(since)
    )
    return [_order(row) for row in tx.connection.execute(query)]


def orders_with(tx: Transaction, account_id: str, authorization: str) -> list[Order]:
    """List an account's orders that need an authorization, given by its id."""
    listed = sa.cast(orders.c.authorizations, sa.Text)
    query = sa.select(orders).where(
        orders.c.account == account_id, listed.contains(f'"{authorization}"', autoescape=True)
    )
    return [_order(row) for row in tx.connection.execute(query)]


def forget_orders(tx: Transaction, *, since: datetime, until: datetime, limit: int) -> int:
    """Delete orders that ended between these times without any certificate; return how many.

    With each go the authorizations that nothing else needs. An order that led to an enrollment
    stays: it says whose certificate that is, and its authorizations why.
    """
    enrolled = sa.exists().where(enrollments.c.authority_key == "order:" + orders.c.id, ORDERED)
    rows = tx.connection.execute(
        sa.select(orders.c.id, orders.c.authorizations)
        .where(
            orders.c.expires_at >= to_unix(since), orders.c.expires_at < to_unix(until), ~enrolled
        )
        .limit(limit)
    ).all()
    authorization_records.forget(tx, [one for row in rows for one in row.authorizations])
    return tx.change(sa.delete(orders).where(orders.c.id.in_([row.id for row in rows])))
