"""The way of a person with Firefox: link, PIN, Issue, file, own certificate store, renewal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from estserver import failpoints
from estserver.invitations import Handover
from estserver.model import CertificateState, Language, RevocationReason
from tests.browsers.firefox import Firefox, OwnCertificate
from tests.live import ORIGIN, Live

pytestmark = [
    pytest.mark.filterwarnings("ignore:'telnetlib' is deprecated:DeprecationWarning:mozrunner.*"),
    pytest.mark.filterwarnings("ignore:distro.linux_dist:DeprecationWarning:mozinfo.*"),
    # Its wait for Firefox's port forgets a socket on each try.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning:marionette_driver.*"),
]

PIN = "input[name=pin]"
NEXT = "button[name=next]"
ISSUE = "button[name=issue]"
DOWNLOAD = "#download"
PASSWORD = "input[name=p12-password]"
STEP = "[aria-current=step]"
IMPORTED, WRONG_PASSWORD = 0, 6
ORGANIZATION = "Example Organization"


@pytest.fixture(scope="module")
def browser(
    template: Path,
    shared: Live,  # noqa: ARG001 - stops after Firefox, whose connections are gone then
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Firefox]:
    with Firefox(tmp_path_factory.mktemp("firefox")) as firefox:
        firefox.trust(template / "ca/root.crt")
        yield firefox


@pytest.fixture
def firefox(
    browser: Firefox,
    make_live: Callable[[str], Live],  # noqa: ARG001 - stops after the connections are gone
) -> Iterator[Firefox]:
    yield browser
    browser.forget()
    browser.forget_downloads()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a link and a PIN in front of a Firefox."""

    firefox: Firefox
    live: Live
    handover: Handover

    @property
    def number(self) -> str:
        return self.handover.invitation.number

    @property
    def link(self) -> str:
        assert self.handover.token is not None
        return f"{self.live.url('web')}/e/{self.handover.token.reveal()}"

    @property
    def pin(self) -> str:
        assert self.handover.pin is not None
        return self.handover.pin.reveal()

    def confirm(self) -> None:
        """Open the link and enter the PIN."""
        self.firefox.open(self.link)
        self.firefox.fill(PIN, self.pin)
        self.firefox.press(NEXT)

    def issue(self) -> "File":
        """Press Issue in STEP2 and wait for the file."""
        self.firefox.click(ISSUE)
        return take(self.firefox)

    def issued(self) -> list[x509.Certificate]:
        """Return the certificates of the registration, newest first, as the store has them."""
        found = self.live.core.ra.of_invitation(self.number)
        held = [self.live.core.ra.certificate_of(enrollment.id) for enrollment, _ in found]
        return [x509.load_der_x509_certificate(one[1]) for one in held if one is not None]


@dataclass(frozen=True, slots=True)
class File:
    """A downloaded PKCS#12 file and what STEP3 said about it."""

    path: Path
    password: str
    serial: str

    def certificate(self) -> x509.Certificate:
        """Open the file, check that the key is that of the certificate, return the latter."""
        key, certificate, others = pkcs12.load_key_and_certificates(
            self.path.read_bytes(), self.password.encode()
        )
        assert key is not None
        assert certificate is not None
        assert key.public_key() == certificate.public_key()
        assert len(others) == 2
        return certificate


def take(firefox: Firefox) -> File:
    """Wait for STEP3 and the file that it hands over."""
    firefox.shown(DOWNLOAD)
    path = firefox.next_download()
    return File(path, firefox.value(PASSWORD), firefox.text("#serial"))


def person(firefox: Firefox, live: Live, **registration: object) -> Person:
    return Person(firefox, live, live.invite("person", **registration))


def holder(firefox: Firefox, live: Live) -> File:
    """Return the file of somebody who has taken and imported a certificate."""
    somebody = person(firefox, live)
    somebody.confirm()
    file = somebody.issue()
    assert firefox.import_pkcs12(file.path, file.password) == IMPORTED
    return file


def open_with_certificate(firefox: Firefox, url: str, serial: str) -> None:
    """Open a page that asks for a certificate, and choose one in Firefox's dialog."""
    firefox.start_opening(url)
    firefox.certificate_dialog().choose(serial)
    firefox.until_opened(url)


# -- the whole way ---------------------------------------------------------------------------------


