"""Several processes serve one instance: workers of one machine, nodes on one database."""

import base64
import os
import re
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPSConnection
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509 import ocsp

from estserver import config
from estserver.core import SystemClock, open_core
from estserver.invitations import Handover
from estserver.store import Store, migrate
from estserver.store.tables import certificates
from tests.faults.nodes import invite, judge, make_node
from tests.faults.serving import PATIENCE_SECONDS, Client, Process
from tests.live import Holder, Live, Workshop, basic, make_csr, new_key
from tests.postgres import make_schema

Serve = Callable[..., Process]
KILLS = 2


@pytest.fixture
def serve(template: Path, tmp_path: Path) -> Iterator[Serve]:
    """Return a function that makes a node and serves it.

    All have the same CA; those after the first use its database.
    """
    workshop = Workshop(template)
    nodes: list[Process] = []

    def start(*arguments: str, url: str | None = None, **environment: str) -> Process:
        folder = tmp_path / f"node{len(nodes)}"
        if nodes or url:
            shared = url or nodes[0].live.settings.database_url
            node = make_node(workshop, folder, shared, tmp_path / "node0/journal")
        else:
            node = Process(workshop.make(folder, start=False))
        nodes.append(replace(node, arguments=arguments, environment=environment))
        nodes[-1].start()
        return nodes[-1]

    yield start
    for node in nodes:
        node.stop()


@pytest.fixture
def url(postgresql: Path) -> str:
    """Return the URL of a database on PostgreSQL with our schema and nothing in it."""
    url = make_schema(postgresql)
    with closing(Store(url, SystemClock())) as store:
        migrate(store)
    return url


# -- one PIN, many at once -------------------------------------------------------------------------


