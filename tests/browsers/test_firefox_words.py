"""Firefox: typing mistakes, dead links, cancelled dialogs and renewals are told in words."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from estserver.model import Language, RevocationReason
from tests.browsers.firefox import Firefox
from tests.browsers.person import IMPORTED, ISSUE, NEXT, PIN, STEP, Person, holder, person, take
from tests.live import ORIGIN, Live

pytestmark = [
    pytest.mark.filterwarnings("ignore:'telnetlib' is deprecated:DeprecationWarning:mozrunner.*"),
    pytest.mark.filterwarnings("ignore:distro.linux_dist:DeprecationWarning:mozinfo.*"),
    # Its wait for Firefox's port forgets a socket on each try.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning:marionette_driver.*"),
]


def open_with_certificate(firefox: Firefox, url: str, serial: str) -> None:
    """Open a page that asks for a certificate, and choose one in Firefox's dialog."""
    firefox.start_opening(url)
    firefox.certificate_dialog().choose(serial)
    firefox.until_opened(url)


# -- PINs and registrations ------------------------------------------------------------------------


@pytest.mark.row("SEED-11", "SEED-23")
def test_a_typing_mistake_is_found_before_anything_is_sent(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared)
    firefox.open(somebody.link)
    firefox.fill(PIN, somebody.pin[:-1] + ("7" if somebody.pin[-1] != "7" else "8"))
    firefox.click(NEXT)
    assert firefox.text("#pin-problem")
    assert shared.core.invitations.get(somebody.number).pin_failures == 0
    # From the keyboard of a Japanese IME.
    firefox.fill(PIN, somebody.pin.translate({n: n + 0xFEE0 for n in range(0x21, 0x7F)}).lower())
    firefox.press(NEXT)
    assert "[STEP2]" in firefox.text(STEP)


@pytest.mark.row("SEED-23")
def test_a_wrong_pin_is_said_in_words(firefox: Firefox, shared: Live) -> None:
    somebody, other = person(firefox, shared), person(firefox, shared)
    firefox.open(somebody.link)
    for _ in range(3):
        firefox.fill(PIN, other.pin)
        firefox.press(NEXT)
    assert "[STEP1]" in firefox.text(STEP)
    assert firefox.title.startswith("Error: ")
    error = firefox.text("#error")
    assert "The PIN is wrong." in error
    assert "2" in error
    assert shared.core.invitations.get(somebody.number).pin_failures == 3
    # Back and reload send no wrong PIN again.
    firefox.reload()
    assert shared.core.invitations.get(somebody.number).pin_failures == 3
    firefox.fill(PIN, somebody.pin)
    firefox.press(NEXT)
    assert "[STEP2]" in firefox.text(STEP)


@pytest.mark.row("SEED-23")
def test_a_cancelled_registration_says_so(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared, language=Language.JA)
    shared.core.invitations.cancel(somebody.number, by="test", origin=ORIGIN)
    firefox.open(somebody.link)
    assert "取り消されました" in firefox.text("#error")
    assert not firefox.shows(PIN)


@pytest.mark.row("SEED-23")
def test_an_unknown_link_says_so(firefox: Firefox, shared: Live) -> None:
    firefox.open(f"{shared.url('web')}/e/{'A' * 22}")
    assert firefox.shows("#error[data-code=not-found]")


@pytest.mark.row("SEED-12")
def test_the_language_changes_on_every_step_and_the_step_stays(
    firefox: Firefox, shared: Live
) -> None:
    somebody = person(firefox, shared)
    firefox.open(somebody.link)
    firefox.press("a[hreflang=ja]")
    assert "【STEP1】" in firefox.text(STEP)
    firefox.fill(PIN, somebody.pin)
    firefox.press(NEXT)
    assert "【STEP2】" in firefox.text(STEP)
    firefox.press("a[hreflang=en]")
    assert "[STEP2]" in firefox.text(STEP)
    file = somebody.issue()
    firefox.press("a[hreflang=ja]")
    assert "【STEP3】" in firefox.text(STEP)
    assert firefox.text("#serial") == file.serial


# -- renewal and test ------------------------------------------------------------------------------


@pytest.mark.row("SEED-08", "SEED-19", "SEED-23")
def test_a_cancelled_dialog_is_explained_and_can_be_undone(firefox: Firefox, shared: Live) -> None:
    held = holder(firefox, shared)
    renew = f"{shared.url('devices')}/renew"
    firefox.start_opening(renew)
    firefox.certificate_dialog().cancel()
    firefox.until_opened(renew)
    assert firefox.shows("#error[data-code=no-certificate]")
    assert "Authentication Decisions" in firefox.text()
    # Firefox remembers it for this host name and does not ask again.
    firefox.open(renew)
    assert firefox.shows("#error[data-code=no-certificate]")
    firefox.forget_decisions()
    open_with_certificate(firefox, renew, held.serial)
    assert firefox.text("#serial") == held.serial


def test_the_test_page_says_what_works_and_what_does_not(
    firefox: Firefox, make_live: Callable[[str], Live]
) -> None:
    live = make_live("")
    test = f"{live.url('devices')}/test"
    firefox.open(test)
    assert firefox.shows("[data-verdict=no-certificate]")
    held = holder(firefox, live)
    firefox.select_certificates_automatically(on=True)
    firefox.open(test)
    assert firefox.shows("[data-verdict=ok]")
    assert firefox.text("#serial") == held.serial

    live.clock.advance(timedelta(days=400))
    firefox.open(test)
    assert firefox.shows("[data-verdict=expired]")
    live.clock.advance(timedelta(days=-400))

    record = live.core.ra.find(held.certificate().serial_number)
    live.core.ra.revoke(
        record.enrollment,
        reason=RevocationReason.KEY_COMPROMISE,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    firefox.open(test)
    assert firefox.shows("[data-verdict=certificate-refused]")
    assert "revoked" in firefox.text()
    firefox.open(f"{live.url('devices')}/renew")
    # In the form in which Firefox shows it.
    assert f"serial number {held.serial} has been revoked" in firefox.text("#error")
    assert firefox.text("#serial") == held.serial


@pytest.mark.row("SEED-10")
def test_a_renewal_can_want_certificate_and_pin(
    firefox: Firefox, make_live: Callable[[str], Live]
) -> None:
    live = make_live('\n[profiles.person.renewal]\nauth = "certificate+pin"\n')
    somebody = person(firefox, live)
    somebody.confirm()
    old = somebody.issue()
    assert firefox.import_pkcs12(old.path, old.password) == IMPORTED
    fresh = live.core.invitations.new_pin(somebody.number, expires=None, by="test", origin=ORIGIN)
    assert fresh.pin is not None
    renew = f"{live.url('devices')}/renew"
    open_with_certificate(firefox, renew, old.serial)
    firefox.fill(PIN, fresh.pin.reveal())
    firefox.click(ISSUE)
    new = take(firefox)
    assert new.certificate().subject == old.certificate().subject
    assert new.serial != old.serial


@pytest.mark.row("SEED-10")
def test_a_new_pin_renews_under_the_old_link(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared)
    somebody.confirm()
    old = somebody.issue()
    fresh = shared.core.invitations.new_pin(somebody.number, expires=None, by="test", origin=ORIGIN)
    again = Person(firefox, shared, fresh)
    again.confirm()
    assert "[STEP2]" in firefox.text(STEP)
    assert old.serial in firefox.text()
    new = again.issue()
    assert new.serial != old.serial
    assert [one.serial_number for one in again.issued()] == [
        new.certificate().serial_number,
        old.certificate().serial_number,
    ]