@pytest.mark.row("SEED-02", "SEED-11", "SEED-13", "SEED-15", "SEED-16", "SEED-17", "SEED-21")
@pytest.mark.parametrize(
    ("language", "words"),
    [
        (Language.EN, ("[STEP1]", "[STEP2]", "[STEP3]")),
        (Language.JA, ("【STEP1】", "【STEP2】", "【STEP3】")),
    ],
)
def test_a_person_takes_a_certificate_that_firefox_lists_under_the_issuers_organization(
    firefox: Firefox, shared: Live, language: Language, words: tuple[str, str, str]
) -> None:
    somebody = person(firefox, shared, language=language)
    firefox.open(somebody.link)
    assert words[0] in firefox.text(STEP)
    assert all(word in firefox.text(".steps") for word in words)
    firefox.fill(PIN, somebody.pin)
    firefox.press(NEXT)
    assert words[1] in firefox.text(STEP)
    firefox.click(ISSUE)
    file = take(firefox)
    assert words[2] in firefox.text(STEP)

    assert file.path.suffix == ".p12"
    assert file.path.name.startswith("山田 太郎_")
    assert file.certificate() == somebody.issued()[0]
    assert firefox.import_pkcs12(file.path, "not the password") == WRONG_PASSWORD
    assert firefox.own_certificates() == []
    assert firefox.import_pkcs12(file.path, file.password) == IMPORTED
    assert firefox.own_certificates() == [OwnCertificate(ORGANIZATION, "山田 太郎", file.serial)]


@pytest.mark.row("SEED-08", "SEED-09", "SEED-10", "SEED-17")
def test_the_fresh_certificate_renews_itself_in_the_same_session_when_firefox_asks(
    firefox: Firefox, shared: Live
) -> None:
    # The listener was visited without a certificate before: nothing of that may linger.
    firefox.open(f"{shared.url('devices')}/test")
    assert firefox.shows("[data-verdict=no-certificate]")
    old = holder(firefox, shared)

    renew = f"{shared.url('devices')}/renew"
    firefox.start_opening(renew)
    dialog = firefox.certificate_dialog()
    assert "localhost" in dialog.host
    assert dialog.choices == [f"山田 太郎 [{old.serial}]"]
    assert "taro@example.ac.jp" in dialog.details
    dialog.choose(old.serial)
    firefox.until_opened(renew)
    assert firefox.text("#serial") == old.serial
    firefox.click(ISSUE)
    new = take(firefox)

    assert new.serial != old.serial
    assert new.certificate().subject == old.certificate().subject
    assert new.certificate().public_key() != old.certificate().public_key()
    assert firefox.import_pkcs12(new.path, new.password) == IMPORTED
    assert {row.serial for row in firefox.own_certificates()} == {old.serial, new.serial}
    assert {row.issuer for row in firefox.own_certificates()} == {ORGANIZATION}

    # Two certificates of one person differ by the serial alone, which both pages and dialog show.
    firefox.forget_decisions()
    test = f"{shared.url('devices')}/test"
    firefox.start_opening(test)
    dialog = firefox.certificate_dialog()
    assert len(dialog.choices) == 2
    dialog.choose(new.serial)
    firefox.until_opened(test)
    assert firefox.shows("[data-verdict=ok]")
    assert firefox.text("#serial") == new.serial


@pytest.mark.row("SEED-09", "SEED-19")
def test_firefox_set_to_select_automatically_renews_without_asking(
    firefox: Firefox, shared: Live
) -> None:
    old = holder(firefox, shared)
    firefox.select_certificates_automatically(on=True)
    firefox.open(f"{shared.url('devices')}/renew")
    assert firefox.text("#serial") == old.serial
    firefox.click(ISSUE)
    new = take(firefox)
    assert new.certificate().serial_number != old.certificate().serial_number
    assert firefox.import_pkcs12(new.path, new.password) == IMPORTED


@pytest.mark.row("SEED-08")
def test_the_link_asks_nobody_for_a_certificate(firefox: Firefox, shared: Live) -> None:
    holder(firefox, shared)
    firefox.forget_decisions()
    firefox.open(person(firefox, shared).link)
    assert firefox.shows(PIN)
    assert not firefox.asks_for_certificate()
    assert firefox.remembered_decisions() == 0


# -- nothing is lost -------------------------------------------------------------------------------


@pytest.mark.row("SEED-14", "SEED-15")
def test_a_lost_answer_and_a_closed_tab_lose_nothing(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared)
    firefox.new_tab()
    somebody.confirm()
    failpoints.arm("stored:1:raise")
    try:
        firefox.click(ISSUE)
        assert "wrong on our side" in firefox.text("#error")
    finally:
        failpoints.disarm()
    assert len(somebody.issued()) == 1
    firefox.close_tab()
    # Another day: the session is gone too.
    firefox.chrome("Services.cookies.removeAll()")

    somebody.confirm()
    assert "[STEP3]" in firefox.text(STEP)
    file = take(firefox)
    assert [file.certificate()] == somebody.issued()
    assert firefox.import_pkcs12(file.path, file.password) == IMPORTED


@pytest.mark.row("SEED-14")
def test_a_double_click_on_issue_makes_one_certificate(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared, units=2)
    somebody.confirm()
    firefox.click(ISSUE, times=2)
    file = take(firefox)
    assert [file.certificate()] == somebody.issued()
    assert firefox.forget_downloads() == 0


