"""HTTP, URLs, nonces, problems and the directory: what all resources have in common."""

import base64
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from estserver import errors
from estserver.protocols.acme.nonces import Nonces
from estserver.protocols.acme.problems import RENDER, kind_and_status
from tests.live import Live
from tests.protocols.acme.wire import (
    JOSE,
    URN,
    Client,
    Reply,
    Server,
    flattened,
    registered,
    sign,
)

_NAME = "req.example.org"
_REGISTERED = frozenset(
    {
        *("accountDoesNotExist", "alreadyRevoked", "badCSR", "badNonce", "badPublicKey"),
        *("badRevocationReason", "badSignatureAlgorithm", "caa", "compound", "connection", "dns"),
        *("externalAccountRequired", "incorrectResponse", "invalidContact", "malformed"),
        *("orderNotReady", "rateLimited", "rejectedIdentifier", "serverInternal", "tls"),
        *("unauthorized", "unsupportedContact", "unsupportedIdentifier", "userActionRequired"),
        *("alreadyReplaced", "invalidProfile"),
    }
)


@pytest.fixture(scope="module")
def client(shared: Live) -> Client:
    return registered(shared, _NAME, units=99)


@pytest.fixture(scope="module")
def either(server: Server) -> Client:
    return registered(server, _NAME, units=99)


def _resources(client: Client) -> dict[str, str]:
    order = client.ready(_NAME)
    body = order.json
    authorization = client.get(body["authorizations"][0]).json
    assert client.kid is not None
    return {
        "account": client.kid,
        "orders": client.get(client.kid).json["orders"],
        "order": order.header("Location"),
        "finalize": body["finalize"],
        "certificate": client.issue(_NAME).order["certificate"],
        "authz": body["authorizations"][0],
        "challenge": authorization["challenges"][0]["url"],
    }


@pytest.mark.row("ACME-001")
def test_scripts_in_browsers_are_let_in(client: Client) -> None:
    preflight = client.ask("OPTIONS", "/acme/new-order")
    assert preflight.status == 204
    assert "POST" in preflight.header("Access-Control-Allow-Methods")
    assert preflight.header("Access-Control-Allow-Headers") == "Content-Type"
    refused = client.ask("POST", "/acme/new-order", b"{}", {"Content-Type": JOSE})
    for reply in (preflight, refused, client.get(client.kid or ""), client.ask("GET", "/acme/x")):
        assert reply.header("Access-Control-Allow-Origin") == "*"
        exposed = reply.header("Access-Control-Expose-Headers").split(", ")
        assert {"Link", "Location", "Replay-Nonce", "Retry-After"} <= set(exposed)


@pytest.mark.row("ACME-029")
@pytest.mark.parametrize(
    "content_type", [None, "application/json", "text/plain", "application/jose"]
)
def test_another_content_type_is_unsupported(either: Client, content_type: str | None) -> None:
    url = either.resource("new-order")
    either.send(url, either.jws(url, {}), content_type).refused(415, "malformed")


@pytest.mark.row("ACME-030")
def test_a_content_type_may_have_parameters(either: Client) -> None:
    url = either.kid or ""
    reply = either.send(url, either.jws(url, None), "Application/JOSE+JSON; charset=utf-8")
    assert reply.status == 200


@pytest.mark.row("ACME-031")
def test_a_huge_body_is_refused_before_it_is_read(client: Client) -> None:
    url = f"{client.base}/new-order"
    client.send(url, b"x" * 50_001).refused(413, "malformed")
    chunked = client.ask(
        "POST", "/acme/new-order", b"x" * 60_000, {"Content-Type": JOSE, "Content-Encoding": "gzip"}
    )
    chunked.refused(415, "malformed")


