"""Accounts without an invitation: each name is shown by a challenge, from the wire to the order."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from estserver.protocols.acme import attempts, faults
from estserver.protocols.acme.keys import stored_key
from estserver.server import enter_test_mode
from tests.live import Live, Workshop, new_key
from tests.protocols.acme.wire import Client, Reply, b64, csr_for, jwk_of, key_change, registered

_HOST = "127.0.0.31"
_NAME = f"ip:{_HOST}"


@dataclass
class Host:
    """A web server that knows some key authorizations, and counts who asks."""

    known: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0

    def handler(self) -> type[BaseHTTPRequestHandler]:
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append((self.path, self.headers["Host"]))
                body = host.known.get(self.path.rpartition("/")[2])
                self.send_response(200 if body else 404)
                self.end_headers()
                self.wfile.write((body or "").encode())

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host()
    with ThreadingHTTPServer((_HOST, 0), host.handler()) as server:
        host.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield host
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def open_live(
    template: Any, host: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    workshop = Workshop(template)
    toml = (
        f'[acme]\nrequire_eab = false\nhttp_port = {host.port}\nallow_networks = ["{_HOST}/32"]\n'
        'resolvers = ["127.0.0.1:1"]\nretry_after = "1s"\n'
    )
    yield workshop.make(tmp_path_factory.mktemp("open") / "instance", toml)
    workshop.close()


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("")


@pytest.fixture
def client(open_live: Live) -> Client:
    client = Client(open_live)
    assert client.register().status == 201
    return client


def _pending(client: Client, name: str = _NAME) -> tuple[Reply, str, dict[str, Any]]:
    """Order a name; return the order, its authorization's URL and its http-01 challenge."""
    reply = client.order(name)
    assert reply.status == 201, reply.answer.body
    assert reply.json["status"] == "pending"
    url = reply.json["authorizations"][0]
    challenges = client.get(url).json["challenges"]
    return reply, url, next(one for one in challenges if one["type"] == "http-01")


def _thumbprint(client: Client) -> str:
    return stored_key(jwk_of(client.key)).thumbprint


def _serve(host: Host, client: Client, challenge: dict[str, Any]) -> None:
    host.known[challenge["token"]] = f"{challenge['token']}.{_thumbprint(client)}"


def _settled(client: Client, url: str, seconds: float = 20) -> dict[str, Any]:
    """Poll until a resource is neither pending nor processing."""
    deadline = time.monotonic() + seconds
    while True:
        body: dict[str, Any] = client.get(url).json
        if body["status"] not in {"pending", "processing"} or time.monotonic() > deadline:
            return body
        threading.Event().wait(0.1)


def _failures(challenge: dict[str, Any]) -> int:
    error = challenge.get("error")
    return 0 if error is None else 1 + len(error.get("subproblems", []))


def _respond_until_it_is_settled(client: Client, challenge: dict[str, Any]) -> None:
    """Ask for the next attempt as soon as one has failed, so that nobody waits for the server's."""
    for done in range(len(attempts.RETRY_AFTER) + 1):
        client.post(challenge["url"], {})
        deadline = time.monotonic() + 20
        while _failures(client.get(challenge["url"]).json) <= done:
            assert time.monotonic() < deadline
            threading.Event().wait(0.1)


@pytest.mark.row("ACME-100", "ACME-111", "ACME-117", "ACME-119", "ACME-120", "ACME-121")
def test_a_name_is_shown_by_http_and_certified(host: Host, client: Client) -> None:
    reply, url, challenge = _pending(client)
    assert challenge.keys() == {"type", "url", "status", "token"}
    assert re.fullmatch(r"[A-Za-z0-9_-]{22,}", challenge["token"])
    _serve(host, client, challenge)
    asked = len(host.asked)
    assert client.get(challenge["url"]).json["status"] == "pending"
    assert len(host.asked) == asked
    client.finalize(reply.json, csr_for(_NAME)).refused(403, "orderNotReady")
    response = {"keyAuthorization": "x", "resource": "challenge"}
    answered = client.post(challenge["url"], response)
    assert answered.status == 200
    assert answered.json["status"] in {"processing", "valid"}
    assert answered.links("up") == [url]
    assert _settled(client, url)["status"] == "valid"
    (shown,) = client.get(url).json["challenges"]
    assert shown["status"] == "valid"
    assert shown["validated"].endswith("Z")
    order = client.get(reply.header("Location")).json
    assert order["status"] == "ready"
    assert client.finalize(order, csr_for(_NAME)).json["status"] == "valid"
    # The next order finds the name authorized.
    assert client.order(_NAME).json["status"] == "ready"
    # Whoever hardens a client can have it shown again each time.
    enter_test_mode({"ESTSERVER_FAULTS": "authzreuse=0"})
    assert client.order(_NAME).json["status"] == "pending"


