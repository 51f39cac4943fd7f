"""Renewal by the certificate in use, and the test page, over TLS with real client certificates."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from estserver.invitations import Handover
from estserver.model import CertificateState, Door, Language, RevocationReason, Via
from tests.live import ORIGIN, Holder, Live, make_csr, new_key
from tests.web.visitor import Page, Visitor

MakeLive = Callable[[str], Live]
BOTH = '\n[profiles.person.renewal]\nauth = "certificate+pin"\n'
PIN_ONLY = '\n[profiles.person.renewal]\nauth = "pin"\n'
WINDOW = '\n[profiles.person.renewal]\nwindow = "30d"\n'
GRACE = '\n[profiles.person.renewal]\ngrace = "30d"\n'


def certified(live: Live, **fields: object) -> tuple[Handover, Holder]:
    """Enroll a person through the wizard with a key of ours."""
    handover = live.invite("person", **fields)
    assert handover.token is not None
    assert handover.pin is not None
    visitor, key = Visitor(live), new_key()
    page = visitor.enter(f"/e/{handover.token.reveal()}", handover.pin.reveal())
    page = visitor.submit(page, "issue-form", csr=pem(make_csr(key)))
    assert page.status == 200
    return handover, Holder(key, newest(live, handover))


def newest(live: Live, handover: Handover) -> x509.Certificate:
    enrollment, _ = live.core.ra.of_invitation(handover.invitation.number)[0]
    found = live.core.ra.certificate_of(enrollment.id)
    assert found is not None
    return x509.load_der_x509_certificate(found[1])


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)


def serial(certificate: x509.Certificate) -> str:
    number = certificate.serial_number
    return number.to_bytes(number.bit_length() // 8 + 1, "big").hex(":").upper()


def plain(page: Page) -> str:
    return page.text.replace("<wbr>", "")


def revoke(live: Live, holder: Holder) -> None:
    record = live.core.ra.find(holder.certificate.serial_number)
    live.core.ra.revoke(
        record.enrollment,
        reason=RevocationReason.CESSATION_OF_OPERATION,
        comment=None,
        by="test",
        origin=ORIGIN,
    )


@pytest.mark.row("SEED-09")
def test_the_certificate_in_use_renews_itself_with_a_new_key(shared: Live) -> None:
    handover, holder = certified(shared)
    visitor = Visitor(shared, "devices", holder)
    page = visitor.get("/renew")
    assert page.status == 200
    assert serial(holder.certificate) in plain(page)
    for words in ("山田 太郎", "taro@example.ac.jp", "Days left: 394"):
        assert words in page.seen
    assert page.headers["Connection"] == "close"
    csr = pem(make_csr(new_key()))
    done = visitor.submit(page, "issue-form", csr=csr)
    assert done.step == "[STEP3] Take the certificate"
    fresh = newest(shared, handover)
    assert fresh.subject == holder.certificate.subject
    assert fresh.public_key() != holder.certificate.public_key()
    assert serial(fresh) in plain(done)
    assert serial(holder.certificate) in plain(done)  # and what becomes of the old one
    record = shared.core.ra.find(fresh.serial_number)
    assert record.via is Via.RENEWAL
    assert shared.core.ra.find(holder.certificate.serial_number).state is CertificateState.VALID
    # A second press, and coming back, find the same certificate.
    assert visitor.submit(page, "issue-form", csr=csr).step == "[STEP3] Take the certificate"
    assert serial(fresh) in plain(visitor.get("/renew"))
    assert newest(shared, handover) == fresh
    file = visitor.get(
        next(got["href"] for _, got in done.elements if ".pem" in got.get("href", ""))
    )
    assert x509.load_pem_x509_certificates(file.body)[0] == fresh


def test_after_it_was_taken_the_page_offers_the_next_renewal(shared: Live) -> None:
    _, holder = certified(shared)
    visitor = Visitor(shared, "devices", holder)
    page = visitor.submit(visitor.get("/renew"), "issue-form", csr=pem(make_csr(new_key())))
    page = visitor.submit(page, "taken-form")
    assert "You confirmed" in page.seen
    page = visitor.get("/renew")
    assert "It was renewed before" in page.seen
    assert 'name="issue"' in page.text
    assert visitor.get("/renew?again=1").status == 200


@pytest.mark.row("SEED-08", "SEED-19", "SEED-23")
@pytest.mark.parametrize("language", list(Language))
def test_without_a_certificate_the_page_says_what_that_can_mean(
    shared: Live, language: Language
) -> None:
    for path, status in (("/renew", 403), ("/test", 200)):
        page = Visitor(shared, "devices").get(f"{path}?lang={language}")
        assert page.status == status
        words = {
            Language.EN: ("You once chose Cancel", "Authentication Decisions", "has expired"),
            Language.JA: ("キャンセル", "認証の決定", "有効期限が切れている"),
        }[language]
        for word in words:
            assert word in page.seen


@pytest.mark.row("SEED-10")
def test_a_profile_may_want_certificate_and_pin(make_live: MakeLive) -> None:
    live = make_live(BOTH)
    handover, holder = certified(live)
    visitor = Visitor(live, "devices", holder)
    page = visitor.get("/renew")
    assert any(got.get("name") == "pin" for _, got in page.elements)
    csr = pem(make_csr(new_key()))
    refused = visitor.submit(page, "issue-form", csr=csr)
    assert (refused.status, refused.error) == (403, "bad-credentials")
    assert "need the access PIN" in refused.seen
    assert handover.pin is not None
    spent = visitor.submit(page, "issue-form", csr=csr, pin=handover.pin.reveal())
    assert spent.status == 409  # that PIN issued the first one
    fresh = live.core.invitations.new_pin(
        handover.invitation.number, expires=None, by="test", origin=ORIGIN
    )
    assert fresh.pin is not None
    assert fresh.token is not None
    elsewhere = Visitor(live).enter(f"/e/{fresh.token.reveal()}", fresh.pin.reveal())
    assert "together with the certificate" in elsewhere.seen
    assert f"{live.url('devices')}/renew" in elsewhere.text
    for _ in range(2):  # the second time the PIN is spent, the key is the same
        done = visitor.submit(page, "issue-form", csr=csr, pin=fresh.pin.reveal())
        assert done.step == "[STEP3] Take the certificate"
    other = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())), pin=fresh.pin.reveal())
    assert other.status == 409
    assert len(live.core.ra.of_invitation(handover.invitation.number)) == 2


@pytest.mark.row("SEED-10")
def test_a_profile_may_want_the_pin_alone(make_live: MakeLive) -> None:
    live = make_live(PIN_ONLY)
    _, holder = certified(live)
    page = Visitor(live, "devices", holder).get("/renew")
    assert page.status == 403
    assert "renewed with a PIN" in page.seen
    assert 'name="issue"' not in page.text


@pytest.mark.row("SEED-23")
def test_a_revoked_certificate_renews_nothing_and_is_told_so(shared: Live) -> None:
    _, holder = certified(shared)
    visitor = Visitor(shared, "devices", holder)
    page = visitor.get("/renew")
    revoke(shared, holder)
    refused = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert (refused.status, refused.error) == (403, "certificate-refused")
    shown = visitor.get("/renew")
    assert shown.status == 403
    assert "has been revoked" in shown.seen
    assert serial(holder.certificate) in plain(shown)
    tested = visitor.get("/test")
    assert "It does not work." in tested.seen
    assert 'data-verdict="certificate-refused"' in tested.text


@pytest.mark.row("SEED-23")
def test_an_expired_certificate_is_told_its_day(live: Live) -> None:
    _, holder = certified(live)
    live.clock.advance(timedelta(days=396))
    visitor = Visitor(live, "devices", holder)
    page = visitor.get("/renew")
    assert page.status == 403
    assert re.search(r"expired on \w+ \d{1,2}, \d{4}", page.seen)
    tested = visitor.get("/test")
    assert 'data-verdict="expired"' in tested.text
    assert "The certificate expired on" in tested.seen


def test_a_profile_may_give_the_expired_some_days_of_grace(make_live: MakeLive) -> None:
    live = make_live(GRACE)
    _, holder = certified(live)
    live.clock.advance(timedelta(days=400))
    visitor = Visitor(live, "devices", holder)
    page = visitor.get("/renew")
    assert "it can still be renewed" in page.seen
    done = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert done.step == "[STEP3] Take the certificate"


def test_too_early_says_when_to_come_back(make_live: MakeLive) -> None:
    live = make_live(WINDOW)
    _, holder = certified(live)
    page = Visitor(live, "devices", holder).get("/renew")
    assert page.status == 403
    assert re.search(r"Come back on \w+ \d{1,2}, \d{4} or later", page.seen)
    live.clock.advance(timedelta(days=370))
    assert Visitor(live, "devices", holder).get("/renew").status == 200


@pytest.mark.row("INC-3", "SEED-23")
def test_a_closed_registration_renews_nothing(live: Live) -> None:
    handover, holder = certified(live, language=Language.JA)
    visitor = Visitor(live, "devices", holder)
    page = visitor.get("/renew")
    assert page.headers["Content-Language"] == "ja"
    live.core.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    refused = visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    assert refused.status == 410
    shown = visitor.get("/renew")
    assert shown.status == 410
    assert "この登録は取り消されました" in shown.seen


@pytest.mark.row("INC-4")
def test_a_certificate_of_ours_that_is_in_no_record_is_unknown(shared: Live) -> None:
    """Signed by the right CA for the same name, but never issued by the registration authority."""
    _, holder = certified(shared)
    issuer = shared.core.issuers["issuing"]
    key, old = new_key(), holder.certificate
    sibling = (
        x509.CertificateBuilder(
            issuer_name=issuer.certificate.subject,
            subject_name=old.subject,
            public_key=key.public_key(),
            serial_number=old.serial_number,
            not_valid_before=old.not_valid_before_utc,
            not_valid_after=old.not_valid_after_utc,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(issuer._key, hashes.SHA256())
    )
    visitor = Visitor(shared, "devices", Holder(key, sibling))
    page = visitor.get("/renew")
    assert (page.status, page.error) == (403, "certificate-refused")
    assert "was not issued by this service" in page.seen
    assert 'data-verdict="certificate-refused"' in visitor.get("/test").text


def test_the_test_page_says_that_it_works_and_what_was_shown(shared: Live) -> None:
    _, holder = certified(shared)
    visitor = Visitor(shared, "devices", holder)
    page = visitor.get("/test")
    assert 'data-verdict="ok"' in page.text
    assert serial(holder.certificate) in plain(page)
    visitor.submit(visitor.get("/renew"), "issue-form", csr=pem(make_csr(new_key())))
    assert "There is a newer certificate" in visitor.get("/test").seen


def test_a_renewal_needs_a_form_of_ours_though_the_certificate_is_ambient(shared: Live) -> None:
    handover, holder = certified(shared)
    _, foreign = certified(shared)
    visitor = Visitor(shared, "devices", holder)
    page = visitor.get("/renew")
    token = Visitor(shared, "devices", foreign).get("/renew").forms["issue-form"].fields["csrf"]
    for value in ("", token):
        refused = visitor.submit(page, "issue-form", csrf=value, csr=pem(make_csr(new_key())))
        assert (refused.status, refused.error) == (403, "forged-request")
    fields = {**page.forms["issue-form"].fields, "csr": pem(make_csr(new_key())).decode()}
    for site in ("cross-site", "same-site", "none"):
        assert visitor.post("/renew/issue", fields, Sec_Fetch_Site=site).status == 403
    assert visitor.post("/renew/issue", fields, Origin="https://evil.example").status == 403
    assert len(shared.core.ra.of_invitation(handover.invitation.number)) == 1
    anonymous = Visitor(shared, "devices")
    assert anonymous.post("/renew/issue", fields).error == "no-certificate"
    assert anonymous.post("/renew/taken", fields).error == "no-certificate"


def test_names_cannot_be_changed_by_a_renewal(shared: Live) -> None:
    _, holder = certified(shared)
    visitor = Visitor(shared, "devices", holder)
    csr = pem(make_csr(new_key(), subject="Mallory"))
    refused = visitor.submit(visitor.get("/renew"), "issue-form", csr=csr)
    assert (refused.status, refused.error) == (403, "names-not-allowed")


def test_a_device_certificate_from_est_renews_here_too(shared: Live) -> None:
    handover = shared.invite("device", doors=frozenset({Door.EST}))
    holder = shared.enroll(handover)
    visitor = Visitor(shared, "devices", holder)
    page = visitor.submit(visitor.get("/renew"), "issue-form", csr=pem(make_csr(new_key())))
    assert page.step == "[STEP3] Take the certificate"
    assert newest(shared, handover).subject == holder.certificate.subject


def test_looking_changes_nothing(shared: Live) -> None:
    handover, holder = certified(shared)
    visitor = Visitor(shared, "devices", holder)
    for path in ("/renew", "/test", "/", "/renew?again=1", "/renew?certificate=x"):
        for method in ("GET", "HEAD"):
            assert visitor.request(method, path).status == 200
    assert len(shared.core.ra.of_invitation(handover.invitation.number)) == 1
