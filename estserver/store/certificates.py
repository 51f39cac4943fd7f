"""Enrollments and certificates: rows in, frozen values out."""

import hashlib
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
    RevocationReason,
    Via,
)
from estserver.names import decode_name, decode_names
from estserver.sortable_ids import first_id
from estserver.store import prepared
from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.journalling import tell_abandoned, tell_certificate
from estserver.store.tables import certificate_bytes, certificates, enrollments


def enrollment_of(row: Any) -> Enrollment:
    """Return a row of enrollments as a value."""
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


def _record(row: Any) -> CertificateRecord:
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


def enrollment(tx: Transaction, identifier: str) -> Enrollment | None:
    """Find an enrollment by its id."""
    row = tx.connection.execute(
        sa.select(enrollments).where(enrollments.c.id == identifier)
    ).one_or_none()
    return None if row is None else enrollment_of(row)


_OF_KEYS = prepared.Lookup(
    sa.select(enrollments).order_by(enrollments.c.id.desc()), enrollments.c.spki_sha256
)


def enrollments_of_keys(tx: Transaction, digests: Sequence[bytes]) -> dict[bytes, list[Enrollment]]:
    """Return what was asked for each of some keys, newest first; keys never seen are left out."""
    found: dict[bytes, list[Enrollment]] = {}
    for row in _OF_KEYS.run(tx.connection, set(digests)):
        found.setdefault(bytes(row.spki_sha256), []).append(enrollment_of(row))
    return found


def invitation_enrollments(tx: Transaction, number: str) -> list[Enrollment]:
    """List all enrollments under an invitation, newest first."""
    query = (
        sa.select(enrollments)
        .where(enrollments.c.invitation == number)
        .order_by(enrollments.c.id.desc())
    )
    return [enrollment_of(row) for row in tx.connection.execute(query)]


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
    return [enrollment_of(row) for row in tx.connection.execute(query)]


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
        tell_certificate(tx, identifier, der)
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
    tell_abandoned(tx, identifier)
    return changed == 1


def der(tx: Transaction, identifier: str) -> bytes | None:
    """Return the stored certificate of an enrollment, or None while there is none."""
    value = tx.connection.execute(
        sa.select(certificate_bytes.c.der).where(certificate_bytes.c.enrollment == identifier)
    ).scalar_one_or_none()
    return None if value is None else bytes(value)


_BY_ENROLLMENT = prepared.Lookup(sa.select(certificates), certificates.c.enrollment)
_HOLD = prepared.Lookup(
    sa.select(certificates).with_for_update(read=True), certificates.c.enrollment
)


def certificate(
    tx: Transaction, identifier: str, *, hold: bool = False
) -> CertificateRecord | None:
    """Find a certificate by its enrollment id; `hold` keeps it as it is until the commit."""
    rows = (_HOLD if hold else _BY_ENROLLMENT).run(tx.connection, [identifier])
    return next(map(_record, rows), None)


def by_der(tx: Transaction, der: bytes) -> CertificateRecord | None:
    """Find exactly this certificate, DER; None: it is not ours, or no certificate at all."""
    return by_ders(tx, [der])[0]


_BY_SERIAL = prepared.Lookup(sa.select(certificates), certificates.c.serial)


def by_ders(tx: Transaction, ders: Sequence[bytes]) -> list[CertificateRecord | None]:
    """Find exactly these certificates, as `by_der` does."""
    serials = {serial for der in ders if (serial := _serial_of(der)) is not None}
    rows = map(_record, _BY_SERIAL.run(tx.connection, serials))
    found = {record.sha256: record for record in rows}
    return [found.get(hashlib.sha256(der).digest()) for der in ders]


def _serial_of(der: bytes) -> str | None:
    try:
        serial = x509.load_der_x509_certificate(der).serial_number
    except (ValueError, x509.InvalidVersion):
        return None
    return f"{serial:040x}"


def by_issuer_serial(tx: Transaction, issuer: str, serial: int) -> CertificateRecord | None:
    """Find a certificate, signed or not, by issuer and serial."""
    return _one(
        tx, sa.and_(certificates.c.issuer == issuer, certificates.c.serial == f"{serial:040x}")
    )


def by_serial(tx: Transaction, serial: int) -> list[CertificateRecord]:
    """Find certificates of any issuer by serial."""
    return [_record(row) for row in _BY_SERIAL.run(tx.connection, [f"{serial:040x}"])]


