"""Authorizations and challenges: rows in, frozen values out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from estserver.protocols.acme.problems import Identifier
from estserver.protocols.acme.states import (
    AuthorizationStatus,
    ChallengeStatus,
    authorization_status,
)
from estserver.protocols.acme.tables import authorizations, challenges
from estserver.store import Transaction, from_unix, prepared, to_unix


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge; `thumbprint` is that of the account key when the client responded.

    `due_at` is when the next attempt may begin, None where none will.
    """

    id: str
    authorization: str
    type: str
    token: str
    status: ChallengeStatus
    thumbprint: str | None
    attempts: int
    due_at: datetime | None
    validated_at: datetime | None
    error: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Authorization:
    """One authorization; `rule` says by what it was born valid, None where a challenge decides.

    The identifier of a wildcard stands without its `*.` (RFC 8555 §7.1.3). `early`: newAuthz made
    it before there was an order.
    """

    id: str
    account: str
    identifier: Identifier
    wildcard: bool
    rule: str | None
    deactivated: bool
    early: bool
    expires_at: datetime
    challenges: tuple[Challenge, ...]

    def status(self, now: datetime) -> AuthorizationStatus:
        """Return the status at `now`."""
        return authorization_status(
            (challenge.status for challenge in self.challenges),
            deactivated=self.deactivated,
            expires=self.expires_at,
            now=now,
        )


def _challenge(row: Any) -> Challenge:
    return Challenge(
        id=row.id,
        authorization=row.authorization,
        type=row.type,
        token=row.token,
        status=ChallengeStatus(row.status),
        thumbprint=row.thumbprint,
        attempts=row.attempts,
        due_at=None if row.due_at is None else from_unix(row.due_at),
        validated_at=None if row.validated_at is None else from_unix(row.validated_at),
        error=row.error,
    )


_ADD = prepared.insert(
    authorizations,
    *("id", "account", "type", "value", "wildcard", "rule", "deactivated", "early"),
    *("expires_at", "created_at"),
)
_ADD_CHALLENGES = prepared.insert(
    challenges, "id", "authorization", "type", "token", "status", "attempts", "validated_at"
)


def add_authorizations(tx: Transaction, new: Sequence[Authorization]) -> None:
    """Insert authorizations and their challenges."""
    rows = [
        {
            "id": one.id,
            "account": one.account,
            "type": one.identifier.type,
            "value": one.identifier.value,
            "wildcard": one.wildcard,
            "rule": one.rule,
            "deactivated": one.deactivated,
            "early": one.early,
            "expires_at": to_unix(one.expires_at),
            "created_at": tx.at,
        }
        for one in new
    ]
    _ADD.run(tx.connection, rows)
    below = [
        {
            "id": each.id,
            "authorization": one.id,
            "type": each.type,
            "token": each.token,
            "status": each.status.value,
            "attempts": 0,
            "validated_at": None if each.validated_at is None else to_unix(each.validated_at),
        }
        for one in new
        for each in one.challenges
    ]
    _ADD_CHALLENGES.run(tx.connection, below)


_BY_ID = prepared.Lookup(sa.select(authorizations), authorizations.c.id)
_LIVE = sa.select(authorizations).where(
    authorizations.c.account == sa.bindparam("account_id"),
    authorizations.c.value.in_(sa.bindparam("values", expanding=True)),
    authorizations.c.deactivated.is_(False),
    authorizations.c.expires_at > sa.bindparam("now"),
)
_CHALLENGES = prepared.Lookup(
    sa.select(challenges).order_by(challenges.c.type), challenges.c.authorization
)


def authorizations_of(tx: Transaction, identifiers: Sequence[str]) -> dict[str, Authorization]:
    """Return the authorizations with these ids, by id."""
    return _with_challenges(tx, list(_BY_ID.run(tx.connection, set(identifiers))))


def authorization(tx: Transaction, identifier: str) -> Authorization | None:
    """Find an authorization by its id."""
    return authorizations_of(tx, [identifier]).get(identifier)


def live_authorizations(
    tx: Transaction, account_id: str, values: Sequence[str]
) -> list[Authorization]:
    """List an account's authorizations for these names that are neither given up nor expired."""
    parameters = {"account_id": account_id, "values": values, "now": tx.at}
    rows = tx.connection.execute(_LIVE, parameters).all()
    return list(_with_challenges(tx, rows).values())


def _with_challenges(tx: Transaction, rows: Sequence[Any]) -> dict[str, Authorization]:
    found: dict[str, list[Challenge]] = {row.id: [] for row in rows}
    for each in _CHALLENGES.run(tx.connection, found):
        found[each.authorization].append(_challenge(each))
    return {
        row.id: Authorization(
            id=row.id,
            account=row.account,
            identifier=Identifier(row.type, row.value),
            wildcard=row.wildcard,
            rule=row.rule,
            deactivated=row.deactivated,
            early=row.early,
            expires_at=from_unix(row.expires_at),
            challenges=tuple(found[row.id]),
        )
        for row in rows
    }


