"""One authority, one certificate, many deliveries."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from estserver.authentication import PINCredential
from estserver.errors import AlreadyIssued, CertificateRefused, Fault, Refused
from estserver.model import Door, Issued, Pending, Via
from estserver.store.tables import enrollments
from tests.live import new_key
from tests.parts import SOURCE, Parts, csr_of, with_rules
from tests.ra.street import MakeParts, confirmed, count, events, revoke, used

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


def test_a_question_whose_answer_cannot_be_found_comes_to_an_end(both: Parts) -> None:
    handover, key = both.invite(units=2), new_key()
    both.enroll(handover, key)
    lost = sa.update(enrollments).values(invitation=None)
    both.store.write(lambda tx: tx.change(lost))
    with pytest.raises(Fault, match="no answer"):
        both.enroll(handover, key)
    assert count(both) == 1


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


# -- revocation and finding ------------------------------------------------------------------


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
