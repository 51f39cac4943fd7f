"""What each transaction of an issuance checks and writes: functions of a transaction for `ra`.

A rule that must hold at the moment of commit is checked here, in the transaction it protects:
whether the authority is still there to be spent, the certificate being renewed still stands, the
key is still free. Whatever was checked earlier was only to refuse early.
"""

import hashlib
from dataclasses import dataclass

from estserver.csr import CSR
from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    CertificateRefused,
    Conflict,
    Fault,
    KeyNotAllowed,
    NotReleased,
    Refused,
    RegistrationClosed,
)
from estserver.model import (
    ACMEOrder,
    Authority,
    CertificateRecord,
    CertificateState,
    Draft,
    Enrollment,
    EnrollmentState,
    Entitlement,
    Event,
    Internal,
    Invitation,
    InvitationState,
    InvitationUnit,
    Origin,
    Plan,
    Renewal,
    Replacement,
    RevocationReason,
    Via,
)
from estserver.sortable_ids import new_id
from estserver.store import Transaction, certificates, outbox, registrations, revocations


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """One question: this key, under this entitlement. `proof` is none, tls-unique or exporter."""

    entitlement: Entitlement
    csr: CSR
    via: Via
    origin: Origin
    proof: str = "none"


def known(tx: Transaction, authority: Authority, spki_sha256: bytes) -> list[Enrollment]:
    """List the enrollments that answer the same question again, newest first.

    Under an invitation that is every enrollment of this key, whatever it drew on: a PIN that
    renewed is a spent PIN afterwards, and a lost answer must be found all the same.
    """
    if isinstance(authority, InvitationUnit | Replacement):
        return certificates.enrollments_for_key(tx, authority.number, spki_sha256)
    if isinstance(authority, ACMEOrder):
        # One order, one certificate: another key is no other question.
        return certificates.enrollments_under(tx, authority.key)
    return certificates.enrollments_of(tx, authority.key, spki_sha256)


def record(
    tx: Transaction,
    request: EnrollmentRequest,
    plan: Plan,
    draft: Draft | None,
    *,
    earlier: int,
    same_key: bool,
) -> Enrollment | None:
    """Commit an intent, or with no draft a request that waits for an officer; spend the authority.

    `earlier` is how many answers to the same question the caller knew of; `same_key` whether a
    renewal may keep its key. Returns None if somebody else has asked the same in the meantime.
    Raises KeyNotAllowed and what `spend` raises.
    """
    entitlement, csr = request.entitlement, request.csr
    authority = entitlement.authority
    enrollment = Enrollment(
        id=new_id(tx.now),
        authority_key=authority.key,
        spki_sha256=csr.spki_sha256,
        invitation=_number(authority),
        profile=plan.profile,
        state=EnrollmentState.PENDING if draft is None else EnrollmentState.ISSUING,
        via=request.via,
        applicant=str(entitlement.applicant),
        subject=plan.subject,
        names=plan.names,
        spki=csr.spki,
        renews=_renews(authority),
        proof=request.proof,
        created_at=tx.now,
        decided_by=None,
        reason=None,
        taken_at=None,
    )
    correlation = (
        authority.key
        if isinstance(authority, ACMEOrder)
        else f"{authority.key}:{csr.spki_sha256.hex()}:{earlier}"
    )
    if not certificates.add_enrollment(tx, enrollment, correlation=correlation):
        return None
    require_free_key(tx, enrollment, same_key=same_key)
    spend(tx, authority)
    if draft is not None:
        certificates.add_intent(tx, enrollment, plan, draft)
    _audit_request(tx, enrollment, draft, request.origin)
    return enrollment


def _audit_request(
    tx: Transaction, enrollment: Enrollment, draft: Draft | None, origin: Origin
) -> None:
    tx.audit(
        Event(
            "enrollment.pending" if draft is None else "certificate.intended",
            enrollment.applicant,
            f"enrollment {enrollment.id}",
            {
                "via": enrollment.via.value,
                "profile": enrollment.profile,
                "serial": None if draft is None else f"{draft.serial:x}",
                "spki_sha256": enrollment.spki_sha256.hex(),
                "proof": enrollment.proof,
                "renews": enrollment.renews,
            },
        ),
        origin,
    )


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
    certificates.add_intent(tx, enrollment, plan, draft)
    _audit_request(tx, enrollment, draft, origin)
    return True


def _no_longer(tx: Transaction, enrollment: Enrollment) -> Refused | None:
    try:
        _require_not_cancelled(tx, enrollment.invitation)
        require_free_key(tx, enrollment, same_key=True)
    except (KeyNotAllowed, RegistrationClosed) as refusal:
        return refusal
    return None


