"""Rate limits: counted for each account and address, renewals exempt."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from estserver.errors import TooManyAttempts
from estserver.protocols.acme.limits import MAX_KEYS, HourlyLimit
from tests.live import Live
from tests.parts import StillClock
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


@pytest.mark.row("ACME-050")
def test_orders_are_limited_by_network_whatever_the_account(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("[acme]\nnetwork_orders_per_hour = 3\n")
    clients = [registered(live, _NAME, units=9) for _ in range(4)]
    assert [client.order(_NAME).status for client in clients[:3]] == [201] * 3
    seconds = _limited(clients[3].order(_NAME))
    live.clock.advance(timedelta(seconds=seconds))
    assert clients[3].order(_NAME).status == 201


@pytest.mark.row("ACME-050")
def test_early_authorizations_count_as_orders(make_live: Callable[[str], Live]) -> None:
    client = registered(make_live("[acme]\norders_per_hour = 2\n"), _NAME)
    asked = {"identifier": {"type": "dns", "value": _NAME}}
    assert [client.post("new-authz", asked).status for _ in range(2)] == [201] * 2
    _limited(client.post("new-authz", asked))
    _limited(client.order(_NAME))


@pytest.mark.row("ACME-050")
def test_a_limit_lets_through_what_it_says_in_any_hour() -> None:
    clock = StillClock()
    limit = HourlyLimit("new orders", 60, clock)
    for _ in range(60):
        limit.spend("one")
    waited = []
    for _ in range(30):
        with pytest.raises(TooManyAttempts) as refusal:
            limit.spend("one")
        assert refusal.value.retry_after is not None
        waited.append(refusal.value.retry_after)
        limit.spend("another")
        clock.advance(timedelta(minutes=1))
        limit.spend("one")
    # Refilled evenly: the next is due a minute after the last, and asking too early costs nothing.
    assert {round(wait.total_seconds()) for wait in waited} == {60}


def test_a_limit_remembers_who_spent_most_when_the_whole_internet_comes() -> None:
    clock = StillClock()
    limit = HourlyLimit("new orders", 2, clock)
    for _ in range(2):
        limit.spend("greedy")
    for stranger in range(MAX_KEYS + MAX_KEYS // 2):
        limit.spend(str(stranger))
    assert len(limit._rested_at) <= MAX_KEYS
    with pytest.raises(TooManyAttempts):
        limit.spend("greedy")