@dataclass
class Race:
    """Clients that ask for a certificate under the same PIN at the same moment, PIN after PIN."""

    nodes: list[Process]
    handovers: list[Handover]
    clients: int
    answers: list[tuple[int, int, bytes]] = field(default_factory=list)
    """Which PIN, which status, which body."""

    def run(self) -> list[bytes]:
        """Return the certificates handed out, one for each PIN; every other answer is a refusal."""
        start = threading.Barrier(self.clients)
        with ThreadPoolExecutor(self.clients) as pool:
            for number in range(self.clients):
                pool.submit(self._compete, self.nodes[number % len(self.nodes)].live, start)
        assert len(self.answers) == self.clients * len(self.handovers)
        won = [(pin, body) for pin, status, body in self.answers if status == 200]
        assert sorted(pin for pin, _ in won) == list(range(len(self.handovers)))
        assert {status for _, status, _ in self.answers} == {200, 401}
        return [
            one.public_bytes(Encoding.DER)
            for _, body in won
            for one in pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))[:1]
        ]

    def _compete(self, live: Live, start: threading.Barrier) -> None:
        port = live.settings.listeners.devices.port
        connection = HTTPSConnection("localhost", port, timeout=30, context=live.tls())
        with closing(connection):
            for pin, handover in enumerate(self.handovers):
                body = base64.b64encode(make_csr(new_key()))
                start.wait(PATIENCE_SECONDS)
                status, answer = self._ask(connection, handover, body)
                while status == 503:
                    status, answer = self._ask(connection, handover, body)
                self.answers.append((pin, status, answer))

    def _ask(
        self, connection: HTTPSConnection, handover: Handover, body: bytes
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/pkcs10", "Authorization": basic(handover)}
        connection.request("POST", "/.well-known/est/simpleenroll", body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def test_two_processes_on_one_sqlite_file_issue_once_for_each_pin(
    serve: Serve, request: pytest.FixtureRequest
) -> None:
    pins = 50 if request.config.getoption("--full") else 5
    nodes = [serve(), serve()]
    received = Race(nodes, invite(nodes[0].live, pins), clients=20).run()
    assert judge(nodes[0].live, received) == []


def test_two_workers_issue_once_for_each_pin(serve: Serve, request: pytest.FixtureRequest) -> None:
    pins = 50 if request.config.getoption("--full") else 5
    node = serve("--workers", "2")
    node.until_told("worker.ready", 2)
    received = Race([node], invite(node.live, pins), clients=20).run()
    assert judge(node.live, received) == []


@pytest.mark.timeout(1200)
def test_two_nodes_on_postgresql_issue_once_for_each_pin(
    serve: Serve, url: str, request: pytest.FixtureRequest
) -> None:
    full = request.config.getoption("--full")
    nodes = [serve(url=url), serve(url=url)]
    handovers = invite(nodes[0].live, 500 if full else 8)
    received = Race(nodes, handovers, clients=64 if full else 12).run()
    assert judge(nodes[0].live, received) == []


# -- what happens to workers -----------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.row("INC-25", "I1", "I2", "I3", "I7", "I9")
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_workers_killed_under_load_come_back_and_nothing_is_lost(
    serve: Serve, database: str, request: pytest.FixtureRequest
) -> None:
    url = None if database == "sqlite" else request.getfixturevalue("url")
    failpoint = {"ESTSERVER_FAILPOINT": "stored:3:kill"}
    node = serve("--workers", "2", "--test-mode", url=url, **failpoint)
    number = 200 if request.config.getoption("--full") else 16
    clients = [Client(node.live, handover) for handover in invite(node.live, number)]
    with ThreadPoolExecutor(8) as pool:
        for client in clients:
            pool.submit(client.run)
    assert node.told("worker.died") >= KILLS
    node.until(lambda: len(node.workers) == 2)
    assert [client.final for client in clients] == [200] * len(clients)
    assert all(len(set(client.received)) == 1 for client in clients)
    node.stop()
    assert judge(node.live, [der for client in clients for der in client.received]) == []


def test_all_workers_count_on_one_page(serve: Serve) -> None:
    node = serve("--workers", "2")
    node.until_told("worker.ready", 2)
    for _ in range(12):
        assert node.live.request("GET", "/.well-known/est/cacerts").status == 200

    def page() -> str:
        return node.live.request("GET", "/metrics", listener="management").body.decode()

    assert re.search(r'requests_total{.*operation="cacerts".*} 12\.0', page())
    assert "estserver_workers 2.0" in page()
    os.kill(node.workers[0], signal.SIGKILL)
    node.until_told("worker.ready", 3)
    # What the dead one has counted still counts.
    assert re.search(r'requests_total{.*operation="cacerts".*} 12\.0', page())
    assert "estserver_worker_restarts_total 1.0" in page()


def test_metrics_tell_of_the_last_verification_from_the_start(serve: Serve) -> None:
    first = serve()
    first.command("verify")
    second = serve("--workers", "2")
    first.stop()
    first.start()
    for node in (first, second):
        page = node.live.request("GET", "/metrics", listener="management").body.decode()
        assert re.search(r"^estserver_verification_problems 0\.0$", page, re.MULTILINE)
        ended = re.search(r"^estserver_verification_timestamp_seconds (.*)$", page, re.MULTILINE)
        assert ended is not None
        assert time.time() - float(ended[1]) < PATIENCE_SECONDS


def test_sigterm_ends_all_workers_in_order_and_systemd_is_told(
    serve: Serve, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_SECONDS)
        node = serve("--workers", "2", NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert manager.recv(100) == b"READY=1"
        node.until_told("worker.ready", 2)
        assert node.child is not None
        node.child.terminate()
        assert node.child.wait(PATIENCE_SECONDS) == 0
        assert manager.recv(100) == b"STOPPING=1"
    assert node.told("server.stopped") == 2


def test_workers_end_when_their_supervisor_is_killed(serve: Serve) -> None:
    node = serve("--workers", "2")
    node.until_told("worker.ready", 2)
    assert node.child is not None
    workers = [os.pidfd_open(pid) for pid in node.workers]
    node.child.kill()
    node.child.wait(PATIENCE_SECONDS)
    with ThreadPoolExecutor(len(workers)) as pool:
        ended = [pool.submit(_wait_for_end, worker) for worker in workers]
        assert all(future.result() for future in ended)
    assert node.told("server.stopped") == 2


def _wait_for_end(worker: int) -> bool:
    poll = select.poll()
    poll.register(worker, select.POLLIN)
    return bool(poll.poll(PATIENCE_SECONDS * 1000))


def test_sighup_reaches_every_worker_and_those_that_come_later(serve: Serve) -> None:
    node = serve("--workers", "2")
    node.until_told("worker.ready", 2)
    assert node.child is not None
    with (node.live.directory / "estserver.toml").open("a") as file:
        file.write('\n[profiles.device]\nvalidity = "7d"\n')
    node.child.send_signal(signal.SIGHUP)
    node.until_told("server.reloaded", 2)
    os.kill(node.workers[1], signal.SIGKILL)
    node.until_told("server.reloaded", 3)
    node.live.settings = config.load(node.live.directory / "estserver.toml")
    for handover in invite(node.live, 4):
        leaf = node.live.enroll(handover).certificate
        assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 6


def test_a_port_in_use_is_one_sentence_for_all_workers(template: Path, tmp_path: Path) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", live.settings.listeners.status.port))
        taken.listen()
        node = Process(live, ("--workers", "2"))
        with pytest.raises(AssertionError):
            node.start()
    assert node.child is not None
    assert node.child.returncode == 1
    last = node.log.read_text().strip().splitlines()[-1]
    assert re.fullmatch(
        r"Error: listeners\.status: cannot listen on .*: address already in use: stop .*", last
    )


def test_a_worker_that_cannot_start_ends_the_command_with_its_sentence(
    template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    (live.directory / "secrets/passphrase").unlink()
    node = Process(live, ("--workers", "2"))
    with pytest.raises(AssertionError, match="passphrase"):
        node.start()
    assert node.child is not None
    assert node.child.returncode == 1
    assert "Traceback" not in node.log.read_text()


def _connect(live: Live) -> HTTPSConnection:
    """Open a connection, use it once, keep it."""
    port = live.settings.listeners.devices.port
    connection = HTTPSConnection("localhost", port, timeout=30, context=live.tls())
    connection.request("GET", "/.well-known/est/cacerts")
    assert connection.getresponse().read()
    return connection


def test_an_idle_tls_connection_keeps_no_large_buffers(serve: Serve) -> None:
    node = serve()
    with ExitStack() as held:
        for _ in range(50):
            held.enter_context(closing(_connect(node.live)))
        before = node.resident_bytes
        for _ in range(200):
            held.enter_context(closing(_connect(node.live)))
        # 30 KB where nothing else grows at the same moment; asyncio by itself takes 230.
        assert node.resident_bytes - before < 200 * 48 * 1024


# -- nodes -----------------------------------------------------------------------------------------


def _own_certificates(live: Live) -> Counter[str]:
    with closing(open_core(live.settings, live.clock, with_keys=False)) as core:
        profiles = core.store.read(
            lambda tx: tx.connection.execute(sa.select(certificates.c.profile)).scalars().all()
        )
    return Counter(name for name in profiles if name.startswith("_"))


def test_workers_share_their_machines_certificates_and_every_node_has_its_own(
    serve: Serve,
) -> None:
    first = serve("--workers", "3")
    first.until_told("worker.ready", 3)
    assert _own_certificates(first.live) == {"_tls": 1, "_ocsp-issuing": 1}
    serve()
    assert _own_certificates(first.live) == {"_tls": 2, "_ocsp-issuing": 2}


def _is_revoked(live: Live, holder: Holder) -> bool:
    """Ask one node's CRL and OCSP."""
    crl = x509.load_der_x509_crl(live.request("GET", "/crl/issuing.crl", listener="status").body)
    return (
        crl.get_revoked_certificate_by_serial_number(holder.certificate.serial_number) is not None
        and live.said_by_ocsp(holder.certificate) is ocsp.OCSPCertStatus.REVOKED
    )


def _is_revoked_by_all(live: Live, holder: Holder) -> bool:
    # Each time another worker may answer.
    return all(_is_revoked(live, holder) for _ in range(6))


def test_what_is_revoked_is_revoked_on_every_node_within_ten_seconds(
    serve: Serve, url: str
) -> None:
    nodes = [serve(url=url), serve("--workers", "2", url=url)]
    (handover,) = invite(nodes[0].live, 1)
    holder = nodes[1].live.enroll(handover)
    assert not any(_is_revoked(node.live, holder) for node in nodes)
    serial = f"{holder.certificate.serial_number:x}"
    nodes[0].command("certificates", "revoke", serial, "--reason", "superseded")
    began = time.monotonic()
    for node in nodes:
        node.until(partial(_is_revoked_by_all, node.live, holder))
    assert time.monotonic() - began < 10