def by_spki(tx: Transaction, digest: bytes) -> list[CertificateRecord]:
    """List every certificate for one public key."""
    return certified_among(tx, [digest]).get(digest, [])


_CERTIFIED = prepared.Lookup(
    sa.select(certificates).join(enrollments, enrollments.c.id == certificates.c.enrollment),
    enrollments.c.spki_sha256,
)


def certified_among(
    tx: Transaction, digests: Sequence[bytes]
) -> dict[bytes, list[CertificateRecord]]:
    """Return the certificates of each of some keys; keys never certified are left out."""
    found: dict[bytes, list[CertificateRecord]] = {}
    for row in _CERTIFIED.run(tx.connection, set(digests)):
        found.setdefault(bytes(row.spki_sha256), []).append(_record(row))
    return found


def invitation_certificates(tx: Transaction, number: str) -> list[CertificateRecord]:
    """List every certificate that came from an invitation, newest first."""
    query = (
        sa.select(certificates)
        .join(enrollments, enrollments.c.id == certificates.c.enrollment)
        .where(enrollments.c.invitation == number)
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
    """List certificates, newest first.

    With `expiring_before` those valid now but not then, the first to end first; those that are
    expired, the last to end first. `before` is the last one of the page before.
    """
    query = sa.select(certificates).limit(limit)
    if state is CertificateState.EXPIRED or expiring_before is not None:
        query = query.where(_is_valid(certificates))
        return [
            _record(row)
            for row in tx.connection.execute(_by_end(tx, query, expiring_before, before))
        ]
    if state is CertificateState.VALID:
        query = query.where(certificates.c.state == state.value, certificates.c.not_after >= tx.at)
    elif state is not None:
        query = query.where(certificates.c.state == state.value)
    if before is not None:
        query = query.where(certificates.c.enrollment < before)
    query = query.order_by(certificates.c.enrollment.desc())
    return [_record(row) for row in tx.connection.execute(query)]


def _by_end(
    tx: Transaction,
    query: sa.Select[Any],
    expiring_before: datetime | None,
    before: str | None,
) -> sa.Select[Any]:
    """Go along the index of ends: forward from now, or back from it."""
    place = sa.tuple_(certificates.c.not_after, certificates.c.enrollment)
    # One bound alone: of two, SQLite would start at that which is farther from the page.
    bound = now = (tx.at, "")
    if before is not None:
        end = sa.select(certificates.c.not_after).where(certificates.c.enrollment == before)
        bound = (tx.connection.execute(end).scalar_one_or_none() or 0, before)
    if expiring_before is None:
        query = query.where(place < sa.tuple_(*min(bound, now)))
        return query.order_by(certificates.c.not_after.desc(), certificates.c.enrollment.desc())
    query = query.where(
        place > sa.tuple_(*max(bound, now)), certificates.c.not_after < to_unix(expiring_before)
    )
    return query.order_by(certificates.c.not_after, certificates.c.enrollment)


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
    return [enrollment_of(row) for row in tx.connection.execute(query)]


def superseded(
    tx: Transaction, *, profile: str, renewed_before: datetime, renewed_after: datetime | None
) -> list[str]:
    """List the valid certificates of a profile whose renewal is valid and that old.

    `renewed_after` leaves out renewals that were looked at before, and the walk over all of them.
    """
    begin = "" if renewed_after is None else first_id(renewed_after)
    newer = certificates.alias()
    query = (
        sa.select(certificates.c.enrollment)
        .join(newer, newer.c.renews == certificates.c.enrollment)
        .where(
            certificates.c.profile == profile,
            _is_valid(certificates),
            certificates.c.not_after >= tx.at,
            _is_valid(newer),
            newer.c.created_at <= to_unix(renewed_before),
            newer.c.renews.is_not(None),
            newer.c.enrollment >= begin,
        )
        .distinct()
        .limit(1000)
    )
    return list(tx.connection.execute(query).scalars())


def _is_valid(table: sa.FromClause) -> sa.ColumnElement[bool]:
    """Ask for the state in a way that tempts no planner to walk along all that is valid."""
    return table.c.state + "" == CertificateState.VALID.value


def _one(tx: Transaction, condition: sa.ColumnElement[bool]) -> CertificateRecord | None:
    row = tx.connection.execute(sa.select(certificates).where(condition)).one_or_none()
    return None if row is None else _record(row)
