"""What protects the pages: headers, origin, tokens, one value a field, escaping, quiet logs."""

import json
import re
from urllib.parse import urlencode

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.errors import BadInput
from estserver.web.forms import Form, read_csr_field
from tests.live import Live, make_csr, new_key
from tests.web.applicant import link, pin, signed_in
from tests.web.visitor import Visitor

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
EVIL = "\"><svg onload=alert(1)>'"
HOSTILE: tuple[dict[str, str], ...] = (
    {"Origin": "https://evil.example"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {},
)


def csr() -> str:
    request = x509.load_der_x509_csr(make_csr(new_key()))
    return request.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize("listener", ["web", "devices"])
@pytest.mark.parametrize("path", ["/", "/e/x", "/nothing", "/static/page.js", "/renew", "/test"])
def test_every_answer_has_the_protecting_headers(shared: Live, listener: str, path: str) -> None:
    page = Visitor(shared, listener="web" if listener == "web" else "devices").request("GET", path)
    assert page.headers["Content-Security-Policy"] == CSP
    assert page.headers["Strict-Transport-Security"] == "max-age=63072000; includeSubDomains"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert page.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert page.headers["X-Robots-Tag"] == "noindex"
    assert "camera=()" in page.headers["Permissions-Policy"]
    assert "Server" not in page.headers
    if page.headers["Content-Type"].startswith("text/html"):
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["Vary"] == "Accept-Language, Cookie"
    if listener == "devices":
        assert page.headers["Connection"] == "close"


def test_scripts_have_their_type_and_a_version_in_their_path(shared: Live) -> None:
    visitor = Visitor(shared)
    page = visitor.get("/")
    (script,) = [got["src"] for _, got in page.elements if got.get("type") == "module"]
    answer = visitor.get(script)
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert "immutable" in answer.headers["Cache-Control"]
    imported = visitor.get(script.replace("page.js", "keystore.js"))
    assert imported.status == 200
    old = visitor.get("/static/0000000000000000/page.js")
    assert old.headers["Cache-Control"] == "no-cache"
    for name in ("../pages.py", "%2e%2e%2fpages.py", "x.js", "style.css.map"):
        assert visitor.get(f"/static/{name}").status == 404


def test_no_page_has_anything_inline_that_the_policy_forbids(shared: Live) -> None:
    visitor, page = signed_in(shared, shared.invite("person"))
    done = visitor.submit(page, "issue-form", csr=csr())
    for one in (page, done, visitor.get("/"), visitor.get("/trust"), visitor.get("/help")):
        for tag, got in one.elements:
            assert not {name for name in got if name.startswith("on") or name == "style"}
            assert tag != "style"
            assert tag != "script" or "src" in got
            for name in ("src", "href"):
                assert not got.get(name, "").startswith(("javascript:", "data:", "//", "http:"))


# -- who sent it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", HOSTILE, ids=json.dumps)
def test_a_post_from_elsewhere_is_refused_and_changes_nothing(
    shared: Live, headers: dict[str, str]
) -> None:
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    fields = {**page.forms["issue-form"].fields, "csr": csr(), "method": "csr"}
    sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    for path in ("", "/issue", "/taken"):
        body = urlencode({**fields, "pin": pin(handover)}).encode()
        refused = visitor.request("POST", link(handover) + path, body, sent)
        assert (refused.status, refused.error) == (403, "forged-request")
    assert not shared.core.ra.of_invitation(handover.invitation.number)


def test_a_post_with_a_right_token_from_our_own_pages_passes(shared: Live) -> None:
    for headers in (
        {"Origin": shared.url("web")},
        {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin"},
    ):
        handover = shared.invite("person")
        body = urlencode({"pin": pin(handover)}).encode()
        sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        assert Visitor(shared).request("POST", link(handover), body, sent).status == 303


def test_the_token_of_another_session_is_refused(shared: Live) -> None:
    _, foreign = signed_in(shared, shared.invite("person"))
    handover = shared.invite("person")
    visitor, page = signed_in(shared, handover)
    token = foreign.forms["issue-form"].fields["csrf"]
    for value in (token, "", "\u3042"):
        refused = visitor.submit(page, "issue-form", csrf=value, csr=csr())
        assert (refused.status, refused.error) == (403, "forged-request")
    assert not shared.core.ra.of_invitation(handover.invitation.number)


def test_the_cookie_is_bound_to_host_and_https_and_to_its_own_invitation(shared: Live) -> None:
    handover, other = shared.invite("person"), shared.invite("person")
    visitor = Visitor(shared)
    answer = visitor.request(
        "POST",
        link(handover),
        urlencode({"pin": pin(handover)}).encode(),
        {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"},
    )
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("__Host-enroll-")
    for attribute in ("HttpOnly", "Secure", "SameSite=Lax", "Path=/", "Max-Age=1800"):
        assert attribute in cookie
    assert "Domain" not in cookie
    assert handover.invitation.number not in cookie
    assert visitor.get(link(other)).step == "[STEP1] Enter the password"
    (name, value), *_ = visitor.cookies.items()
    # The value under the other invitation's name, and a value with one bit changed, open nothing.
    thief = Visitor(shared)
    thief.enter(link(other), pin(other))
    (others_name,) = thief.cookies
    assert Visitor(shared, cookies={others_name: value}).get(link(other)).step != (
        "[STEP2] Issue the certificate"
    )
    broken = value[:20] + ("A" if value[20] != "A" else "B") + value[21:]
    assert Visitor(shared, cookies={name: broken}).get(link(handover)).status == 200
    assert Visitor(shared, cookies={name: broken}).get(link(handover)).step == (
        "[STEP1] Enter the password"
    )


def test_two_links_in_two_tabs_of_one_browser_do_not_disturb_each_other(shared: Live) -> None:
    first, second = shared.invite("person"), shared.invite("person")
    visitor, page = signed_in(shared, first)
    assert visitor.enter(link(second), pin(second)).step == "[STEP2] Issue the certificate"
    assert visitor.submit(page, "issue-form", csr=csr()).step == "[STEP3] Take the certificate"


# -- what it says ----------------------------------------------------------------------------------


@pytest.mark.row("INC-16")
def test_a_field_that_comes_twice_is_refused(shared: Live) -> None:
    handover = shared.invite("person")
    visitor = Visitor(shared)
    sent = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    body = f"pin={pin(handover)}&pin={pin(handover)}".encode()
    refused = visitor.request("POST", link(handover), body, sent)
    assert (refused.status, refused.error) == (400, "bad-input")
    assert "twice" in refused.seen
    part = f'--b\r\nContent-Disposition: form-data; name="pin"\r\n\r\n{pin(handover)}\r\n'
    sent["Content-Type"] = "multipart/form-data; boundary=b"
    refused = visitor.request("POST", link(handover), f"{part}{part}--b--\r\n".encode(), sent)
    assert (refused.status, refused.error) == (400, "bad-input")
    whole = f"{part}--b--\r\n".encode()
    assert visitor.request("POST", link(handover), whole, sent).status == 303


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"--b--", 400),
        ("multipart/form-data; boundary=b", b"", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\nx\r\n--b--\r\n", 400),
        ("multipart/form-data; boundary=b", b"--b\r\nno header at all--b--", 400),
        ("multipart/form-data; boundary=" + "b" * 71, b"--b--", 400),
        ("application/x-www-form-urlencoded", b"pin=%ff", 400),
        ("application/x-www-form-urlencoded", b"\xff\xfe", 400),
        ("application/x-www-form-urlencoded", b"&".join(b"a%d=1" % n for n in range(40)), 400),
        ("application/x-www-form-urlencoded", b"pin=" + b"x" * 70000, 413),
        ("application/x-www-form-urlencoded", b"", 403),
        ("application/x-www-form-urlencoded", b"pin=%00%0a", 403),
    ],
)
def test_odd_forms_are_refused_and_cost_no_try(
    shared: Live, content_type: str, body: bytes, status: int
) -> None:
    handover = shared.invite("person")
    sent = {"Content-Type": content_type, "Sec-Fetch-Site": "same-origin"}
    refused = Visitor(shared).request("POST", link(handover), body, sent)
    assert refused.status == status
    assert shared.core.invitations.get(handover.invitation.number).pin_failures == 0


def test_a_compressed_body_is_refused_unread(shared: Live) -> None:
    refused = Visitor(shared).post(
        link(shared.invite("person")), {"pin": "x"}, Content_Encoding="gzip"
    )
    assert refused.status == 415


def test_a_csr_as_text_and_as_file_at_once_is_refused() -> None:
    with pytest.raises(BadInput):
        read_csr_field(Form({"csr": b"a", "csr-file": b"b"}))


@pytest.mark.row("INC-16")
def test_names_that_look_like_markup_are_shown_as_text(shared: Live) -> None:
    handover = shared.invite("person", name=EVIL)
    visitor, page = signed_in(shared, handover)
    done = visitor.submit(page, "issue-form", csr=csr())
    assert done.step == "[STEP3] Take the certificate"
    for one in (page, done):
        assert "<svg" not in one.text
        assert "&lt;svg onload=alert(1)&gt;" in one.text
        assert EVIL in one.seen
    file = visitor.get(f"{link(handover)}/certificate.pem")
    assert "<" not in file.headers["Content-Disposition"].replace("%3C", "")
    assert "\n" not in file.headers["Content-Disposition"]


def test_what_the_address_bar_holds_never_comes_back_unescaped(shared: Live) -> None:
    for path in ("/e/%3Csvg%20onload=alert(1)%3E", "/%3Cscript%3E", "/trust/%3Csvg%3E.pem"):
        page = Visitor(shared).get(path)
        assert page.status == 404
        assert "<svg" not in page.text
        assert "<script>" not in page.text
    assert Visitor(shared).get("/?lang=%22%3E%3Csvg%3E").status == 200


@pytest.mark.parametrize("listener", ["web", "devices"])
@pytest.mark.parametrize("path", ["//evil.example/", "//evil.example/%2e%2e", "/%5Cevil.example"])
def test_no_link_of_a_page_follows_a_host_out_of_the_path(
    shared: Live, listener: str, path: str
) -> None:
    page = shared.request("GET", path, listener=listener)
    assert page.status == 404
    links = re.findall(r'(?:href|src|action)="([^"]*)"', page.body.decode())
    assert "?lang=ja" in links
    ours = (f"{shared.url('web')}/", f"{shared.url('devices')}/")
    away = [target for target in links if not re.match(r"[?#]|/(?![/\\])", target)]
    assert [target for target in away if not target.startswith(ours)] == []


def test_neither_token_nor_pin_nor_cookie_is_logged(
    shared: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    # Another test of this process may have sent log lines elsewhere.
    structlog.reset_defaults()
    handover = shared.invite("person")
    visitor = Visitor(shared)
    visitor.post(link(handover), {"pin": "AAA-AAA-AAA"})
    page = visitor.enter(link(handover), pin(handover))
    visitor.submit(page, "issue-form", csr=csr())
    visitor.get("/e/" + "Q" * 22)
    logged = capsys.readouterr()
    text = logged.out + logged.err
    assert "request.answered" in text
    for secret in (
        link(handover).removeprefix("/e/"),
        pin(handover),
        pin(handover).replace("-", ""),
        "AAA-AAA-AAA",
        "Q" * 22,
        *visitor.cookies.values(),
        page.forms["issue-form"].fields["csrf"],
    ):
        assert secret not in text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_find_nothing(shared: Live, method: str) -> None:
    handover = shared.invite("person")
    for path in ("", "/issue", "/taken", "/replace"):
        assert Visitor(shared).request(method, link(handover) + path, b"").status in (404, 405)
