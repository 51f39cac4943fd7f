"""RegistrationAuthority: the one street from an entitlement to a certificate.

The only caller of `Issuer.sign`. Order: seen before? -> plan -> draft and lint -> commit the intent
(spending the authority in the same transaction) -> sign the stored draft -> commit the certificate ->
deliver. Killed anywhere, `finish` takes up what is committed; a draft is never built twice.
"""

import hashlib
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from estserver.ca.issuer import Issuer
from estserver.csr import CSR
from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    CertificateRefused,
    Conflict,
    EnrollmentRejected,
    Fault,
    KeyNotAllowed,
    NotFound,
    RegistrationClosed,
)
from estserver.failpoints import reach
from estserver.model import (
    CertificateRecord,
    CertificateState,
    Clock,
    Draft,
    Enrollment,
    EnrollmentState,
    Entitlement,
    Event,
    Grant,
    Internal,
    Invitation,
    InvitationState,
    InvitationUnit,
    Issued,
    Origin,
    Pending,
    Plan,
    PublicKey,
    Renewal,
    Replacement,
    RevocationReason,
    Via,
)
from estserver.profiles import Profile
from estserver.store import Store, Transaction, certificates, registrations

REPEAT_WINDOW = timedelta(hours=24)
"""How long the same certificate and key get the same renewal; later it is a new one."""
ABANDON_AFTER = timedelta(hours=24)
"""An intent that could not be signed for so long is given up."""
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_id_lock = threading.Lock()
_newest_id = 0


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """One question: this key, under this entitlement. `proof` is none, tls-unique or exporter."""

    entitlement: Entitlement
    csr: CSR
    via: Via
    origin: Origin
    proof: str = "none"


