"""A person takes a certificate with Firefox, and nothing is lost on the way."""

import pytest

from estserver import failpoints
from estserver.model import CertificateState, Language
from tests.browsers.firefox import Firefox, OwnCertificate
from tests.browsers.person import (
    DOWNLOAD,
    IMPORTED,
    ISSUE,
    NEXT,
    PASSWORD,
    PIN,
    STEP,
    WRONG_PASSWORD,
    holder,
    person,
    take,
)
from tests.live import Live

pytestmark = [
    pytest.mark.filterwarnings("ignore:'telnetlib' is deprecated:DeprecationWarning:mozrunner.*"),
    pytest.mark.filterwarnings("ignore:distro.linux_dist:DeprecationWarning:mozinfo.*"),
    # Its wait for Firefox's port forgets a socket on each try.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning:marionette_driver.*"),
]


ORGANIZATION = "Example Organization"


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