@pytest.mark.row("ACME-031")
def test_a_chunked_body_without_end_is_refused_at_the_limit(shared: Live) -> None:
    address = ("localhost", shared.port("web"))
    with (
        socket.create_connection(address, timeout=30) as plain,
        shared.tls().wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        head = (
            "POST /acme/new-order HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: {JOSE}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        for _ in range(51):
            connection.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.row("ACME-032", "ACME-033", "ACME-034")
def test_resources_are_fetched_by_post_and_not_by_get(either: Client) -> None:
    for name, url in _resources(either).items():
        reply = either.ask("GET", either.path(url))
        reply.refused(405, "malformed")
        assert reply.header("Allow") == "POST"
        if name == "finalize" and either.oracle:
            continue
        fetched = either.get(url)
        assert fetched.status == 200, name
        assert fetched.answer.body
    early = () if either.oracle else ("new-authz",)
    for resource in ("new-account", "new-order", *early, "revoke-cert", "key-change"):
        path = either.path(either.resource(resource))
        either.ask("GET", path).refused(405, "malformed")
        either.ask("PUT", path).refused(405, "malformed")
    directory = either.resource("directory")
    assert either.get(directory).json == either.ask("GET", either.path(directory)).json
    reply = either.get(either.resource("new-nonce"))
    assert (reply.status, reply.answer.body) == (204 if either.oracle else 200, b"")
    assert reply.header("Replay-Nonce")


@pytest.mark.row("ACME-035")
def test_nobody_sees_what_is_another_accounts(server: Server, either: Client) -> None:
    stranger = registered(server, "stranger.example.org")
    for name, url in _resources(either).items():
        reply = stranger.get(url)
        assert reply.refused(403, "unauthorized"), name
        assert _NAME.encode() not in reply.answer.body


@pytest.mark.row("ACME-036")
def test_an_object_sent_to_what_is_only_fetched_is_malformed(either: Client) -> None:
    resources = _resources(either)
    for name in ("order", "certificate", "orders", "authz"):
        either.post(resources[name], {}).refused(400, "malformed")


@pytest.mark.row("ACME-037")
@pytest.mark.parametrize(
    "change",
    [
        lambda url: url[:-1] + "x",
        lambda url: url.replace("localhost", "127.0.0.1"),
        lambda url: url.replace("localhost", "LOCALHOST"),
        lambda url: re.sub(r":\d+", ":1", url),
        lambda url: url.replace("https", "http"),
        lambda url: url + "/",
        lambda url: url + "?a",
        lambda url: f"{url[:-1]}%{ord(url[-1]):02X}",
        lambda url: url[:-5] + url[-5:].upper(),
        lambda _: "",
    ],
)
def test_a_header_for_another_url_is_unauthorized(
    either: Client, change: Callable[[str], str]
) -> None:
    url = either.resource("new-order")
    jws = either.jws(change(url), {})
    either.send(url, jws).refused(403, "unauthorized")


@pytest.mark.row("ACME-039")
def test_behind_a_front_links_have_the_configured_base_and_host_means_nothing(
    client: Client,
) -> None:
    directory = client.ask("GET", "/acme/directory", headers={"Host": "evil.example"}).json
    assert directory["newOrder"] == f"{client.base}/new-order"
    url = client.kid or ""
    headers = {"Content-Type": JOSE, "Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    body = json.dumps(client.jws(url, None)).encode()
    reply = client.ask("POST", client.path(url), body, headers)
    assert reply.json["orders"].startswith(client.base)


# -- nonces ---------------------------------------------------------------------------------------


def _with_nonce(client: Client, nonce: str | None) -> Reply:
    return client.post(client.kid or "", None, nonce=nonce)


@pytest.mark.row("ACME-040", "ACME-041", "ACME-042", "ACME-049")
def test_a_bad_nonce_is_refused_and_a_fresh_one_comes_with_it(either: Client) -> None:
    used = either.nonce()
    assert _with_nonce(either, used).status == 200
    forged = used[:-1] + ("A" if used[-1] != "A" else "B")
    for nonce in (None, used, forged, "x" * 48, "!!!", "", used + "=", "A" * 5000):
        reply = _with_nonce(either, nonce)
        problem = reply.refused(400, "badNonce")
        # acme.sh looks for these words of Boulder's.
        assert either.oracle or "JWS has an invalid anti-replay nonce" in problem["detail"]
        assert _with_nonce(either, reply.header("Replay-Nonce")).status == 200


@pytest.mark.row("ACME-040")
def test_a_nonce_expires(live: Live) -> None:
    client = registered(live, _NAME)
    old = client.nonce()
    live.clock.advance(timedelta(minutes=59))
    kept = client.nonce()
    live.clock.advance(timedelta(minutes=2))
    _with_nonce(client, old).refused(400, "badNonce")
    assert _with_nonce(client, kept).status == 200


@pytest.mark.row("ACME-043", "ACME-044")
def test_every_answer_to_a_post_and_every_error_has_one_fresh_nonce(client: Client) -> None:
    post = {"Content-Type": JOSE}
    replies = [
        client.get(client.kid or ""),
        client.order(_NAME),
        client.get(f"{client.base}/directory"),
        client.ask("GET", "/acme/nothing"),
        client.ask("GET", "/acme/order/"),
        client.ask("GET", "/acme"),
        client.ask("GET", "/acme/new-order"),
        client.ask("POST", "/acme/new-order", b"", {"Content-Type": "text/plain"}),
        client.ask("POST", "/acme/new-order", b"{", post),
        client.ask("POST", "/acme/nothing", b"{", post),
    ]
    nonces = [reply.header("Replay-Nonce") for reply in replies]
    assert len(set(nonces)) == len(nonces)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22,}", nonce) for nonce in nonces)


@pytest.mark.row("ACME-045")
def test_nonces_are_unique_and_unpredictable(shared: Live) -> None:
    door = shared.server.services
    nonces = Nonces(door.keyring, timedelta(hours=1))
    now = door.clock.now()
    made = {nonces.make(now) for _ in range(100_000)}
    assert len(made) == 100_000
    # 5 octets of time, then 16 at random: each of their 128 bits is set about half the time.
    drawn = [int.from_bytes(base64.urlsafe_b64decode(one)[5:21]) for one in list(made)[:4000]]
    for bit in range(128):
        assert 1700 < sum(number >> bit & 1 for number in drawn) < 2300


@pytest.mark.row("ACME-046", "A-16")
def test_one_nonce_is_good_once_however_many_ask_at_the_same_time(either: Client) -> None:
    nonce = either.nonce()
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: _with_nonce(either, nonce).status, range(20)))
    assert sorted(replies) == [200] + [400] * 19


