"""Revocation and its publication: revoked rows, blocked keys, CRLs."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from cryptography import x509

from estserver.model import CertificateState, RevocationReason
from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.journalling import tell_crl, tell_revocation
from estserver.store.tables import blocked_keys, certificates, crl_floors, crls

# Built once: putting the statement together takes longer than running it.
_STATUSES = sa.select(
    certificates.c.serial, certificates.c.state, certificates.c.revoked_at, certificates.c.reason
).where(
    certificates.c.issuer == sa.bindparam("issuer"),
    certificates.c.serial.in_(sa.bindparam("serials", expanding=True)),
)


def statuses(
    tx: Transaction, issuer: str, serials: Sequence[int]
) -> dict[int, tuple[CertificateState, datetime | None, RevocationReason | None]]:
    """Return state, time and reason of revocation of those `serials` that `issuer` has a row for.

    The stored state: the expired ones are valid here.
    """
    parameters = {"issuer": issuer, "serials": [f"{serial:040x}" for serial in serials]}
    return {
        int(row.serial, 16): (
            CertificateState(row.state),
            None if row.revoked_at is None else from_unix(row.revoked_at),
            None if row.reason is None else RevocationReason(row.reason),
        )
        for row in tx.connection.execute(_STATUSES, parameters)
    }


def revoke(
    tx: Transaction, identifier: str, *, reason: RevocationReason, comment: str | None
) -> bool:
    """Mark a certificate revoked now; False if it was already. Abandoned ones can be revoked."""
    changed = tx.change(
        sa.update(certificates)
        .where(
            certificates.c.enrollment == identifier,
            certificates.c.state != CertificateState.REVOKED.value,
        )
        .values(
            state=CertificateState.REVOKED.value,
            revoked_at=tx.at,
            reason=reason.value,
            comment=comment,
        )
    )
    if changed:
        tell_revocation(tx, identifier, reason)
    return changed == 1


def revoked(
    tx: Transaction, issuer: str, *, since: datetime | None = None
) -> list[tuple[int, datetime, RevocationReason]]:
    """List (serial, time, reason) of everything of `issuer` that belongs on a CRL now.

    `since` leaves out what was revoked before. Entries leave the CRL once expired (RFC 5280 §3.3),
    but not before one CRL carried them.
    """
    query = (
        sa.select(certificates.c.serial, certificates.c.revoked_at, certificates.c.reason)
        .where(
            certificates.c.issuer == issuer,
            certificates.c.revoked_at >= (0 if since is None else to_unix(since)),
            certificates.c.not_after >= tx.at - 86400,
        )
        .order_by(certificates.c.revoked_at, certificates.c.serial)
    )
    return [
        (int(row.serial, 16), from_unix(row.revoked_at), RevocationReason(row.reason))
        for row in tx.connection.execute(query)
    ]


def block_key(tx: Transaction, spki_sha256: bytes, reason: str) -> None:
    """Never certify this public key again; who is just about to finishes first, or is refused."""
    tx.lock([spki_sha256])
    tx.insert_new(blocked_keys, spki_sha256=spki_sha256, reason=reason, blocked_at=tx.at)


def is_blocked(tx: Transaction, spki_sha256: bytes) -> bool:
    """Tell whether this public key was blocked."""
    return bool(blocked_among(tx, [spki_sha256]))


_BLOCKED = sa.select(blocked_keys.c.spki_sha256).where(
    blocked_keys.c.spki_sha256.in_(sa.bindparam("digests", expanding=True))
)


def blocked_among(tx: Transaction, digests: Sequence[bytes]) -> set[bytes]:
    """Return which of some public keys were blocked."""
    return {bytes(row[0]) for row in tx.connection.execute(_BLOCKED, {"digests": digests})}


def newest_crl(
    tx: Transaction, issuer: str, *, above: int = 0
) -> tuple[int, datetime, datetime, bytes] | None:
    """Return (number, thisUpdate, nextUpdate, DER) of the newest CRL, or None without one.

    `above`: only if its number is higher, so that a CRL at hand is not read again.
    """
    row = tx.connection.execute(
        sa.select(crls)
        .where(crls.c.issuer == issuer, crls.c.number > above)
        .order_by(crls.c.number.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    return row.number, from_unix(row.this_update), from_unix(row.next_update), bytes(row.der)


def newest_crl_number(tx: Transaction, issuer: str) -> int:
    """Return the highest number that a CRL ever had, or 0 before the first."""
    query = sa.union_all(
        sa.select(crls.c.number).where(crls.c.issuer == issuer),
        sa.select(crl_floors.c.number).where(crl_floors.c.issuer == issuer),
    )
    return max(tx.connection.execute(query).scalars(), default=0)


def put_crl(
    tx: Transaction,
    issuer: str,
    number: int,
    crl: x509.CertificateRevocationList,
    encoded: bytes,
) -> bool:
    """Store a CRL under its number; False if another writer has published that or a higher one."""
    if newest_crl_number(tx, issuer) >= number:
        # Not left to the key alone: old rows are deleted, and their numbers must not come back.
        return False
    next_update = crl.next_update_utc
    stored = tx.insert_new(
        crls,
        issuer=issuer,
        number=number,
        this_update=to_unix(crl.last_update_utc),
        next_update=to_unix(next_update or crl.last_update_utc),
        der=encoded,
    )
    if stored:
        tell_crl(tx, issuer, number)
        # The two before it stay for whoever is fetching one right now.
        tx.change(sa.delete(crls).where(crls.c.issuer == issuer, crls.c.number < number - 2))
    return stored
