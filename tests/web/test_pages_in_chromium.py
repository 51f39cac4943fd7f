"""The pages in a real browser: key made there, nothing lost, readable by everybody."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12
from playwright.sync_api import Browser, BrowserContext, Download, Page, Route, sync_playwright

from estserver.model import Language
from tests.browsers.gallery import STEP, confirm, link
from tests.live import ORIGIN, Live
from tests.web.applicant import APPROVAL, SERVER_KEY, MakeLive, issued

Open = Callable[..., Page]
EVIL = '"><svg onload=alert(1)><img src=x onerror=alert(2)>'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Open]:
    """Return a function that opens a page of a person who never was here; scripts must not fail."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def open_new(**options: Any) -> Page:
        context = chromium.new_context(**{"ignore_https_errors": True, "locale": "en", **options})
        context.set_default_timeout(15000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))

        def note(message: Any) -> None:
            expected = "status of 4" in message.text or "net::ERR_CONNECTION_RESET" in message.text
            if message.type == "error" and not expected:
                problems.append(message.text)

        page.on("console", note)
        return page

    yield open_new
    for context in contexts:
        context.close()
    assert not problems


def issue(page: Page) -> Download:
    with page.expect_download() as download:
        page.click("button[name=issue]")
    return download.value


def opened(download: Download, password: str) -> pkcs12.PKCS12KeyAndCertificates:
    return pkcs12.load_pkcs12(Path(download.path()).read_bytes(), password.encode())


def assert_whole(file: pkcs12.PKCS12KeyAndCertificates, certificate: x509.Certificate) -> None:
    assert file.cert is not None
    assert file.key is not None
    assert file.cert.certificate == certificate
    assert file.key.public_key() == certificate.public_key()
    assert file.additional_certs[0].certificate.subject == certificate.issuer
    assert len(file.additional_certs) == 2


@pytest.mark.row("SEED-02", "SEED-13", "SEED-15", "SEED-21")
@pytest.mark.parametrize("language", list(Language))
def test_pin_issue_and_the_file_comes_by_itself(
    shared: Live, open_page: Open, language: Language
) -> None:
    handover = shared.invite("person", language=language)
    page = open_page()
    confirm(page, shared, handover)
    assert page.locator(STEP).inner_text().startswith(("[STEP2]", "【STEP2】"))
    assert page.get_attribute("html", "lang") == language.value
    password = page.input_value("[name=p12-password]")
    download = issue(page)
    (certificate,) = issued(shared, handover)
    month = f"{certificate.not_valid_before_utc:%Y-%m}"
    assert download.suggested_filename == f"山田 太郎_{month}.p12"
    assert_whole(opened(download, password), certificate)
    assert "STEP3" in page.locator(STEP).inner_text()
    serial = certificate.serial_number.to_bytes(20, "big").hex(":").upper().removeprefix("00:")
    assert page.locator("#serial").text_content() == serial
    assert page.input_value("[name=p12-password]") == password
    with page.expect_download() as again:
        page.click("#download")
    assert_whole(opened(again.value, password), certificate)


@pytest.mark.row("SEED-14")
def test_a_tab_closed_after_issue_and_opened_again_gives_the_file(
    shared: Live, open_page: Open
) -> None:
    handover = shared.invite("person")
    page = open_page()
    confirm(page, shared, handover)

    # The request is sent, the answer never comes: the tab is closed.
    def answer_nobody(route: Route) -> None:
        route.fetch(max_redirects=0)
        page.close()

    page.route("**/issue", answer_nobody)
    page.click("button[name=issue]", no_wait_after=True)
    page.wait_for_event("close")
    (certificate,) = issued(shared, handover)
    later = page.context.new_page()
    page.context.clear_cookies()
    assert handover.pin is not None
    later.goto(link(shared, handover))
    later.fill("input[name=pin]", handover.pin.reveal())
    with later.expect_download() as download:
        later.click("button[name=next]")
    assert_whole(opened(download.value, later.input_value("[name=p12-password]")), certificate)


