"""http-01 on the wire: requests, redirects, bodies, failures (ACME-128 to 135, 166, 167)."""

import asyncio
import gzip
import ipaddress
import ssl
from collections.abc import AsyncIterator

import dns.rcode
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from estserver.protocols.acme.addresses import AddressRules, Dialler
from estserver.protocols.acme.challenge import ChallengeFailed
from estserver.protocols.acme.http01 import HTTP01, Hop
from estserver.protocols.acme.lookups import Lookups
from tests.live import MovableClock
from tests.protocols.acme.neighbourhood import (
    HOST,
    KEY_AUTHORIZATION,
    PATH,
    TOKEN,
    Neighbourhood,
    challenge,
    ok,
    redirect,
)

OPEN = ("127.0.0.0/8", "::1/128")
SECRET = "internal-page-47114711"


@pytest.fixture
async def around() -> AsyncIterator[Neighbourhood]:
    async with Neighbourhood() as neighbourhood:
        yield neighbourhood


def tls_context(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(name).configure_cert(context)
    return context


@pytest.mark.row("ACME-128")
async def test_http_01_asks_for_the_well_known_path_by_name(around: Neighbourhood) -> None:
    around.name()
    host = await around.web(ok())
    await around.validator().validate(challenge())
    [head] = host.requests
    lines = head.split("\r\n")
    assert lines[0] == f"GET {PATH} HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    assert headers["Host"] == "www.example.test"
    assert headers["Accept"] == "*/*"
    assert headers["Accept-Encoding"] == "identity"
    assert "estserver" in headers["User-Agent"]
    assert "Cookie" not in headers
    assert "Authorization" not in headers


@pytest.mark.row("ACME-128")
async def test_a_name_is_resolved_once_for_one_request(around: Neighbourhood) -> None:
    around.name()
    await around.web(ok())
    await around.validator().validate(challenge())
    assert sorted(around.dns.questions) == [("www.example.test", "A"), ("www.example.test", "AAAA")]


@pytest.mark.row("ACME-128")
async def test_chunked_answers_and_answers_without_a_length_are_read(around: Neighbourhood) -> None:
    around.name()
    size = f"{len(KEY_AUTHORIZATION):x}"
    chunked = (
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\n{KEY_AUTHORIZATION}"
        "\r\n0\r\n\r\n"
    ).encode()
    answers = iter([chunked, f"HTTP/1.0 200 OK\r\n\r\n{KEY_AUTHORIZATION}".encode()])
    await around.web(lambda _: next(answers))
    assert await around.problem(challenge()) == "valid"
    assert await around.problem(challenge()) == "valid"


@pytest.mark.row("ACME-129")
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (KEY_AUTHORIZATION + "\n", "valid"),
        (KEY_AUTHORIZATION + "\r\n \t", "valid"),
        (" " + KEY_AUTHORIZATION, "incorrectResponse"),
        ("\ufeff" + KEY_AUTHORIZATION, "incorrectResponse"),
        (KEY_AUTHORIZATION[:-1], "incorrectResponse"),
        (KEY_AUTHORIZATION + "A", "incorrectResponse"),
        (TOKEN, "incorrectResponse"),
        (KEY_AUTHORIZATION.swapcase(), "incorrectResponse"),
        (KEY_AUTHORIZATION + " " * 100, "incorrectResponse"),
        ("", "incorrectResponse"),
    ],
)
async def test_blanks_count_at_the_end_only_for_nothing(
    around: Neighbourhood, body: str, expected: str
) -> None:
    around.name()
    await around.web(ok(body))
    assert await around.problem(challenge()) == expected


@pytest.mark.row("ACME-130")
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_to_https_with_any_certificate_are_followed(
    around: Neighbourhood, status: int
) -> None:
    around.name()
    around.name("secure.example.test")
    await around.web(redirect("https://secure.example.test/somewhere?a=b%20c", status))
    context = tls_context("somebody.else.test")
    names: list[str | None] = []
    context.sni_callback = lambda _connection, name, _context: names.append(name)
    secure = await around.web(ok(), port=around.tls_port, tls=context)
    await around.validator().validate(challenge())
    assert secure.requests[0].startswith("GET /somewhere?a=b%20c HTTP/1.1\r\n")
    assert "Host: secure.example.test\r\n" in secure.requests[0]
    assert names == ["secure.example.test"]


@pytest.mark.row("ACME-130")
async def test_ten_redirects_are_followed_relative_ones_with_them(around: Neighbourhood) -> None:
    around.name()

    def answer(path: str) -> bytes:
        number = 0 if path == PATH else int(path.removeprefix("/"))
        return ok() if number == 10 else redirect(f"/{number + 1}")

    host = await around.web(answer)
    await around.validator().validate(challenge())
    assert len(host.requests) == 11


@pytest.mark.row("ACME-131")
async def test_the_eleventh_redirect_is_not_followed(around: Neighbourhood) -> None:
    around.name()
    host = await around.web(lambda path: redirect(f"/{len(path)}/{path}"))
    assert await around.problem(challenge()) == "connection"
    assert len(host.requests) == 11