@pytest.mark.row("ACME-047", "ACME-185")
def test_a_nonce_of_another_client_or_from_before_a_restart_is_good(live: Live) -> None:
    client, other = registered(live, _NAME), registered(live, "b.example.org")
    assert _with_nonce(client, other.nonce()).status == 200
    nonce, used = client.nonce(), client.nonce()
    assert _with_nonce(client, used).status == 200
    live.restart()
    assert _with_nonce(client, nonce).status == 200
    _with_nonce(client, used).refused(400, "badNonce")


@pytest.mark.row("ACME-048")
def test_a_forger_cannot_use_up_somebody_elses_nonce(either: Client) -> None:
    nonce = either.nonce()
    url = either.kid or ""
    forged = flattened(either.header(url, nonce=nonce), None, lambda _: bytes(64))
    either.send(url, forged).refused(400, "malformed")
    assert _with_nonce(either, nonce).status == 200


@pytest.mark.row("ACME-037", "ACME-048")
def test_a_request_to_the_wrong_url_does_not_use_up_its_nonce(either: Client) -> None:
    url = either.kid or ""
    nonce = either.nonce()
    jws = flattened(either.header(url, nonce=nonce), None, lambda m: sign(either.key, m))
    either.send(either.resource("new-order"), jws).refused(403, "unauthorized")
    assert either.send(url, jws).status == 200


# -- problems -------------------------------------------------------------------------------------


