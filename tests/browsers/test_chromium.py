"""The same way with Chromium, without scripts too; and what every page must keep to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12
from playwright.sync_api import ConsoleMessage, Page, expect

from estserver.model import Language
from tests.browsers import gallery
from tests.browsers.chromium import Chromium, Shown, save_download
from tests.browsers.gallery import ISSUE, STEP, confirm, link, take
from tests.live import Live
from tests.web.applicant import issued

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def chromium(
    template: Path,
    shared: Live,  # noqa: ARG001 - stops after Chromium, whose connections are gone then
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium"), template / "ca/root.crt") as chromium:
        yield chromium


@dataclass
class Visitors:
    """Opens pages for one test and remembers what they complain about."""

    chromium: Chromium
    pages: list[Page]
    complaints: list[str]

    def come(self, **how: object) -> Page:
        """Return an empty page of somebody new: see Chromium.person."""
        page = self.chromium.person(**how)  # type: ignore[arg-type]  # handed through
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.pages.append(page)
        return page

    def _listen(self, message: ConsoleMessage) -> None:
        # An answer of 4xx is a line in the console as well; those pages are looked at by the tests.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)


@pytest.fixture
def visitors(
    chromium: Chromium,
    make_live: Callable[[str], Live],  # noqa: ARG001 - stops after the connections are gone
) -> Iterator[Visitors]:
    visitors = Visitors(chromium, [], [])
    yield visitors
    for page in visitors.pages:
        page.context.close()
    # Scripts that fail, and whatever the Content-Security-Policy had to stop.
    assert visitors.complaints == []


def certificate_in(path: Path, password: str) -> x509.Certificate:
    """Open a file, check that the key is that of the certificate, return the latter."""
    key, certificate, others = pkcs12.load_key_and_certificates(
        path.read_bytes(), password.encode()
    )
    assert key is not None
    assert certificate is not None
    assert key.public_key() == certificate.public_key()
    assert len(others) == 2
    return certificate


# -- the whole way -----------------------------------------------------------------------------


@pytest.mark.row("SEED-02", "SEED-09", "SEED-11", "SEED-13", "SEED-15", "SEED-21")
@pytest.mark.parametrize(
    ("language", "words"),
    [
        (Language.EN, ("[STEP1]", "[STEP2]", "[STEP3]", "It works.")),
        (Language.JA, ("【STEP1】", "【STEP2】", "【STEP3】", "正しく使えます。")),
    ],
)
def test_a_person_takes_a_certificate_and_renews_with_it(
    visitors: Visitors,
    shared: Live,
    tmp_path: Path,
    language: Language,
    words: tuple[str, str, str, str],
) -> None:
    handover = shared.invite("person", language=language)
    page = visitors.come()
    page.goto(link(shared, handover))
    expect(page.locator(STEP)).to_contain_text(words[0])
    confirm(page, shared, handover)
    expect(page.locator(STEP)).to_contain_text(words[1])
    path, password = take(page, tmp_path)
    certificate = certificate_in(path, password)
    expect(page.locator(STEP)).to_contain_text(words[2])
    assert path.name.startswith("山田 太郎_")
    assert [certificate] == issued(shared, handover)

    devices = shared.url("devices")
    holder = visitors.come(shows=Shown(devices, path, password), locale=language.value)
    holder.goto(f"{devices}/test")
    expect(holder.locator("[data-verdict=ok]")).to_contain_text(words[3])
    holder.goto(f"{devices}/renew")
    renewed = certificate_in(*take(holder, tmp_path))
    assert renewed.subject == certificate.subject
    assert renewed.public_key() != certificate.public_key()
    assert issued(shared, handover) == [renewed, certificate]


@pytest.mark.row("SEED-23")
def test_without_a_certificate_the_devices_pages_say_what_to_do(
    visitors: Visitors, shared: Live
) -> None:
    page = visitors.come()
    page.goto(f"{shared.url('devices')}/test")
    expect(page.locator("[data-verdict=no-certificate]")).to_be_visible()
    page.goto(f"{shared.url('devices')}/renew")
    expect(page.locator("#error[data-code=no-certificate]")).to_be_visible()
    expect(page.locator(ISSUE)).to_have_count(0)


# -- nothing is lost ---------------------------------------------------------------------------


@pytest.mark.row("SEED-14", "SEED-23")
def test_a_session_that_ended_costs_nothing_but_the_pin(
    visitors: Visitors, shared: Live, tmp_path: Path
) -> None:
    handover = shared.invite("person")
    page = visitors.come()
    confirm(page, shared, handover)
    page.context.clear_cookies()
    page.click(ISSUE)
    expect(page.locator("#error[data-code=session-ended]")).to_be_focused()
    confirm(page, shared, handover)
    certificate = certificate_in(*take(page, tmp_path))
    assert [certificate] == issued(shared, handover)


@pytest.mark.row("SEED-07", "SEED-23")
def test_a_second_browser_learns_that_the_certificate_is_with_the_first(
    visitors: Visitors, shared: Live, tmp_path: Path
) -> None:
    handover = shared.invite("person")
    first, second = visitors.come(), visitors.come()
    confirm(first, shared, handover)
    confirm(second, shared, handover)
    certificate = certificate_in(*take(first, tmp_path))
    second.click(ISSUE)
    expect(second.locator("#error[data-code=already-issued]")).to_be_focused()
    second.goto(link(shared, handover))
    expect(second.locator("#key-elsewhere")).to_be_visible()
    assert [certificate] == issued(shared, handover)


# -- without scripts ------------------------------------------------------------------------------


@pytest.mark.row("SEED-14")
def test_without_scripts_the_server_can_make_the_key_where_the_profile_lets_it(
    visitors: Visitors, make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live("\n[profiles.person]\nserver_key = true\n")
    handover = live.invite("person")
    page = visitors.come(javascript=False)
    confirm(page, live, handover)
    # Here alone the old caution is true.
    expect(page.get_by_text("the certificate might be unavailable")).to_be_visible()
    page.check("#method-server")
    password = page.inner_text("#server-password")
    path = save_download(page, tmp_path, after=ISSUE)
    assert [certificate_in(path, password)] == issued(live, handover)


# -- every page ---------------------------------------------------------------------------------


def assert_accessible(page: Page, run_only: object) -> None:
    options = {"runOnly": run_only, "resultTypes": ["violations"]}
    found = [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in Axe().run(page, options=options).response["violations"]
    ]
    assert not found, f"{page.url}: {found}"


def assert_reflows(page: Page) -> None:
    """WCAG 1.4.10: nothing is cut off and nothing scrolls sideways at 320 CSS pixels."""
    wide = page.evaluate(
        """[...document.querySelectorAll('body *')]
        .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
        .filter((element) => getComputedStyle(element).position !== 'absolute')
        .map((element) => element.outerHTML.slice(0, 120))"""
    )
    assert not wide, page.url
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def assert_targets(page: Page) -> None:
    """WCAG 2.5.8: targets of at least 24 by 24 CSS pixels, links inside sentences apart."""
    small = page.evaluate(
        """[...document.querySelectorAll('button, input, select, summary, nav a')]
        .filter((element) => element.checkVisibility())
        .map((element) => [element.getBoundingClientRect(), element.outerHTML.slice(0, 120)])
        .filter(([box]) => box.width < 24 || box.height < 24)
        .map(([, html]) => html)"""
    )
    assert not small, page.url


WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
CONTRAST = {"type": "rule", "values": ["color-contrast"]}


# Words and colours are independent of each other, and all else of both: each once is enough.
@pytest.mark.row("SEED-12", "SEED-23")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("language", "dark", "rules"), [(Language.EN, True, WCAG), (Language.JA, False, CONTRAST)]
)
def test_every_page_fits_a_telephone_and_is_accessible(
    visitors: Visitors,
    make_live: Callable[[str], Live],
    tmp_path: Path,
    language: Language,
    *,
    dark: bool,
    rules: object,
) -> None:
    live = make_live(gallery.TOML)
    come = partial(visitors.come, width=320, height=640, dark=dark)
    for name, page in gallery.Gallery(come, live, tmp_path, language).walk():
        assert page.get_attribute("html", "lang") == language.value, name
        assert_reflows(page)
        assert_targets(page)
        # axe itself is a script.
        if "scriptless" not in name:
            assert_accessible(page, rules)