@pytest.mark.row("ACME-131")
@pytest.mark.parametrize(
    "location",
    [
        "http://www.example.test:8081/",
        "http://www.example.test:22/",
        "http://www.example.test:99999/",
        "http://www.example.test:http/",
        "ftp://www.example.test/",
        "file:///etc/passwd",
        "gopher://www.example.test/",
        "javascript:alert(1)",
        "http://user:secret@www.example.test/",
        "http://www.example.test@other.example.test/",
        "http:///nothing",
        "http:nothing",
        "http://[/",
        "http://www.example.test\\@other.example.test/",
        "http://www.example.test/" + "a" * 2000,
        "/" + "a" * 2000,
        "http://www.example.test/\tx",
        "http://www.example.test/ü",
        "",
        "http://*.example.test/",
        "http://under_score.example.test/",
        "http://%77ww.example.test/",
    ],
)
async def test_a_redirect_that_breaks_a_rule_is_not_followed(
    around: Neighbourhood, location: str
) -> None:
    around.name()
    host = await around.web(redirect(location))
    assert await around.problem(challenge()) == "connection"
    assert host.connections == 1


@pytest.mark.row("ACME-131")
@pytest.mark.parametrize("status", [300, 303, 304, 305, 399])
async def test_other_kinds_of_redirect_are_not_followed(around: Neighbourhood, status: int) -> None:
    around.name()
    host = await around.web(redirect("/other", status))
    assert await around.problem(challenge()) == "connection"
    assert host.connections == 1