def approve(tx: Transaction, enrollment: Enrollment, by: str, origin: Origin) -> None:
    """Let a pending enrollment be issued.

    Raises Conflict (it does not wait), RegistrationClosed (the registration was cancelled).
    """
    if not certificates.move_enrollment(
        tx, enrollment.id, before=EnrollmentState.PENDING, to=EnrollmentState.APPROVED, by=by
    ):
        raise _decided(enrollment)
    _require_not_cancelled(tx, enrollment.invitation)
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


def put(
    tx: Transaction, identifier: str, der: bytes, origin: Origin
) -> tuple[CertificateRecord, bytes]:
    """Store a signed certificate unless one is stored; return the row and the bytes that count.

    Raises Fault: the intent was given up while it was being signed.
    """
    digest = hashlib.sha256(der).digest()
    new = certificates.put_certificate(tx, identifier, der, digest)
    row, stored = certificates.certificate(tx, identifier), certificates.der(tx, identifier)
    if row is None or stored is None:
        raise Fault(f"enrollment {identifier} was abandoned while it was signed")
    if new:
        tx.audit(
            Event(
                "certificate.issued",
                "server",
                f"certificate {row.serial_hex}",
                {
                    "enrollment": identifier,
                    "sha256": digest.hex(),
                    "invitation": row.invitation,
                    "profile": row.profile,
                },
            ),
            origin,
        )
        _supersede(tx, row, origin)
    return row, stored


def _supersede(tx: Transaction, row: CertificateRecord, origin: Origin) -> None:
    """Revoke the certificate whose key was lost; renewals leave the old one its overlap."""
    enrollment = certificates.enrollment(tx, row.enrollment)
    if enrollment is None or enrollment.renews is None or not _is_invitations(enrollment):
        return
    if revocations.revoke(
        tx, enrollment.renews, reason=RevocationReason.SUPERSEDED, comment="replaced by owner"
    ):
        tx.audit(
            Event(
                "certificate.replaced",
                enrollment.applicant,
                f"enrollment {enrollment.renews}",
                {"by": row.serial_hex},
            ),
            origin,
        )
    invitation = registrations.get(tx, enrollment.invitation or "")
    if invitation is not None and invitation.email is not None:
        outbox.post(
            tx,
            identifier=f"replaced-{row.enrollment}",
            template="replaced",
            invitation=invitation,
            recipient=invitation.email,
            values={"serial": row.serial_hex},
        )
    if invitation is not None:
        values = {"serial": row.serial_hex}
        outbox.tell_administrator(tx, "replaced-told", invitation, row.enrollment, values)


def abandon(tx: Transaction, identifier: str, origin: Origin) -> None:
    """Give up an intent that could not be signed. Its serial stays taken, its unit comes back."""
    if not certificates.abandon(tx, identifier):
        return
    enrollment = certificates.enrollment(tx, identifier)
    if enrollment is not None and enrollment.invitation is not None:
        if enrollment.renews is None:
            registrations.return_unit(tx, enrollment.invitation)
        elif _is_invitations(enrollment):
            registrations.return_replacement(tx, enrollment.invitation)
    tx.audit(Event("certificate.abandoned", "server", f"enrollment {identifier}"), origin)


def require_free_key(tx: Transaction, enrollment: Enrollment, *, same_key: bool) -> None:
    """Refuse keys that are blocked, somebody else's, or not to be used again. Raises KeyNotAllowed.

    `same_key` False: a renewal needs a key that the registration never had certified.
    """
    digest = enrollment.spki_sha256
    # Two requests with one key must not find it free at the same moment.
    tx.lock(digest)
    if revocations.is_blocked(tx, digest):
        raise KeyNotAllowed("this key was reported as compromised: make a new key")
    if enrollment.via is Via.INTERNAL:
        return
    renewal = enrollment.authority_key.startswith("renewal:")
    for row in certificates.by_spki(tx, digest):
        if row.invitation != enrollment.invitation or row.via is Via.INTERNAL:
            raise KeyNotAllowed(
                "this key is certified for another registration: every person and device "
                "needs a key of its own"
            )
        if renewal and not same_key and row.state is not CertificateState.ABANDONED:
            raise KeyNotAllowed("renewal needs a new key: make one and ask again")


