"""Faults on purpose: for people who harden their own clients."""

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


@pytest.mark.parametrize("text", ["badnonce", "badnonce=x", "nothing=1", "badnonce=-1"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        enter_test_mode({"ESTSERVER_FAULTS": text})
