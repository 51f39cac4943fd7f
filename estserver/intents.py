"""What each transaction of an issuance checks and writes: functions of a transaction for `ra`.

A rule that must hold at the moment of commit is checked here, in the transaction it protects:
whether the authority is still there to be spent, the certificate being renewed still stands, the
key is still free. Whatever was checked earlier was only to refuse early.

Those of the street do it for many at once (`steps.Together`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from estserver import notices
from estserver.csr import CSR
from estserver.errors import Fault, KeyNotAllowed, Refused
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
    InvitationUnit,
    Origin,
    Plan,
    Renewal,
    Replacement,
    RevocationReason,
    Via,
)
from estserver.sortable_ids import new_id
from estserver.spending import spend
from estserver.store import (
    Transaction,
    certificates,
    issuance,
    ordered,
    outbox,
    registrations,
    revocations,
)


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """One question: this key, under this entitlement. `proof` is none, tls-unique or exporter."""

    entitlement: Entitlement
    csr: CSR
    via: Via
    origin: Origin
    proof: str = "none"


class AskedBefore(Exception):
    """Somebody else has asked the same in the meantime: their answer is to be looked for."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One enrollment to be recorded; without a draft it waits for an officer.

    `same_key`: whether a renewal may keep its key. Made by `intend` only.
    """

    enrollment: Enrollment
    authority: Authority
    origin: Origin
    same_key: bool
    row: issuance.Row
    drafted: issuance.IntentRows | None


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate just signed, DER, for an intent that was committed with this serial.

    `notify`: the owner is told by mail.
    """

    enrollment: Enrollment
    serial: int
    der: bytes
    origin: Origin
    notify: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes that count, DER; and the row if the certificate was revoked before it was there."""

    der: bytes
    revoked: CertificateRecord | None


def known(tx: Transaction, questions: Sequence[tuple[Authority, bytes]]) -> list[list[Enrollment]]:
    """List for each authority and key what answers the same question again, newest first.

    Under an invitation that is every enrollment of this key, whatever it drew on: a PIN that
    renewed is a spent PIN afterwards, and a lost answer must be found all the same.
    """
    found = certificates.enrollments_of_keys(tx, [digest for _, digest in questions])
    orders = {authority.key for authority, _ in questions if isinstance(authority, ACMEOrder)}
    ordered_before = ordered.enrollments_under(tx, orders)

    def answers(authority: Authority, digest: bytes) -> list[Enrollment]:
        match authority:
            case InvitationUnit(number) | Replacement(number, _):
                return [one for one in found.get(digest, ()) if one.invitation == number]
            case ACMEOrder():
                # One order, one certificate: another key is no other question.
                return ordered_before.get(authority.key, [])
            case _:
                return [one for one in found.get(digest, ()) if one.authority_key == authority.key]

    return [answers(authority, digest) for authority, digest in questions]


def intend(
    request: EnrollmentRequest,
    plan: Plan,
    draft: Draft | None,
    now: datetime,
    *,
    earlier: int,
    same_key: bool,
) -> Intent:
    """Put together what `record` shall commit.

    `earlier` is how many answers to the same question the caller knew of.
    """
    entitlement, csr = request.entitlement, request.csr
    authority = entitlement.authority
    enrollment = Enrollment(
        id=new_id(now),
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
        created_at=now,
        decided_by=None,
        reason=None,
        taken_at=None,
    )
    correlation = (
        authority.key if isinstance(authority, ACMEOrder) else f"{authority.key}:{earlier}"
    )
    return Intent(
        enrollment=enrollment,
        authority=authority,
        origin=request.origin,
        same_key=same_key,
        row=issuance.enrollment_row(enrollment, correlation),
        drafted=None if draft is None else issuance.intent_rows(enrollment, plan, draft, now),
    )


def record(tx: Transaction, intents: Sequence[Intent]) -> list[Enrollment | Refused]:
    """Commit intents, and requests that wait for an officer; spend their authorities.

    A refusal is KeyNotAllowed or what `spend` returns. Raises what `spend` raises, and AskedBefore:
    one of them is there already; nothing may be kept then.
    """
    outcomes: dict[int, Enrollment | Refused] = {}
    while len(outcomes) < len(intents):
        # Of two requests with one key, the second must find what became of the first.
        turn: dict[bytes, int] = {}
        for number, intent in enumerate(intents):
            if number not in outcomes:
                turn.setdefault(intent.enrollment.spki_sha256, number)
        answers = _record(tx, [intents[number] for number in turn.values()])
        outcomes |= zip(turn.values(), answers, strict=True)
    return [outcomes[number] for number in range(len(intents))]


def _record(tx: Transaction, intents: Sequence[Intent]) -> list[Enrollment | Refused]:
    """Record intents whose keys all differ."""
    # First of all: who asks the same once more is to find the answer, not to be refused.
    if not issuance.add_enrollments(tx, [intent.row for intent in intents]):
        raise AskedBefore
    keys = key_refusals(tx, [(intent.enrollment, intent.same_key) for intent in intents])
    free = [intent for intent, refusal in zip(intents, keys, strict=True) if refusal is None]
    spent = iter(spend(tx, [intent.authority for intent in free]))
    refusals = [refusal or next(spent) for refusal in keys]
    judged = list(zip(intents, refusals, strict=True))
    issuance.drop_enrollments(tx, [intent.enrollment.id for intent, no in judged if no])
    accepted = [intent for intent, no in judged if not no]
    issuance.add_intents(tx, [intent.drafted for intent in accepted if intent.drafted is not None])
    for intent in accepted:
        audit_request(tx, intent.enrollment, intent.drafted, intent.origin)
    return [no or intent.enrollment for intent, no in judged]


def audit_request(
    tx: Transaction,
    enrollment: Enrollment,
    drafted: issuance.IntentRows | None,
    origin: Origin,
) -> None:
    """Record that an enrollment was asked for, and the intent to sign it if there is one."""
    tx.audit(
        Event(
            "enrollment.pending" if drafted is None else "certificate.intended",
            enrollment.applicant,
            f"enrollment {enrollment.id}",
            {
                "via": enrollment.via.value,
                "profile": enrollment.profile,
                "serial": None if drafted is None else f"{drafted.draft.serial:x}",
                "spki_sha256": enrollment.spki_sha256.hex(),
                "proof": enrollment.proof,
                "renews": enrollment.renews,
            },
        ),
        origin,
    )


def put(tx: Transaction, signed: Sequence[Signed]) -> list[Stored]:
    """Store signed certificates; return the bytes that count, which may be somebody else's.

    Raises AskedBefore: one of several is stored, revoked or given up already, nothing may be kept;
    Fault: an intent was given up while it was being signed.
    """
    if issuance.put_certificates(tx, [(one.enrollment.id, one.der) for one in signed]):
        for one in signed:
            _tell_issued(tx, one)
        return [Stored(one.der, None) for one in signed]
    if len(signed) > 1:
        raise AskedBefore
    return [_put_contested(tx, signed[0])]


def _put_contested(tx: Transaction, signed: Signed) -> Stored:
    """Store a certificate unless one is stored; what was revoked in the meantime stays revoked."""
    identifier = signed.enrollment.id
    digest = hashlib.sha256(signed.der).digest()
    new = certificates.put_certificate(tx, identifier, signed.der, digest)
    row, stored = certificates.certificate(tx, identifier), certificates.der(tx, identifier)
    if row is None or stored is None:
        raise Fault(f"enrollment {identifier} was abandoned while it was signed")
    if new:
        _tell_issued(tx, signed)
    return Stored(stored, row if row.state is CertificateState.REVOKED else None)


def _tell_issued(tx: Transaction, signed: Signed) -> None:
    enrollment = signed.enrollment
    serial_hex = f"{signed.serial:x}"
    tx.audit(
        Event(
            "certificate.issued",
            "server",
            f"certificate {serial_hex}",
            {
                "enrollment": enrollment.id,
                "sha256": hashlib.sha256(signed.der).hexdigest(),
                "invitation": enrollment.invitation,
                "profile": enrollment.profile,
            },
        ),
        signed.origin,
    )
    if enrollment.renews is not None and _is_invitations(enrollment):
        _supersede(tx, enrollment, enrollment.renews, serial_hex, signed.origin)
    elif signed.notify and (row := certificates.certificate(tx, enrollment.id)) is not None:
        notices.tell_issued(tx, row)


def _supersede(
    tx: Transaction, enrollment: Enrollment, replaced: str, serial_hex: str, origin: Origin
) -> None:
    """Revoke the certificate whose key was lost; renewals leave the old one its overlap."""
    if revocations.revoke(
        tx, replaced, reason=RevocationReason.SUPERSEDED, comment="replaced by owner"
    ):
        tx.audit(
            Event(
                "certificate.replaced",
                enrollment.applicant,
                f"enrollment {replaced}",
                {"by": serial_hex},
            ),
            origin,
        )
    invitation = registrations.get(tx, enrollment.invitation or "")
    if invitation is None:
        return
    values = {"serial": serial_hex}
    if invitation.email is not None:
        outbox.post(
            tx,
            identifier=f"replaced-{enrollment.id}",
            template="replaced",
            invitation=invitation,
            recipient=invitation.email,
            values=values,
        )
    outbox.tell_administrator(tx, "replaced-told", invitation, enrollment.id, values)


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


def key_refusals(
    tx: Transaction, questions: Sequence[tuple[Enrollment, bool]]
) -> list[KeyNotAllowed | None]:
    """Say for each enrollment why its key may not be certified: blocked, or somebody else's.

    With each comes whether a renewal may keep its key; if not, the registration must never have
    had it certified. The keys all differ.
    """
    digests = [enrollment.spki_sha256 for enrollment, _ in questions]
    # Two requests with one key must not find it free at the same moment.
    tx.lock(digests)
    blocked = revocations.blocked_among(tx, digests)
    certified = certificates.certified_among(tx, digests)

    def refusal(enrollment: Enrollment, *, same_key: bool) -> KeyNotAllowed | None:
        digest = enrollment.spki_sha256
        if digest in blocked:
            return KeyNotAllowed("this key was reported as compromised: make a new key")
        if enrollment.via is Via.INTERNAL:
            return None
        renewal = enrollment.authority_key.startswith("renewal:")
        for use in certified.get(digest, ()):
            if use.invitation != enrollment.invitation or use.via is Via.INTERNAL:
                return KeyNotAllowed(
                    "this key is certified for another registration: every person and device "
                    "needs a key of its own"
                )
            if renewal and not same_key and use.state is not CertificateState.ABANDONED:
                return KeyNotAllowed("renewal needs a new key: make one and ask again")
        return None

    return [refusal(enrollment, same_key=same_key) for enrollment, same_key in questions]


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
