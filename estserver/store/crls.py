"""Rows about published CRLs: their numbers, their frames, and the entries that they share.

A CRL is stored as its frame (head and tail) and how much of a generation's entries it holds.
Entries are only ever added at the end of a generation, so that a CRL of a million entries and one
more costs one small row. A generation begins anew when entries must go (RFC 5280 §3.3).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.journalling import tell_crl
from estserver.store.revocations import newest_crl_number
from estserver.store.tables import certificates, crl_entries, crls, hold_endings

_PAGE = 5000
_DAY = 86400
_TIMES = ("this_update", "next_update", "base_at")
_USED = sa.select(crls.c.generation).scalar_subquery()


@dataclass(frozen=True, slots=True)
class StoredCRL:
    """One published CRL without its entries. `scope`: "" for all of an issuer, else a profile.

    `base_number` and `base_size`: what its delta CRL adds to, made at `base_at`; the delta's frame
    is None without. `delta_changes`: entries of the delta about what the base had already.
    `holds_ended`: how many holds had ended when its generation began.
    Generation 0 has no entries to add to: the whole CRL is its head.
    """

    issuer: str
    scope: str
    number: int
    this_update: datetime
    next_update: datetime
    head: bytes
    tail: bytes
    generation: int
    entries_size: int
    entries_count: int
    base_number: int
    base_size: int
    base_at: datetime
    delta_changes: bytes
    holds_ended: int
    delta_head: bytes | None = None
    delta_tail: bytes | None = None


def newest(tx: Transaction, issuer: str, scope: str = "") -> StoredCRL | None:
    """Return the newest CRL, or None before the first."""
    query = sa.select(crls).where(crls.c.issuer == issuer, crls.c.scope == scope)
    newest_first = query.order_by(crls.c.number.desc()).limit(1)
    row = tx.connection.execute(newest_first).mappings().one_or_none()
    return None if row is None else _stored(row)


def _stored(row: sa.RowMapping) -> StoredCRL:
    return StoredCRL(**{**row, **{key: from_unix(row[key]) for key in _TIMES}})


def entries(tx: Transaction, stored: StoredCRL, *, after: int = 0) -> Iterator[bytes]:
    """Yield the entries of `stored` from position `after` on, DER, in runs as they were added."""
    query = (
        sa.select(crl_entries.c.entries)
        .where(
            crl_entries.c.generation == stored.generation,
            crl_entries.c.position >= after,
            crl_entries.c.position < stored.entries_size,
        )
        .order_by(crl_entries.c.position)
    )
    for row in tx.connection.execute(query.execution_options(yield_per=16)):
        yield bytes(row.entries)


def whole(tx: Transaction, issuer: str) -> tuple[StoredCRL, bytes] | None:
    """Return the newest full CRL and all of its DER; None without one."""
    stored = newest(tx, issuer)
    if stored is None:
        return None
    return stored, b"".join((stored.head, *entries(tx, stored), stored.tail))


def scopes(tx: Transaction, issuer: str) -> set[str]:
    """Return what CRLs of an issuer have been published for."""
    query = sa.select(crls.c.scope).where(crls.c.issuer == issuer).distinct()
    return set(tx.connection.execute(query).scalars())


def add_entries(tx: Transaction, generation: int, position: int, more: bytes) -> None:
    """Store entries that a CRL is about to refer to."""
    tx.connection.execute(
        sa.insert(crl_entries).values(generation=generation, position=position, entries=more)
    )


def put(tx: Transaction, stored: StoredCRL, added: bytes) -> bool:
    """Store a CRL under its number, and the last of its entries, which are not stored yet.

    False if another writer has published that number or a higher one, or entries are missing.
    """
    if newest_crl_number(tx, stored.issuer) >= stored.number:
        # Not left to the key alone: old rows are deleted, and their numbers must not come back.
        return False
    there = sa.select(sa.func.sum(sa.func.length(crl_entries.c.entries))).where(
        crl_entries.c.generation == stored.generation
    )
    position = stored.entries_size - len(added)
    if (tx.connection.execute(there).scalar_one() or 0) != position:
        return False
    values = {field: getattr(stored, field) for field in StoredCRL.__dataclass_fields__}
    values |= {key: to_unix(values[key]) for key in _TIMES}
    if not tx.insert_new(crls, **values):
        return False
    if added:
        add_entries(tx, stored.generation, position, added)
    tell_crl(tx, stored.issuer, stored.number)
    same = (crls.c.issuer == stored.issuer, crls.c.scope == stored.scope)
    tx.change(sa.delete(crls).where(*same, crls.c.number < stored.number))
    return True


def page(tx: Transaction) -> list[StoredCRL]:
    """List every CRL that is published, by issuer and scope."""
    query = sa.select(crls).order_by(crls.c.issuer, crls.c.scope, crls.c.number)
    return [_stored(row) for row in tx.connection.execute(query).mappings()]


def dismiss(tx: Transaction, issuer: str) -> bool:
    """Have every CRL of an issuer made anew from the certificates; False if there is none.

    For what its schedule does not see: a clock that was wrong, a database that was restored.
    """
    changed = sa.update(crls).where(crls.c.issuer == issuer)
    return tx.change(changed.values(this_update=tx.at, next_update=tx.at)) > 0


def orphans(tx: Transaction, *, below: int) -> list[tuple[int, int]]:
    """List (generation, position) of entries of generations `below` one that no CRL refers to."""
    query = sa.select(crl_entries.c.generation, crl_entries.c.position).where(
        crl_entries.c.generation < below, crl_entries.c.generation.not_in(_USED)
    )
    return [(row.generation, row.position) for row in tx.connection.execute(query)]


def sweep(tx: Transaction, generation: int, position: int) -> None:
    """Delete a run of entries unless a CRL refers to it by now."""
    tx.change(
        sa.delete(crl_entries).where(
            crl_entries.c.generation == generation,
            crl_entries.c.position == position,
            crl_entries.c.generation.not_in(_USED),
        )
    )


# -- what belongs on a CRL ------------------------------------------------------------------------


def _revoked(
    tx: Transaction, issuer: str, scope: str, since: datetime | None
) -> list[sa.ColumnElement[bool]]:
    """RFC 5280 §3.3: an entry leaves once its certificate has expired, after one CRL carried it."""
    rules = [
        certificates.c.issuer == issuer,
        certificates.c.revoked_at >= (0 if since is None else to_unix(since)),
        certificates.c.not_after >= tx.at - _DAY,
    ]
    if scope:
        rules.append(certificates.c.profile == scope)
    return rules


def revoked(
    tx: Transaction, issuer: str, scope: str = "", *, since: datetime | None = None
) -> Iterator[Sequence[sa.Row[str, int, str]]]:
    """Yield pages of (serial, time, reason) of everything that belongs on a CRL now.

    Oldest first; `since` leaves out what was revoked before. Serials are hex with leading zeros,
    times seconds since 1970.
    """
    query = (
        sa.select(certificates.c.serial, certificates.c.revoked_at, certificates.c.reason)
        .where(*_revoked(tx, issuer, scope, since))
        .order_by(certificates.c.revoked_at, certificates.c.serial)
        .execution_options(yield_per=_PAGE)
    )
    # Rows as they come, which unpack like tuples: to copy them costs as much as to read them.
    yield from tx.connection.execute(query).partitions()


def count_revoked(tx: Transaction, issuer: str, scope: str, *, since: datetime) -> int:
    """Count what `revoked` would yield."""
    query = sa.select(sa.func.count()).where(*_revoked(tx, issuer, scope, since))
    return tx.connection.execute(query.select_from(certificates)).scalar_one()


# -- holds that ended -----------------------------------------------------------------------------


def _of_scope(issuer: str, scope: str) -> list[sa.ColumnElement[bool]]:
    rules = [hold_endings.c.issuer == issuer]
    if scope:
        rules.append(hold_endings.c.profile == scope)
    return rules


def count_holds_ended(tx: Transaction, issuer: str, scope: str) -> int:
    """Count the holds that ever ended: one more, and a CRL made before is wrong about it."""
    query = sa.select(sa.func.count()).where(*_of_scope(issuer, scope))
    return tx.connection.execute(query.select_from(hold_endings)).scalar_one()


def holds_ended(
    tx: Transaction, issuer: str, scope: str, *, since: datetime
) -> Sequence[sa.Row[str, int, str | None]]:
    """List (serial, time, reason) of certificates whose hold has ended `since` and not expired.

    As `revoked` has it where they are revoked now; else reason None and when the last hold ended.
    """
    query = (
        sa.select(
            hold_endings.c.serial,
            sa.func.coalesce(certificates.c.revoked_at, sa.func.max(hold_endings.c.at)),
            certificates.c.reason,
        )
        .join(
            certificates,
            sa.and_(
                certificates.c.issuer == hold_endings.c.issuer,
                certificates.c.serial == hold_endings.c.serial,
            ),
        )
        .where(
            *_of_scope(issuer, scope),
            hold_endings.c.at >= to_unix(since),
            certificates.c.not_after >= tx.at - _DAY,
        )
        .group_by(hold_endings.c.serial, certificates.c.revoked_at, certificates.c.reason)
    )
    return tx.connection.execute(query).all()
