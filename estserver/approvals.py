"""Approvals: an officer's decision about a pending enrollment, and what becomes of it.

Functions of a transaction for `ra`, as in `intents`.
"""

from estserver.errors import Conflict, Refused, RegistrationClosed
from estserver.intents import audit_request, key_refusals
from estserver.model import Draft, Enrollment, EnrollmentState, Event, Origin, Plan
from estserver.spending import require_not_cancelled
from estserver.store import Transaction, certificates, issuance, registrations


def begin_approved(
    tx: Transaction, enrollment: Enrollment, plan: Plan, draft: Draft, origin: Origin
) -> bool:
    """Commit the intent of an approved enrollment; False if it is not approved any more.

    Days may have passed since it was asked for: a registration that was cancelled or a key that was
    blocked in the meantime ends it as rejected, with the reason.
    """
    refusal = _no_longer(tx, enrollment)
    if refusal is not None:
        _reject(tx, enrollment, EnrollmentState.APPROVED, refusal.detail, "server", origin)
        return False
    if not certificates.move_enrollment(
        tx, enrollment.id, before=EnrollmentState.APPROVED, to=EnrollmentState.ISSUING
    ):
        return False
    drafted = issuance.intent_rows(enrollment, plan, draft, tx.now)
    issuance.add_intents(tx, [drafted])
    audit_request(tx, enrollment, drafted, origin)
    return True


def _no_longer(tx: Transaction, enrollment: Enrollment) -> Refused | None:
    try:
        require_not_cancelled(tx, enrollment.invitation)
    except RegistrationClosed as refusal:
        return refusal
    return key_refusals(tx, [(enrollment, True)])[0]


def approve(tx: Transaction, enrollment: Enrollment, by: str, origin: Origin) -> None:
    """Let a pending enrollment be issued.

    Raises Conflict (it does not wait), RegistrationClosed (the registration was cancelled).
    """
    if not certificates.move_enrollment(
        tx, enrollment.id, before=EnrollmentState.PENDING, to=EnrollmentState.APPROVED, by=by
    ):
        raise _decided(enrollment)
    require_not_cancelled(tx, enrollment.invitation)
    tx.audit(Event("enrollment.approved", by, f"enrollment {enrollment.id}"), origin)


def reject(tx: Transaction, enrollment: Enrollment, reason: str, by: str, origin: Origin) -> None:
    """Refuse a pending enrollment and give its unit back. Raises Conflict: it does not wait."""
    if not _reject(tx, enrollment, EnrollmentState.PENDING, reason, by, origin):
        raise _decided(enrollment)


def _reject(
    tx: Transaction,
    enrollment: Enrollment,
    before: EnrollmentState,
    reason: str,
    by: str,
    origin: Origin,
) -> bool:
    rejected = EnrollmentState.REJECTED
    if not certificates.move_enrollment(
        tx, enrollment.id, before=before, to=rejected, by=by, reason=reason
    ):
        return False
    if enrollment.invitation is not None:
        registrations.return_unit(tx, enrollment.invitation)
    subject = f"enrollment {enrollment.id}"
    tx.audit(Event("enrollment.rejected", by, subject, {"reason": reason}), origin)
    return True


def _decided(enrollment: Enrollment) -> Conflict:
    return Conflict(f"enrollment {enrollment.id} does not wait for a decision")
