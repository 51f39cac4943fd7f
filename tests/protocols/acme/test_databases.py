"""The door on PostgreSQL as on SQLite: the whole way, and what transactions keep apart."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.invariants import violations
from tests.live import Live
from tests.protocols.acme.wire import NAMES, Client, b64, csr_for, registered


@pytest.mark.row("ACME-046", "ACME-086", "ACME-114", "ACME-147")
def test_what_comes_at_the_same_moment_is_kept_apart(both: Live) -> None:
    client = registered(both, *NAMES, units=9)
    handover = both.invite("server")
    nonce = client.nonce()
    order = client.order(*NAMES).json
    with ThreadPoolExecutor(8) as pool:
        used = list(
            pool.map(lambda _: client.post(client.kid or "", None, nonce=nonce).status, range(8))
        )
        bound = list(pool.map(lambda _: Client(both).register(handover).status, range(8)))
        ordered = list(pool.map(lambda _: client.order(*NAMES).status, range(8)))
        done = list(pool.map(lambda _: client.finalize(order, csr_for(*NAMES)).status, range(8)))
    assert sorted(used) == [200] + [400] * 7
    assert sorted(bound) == [201] + [403] * 7
    assert set(ordered) == {201}
    assert set(done) <= {200, 403}
    assert len(client.get(f"{client.kid}/orders").json["orders"]) == 9
    assert violations(both.core, []) == []


@pytest.mark.row("ACME-152")
def test_the_whole_way(both: Live) -> None:
    client = registered(both, *NAMES)
    done = client.issue(*NAMES)
    client.issue(*NAMES)
    assert client.post("revoke-cert", {"certificate": b64(done.der)}).status == 200
    assert violations(both.core, [done.der]) == []