class RegistrationAuthority:
    """Issues, approves, rejects, revokes, finds. Thread-safe; every method may block."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        profiles: Mapping[str, Profile],
        issuers: Mapping[str, Issuer],
        retry_after: timedelta = timedelta(seconds=60),
    ) -> None:
        self._store = store
        self._clock = clock
        self._profiles = profiles
        self._issuers = issuers
        self._retry_after = retry_after
        self._own_keys = {
            hashlib.sha256(
                certificate.public_key().public_bytes(
                    Encoding.DER, PublicFormat.SubjectPublicKeyInfo
                )
            ).digest()
            for issuer in issuers.values()
            for certificate in issuer.chain
        }

    # -- issuance --------------------------------------------------------------------------------

    def enroll(self, request: EnrollmentRequest) -> Issued | Pending:
        """Answer one enrollment; the same (authority, key) gets the same answer, byte for byte.

        Raises a Refused that says what to change, and Unavailable when the database cannot take it.
        """
        reach("parsed")
        authority, csr = request.entitlement.authority, request.csr
        known = self._store.read(
            lambda tx: certificates.enrollments_of(tx, authority.key, csr.spki_sha256)
        )
        answer = self._earlier_answer(authority, known, request)
        if answer is not None:
            return answer
        profile = self._profiles[request.entitlement.profile]
        plan = profile.plan(csr, request.entitlement.grant, self._clock.now())
        reach("planned")
        draft = self._issuers[plan.issuer].prepare(plan) if request.entitlement.approved else None
        enrollment = self._store.write(lambda tx: self._record(tx, request, plan, draft, len(known)))
        if enrollment is None:
            # Another request with the same key came first: its answer is ours too.
            return self.enroll(request)
        if draft is None:
            return Pending(enrollment.id, self._retry_after)
        reach("intent-committed")
        return self._sign_and_store(enrollment.id, draft, request.origin)

    def _earlier_answer(
        self,
        authority: InvitationUnit | Replacement | Renewal | Internal,
        known: list[Enrollment],
        request: EnrollmentRequest,
    ) -> Issued | Pending | None:
        if not known:
            return None
        newest = known[0]
        repeatable = not isinstance(authority, Renewal | Internal)
        if not repeatable and self._clock.now() - newest.created_at > REPEAT_WINDOW:
            return None
        match newest.state:
            case EnrollmentState.PENDING:
                return Pending(newest.id, self._retry_after)
            case EnrollmentState.REJECTED:
                raise EnrollmentRejected(
                    f"an officer rejected this request: {newest.reason}",
                    values={"reason": newest.reason or ""},
                )
            case EnrollmentState.APPROVED:
                return self._issue_approved(newest, request.origin)
            case EnrollmentState.ISSUING:
                return self._finish_one(newest.id, request.origin)
            case EnrollmentState.ISSUED:
                return self._repeat(newest)
            case EnrollmentState.ABANDONED:
                return None

    def _repeat(self, enrollment: Enrollment) -> Issued | None:
        record, der = self._store.read(
            lambda tx: (
                certificates.certificate(tx, enrollment.id),
                certificates.der(tx, enrollment.id),
            )
        )
        if record is None or der is None:
            raise Fault(f"enrollment {enrollment.id} is issued but its certificate is not stored")
        if record.state is CertificateState.REVOKED:
            raise CertificateRefused(
                f"the certificate for this key (serial {record.serial_hex}) is revoked: "
                "ask the administrator for a new PIN and make a new key",
                reason="revoked",
                values={"serial": record.serial_hex},
            )
        if record.state_at(self._clock.now()) is CertificateState.EXPIRED:
            return None
        return Issued(enrollment.id, der, repeated=True)

    def _record(
        self,
        tx: Transaction,
        request: EnrollmentRequest,
        plan: Plan,
        draft: Draft | None,
        earlier: int,
    ) -> Enrollment | None:
        """Commit the intent: spend the authority, enrollment, draft, audit. None: already there."""
        entitlement, csr = request.entitlement, request.csr
        authority = entitlement.authority
        state = EnrollmentState.PENDING if draft is None else EnrollmentState.ISSUING
        enrollment = Enrollment(
            id=new_id(tx.now),
            authority_key=authority.key,
            spki_sha256=csr.spki_sha256,
            invitation=None if isinstance(authority, Internal) else _number(authority),
            profile=plan.profile,
            state=state,
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
        correlation = f"{authority.key}:{csr.spki_sha256.hex()}:{earlier}"
        if not certificates.add_enrollment(tx, enrollment, correlation=correlation):
            return None
        self._require_free_key(tx, enrollment, request)
        spend(tx, authority)
        if draft is not None:
            certificates.add_intent(tx, enrollment, plan, draft)
        tx.audit(
            Event(
                "enrollment.pending" if draft is None else "certificate.intended",
                str(entitlement.applicant),
                f"enrollment {enrollment.id}",
                {
                    "via": request.via.value,
                    "profile": plan.profile,
                    "serial": None if draft is None else f"{draft.serial:x}",
                    "spki_sha256": csr.spki_sha256.hex(),
                    "proof": request.proof,
                    "renews": enrollment.renews,
                },
            ),
            request.origin,
        )
        return enrollment

    def _require_free_key(
        self, tx: Transaction, enrollment: Enrollment, request: EnrollmentRequest
    ) -> None:
        """Refuse keys that are blocked, ours, somebody else's, or not to be used again."""
        digest = enrollment.spki_sha256
        if certificates.is_blocked(tx, digest):
            raise KeyNotAllowed("this key was reported as compromised: make a new key")
        if digest in self._own_keys:
            raise KeyNotAllowed("this key belongs to a certification authority: make a new key")
        authority = request.entitlement.authority
        for record in certificates.by_spki(tx, digest):
            if isinstance(authority, Renewal) and record.enrollment == authority.renews:
                if not self._profiles[enrollment.profile].settings.renewal.same_key:
                    raise KeyNotAllowed("renewal needs a new key: make one and ask again")
            elif record.invitation != enrollment.invitation and not isinstance(authority, Internal):
                raise KeyNotAllowed(
                    "this key is certified for another registration: every person and device "
                    "needs a key of its own"
                )

    def _sign_and_store(self, identifier: str, draft: Draft, origin: Origin) -> Issued:
        """Sign a committed draft, store the outcome, and return what is stored."""
        der = self._issuers[draft.issuer].sign(draft)
        reach("signed")
        stored = self._store.write(lambda tx: self._put(tx, identifier, der, origin))
        reach("stored")
        return Issued(identifier, stored, repeated=stored != der)

    def _put(self, tx: Transaction, identifier: str, der: bytes, origin: Origin) -> bytes:
        digest = hashlib.sha256(der).digest()
        if certificates.put_certificate(tx, identifier, der, digest):
            record = certificates.certificate(tx, identifier)
            if record is None:
                raise Fault(f"enrollment {identifier} lost its intent")
            tx.audit(
                Event(
                    "certificate.issued",
                    "server",
                    f"certificate {record.serial_hex}",
                    {
                        "enrollment": identifier,
                        "sha256": digest.hex(),
                        "invitation": record.invitation,
                        "profile": record.profile,
                    },
                ),
                origin,
            )
            self._supersede(tx, record, origin)
        stored = certificates.der(tx, identifier)
        if stored is None:
            raise Fault(f"enrollment {identifier} was abandoned while it was signed")
        return stored

    def _supersede(self, tx: Transaction, record: CertificateRecord, origin: Origin) -> None:
        """Revoke the certificate whose key was lost; renewals leave the old one its overlap."""
        enrollment = certificates.enrollment(tx, record.enrollment)
        if enrollment is None or enrollment.renews is None or enrollment.via is Via.RENEWAL:
            return
        if not enrollment.authority_key.startswith("invitation:"):
            return
        if certificates.revoke(
            tx, enrollment.renews, reason=RevocationReason.SUPERSEDED, comment="replaced by owner"
        ):
            tx.audit(
                Event(
                    "certificate.replaced",
                    enrollment.applicant,
                    f"enrollment {enrollment.renews}",
                    {"by": record.serial_hex},
                ),
                origin,
            )
        invitation = registrations.get(tx, enrollment.invitation or "")
        if invitation is not None and invitation.email is not None:
            registrations.post(
                tx,
                identifier=f"replaced-{record.enrollment}",
                template="replaced",
                invitation=invitation,
                recipient=invitation.email,
                values={"serial": record.serial_hex},
            )

    # -- what was left unfinished ------------------------------------------------------------------

    def finish(self, origin: Origin, *, older_than: timedelta = timedelta(0)) -> int:
        """Finish committed intents and approved enrollments; return how many were finished.

        Runs at start (everything) and every minute (what is older than a request can be).
        Raises Unavailable; one enrollment that fails does not keep the others from finishing.
        """
        now = self._clock.now()
        pending = self._store.read(
            lambda tx: certificates.unfinished(tx, created_before=now - older_than)
        )
        finished = 0
        failures: list[Fault] = []
        for identifier in pending:
            try:
                finished += self._finish_one(identifier, origin) is not None
            except Fault as error:
                failures.append(error)
        for enrollment in self._store.read(certificates.approved):
            try:
                self._issue_approved(enrollment, origin)
                finished += 1
            except Fault as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return finished

    def _finish_one(self, identifier: str, origin: Origin) -> Issued | None:
        enrollment, draft, der = self._store.read(
            lambda tx: (
                certificates.enrollment(tx, identifier),
                certificates.intent(tx, identifier),
                certificates.der(tx, identifier),
            )
        )
        if der is not None:
            return Issued(identifier, der, repeated=True)
        if enrollment is None or draft is None:
            return None
        if self._clock.now() - enrollment.created_at > ABANDON_AFTER:
            self._store.write(lambda tx: self._abandon(tx, identifier, origin))
            return None
        return self._sign_and_store(identifier, draft, origin)

    def _abandon(self, tx: Transaction, identifier: str, origin: Origin) -> None:
        if certificates.abandon(tx, identifier):
            tx.audit(Event("certificate.abandoned", "server", f"enrollment {identifier}"), origin)

    # -- approval ----------------------------------------------------------------------------------

    def approve(self, identifier: str, *, by: str, origin: Origin) -> Enrollment:
        """Let a pending enrollment be issued; the server signs at the next poll or tick.

        Raises NotFound, Conflict.
        """
        return self._decide(identifier, EnrollmentState.APPROVED, None, by, origin)

    def reject(self, identifier: str, *, reason: str, by: str, origin: Origin) -> Enrollment:
        """Refuse a pending enrollment for good and give its unit back.

        Raises NotFound, Conflict.
        """
        return self._decide(identifier, EnrollmentState.REJECTED, reason, by, origin)

    def _decide(
        self, identifier: str, to: EnrollmentState, reason: str | None, by: str, origin: Origin
    ) -> Enrollment:
        def unit(tx: Transaction) -> None:
            if not certificates.move_enrollment(
                tx, identifier, before=EnrollmentState.PENDING, to=to, by=by, reason=reason
            ):
                raise Conflict(f"enrollment {identifier} does not wait for a decision")
            if to is EnrollmentState.REJECTED and enrollment.invitation is not None:
                registrations.return_unit(tx, enrollment.invitation)
            detail = {} if reason is None else {"reason": reason}
            tx.audit(Event(f"enrollment.{to.value}", by, f"enrollment {identifier}", detail), origin)

        enrollment = self.enrollment(identifier)
        self._store.write(unit)
        return self.enrollment(identifier)

    def _issue_approved(self, enrollment: Enrollment, origin: Origin) -> Issued | Pending:
        profile = self._profiles[enrollment.profile]
        public_key = cast("PublicKey", load_der_public_key(enrollment.spki))  # the wall checked it
        grant = Grant(enrollment.subject, frozenset(enrollment.names))
        plan = profile.plan_again(public_key, grant, self._clock.now())
        draft = self._issuers[plan.issuer].prepare(plan)

        def unit(tx: Transaction) -> bool:
            if not certificates.move_enrollment(
                tx, enrollment.id, before=EnrollmentState.APPROVED, to=EnrollmentState.ISSUING
            ):
                return False
            certificates.add_intent(tx, enrollment, plan, draft)
            tx.audit(
                Event(
                    "certificate.intended",
                    enrollment.applicant,
                    f"enrollment {enrollment.id}",
                    {"via": enrollment.via.value, "serial": f"{draft.serial:x}"},
                ),
                origin,
            )
            return True

        if not self._store.write(unit):
            return self._finish_one(enrollment.id, origin) or Pending(
                enrollment.id, self._retry_after
            )
        reach("intent-committed")
        return self._sign_and_store(enrollment.id, draft, origin)

    # -- revocation ----------------------------------------------------------------------------------

    def revoke(
        self,
        identifier: str,
        *,
        reason: RevocationReason,
        comment: str | None,
        by: str,
        origin: Origin,
    ) -> CertificateRecord:
        """Revoke a certificate, signed or only intended, at once and for good.

        `identifier` is the enrollment id. A compromised key is blocked for ever.
        Raises NotFound, Conflict (revoked before).
        """

        def unit(tx: Transaction) -> CertificateRecord:
            record = certificates.certificate(tx, identifier)
            if record is None:
                raise NotFound("there is no such certificate")
            if not certificates.revoke(tx, identifier, reason=reason, comment=comment):
                raise Conflict(f"the certificate with serial {record.serial_hex} is revoked already")
            if reason is RevocationReason.KEY_COMPROMISE:
                certificates.block_key(tx, record.spki_sha256, reason.value)
            tx.audit(
                Event(
                    "certificate.revoked",
                    by,
                    f"certificate {record.serial_hex}",
                    {"reason": reason.value, "comment": comment, "enrollment": identifier},
                ),
                origin,
            )
            return record

        self._store.write(unit)
        record = self._store.read(lambda tx: certificates.certificate(tx, identifier))
        if record is None:
            raise NotFound("there is no such certificate")
        return record

    # -- finding -------------------------------------------------------------------------------------

    def enrollment(self, identifier: str) -> Enrollment:
        """Find an enrollment. Raises NotFound."""
        found = self._store.read(lambda tx: certificates.enrollment(tx, identifier))
        if found is None:
            raise NotFound(f"there is no enrollment {identifier}")
        return found

    def find(self, serial: int) -> CertificateRecord:
        """Find a certificate of any issuer by serial. Raises NotFound."""
        found = self._store.read(lambda tx: certificates.by_serial(tx, serial))
        if not found:
            raise NotFound(f"there is no certificate with serial {serial:x}")
        return found[0]

    def certificate_of(self, identifier: str) -> tuple[CertificateRecord, bytes] | None:
        """Return record and DER of an enrollment's certificate, or None while there is none."""
        record, der = self._store.read(
            lambda tx: (certificates.certificate(tx, identifier), certificates.der(tx, identifier))
        )
        return None if record is None or der is None else (record, der)

    def of_invitation(self, number: str) -> list[tuple[Enrollment, CertificateRecord | None]]:
        """List what an invitation led to, newest first."""
        return self._store.read(
            lambda tx: [
                (enrollment, certificates.certificate(tx, enrollment.id))
                for enrollment in certificates.invitation_enrollments(tx, number)
            ]
        )

    def mark_taken(self, identifier: str, *, by: str, origin: Origin) -> None:
        """Note that the owner says to hold certificate and key (SEED-16)."""

        def unit(tx: Transaction) -> None:
            if certificates.mark_taken(tx, identifier):
                tx.audit(Event("certificate.taken", by, f"enrollment {identifier}"), origin)

        self._store.write(unit)

    def chain(self, profile: str) -> tuple[bytes, ...]:
        """Return the DER certificates above a profile's certificates: issuing CA first, root last."""
        issuer = self._issuers[self._profiles[profile].settings.issuer]
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in issuer.chain)