@pytest.mark.row("ACME-122", "ACME-123", "ACME-124")
def test_a_first_probe_that_fails_is_repeated(host: Host, client: Client) -> None:
    _, url, challenge = _pending(client)
    assert client.post(challenge["url"], {}).json["status"] == "processing"
    deadline = time.monotonic() + 20
    while "error" not in (body := client.get(challenge["url"])).json:
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)
    assert body.json["status"] == "processing"
    assert body.json["error"]["type"].startswith("urn:ietf:params:acme:error:")
    polled = client.get(url)
    assert 0 < int(polled.header("Retry-After")) <= 600
    _serve(host, client, challenge)
    assert client.post(challenge["url"], {}).status == 200
    assert _settled(client, url)["status"] == "valid"
    assert "error" not in client.get(challenge["url"]).json


@pytest.mark.row("ACME-123", "ACME-125", "ACME-112", "ACME-138")
def test_a_challenge_that_keeps_failing_ends_its_order(host: Host, client: Client) -> None:
    reply, url, challenge = _pending(client)
    asked = len(host.asked)
    _respond_until_it_is_settled(client, challenge)
    body = _settled(client, url)
    assert body["status"] == "invalid"
    (shown,) = body["challenges"]
    assert shown["status"] == "invalid"
    assert len(shown["error"]["subproblems"]) == len(attempts.RETRY_AFTER)
    assert len(host.asked) - asked == len(attempts.RETRY_AFTER) + 1
    order = client.get(reply.header("Location")).json
    assert (order["status"], order["error"]) == ("invalid", shown["error"])
    client.finalize(order, csr_for(_NAME)).refused(403, "orderNotReady")
    assert client.post(challenge["url"], {}).json["status"] == "invalid"


@pytest.mark.row("ACME-127")
def test_twenty_responses_at_once_are_one_attempt(host: Host, client: Client) -> None:
    _, url, challenge = _pending(client)
    _serve(host, client, challenge)
    asked = len(host.asked)
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: client.post(challenge["url"], {}), range(20)))
    assert {reply.status for reply in replies} == {200}
    assert _settled(client, url)["status"] == "valid"
    assert len(host.asked) - asked == 1


@pytest.mark.row("ACME-097")
def test_the_key_of_the_moment_of_the_response_counts(host: Host, client: Client) -> None:
    reply, url, challenge = _pending(client)
    key = new_key()
    assert client.post("key-change", key_change(client, key)).status == 200
    client.key = key
    _serve(host, client, challenge)
    client.post(challenge["url"], {})
    assert _settled(client, url)["status"] == "valid"
    assert client.get(reply.header("Location")).json["status"] == "ready"


@pytest.mark.row("ACME-105", "ACME-116", "ACME-118", "ACME-166")
def test_each_kind_of_name_has_its_challenges_and_each_its_token(client: Client) -> None:
    tokens = set()
    for name, kinds in (
        ("a.example.org", {"http-01", "dns-01", "tls-alpn-01"}),
        ("*.a.example.org", {"dns-01"}),
        ("ip:192.0.2.1", {"http-01", "tls-alpn-01"}),
        ("ip:2001:db8::1", {"http-01", "tls-alpn-01"}),
    ):
        order = client.order(name).json
        (url,) = order["authorizations"]
        body = client.get(url).json
        assert body["status"] == "pending"
        assert body.get("wildcard") is (True if name.startswith("*") else None)
        assert {one["type"] for one in body["challenges"]} == kinds
        tokens |= {one["token"] for one in body["challenges"]}
    assert len(tokens) == 8
    # 256 bits in base64url, without padding.
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)


@pytest.mark.row("ACME-126")
def test_a_pending_authorization_is_given_up(host: Host, client: Client) -> None:
    reply, url, challenge = _pending(client)
    assert client.post(url, {"status": "deactivated"}).json["status"] == "deactivated"
    client.post(challenge["url"], {}).refused(400, "malformed")
    assert client.get(reply.header("Location")).json["status"] == "invalid"
    assert not [path for path, _ in host.asked if challenge["token"] in path]


@pytest.mark.row("ACME-035", "ACME-155")
def test_what_one_account_has_shown_serves_no_other(
    open_live: Live, host: Host, client: Client
) -> None:
    _, url, challenge = _pending(client)
    _serve(host, client, challenge)
    client.post(challenge["url"], {})
    assert _settled(client, url)["status"] == "valid"
    done = client.issue(_NAME)
    other = Client(open_live)
    other.register()
    other.post(challenge["url"], {}).refused(403, "unauthorized")
    assert other.order(_NAME).json["status"] == "pending"
    reply = other.post("revoke-cert", {"certificate": b64(done.der)})
    reply.refused(403, "unauthorized")


@pytest.mark.row("ACME-132", "A-15")
def test_the_servers_own_listeners_are_no_target(make_live: Callable[[str], Live]) -> None:
    live = make_live('[acme]\nrequire_eab = false\nretry_after = "1s"\n')
    client = Client(live)
    client.register()
    _, url, challenge = _pending(client, "ip:127.0.0.1")
    _respond_until_it_is_settled(client, challenge)
    body = _settled(client, url)
    assert body["status"] == "invalid"


def test_a_bound_account_needs_no_challenge_beside_open_ones(open_live: Live) -> None:
    client = registered(open_live, "bound.example.org")
    assert client.order("bound.example.org").json["status"] == "ready"
    client.order("free.example.org").refused(400, "rejectedIdentifier")
