"""PostgreSQL's machine is lost under load and its standby takes over."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from estserver.core import SystemClock
from estserver.store import Store, migrate
from scripts.benchmarks.postgresql import Cluster, cluster_folder, server_programs
from tests.faults.cutting import CuttingProxy
from tests.faults.databases import administer, copy, power_off
from tests.faults.nodes import Crowd, judge, make_node
from tests.faults.serving import Process
from tests.live import Workshop


class Pair:
    """A primary, the standby that follows it, and two nodes that use whichever may be written."""

    def __init__(self, primary: Cluster, standby: Cluster, folder: Path) -> None:
        self.primary = primary
        self.standby = standby
        self.journal = folder / "journal"
        self.nodes: list[Process] = []

    @property
    def url(self) -> str:
        """Return the URL that names both servers."""
        return (
            f"postgresql+psycopg://postgres@/postgres?host={self.primary.folder},"
            f"{self.standby.folder}&target_session_attrs=read-write"
        )

    def follow_at_once(self) -> None:
        """Start the standby; commits wait for it from now on."""
        copy(self.primary, self.standby, str(self.primary.folder))
        with administer(self.primary) as administrator:
            administrator.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            administrator.execute("SELECT pg_reload_conf()")

    def fail_over(self) -> None:
        """Lose the primary and let the standby take over."""
        power_off(self.primary)
        self.standby.control("promote")

    def serve(self, workshop: Workshop, folder: Path) -> None:
        """Start both nodes."""
        for name in ("node0", "node1"):
            self.nodes.append(make_node(workshop, folder / name, self.url, self.journal))
            self.nodes[-1].start()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    programs = server_programs()
    if programs is None:
        pytest.skip("the Debian package postgresql is not installed")
    with ExitStack() as stack:
        primary, standby = (
            stack.enter_context(cluster_folder(programs, Path("/tmp"), "fsync=off"))
            for _ in range(2)
        )
        primary.create()
        primary.start()
        made = Pair(primary, standby, tmp_path)
        with closing(Store(made.url, SystemClock())) as store:
            migrate(store)
        yield made
        for node in made.nodes:
            node.stop()


@pytest.mark.timeout(600)
@pytest.mark.row("INC-25", "I1", "I2", "I3", "I7", "I8", "I9")
def test_a_standby_that_was_waited_for_has_all_that_was_answered(
    pair: Pair, template: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pair.follow_at_once()
    pair.serve(Workshop(template), tmp_path)
    crowd = Crowd(pair.nodes, 150 if request.config.getoption("--full") else 30)
    received = crowd.live_through(pair.fail_over)
    assert judge(pair.nodes[0].live, received) == []
    for node in pair.nodes:
        node.command("verify")


@pytest.mark.timeout(600)
@pytest.mark.row("INC-25", "I1", "I2", "I3", "I5", "I7", "I9")
def test_a_standby_that_lags_is_refilled_from_the_journal(
    pair: Pair, template: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with closing(CuttingProxy(pair.primary.folder)) as network:
        copy(pair.primary, pair.standby, "127.0.0.1", network.port)
        pair.serve(Workshop(template), tmp_path)
        crowd = Crowd(pair.nodes, 150 if request.config.getoption("--full") else 30)
        recovered: list[dict[str, Any]] = []
        revoked: list[int] = []

        def lag_and_fail() -> None:
            network.close()
            crowd.wait_for(crowd.count // 2)
            last = max(crowd.clients, key=lambda client: len(client.received)).received[0]
            revoked.append(x509.load_der_x509_certificate(last).serial_number)
            pair.nodes[0].command(
                *("certificates", "revoke", f"{revoked[0]:x}", "--reason", "keyCompromise")
            )
            power_off(pair.primary)
            # Nodes that went on would grant again what the standby does not know to be spent.
            for node in pair.nodes:
                node.kill()
            pair.standby.control("promote")
            for node in pair.nodes:
                done = node.command("recover", "--journal", str(pair.journal), "--json")
                recovered.append(json.loads(done.stdout))
            for node in pair.nodes:
                node.start()

        received = crowd.live_through(lag_and_fail)
    assert recovered[0]["certificates"]
    assert f"{revoked[0]:x}" in [one["serial"] for one in recovered[0]["revocations"]]
    # The second node had nothing left to put back but the end of its own anchor file.
    assert not recovered[1]["certificates"]
    assert judge(pair.nodes[0].live, received) == []
    for node in pair.nodes:
        node.command("verify")
