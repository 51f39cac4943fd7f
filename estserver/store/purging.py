"""What is erased once nobody may need it any more, and what stays as proof.

A purged certificate keeps its row: issuer, serial, digests, times, state. So its serial stays
taken, OCSP and CRL know it, and whoever has the bytes can prove that they were issued here. What
is gone is what names somebody. A purged audit row keeps its place and its hash in the chain.

What protocols remember in tables of their own they erase themselves: `retention.Memory`.
"""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from cryptography import x509

from estserver.model import CertificateState, EnrollmentState, InvitationState, RevocationReason
from estserver.names import encode_name, encode_names
from estserver.store.audit_checks import PURGE
from estserver.store.audit_checks import PURGED as ERASED
from estserver.store.engine import Transaction, to_unix
from estserver.store.journalling import tell_registration
from estserver.store.tables import (
    audit_events,
    certificate_bytes,
    certificates,
    enrollments,
    invitations,
    outbox,
    search_terms,
)

PURGED = "(purged)"
"""Stands where a name was."""
_ERASED = {
    "event": ERASED,
    "actor": "",
    "object": "",
    "request_id": "",
    "source": "",
    "detail": "{}",
}
"""What the triggers of the audit trail let pass, and nothing else."""
ERASURE = "registration.erased"
"""The event that says that somebody asked to be forgotten, and was."""
_PROOFS = (ERASED, PURGE, ERASURE)
"""Events that are never erased: they say that something was."""
_NOBODY = {
    "subject": encode_name(x509.Name([])),
    "names": encode_names(()),
    "spki": b"",
    "reason": None,
}
_WAITING = (EnrollmentState.PENDING.value, EnrollmentState.APPROVED.value)


_UNPURGED = sa.or_(certificates.c.subject != PURGED, certificates.c.comment.is_not(None))
"""Who revokes what was purged may comment on it."""
_CERTIFIED = sa.select(certificates.c.enrollment).join(
    enrollments, enrollments.c.id == certificates.c.enrollment
)


def ended_certificates(tx: Transaction, *, before: datetime, limit: int) -> list[str]:
    """List certificates that ended before `before` and are not purged; enrollment ids."""
    query = (
        sa.select(certificates.c.enrollment)
        .where(certificates.c.not_after < to_unix(before), _UNPURGED)
        .order_by(certificates.c.not_after)
        .limit(limit)
    )
    return list(tx.connection.execute(query).scalars())


def purge_certificates(tx: Transaction, identifiers: Sequence[str]) -> None:
    """Erase names, keys and bytes of certificates."""
    tx.change(
        sa.update(certificates)
        .where(certificates.c.enrollment.in_(identifiers))
        .values(subject=PURGED, names=[], comment=None)
    )
    tx.change(
        sa.update(certificate_bytes)
        .where(certificate_bytes.c.enrollment.in_(identifiers))
        .values(tbs=b"", der=None)
    )
    tx.change(sa.update(enrollments).where(enrollments.c.id.in_(identifiers)).values(**_NOBODY))


def ended_registrations(tx: Transaction, *, before: datetime, limit: int) -> list[str]:
    """List registrations that ended before `before`, with all they led to, and are not purged."""
    live = _CERTIFIED.where(
        enrollments.c.invitation == invitations.c.number,
        certificates.c.not_after >= to_unix(before),
    ).exists()
    query = (
        sa.select(invitations.c.number)
        .where(
            invitations.c.expires_at < to_unix(before),
            invitations.c.name != PURGED,
            ~live,
        )
        .limit(limit)
    )
    return list(tx.connection.execute(query).scalars())


def live_certificates(tx: Transaction, number: str) -> int:
    """Count the certificates of a registration that somebody may still rely on, or again."""
    query = _CERTIFIED.with_only_columns(sa.func.count()).where(
        enrollments.c.invitation == number,
        sa.or_(
            certificates.c.state.in_(
                (CertificateState.VALID.value, CertificateState.ISSUING.value)
            ),
            certificates.c.reason == RevocationReason.CERTIFICATE_HOLD.value,
        ),
        certificates.c.not_after >= tx.at,
    )
    return int(tx.connection.execute(query).scalar_one())


