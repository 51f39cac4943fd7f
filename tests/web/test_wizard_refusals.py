"""The wizard refuses in words, counts wrong PINs, and leaves its trail."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from estserver.errors import BadCredentials
from estserver.invitations import Handover
from estserver.model import CertificateState, Door, Language, RevocationReason, Secret
from estserver.store.tables import audit_events
from tests.live import ORIGIN, Live, make_csr, new_key
from tests.web.applicant import TYPO, issued, link, pem, pin, signed_in, wrong_pin
from tests.web.visitor import Visitor

# -- refusals in words -----------------------------------------------------------------------------


@pytest.mark.row("SEED-23")
@pytest.mark.parametrize(
    ("language", "prefix", "words"),
    [
        (Language.EN, "Error: ", "The PIN is wrong."),
        (Language.JA, "エラー\uff1a", "PINが正しくありません。"),
    ],
)
def test_a_wrong_pin_is_said_on_top_and_beside_the_field(
    shared: Live, language: Language, prefix: str, words: str
) -> None:
    handover = shared.invite("person", language=language)
    page = Visitor(shared).enter(link(handover), wrong_pin(handover, shared))
    assert (page.status, page.error) == (403, "bad-credentials")
    assert page.title.startswith(prefix)
    assert words in page.seen
    assert '<a href="#pin">' in page.text
    assert 'aria-invalid="true"' in page.text
    assert re.search(r"<code>[0-9a-f]{16}</code>", page.text)


@pytest.mark.row("SEED-23")
def test_a_mistyped_pin_costs_no_try(shared: Live) -> None:
    handover = shared.invite("person")
    page = Visitor(shared).enter(link(handover), TYPO)
    assert (page.status, page.error) == (400, "mistyped-pin")
    assert shared.core.invitations.get(handover.invitation.number).pin_failures == 0
    assert Visitor(shared).enter(link(handover), "12").error == "bad-credentials"


@pytest.mark.row("SEED-23")
def test_wrong_pins_are_counted_down_from_the_third_and_then_slowed_down(live: Live) -> None:
    handover = live.invite("person")
    wrong = wrong_pin(handover, live)
    visitor = Visitor(live)
    pages = [visitor.enter(link(handover), wrong) for _ in range(5)]
    assert ["Tries left" in page.seen for page in pages] == [False, False, True, True, False]
    assert "Tries left before you have to wait: 2." in pages[2].seen
    for _ in range(4):
        live.clock.advance(timedelta(seconds=61))
        visitor.enter(link(handover), wrong)
    slowed = visitor.enter(link(handover), pin(handover))
    assert (slowed.status, slowed.error) == (429, "too-many-attempts")
    assert int(slowed.headers["Retry-After"]) >= 1
    live.clock.advance(timedelta(seconds=61))
    assert visitor.enter(link(handover), pin(handover)).step == "[STEP2] Issue the certificate"


@pytest.mark.row("SEED-23")
def test_a_pin_that_was_guessed_at_too_often_is_dead_and_says_so(live: Live) -> None:
    # A long PIN: its hash is fast, and the counting is the same.
    doors = frozenset({Door.WEB, Door.EST})
    handover, other = (live.invite("person", doors=doors) for _ in range(2))
    wrong = Secret(pin(other))
    for _ in range(99):
        live.clock.advance(timedelta(seconds=61))
        with pytest.raises(BadCredentials):
            live.core.invitations.confirm(handover.invitation, wrong, source="192.0.2.1")
    live.clock.advance(timedelta(seconds=61))
    visitor = Visitor(live)
    assert visitor.enter(link(handover), wrong.reveal()).status == 403
    assert live.core.invitations.get(handover.invitation.number).pin_dead
    page = visitor.get(link(handover))
    assert page.status == 403
    assert "too often" in page.seen


@pytest.mark.row("SEED-23")
def test_an_unknown_link_is_404_with_the_same_words_for_every_one(shared: Live) -> None:
    handover = shared.invite("person")
    first, second = (Visitor(shared).get(f"/e/{token}") for token in ("A" * 22, "b-_" * 30))
    assert first.status == second.status == 404
    assert re.sub(r"<code>.*?</code>", "", first.text).replace("A" * 22, "") == re.sub(
        r"<code>.*?</code>", "", second.text
    ).replace("b-_" * 30, "")
    device = shared.invite("device")
    assert device.token is None
    assert Visitor(shared).get(f"{link(handover)}x").status == 404


@pytest.mark.row("SEED-23")
def test_expired_cancelled_and_held_back_have_words_of_their_own(live: Live) -> None:
    cancelled, held, expired = (
        live.invite("person"),
        live.invite("person", hold=True),
        live.invite("person", expires=timedelta(days=1)),
    )
    live.core.invitations.cancel(cancelled.invitation.number, by="test", origin=ORIGIN)
    page = Visitor(live).get(link(cancelled))
    assert (page.status, page.error) == (410, "registration-closed")
    assert "was cancelled" in page.seen
    page = Visitor(live).get(link(held))
    assert (page.status, page.error) == (403, "not-released")
    assert Visitor(live).post(link(held), {"pin": pin(held)}).error == "not-released"
    live.core.invitations.release(held.invitation.number, by="test", origin=ORIGIN)
    assert Visitor(live).enter(link(held), pin(held)).step == "[STEP2] Issue the certificate"
    signed_in(live, expired)
    live.clock.advance(timedelta(days=1, seconds=1))
    late = Visitor(live).get(link(expired))
    assert late.status == 403
    assert "time for using this PIN is over" in late.seen


def test_cancelling_ends_a_session_at_once(shared: Live) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    shared.core.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    assert visitor.submit(page, "issue-form", csr=pem(make_csr(new_key()))).status == 410
    assert not issued(shared, handover)


def test_a_new_pin_ends_the_sessions_of_the_old_one(shared: Live) -> None:
    handover = shared.invite("person")
    visitor, _ = signed_in(shared, handover)
    shared.core.invitations.new_pin(
        handover.invitation.number, expires=None, by="test", origin=ORIGIN
    )
    page = visitor.get(link(handover))
    assert page.status == 403
    assert page.step == "[STEP1] Enter the password"
    assert "A new PIN has been given out" in page.seen


def test_an_idle_session_ends_and_the_pin_opens_a_new_one(live: Live) -> None:
    handover = live.invite("person")
    visitor, page = signed_in(live, handover)
    assert 'data-idle="1800"' in page.text
    live.clock.advance(timedelta(minutes=29))
    assert visitor.get(link(handover)).step == "[STEP2] Issue the certificate"
    live.clock.advance(timedelta(minutes=29))
    assert visitor.get(link(handover)).step == "[STEP2] Issue the certificate"
    live.clock.advance(timedelta(minutes=31))
    assert visitor.get(link(handover)).step == "[STEP1] Enter the password"
    refused = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert (refused.status, refused.error) == (403, "session-ended")


@pytest.mark.row("SEED-23")
@pytest.mark.parametrize(
    ("body", "code"),
    [(b"", "bad-input"), (b"nonsense!", "bad-csr"), (b"-----BEGIN X-----", "bad-csr")],
)
def test_a_bad_csr_is_refused_in_words_and_spends_nothing(
    shared: Live, body: bytes, code: str
) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    refused = visitor.submit(page, "issue-form", csr=body)
    assert (refused.status, refused.error) == (400, code)
    assert shared.core.invitations.get(handover.invitation.number).units_used == 0
    assert visitor.submit(page, "issue-form", csr=pem(make_csr(new_key()))).status == 200


def test_names_of_a_csr_that_are_not_registered_are_refused(shared: Live) -> None:
    visitor, page = signed_in(shared, shared.invite("person"))
    refused = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key(), subject="Mallory")))
    assert (refused.status, refused.error) == (403, "names-not-allowed")


@pytest.mark.row("SEED-23")
def test_revoked_and_expired_certificates_are_told(live: Live) -> None:
    handover = live.invite("person", expires=timedelta(days=900))
    visitor, page = signed_in(live, handover)
    visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    ((enrollment, _),) = live.core.ra.of_invitation(handover.invitation.number)
    second = live.invite("person", expires=timedelta(days=900))
    visitor2, page = signed_in(live, second)
    visitor2.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    live.core.ra.revoke(
        enrollment.id,
        reason=RevocationReason.KEY_COMPROMISE,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    page = visitor.get(link(handover))
    assert "has been revoked" in page.seen
    assert 'name="issue"' not in page.text
    live.clock.advance(timedelta(days=396))
    _, page = signed_in(live, second)
    assert "has expired" in page.seen


@pytest.mark.row("SEED-10")
def test_a_new_pin_on_a_spent_invitation_renews_through_the_wizard(shared: Live) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    fresh = shared.core.invitations.new_pin(
        handover.invitation.number, expires=None, by="test", origin=ORIGIN
    )
    visitor, page = signed_in(shared, fresh)
    assert "This PIN renews the certificate" in page.seen
    csr = pem(make_csr(new_key()))
    for _ in range(2):
        assert visitor.submit(page, "issue-form", csr=csr).step == "[STEP3] Take the certificate"
    newest, first = issued(shared, handover)
    assert newest.subject == first.subject
    assert shared.core.ra.find(first.serial_number).state is CertificateState.VALID
    assert visitor.submit(page, "issue-form", csr=pem(make_csr(new_key()))).status == 409


@pytest.mark.row("SEED-10")
def test_a_renewal_pin_also_renews_what_has_expired(live: Live) -> None:
    handover = live.invite("person")
    visitor, page = signed_in(live, handover)
    visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    live.clock.advance(timedelta(days=400))
    fresh = live.core.invitations.new_pin(
        handover.invitation.number, expires=None, by="test", origin=ORIGIN
    )
    visitor, page = signed_in(live, fresh)
    assert "revoked or was valid until" in page.seen
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert page.step == "[STEP3] Take the certificate"


# -- the audit trail -------------------------------------------------------------------------------


def refusals(live: Live, handover: Handover) -> list[str]:
    wanted = f"invitation {handover.invitation.number}"
    rows = live.core.store.read(
        lambda tx: tx.connection.execute(
            sa.select(audit_events.c.detail).where(
                audit_events.c.event == "enrollment.refused", audit_events.c.object == wanted
            )
        ).all()
    )
    return [row.detail for row in rows]


def test_wrong_pins_are_audited_and_typing_mistakes_and_looking_are_not(shared: Live) -> None:
    handover = shared.invite("person")
    visitor = Visitor(shared)
    visitor.enter(link(handover), TYPO)
    visitor.post(f"{link(handover)}/issue", {"csrf": "x"})
    assert refusals(shared, handover) == []
    visitor.enter(link(handover), wrong_pin(handover, shared))
    assert len(refusals(shared, handover)) == 1
    shared.core.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    for _ in range(3):
        assert visitor.get(link(handover)).status == 410
    assert len(refusals(shared, handover)) == 1


def test_a_crowd_that_types_pins_keeps_nobody_else_waiting(shared: Live) -> None:
    crowd = [shared.invite("person") for _ in range(40)]
    somebody = shared.invite("person")
    released = threading.Event()
    # What hashes PINs is busy: as if those of hundreds came before.
    shared.core.invitations._hasher._thread.submit(released.wait, 60)
    with ThreadPoolExecutor(len(crowd)) as browsers:
        try:
            entering = [browsers.submit(signed_in, shared, one) for one in crowd]
            for _ in range(len(crowd)):
                assert Visitor(shared).get(link(somebody)).status == 200
        finally:
            released.set()
        pages = [page for _, page in (one.result() for one in entering)]
    assert {page.step for page in pages} == {"[STEP2] Issue the certificate"}