@pytest.mark.row("SEED-14")
def test_two_clicks_a_reload_and_two_tabs_make_one_certificate(
    shared: Live, open_page: Open
) -> None:
    handover = shared.invite("person")
    first = open_page()
    confirm(first, shared, handover)
    second = first.context.new_page()
    second.goto(link(shared, handover))
    first.dblclick("button[name=issue]")
    second.click("button[name=issue]")
    for page in (first, second):
        page.wait_for_selector("#download")
        page.wait_for_selector("#progress:has-text('downloads')")
    first.reload()
    first.wait_for_selector("#download")
    assert "STEP3" in first.locator(STEP).inner_text()
    first.go_back()
    assert len(issued(shared, handover)) == 1


@pytest.mark.row("SEED-14", "SEED-23")
def test_a_broken_connection_is_told_and_the_same_button_goes_on(
    shared: Live, open_page: Open
) -> None:
    handover = shared.invite("person")
    page = open_page()
    confirm(page, shared, handover)
    page.route("**/issue", lambda route: route.abort("connectionreset"))
    page.click("button[name=issue]")
    page.wait_for_selector("#error")
    assert page.get_attribute("#error", "data-code") == "network"
    assert page.title().startswith("Error: ")
    assert page.evaluate("document.activeElement.id") == "error"
    page.unroute("**/issue")
    password = page.input_value("[name=p12-password]")
    assert_whole(opened(issue(page), password), issued(shared, handover)[0])


@pytest.mark.row("SEED-23")
def test_a_refusal_of_the_server_is_shown_in_its_words_with_the_reference(
    shared: Live, open_page: Open
) -> None:
    handover = shared.invite("person")
    page = open_page()
    confirm(page, shared, handover)
    shared.core.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    page.click("button[name=issue]")
    page.wait_for_selector("#error")
    assert "was cancelled" in page.inner_text("#error")
    assert len(page.inner_text("#error code")) == 16


@pytest.mark.row("SEED-14")
def test_approval_while_the_page_waits_ends_in_the_file(
    make_live: MakeLive, open_page: Open
) -> None:
    live = make_live(APPROVAL)
    handover = live.invite("person")
    page = open_page()
    confirm(page, live, handover)
    page.click("button[name=issue]")
    page.wait_for_selector("h1:has-text('Waiting for approval')")
    ((enrollment, _),) = live.core.ra.of_invitation(handover.invitation.number)
    live.core.ra.approve(enrollment.id, by="officer", origin=ORIGIN)
    with page.expect_download() as download:
        page.wait_for_selector("#download")
    password = page.input_value("[name=p12-password]")
    assert_whole(opened(download.value, password), issued(live, handover)[0])


@pytest.mark.parametrize("file_format", ["modern", "compatible"])
def test_own_password_and_format_are_kept_to(
    shared: Live, open_page: Open, file_format: str
) -> None:
    handover = shared.invite("person")
    page = open_page()
    confirm(page, shared, handover)
    page.fill("[name=p12-password]", "short")
    page.click("button[name=issue]")
    assert "at least 12" in page.inner_text("#p12-password-problem")
    assert page.get_attribute("[name=p12-password]", "aria-invalid") == "true"
    page.fill("[name=p12-password]", "パスワードパスワード123")
    page.click("button[name=issue]")
    assert "English keyboard" in page.inner_text("#p12-password-problem")
    password = "my own long password"
    page.fill("[name=p12-password]", password)
    page.check(f"#format-{file_format}")
    if file_format == "compatible":
        page.click("button[name=issue]")
        assert "generated password" in page.inner_text("#p12-password-problem")
        page.click("#new-password")
        password = page.input_value("[name=p12-password]")
    download = issue(page)
    assert_whole(opened(download, password), issued(shared, handover)[0])
    assert (b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01\x03" in Path(download.path()).read_bytes()) == (
        file_format == "compatible"
    )


def test_the_key_type_that_was_chosen_is_made(shared: Live, open_page: Open) -> None:
    handover = shared.invite("person")
    page = open_page()
    confirm(page, shared, handover)
    page.click("#advanced summary")
    page.select_option("#key-type", "ec-p256")
    assert "P-256" in page.inner_text("#key-shown")
    password = page.input_value("[name=p12-password]")
    file = opened(issue(page), password)
    assert file.key is not None
    assert file.key.key_size == 256  # type: ignore[union-attr]  # made as P-256


