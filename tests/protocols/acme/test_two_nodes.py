"""Two nodes on one database behind one name: a client that meets them in turn notices nothing."""

from dataclasses import dataclass, field

import pytest

from tests.live import Live, beside
from tests.protocols.acme.wire import NAMES, Client, Reply, csr_for, eab


@dataclass(slots=True)
class Alternating(Client):
    """A client whose every request goes to the other node; the URLs are those of the first."""

    nodes: list[Live] = field(default_factory=list)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send one request to the next node."""
        self.nodes.reverse()
        return Client(self.nodes[0]).ask(method, path, body, headers)


@pytest.fixture
def other(both: Live) -> Live:
    """Return a second node: the same directory and URLs, other ports."""
    return beside(both)


@pytest.mark.row("ACME-185", "ACME-047", "A-16")
def test_two_nodes_in_turn_serve_one_client(both: Live, other: Live) -> None:
    other.start()
    try:
        client = Alternating(both, nodes=[both, other])
        handover = both.invite("server", names=tuple(f"dns:{name}" for name in NAMES))
        binding = client.binding(*eab(both, handover))
        assert client.register(externalAccountBinding=binding).status == 201
        order = client.order(*NAMES)
        assert order.status == 201
        done = client.finalize(order.json, csr_for(*NAMES))
        assert done.json["status"] == "valid"
        body = client.get(done.json["certificate"]).answer.body
        assert client.get(done.json["certificate"]).answer.body == body
        # A nonce that one node has taken is used up on the other.
        nonce = client.nonce()
        assert client.post(client.kid or "", None, nonce=nonce).status == 200
        client.post(client.kid or "", None, nonce=nonce).refused(400, "badNonce")
    finally:
        other.stop()