def deactivate_authorization(tx: Transaction, identifier: str) -> None:
    """Note that the client gave an authorization up."""
    tx.change(
        sa.update(authorizations).where(authorizations.c.id == identifier).values(deactivated=True)
    )


_FORGETTABLE = sa.or_(
    authorizations.c.rule.is_not(None),
    ~sa.exists().where(
        challenges.c.authorization == authorizations.c.id,
        challenges.c.status == ChallengeStatus.VALID.value,
    ),
)


def early_ended(tx: Transaction, *, since: datetime, until: datetime, limit: int) -> list[str]:
    """List authorizations that newAuthz made, that ended between these times and can be forgotten.

    One that a challenge has shown is none of them: orders may rest on it.
    """
    query = (
        sa.select(authorizations.c.id)
        .where(
            authorizations.c.early.is_(True),
            authorizations.c.expires_at >= to_unix(since),
            authorizations.c.expires_at < to_unix(until),
            _FORGETTABLE,
        )
        .limit(limit)
    )
    return list(tx.connection.execute(query).scalars())


def forget(tx: Transaction, identifiers: Sequence[str]) -> None:
    """Delete authorizations, but those that a challenge has shown: orders may rest on them."""
    query = sa.select(authorizations.c.id).where(authorizations.c.id.in_(identifiers), _FORGETTABLE)
    gone = list(tx.connection.execute(query).scalars())
    tx.change(sa.delete(challenges).where(challenges.c.authorization.in_(gone)))
    tx.change(sa.delete(authorizations).where(authorizations.c.id.in_(gone)))


def challenge(tx: Transaction, identifier: str) -> Challenge | None:
    """Find a challenge by its id."""
    query = sa.select(challenges).where(challenges.c.id == identifier)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _challenge(row)


def begin_challenge(tx: Transaction, identifier: str, *, thumbprint: str) -> bool:
    """Take a pending challenge into processing, due at once; False if it is not pending."""
    return (
        tx.change(
            sa.update(challenges)
            .where(
                challenges.c.id == identifier, challenges.c.status == ChallengeStatus.PENDING.value
            )
            .values(status=ChallengeStatus.PROCESSING.value, thumbprint=thumbprint, due_at=tx.at)
        )
        == 1
    )


def hasten_challenge(tx: Transaction, identifier: str, *, due_before: datetime) -> bool:
    """Make a challenge that waits beyond `due_before` due now: the client asked for it (§8.2)."""
    return (
        tx.change(
            sa.update(challenges)
            .where(
                challenges.c.id == identifier,
                challenges.c.status == ChallengeStatus.PROCESSING.value,
                challenges.c.due_at <= to_unix(due_before),
                challenges.c.due_at > tx.at,
            )
            .values(due_at=tx.at)
        )
        == 1
    )


def due_challenges(tx: Transaction, *, limit: int) -> list[Challenge]:
    """List challenges whose next attempt may begin, oldest first."""
    query = (
        sa.select(challenges)
        .where(
            challenges.c.status == ChallengeStatus.PROCESSING.value,
            challenges.c.due_at <= tx.at,
        )
        .order_by(challenges.c.due_at)
        .limit(limit)
    )
    return [_challenge(row) for row in tx.connection.execute(query)]


def lease_challenge(tx: Transaction, seen: Challenge, *, until: datetime) -> bool:
    """Take one attempt: nobody else will before `until`. False if somebody has taken it."""
    return (
        tx.change(
            sa.update(challenges)
            .where(
                challenges.c.id == seen.id,
                challenges.c.status == ChallengeStatus.PROCESSING.value,
                challenges.c.attempts == seen.attempts,
            )
            .values(attempts=seen.attempts + 1, due_at=to_unix(until))
        )
        == 1
    )


def settle_challenge(
    tx: Transaction,
    identifier: str,
    *,
    status: ChallengeStatus,
    error: Mapping[str, Any] | None,
    due_at: datetime | None,
) -> bool:
    """Record how an attempt ended; `status` processing leaves it for the next one at `due_at`."""
    return (
        tx.change(
            sa.update(challenges)
            .where(
                challenges.c.id == identifier,
                challenges.c.status == ChallengeStatus.PROCESSING.value,
            )
            .values(
                status=status.value,
                error=sa.null() if error is None else dict(error),
                due_at=None if due_at is None else to_unix(due_at),
                validated_at=tx.at if status is ChallengeStatus.VALID else None,
            )
        )
        == 1
    )
