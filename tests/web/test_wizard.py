"""The wizard over HTTPS, without scripts: every state, every refusal, and what is stored after."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

from estserver.errors import BadCredentials
from estserver.invitations import Handover
from estserver.model import (
    CertificateState,
    Door,
    EnrollmentState,
    Language,
    RevocationReason,
    Secret,
)
from estserver.store.tables import audit_events
from tests.live import ORIGIN, Live, make_csr, new_key
from tests.web.visitor import Page, Visitor

MakeLive = Callable[[str], Live]
TYPO = "7K2-M4X-9QA"
SERVER_KEY = "\n[profiles.person]\nserver_key = true\n"
APPROVAL = "\n[profiles.person]\napproval = true\n"


def link(handover: Handover) -> str:
    assert handover.token is not None
    return f"/e/{handover.token.reveal()}"


def pin(handover: Handover) -> str:
    assert handover.pin is not None
    return handover.pin.reveal()


def wrong_pin(handover: Handover, live: Live) -> str:
    """Return the PIN of another invitation: well formed and wrong."""
    while (other := pin(live.invite("person"))) == pin(handover):
        pass
    return other


def signed_in(live: Live, handover: Handover) -> tuple[Visitor, Page]:
    visitor = Visitor(live)
    return visitor, visitor.enter(link(handover), pin(handover))


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)


def issued(live: Live, handover: Handover) -> list[x509.Certificate]:
    """Return the stored certificates of an invitation, newest first."""
    found = []
    for enrollment, _ in live.core.ra.of_invitation(handover.invitation.number):
        held = live.core.ra.certificate_of(enrollment.id)
        if held is not None:
            found.append(x509.load_der_x509_certificate(held[1]))
    return found


def selectors(page: Page) -> list[tuple[str, str]]:
    return [(tag, got["name"]) for tag, got in page.elements if "name" in got]


# -- the three steps -------------------------------------------------------------------------------


@pytest.mark.row("SEED-01", "SEED-11")
def test_step1_asks_for_the_pin_under_the_names_of_the_organization(
    make_live: MakeLive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESTSERVER_BRANDING__ORGANIZATION", "National Institute")
    monkeypatch.setenv("ESTSERVER_BRANDING__ORGANIZATION_JA", "国立大学法人\n試験大学")
    monkeypatch.setenv("ESTSERVER_BRANDING__SUPPORT_JA", "内線 1234")
    live = make_live("")
    page = Visitor(live).get(link(live.invite("person", language=Language.JA)))
    assert page.status == 200
    assert ("input", "pin") in selectors(page)
    assert ("button", "next") in selectors(page)
    assert page.step == "【STEP1】 認証情報パスワードの入力"
    for words in (
        "【STEP2】",
        "【STEP3】",
        "National Institute",
        "電子証明書発行サービス",
        "内線 1234",
    ):
        assert words in page.seen
    assert "国立大学法人<br>試験大学" in page.text
    field = next(got for tag, got in page.elements if got.get("name") == "pin")
    assert field["autocomplete"] == "one-time-code"
    assert field["spellcheck"] == "false"


@pytest.mark.row("SEED-13")
def test_step2_shows_exactly_what_will_be_certified_and_issues_with_one_button(
    shared: Live,
) -> None:
    _, page = signed_in(shared, shared.invite("person"))
    assert page.step == "[STEP2] Issue the certificate"
    for words in (
        "山田 太郎",
        "taro@example.ac.jp",
        "Personal certificate",
        "Example Organization",
    ):
        assert words in page.seen
    assert len([got for _, got in page.elements if got.get("name") == "issue"]) == 1
    assert ("input", "p12-password") in selectors(page)
    assert "Previous" in page.seen


@pytest.mark.row("SEED-13", "SEED-17")
@pytest.mark.parametrize("field", ["csr_file", "csr"])
def test_a_csr_is_certified_and_step3_prints_serial_and_fingerprint_as_firefox_does(
    shared: Live, field: str
) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    der = make_csr(new_key())
    body = der if field == "csr_file" else pem(der)
    page = visitor.submit(page, "issue-form", method="csr", **{field: body})
    assert page.step == "[STEP3] Take the certificate"
    (certificate,) = issued(shared, handover)
    serial = certificate.serial_number.to_bytes(20, "big").hex(":").upper()
    assert certificate.serial_number.bit_length() > 152  # else it has fewer octets
    assert serial in page.text.replace("<wbr>", "")
    assert certificate.subject.rfc4514_string() == "CN=山田 太郎"


def test_the_certificate_is_downloaded_with_its_chain_under_a_readable_name(shared: Live) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    hrefs = [got["href"] for tag, got in page.elements if "certificate.pem" in got.get("href", "")]
    file = visitor.get(hrefs[0])
    chain = x509.load_pem_x509_certificates(file.body)
    assert chain[0] == issued(shared, handover)[0]
    assert [c.subject for c in chain[1:]] == [c.issuer for c in chain[:-1]]
    month = f"{chain[0].not_valid_before_utc:%Y-%m}"
    assert (
        f"filename*=UTF-8''%E5%B1%B1%E7%94%B0%20%E5%A4%AA%E9%83%8E_{month}.pem"
        in (file.headers["Content-Disposition"])
    )
    single = visitor.get(hrefs[0].replace(".pem", ".cer"))
    assert x509.load_der_x509_certificate(single.body) == chain[0]


@pytest.mark.row("SEED-12")
def test_the_language_link_switches_every_step_and_keeps_the_state(shared: Live) -> None:
    handover = shared.invite("person", language=Language.JA)
    visitor = Visitor(shared, headers={"Accept-Language": "en"})
    page = visitor.get(link(handover))
    assert page.headers["Content-Language"] == "ja"  # the registration's goes before the browser's
    links = {got["hreflang"]: got["href"] for _, got in page.elements if "hreflang" in got}
    assert links == {"ja": f"{link(handover)}?lang=ja", "en": f"{link(handover)}?lang=en"}
    page = visitor.get(links["en"])
    assert "[STEP1]" in page.seen
    page = visitor.submit(page, "pin-form", pin=pin(handover))
    assert page.step == "[STEP2] Issue the certificate"  # the cookie remembers
    page = visitor.get(links["ja"])
    assert page.step == "【STEP2】 証明書の発行"
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert page.step == "【STEP3】 証明書の取得"
    assert 'lang="ja"' in page.text[:40]
    assert "2027年" in page.seen or "2028年" in page.seen


def test_pages_without_a_registration_follow_the_browser(shared: Live) -> None:
    assert (
        Visitor(shared, headers={"Accept-Language": "ja-JP,en;q=0.5"})
        .get("/")
        .headers["Content-Language"]
        == "ja"
    )
    assert (
        Visitor(shared, headers={"Accept-Language": "fr"}).get("/").headers["Content-Language"]
        == "en"
    )


@pytest.mark.row("SEED-03", "SEED-04")
def test_the_pin_is_forgiving_and_one_of_the_two_secrets_opens_nothing(shared: Live) -> None:
    handover = shared.invite("person")
    wide = pin(handover).lower().translate({i: i + 0xFEE0 for i in range(0x21, 0x7F)})
    assert (
        Visitor(shared).enter(link(handover), f" {wide} ").step == "[STEP2] Issue the certificate"
    )
    assert Visitor(shared).get("/e/AAAAAAAAAAAAAAAAAAAAAA").status == 404
    other = shared.invite("person")
    assert Visitor(shared).enter(link(other), pin(handover)).status == 403


# -- nothing is lost -------------------------------------------------------------------------------


@pytest.mark.row("SEED-14")
def test_the_same_key_gets_the_same_certificate_however_often_it_is_sent(shared: Live) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    csr = pem(make_csr(new_key()))
    for _ in range(3):
        assert visitor.submit(page, "issue-form", csr=csr).step == "[STEP3] Take the certificate"
    assert len(issued(shared, handover)) == 1


@pytest.mark.row("SEED-14")
def test_back_reload_another_tab_and_a_later_day_all_find_step3(live: Live) -> None:
    handover = live.invite("person")
    visitor, page = signed_in(live, handover)
    visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert visitor.get(link(handover)).step == "[STEP3] Take the certificate"
    back = visitor.get(f"{link(handover)}/pin")
    assert back.step == "[STEP1] Enter the password"
    assert "The PIN was confirmed" in back.seen
    # The PIN's time is over; what was issued with it can still be taken.
    live.clock.advance(timedelta(days=40))
    assert Visitor(live).enter(link(handover), pin(handover)).step == "[STEP3] Take the certificate"


@pytest.mark.row("SEED-14", "SEED-23")
def test_another_key_is_refused_with_the_way_on(shared: Live) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert page.status == 409
    assert page.error == "already-issued"
    assert page.title.startswith("Error: ")
    assert f'href="{link(handover)}"' in page.text
    assert len(issued(shared, handover)) == 1


@pytest.mark.row("SEED-04")
def test_a_mail_scanner_that_opens_every_link_changes_nothing(shared: Live) -> None:
    handover = shared.invite("person")
    before = shared.core.invitations.get(handover.invitation.number)
    scanner = Visitor(shared)
    for number in range(100):
        assert scanner.request("HEAD" if number % 3 else "GET", link(handover)).status == 200
    assert shared.core.invitations.get(handover.invitation.number) == before
    _, page = signed_in(shared, handover)
    assert page.step == "[STEP2] Issue the certificate"


@pytest.mark.row("SEED-14", "SEED-18")
def test_a_lost_key_is_replaced_once_and_the_first_certificate_is_revoked(shared: Live) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert f"{link(handover)}/replace" in page.text
    page = visitor.get(f"{link(handover)}/replace")
    assert "will be revoked" in page.seen
    csr = pem(make_csr(new_key()))
    done = visitor.submit(page, "issue-form", csr=csr)
    assert done.step == "[STEP3] Take the certificate"
    again = visitor.submit(page, "issue-form", csr=csr)
    assert again.step == "[STEP3] Take the certificate"
    newest, first = issued(shared, handover)
    assert shared.core.ra.find(first.serial_number).reason is RevocationReason.SUPERSEDED
    assert shared.core.ra.find(newest.serial_number).state is CertificateState.VALID
    assert f"{link(handover)}/replace" not in done.text
    refused = visitor.get(f"{link(handover)}/replace")
    assert (refused.status, refused.error) == (409, "conflict")
    assert "replaced once already" in refused.seen


def test_the_time_for_replacing_it_oneself_ends(live: Live) -> None:
    handover = live.invite("person")
    visitor, page = signed_in(live, handover)
    visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    live.clock.advance(timedelta(hours=73))
    visitor, page = signed_in(live, handover)
    assert "/replace" not in page.text
    refused = visitor.get(f"{link(handover)}/replace")
    assert "time for replacing" in refused.seen


@pytest.mark.row("SEED-16")
def test_the_owner_confirms_to_hold_the_certificate(shared: Live) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    page = visitor.submit(page, "taken-form")
    assert "You confirmed" in page.seen
    ((enrollment, _),) = shared.core.ra.of_invitation(handover.invitation.number)
    assert enrollment.taken_at is not None
    assert page.step == "[STEP3] Take the certificate"


def test_an_enrollment_of_somebody_else_cannot_be_confirmed(shared: Live) -> None:
    victim, mallory = (
        shared.invite("person"),
        shared.invite("person", name="M", email="m@example.ac.jp"),
    )
    visitor, page = signed_in(shared, victim)
    visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    ((foreign, _),) = shared.core.ra.of_invitation(victim.invitation.number)
    visitor, page = signed_in(shared, mallory)
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert visitor.submit(page, "taken-form", enrollment=foreign.id).status == 404
    assert shared.core.ra.enrollment(foreign.id).taken_at is None


def test_a_registration_for_several_certificates_issues_as_many(shared: Live) -> None:
    handover = shared.invite("person", units=2)
    visitor, page = signed_in(shared, handover)
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert "further certificates: 1" in page.seen
    page = visitor.get(f"{link(handover)}/another")
    assert page.step == "[STEP2] Issue the certificate"
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert "/another" not in page.text
    assert len(issued(shared, handover)) == 2
    assert visitor.get(f"{link(handover)}/another").status == 409


# -- approval --------------------------------------------------------------------------------------


@pytest.mark.row("SEED-23")
def test_approval_is_waited_for_and_ends_in_step3(make_live: MakeLive) -> None:
    live = make_live(APPROVAL)
    handover = live.invite("person")
    visitor, page = signed_in(live, handover)
    assert "has to approve" in page.seen
    csr = pem(make_csr(new_key()))
    waiting = visitor.submit(page, "issue-form", csr=csr)
    assert waiting.status == 200
    assert waiting.step == "[STEP2] Issue the certificate"
    assert "registration officer of Example Organization" in waiting.seen
    assert 'http-equiv="refresh"' in waiting.text
    ((enrollment, _),) = live.core.ra.of_invitation(handover.invitation.number)
    live.core.ra.approve(enrollment.id, by="officer", origin=ORIGIN)
    assert "being issued" in visitor.get(link(handover)).seen  # looking changes nothing
    assert not issued(live, handover)
    assert visitor.submit(page, "issue-form", csr=csr).step == "[STEP3] Take the certificate"
    assert len(issued(live, handover)) == 1


def test_a_rejection_is_told_with_its_reason_and_another_try_is_open(make_live: MakeLive) -> None:
    live = make_live(APPROVAL)
    handover = live.invite("person")
    visitor, page = signed_in(live, handover)
    csr = pem(make_csr(new_key()))
    visitor.submit(page, "issue-form", csr=csr)
    ((enrollment, _),) = live.core.ra.of_invitation(handover.invitation.number)
    live.core.ra.reject(enrollment.id, reason="<b>left us</b>", by="officer", origin=ORIGIN)
    page = visitor.get(link(handover))
    assert "&lt;b&gt;left us&lt;/b&gt;" in page.text
    refused = visitor.submit(page, "issue-form", csr=csr)
    assert (refused.status, refused.error) == (403, "enrollment-rejected")
    waiting = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert "Waiting for approval" in waiting.seen
    states = {e.state for e, _ in live.core.ra.of_invitation(handover.invitation.number)}
    assert states == {EnrollmentState.REJECTED, EnrollmentState.PENDING}


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


# -- the key made by the server --------------------------------------------------------------------


@pytest.mark.row("SEED-14")
@pytest.mark.parametrize("form", ["modern", "compatible"])
def test_a_server_made_key_is_sent_once_under_the_password_that_was_shown(
    make_live: MakeLive, form: str
) -> None:
    live = make_live(SERVER_KEY)
    handover = live.invite("person")
    visitor, page = signed_in(live, handover)
    password = re.search(r'id="server-password">([^<]+)<', page.text)
    assert password is not None
    file = visitor.submit(page, "issue-form", method="server", key_type="ec-p256", format=form)
    assert file.headers["Content-Type"] == "application/x-pkcs12"
    assert "_20" in file.headers["Content-Disposition"]
    held = pkcs12.load_pkcs12(file.body, password[1].encode())
    assert held.cert is not None
    assert held.key is not None
    assert held.cert.certificate == issued(live, handover)[0]
    assert held.cert.certificate.public_key() == held.key.public_key()
    assert len(held.additional_certs) == 2
    again = visitor.submit(page, "issue-form", method="server", key_type="ec-p256", format=form)
    assert again.status == 409
    assert visitor.get(link(handover)).step == "[STEP3] Take the certificate"


def test_the_server_makes_keys_only_where_the_profile_says_so(shared: Live) -> None:
    visitor, page = signed_in(shared, shared.invite("person"))
    assert 'value="server"' not in page.text
    refused = visitor.submit(page, "issue-form", method="server")
    assert (refused.status, refused.error) == (403, "not-entitled")


def test_the_password_of_another_session_makes_no_file(make_live: MakeLive) -> None:
    live = make_live(SERVER_KEY)
    _, foreign = signed_in(live, live.invite("person"))
    handover = live.invite("person")
    visitor, page = signed_in(live, handover)
    sealed = foreign.forms["issue-form"].fields["server-password"]
    for value in (sealed, "nonsense"):
        refused = visitor.submit(
            page, "issue-form", method="server", key_type="ec-p256", server_password=value
        )
        assert refused.status == 400
    assert not issued(live, handover)


# -- help ------------------------------------------------------------------------------------------

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0"
SAFARI = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605 Version/18 Safari/605"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605 Safari/604"
ANDROID = "Mozilla/5.0 (Android {}; Mobile; rv:153.0) Gecko/153.0 Firefox/153.0"
EDGE = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537 Chrome/150 Edg/150"


@pytest.mark.row("SEED-22", "SEED-18", "SEED-19")
@pytest.mark.parametrize("language", list(Language))
def test_the_instructions_fit_browser_and_system(shared: Live, language: Language) -> None:
    handover = shared.invite("person", language=language)
    visitor, page = signed_in(shared, handover)
    visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    for agent, heading in (
        (FIREFOX, "Firefox"),
        (SAFARI, "macOS"),
        (IPHONE, "iPhone"),
        (ANDROID.format(15), "Android"),
        (EDGE, "Windows"),
    ):
        visitor.headers["User-Agent"] = agent
        page = visitor.get(link(handover))
        first = re.search(r"<h3>([^<]+)", page.text)
        assert first is not None
        assert first[1].startswith(heading)
    visitor.headers["User-Agent"] = FIREFOX
    seen = visitor.get(link(handover)).seen
    warning, trouble = {
        Language.EN: ("“Refresh Firefox” deletes imported certificates", "Ask you every time"),
        Language.JA: ("「Firefoxをリフレッシュ」を行うと", "毎回自分で選択する"),
    }[language]
    assert warning in seen
    assert trouble in seen


@pytest.mark.parametrize(
    ("agent", "file_format"),
    [
        (FIREFOX, "modern"),
        (EDGE, "modern"),
        (SAFARI, "compatible"),
        (IPHONE, "compatible"),
        (ANDROID.format(13), "compatible"),
        (ANDROID.format(14), "modern"),
    ],
)
def test_the_file_format_is_preselected_for_the_system(
    shared: Live, agent: str, file_format: str
) -> None:
    visitor, _ = signed_in(shared, handover := shared.invite("person"))
    visitor.headers["User-Agent"] = agent
    page = visitor.get(link(handover))
    assert page.forms["issue-form"].fields["format"] == file_format


@pytest.mark.row("SEED-02", "SEED-14")
def test_without_scripts_the_page_says_what_still_works(shared: Live) -> None:
    _, page = signed_in(shared, shared.invite("person"))
    assert "<noscript><p" in page.text
    assert "certificate might be unavailable" in page.seen  # hidden where scripts run
    assert page.forms["issue-form"].fields["method"] == "csr"


def test_the_trust_page_offers_each_ca_certificate_with_its_fingerprint(shared: Live) -> None:
    visitor = Visitor(shared)
    page = visitor.get("/trust")
    root = x509.load_pem_x509_certificate(shared.root.read_bytes())
    fingerprint = root.fingerprint(hashes.SHA256()).hex(":").upper()
    assert fingerprint in page.text.replace("<wbr>", "")
    links = [got["href"] for _, got in page.elements if "download" in got]
    ders = [visitor.get(one) for one in links if one.endswith(".cer")]
    assert root in [x509.load_der_x509_certificate(file.body) for file in ders]
    assert {file.headers["Content-Type"] for file in ders} == {"application/pkix-cert"}
    pems = [visitor.get(one) for one in links if one.endswith(".pem")]
    assert max(len(x509.load_pem_x509_certificates(file.body)) for file in pems) == 2
    assert visitor.get("/trust/0123456789abcdef.pem").status == 404


def test_landing_and_help_are_there_in_both_languages(shared: Live) -> None:
    for path in ("/", "/help", "/trust"):
        assert Visitor(shared).get(f"{path}?lang=ja").headers["Content-Language"] == "ja"
        assert Visitor(shared).get(f"{path}?lang=en").status == 200


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
