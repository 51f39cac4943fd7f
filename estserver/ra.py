"""RegistrationAuthority: the one street from an entitlement to a certificate.

The only caller of `Issuer.sign`. Order: seen before? -> plan -> draft and lint -> commit the intent
(spending the authority in the same transaction) -> sign the stored draft -> commit the certificate
-> deliver. Killed anywhere, `finish` takes up what is committed; a draft is never built twice.
What each transaction checks and writes stands in `intents` and `approvals`.

The street is written as `steps`: whoever walks it alone calls `enroll`, a door with many customers
gives `enrolling` to a convoy.
"""

import contextlib
import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import cast

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from estserver import approvals, intents, revoking
from estserver.ca.issuer import Issuer
from estserver.errors import (
    Conflict,
    EnrollmentRejected,
    Fault,
    KeyNotAllowed,
    NotFound,
    Refused,
)
from estserver.failpoints import reach
from estserver.intents import EnrollmentRequest
from estserver.model import (
    ACMEOrder,
    CertificateRecord,
    CertificateState,
    Clock,
    Draft,
    Enrollment,
    EnrollmentState,
    Event,
    Grant,
    Internal,
    Issued,
    Origin,
    Pending,
    PublicKey,
    Renewal,
    RevocationReason,
)
from estserver.profiles import Profile
from estserver.revoking import Revocation
from estserver.spending import revoked
from estserver.steps import Steps, apart, change, look, read, walk, write
from estserver.store import Store, Transaction, certificates, revocations

__all__ = [
    "ABANDON_AFTER",
    "REPEAT_WINDOW",
    "EnrollmentRequest",
    "RegistrationAuthority",
]

REPEAT_WINDOW = timedelta(hours=24)
"""How long the same certificate and key get the same renewal; later it is a new one."""
ABANDON_AFTER = timedelta(hours=24)
"""An intent that could not be signed for so long is given up."""


