"""Rate limits: counted for each account and address, renewals exempt."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.live import Live
from tests.protocols.acme.wire import Client, Reply, registered

_NAME = "a.example.org"


def _limited(reply: Reply) -> int:
    reply.refused(429, "rateLimited")
    seconds = reply.header("Retry-After")
    assert seconds.isdigit()
    return int(seconds)


@pytest.mark.row("ACME-050", "ACME-179")
def test_orders_are_limited_by_account_and_renewals_are_not(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("[acme]\norders_per_hour = 3\n")
    client = registered(live, _NAME, "b.example.org", units=9)
    other = registered(live, _NAME, units=9)
    client.issue(_NAME)
    assert [client.order("b.example.org").status for _ in range(2)] == [201, 201]
    seconds = _limited(client.order("b.example.org"))
    assert other.order(_NAME).status == 201
    for _ in range(3):
        client.issue(_NAME)
    live.clock.advance(timedelta(seconds=seconds))
    assert client.order("b.example.org").status == 201
    _limited(client.order("b.example.org"))


@pytest.mark.row("ACME-050")
def test_accounts_are_limited_by_address(make_live: Callable[[str], Live]) -> None:
    live = make_live("[acme]\nrequire_eab = false\naccounts_per_hour = 2\n")
    clients = [Client(live) for _ in range(3)]
    assert [client.register().status for client in clients[:2]] == [201, 201]
    _limited(clients[2].register())
    # Who has an account finds it.
    assert clients[0].post("new-account", {}, jwk=True).status == 200
