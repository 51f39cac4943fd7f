"""What is forgotten and what is kept: proof stays as long as the certificate it is proof of."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from estserver.protocols.acme import records, tables
from estserver.protocols.acme.failures import Failures
from estserver.protocols.acme.tidying import Tidying
from tests.live import Live
from tests.protocols.acme.wire import NAMES, Client, b64, registered


def _rows(live: Live) -> dict[str, int]:
    counted = (tables.orders, tables.authorizations, tables.challenges, tables.nonces)
    with live.core.store.engine.connect() as connection:
        return {
            table.name.removeprefix("acme_"): connection.execute(
                sa.select(sa.func.count()).select_from(table)
            ).scalar_one()
            for table in counted
        }


def _early(client: Client, name: str) -> None:
    asked = {"identifier": {"type": "dns", "value": name}}
    assert client.post("new-authz", asked).status == 201


def test_what_came_to_nothing_is_forgotten_and_what_was_issued_is_not(live: Live) -> None:
    client = registered(live, *NAMES, units=9)
    done = client.issue(*NAMES)
    before = _rows(live)
    assert (before["orders"], before["authorizations"], before["challenges"]) == (1, 2, 2)
    # More than one transaction takes.
    for _ in range(105):
        assert client.order(NAMES[0]).status == 201
    _early(client, NAMES[0])
    tidying = Tidying(live.server.services)
    tidying.tidy()
    assert _rows(live)["orders"] == 106
    live.clock.advance(timedelta(days=7 + 89))
    tidying.tidy()
    kept = _rows(live)
    assert (kept["orders"], kept["nonces"]) == (106, 0)
    live.clock.advance(timedelta(days=2))
    tidying.tidy()
    after = _rows(live)
    assert (after["orders"], after["authorizations"], after["challenges"]) == (1, 3, 3)
    # The early one lives longer than an order does.
    live.clock.advance(timedelta(days=30))
    tidying.tidy()
    after = _rows(live)
    assert (after["orders"], after["authorizations"], after["challenges"]) == (1, 2, 2)
    assert client.get(done.url).json["status"] == "valid"
    assert client.get(done.order["authorizations"][0]).status == 200
    assert client.post("revoke-cert", {"certificate": b64(done.der)}).status == 200


def test_what_a_challenge_has_shown_is_kept_and_what_it_has_not_is_not(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("[acme]\nrequire_eab = false\n")
    client = Client(live)
    assert client.register().status == 201
    shown, other = (client.order(name).json for name in NAMES)
    _early(client, "early.example.org")
    token = client.get(shown["authorizations"][0]).json["challenges"][0]["token"]
    with live.core.store.engine.begin() as connection:
        # As if the challenge had been met: nobody listens at that name.
        connection.execute(
            sa.update(tables.challenges)
            .where(tables.challenges.c.token == token)
            .values(status="valid", validated_at=0)
        )
    live.clock.advance(timedelta(days=200))
    Tidying(live.server.services).tidy()
    assert _rows(live)["orders"] == 0
    assert client.get(shown["authorizations"][0]).status == 200
    client.get(other["authorizations"][0]).refused(404, "malformed")
    assert (_rows(live)["authorizations"], _rows(live)["challenges"]) == (1, 3)


def test_two_nodes_may_tidy_up_at_once(both: Live) -> None:
    client = registered(both, *NAMES, units=9)
    done = client.issue(*NAMES)
    for _ in range(3):
        order = client.order(NAMES[0])
    assert client.kid is not None
    account = client.kid.rpartition("/")[2]
    needed = order.json["authorizations"][0].rpartition("/")[2]
    (found,) = both.core.store.read(lambda tx: records.orders_with(tx, account, needed))
    assert order.header("Location").endswith(found.id)
    _early(client, NAMES[0])
    both.clock.advance(timedelta(days=200))
    for node in (Tidying(both.server.services), Tidying(both.server.services)):
        node.tidy()
    assert (_rows(both)["orders"], _rows(both)["authorizations"]) == (1, 2)
    assert client.get(done.url).json["status"] == "valid"


@pytest.mark.row("ACME-050")
def test_the_metric_counts_what_is_paused(live: Live) -> None:
    client = registered(live, NAMES[0])
    for _ in range(12):
        client.order(NAMES[1])
        live.clock.advance(timedelta(hours=12))
    failures = Failures(live.core.store, timedelta(days=5))
    failures.report()
    metrics = live.request("GET", "/metrics", listener="management").body.decode()
    assert "estserver_acme_paused_orders 1.0" in metrics
    # What nobody has tried for long is forgotten with the orders.
    live.clock.advance(timedelta(days=100))
    Tidying(live.server.services).tidy()
    failures.report()
    metrics = live.request("GET", "/metrics", listener="management").body.decode()
    assert "estserver_acme_paused_orders 0.0" in metrics