class RegistrationAuthority:
    """Issues, approves, rejects, revokes, finds. Thread-safe; every method may block."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        profiles: Mapping[str, Profile],
        issuers: Mapping[str, Issuer],
        retry_after: timedelta = timedelta(seconds=60),
        *,
        holds: bool = False,
    ) -> None:
        self._store = store
        self._clock = clock
        self._profiles = profiles
        self._issuers = issuers
        self._retry_after = retry_after
        self._holds = holds
        self._superseded_until: dict[str, datetime] = {}
        self._holds_ended = 0
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
        return walk(self.enrolling(request), self._store)

    def enrolling(self, request: EnrollmentRequest, *, looks: int = 3) -> Steps[Issued | Pending]:
        """Return the steps of `enroll`, which looks that often for what came first."""
        reach("parsed")
        entitlement, csr = request.entitlement, request.csr
        authority = entitlement.authority
        if csr.spki_sha256 in self._own_keys:
            raise KeyNotAllowed("this key belongs to a certification authority: make a new key")
        known = yield from read(intents.known, (authority, csr.spki_sha256))
        if known and not self._is_over(known[0], request):
            answer = yield from self._answer(known[0], request.origin)
            if answer is not None:
                return answer
            if isinstance(authority, ACMEOrder):
                raise Conflict("nothing more comes of this order: make a new one")
        profile = self._rules(entitlement.profile)
        now = self._clock.now()
        plan = profile.plan(csr, entitlement.grant, now)
        reach("planned")
        draft = self._issuer(plan.issuer).prepare(plan) if entitlement.approved else None
        intent = intents.intend(
            request,
            plan,
            draft,
            now,
            earlier=sum(enrollment.authority_key == authority.key for enrollment in known),
            same_key=profile.settings.renewal.same_key,
        )
        try:
            enrollment = yield from write(intents.record, intent)
        except intents.AskedBefore as error:
            # Another request with the same key came first: its answer is ours too.
            if looks == 1:
                raise Fault("the database has this question, and no answer to it") from error
            return (yield from self.enrolling(request, looks=looks - 1))
        if draft is None:
            return Pending(enrollment.id, self._retry_after)
        reach("intent-committed")
        return (yield from self._sign_and_store(enrollment, draft, request.origin))

    def _is_over(self, earlier: Enrollment, request: EnrollmentRequest) -> bool:
        """Tell whether an earlier answer counts no more: those of renewals last a day."""
        if not isinstance(request.entitlement.authority, Renewal | Internal):
            return False
        return self._clock.now() - earlier.created_at > REPEAT_WINDOW

    def _answer(self, enrollment: Enrollment, origin: Origin) -> Steps[Issued | Pending | None]:
        """Say again what an enrollment led to, going on where it stands; None: nothing any more."""
        match enrollment.state:
            case EnrollmentState.PENDING:
                return Pending(enrollment.id, self._retry_after)
            case EnrollmentState.REJECTED:
                raise EnrollmentRejected(
                    f"an officer rejected this request: {enrollment.reason}",
                    values={"reason": enrollment.reason or ""},
                )
            case EnrollmentState.APPROVED:
                return (yield from self._issue_approved(enrollment, origin))
            case EnrollmentState.ISSUING | EnrollmentState.ISSUED:
                return (yield from self._finish_one(enrollment, origin))
            case EnrollmentState.ABANDONED:
                return None

    def _sign_and_store(
        self, enrollment: Enrollment, draft: Draft, origin: Origin
    ) -> Steps[Issued]:
        """Sign a committed draft, store the outcome, and return what is stored.

        Raises CertificateRefused: it was revoked before it was there.
        """

        def sign() -> bytes:
            return self._issuers[draft.issuer].sign(draft)

        quick = self._issuer(draft.issuer).quick
        der = sign() if quick else (yield from apart(sign))
        reach("signed")
        profile = self._profiles.get(enrollment.profile)
        notify = profile is not None and profile.settings.notices.issued
        signed = intents.Signed(enrollment, draft.serial, der, origin, notify)
        stored = yield from write(intents.put, signed)
        reach("stored")
        if stored.revoked is not None:
            raise revoked(stored.revoked)
        return Issued(enrollment.id, stored.der, repeated=stored.der != der)

    def _rules(self, profile: str) -> Profile:
        if profile not in self._profiles:
            raise Fault(f"the profile {profile} is not configured any more")
        return self._profiles[profile]

    def _issuer(self, name: str) -> Issuer:
        if name not in self._issuers:
            raise Fault(f"the key of issuer {name} is not at hand")
        return self._issuers[name]

    # -- what was left unfinished ---------------------------------------------------------------

    def finish(self, origin: Origin, *, older_than: timedelta = timedelta(0)) -> int:
        """Finish committed intents and approved enrollments; return how many were finished.

        Runs at start (everything) and every minute (what is older than a request can be).
        Raises Unavailable; one enrollment that fails does not keep the others from finishing.
        """
        now = self._clock.now()
        begun = self._store.read(
            lambda tx: certificates.unfinished(tx, created_before=now - older_than)
        )
        approved = self._store.read(certificates.approved)
        finished = 0
        failures: list[Fault] = []
        for identifier in [*begun, *(enrollment.id for enrollment in approved)]:
            try:
                answer = walk(self._answer(self.enrollment(identifier), origin), self._store)
                finished += isinstance(answer, Issued)
            except Refused:
                # Revoked or rejected by now: its row and the audit trail say why.
                continue
            except Fault as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return finished

    def _finish_one(self, enrollment: Enrollment, origin: Origin) -> Steps[Issued | None]:
        """Hand out the certificate of an intent, signing it first if need be.

        None: abandoned or expired. Raises CertificateRefused: revoked.
        """
        identifier = enrollment.id
        row, draft, der = yield from look(
            lambda tx: (
                certificates.certificate(tx, identifier),
                certificates.intent(tx, identifier),
                certificates.der(tx, identifier),
            )
        )
        if row is None:
            raise Fault(f"enrollment {identifier} lost its intent")
        state = row.state_at(self._clock.now())
        if state is CertificateState.REVOKED:
            raise revoked(row)
        if der is not None:
            expired = state is CertificateState.EXPIRED
            return None if expired else Issued(identifier, der, repeated=True)
        if draft is None:
            return None
        if self._clock.now() - row.created_at > ABANDON_AFTER:
            yield from change(lambda tx: intents.abandon(tx, identifier, origin))
            return None
        self._issuer(draft.issuer).require_leaf(draft)
        return (yield from self._sign_and_store(enrollment, draft, origin))

    # -- approval --------------------------------------------------------------------------------

    def approve(self, identifier: str, *, by: str, origin: Origin) -> Enrollment:
        """Let a pending enrollment be issued; the server signs at the next poll or tick.

        Raises NotFound, Conflict, RegistrationClosed.
        """
        enrollment = self.enrollment(identifier)
        self._store.write(lambda tx: approvals.approve(tx, enrollment, by, origin))
        return self.enrollment(identifier)

    def reject(self, identifier: str, *, reason: str, by: str, origin: Origin) -> Enrollment:
        """Refuse a pending enrollment for good and give its unit back.

        Raises NotFound, Conflict.
        """
        enrollment = self.enrollment(identifier)
        self._store.write(lambda tx: approvals.reject(tx, enrollment, reason, by, origin))
        return self.enrollment(identifier)

    def _issue_approved(
        self, enrollment: Enrollment, origin: Origin
    ) -> Steps[Issued | Pending | None]:
        profile = self._rules(enrollment.profile)
        public_key = cast("PublicKey", load_der_public_key(enrollment.spki))  # the wall checked it
        grant = Grant(enrollment.subject, frozenset(enrollment.names))
        plan = profile.plan_again(public_key, grant, self._clock.now())
        draft = self._issuer(plan.issuer).prepare(plan)
        begun = yield from change(
            lambda tx: approvals.begin_approved(tx, enrollment, plan, draft, origin)
        )
        if not begun:
            present = yield from look(lambda tx: certificates.enrollment(tx, enrollment.id))
            return (yield from self._answer(present or enrollment, origin))
        reach("intent-committed")
        return (yield from self._sign_and_store(enrollment, draft, origin))

    # -- revocation ------------------------------------------------------------------------------

    def revoke(
        self,
        identifier: str,
        *,
        reason: RevocationReason,
        comment: str | None,
        by: str,
        origin: Origin,
    ) -> CertificateRecord:
        """Revoke a certificate at once: for good, or put it on hold if that is the reason.

        `identifier` is the enrollment id. A compromised key is blocked for ever.
        Raises NotFound, Conflict (revoked before; not to be held), BadInput (there are no holds).
        """
        revocation = Revocation(reason, comment, by)
        if revocation.holds:
            revoking.require_holds(enabled=self._holds)
        self._store.write(lambda tx: revoking.revoke(tx, identifier, revocation, origin))
        return self.certificate(identifier)

    def release(
        self, identifier: str, *, comment: str | None, by: str, origin: Origin
    ) -> CertificateRecord:
        """End the hold of a certificate at once.

        Raises NotFound, Conflict (not on hold), BadInput (there are no holds).
        """
        revoking.require_holds(enabled=self._holds)
        return self._store.write(
            lambda tx: revoking.release(tx, identifier, comment=comment, by=by, origin=origin)
        )

    def revoke_superseded(self, origin: Origin) -> int:
        """Revoke what was renewed longer ago than its profile's overlap, where the profile says so.

        Never before the renewal was delivered: the overlap begins when it was issued.
        Returns how many were revoked.
        """
        count = 0
        ended = self._store.read(revocations.count_holds_ended)
        if ended != self._holds_ended:
            # What was passed over while it, or its renewal, was on hold is looked at again.
            self._superseded_until.clear()
            self._holds_ended = ended
        for profile in tuple(self._profiles.values()):
            renewal = profile.settings.renewal
            if not renewal.revoke_superseded:
                continue
            until = self._clock.now() - renewal.overlap
            done_until = self._superseded_until.get(profile.name)
            query = partial(
                certificates.superseded,
                profile=profile.name,
                renewed_before=until,
                # A renewal may have been signed a day after it was asked for.
                renewed_after=None if done_until is None else done_until - 2 * ABANDON_AFTER,
            )
            due = self._store.read(query)
            for identifier in due:
                # Another node may have been faster.
                with contextlib.suppress(Conflict):
                    self.revoke(
                        identifier,
                        reason=RevocationReason.SUPERSEDED,
                        comment="renewed",
                        by="server",
                        origin=origin,
                    )
                    count += 1
            self._superseded_until[profile.name] = until
        return count

    def record_refusal(self, applicant: str, error: Refused, origin: Origin) -> None:
        """Record that an identified applicant was refused. Raises Unavailable."""
        event = Event(
            "enrollment.refused", applicant, applicant, {"code": error.code, "detail": error.detail}
        )
        self._store.write(lambda tx: tx.audit(event, origin))

    # -- finding ---------------------------------------------------------------------------------

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

    def certificate(self, identifier: str) -> CertificateRecord:
        """Return the row of an enrollment's certificate. Raises NotFound: there is none."""
        record = self._store.read(lambda tx: certificates.certificate(tx, identifier))
        if record is None:
            raise NotFound("there is no such certificate")
        return record

    def issuer_of(self, profile: str) -> str:
        """Name the issuer that a profile has now. Raises Fault: there is no such profile."""
        return self._rules(profile).settings.issuer
