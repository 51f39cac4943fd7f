"""What must hold when two nodes on one database do at the same moment what each may do alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import pytest

from estserver import intents, pin
from estserver.authentication import CertificateCredential
from estserver.errors import (
    BadCredentials,
    CertificateRefused,
    Conflict,
    KeyNotAllowed,
    RegistrationClosed,
    TooManyAttempts,
)
from estserver.intents import EnrollmentRequest
from estserver.invitations import FREE_TRIES, Handover
from estserver.model import (
    ACMEOrder,
    CertificateState,
    Door,
    Entitlement,
    InvitationState,
    Issued,
    RevocationReason,
    Via,
)
from estserver.revoking import Revocation, revoke, revoke_selected
from estserver.store import Transaction, certificates, registrations, revocations
from estserver.store.selection import Selection
from tests.live import new_key
from tests.parts import ORIGIN, SOURCE, Parts, csr_like, csr_of, with_rules

T = TypeVar("T")
WRONG = pin.generate(pin.SHORT)


def credential(issued: Issued) -> CertificateCredential:
    return CertificateCredential(issued.der)


def state_of(parts: Parts, issued: Issued) -> CertificateState:
    record = parts.store.read(lambda tx: certificates.certificate(tx, issued.enrollment))
    assert record is not None
    return record.state


class Overlap:
    """Keeps one node's transaction open until another node has done its work or waits for it."""

    def __init__(self, first: Parts) -> None:
        self._first = first
        self._open, self._other_done = threading.Event(), threading.Event()

    def run(self, unit: Callable[[Transaction], object], other: Callable[[], T]) -> T:
        """Run `unit` on the first node, `other` beside it; return what `other` does."""

        def held(tx: Transaction) -> None:
            unit(tx)
            self._open.set()
            # Over at once if `other` was not kept waiting, which is what must not be.
            self._other_done.wait(1)

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self._first.store.write, held)
            assert self._open.wait(10)
            try:
                return other()
            finally:
                self._other_done.set()
                writing.result()


def test_one_key_is_not_certified_for_two_registrations_at_once(both: Parts) -> None:
    there, key = both.another(), new_key()
    csr = csr_of(key)
    request = EnrollmentRequest(both.entitle(both.invite()), csr, Via.EST, ORIGIN)
    plan = both.profiles["device"].plan(csr, request.entitlement.grant, both.clock.now())
    intent = intents.intend(
        request, plan, both.issuer.prepare(plan), both.clock.now(), earlier=0, same_key=True
    )
    other = there.entitle(there.invite())

    def record(tx: Transaction) -> object:
        return intents.record(tx, [intent])

    try:
        with pytest.raises(KeyNotAllowed, match="another registration"):
            Overlap(both).run(record, lambda: there.ask(other, csr))
    finally:
        there.store.close()


def test_a_key_that_is_just_being_blocked_is_not_certified(both: Parts) -> None:
    there, key = both.another(), new_key()
    handover = both.invite(units=2)
    issued = both.enroll(handover, key)
    renewal = there.authenticator.renew(credential(issued))

    def compromise(tx: Transaction) -> None:
        revocations.block_key(tx, csr_of(key).spki_sha256, "keyCompromise")

    try:
        with pytest.raises(KeyNotAllowed, match="compromised"):
            Overlap(both).run(compromise, lambda: there.ask(renewal, csr_like(issued.der, key)))
    finally:
        there.store.close()


def test_guesses_through_two_nodes_wait_for_each_other(both: Parts) -> None:
    there = both.another()
    invitation = both.invite("person").invitation
    for _ in range(FREE_TRIES + 4):
        with pytest.raises(BadCredentials):
            both.invitations.confirm(invitation, WRONG, source=SOURCE)
        both.clock.advance(timedelta(minutes=1))
    number = invitation.number

    def begin(tx: Transaction) -> object:
        return both.invitations._begin_try(tx, number)

    try:
        # While a guess is judged here, the next one has to wait there too.
        with pytest.raises(TooManyAttempts):
            Overlap(both).run(
                begin,
                lambda: there.invitations.confirm(invitation, WRONG, source=SOURCE),
            )
    finally:
        there.store.close()


