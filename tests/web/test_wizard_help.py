"""Instructions that fit the visitor's browser and system, and pages without a registration."""

import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from estserver.model import Language
from tests.live import Live, make_csr, new_key
from tests.web.applicant import link, pem, signed_in
from tests.web.visitor import Visitor

# -- the three steps -------------------------------------------------------------------------------


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