@pytest.mark.row("ACME-051")
def test_every_error_has_a_registered_problem_type() -> None:
    def walk(kind: type[errors.Error]) -> list[type[errors.Error]]:
        return [kind, *(below for child in kind.__subclasses__() for below in walk(child))]

    for kind in walk(errors.Error):
        if kind in {errors.Error, errors.Refused} or "Problem" in kind.__name__:
            continue
        base = next(base for base in kind.__mro__ if base in RENDER)
        name, status = RENDER[base]
        assert name in _REGISTERED
        assert status >= 500 if issubclass(kind, errors.Fault) else 400 <= status < 500
    assert kind_and_status(errors.NotEntitled("x")) == ("unauthorized", 403)


@pytest.mark.row("ACME-053")
def test_a_fault_tells_nothing_but_its_reference(live: Live) -> None:
    client = registered(live, _NAME)
    nonce = client.nonce()
    with live.core.store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE acme_orders RENAME TO hidden")
    reply = client.post(
        "new-order", {"identifiers": [{"type": "dns", "value": _NAME}]}, nonce=nonce
    )
    with live.core.store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO acme_orders")
    assert reply.status in {500, 503}
    problem = reply.refused(reply.status, "serverInternal")
    assert re.fullmatch(r"[a-z :]+ \(reference [0-9a-f]{16}\)", problem["detail"])
    assert reply.header("Retry-After").isdigit()
    assert client.order(_NAME).status == 201


# -- directory ------------------------------------------------------------------------------------


@pytest.mark.row("ACME-054", "ACME-055")
def test_everything_but_the_directory_links_to_it(either: Client) -> None:
    directory = either.ask("GET", either.path(either.resource("directory")))
    assert directory.links("index") == []
    resources = _resources(either)
    for url in resources.values():
        assert either.get(url).links("index") == [either.resource("directory")]
    assert either.ask("HEAD", either.path(either.resource("new-nonce"))).links("index")
    assert either.get(resources["challenge"]).links("up") == [resources["authz"]]


@pytest.mark.row("ACME-056", "ACME-057", "ACME-180")
def test_the_directory_says_where_everything_is_and_what_is_needed(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live(
        '[acme]\nterms_of_service = "https://example.org/tos"\nwebsite = "https://example.org/"\n'
        'caa_identities = ["ca.example.org"]\n'
    )
    client = Client(live)
    reply = client.ask("GET", "/acme/directory")
    assert reply.header("Content-Type") == "application/json"
    body = reply.json
    names = {"newNonce", "newAccount", "newOrder", "newAuthz", "revokeCert", "keyChange"}
    assert body.keys() == names | {"renewalInfo", "meta"}
    assert all(body[name].startswith("https://localhost:") for name in names)
    meta = body["meta"]
    assert meta["externalAccountRequired"] is True
    assert meta["termsOfService"] == "https://example.org/tos"
    assert meta["website"] == "https://example.org/"
    assert meta["caaIdentities"] == ["ca.example.org"]
    assert meta["profiles"].keys() == {"device", "server"}
    assert client.ask("GET", "/acme/directory").json == body


@pytest.mark.row("ACME-058")
def test_new_nonce_by_get_and_head(either: Client) -> None:
    for method, status in (("HEAD", 200), ("GET", 204)):
        reply = either.ask(method, either.path(either.resource("new-nonce")))
        assert (reply.status, reply.answer.body) == (status, b"")
        assert "no-store" in reply.header("Cache-Control")
        assert reply.header("Replay-Nonce")
        assert reply.links("index") == [either.resource("directory")]


@pytest.mark.row("ACME-059")
def test_urls_tell_no_names_and_cannot_be_guessed(client: Client) -> None:
    for url in _resources(client).values():
        assert _NAME not in url
        identifier = url.removeprefix(client.base).split("/")[2]
        assert re.fullmatch(r"[A-Za-z0-9_-]{22,}", identifier)


def test_problem_types_are_urns(client: Client) -> None:
    assert client.ask("GET", "/acme/nothing").json["type"] == URN + "malformed"