def spend(tx: Transaction, authority: InvitationUnit | Replacement | Renewal | Internal) -> None:
    """Use up what an entitlement draws on: the only place that does.

    Raises AlreadyIssued, BadCredentials (expired), RegistrationClosed, Conflict.
    """
    match authority:
        case InvitationUnit(number):
            if not registrations.spend_unit(tx, number):
                raise _why_spent(tx, registrations.get(tx, number))
        case Replacement(number):
            if not registrations.spend_replacement(tx, number):
                raise Conflict("the certificate was replaced once already: ask the administrator")
        case Renewal(_, number, spends_pin):
            if spends_pin and not registrations.spend_renewal_pin(tx, number or ""):
                raise _why_spent(tx, registrations.get(tx, number or ""))
        case Internal():
            pass


def _why_spent(
    tx: Transaction, invitation: Invitation | None
) -> AlreadyIssued | BadCredentials | RegistrationClosed:
    if invitation is None or invitation.state is not InvitationState.OPEN:
        return RegistrationClosed(
            "this registration was cancelled: ask the administrator", values={"reason": "cancelled"}
        )
    if invitation.units_used >= invitation.units and not invitation.renewal_pin:
        return AlreadyIssued(
            "this PIN has been used with another key: continue there, or ask the administrator"
        )
    assert invitation.expires_at <= tx.now  # noqa: S101 - the only condition left
    return BadCredentials("the PIN has expired: ask the administrator for a new one", reason="expired")


def _number(authority: InvitationUnit | Replacement | Renewal) -> str | None:
    return authority.invitation if isinstance(authority, Renewal) else authority.number


def _renews(authority: InvitationUnit | Replacement | Renewal | Internal) -> str | None:
    match authority:
        case Replacement(_, replaces):
            return replaces
        case Renewal(renews):
            return renews
        case _:
            return None


def new_id(now: datetime) -> str:
    """Make an identifier that sorts by time: 10 symbols of milliseconds, 12 random (60 bits).

    Within a process later ones sort later even in the same second.
    """
    global _newest_id  # noqa: PLW0603 - the order of identifiers is a fact of the process
    number = int(now.timestamp() * 1000) << 60 | secrets.randbits(60)
    with _id_lock:
        if number <= _newest_id:
            number = _newest_id + 1 + secrets.randbits(40)
        _newest_id = number
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(105, -1, -5))
