"""The street from an entitlement to a certificate: once, the same again, finished after a fall."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from estserver import failpoints
from estserver.authentication import CertificateCredential, ConfirmedPIN, PINCredential
from estserver.ca.issuer import Issuer
from estserver.csr import CSR
from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    CertificateRefused,
    Conflict,
    EnrollmentRejected,
    Fault,
    IdentityMismatch,
    KeyNotAllowed,
    NamesNotAllowed,
    NotFound,
    NotReleased,
    Refused,
    RegistrationClosed,
    Unavailable,
)
from estserver.invitations import Handover
from estserver.model import (
    CertificateState,
    Door,
    Draft,
    EnrollmentState,
    Entitlement,
    InvitationState,
    Issued,
    Pending,
    RevocationReason,
    Via,
)
from estserver.ra import ABANDON_AFTER, REPEAT_WINDOW, RegistrationAuthority
from estserver.store import (
    Transaction,
    audit_checks,
    certificates,
    outbox,
    registrations,
    revocations,
)
from estserver.store.tables import audit_events, certificate_bytes, enrollments
from estserver.store.tables import certificates as certificate_rows
from tests.live import Key, new_key
from tests.parts import ORIGIN, SOURCE, Hierarchy, Parts, csr_like, csr_of, exactly, with_rules

MakeParts = Callable[..., Parts]
TICK = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _unarmed() -> Iterator[None]:
    failpoints.disarm()
    yield
    failpoints.disarm()


@pytest.fixture
def parts(make_parts: MakeParts) -> Iterator[Parts]:
    """Return a core, and judge its database after the test."""
    made = make_parts()
    yield made
    judge(made)


@pytest.fixture
def both(make_database: Callable[[], str], make_parts: MakeParts) -> Iterator[Parts]:
    """The same on SQLite and on PostgreSQL."""
    made = make_parts(make_database())
    yield made
    judge(made)


def judge(parts: Parts) -> None:
    def look(tx: Transaction) -> list[str]:
        return list(audit_checks.broken_links(tx.connection))

    assert parts.store.read(look) == []
    row_of = certificate_rows.c.enrollment
    joined = (
        sa.select(certificate_rows, certificate_bytes, enrollments.c.state.label("asked"))
        .join(certificate_bytes, certificate_bytes.c.enrollment == row_of)
        .join(enrollments, enrollments.c.id == row_of)
    )
    for row in parts.store.read(lambda tx: tx.connection.execute(joined).all()):
        assert (row.der is None) == (row.sha256 is None)
        if row.der is not None:
            der = bytes(row.der)
            assert hashlib.sha256(der).digest() == bytes(row.sha256)
            assert x509.load_der_x509_certificate(der).tbs_certificate_bytes == bytes(row.tbs)
            assert row.state in {"valid", "revoked"}
            assert row.asked == "issued"
        else:
            assert row.state in {"issuing", "abandoned", "revoked"}


def used(parts: Parts, handover: Handover) -> int:
    return parts.invitations.get(handover.invitation.number).units_used


def events(parts: Parts) -> list[str]:
    query = sa.select(audit_events.c.event).order_by(audit_events.c.id)
    return list(parts.store.read(lambda tx: tx.connection.execute(query).scalars().all()))


def count(parts: Parts) -> int:
    query = sa.select(sa.func.count()).select_from(certificate_rows)
    number: int = parts.store.read(lambda tx: tx.connection.execute(query).scalar_one())
    return number


def confirmed(parts: Parts, handover: Handover) -> ConfirmedPIN:
    invitation = parts.invitations.get(handover.invitation.number)
    return ConfirmedPIN(invitation.number, invitation.pin_generation)


def revoke(
    parts: Parts, issued: Issued, reason: RevocationReason = RevocationReason.UNSPECIFIED
) -> None:
    parts.ra.revoke(issued.enrollment, reason=reason, comment=None, by="test", origin=ORIGIN)


def state(parts: Parts, identifier: str) -> CertificateState:
    record = parts.store.read(lambda tx: certificates.certificate(tx, identifier))
    assert record is not None
    return record.state


# -- one authority, one certificate, many deliveries ---------------------------------------------


@pytest.mark.row("EST-062", "EST-071", "A-5")
def test_the_same_key_gets_the_same_certificate_byte_for_byte(both: Parts) -> None:
    handover, key = both.invite(), new_key()
    first = both.enroll(handover, key)
    again = both.enroll(handover, key)
    assert (first.repeated, again.repeated) == (False, True)
    assert (first.der, first.enrollment) == (again.der, again.enrollment)
    assert (used(both, handover), count(both)) == (1, 1)
    assert events(both).count("certificate.issued") == 1


@pytest.mark.row("EST-062", "EST-122")
def test_the_same_answer_comes_from_another_process_and_after_expiry(both: Parts) -> None:
    handover, key = both.invite(), new_key()
    first = both.enroll(handover, key)
    both.clock.advance(timedelta(days=60))
    other = both.another()
    with closing(other.store):
        assert other.enroll(handover, key).der == first.der


@pytest.mark.row("EST-063", "A-5")
def test_another_key_under_a_spent_pin_is_refused(both: Parts) -> None:
    handover = both.invite()
    both.enroll(handover)
    with pytest.raises(AlreadyIssued):
        both.enroll(handover)
    assert count(both) == 1


@pytest.mark.row("EST-061", "A-35", "INC-27")
def test_twenty_threads_and_two_stores_share_one_pin_and_one_gets_it(both: Parts) -> None:
    handover = both.invite()
    other = both.another()
    with closing(other.store):
        entitlement = both.entitle(handover)

        def ask(number: int) -> Issued | Pending | Refused:
            try:
                return (both, other)[number % 2].ask(entitlement, csr_of())
            except Refused as refusal:
                return refusal

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(ask, range(20)))
    assert sum(isinstance(answer, Issued) for answer in answers) == 1
    assert sum(isinstance(answer, AlreadyIssued) for answer in answers) == 19
    assert (used(both, handover), count(both)) == (1, 1)


@pytest.mark.row("EST-061", "EST-062")
def test_twenty_threads_with_one_key_get_one_certificate(both: Parts) -> None:
    handover, csr = both.invite(units=5), csr_of()
    other = both.another()
    with closing(other.store):
        entitlement = both.entitle(handover)
        with ThreadPoolExecutor(20) as pool:
            answers = list(
                pool.map(lambda n: (both, other)[n % 2].ask(entitlement, csr), range(20))
            )
    assert len({answer.der for answer in answers if isinstance(answer, Issued)}) == 1
    assert (used(both, handover), count(both)) == (1, 1)


def test_an_invitation_grants_as_many_keys_as_it_has_units(both: Parts) -> None:
    handover = both.invite(units=3)
    entitlement = both.entitle(handover)

    def ask(_: int) -> bool:
        try:
            return isinstance(both.ask(entitlement, csr_of()), Issued)
        except AlreadyIssued:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(12))) == 3
    assert (used(both, handover), count(both)) == (3, 3)


def test_revocation_gives_no_unit_back(parts: Parts) -> None:
    handover, key = parts.invite(), new_key()
    revoke(parts, parts.enroll(handover, key))
    with pytest.raises(CertificateRefused, match="is revoked"):
        parts.enroll(handover, key)
    with pytest.raises(AlreadyIssued):
        parts.enroll(handover)


def test_an_expired_certificate_is_not_handed_out_again(make_parts: MakeParts) -> None:
    parts = make_parts(settings=with_rules("device", validity="1d"))
    handover, key = parts.invite(units=2), new_key()
    first = parts.enroll(handover, key)
    parts.clock.advance(timedelta(days=2))
    second = parts.enroll(handover, key)
    assert second.der != first.der
    assert used(parts, handover) == 2


# -- what ends an authority ------------------------------------------------------------------


@pytest.mark.row("EST-058")
def test_an_expired_pin_issues_nothing_but_what_it_issued(parts: Parts) -> None:
    handover = parts.invite(expires=timedelta(days=1))
    parts.clock.advance(timedelta(days=1) - TICK)
    parts.entitle(handover)
    parts.clock.advance(TICK)
    with pytest.raises(BadCredentials) as refused:
        parts.enroll(handover)
    assert refused.value.reason == "expired"
    assert count(parts) == 0


def test_a_cancelled_registration_issues_nothing_even_once_entitled(parts: Parts) -> None:
    handover, key = parts.invite(units=2), new_key()
    parts.enroll(handover, key)
    entitlement = parts.entitle(handover)
    parts.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    with pytest.raises(RegistrationClosed):
        parts.ask(entitlement, csr_of())
    with pytest.raises(RegistrationClosed):
        parts.enroll(handover, key)
    assert count(parts) == 1


def test_a_registration_on_hold_issues_once_released(parts: Parts) -> None:
    handover = parts.invite(hold=True)
    with pytest.raises(NotReleased):
        parts.entitle(handover)
    parts.invitations.release(handover.invitation.number, by="test", origin=ORIGIN)
    entitlement = parts.entitle(handover)
    parts.enroll(handover)
    with pytest.raises(AlreadyIssued):
        parts.ask(entitlement, csr_of())


def test_a_registration_put_on_hold_after_judging_issues_nothing(parts: Parts) -> None:
    handover = parts.invite(hold=True)
    parts.invitations.release(handover.invitation.number, by="test", origin=ORIGIN)
    entitlement = parts.entitle(handover)

    def hold(tx: Transaction) -> bool:
        number = handover.invitation.number
        return registrations.set_state(tx, number, before=None, to=InvitationState.HELD)

    assert parts.store.write(hold)
    with pytest.raises(NotReleased):
        parts.ask(entitlement, csr_of())


@pytest.fixture(scope="module")
def big_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _blocked(parts: Parts, key: Key) -> None:
    revoke(parts, parts.enroll(parts.invite(), key), RevocationReason.KEY_COMPROMISE)


def _certified(parts: Parts, key: Key) -> None:
    parts.enroll(parts.invite(), key)


REFUSALS: dict[str, tuple[type[Refused], str, dict[str, Any], Any]] = {
    "another name": (NamesNotAllowed, "", {"subject": "other"}, None),
    "another SAN": (NamesNotAllowed, "", {"names": (x509.DNSName("x.example.ac.jp"),)}, None),
    "not exact": (IdentityMismatch, "exact", {}, None),
    "key type": (KeyNotAllowed, "rsa", {}, None),
    "compromised key": (KeyNotAllowed, "", {}, _blocked),
    "another's key": (KeyNotAllowed, "", {}, _certified),
    "CA key": (KeyNotAllowed, "ca", {}, None),
    "root key": (KeyNotAllowed, "root", {}, None),
}


@pytest.mark.row("EST-060", "INC-6")
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refused_csr_spends_nothing(
    make_parts: MakeParts, ca: Hierarchy, big_key: rsa.RSAPrivateKey, refusal: str
) -> None:
    parts = make_parts(settings=with_rules("device", keys=("ec-p256",)))
    kind, how, names, prepare = REFUSALS[refusal]
    keys: dict[str, Any] = {"rsa": big_key, "ca": ca.issuing.key, "root": ca.root.key}
    key = keys.get(how) or new_key()
    if prepare is not None:
        prepare(parts, key)
    before = count(parts)
    handover = parts.invite()
    entitlement = parts.entitle(handover)
    if how == "exact":
        entitlement = exactly(entitlement)
    with pytest.raises(kind):
        parts.ask(entitlement, csr_of(key, **names))
    assert (used(parts, handover), count(parts)) == (0, before)
    parts.enroll(handover)
    assert used(parts, handover) == 1


@pytest.mark.row("A-10", "EST-138")
def test_a_compromised_key_is_blocked_for_ever_for_everybody(parts: Parts) -> None:
    handover, key = parts.invite(units=5), new_key()
    issued = parts.enroll(handover, key)
    parts.clock.advance(timedelta(days=300))
    revoke(parts, issued, RevocationReason.KEY_COMPROMISE)
    parts.clock.advance(timedelta(days=300))
    for other in (parts.invite(), parts.invite("server")):
        with pytest.raises(KeyNotAllowed, match="compromised"):
            parts.enroll(other, key)


def test_a_key_revoked_for_another_reason_is_not_blocked(make_parts: MakeParts) -> None:
    parts = make_parts(settings=with_rules("device", validity="1d"))
    handover, key = parts.invite(units=2), new_key()
    revoke(parts, parts.enroll(handover, key), RevocationReason.CESSATION_OF_OPERATION)
    parts.clock.advance(timedelta(days=2))
    with pytest.raises(CertificateRefused):
        parts.enroll(handover, key)


@pytest.mark.row("A-10", "EST-138")
def test_a_key_certified_for_another_registration_is_refused(parts: Parts) -> None:
    key = new_key()
    parts.enroll(parts.invite(), key)
    with pytest.raises(KeyNotAllowed, match="another registration"):
        parts.enroll(parts.invite(), key)


# -- approval ------------------------------------------------------------------


def pending(parts: Parts, handover: Handover, csr: CSR) -> str:
    answer = parts.ask(parts.entitle(handover), csr)
    assert isinstance(answer, Pending)
    assert answer.retry_after == timedelta(seconds=60)
    return answer.enrollment


@pytest.mark.row("EST-120", "EST-121", "EST-112", "EST-122", "EST-124")
def test_a_request_that_needs_approval_waits_and_is_issued_at_the_next_poll(both: Parts) -> None:
    handover, key = both.invite(approval=True), new_key()
    identifier = pending(both, handover, csr_of(key))
    # The same key asks with another CSR: the same pending row, the same unit.
    assert pending(both, handover, csr_of(key, subject="printer-17")) == identifier
    assert (used(both, handover), count(both)) == (1, 0)
    approved = both.ra.approve(identifier, by="officer", origin=ORIGIN)
    assert (approved.state, approved.decided_by) == (EnrollmentState.APPROVED, "officer")
    assert count(both) == 0
    issued = both.enroll(handover, key)
    assert issued.enrollment == identifier
    assert both.enroll(handover, key).der == issued.der
    assert used(both, handover) == 1
    assert [name for name in events(both) if name.startswith("enrollment")] == [
        "enrollment.pending",
        "enrollment.approved",
    ]


def test_an_approved_request_is_signed_by_the_tick_too(parts: Parts) -> None:
    handover, key = parts.invite(approval=True), new_key()
    identifier = pending(parts, handover, csr_of(key))
    parts.ra.approve(identifier, by="officer", origin=ORIGIN)
    assert parts.ra.finish(ORIGIN, older_than=timedelta(seconds=60)) == 1
    assert parts.ra.finish(ORIGIN) == 0
    assert state(parts, identifier) is CertificateState.VALID
    assert parts.enroll(handover, key).enrollment == identifier


def test_polling_and_the_tick_at_once_sign_one_draft(both: Parts) -> None:
    handover, key = both.invite(approval=True), new_key()
    identifier = pending(both, handover, csr_of(key))
    both.ra.approve(identifier, by="officer", origin=ORIGIN)
    other = both.another()
    with closing(other.store):

        def go(number: int) -> bytes | None:
            if number % 3 == 0:
                (both, other)[number % 2].ra.finish(ORIGIN)
                return None
            return (both, other)[number % 2].enroll(handover, key).der

        with ThreadPoolExecutor(9) as pool:
            ders = {der for der in pool.map(go, range(9)) if der is not None}
    assert len(ders) == 1
    assert count(both) == 1


@pytest.mark.row("EST-121")
def test_a_rejected_key_hears_the_reason_and_another_key_may_ask(both: Parts) -> None:
    handover, key = both.invite(approval=True), new_key()
    identifier = pending(both, handover, csr_of(key))
    both.ra.reject(identifier, reason="not on the list", by="officer", origin=ORIGIN)
    assert used(both, handover) == 0
    for _ in range(2):
        with pytest.raises(EnrollmentRejected, match="not on the list"):
            both.enroll(handover, key)
    assert pending(both, handover, csr_of()) != identifier
    assert used(both, handover) == 1


def test_what_is_decided_stays_decided(parts: Parts) -> None:
    handover = parts.invite(approval=True, units=3)
    rejected, approved = (pending(parts, handover, csr_of()) for _ in range(2))
    parts.ra.reject(rejected, reason="no", by="a", origin=ORIGIN)
    parts.ra.approve(approved, by="a", origin=ORIGIN)
    for identifier in (rejected, approved):
        with pytest.raises(Conflict):
            parts.ra.approve(identifier, by="b", origin=ORIGIN)
        with pytest.raises(Conflict):
            parts.ra.reject(identifier, reason="x", by="b", origin=ORIGIN)
    assert used(parts, handover) == 1
    with pytest.raises(NotFound):
        parts.ra.approve("nothing", by="b", origin=ORIGIN)


@pytest.mark.row("EST-123")
def test_a_pending_request_is_not_matched_by_another_registration(parts: Parts) -> None:
    key = new_key()
    one = pending(parts, parts.invite(approval=True), csr_of(key))
    two = pending(parts, parts.invite(approval=True), csr_of(key))
    assert one != two
    parts.ra.approve(one, by="officer", origin=ORIGIN)
    parts.ra.approve(two, by="officer", origin=ORIGIN)
    # Both asked when the key was free; the one signed second finds it taken.
    assert parts.ra.finish(ORIGIN) == 1
    assert parts.ra.enrollment(two).state is EnrollmentState.REJECTED
    assert "another registration" in (parts.ra.enrollment(two).reason or "")


@pytest.mark.row("INC-17")
def test_an_approved_request_of_a_cancelled_registration_is_not_signed(both: Parts) -> None:
    handover, key = both.invite(approval=True), new_key()
    identifier = pending(both, handover, csr_of(key))
    both.ra.approve(identifier, by="officer", origin=ORIGIN)
    both.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    assert both.ra.finish(ORIGIN) == 0
    assert both.ra.finish(ORIGIN) == 0
    assert (both.ra.enrollment(identifier).state, count(both)) == (EnrollmentState.REJECTED, 0)
    late = both.invite(approval=True)
    waiting = pending(both, late, csr_of())
    both.invitations.cancel(late.invitation.number, by="test", origin=ORIGIN)
    with pytest.raises(RegistrationClosed):
        both.ra.approve(waiting, by="officer", origin=ORIGIN)
    both.ra.reject(waiting, reason="gone", by="officer", origin=ORIGIN)


def test_a_key_blocked_while_it_waited_is_not_signed(parts: Parts) -> None:
    handover, key = parts.invite(approval=True), new_key()
    identifier = pending(parts, handover, csr_of(key))
    parts.ra.approve(identifier, by="officer", origin=ORIGIN)
    digest = csr_of(key).spki_sha256
    parts.store.write(lambda tx: revocations.block_key(tx, digest, "keyCompromise"))
    with pytest.raises(EnrollmentRejected, match="compromised"):
        parts.enroll(handover, key)
    assert (used(parts, handover), count(parts)) == (0, 0)


# -- renewal ------------------------------------------------------------------


@pytest.mark.row("EST-127", "EST-128", "EST-139")
def test_a_renewal_is_the_same_for_a_day_and_then_a_new_one(both: Parts) -> None:
    handover = both.invite()
    held, key = both.enroll(handover), new_key()
    renewed = both.renew(held, key)
    assert renewed.der != held.der
    both.clock.advance(REPEAT_WINDOW)
    assert both.renew(held, key).der == renewed.der
    both.clock.advance(timedelta(minutes=1))
    later = both.renew(held, key)
    assert later.der not in {renewed.der, held.der}
    assert used(both, handover) == 1
    assert state(both, held.enrollment) is CertificateState.VALID


def test_twenty_renewals_at_once_with_one_key_are_one(both: Parts) -> None:
    held, key = both.enroll(both.invite()), new_key()
    other = both.another()
    with closing(other.store), ThreadPoolExecutor(10) as pool:
        ders = set(pool.map(lambda n: (both, other)[n % 2].renew(held, key).der, range(20)))
    assert len(ders) == 1
    assert count(both) == 2


def test_a_renewal_with_the_same_key_follows_the_profile(make_parts: MakeParts) -> None:
    key = new_key()
    parts = make_parts()
    held = parts.enroll(parts.invite(), key)
    renewed = parts.renew(held, key)
    assert renewed.der != held.der
    strict = parts.another(device={"renewal": {"same_key": False}})
    with closing(strict.store):
        for certificate in (held, renewed):
            strict.clock.advance(REPEAT_WINDOW + TICK)
            with pytest.raises(KeyNotAllowed, match="new key"):
                strict.renew(certificate, key)
        fresh = new_key()
        newest = strict.renew(renewed, fresh)
        # Not the key before the last one either.
        with pytest.raises(KeyNotAllowed, match="new key"):
            strict.renew(newest, key)


@pytest.mark.row("INC-1", "EST-135")
def test_what_is_revoked_after_judging_is_not_renewed(both: Parts) -> None:
    held = both.enroll(both.invite())
    entitlement = both.authenticator.renew(CertificateCredential(held.der))
    revoke(both, held)
    with pytest.raises(CertificateRefused):
        both.ask(entitlement, csr_like(held.der), Via.RENEWAL)
    assert count(both) == 1


@pytest.mark.row("INC-17", "INC-3")
def test_what_is_cancelled_after_judging_is_not_renewed(both: Parts) -> None:
    handover = both.invite()
    held = both.enroll(handover)
    entitlement = both.authenticator.renew(CertificateCredential(held.der))
    both.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    with pytest.raises(RegistrationClosed):
        both.ask(entitlement, csr_like(held.der), Via.RENEWAL)
    assert count(both) == 1


@pytest.mark.row("EST-129")
def test_a_renewal_with_other_names_is_refused(parts: Parts) -> None:
    held = parts.enroll(parts.invite())
    entitlement = parts.authenticator.renew(CertificateCredential(held.der))
    with pytest.raises(IdentityMismatch):
        parts.ask(entitlement, csr_of(), Via.RENEWAL)
    assert count(parts) == 1


def new_pin(parts: Parts, handover: Handover) -> Handover:
    number = handover.invitation.number
    return parts.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN)


@pytest.mark.row("EST-136", "SEED-10")
def test_a_renewal_pin_renews_once_and_its_lost_answer_is_found_again(both: Parts) -> None:
    first = both.invite()
    held = both.enroll(first)
    both.clock.advance(timedelta(days=400))
    second = new_pin(both, first)
    with pytest.raises(BadCredentials):
        both.entitle(first)
    key = new_key()
    renewed = both.enroll(second, key)
    assert both.ra.enrollment(renewed.enrollment).renews == held.enrollment
    assert both.enroll(second, key).der == renewed.der
    both.clock.advance(timedelta(days=3))
    assert both.enroll(second, key).der == renewed.der
    with pytest.raises(AlreadyIssued):
        both.enroll(second)
    assert used(both, first) == 1
    assert count(both) == 2


def test_a_renewal_pin_renews_the_same_key_too(parts: Parts) -> None:
    first, key = parts.invite(), new_key()
    held = parts.enroll(first, key)
    second = new_pin(parts, first)
    renewed = parts.enroll(second, key)
    assert renewed.der != held.der
    assert parts.enroll(second, key).der == renewed.der


def test_twenty_keys_share_one_renewal_pin_and_one_gets_it(both: Parts) -> None:
    first = both.invite()
    both.enroll(first)
    second = new_pin(both, first)
    entitlement = both.entitle(second)

    def ask(_: int) -> bool:
        try:
            return isinstance(both.ask(entitlement, csr_of()), Issued)
        except AlreadyIssued:
            return False

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(ask, range(20))) == 1


def test_an_expired_renewal_pin_says_so(parts: Parts) -> None:
    first = parts.invite()
    parts.enroll(first)
    second = new_pin(parts, first)
    parts.clock.advance(timedelta(days=31))
    with pytest.raises(BadCredentials) as refused:
        parts.enroll(second)
    assert refused.value.reason == "expired"


def test_a_renewal_pin_makes_good_for_a_revoked_certificate(parts: Parts) -> None:
    first = parts.invite()
    revoke(parts, parts.enroll(first), RevocationReason.KEY_COMPROMISE)
    assert parts.enroll(new_pin(parts, first)).der


# -- replacement ------------------------------------------------------------------


def test_a_lost_key_is_replaced_once_and_the_first_certificate_revoked(both: Parts) -> None:
    handover = both.invite("person", doors=frozenset({Door.WEB}))
    number = handover.invitation.number
    lost = both.ask(both.authenticator.entitle(confirmed(both, handover)), csr_of())
    both.clock.advance(timedelta(hours=72) - timedelta(minutes=1))
    entitlement = both.authenticator.replacement(confirmed(both, handover))
    csr = csr_of()
    replaced = both.ask(entitlement, csr, Via.WEB)
    assert isinstance(replaced, Issued)
    assert state(both, lost.enrollment) is CertificateState.REVOKED
    record = both.store.read(lambda tx: certificates.certificate(tx, lost.enrollment))
    assert record is not None
    assert record.reason is RevocationReason.SUPERSEDED
    letters = both.store.read(lambda tx: outbox.of_invitation(tx, number))
    assert [letter.template for letter in letters].count("replaced") == 1
    assert "certificate.replaced" in events(both)
    # The lost answer is found again, by whichever entitlement it is asked for.
    assert both.ask(entitlement, csr, Via.WEB) == replace(replaced, repeated=True)
    entitled = both.authenticator.entitle(confirmed(both, handover))
    assert both.ask(entitled, csr, Via.WEB) == replace(replaced, repeated=True)
    with pytest.raises(Conflict):
        both.authenticator.replacement(confirmed(both, handover))
    with pytest.raises(Conflict):
        both.ask(entitlement, csr_of(), Via.WEB)
    assert used(both, handover) == 1
    assert count(both) == 2


def test_ten_replacements_at_once_are_one(both: Parts) -> None:
    handover = both.invite("person")
    both.ask(both.authenticator.entitle(confirmed(both, handover)), csr_of())
    entitlement = both.authenticator.replacement(confirmed(both, handover))

    def ask(_: int) -> bool:
        try:
            return isinstance(both.ask(entitlement, csr_of(), Via.WEB), Issued)
        except Conflict:
            return False

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(ask, range(10))) == 1


def test_replacement_ends_after_its_time(parts: Parts) -> None:
    handover = parts.invite("person")
    with pytest.raises(Conflict, match="no valid certificate"):
        parts.authenticator.replacement(confirmed(parts, handover))
    parts.ask(parts.authenticator.entitle(confirmed(parts, handover)), csr_of())
    parts.clock.advance(timedelta(hours=72, seconds=2))
    with pytest.raises(Conflict, match="time"):
        parts.authenticator.replacement(confirmed(parts, handover))


def test_what_is_revoked_after_judging_is_not_replaced(parts: Parts) -> None:
    handover = parts.invite("person")
    lost = parts.ask(parts.authenticator.entitle(confirmed(parts, handover)), csr_of())
    assert isinstance(lost, Issued)
    entitlement = parts.authenticator.replacement(confirmed(parts, handover))
    revoke(parts, lost)
    with pytest.raises(CertificateRefused):
        parts.ask(entitlement, csr_of(), Via.WEB)
    assert not parts.invitations.get(handover.invitation.number).replaced


# -- falling and getting up ------------------------------------------------------------------


def tbs_of(parts: Parts) -> list[bytes]:
    query = sa.select(certificate_bytes.c.tbs).order_by(certificate_bytes.c.enrollment)
    found = parts.store.read(lambda tx: tx.connection.execute(query).scalars().all())
    return [bytes(tbs) for tbs in found]


@pytest.mark.row("INC-25", "EST-064", "EST-125")
@pytest.mark.parametrize("name", ["parsed", "planned", "intent-committed", "signed", "stored"])
@pytest.mark.parametrize("by", ["finish", "retry", "another process"])
def test_after_a_fall_at_any_step_the_draft_that_was_committed_is_finished(
    both: Parts, name: str, by: str
) -> None:
    handover, key = both.invite(), new_key()
    failpoints.arm(f"{name}:1:raise")
    with pytest.raises(Fault, match=f"failpoint {name}"):
        both.enroll(handover, key)
    committed = tbs_of(both)
    begun = name in {"intent-committed", "signed", "stored"}
    assert (len(committed), used(both, handover)) == (int(begun), int(begun))
    if by == "finish":
        assert both.ra.finish(ORIGIN) == int(name in {"intent-committed", "signed"})
        assert both.ra.finish(ORIGIN) == 0
    if by == "another process":
        other = both.another()
        with closing(other.store):
            issued = other.enroll(handover, key)
    else:
        issued = both.enroll(handover, key)
    certificate = x509.load_der_x509_certificate(issued.der)
    if begun:
        assert [certificate.tbs_certificate_bytes] == committed
    assert both.enroll(handover, key).der == issued.der
    assert (used(both, handover), count(both)) == (1, 1)


@pytest.mark.parametrize("name", ["intent-committed", "signed", "stored"])
def test_a_renewal_by_pin_survives_a_fall(parts: Parts, name: str) -> None:
    first = parts.invite()
    parts.enroll(first)
    second, key = new_pin(parts, first), new_key()
    failpoints.arm(f"{name}:1:raise")
    with pytest.raises(Fault):
        parts.enroll(second, key)
    assert parts.enroll(second, key).der == parts.enroll(second, key).der
    assert count(parts) == 2


@pytest.mark.parametrize("name", ["intent-committed", "signed", "stored"])
def test_an_approved_request_survives_a_fall(parts: Parts, name: str) -> None:
    handover, key = parts.invite(approval=True), new_key()
    identifier = pending(parts, handover, csr_of(key))
    parts.ra.approve(identifier, by="officer", origin=ORIGIN)
    failpoints.arm(f"{name}:1:raise")
    with pytest.raises(Fault):
        parts.ra.finish(ORIGIN)
    committed = tbs_of(parts)
    parts.ra.finish(ORIGIN)
    certificate = x509.load_der_x509_certificate(parts.enroll(handover, key).der)
    assert [certificate.tbs_certificate_bytes] == committed


def test_finish_leaves_young_intents_to_their_requests(parts: Parts) -> None:
    handover = parts.invite()
    failpoints.arm("intent-committed:1:raise")
    with pytest.raises(Fault):
        parts.enroll(handover)
    minute = timedelta(seconds=60)
    assert parts.ra.finish(ORIGIN, older_than=minute) == 0
    parts.clock.advance(minute + TICK)
    assert parts.ra.finish(ORIGIN, older_than=minute) == 1


def test_an_intent_that_cannot_be_signed_is_given_up_and_its_unit_comes_back(both: Parts) -> None:
    handover, key = both.invite(), new_key()
    failpoints.arm("intent-committed:1:raise")
    with pytest.raises(Fault):
        both.enroll(handover, key)
    (given_up,) = both.ra.of_invitation(handover.invitation.number)
    both.clock.advance(ABANDON_AFTER + TICK)
    assert both.ra.finish(ORIGIN) == 0
    assert state(both, given_up[0].id) is CertificateState.ABANDONED
    assert both.ra.enrollment(given_up[0].id).state is EnrollmentState.ABANDONED
    assert used(both, handover) == 0
    issued = both.enroll(handover, key)
    assert issued.enrollment != given_up[0].id
    assert used(both, handover) == 1
    # Its serial stays taken and can still be revoked.
    serials = both.store.read(
        lambda tx: tx.connection.execute(sa.select(certificate_rows.c.serial)).scalars().all()
    )
    assert len(set(serials)) == 2
    both.ra.revoke(
        given_up[0].id,
        reason=RevocationReason.UNSPECIFIED,
        comment=None,
        by="test",
        origin=ORIGIN,
    )


def test_a_retry_a_day_later_gives_up_and_issues_anew(parts: Parts) -> None:
    handover, key = parts.invite(), new_key()
    failpoints.arm("signed:1:raise")
    with pytest.raises(Fault):
        parts.enroll(handover, key)
    (before,) = tbs_of(parts)
    parts.clock.advance(ABANDON_AFTER + TICK)
    issued = parts.enroll(handover, key)
    assert x509.load_der_x509_certificate(issued.der).tbs_certificate_bytes != before


class Interfering(Issuer):
    """An issuer during whose signature something else happens."""

    then: Callable[[], object] = staticmethod(lambda: None)

    def sign(self, draft: Draft) -> bytes:
        der = super().sign(draft)
        self.then()
        return der


@pytest.fixture
def interfering(parts: Parts) -> tuple[RegistrationAuthority, Interfering]:
    """Return a registration authority over `parts` and its issuer."""
    issuer = Interfering("issuing", parts.ca.chain, parts.ca.issuing.key, parts.issuer.urls)
    return (
        RegistrationAuthority(parts.store, parts.clock, parts.profiles, {"issuing": issuer}),
        issuer,
    )


def ask(ra: RegistrationAuthority, parts: Parts, handover: Handover, key: Key) -> Issued | Pending:
    return replace(parts, ra=ra).ask(parts.entitle(handover), csr_of(key))


def only(parts: Parts, handover: Handover) -> str:
    ((enrollment, _),) = parts.ra.of_invitation(handover.invitation.number)
    return enrollment.id


@pytest.mark.row("INC-33")
@pytest.mark.parametrize("reason", [RevocationReason.UNSPECIFIED, RevocationReason.KEY_COMPROMISE])
def test_what_is_revoked_between_intent_and_signature_stays_revoked(
    parts: Parts, interfering: tuple[RegistrationAuthority, Interfering], reason: RevocationReason
) -> None:
    ra, issuer = interfering
    handover, key = parts.invite(), new_key()
    issuer.then = lambda: parts.ra.revoke(
        only(parts, handover), reason=reason, comment=None, by="test", origin=ORIGIN
    )
    with pytest.raises(CertificateRefused, match="revoked"):
        ask(ra, parts, handover, key)
    identifier = only(parts, handover)
    assert state(parts, identifier) is CertificateState.REVOKED
    with pytest.raises(CertificateRefused, match="revoked"):
        parts.enroll(handover, key)
    assert parts.ra.finish(ORIGIN) == 0
    assert state(parts, identifier) is CertificateState.REVOKED


def test_an_intent_that_is_revoked_is_never_signed(parts: Parts) -> None:
    handover, key = parts.invite(units=2), new_key()
    failpoints.arm("intent-committed:1:raise")
    with pytest.raises(Fault):
        parts.enroll(handover, key)
    parts.ra.revoke(
        only(parts, handover),
        reason=RevocationReason.UNSPECIFIED,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    assert parts.ra.finish(ORIGIN) == 0
    # Neither finished nor quietly issued anew out of another unit.
    with pytest.raises(CertificateRefused, match="revoked"):
        parts.enroll(handover, key)
    assert (used(parts, handover), count(parts)) == (1, 1)


def test_what_is_given_up_while_it_is_signed_is_not_handed_out(
    parts: Parts, interfering: tuple[RegistrationAuthority, Interfering]
) -> None:
    ra, issuer = interfering
    handover, key = parts.invite(), new_key()

    def a_day_later() -> None:
        parts.clock.advance(ABANDON_AFTER + TICK)
        parts.ra.finish(ORIGIN)

    issuer.then = a_day_later
    with pytest.raises(Fault, match="abandoned"):
        ask(ra, parts, handover, key)
    assert state(parts, only(parts, handover)) is CertificateState.ABANDONED
    assert used(parts, handover) == 0


@pytest.mark.row("EST-125", "INC-27")
def test_a_signer_that_fails_half_issues_nothing_and_works_again(
    parts: Parts, interfering: tuple[RegistrationAuthority, Interfering]
) -> None:
    ra, issuer = interfering
    handover, key = parts.invite(), new_key()
    calls = []

    def fail() -> None:
        calls.append(1)
        if len(calls) < 4:
            raise Fault("the HSM is gone")

    issuer.then = fail
    for _ in range(2):
        with pytest.raises(Fault, match="HSM"):
            ask(ra, parts, handover, key)
    with pytest.raises(Fault, match="HSM"):
        ra.finish(ORIGIN)
    assert state(parts, only(parts, handover)) is CertificateState.ISSUING
    (committed,) = tbs_of(parts)
    answer = ask(ra, parts, handover, key)
    assert isinstance(answer, Issued)
    assert x509.load_der_x509_certificate(answer.der).tbs_certificate_bytes == committed
    assert len(calls) == 4


def test_one_intent_that_fails_does_not_keep_others_from_finishing(
    parts: Parts, interfering: tuple[RegistrationAuthority, Interfering]
) -> None:
    ra, issuer = interfering
    handovers = [parts.invite() for _ in range(4)]
    failpoints.arm("intent-committed:1:raise")
    for handover in handovers:
        failpoints.arm("intent-committed:1:raise")
        with pytest.raises(Fault):
            parts.enroll(handover)
    calls = []

    def fail_second() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Fault("once")

    issuer.then = fail_second
    with pytest.raises(Fault, match="once"):
        ra.finish(ORIGIN)
    states = [state(parts, only(parts, handover)) for handover in handovers]
    assert states.count(CertificateState.VALID) == 3
    assert ra.finish(ORIGIN) == 1


def test_an_issuer_whose_key_is_not_at_hand_is_a_fault(parts: Parts) -> None:
    handover = parts.invite()
    without = RegistrationAuthority(parts.store, parts.clock, parts.profiles, {})
    with pytest.raises(Fault, match="not at hand"):
        ask(without, parts, handover, new_key())
    assert used(parts, handover) == 0
    failpoints.arm("intent-committed:1:raise")
    with pytest.raises(Fault):
        parts.enroll(handover)
    with pytest.raises(Fault, match="not at hand"):
        without.finish(ORIGIN)


@pytest.mark.row("EST-125", "INC-27")
def test_a_locked_database_loses_nothing(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estserver.store.engine._WAIT_SECONDS", 0.2)
    monkeypatch.setattr("estserver.store.engine._LAST_SECONDS", 0.2)
    handover, key = parts.invite(), new_key()
    entitlement = parts.entitle(handover)
    path = parts.store.engine.url.database
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as refused:
            parts.ask(entitlement, csr_of(key))
        assert refused.value.retry_after is not None
        assert count(parts) == 0
        blocker.execute("ROLLBACK")
    monkeypatch.undo()
    issued = parts.enroll(handover, key)
    assert parts.enroll(handover, key).der == issued.der
    assert (used(parts, handover), count(parts)) == (1, 1)


@pytest.mark.row("EST-125", "INC-27")
@pytest.mark.parametrize("when", ["intent", "certificate"])
def test_a_full_disk_loses_nothing(
    parts: Parts, interfering: tuple[RegistrationAuthority, Interfering], when: str
) -> None:
    ra, issuer = interfering
    handover, key = parts.invite(), new_key()
    entitlement = parts.entitle(handover)
    engine = parts.store.engine

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    def fill() -> None:
        sa.event.listen(engine, "commit", full)

    if when == "intent":
        fill()
    else:
        issuer.then = fill
    with pytest.raises(Unavailable):
        replace(parts, ra=ra).ask(entitlement, csr_of(key))
    sa.event.remove(engine, "commit", full)
    issuer.then = lambda: None
    issued = ask(ra, parts, handover, key)
    assert isinstance(issued, Issued)
    assert (used(parts, handover), count(parts)) == (1, 1)


# -- revocation and finding ------------------------------------------------------------------


def test_revocation_happens_once_and_says_so(parts: Parts) -> None:
    issued = parts.enroll(parts.invite())
    record = parts.ra.revoke(
        issued.enrollment,
        reason=RevocationReason.AFFILIATION_CHANGED,
        comment="left",
        by="test",
        origin=ORIGIN,
    )
    assert (record.state, record.reason) == (
        CertificateState.REVOKED,
        RevocationReason.AFFILIATION_CHANGED,
    )
    with pytest.raises(Conflict, match="already"):
        revoke(parts, issued, RevocationReason.KEY_COMPROMISE)
    with pytest.raises(NotFound):
        revoke(parts, replace(issued, enrollment="nothing"))
    again = parts.ra.find(int(record.serial_hex, 16))
    assert (again.reason, again.revoked_at) == (record.reason, record.revoked_at)


def test_twenty_revocations_at_once_are_one(both: Parts) -> None:
    issued = both.enroll(both.invite())

    def go(_: int) -> bool:
        try:
            revoke(both, issued)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(go, range(20))) == 1
    assert events(both).count("certificate.revoked") == 1


def test_what_is_issued_can_be_found(parts: Parts) -> None:
    handover = parts.invite()
    issued = parts.enroll(handover)
    certificate = x509.load_der_x509_certificate(issued.der)
    record = parts.ra.find(certificate.serial_number)
    assert record.enrollment == issued.enrollment
    assert parts.ra.certificate_of(issued.enrollment) == (record, issued.der)
    assert [r for _, r in parts.ra.of_invitation(handover.invitation.number)] == [record]
    assert parts.ra.certificate_of("nothing") is None
    for serial in (1, 1 << 200):
        with pytest.raises(NotFound):
            parts.ra.find(serial)
    assert parts.ra.issuer_of("device") == "issuing"


def test_that_the_owner_holds_it_is_noted_once(parts: Parts) -> None:
    issued = parts.enroll(parts.invite())
    for _ in range(2):
        parts.ra.mark_taken(issued.enrollment, by="owner", origin=ORIGIN)
    assert events(parts).count("certificate.taken") == 1
    assert parts.ra.enrollment(issued.enrollment).taken_at is not None


@pytest.mark.row("EST-203")
def test_an_issuance_leaves_its_trail(parts: Parts) -> None:
    handover, key = parts.invite(), new_key()
    issued = parts.enroll(handover, key)
    query = sa.select(audit_events).order_by(audit_events.c.id)
    rows = parts.store.read(lambda tx: tx.connection.execute(query).all())
    assert [row.event for row in rows] == [
        "invitation.issued",
        "certificate.intended",
        "certificate.issued",
    ]
    assert rows[1].actor == f"invitation {handover.invitation.number}"
    assert rows[1].object == f"enrollment {issued.enrollment}"
    assert csr_of(key).spki_sha256.hex() in rows[1].detail
    assert hashlib.sha256(issued.der).hexdigest() in rows[2].detail


def test_identifiers_sort_by_time(parts: Parts) -> None:
    handover = parts.invite(units=30)
    made = [parts.enroll(handover).enrollment for _ in range(20)]
    assert made == sorted(made)
    assert len(set(made)) == 20


def test_an_entitlement_for_a_profile_that_is_gone_is_a_fault(parts: Parts) -> None:
    entitlement: Entitlement = replace(parts.entitle(parts.invite()), profile="gone")
    with pytest.raises(Fault, match="not configured"):
        parts.ask(entitlement, csr_of())


def test_a_pin_shown_at_the_web_and_at_est_is_one_pin(parts: Parts) -> None:
    handover, key = parts.invite("person", doors=frozenset({Door.WEB, Door.EST})), new_key()
    assert handover.pin is not None
    est = parts.authenticator.entitle(
        PINCredential(handover.invitation.number, handover.pin, SOURCE)
    )
    web = parts.authenticator.entitle(confirmed(parts, handover))
    issued = parts.ask(est, csr_of(key))
    assert isinstance(issued, Issued)
    assert parts.ask(web, csr_of(key), Via.WEB) == replace(issued, repeated=True)
    with pytest.raises(AlreadyIssued):
        parts.ask(web, csr_of(), Via.WEB)
