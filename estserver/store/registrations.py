"""Invitations and failed attempts: rows in, frozen values out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from estserver.model import Door, Invitation, InvitationState, Language
from estserver.names import format_general_name, parse_general_name
from estserver.store import prepared
from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.findable import remember, terms_of
from estserver.store.journalling import tell_registration
from estserver.store.tables import attempts, invitations


@dataclass(frozen=True, slots=True)
class PINHash:
    """How a PIN is stored: scheme `hmac` (unsalted, so that it can be looked up) or `argon2id`."""

    scheme: str
    salt: bytes
    digest: bytes


def _invitation(row: Any) -> Invitation:
    return Invitation(
        number=row.number,
        profile=row.profile,
        name=row.name,
        email=row.email,
        device_id=row.device_id,
        names=tuple(parse_general_name(text) for text in row.names),
        language=Language(row.language),
        doors=frozenset(Door(door) for door in row.doors.split(",") if door),
        units=row.units,
        units_used=row.units_used,
        state=InvitationState(row.state),
        approval=row.approval,
        created_at=from_unix(row.created_at),
        expires_at=from_unix(row.expires_at),
        renew_until=None if row.renew_until is None else from_unix(row.renew_until),
        pin_generation=row.pin_generation,
        pin_failures=row.pin_failures,
        pin_dead=row.pin_dead,
        renewal_pin=row.renewal_pin,
        replaced=row.replaced,
        url_generation=row.url_generation,
        organization=row.organization,
    )


def add(
    tx: Transaction, invitation: Invitation, *, pin: PINHash, url_hash: bytes | None, by: str
) -> bool:
    """Insert an invitation; return False if its number is taken."""
    names = [format_general_name(name) for name in invitation.names]
    added = tx.insert_new(
        invitations,
        number=invitation.number,
        profile=invitation.profile,
        name=invitation.name,
        email=invitation.email,
        device_id=invitation.device_id,
        organization=invitation.organization,
        names=names,
        language=invitation.language.value,
        doors=",".join(sorted(door.value for door in invitation.doors)),
        units=invitation.units,
        units_used=0,
        state=invitation.state.value,
        approval=invitation.approval,
        created_at=to_unix(invitation.created_at),
        created_by=by,
        expires_at=to_unix(invitation.expires_at),
        renew_until=None if invitation.renew_until is None else to_unix(invitation.renew_until),
        pin_scheme=pin.scheme,
        pin_hash=pin.digest,
        pin_salt=pin.salt,
        pin_generation=1,
        pin_failures=0,
        pin_failed_at=0,
        pin_dead=False,
        renewal_pin=False,
        replaced=False,
        url_generation=1,
        url_hash=url_hash,
    )
    if added:
        remember(
            tx,
            invitation.number,
            terms_of(invitation.name, invitation.email, invitation.device_id, names),
        )
        tell_registration(tx, invitation.number)
    return added


_BY_NUMBER = prepared.Lookup(sa.select(invitations), invitations.c.number)
# In one order for all, or two transactions would wait for each other.
_HOLD = prepared.Lookup(
    sa.select(invitations).order_by(invitations.c.number).with_for_update(read=True),
    invitations.c.number,
)


def get(tx: Transaction, number: str, *, hold: bool = False) -> Invitation | None:
    """Find an invitation by its number; `hold` keeps it as it is until the commit."""
    return by_numbers(tx, [number], hold=hold).get(number)


def by_numbers(
    tx: Transaction, numbers: Collection[str], *, hold: bool = False
) -> dict[str, Invitation]:
    """Find invitations by their numbers; `hold` keeps them as they are until the commit."""
    rows = (_HOLD if hold else _BY_NUMBER).run(tx.connection, sorted(set(numbers)))
    return {row.number: _invitation(row) for row in rows}


def by_url(tx: Transaction, url_hash: bytes) -> Invitation | None:
    """Find an invitation by the SHA-256 of its URL token."""
    row = tx.connection.execute(
        sa.select(invitations).where(invitations.c.url_hash == url_hash)
    ).one_or_none()
    return None if row is None else _invitation(row)


_BY_PINS = prepared.Lookup(
    sa.select(invitations).where(invitations.c.pin_scheme == "hmac"), invitations.c.pin_hash
)


def by_pins(tx: Transaction, digests: Sequence[bytes]) -> list[Invitation | None]:
    """Find the invitations of long PINs by the keyed hashes of those."""
    rows = _BY_PINS.run(tx.connection, set(digests))
    found = {bytes(row.pin_hash): _invitation(row) for row in rows}
    return [found.get(digest) for digest in digests]


def pin_hash(tx: Transaction, number: str) -> PINHash:
    """Return how the PIN of an existing invitation is stored."""
    row = tx.connection.execute(
        sa.select(invitations.c.pin_scheme, invitations.c.pin_salt, invitations.c.pin_hash).where(
            invitations.c.number == number
        )
    ).one()
    return PINHash(row.pin_scheme, bytes(row.pin_salt), bytes(row.pin_hash))


def page(
    tx: Transaction, *, after: Invitation | None = None, limit: int = 100
) -> Sequence[Invitation]:
    """List invitations, newest first; `after` is the last one of the page before."""
    order = (invitations.c.created_at.desc(), invitations.c.number.desc())
    query = sa.select(invitations).order_by(*order).limit(limit)
    if after is not None:
        query = query.where(
            sa.tuple_(invitations.c.created_at, invitations.c.number)
            < sa.tuple_(to_unix(after.created_at), after.number)
        )
    return [_invitation(row) for row in tx.connection.execute(query)]


def set_state(
    tx: Transaction, number: str, *, before: InvitationState | None, to: InvitationState
) -> bool:
    """Move an invitation to another state; False if it is not in `before` (None: any but `to`)."""
    condition = (
        invitations.c.state != to.value if before is None else invitations.c.state == before.value
    )
    changed = tx.change(
        sa.update(invitations)
        .where(invitations.c.number == number, condition)
        .values(state=to.value)
    )
    if changed:
        tell_registration(tx, number)
    return changed == 1


def set_pin(tx: Transaction, number: str, pin: PINHash, *, expires_at: datetime) -> None:
    """Give an invitation a new PIN with a fresh life; the old one is dead from here on.

    Where every unit is spent, the new PIN is good for one renewal.
    """
    tx.change(
        sa.update(invitations)
        .where(invitations.c.number == number)
        .values(
            pin_scheme=pin.scheme,
            pin_hash=pin.digest,
            pin_salt=pin.salt,
            pin_generation=invitations.c.pin_generation + 1,
            pin_failures=0,
            pin_failed_at=0,
            pin_dead=False,
            renewal_pin=invitations.c.units_used >= invitations.c.units,
            expires_at=to_unix(expires_at),
        )
    )
    tell_registration(tx, number)


# The one conditional UPDATE on which the whole promise "one PIN, one certificate" rests.
_TAKE = (
    sa.update(invitations)
    .where(
        invitations.c.number == sa.bindparam("wanted"),
        invitations.c.state == InvitationState.OPEN.value,
        invitations.c.units_used + sa.bindparam("count") <= invitations.c.units,
    )
    .values(units_used=invitations.c.units_used + sa.bindparam("count"))
)
_SPEND = prepared.update(_TAKE.where(invitations.c.expires_at > sa.bindparam("now")))
_SPEND_BOUND = prepared.update(
    _TAKE.where(
        sa.or_(invitations.c.renew_until.is_(None), invitations.c.renew_until > sa.bindparam("now"))
    )
)


def spend_units(tx: Transaction, wanted: Mapping[str, int], *, bound: bool = False) -> set[str]:
    """Take several units at once, so many from each invitation by its number.

    Returns those that are open, in time and had as many left; from the others none was taken.
    `bound` as in `spend_unit`.
    """
    # In one order for all, or two transactions would wait for each other.
    asked = sorted(wanted.items())
    rows = [{"wanted": number, "now": tx.at, "count": count} for number, count in asked]
    changed = (_SPEND_BOUND if bound else _SPEND).run_each(tx.connection, rows)
    return {number for (number, _), taken in zip(asked, changed, strict=True) if taken}


def spend_unit(tx: Transaction, number: str, *, bound: bool = False) -> bool:
    """Take one unit if the invitation is open, in time and has one left.

    `bound`: it was redeemed in time, for an account that draws on it until renewals end.
    """
    return number in spend_units(tx, {number: 1}, bound=bound)


def spend_renewal_pin(tx: Transaction, number: str) -> bool:
    """Use up the PIN that was issued for one renewal; False if there is none any more."""
    changed = tx.change(
        sa.update(invitations)
        .where(
            invitations.c.number == number,
            invitations.c.state == InvitationState.OPEN.value,
            invitations.c.expires_at > tx.at,
            invitations.c.renewal_pin.is_(True),
        )
        .values(renewal_pin=False)
    )
    return changed == 1


def spend_replacement(tx: Transaction, number: str) -> bool:
    """Use up the one self-service replacement; False if it was used before."""
    changed = tx.change(
        sa.update(invitations)
        .where(
            invitations.c.number == number,
            invitations.c.state == InvitationState.OPEN.value,
            invitations.c.replaced.is_(False),
        )
        .values(replaced=True)
    )
    return changed == 1


def return_unit(tx: Transaction, number: str) -> None:
    """Give back the unit that a rejected enrollment had reserved."""
    tx.change(
        sa.update(invitations)
        .where(invitations.c.number == number, invitations.c.units_used > 0)
        .values(units_used=invitations.c.units_used - 1)
    )


def return_replacement(tx: Transaction, number: str) -> None:
    """Give back the self-service replacement that led to nothing."""
    tx.change(sa.update(invitations).where(invitations.c.number == number).values(replaced=False))


def count_pin_failure(tx: Transaction, number: str) -> int:
    """Count a wrong PIN behind the URL; return the new count."""
    tx.change(
        sa.update(invitations)
        .where(invitations.c.number == number)
        .values(pin_failures=invitations.c.pin_failures + 1, pin_failed_at=tx.at)
    )
    count: int = tx.connection.execute(
        sa.select(invitations.c.pin_failures).where(invitations.c.number == number)
    ).scalar_one()
    return count


def forgive_pin_failure(tx: Transaction, number: str, *, failed_at: datetime) -> None:
    """Take back one counted failure: the PIN turned out to be right."""
    tx.change(
        sa.update(invitations)
        .where(invitations.c.number == number, invitations.c.pin_failures > 0)
        .values(
            pin_failures=invitations.c.pin_failures - 1,
            pin_failed_at=to_unix(failed_at),
        )
    )


def kill_pin(tx: Transaction, number: str) -> bool:
    """Let a PIN die of guesses; False: it is dead already."""
    alive = sa.and_(invitations.c.number == number, invitations.c.pin_dead.is_(False))
    return tx.change(sa.update(invitations).where(alive).values(pin_dead=True)) == 1


def pin_failed_at(tx: Transaction, number: str) -> datetime:
    """When the last wrong PIN was typed behind the URL; holds the counters until the commit."""
    seconds: int = tx.connection.execute(
        sa.select(invitations.c.pin_failed_at)
        .where(invitations.c.number == number)
        .with_for_update(key_share=True)
    ).scalar_one()
    return from_unix(seconds)


def count_attempt(tx: Transaction, key: str, *, window: int) -> int:
    """Count a failure under `key` in windows of `window` seconds; return the count so far."""
    start = tx.at - tx.at % window
    tx.insert_new(attempts, key=key, failures=0, window_start=start)
    tx.change(
        sa.update(attempts)
        .where(attempts.c.key == key)
        .values(
            failures=sa.case((attempts.c.window_start == start, attempts.c.failures + 1), else_=1),
            window_start=start,
        )
    )
    return failures(tx, key, window=window)


def failures(tx: Transaction, key: str, *, window: int) -> int:
    """Return the failures counted under `key` in the present window."""
    start = tx.at - tx.at % window
    count = tx.connection.execute(
        sa.select(attempts.c.failures).where(
            attempts.c.key == key, attempts.c.window_start == start
        )
    ).scalar_one_or_none()
    return count or 0


def forget_attempts(tx: Transaction, *, older_than: datetime) -> int:
    """Delete counters whose window is long past; return how many."""
    return tx.change(sa.delete(attempts).where(attempts.c.window_start < to_unix(older_than)))
