"""A nonce is used up in the commit of what its request changes, once, whatever becomes of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from estserver.protocols.acme.tables import orders
from tests.invariants import violations
from tests.live import Live
from tests.protocols.acme.wire import Client, b64, csr_for, identifier, registered

_NAME = "once.example.org"


@pytest.fixture(scope="module")
def client(shared: Live) -> Client:
    return registered(shared, _NAME, units=99)


_TABLES = ("acme_nonces", "acme_orders", "certificates")


@contextmanager
def _commits(live: Live) -> Iterator[list[tuple[int, ...]]]:
    """Collect what commits meanwhile add to the tables, those that use up no nonce left out."""
    counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in _TABLES)
    engine = live.core.store.engine
    with engine.connect() as connection:
        before = tuple(connection.exec_driver_sql(f"SELECT {counts}").one())
    added: list[tuple[int, ...]] = []

    def commit(connection: sa.Connection) -> None:
        nonlocal before
        if connection.get_execution_options().get("estserver_write"):
            after = tuple(connection.exec_driver_sql(f"SELECT {counts}").one())
            added.append(tuple(new - old for new, old in zip(after, before, strict=True)))
            before = after

    sa.event.listen(engine, "commit", commit)
    try:
        yield added
    finally:
        sa.event.remove(engine, "commit", commit)
        added[:] = [one for one in added if one[0]]


@pytest.mark.row("ACME-040", "ACME-046")
def test_a_nonce_goes_with_what_its_request_changes(both: Live) -> None:
    client = registered(both, _NAME)
    with _commits(both) as added:
        order = client.order(_NAME).json
    assert added == [(1, 1, 0)]
    with _commits(both) as added:
        done = client.finalize(order, csr_for(_NAME)).json
    assert added == [(1, 0, 1)]
    with _commits(both) as added:
        assert client.get(done["certificate"]).status == 200
    assert added == [(1, 0, 0)]


@pytest.mark.row("ACME-040")
@pytest.mark.parametrize(
    ("path", "payload", "status", "kind"),
    [
        ("order/nothing", None, 404, "malformed"),
        ("certificate/nothing", None, 404, "malformed"),
        ("authz/nothing", None, 404, "malformed"),
        ("challenge/nothing", {}, 404, "malformed"),
        ("account/nobody", None, 403, "unauthorized"),
        ("new-order", {}, 400, "malformed"),
        ("new-order", b"{", 400, "malformed"),
        ("new-order", {"identifiers": [identifier("not.mine.org")]}, 400, "rejectedIdentifier"),
        ("order/nothing/finalize", {"csr": "AAAA"}, 404, "malformed"),
        ("revoke-cert", {"certificate": "AAAA"}, 404, "malformed"),
        ("key-change", {}, 400, "malformed"),
    ],
)
def test_what_fails_uses_its_nonce_up_too(
    client: Client, path: str, payload: Any, status: int, kind: str
) -> None:
    url = f"{client.base}/{path}"
    request = client.jws(url, payload)
    client.send(url, request).refused(status, kind)
    client.send(url, request).refused(400, "badNonce")


@pytest.mark.row("ACME-040", "ACME-046", "ACME-147")
def test_a_request_that_comes_again_changes_nothing_more(both: Live) -> None:
    client = registered(both, _NAME, units=9)
    url = client.resource("new-order")
    request = client.jws(url, {"identifiers": [identifier(_NAME)]})
    order = client.send(url, request)
    assert order.status == 201
    client.send(url, request).refused(400, "badNonce")
    with both.core.store.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(orders)).scalar_one() == 1
    wrong = client.jws(order.json["finalize"], {"csr": b64(csr_for("other.example.org"))})
    client.send(order.json["finalize"], wrong).refused(400, "badCSR")
    client.send(order.json["finalize"], wrong).refused(400, "badNonce")
    finalize = client.jws(order.json["finalize"], {"csr": b64(csr_for(_NAME))})
    assert client.send(order.json["finalize"], finalize).json["status"] == "valid"
    client.send(order.json["finalize"], finalize).refused(400, "badNonce")
    assert violations(both.core, []) == []


@pytest.mark.row("ACME-040", "ACME-046", "A-16")
def test_a_used_nonce_in_company_is_refused_and_no_other(both: Live) -> None:
    client = registered(both, _NAME, units=99)
    nonces = [client.nonce() for _ in range(12)]
    used = set(nonces[::5])
    for nonce in used:
        assert client.post(client.kid or "", None, nonce=nonce).status == 200
    url = client.resource("new-order")
    asked = [client.jws(url, {"identifiers": [identifier(_NAME)]}, nonce=one) for one in nonces]
    with ThreadPoolExecutor(len(asked)) as pool:
        statuses = list(pool.map(lambda request: client.send(url, request).status, asked))
    assert statuses == [400 if nonce in used else 201 for nonce in nonces]


@pytest.mark.row("ACME-114", "ACME-147", "I2")
def test_orders_in_company_share_the_units_that_are_left(both: Live) -> None:
    names = [f"h{number}.{_NAME}" for number in range(6)]
    client = registered(both, *names, units=4)
    made = [(name, client.order(name).json) for name in names]
    with ThreadPoolExecutor(len(made)) as pool:
        done = list(pool.map(lambda one: client.finalize(one[1], csr_for(one[0])), made))
    assert sorted(reply.status for reply in done) == [200] * 4 + [403] * 2
    assert both.core.invitations.get(client.invitation).units_used == 4
    assert violations(both.core, []) == []