@pytest.mark.row("SEED-07", "SEED-18")
def test_another_browser_is_told_where_the_key_is_and_may_replace(
    shared: Live, open_page: Open
) -> None:
    handover = shared.invite("person")
    page = open_page()
    confirm(page, shared, handover)
    issue(page)
    other = open_page()
    confirm(other, shared, handover)
    other.wait_for_selector("#key-elsewhere")
    assert "not in this browser" in other.inner_text("#key-elsewhere")
    other.click("#key-elsewhere a:has-text('Replace')")
    other.wait_for_selector("button[name=issue]")
    password = other.input_value("[name=p12-password]")
    newest = opened(issue(other), password)
    assert_whole(newest, issued(shared, handover)[0])
    # The first browser sees the same truth: its certificate is gone.
    page.goto(link(shared, handover))
    page.wait_for_selector("#key-elsewhere")
    assert "new registration" in page.inner_text("#key-elsewhere")


def test_two_browsers_with_two_certificates_find_each_its_own(
    shared: Live, open_page: Open
) -> None:
    handover = shared.invite("person", units=2)
    first, second = open_page(), open_page()
    confirm(first, shared, handover)
    issue(first)
    serial = first.locator("#serial").text_content()
    confirm(second, shared, handover)
    second.click("#key-elsewhere a:has-text('further')")
    second.wait_for_selector("button[name=issue]")
    issue(second)
    assert second.locator("#serial").text_content() != serial
    first.goto(link(shared, handover))
    first.wait_for_selector("#download")
    assert first.locator("#serial").text_content() == serial


@pytest.mark.row("SEED-16")
def test_imported_wipes_the_key_from_the_browser(shared: Live, open_page: Open) -> None:
    handover = shared.invite("person")
    page = open_page()
    confirm(page, shared, handover)
    issue(page)
    count = """new Promise((done) => { indexedDB.open('estserver').onsuccess = (opened) => {
        const all = opened.target.result.transaction('enrollments').objectStore('enrollments');
        all.count().onsuccess = (counted) => done(counted.target.result); }; })"""
    assert page.evaluate(count) == 1
    page.click("button[name=taken]")
    page.wait_for_selector("text=You confirmed")
    assert page.evaluate(count) == 0
    ((enrollment, _),) = shared.core.ra.of_invitation(handover.invitation.number)
    assert enrollment.taken_at is not None


@pytest.mark.row("SEED-23")
def test_blocked_storage_is_told_before_anything_is_issued(shared: Live, open_page: Open) -> None:
    handover = shared.invite("person")
    page = open_page()
    page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    confirm(page, shared, handover)
    page.wait_for_selector("#error")
    assert page.get_attribute("#error", "data-code") == "storage-blocked"
    page.click("button[name=issue]")
    page.wait_for_selector("#error")
    assert not shared.core.ra.of_invitation(handover.invitation.number)


@pytest.mark.row("SEED-23")
def test_a_browser_without_webcrypto_is_told(shared: Live, open_page: Open) -> None:
    handover = shared.invite("person")
    page = open_page()
    page.add_init_script("Object.defineProperty(crypto, 'subtle', { value: undefined })")
    confirm(page, shared, handover)
    page.wait_for_selector("#error")
    assert page.get_attribute("#error", "data-code") == "insecure-context"


@pytest.mark.row("SEED-14", "SEED-23")
def test_without_scripts_a_csr_goes_and_the_caution_stands(
    make_live: MakeLive, open_page: Open
) -> None:
    live = make_live(SERVER_KEY)
    handover = live.invite("person")
    page = open_page(java_script_enabled=False)
    confirm(page, live, handover)
    assert page.locator("noscript p").is_visible()
    assert page.locator("text=might be unavailable").is_visible()
    assert not page.locator("[name=p12-password]").is_visible()
    assert page.locator("#csr").is_visible()
    page.check("#method-server")
    password = page.inner_text("#server-password")
    file = opened(issue(page), password)
    assert_whole(file, issued(live, handover)[0])
    page.click("text=on to [STEP3]")
    assert page.locator("a.download").is_visible()


