"""Falling and getting up: what was committed is finished, or given up for good."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from cryptography import x509

from estserver import failpoints
from estserver.ca.issuer import Issuer
from estserver.errors import CertificateRefused, Fault, Unavailable
from estserver.invitations import Handover
from estserver.model import (
    CertificateState,
    Draft,
    EnrollmentState,
    Issued,
    Pending,
    RevocationReason,
)
from estserver.ra import ABANDON_AFTER, RegistrationAuthority
from estserver.store.tables import certificate_bytes
from estserver.store.tables import certificates as certificate_rows
from tests.live import Key, new_key
from tests.parts import ORIGIN, Parts, csr_of
from tests.ra.street import TICK, count, new_pin, pending, state, used


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
    monkeypatch.setattr("estserver.store.engine.WAIT_SECONDS", 0.2)
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