def spend(tx: Transaction, authority: Authority) -> None:
    """Use up what an entitlement draws on: the only place that does.

    Raises AlreadyIssued, BadCredentials, RegistrationClosed, NotReleased, CertificateRefused,
    Conflict.
    """
    match authority:
        case InvitationUnit(number):
            if not registrations.spend_unit(tx, number):
                raise _why_no_unit(tx, registrations.get(tx, number))
        case Replacement(number, replaces):
            if not registrations.spend_replacement(tx, number):
                _require_not_cancelled(tx, number)
                raise Conflict(
                    "the certificate was replaced once already: ask the administrator",
                    values={"reason": "replaced"},
                )
            _require_standing(tx, replaces)
        case ACMEOrder():
            _spend_order(tx, authority)
        case Renewal(renews, number):
            if authority.spends_pin and not registrations.spend_renewal_pin(tx, number or ""):
                raise _why_no_renewal(tx, registrations.get(tx, number or ""))
            _require_not_cancelled(tx, number)
            if authority.shown:
                _require_standing(tx, renews)
        case Internal():
            pass


def _spend_order(tx: Transaction, authority: ACMEOrder) -> None:
    number = authority.invitation
    if number is None:
        return
    if authority.spends_unit and not registrations.spend_unit(tx, number, bound=True):
        raise _why_no_unit(tx, registrations.get(tx, number), bound=True)
    _require_not_cancelled(tx, number)
    if authority.renews is not None:
        _require_standing(tx, authority.renews)


def _require_not_cancelled(tx: Transaction, number: str | None) -> None:
    invitation = None if number is None else registrations.get(tx, number, hold=True)
    if invitation is not None and invitation.state is InvitationState.CANCELLED:
        raise _closed()


def _require_standing(tx: Transaction, identifier: str) -> None:
    """Let nobody renew what was revoked since it was looked at (INC-1)."""
    row = certificates.certificate(tx, identifier, hold=True)
    if row is None or row.state is not CertificateState.VALID:
        raise revoked(row)


def revoked(row: CertificateRecord | None) -> CertificateRefused:
    """Say that the certificate for a key is revoked, and what to do."""
    serial = "" if row is None else row.serial_hex
    return CertificateRefused(
        f"the certificate for this key (serial {serial}) is revoked: "
        "ask the administrator for a new PIN and make a new key",
        reason="revoked",
        values={"serial": serial},
    )


def _closed() -> RegistrationClosed:
    return RegistrationClosed(
        "this registration was cancelled: ask the administrator", values={"reason": "cancelled"}
    )


def _why_no_unit(tx: Transaction, invitation: Invitation | None, *, bound: bool = False) -> Refused:
    if (shut := _why_shut(invitation)) is not None:
        return shut
    if invitation is not None and invitation.units_used < invitation.units:
        if bound:
            return RegistrationClosed("this registration has ended", values={"reason": "ended"})
        return _expired(tx, invitation)
    if bound:
        return AlreadyIssued(
            "all certificates of this registration are issued: renew them with the same names, "
            "or ask the administrator for more"
        )
    return AlreadyIssued(
        "this PIN has been used: go on with the key it was used with, or ask the administrator"
    )


def _why_no_renewal(tx: Transaction, invitation: Invitation | None) -> Refused:
    if (shut := _why_shut(invitation)) is not None:
        return shut
    if invitation is not None and invitation.renewal_pin:
        return _expired(tx, invitation)
    if invitation is not None and invitation.units_used < invitation.units:
        return BadCredentials("that PIN is not for renewing this certificate", reason="other")
    return AlreadyIssued("this PIN has been used: ask the administrator for a new one")


def _why_shut(invitation: Invitation | None) -> Refused | None:
    if invitation is None or invitation.state is InvitationState.CANCELLED:
        return _closed()
    if invitation.state is InvitationState.HELD:
        return NotReleased(
            "the administrator has not released this registration yet: try again later"
        )
    return None


def _expired(tx: Transaction, invitation: Invitation) -> Refused:
    if invitation.expires_at > tx.now:
        # What was missing a moment ago is there again: an officer gave a unit or a PIN back.
        return Conflict("the registration has just been changed: try again")
    return BadCredentials(
        "the PIN has expired: ask the administrator for a new one", reason="expired"
    )


def _is_invitations(enrollment: Enrollment) -> bool:
    return enrollment.authority_key.startswith("invitation:")


def _number(authority: Authority) -> str | None:
    match authority:
        case InvitationUnit(number) | Replacement(number, _):
            return number
        case Renewal(_, number) | ACMEOrder(_, number):
            return number
        case Internal():
            return None


def _renews(authority: Authority) -> str | None:
    match authority:
        case Replacement(_, replaces):
            return replaces
        case Renewal(renews) | ACMEOrder(renews=renews):
            return renews
        case _:
            return None
