"""A server killed in the midst of ACME orders: clients that keep trying get their certificates."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import failpoints
from estserver.core import open_core
from estserver.invitations import Handover
from tests.faults.serving import PATIENCE_SECONDS, Process
from tests.invariants import violations
from tests.live import Live, Workshop, new_key
from tests.protocols.acme.wire import NAMES, URN, Client, Reply, b64, csr_for, hang_up

CLIENTS = 3


@dataclass
class Insistent:
    """A client that repeats each step of an order until somebody answers it."""

    live: Live
    handover: Handover
    patience: float
    received: list[bytes] = field(default_factory=list)
    final: str = "it ran out of patience"

    def run(self) -> None:
        """Go from the account to the certificate, which is fetched twice."""
        deadline = time.monotonic() + self.patience
        client = Client(self.live)

        def answered(ask: Callable[[], Reply]) -> Reply:
            while time.monotonic() < deadline:
                try:
                    reply = ask()
                except (OSError, HTTPException):
                    threading.Event().wait(0.1)
                    continue
                transient = {500, 503}
                if reply.status not in transient and not _is_stale(reply):
                    return reply
                threading.Event().wait(0.05)
            raise TimeoutError

        try:
            self.final = self._order(client, answered)
        except TimeoutError:
            return

    def _order(self, client: Client, answered: Callable[[Callable[[], Reply]], Reply]) -> str:
        reply = answered(lambda: client.register(self.handover))
        if reply.status not in {200, 201}:
            return f"newAccount: {reply.answer.body!r}"
        reply = answered(lambda: client.order(*NAMES))
        if reply.status != 201:
            return f"newOrder: {reply.answer.body!r}"
        url, order = reply.header("Location"), reply.json
        csr = csr_for(*NAMES, key=new_key())
        while order["status"] != "valid":
            if order["status"] not in {"ready", "processing"}:
                return f"order: {order}"
            if order["status"] == "ready":
                done = answered(partial(client.finalize, order, csr))
                if done.status not in {200, 403}:
                    return f"finalize: {done.answer.body!r}"
            order = answered(lambda: client.get(url)).json
        for _ in range(2):
            reply = answered(lambda: client.get(order["certificate"]))
            if reply.status != 200:
                return f"certificate: {reply.answer.body!r}"
            leaf = x509.load_pem_x509_certificates(reply.answer.body)[0]
            self.received.append(leaf.public_bytes(Encoding.DER))
        return "done"


def _is_stale(reply: Reply) -> bool:
    """Tell whether only the nonce was wrong: it went with a request that nobody answered."""
    return reply.status == 400 and reply.json["type"] == f"{URN}badNonce"


@pytest.fixture
def process(template: Path, tmp_path: Path) -> Iterator[Process]:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    server = Process(live, ("--test-mode",))
    yield server
    server.stop()
    hang_up()


def _invite(live: Live) -> list[Handover]:
    live.core = open_core(live.settings, live.clock, with_keys=False)
    try:
        names = tuple(f"dns:{name}" for name in NAMES)
        return [live.invite("server", names=names) for _ in range(CLIENTS)]
    finally:
        live.core.close()


def _run_killed(process: Process, points: list[str], chance: random.Random) -> list[str]:
    """Kill the server once at each of `points`, under old clients and new, and judge the rest."""
    clients: list[Insistent] = []
    threads: list[threading.Thread] = []
    for point in points:
        fresh = [
            Insistent(process.live, handover, PATIENCE_SECONDS * (len(points) + 1))
            for handover in _invite(process.live)
        ]
        clients += fresh
        process.environment["ESTSERVER_FAILPOINT"] = f"{point}:{chance.randint(1, CLIENTS)}:kill"
        process.begin()
        for client in fresh:
            threads.append(threading.Thread(target=client.run))
            threads[-1].start()
        process.wait_killed()
    del process.environment["ESTSERVER_FAILPOINT"]
    process.start()
    for thread in threads:
        thread.join()
    process.stop()
    findings = [f"I3: {client.final}" for client in clients if client.final != "done"]
    findings += [
        "one order gave two certificates" for client in clients if len(set(client.received)) != 1
    ]
    core = open_core(process.live.settings, process.live.clock, with_keys=True)
    try:
        for client in clients:
            number = client.handover.invitation.number
            used = core.invitations.get(number).units_used
            if used != 1:
                findings.append(f"I2: {number} spent {used}")
        received = [der for client in clients for der in client.received]
        return [*findings, *violations(core, received)]
    finally:
        core.close()


@pytest.mark.timeout(300)
@pytest.mark.row("ACME-147", "ACME-148", "ACME-185", "I1", "I2", "I3", "I7", "I9")
def test_orders_outlive_a_server_that_dies_at_one_point_after_the_other(
    process: Process, request: pytest.FixtureRequest
) -> None:
    few = ["intent-committed", "signed", "stored", "last-byte"]
    points = list(failpoints.NAMES) if request.config.getoption("--full") else few
    assert _run_killed(process, points, random.Random(1)) == []


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("point", failpoints.NAMES)
@pytest.mark.row("ACME-185", "I1", "I2", "I3")
def test_orders_outlive_a_server_that_dies_again_and_again_at(
    process: Process, point: str, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--full"):
        pytest.skip("25 kills: with --full")
    seed = failpoints.NAMES.index(point)
    assert _run_killed(process, [point] * 25, random.Random(seed)) == []


@pytest.mark.row("ACME-040", "ACME-148")
def test_a_nonce_is_used_up_with_the_order_or_not_at_all_when_the_server_dies(
    process: Process,
) -> None:
    client = Client(process.live)

    def begin(failpoint: str) -> None:
        process.environment["ESTSERVER_FAILPOINT"] = failpoint
        process.start()

    def killed(request: dict[str, str], url: str) -> None:
        with pytest.raises((OSError, HTTPException)):
            client.send(url, request)
        process.wait_killed()

    (handover, *_) = _invite(process.live)
    # Its own certificates are made when it starts for the first time.
    process.start()
    assert client.register(handover).status == 201
    orders = [client.order(*NAMES).json["finalize"] for _ in range(2)]
    early, late = (client.jws(url, {"csr": b64(csr_for(*NAMES))}) for url in orders)
    process.stop()
    begin("planned:1:kill")
    killed(early, orders[0])
    begin("intent-committed:2:kill")
    # Nothing was committed: the same request is as good as it was.
    assert client.send(orders[0], early).json["status"] == "valid"
    killed(late, orders[1])
    del process.environment["ESTSERVER_FAILPOINT"]
    process.start()
    client.send(orders[1], late).refused(400, "badNonce")
    # What was intended is finished at the start.
    assert client.settled(orders[1])["status"] == "valid"
