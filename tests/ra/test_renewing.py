"""Renewal by certificate and by PIN, and the one replacement of a lost key."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest

from estserver.authentication import CertificateCredential
from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    CertificateRefused,
    Conflict,
    IdentityMismatch,
    KeyNotAllowed,
    RegistrationClosed,
)
from estserver.model import CertificateState, Door, Issued, RevocationReason, Via
from estserver.ra import REPEAT_WINDOW
from estserver.store import certificates, outbox
from tests.live import new_key
from tests.parts import ORIGIN, Parts, csr_like, csr_of
from tests.ra.street import TICK, MakeParts, confirmed, count, events, new_pin, revoke, state, used

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