@pytest.mark.row("ACME-131")
async def test_a_redirect_without_a_location_and_one_to_itself_fail(around: Neighbourhood) -> None:
    around.name()
    answers = iter([b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", redirect(PATH)])
    host = await around.web(lambda _: next(answers))
    assert await around.problem(challenge()) == "connection"
    assert await around.problem(challenge()) == "connection"
    assert host.connections == 2


@pytest.mark.row("ACME-131", "ACME-132")
@settings(deadline=None)
@given(
    start=st.sampled_from(["", "/", "//", "http:", "http://", "https://", "https://[::1]"]),
    rest=st.text("abc/:?#[]@!$&'()*+,;=%.-_~0127\\ \t", max_size=20),
)
def test_no_location_turns_a_judged_address_into_another(start: str, rest: str) -> None:
    dialler = Dialler(Lookups((), 1), AddressRules((), ()))
    fetcher = HTTP01(dialler, http_port=80, tls_port=443, seconds=1)
    try:
        hop = fetcher.follow(Hop("http", "www.example.test", 80, PATH), start + rest)
    except ChallengeFailed:
        return
    url = hop.url(ipaddress.ip_address("1.2.3.4"))
    assert (url.host, url.user, url.password) == ("1.2.3.4", None, None)
    assert url.port == hop.port
    assert hop.port in {80, 443}
    assert url.raw_path_qs.startswith("/")


@pytest.mark.row("ACME-133")
@pytest.mark.parametrize("status", [200, 403, 500])
async def test_what_an_internal_page_says_never_reaches_the_client(
    around: Neighbourhood, status: int
) -> None:
    around.name()
    answer = ok(SECRET, f"X-Secret: {SECRET}").replace(b"200 OK", f"{status} {SECRET}".encode())
    await around.web(answer)
    problem, detail = await around.failure(challenge())
    assert problem in {"incorrectResponse", "unauthorized"}
    assert SECRET not in detail


@pytest.mark.row("ACME-133")
async def test_where_a_redirect_leads_never_reaches_the_client(around: Neighbourhood) -> None:
    around.name()
    await around.web(redirect(f"ftp://{SECRET}.test/{SECRET}"))
    problem, detail = await around.failure(challenge())
    assert problem == "connection"
    assert SECRET not in detail


@pytest.mark.row("ACME-133")
async def test_of_an_endless_body_only_the_beginning_is_read(around: Neighbourhood) -> None:
    around.name()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    await around.web(head + b"a" * 4_000_000)
    assert await around.problem(challenge(), seconds=5) == "incorrectResponse"


@pytest.mark.row("ACME-133")
@pytest.mark.parametrize(
    "opening",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-A: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 87\r\n\r\neva",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_an_answer_that_never_ends_runs_into_the_deadline(
    around: Neighbourhood, opening: bytes
) -> None:
    host = await around.stubborn(HOST, opening)
    asked = challenge(identifier=HOST, identifier_type="ip")
    assert await around.problem(asked, seconds=1) == "connection"
    assert host.connections == 1


@pytest.mark.row("ACME-133")
async def test_a_compressed_body_is_not_unpacked(around: Neighbourhood) -> None:
    around.name()
    await around.web(ok(gzip.compress(KEY_AUTHORIZATION.encode()), "Content-Encoding: gzip"))
    assert await around.problem(challenge()) == "incorrectResponse"


@pytest.mark.row("ACME-133")
@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x00\xff\xfe\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/9.9 banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nabc",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_whatever_else_answers_is_a_connection_problem(
    around: Neighbourhood, octets: bytes
) -> None:
    around.name()
    await around.web(octets)
    assert await around.problem(challenge()) == "connection"


@pytest.mark.row("ACME-134")
async def test_ipv6_comes_first(around: Neighbourhood) -> None:
    around.name("www.example.test", HOST, "::1")
    v4 = await around.web(ok())
    v6 = await around.web(ok(), "::1")
    await around.validator().validate(challenge())
    assert (v6.connections, v4.connections) == (1, 0)


@pytest.mark.row("ACME-134")
async def test_a_dead_ipv6_address_falls_back_to_one_ipv4_address(around: Neighbourhood) -> None:
    around.name("www.example.test", HOST, "127.0.0.22", "::1")
    hosts = [await around.web(ok(), address) for address in (HOST, "127.0.0.22")]
    await around.validator(allow_networks=OPEN).validate(challenge())
    assert sum(host.connections for host in hosts) == 1


@pytest.mark.row("ACME-134")
async def test_a_silent_ipv6_address_leaves_time_for_ipv4(around: Neighbourhood) -> None:
    around.name("www.example.test", HOST, "::1")
    await around.stubborn("::1")
    await around.web(ok())
    assert await around.problem(challenge(), seconds=2) == "valid"


@pytest.mark.row("ACME-134")
async def test_an_answer_over_ipv6_counts_even_where_ipv4_would_be_right(
    around: Neighbourhood,
) -> None:
    around.name("www.example.test", HOST, "::1")
    v4 = await around.web(ok())
    await around.web(ok("other"), "::1")
    assert await around.problem(challenge()) == "incorrectResponse"
    assert v4.connections == 0


@pytest.mark.row("ACME-135")
async def test_each_failure_has_its_problem_type(around: Neighbourhood) -> None:
    assert await around.problem(challenge()) == "dns"  # NXDOMAIN
    around.dns.records[("www.example.test", "A")] = dns.rcode.SERVFAIL
    around.dns.records[("www.example.test", "AAAA")] = dns.rcode.SERVFAIL
    assert await around.problem(challenge()) == "dns"
    around.dns.records[("www.example.test", "A")] = None
    around.dns.records[("www.example.test", "AAAA")] = None
    assert await around.problem(challenge(), seconds=2) == "dns"
    around.dns.records = {("www.example.test", "TXT"): ['"no address"']}
    assert await around.problem(challenge()) == "dns"
    around.dns.records = {}
    around.name()
    assert await around.problem(challenge()) == "connection"  # nobody listens
    answers = iter(
        [ok().replace(b"200", b"404"), ok("wrong"), redirect("https://www.example.test/")]
    )
    await around.web(lambda _: next(answers))
    assert await around.problem(challenge()) == "unauthorized"
    assert await around.problem(challenge()) == "incorrectResponse"
    await around.tls(None)
    assert await around.problem(challenge()) == "tls"


@pytest.mark.row("ACME-135")
async def test_one_family_that_cannot_be_asked_for_is_no_obstacle(around: Neighbourhood) -> None:
    around.name()
    around.dns.records[("www.example.test", "AAAA")] = dns.rcode.SERVFAIL
    await around.web(ok())
    assert await around.problem(challenge()) == "valid"


@pytest.mark.row("ACME-166")
async def test_http_01_proves_no_wildcard(around: Neighbourhood) -> None:
    around.name()
    host = await around.web(ok())
    assert await around.problem(challenge(wildcard=True)) == "unauthorized"
    assert host.connections == 0


@pytest.mark.row("ACME-167")
@pytest.mark.parametrize(("address", "header"), [(HOST, HOST), ("::1", "[::1]")])
async def test_an_address_is_dialled_without_dns(
    around: Neighbourhood, address: str, header: str
) -> None:
    host = await around.web(ok(), address)
    asked = challenge(identifier=address, identifier_type="ip")
    await around.validator().validate(asked)
    assert f"Host: {header}\r\n" in host.requests[0]
    assert around.dns.questions == []


@pytest.mark.row("ACME-167")
async def test_an_address_may_redirect_to_itself_over_https(around: Neighbourhood) -> None:
    await around.web(redirect(f"https://[::1]:{around.tls_port}{PATH}"), "::1")
    secure = await around.web(ok(), "::1", port=around.tls_port, tls=tls_context("x.test"))
    asked = challenge(identifier="::1", identifier_type="ip")
    await around.validator().validate(asked)
    assert "Host: [::1]\r\n" in secure.requests[0]


async def test_unknown_challenges_are_refused(around: Neighbourhood) -> None:
    assert await around.problem(challenge("email-reply-00")) == "unauthorized"


async def test_validations_run_side_by_side(around: Neighbourhood) -> None:
    around.name()
    host = await around.web(ok())
    validator = around.validator(clock=MovableClock())
    await asyncio.gather(*(validator.validate(challenge()) for _ in range(20)))
    assert host.connections == 20
