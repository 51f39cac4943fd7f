"""Faults on purpose: for people who harden their own clients."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from estserver.errors import ConfigurationError
from estserver.protocols.acme import faults
from estserver.server import enter_test_mode
from tests.live import Live
from tests.protocols.acme.wire import Client, registered

_NAME = "a.example.org"


@pytest.fixture(scope="module")
def client(shared: Live) -> Client:
    return registered(shared, _NAME, units=99)


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("")


@pytest.mark.row("ACME-053")
def test_test_mode_makes_faults_and_a_client_that_tries_again_gets_through(client: Client) -> None:
    enter_test_mode({"ESTSERVER_FAULTS": "badnonce=30,error=20,delay=1"})
    seen: Counter[str] = Counter()
    for _ in range(60):
        reply = client.get(client.kid or "")
        if reply.status == 200:
            seen["ok"] += 1
        elif reply.status == 500:
            reply.refused(500, "serverInternal")
            assert reply.header("Retry-After")
            seen["error"] += 1
        else:
            reply.refused(400, "badNonce")
            seen["badnonce"] += 1
    assert min(seen["ok"], seen["error"], seen["badnonce"]) > 0


def test_a_client_can_be_made_to_turn_many_pages(shared: Live) -> None:
    client = registered(shared, _NAME, units=9)
    made = {client.order(_NAME).header("Location") for _ in range(3)}
    enter_test_mode({"ESTSERVER_FAULTS": "page=1"})
    url: str | None = f"{client.kid}/orders"
    listed: list[str] = []
    while url is not None:
        reply = client.get(url)
        assert len(reply.json["orders"]) <= 1
        listed += reply.json["orders"]
        url = next(iter(reply.links("next")), None)
    assert (set(listed), len(listed)) == (made, 3)


def test_answers_can_be_late(client: Client) -> None:
    enter_test_mode({"ESTSERVER_FAULTS": "delay=300"})
    started = time.monotonic()
    for _ in range(10):
        assert client.get(client.kid or "").status == 200
    # Ten delays of up to 300 ms each; that they are all tiny happens once in ten thousand million.
    assert time.monotonic() - started > 0.15


@pytest.mark.parametrize(
    "text",
    [
        "badnonce",
        "badnonce=x",
        "nothing=1",
        "badnonce=-1",
        "badnonce=101",
        "page=0",
        "authzreuse=a",
    ],
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        enter_test_mode({"ESTSERVER_FAULTS": text})
