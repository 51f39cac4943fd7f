"""The wizard over HTTPS, without scripts: every state, and what is stored after."""

import re
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from estserver.model import CertificateState, EnrollmentState, Language, RevocationReason
from tests.live import ORIGIN, Live, make_csr, new_key
from tests.web.applicant import APPROVAL, SERVER_KEY, MakeLive, issued, link, pem, pin, signed_in
from tests.web.visitor import Page, Visitor


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
