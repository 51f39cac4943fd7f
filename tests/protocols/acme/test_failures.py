"""Clients that nobody looks after: paused with a sentence, shown to the operator, let go again."""

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from click.testing import CliRunner, Result

from estserver.cli import main
from estserver.errors import NotFound
from estserver.protocols.acme import failure_records, failures
from estserver.protocols.acme.failure_records import Failure
from tests.live import ORIGIN, Live, make_csr, new_key
from tests.protocols.acme.wire import Client, csr_for, registered
from tests.protocols.est_wire import audit_rows

_NAME = "a.example.org"
_LOST = "gone.example.org"
_TWICE_A_DAY = timedelta(hours=12)


def _known(live: Live, *, paused: bool = False) -> list[Failure]:
    return live.core.store.read(lambda tx: failure_records.listing(tx, paused=paused))


def _fail(live: Live, client: Client, times: int, *names: str) -> None:
    """Let a client on a timer ask for what it does not get."""
    for _ in range(times):
        client.order(*names).refused(400, "rejectedIdentifier")
        live.clock.advance(_TWICE_A_DAY)


@pytest.fixture
def zombie(live: Live) -> Client:
    """Return a client whose order has failed for six days."""
    client = registered(live, _NAME, units=9)
    _fail(live, client, 12, _NAME, _LOST)
    return client


@pytest.mark.row("ACME-050")
def test_an_order_that_fails_for_days_is_paused_and_shown(both: Live) -> None:
    zombie = registered(both, _NAME, units=9)
    _fail(both, zombie, 12, _NAME, _LOST)
    assert zombie.kid is not None
    identifier = zombie.kid.rpartition("/")[2]
    (shown,) = _known(both, paused=True)
    assert (shown.account, shown.invitation) == (identifier, zombie.invitation)
    assert shown.identifiers == (f"dns:{_NAME}", f"dns:{_LOST}")
    assert shown.times == 12
    assert _LOST in shown.reason
    (event,) = [row for row in audit_rows(both) if row.event == "order.paused"]
    assert event.object == f"account {identifier}"


@pytest.mark.row("ACME-050", "ACME-179")
def test_a_paused_order_is_refused_and_nothing_else_is(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("")
    client = registered(live, _NAME, "b.example.org", units=1)
    client.issue(_NAME)
    for _ in range(12):
        # The only unit is spent.
        client.order("b.example.org").refused(403, "unauthorized")
        live.clock.advance(_TWICE_A_DAY)
    assert _known(live, paused=True)
    with live.core.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE invitations SET units = 9")
    reply = client.order("b.example.org")
    detail = reply.refused(429, "rateLimited")["detail"]
    assert reply.header("Retry-After") == "86400"
    assert "all certificates of this registration are issued" in detail
    assert f"estserver acme unpause {(client.kid or '').rpartition('/')[2]}" in detail
    # Neither a renewal nor another order of the same account has to suffer for it.
    client.issue(_NAME)
    assert client.order(_NAME, "b.example.org").status == 201


@pytest.mark.row("ACME-050")
def test_an_unpaused_order_is_tried_again(live: Live, zombie: Client) -> None:
    identifier = (zombie.kid or "").rpartition("/")[2]

    def unpause(account: str) -> list[Failure]:
        return live.core.store.write(
            lambda tx: failures.unpause(tx, account, by="operator a", origin=ORIGIN)
        )

    with pytest.raises(NotFound, match="nothing of account"):
        unpause("nobody")
    assert len(unpause(identifier)) == 1
    assert _known(live) == []
    (event,) = [row for row in audit_rows(live) if row.event == "order.unpaused"]
    assert event.actor == "operator a"
    zombie.order(_NAME, _LOST).refused(400, "rejectedIdentifier")
    assert _known(live, paused=True) == []


def test_who_tries_by_hand_is_not_paused(live: Live) -> None:
    client = registered(live, _NAME)
    for _ in range(3):
        # Many times within the hour are one.
        for _ in range(5):
            client.order(_LOST).refused(400, "rejectedIdentifier")
        live.clock.advance(timedelta(days=2))
    (shown,) = _known(live)
    assert (shown.times, shown.paused_at) == (3, None)


def test_a_long_silence_begins_the_count_anew(live: Live) -> None:
    client = registered(live, _NAME)
    _fail(live, client, 9, _LOST)
    live.clock.advance(timedelta(days=6))
    _fail(live, client, 9, _LOST)
    (shown,) = _known(live)
    assert (shown.times, shown.paused_at) == (9, None)


def test_what_succeeds_between_its_failures_is_not_paused(live: Live) -> None:
    client = registered(live, _NAME, units=9)
    for _ in range(12):
        order = client.order(_NAME).json
        client.finalize(order, make_csr(new_key())).refused(400, "badCSR")
        assert client.finalize(order, csr_for(_NAME)).json["status"] == "valid"
        live.clock.advance(_TWICE_A_DAY)
    (shown,) = _known(live)
    assert shown.paused_at is None


def test_a_csr_that_never_fits_is_counted(live: Live) -> None:
    client = registered(live, _NAME)
    for _ in range(2):
        order = client.order(_NAME).json
        client.finalize(order, csr_for("other.example.org")).refused(400, "badCSR")
        live.clock.advance(_TWICE_A_DAY)
    (shown,) = _known(live)
    assert shown.times == 2
    assert "adds dns:other.example.org" in shown.reason


def test_nothing_is_paused_where_the_settings_say_never(make_live: Callable[[str], Live]) -> None:
    live = make_live('[acme]\npause_after = "0s"\n')
    _fail(live, registered(live, _NAME), 12, _LOST)
    assert _known(live) == []


def test_the_operator_lists_what_is_paused_and_lets_it_go(live: Live, zombie: Client) -> None:
    def run(*arguments: str) -> Result:
        configuration = str(live.directory / "estserver.toml")
        return CliRunner().invoke(main, ["--config", configuration, "acme", *arguments])

    (shown,) = json.loads(run("paused", "--json").stdout)
    identifier = (zombie.kid or "").rpartition("/")[2]
    assert shown["account"] == identifier
    assert shown["invitation"] == zombie.invitation
    assert shown["identifiers"] == [f"dns:{_NAME}", f"dns:{_LOST}"]
    assert (shown["failures"], shown["paused"][-1]) == (12, "Z")
    assert identifier in run("paused").stdout
    refused = run("unpause", "nobody")
    assert (refused.exit_code, "nothing of account nobody is paused" in refused.stderr) == (1, True)
    refused = run("unpause", "-amSoJUbL1W9aL_nosqZ6A")
    assert "nothing of account -amSoJUbL1W9aL_nosqZ6A is paused" in refused.stderr
    assert f"dns:{_LOST} may be ordered again" in run("unpause", identifier).stdout
    assert json.loads(run("paused", "--all", "--json").stdout) == []
    assert "Nothing is paused." in run("paused").stderr
