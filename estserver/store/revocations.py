"""Revocation and its publication: revoked rows, blocked keys, CRLs."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from estserver.model import CertificateState, RevocationReason
from estserver.store import prepared
from estserver.store.engine import Transaction, from_unix
from estserver.store.journalling import tell_release, tell_revocation
from estserver.store.tables import blocked_keys, certificates, crl_floors, crls, hold_endings

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


_ON_HOLD = certificates.c.reason == RevocationReason.CERTIFICATE_HOLD.value


def revoke(
    tx: Transaction, identifier: str, *, reason: RevocationReason, comment: str | None
) -> bool:
    """Mark a certificate revoked for good; False if it was already. Abandoned ones can be revoked.

    One that is on hold keeps the date of the hold, as ITU-T X.509 wants it and RFC 5280 leaves
    open: what it signed since then was never to be trusted, and does not become so now.
    """
    mine = certificates.c.enrollment == identifier
    # Held, so that nobody puts it on hold, or releases it, between this look and the change.
    before = sa.select(_ON_HOLD).where(mine).with_for_update()
    was_on_hold = tx.connection.execute(before).scalar_one_or_none()
    changed = tx.change(
        sa.update(certificates)
        .where(mine, sa.or_(certificates.c.state != CertificateState.REVOKED.value, _ON_HOLD))
        .values(
            state=CertificateState.REVOKED.value,
            revoked_at=sa.func.coalesce(certificates.c.revoked_at, tx.at),
            reason=reason.value,
            comment=comment,
        )
    )
    if changed:
        tx.topics.add("revocations")
        if was_on_hold:
            _end_hold(tx, identifier)
        tell_revocation(tx, identifier)
    return changed == 1


def hold(tx: Transaction, identifier: str, *, comment: str | None) -> bool:
    """Put a certificate on hold now; False unless it is signed, in time and not revoked."""
    changed = tx.change(
        sa.update(certificates)
        .where(
            certificates.c.enrollment == identifier,
            certificates.c.state == CertificateState.VALID.value,
            certificates.c.not_after >= tx.at,
        )
        .values(
            state=CertificateState.REVOKED.value,
            revoked_at=tx.at,
            reason=RevocationReason.CERTIFICATE_HOLD.value,
            comment=comment,
        )
    )
    if changed:
        tx.topics.add("revocations")
        tell_revocation(tx, identifier)
    return changed == 1


def release(tx: Transaction, identifier: str) -> bool:
    """End the hold of a certificate; False if it is not on hold, or revoked for good by now."""
    changed = tx.change(
        sa.update(certificates)
        .where(
            certificates.c.enrollment == identifier,
            certificates.c.state == CertificateState.REVOKED.value,
            _ON_HOLD,
        )
        .values(
            # Of what a recovery knows from a CRL alone nobody has the certificate.
            state=sa.case(
                (certificates.c.sha256.is_(None), CertificateState.ABANDONED.value),
                else_=CertificateState.VALID.value,
            ),
            revoked_at=None,
            reason=None,
            comment=None,
        )
    )
    if changed:
        tx.topics.add("revocations")
        _end_hold(tx, identifier)
        tell_release(tx, identifier)
    return changed == 1


def count_holds_ended(tx: Transaction) -> int:
    """Count the holds that ever ended, whoever had issued what was held."""
    query = sa.select(sa.func.count()).select_from(hold_endings)
    return tx.connection.execute(query).scalar_one()


def _end_hold(tx: Transaction, identifier: str) -> None:
    """Let the next CRLs say otherwise than the last."""
    ended = sa.select(
        certificates.c.issuer, certificates.c.serial, certificates.c.profile, sa.literal(tx.at)
    ).where(certificates.c.enrollment == identifier)
    columns = ["issuer", "serial", "profile", "at"]
    tx.connection.execute(sa.insert(hold_endings).from_select(columns, ended))


def block_key(tx: Transaction, spki_sha256: bytes, reason: str) -> None:
    """Never certify this public key again; who is just about to finishes first, or is refused."""
    tx.lock([spki_sha256])
    tx.insert_new(blocked_keys, spki_sha256=spki_sha256, reason=reason, blocked_at=tx.at)


def is_blocked(tx: Transaction, spki_sha256: bytes) -> bool:
    """Tell whether this public key was blocked."""
    return bool(blocked_among(tx, [spki_sha256]))


_BLOCKED = prepared.Lookup(sa.select(blocked_keys.c.spki_sha256), blocked_keys.c.spki_sha256)


def blocked_among(tx: Transaction, digests: Sequence[bytes]) -> set[bytes]:
    """Return which of some public keys were blocked."""
    return {bytes(row[0]) for row in _BLOCKED.run(tx.connection, set(digests))}


def newest_crl_number(tx: Transaction, issuer: str) -> int:
    """Return the highest number that a CRL ever had, or 0 before the first."""
    query = sa.union_all(
        sa.select(crls.c.number).where(crls.c.issuer == issuer),
        sa.select(crl_floors.c.number).where(crl_floors.c.issuer == issuer),
    )
    return max(tx.connection.execute(query).scalars(), default=0)