def test_what_is_being_cancelled_gets_no_new_pin_and_no_mail(both: Parts) -> None:
    there = both.another()
    try:
        for ask in (_new_pin, _resend):
            number = both.invite("person", email="hanako@example.org").invitation.number

            def cancel(tx: Transaction, number: str = number) -> object:
                return registrations.set_state(
                    tx, number, before=None, to=InvitationState.CANCELLED
                )

            with pytest.raises(Conflict, match="cancelled"):
                Overlap(both).run(cancel, partial(ask, there, number))
    finally:
        there.store.close()


def _new_pin(parts: Parts, number: str) -> object:
    return parts.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN)


def _resend(parts: Parts, number: str) -> object:
    return parts.invitations.resend(number, by="test", origin=ORIGIN)


def test_mass_revocation_goes_on_where_another_node_was_faster(both: Parts) -> None:
    there, handover = both.another(), both.invite(units=2)
    issued = [both.enroll(handover) for _ in range(2)]
    superseded = Revocation(RevocationReason.SUPERSEDED, None, "test")

    def revoke_first(tx: Transaction) -> None:
        revoke(tx, issued[0].enrollment, superseded, ORIGIN)

    def revoke_all() -> int:
        return revoke_selected(there.store, Selection(profile="device"), superseded, ORIGIN)

    try:
        assert Overlap(both).run(revoke_first, revoke_all) == 1
        assert {state_of(both, one) for one in issued} == {CertificateState.REVOKED}
    finally:
        there.store.close()


def _renewing_order(parts: Parts, handover: Handover, issued: Issued) -> Entitlement:
    """Judge an ACME order for the names of a certificate, which takes no unit."""
    authority = ACMEOrder("order-1", handover.invitation.number, renews=issued.enrollment)
    return replace(parts.authenticator.renew(credential(issued)), authority=authority)


def test_an_order_does_not_renew_what_was_revoked_since_it_was_judged(both: Parts) -> None:
    handover = both.invite(doors=frozenset({Door.EST, Door.ACME}))
    issued = both.enroll(handover)
    renewing = _renewing_order(both, handover, issued)
    both.ra.revoke(
        issued.enrollment,
        reason=RevocationReason.CESSATION_OF_OPERATION,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    with pytest.raises(CertificateRefused, match="revoked"):
        both.ask(renewing, csr_like(issued.der), Via.ACME)


def test_an_order_does_not_renew_for_whom_was_cancelled_since_it_was_judged(both: Parts) -> None:
    handover = both.invite(doors=frozenset({Door.EST, Door.ACME}))
    issued = both.enroll(handover)
    renewing = _renewing_order(both, handover, issued)
    both.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    with pytest.raises(RegistrationClosed):
        both.ask(renewing, csr_like(issued.der), Via.ACME)


def test_what_was_renewed_twice_is_revoked_once_without_a_stumble(
    make_parts: Callable[..., Parts],
) -> None:
    rules = {"auth": "certificate", "revoke_superseded": True, "overlap": "1d"}
    parts = make_parts(settings=with_rules("device", renewal=rules))
    old, untouched = parts.enroll(parts.invite()), parts.enroll(parts.invite())
    renewed = [parts.renew(old) for _ in range(2)]
    after = parts.renew(untouched)
    parts.clock.advance(timedelta(days=2))
    assert parts.ra.revoke_superseded(ORIGIN) == 2
    for one, state in (
        (old, CertificateState.REVOKED),
        (untouched, CertificateState.REVOKED),
        *((one, CertificateState.VALID) for one in (*renewed, after)),
    ):
        assert state_of(parts, one) is state
    assert parts.ra.revoke_superseded(ORIGIN) == 0
