"""Requests that wait for an officer, and what is decided."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import pytest

from estserver.errors import Conflict, EnrollmentRejected, NotFound, RegistrationClosed
from estserver.model import CertificateState, EnrollmentState
from estserver.store import revocations
from tests.live import new_key
from tests.parts import ORIGIN, Parts, csr_of
from tests.ra.street import count, events, pending, state, used


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