@pytest.mark.row("SEED-14")
def test_back_and_forward_after_issue_do_no_harm(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared)
    firefox.open(f"{shared.url('web')}/")
    somebody.confirm()
    file = somebody.issue()
    # All steps have one address, so Back leaves the wizard.
    firefox.departs(firefox.back)
    assert firefox.url == f"{shared.url('web')}/"
    firefox.departs(firefox.forward)
    assert "[STEP3]" in firefox.text(STEP)
    assert firefox.text("#serial") == file.serial
    # The page of STEP1, where the link Previous leads, knows what was done.
    firefox.open(f"{somebody.link}/pin")
    firefox.press(".notice.good a")
    assert firefox.text("#serial") == file.serial
    assert [file.certificate()] == somebody.issued()


@pytest.mark.row("SEED-14", "SEED-15", "SEED-16")
def test_reloading_keeps_the_step_and_the_file_can_be_taken_again(
    firefox: Firefox, shared: Live
) -> None:
    somebody = person(firefox, shared)
    somebody.confirm()
    firefox.reload()
    assert "[STEP2]" in firefox.text(STEP)
    first = somebody.issue()
    firefox.reload()
    assert "[STEP3]" in firefox.text(STEP)
    firefox.click(DOWNLOAD)
    again = take(firefox)
    assert again.certificate() == first.certificate()
    assert len(somebody.issued()) == 1


@pytest.mark.row("SEED-14")
def test_a_second_tab_goes_on_with_the_same_key(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared)
    somebody.confirm()
    first = firefox.tabs()[0]
    firefox.new_tab()
    firefox.open(somebody.link)
    assert "[STEP2]" in firefox.text(STEP)
    file = somebody.issue()
    firefox.close_tab()
    firefox.switch(first)
    # This tab still shows STEP2.
    same = somebody.issue()
    assert same.certificate() == file.certificate()
    assert len(somebody.issued()) == 1


@pytest.mark.row("SEED-07", "SEED-23")
def test_a_browser_without_the_key_says_where_it_is_and_replaces_the_certificate(
    firefox: Firefox, shared: Live
) -> None:
    somebody = person(firefox, shared)
    somebody.confirm()
    lost_certificate = somebody.issue().certificate()
    firefox.chrome(
        "return new Promise(done => Services.clearData.deleteDataFromHost('localhost', true,"
        "  Ci.nsIClearDataService.CLEAR_ALL, done))"
    )
    somebody.confirm()
    assert "[STEP3]" in firefox.text(STEP)
    assert firefox.shown("#key-elsewhere")
    assert not firefox.shows("#key-here")
    firefox.press("#key-elsewhere a[href$='/replace']")
    new = somebody.issue()
    new_certificate = new.certificate()
    assert firefox.import_pkcs12(new.path, new.password) == IMPORTED
    store = shared.core.ra
    states = [store.find(one.serial_number).state for one in (lost_certificate, new_certificate)]
    assert states == [CertificateState.REVOKED, CertificateState.VALID]


@pytest.mark.row("SEED-15", "SEED-16")
def test_after_i_have_imported_it_nothing_is_handed_over_any_more(
    firefox: Firefox, shared: Live
) -> None:
    somebody = person(firefox, shared)
    somebody.confirm()
    somebody.issue()
    firefox.press("button[name=taken]")
    assert firefox.text(".notice.good")
    enrollment, _ = shared.core.ra.of_invitation(somebody.number)[0]
    assert enrollment.taken_at is not None
    # On the next day too: the owner holds it, nothing is handed over any more.
    firefox.open(somebody.link)
    assert firefox.text(".notice.good")
    assert not firefox.shows(DOWNLOAD)


# -- the file --------------------------------------------------------------------------------------


def test_the_compatible_file_imports(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared)
    somebody.confirm()
    firefox.click("label[for=format-compatible]")
    file = somebody.issue()
    # pbeWithSHAAnd3-KeyTripleDES-CBC, which the modern file has nowhere.
    assert bytes.fromhex("060a2a864886f70d010c0103") in file.path.read_bytes()
    assert file.certificate() == somebody.issued()[0]
    assert firefox.import_pkcs12(file.path, file.password) == IMPORTED
    assert len(firefox.own_certificates()) == 1


def test_a_password_of_ones_own_opens_the_file(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared)
    somebody.confirm()
    firefox.fill(PASSWORD, "too short")
    firefox.click(ISSUE)
    assert "12" in firefox.text("#p12-password-problem")
    firefox.fill(PASSWORD, "correct horse battery")
    file = somebody.issue()
    assert file.password == "correct horse battery"
    assert firefox.import_pkcs12(file.path, file.password) == IMPORTED


def test_an_elliptic_curve_key_imports(firefox: Firefox, shared: Live) -> None:
    somebody = person(firefox, shared)
    somebody.confirm()
    firefox.click("#advanced summary")
    firefox.shown("#key-type").send_keys("Elliptic curve P-256")
    file = somebody.issue()
    assert file.certificate().public_key() == somebody.issued()[0].public_key()
    assert firefox.import_pkcs12(file.path, file.password) == IMPORTED


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