def unpurged_certificates(tx: Transaction, number: str) -> list[str]:
    """List the certificates of a registration that are not purged; enrollment ids."""
    query = _CERTIFIED.where(enrollments.c.invitation == number, _UNPURGED)
    return list(tx.connection.execute(query).scalars())


def audited_as(tx: Transaction, number: str) -> list[str]:
    """Return what audit rows call a registration, its enrollments and its certificates."""
    asked = sa.select(enrollments.c.id).where(enrollments.c.invitation == number)
    issued = _CERTIFIED.with_only_columns(certificates.c.serial).where(
        enrollments.c.invitation == number
    )
    return [
        f"invitation {number}",
        *(f"enrollment {one}" for one in tx.connection.execute(asked).scalars()),
        *(f"certificate {int(one, 16):x}" for one in tx.connection.execute(issued).scalars()),
    ]


def purge_registrations(tx: Transaction, numbers: Sequence[str]) -> int:
    """Erase who was registered, and the letters about it; the PIN and the URL are dead.

    Enrollments that came to no certificate go with them. Returns how many letters there were.
    """
    tx.change(
        sa.update(invitations)
        .where(invitations.c.number.in_(numbers))
        .values(
            name=PURGED,
            email=None,
            device_id=None,
            organization="",
            names=[],
            state=InvitationState.CANCELLED.value,
            pin_hash=b"",
            pin_salt=b"",
            pin_dead=True,
            url_hash=None,
        )
    )
    came_to_nothing = sa.and_(
        enrollments.c.invitation.in_(numbers),
        ~sa.exists().where(certificates.c.enrollment == enrollments.c.id),
    )
    decided = sa.case(
        (enrollments.c.state.in_(_WAITING), EnrollmentState.REJECTED.value),
        else_=enrollments.c.state,
    )
    tx.change(sa.update(enrollments).where(came_to_nothing).values(state=decided, **_NOBODY))
    tx.change(sa.delete(search_terms).where(search_terms.c.number.in_(numbers)))
    for number in numbers:
        # The last that the journal tells of it names nobody: recovery brings no name back.
        tell_registration(tx, number)
    return tx.change(sa.delete(outbox).where(outbox.c.invitation.in_(numbers)))


def purge_mail(tx: Transaction, *, before: datetime) -> int:
    """Delete letters older than `before`, sent or not; return how many."""
    return tx.change(sa.delete(outbox).where(outbox.c.created_at < to_unix(before)))


def old_events(tx: Transaction, *, before: datetime, limit: int) -> list[int]:
    """List audit rows older than `before` that still say something; ids, oldest first.

    What was done to the CAs themselves is kept for good, and what was purged.
    """
    query = (
        sa.select(audit_events.c.id)
        .where(
            audit_events.c.at < to_unix(before),
            audit_events.c.event.not_in(_PROOFS),
            audit_events.c.event.not_like("ca.%"),
        )
        .order_by(audit_events.c.id)
        .limit(limit)
    )
    return list(tx.connection.execute(query).scalars())


def events_about(tx: Transaction, *, names: Sequence[str], limit: int) -> list[int]:
    """List audit rows about these objects, or of what they did, that still say something; ids.

    Looks at every row of the trail, since actors have no index: not while others wait.
    """
    query = (
        sa.select(audit_events.c.id)
        .where(
            sa.or_(audit_events.c.object.in_(names), audit_events.c.actor.in_(names)),
            audit_events.c.event.not_in(_PROOFS),
        )
        .limit(limit)
    )
    return list(tx.connection.execute(query).scalars())


def purge_events(tx: Transaction, ids: Sequence[int]) -> None:
    """Erase what audit rows say."""
    tx.change(sa.update(audit_events).where(audit_events.c.id.in_(ids)).values(**_ERASED))
