"""Enrollments, certificates and CRLs: rows in, frozen values out."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from cryptography import x509

from estserver.model import (
    CertificateRecord,
    CertificateState,
    Draft,
    Enrollment,
    EnrollmentState,
    Plan,
    RevocationReason,
    Via,
)
from estserver.names import (
    decode_name,
    decode_names,
    display_name,
    encode_name,
    encode_names,
    format_general_name,
)
from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.tables import (
    blocked_keys,
    certificate_bytes,
    certificates,
    crls,
    enrollments,
)


def _enrollment(row: sa.Row[Any]) -> Enrollment:
    return Enrollment(
        id=row.id,
        authority_key=row.authority_key,
        spki_sha256=bytes(row.spki_sha256),
        invitation=row.invitation,
        profile=row.profile,
        state=EnrollmentState(row.state),
        via=Via(row.via),
        applicant=row.applicant,
        subject=decode_name(bytes(row.subject)),
        names=decode_names(bytes(row.names)),
        spki=bytes(row.spki),
        renews=row.renews,
        proof=row.proof,
        created_at=from_unix(row.created_at),
        decided_by=row.decided_by,
        reason=row.reason,
        taken_at=None if row.taken_at is None else from_unix(row.taken_at),
    )


def _record(row: sa.Row[Any]) -> CertificateRecord:
    return CertificateRecord(
        enrollment=row.enrollment,
        issuer=row.issuer,
        serial_hex=f"{int(row.serial, 16):x}",
        subject=row.subject,
        names=tuple(row.names),
        profile=row.profile,
        invitation=row.invitation,
        via=Via(row.via),
        state=CertificateState(row.state),
        not_before=from_unix(row.not_before),
        not_after=from_unix(row.not_after),
        sha256=None if row.sha256 is None else bytes(row.sha256),
        spki_sha256=bytes(row.spki_sha256),
        renews=row.renews,
        created_at=from_unix(row.created_at),
        revoked_at=None if row.revoked_at is None else from_unix(row.revoked_at),
        reason=None if row.reason is None else RevocationReason(row.reason),
    )


def add_enrollment(tx: Transaction, enrollment: Enrollment, *, correlation: str) -> bool:
    """Insert an enrollment; False if the same question (`correlation`) is there already."""
    return tx.insert_new(
        enrollments,
        id=enrollment.id,
        correlation=correlation,
        authority_key=enrollment.authority_key,
        spki_sha256=enrollment.spki_sha256,
        invitation=enrollment.invitation,
        profile=enrollment.profile,
        state=enrollment.state.value,
        via=enrollment.via.value,
        applicant=enrollment.applicant,
        subject=encode_name(enrollment.subject),
        names=encode_names(enrollment.names),
        spki=enrollment.spki,
        renews=enrollment.renews,
        proof=enrollment.proof,
        created_at=to_unix(enrollment.created_at),
    )


def enrollment(tx: Transaction, identifier: str) -> Enrollment | None:
    """Find an enrollment by its id."""
    row = tx.connection.execute(
        sa.select(enrollments).where(enrollments.c.id == identifier)
    ).one_or_none()
    return None if row is None else _enrollment(row)


def enrollments_of(tx: Transaction, authority_key: str, spki_sha256: bytes) -> list[Enrollment]:
    """List what one authority was asked for one key, newest first."""
    query = (
        sa.select(enrollments)
        .where(
            enrollments.c.authority_key == authority_key,
            enrollments.c.spki_sha256 == spki_sha256,
        )
        .order_by(enrollments.c.id.desc())
    )
    return [_enrollment(row) for row in tx.connection.execute(query)]


def enrollments_under(tx: Transaction, authority_key: str) -> list[Enrollment]:
    """List everything that one authority led to, whatever the key, newest first."""
    query = (
        sa.select(enrollments)
        .where(enrollments.c.authority_key == authority_key)
        .order_by(enrollments.c.id.desc())
    )
    return [_enrollment(row) for row in tx.connection.execute(query)]


def enrollment_states(
    tx: Transaction, authority_keys: Sequence[str]
) -> dict[str, tuple[str, EnrollmentState, str | None]]:
    """Return id, state and reason of the enrollments under authorities that give one each."""
    query = sa.select(
        enrollments.c.authority_key, enrollments.c.id, enrollments.c.state, enrollments.c.reason
    ).where(enrollments.c.authority_key.in_(authority_keys))
    return {
        row.authority_key: (row.id, EnrollmentState(row.state), row.reason)
        for row in tx.connection.execute(query)
    }


def enrollments_for_key(tx: Transaction, number: str, spki_sha256: bytes) -> list[Enrollment]:
    """List every enrollment of one key under an invitation, newest first."""
    query = (
        sa.select(enrollments)
        .where(enrollments.c.invitation == number, enrollments.c.spki_sha256 == spki_sha256)
        .order_by(enrollments.c.id.desc())
    )
    return [_enrollment(row) for row in tx.connection.execute(query)]


def invitation_enrollments(tx: Transaction, number: str) -> list[Enrollment]:
    """List all enrollments under an invitation, newest first."""
    query = (
        sa.select(enrollments)
        .where(enrollments.c.invitation == number)
        .order_by(enrollments.c.id.desc())
    )
    return [_enrollment(row) for row in tx.connection.execute(query)]


def enrollments_in(
    tx: Transaction,
    state: EnrollmentState | None,
    *,
    before: str | None = None,
    limit: int = 100,
) -> list[Enrollment]:
    """List enrollments, newest first, optionally of one state; `before` continues a page."""
    query = sa.select(enrollments).order_by(enrollments.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(enrollments.c.state == state.value)
    if before is not None:
        query = query.where(enrollments.c.id < before)
    return [_enrollment(row) for row in tx.connection.execute(query)]


def move_enrollment(
    tx: Transaction,
    identifier: str,
    *,
    before: EnrollmentState,
    to: EnrollmentState,
    by: str | None = None,
    reason: str | None = None,
) -> bool:
    """Change the state of an enrollment that is in `before`; False if it is not."""
    values: dict[str, object] = {"state": to.value}
    if by is not None:
        values |= {"decided_by": by, "reason": reason}
    changed = tx.change(
        sa.update(enrollments)
        .where(enrollments.c.id == identifier, enrollments.c.state == before.value)
        .values(**values)
    )
    return changed == 1


def mark_taken(tx: Transaction, identifier: str) -> bool:
    """Note once that the owner holds certificate and key; False if that was noted before."""
    changed = tx.change(
        sa.update(enrollments)
        .where(enrollments.c.id == identifier, enrollments.c.taken_at.is_(None))
        .values(taken_at=tx.at)
    )
    return changed == 1


def add_intent(tx: Transaction, enrollment: Enrollment, plan: Plan, draft: Draft) -> None:
    """Record what is about to be signed: the row exists before the signature does."""
    tx.connection.execute(
        sa.insert(certificates).values(
            enrollment=enrollment.id,
            issuer=draft.issuer,
            serial=f"{draft.serial:040x}",
            subject=display_name(plan.subject),
            names=[format_general_name(name) for name in plan.names],
            profile=plan.profile,
            invitation=enrollment.invitation,
            via=enrollment.via.value,
            state=CertificateState.ISSUING.value,
            not_before=to_unix(draft.not_before),
            not_after=to_unix(draft.not_after),
            spki_sha256=enrollment.spki_sha256,
            renews=enrollment.renews,
            created_at=tx.at,
        )
    )
    tx.connection.execute(
        sa.insert(certificate_bytes).values(enrollment=enrollment.id, tbs=draft.tbs)
    )


def intent(tx: Transaction, identifier: str) -> Draft | None:
    """Return the draft of an enrollment that is being issued, exactly as committed."""
    row = tx.connection.execute(
        sa.select(certificates, certificate_bytes.c.tbs)
        .join(certificate_bytes, certificate_bytes.c.enrollment == certificates.c.enrollment)
        .where(
            certificates.c.enrollment == identifier,
            certificates.c.state == CertificateState.ISSUING.value,
        )
    ).one_or_none()
    if row is None:
        return None
    return Draft(
        issuer=row.issuer,
        serial=int(row.serial, 16),
        tbs=bytes(row.tbs),
        not_before=from_unix(row.not_before),
        not_after=from_unix(row.not_after),
    )


def put_certificate(tx: Transaction, identifier: str, der: bytes, sha256: bytes) -> bool:
    """Store the signed certificate; False if one is stored already or the intent was given up.

    ECDSA signatures differ from one signing to the next: only the stored one may ever leave.
    """
    stored = tx.change(
        sa.update(certificates)
        .where(
            certificates.c.enrollment == identifier,
            certificates.c.sha256.is_(None),
            # What was given up stays so, even if its signature turns up after all.
            certificates.c.state != CertificateState.ABANDONED.value,
        )
        .values(
            sha256=sha256,
            # A certificate revoked between intent and signature stays revoked.
            state=sa.case(
                (
                    certificates.c.state == CertificateState.ISSUING.value,
                    CertificateState.VALID.value,
                ),
                else_=certificates.c.state,
            ),
        )
    )
    if stored:
        tx.change(
            sa.update(certificate_bytes)
            .where(certificate_bytes.c.enrollment == identifier)
            .values(der=der)
        )
        tx.change(
            sa.update(enrollments)
            .where(
                enrollments.c.id == identifier,
                enrollments.c.state == EnrollmentState.ISSUING.value,
            )
            .values(state=EnrollmentState.ISSUED.value)
        )
    return stored == 1


def abandon(tx: Transaction, identifier: str) -> bool:
    """Give up an intent that was never signed; its serial stays taken."""
    changed = tx.change(
        sa.update(certificates)
        .where(
            certificates.c.enrollment == identifier,
            certificates.c.state == CertificateState.ISSUING.value,
        )
        .values(state=CertificateState.ABANDONED.value)
    )
    tx.change(
        sa.update(enrollments)
        .where(enrollments.c.id == identifier, enrollments.c.state == EnrollmentState.ISSUING.value)
        .values(state=EnrollmentState.ABANDONED.value)
    )
    return changed == 1


def der(tx: Transaction, identifier: str) -> bytes | None:
    """Return the stored certificate of an enrollment, or None while there is none."""
    value = tx.connection.execute(
        sa.select(certificate_bytes.c.der).where(certificate_bytes.c.enrollment == identifier)
    ).scalar_one_or_none()
    return None if value is None else bytes(value)


def certificate(
    tx: Transaction, identifier: str, *, hold: bool = False
) -> CertificateRecord | None:
    """Find a certificate by its enrollment id; `hold` keeps it as it is until the commit."""
    query = sa.select(certificates).where(certificates.c.enrollment == identifier)
    row = tx.connection.execute(query.with_for_update(read=True) if hold else query).one_or_none()
    return None if row is None else _record(row)


def by_sha256(tx: Transaction, digest: bytes) -> CertificateRecord | None:
    """Find exactly the certificate whose DER has this SHA-256."""
    return _one(tx, certificates.c.sha256 == digest)


def by_issuer_serial(tx: Transaction, issuer: str, serial: int) -> CertificateRecord | None:
    """Find a certificate, signed or not, by issuer and serial."""
    return _one(
        tx, sa.and_(certificates.c.issuer == issuer, certificates.c.serial == f"{serial:040x}")
    )


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


def by_serial(tx: Transaction, serial: int) -> list[CertificateRecord]:
    """Find certificates of any issuer by serial."""
    query = sa.select(certificates).where(certificates.c.serial == f"{serial:040x}")
    return [_record(row) for row in tx.connection.execute(query)]


def by_spki(tx: Transaction, digest: bytes) -> list[CertificateRecord]:
    """List every certificate for one public key."""
    query = sa.select(certificates).where(certificates.c.spki_sha256 == digest)
    return [_record(row) for row in tx.connection.execute(query)]


def renewals_of(tx: Transaction, identifier: str) -> list[CertificateRecord]:
    """List the certificates that renewed the one of `identifier`, newest first."""
    query = (
        sa.select(certificates)
        .where(certificates.c.renews == identifier)
        .order_by(certificates.c.enrollment.desc())
    )
    return [_record(row) for row in tx.connection.execute(query)]


def invitation_certificates(tx: Transaction, number: str) -> list[CertificateRecord]:
    """List every certificate that came from an invitation, newest first."""
    query = (
        sa.select(certificates)
        .where(certificates.c.invitation == number)
        .order_by(certificates.c.enrollment.desc())
    )
    return [_record(row) for row in tx.connection.execute(query)]


def page(
    tx: Transaction,
    *,
    state: CertificateState | None = None,
    expiring_before: datetime | None = None,
    before: str | None = None,
    limit: int = 100,
) -> list[CertificateRecord]:
    """List certificates, newest first; with `expiring_before` those valid now but not then."""
    query = sa.select(certificates).order_by(certificates.c.enrollment.desc()).limit(limit)
    if state is CertificateState.EXPIRED:
        query = query.where(
            certificates.c.state == CertificateState.VALID.value, certificates.c.not_after < tx.at
        )
    elif state is CertificateState.VALID:
        query = query.where(certificates.c.state == state.value, certificates.c.not_after >= tx.at)
    elif state is not None:
        query = query.where(certificates.c.state == state.value)
    if expiring_before is not None:
        query = query.where(
            certificates.c.state == CertificateState.VALID.value,
            certificates.c.not_after >= tx.at,
            certificates.c.not_after < to_unix(expiring_before),
        )
    if before is not None:
        query = query.where(certificates.c.enrollment < before)
    return [_record(row) for row in tx.connection.execute(query)]


def unfinished(tx: Transaction, *, created_before: datetime) -> list[str]:
    """List the enrollments whose intent is committed but whose certificate is not, oldest first."""
    query = (
        sa.select(certificates.c.enrollment)
        .where(
            certificates.c.state == CertificateState.ISSUING.value,
            certificates.c.created_at <= to_unix(created_before),
        )
        .order_by(certificates.c.enrollment)
    )
    return list(tx.connection.execute(query).scalars())


def approved(tx: Transaction) -> list[Enrollment]:
    """List approved enrollments that still wait for their signature, oldest first."""
    query = (
        sa.select(enrollments)
        .where(enrollments.c.state == EnrollmentState.APPROVED.value)
        .order_by(enrollments.c.id)
        .limit(100)
    )
    return [_enrollment(row) for row in tx.connection.execute(query)]


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
    """Never certify this public key again."""
    tx.insert_new(blocked_keys, spki_sha256=spki_sha256, reason=reason, blocked_at=tx.at)


def is_blocked(tx: Transaction, spki_sha256: bytes) -> bool:
    """Tell whether this public key was blocked."""
    query = sa.select(blocked_keys.c.spki_sha256).where(blocked_keys.c.spki_sha256 == spki_sha256)
    return tx.connection.execute(query).first() is not None


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
    """Return the number of the newest CRL, or 0 before the first."""
    query = sa.select(sa.func.max(crls.c.number)).where(crls.c.issuer == issuer)
    return tx.connection.execute(query).scalar_one() or 0


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
        # The two before it stay for whoever is fetching one right now.
        tx.change(sa.delete(crls).where(crls.c.issuer == issuer, crls.c.number < number - 2))
    return stored


def _one(tx: Transaction, condition: sa.ColumnElement[bool]) -> CertificateRecord | None:
    row = tx.connection.execute(sa.select(certificates).where(condition)).one_or_none()
    return None if row is None else _record(row)