def test_with_scripts_the_caution_of_old_stands_nowhere(shared: Live, open_page: Open) -> None:
    page = open_page()
    confirm(page, shared, shared.invite("person"))
    assert not page.locator("text=might be unavailable").is_visible()
    assert page.locator(".quiet-note:has-text('nothing is lost')").is_visible()


def test_a_typing_mistake_is_found_before_anything_is_sent(shared: Live, open_page: Open) -> None:
    handover = shared.invite("person")
    assert handover.pin is not None
    page = open_page()
    page.goto(link(shared, handover))
    # The page may still be fetching an icon or a style: what counts is a page asked for.
    sent: list[str] = []
    page.on("request", lambda r: sent.append(r.method) if r.is_navigation_request() else None)
    symbols = handover.pin.reveal()
    mistyped = symbols[:-1] + ("2" if symbols[-1] != "2" else "3")
    page.fill("input[name=pin]", mistyped)
    page.click("button[name=next]")
    assert page.locator("#pin-problem").is_visible()
    assert sent == []
    wide = symbols.lower().translate({i: i + 0xFEE0 for i in range(0x21, 0x7F)})
    page.fill("input[name=pin]", f" {wide} ")
    page.click("button[name=next]")
    page.wait_for_selector("button[name=issue]")


def test_the_idle_session_is_announced_and_extended(live: Live, open_page: Open) -> None:
    handover = live.invite("person")
    page = open_page()
    page.clock.install()
    confirm(page, live, handover)
    assert page.locator("#idle").is_hidden()
    page.clock.fast_forward(26 * 60 * 1000)
    live.clock.advance(timedelta(minutes=26))
    page.wait_for_selector("#idle:not([hidden])")
    page.click("#stay")
    page.wait_for_selector("#idle", state="hidden")
    live.clock.advance(timedelta(minutes=20))
    page.reload()
    assert page.locator("button[name=issue]").is_visible()


@pytest.mark.row("INC-16")
def test_hostile_names_run_nothing(shared: Live, open_page: Open) -> None:
    handover = shared.invite("person", name=EVIL)
    page = open_page()
    confirm(page, shared, handover)
    download = issue(page)
    assert "/" not in download.suggested_filename
    page.wait_for_selector("#download")
    assert page.locator("svg, img").count() == 0
    assert EVIL in page.inner_text("main")


@pytest.mark.row("SEED-09", "SEED-21")
def test_the_certificate_in_use_renews_and_the_new_file_comes(
    shared: Live, open_page: Open, tmp_path: Path
) -> None:
    handover = shared.invite("person")
    page = open_page()
    confirm(page, shared, handover)
    password = page.input_value("[name=p12-password]")
    held = tmp_path / "held.p12"
    issue(page).save_as(held)
    shows = {"origin": shared.url("devices"), "pfxPath": str(held), "passphrase": password}
    page = open_page(client_certificates=[shows], viewport={"width": 320, "height": 640})
    page.goto(f"{shared.url('devices')}/renew")
    assert page.locator("#serial").is_visible()
    password = page.input_value("[name=p12-password]")
    download = issue(page)
    newest, first = issued(shared, handover)
    assert_whole(opened(download, password), newest)
    assert newest.public_key() != first.public_key()
    assert "STEP3" in page.locator(STEP).inner_text()
    page.reload()
    with page.expect_download() as again:
        page.click("#download")
    assert_whole(opened(again.value, page.input_value("[name=p12-password]")), newest)
    page.click("button[name=taken]")
    page.wait_for_selector("text=You confirmed")
    page.goto(f"{shared.url('devices')}/test")
    assert "It works." in page.inner_text("main")


# -- for everybody ---------------------------------------------------------------------------------


def test_the_keyboard_alone_issues_a_certificate(shared: Live, open_page: Open) -> None:
    handover = shared.invite("person")
    assert handover.pin is not None
    page = open_page()
    page.goto(link(shared, handover))
    page.keyboard.press("Tab")
    for _ in range(12):
        if page.evaluate("document.activeElement.name") == "pin":
            break
        page.keyboard.press("Tab")
    page.keyboard.type(handover.pin.reveal())
    page.keyboard.press("Enter")
    page.wait_for_selector("button[name=issue]")
    for _ in range(25):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if page.evaluate("document.activeElement.name") == "issue":
            break
    with page.expect_download():
        page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "H1"
