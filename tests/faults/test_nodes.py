"""Two nodes under load while their PostgreSQL is restarted, killed, stopped, cut off, used up."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path

import psycopg
import pytest

from estserver.core import SystemClock
from estserver.store import Store, migrate
from estserver.store.migrate import OLDEST, newest
from scripts.benchmarks.postgresql import Cluster, cluster_folder, server_programs
from tests.faults.cutting import CuttingProxy
from tests.faults.databases import (
    administer,
    backends,
    kill_main_process,
    power_off,
    start_again,
)
from tests.faults.nodes import Crowd, judge, make_node
from tests.faults.serving import Process
from tests.live import Workshop

_CONNECTIONS = 40


class Site:
    """Two nodes, their PostgreSQL, and the network between, which may lose answers."""

    def __init__(self, cluster: Cluster, proxy: CuttingProxy) -> None:
        self.cluster = cluster
        self.proxy = proxy
        self.nodes: list[Process] = []
        self.crowd = Crowd([], 0)

    def url(self, name: str) -> str:
        """Return the URL of the database for a node, who can be told from others by its name."""
        return (
            f"postgresql+psycopg://postgres@127.0.0.1:{self.proxy.port}/postgres"
            f"?sslmode=disable&application_name={name}"
        )

    # -- what happens ----------------------------------------------------------------------------

    def restart(self) -> None:
        """The administrator restarts PostgreSQL."""
        self.cluster.control("stop", "-m", "fast")
        self.cluster.start()

    def kill(self) -> None:
        """The postmaster alone is killed."""
        kill_main_process(self.cluster)
        start_again(self.cluster)

    def lose_power(self) -> None:
        """All of PostgreSQL ends at once."""
        power_off(self.cluster)
        start_again(self.cluster)

    def kill_backend(self) -> None:
        """One backend is killed: PostgreSQL throws all connections out and recovers."""
        with administer(self.cluster) as administrator:
            os.kill(backends(administrator)[0], signal.SIGKILL)

    def stop_backends(self) -> None:
        """The backends of one node stop answering for a while; the other node goes on."""
        with administer(self.cluster) as administrator:
            stopped = backends(administrator, "node0")
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            self.crowd.wait_for(4)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def lose_answers(self) -> None:
        """COMMITs arrive, their answers do not."""
        self.proxy.cut_every = 3
        try:
            self.crowd.wait_for(self.crowd.count)
        finally:
            self.proxy.cut_every = None
        assert self.proxy.cuts > 0

    def use_up_connections(self) -> None:
        """Others take every connection there is, and those the nodes had."""
        with ExitStack() as held, administer(self.cluster) as administrator:
            # One that is being ended may still make room for one more of theirs.
            while (left := backends(administrator)) or any(map(_ready, self.nodes)):
                for pid in left:
                    administrator.execute("SELECT pg_terminate_backend(%s)", [pid])
                with suppress(psycopg.OperationalError):
                    while True:
                        held.enter_context(closing(administer(self.cluster)))

    def upgrade(self) -> None:
        """The schema of the next version comes; a node of this version starts on it once more."""
        self.administer(
            "ALTER TABLE invitations ADD COLUMN of_the_next_version text",
            "UPDATE alembic_version SET version_num = '9999'",
        )
        self.nodes[1].stop()
        self.nodes[1].start()

    def administer(self, *statements: str) -> None:
        """Run statements as the database's administrator."""
        with administer(self.cluster) as administrator:
            for statement in statements:
                administrator.execute(statement.encode())


def _ready(node: Process) -> bool:
    return node.live.request("GET", "/readyz", listener="management").status == HTTPStatus.OK


@pytest.fixture(scope="module")
def site(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    programs = server_programs()
    if programs is None:
        pytest.skip("the Debian package postgresql is not installed")
    workshop, folder = Workshop(template), tmp_path_factory.mktemp("site")
    limit = f"max_connections={_CONNECTIONS}"
    with (
        cluster_folder(programs, Path("/tmp"), "fsync=off", limit) as cluster,
        ExitStack() as stack,
    ):
        cluster.create()
        cluster.start()
        made = Site(cluster, CuttingProxy(cluster.folder))
        stack.callback(made.proxy.close)
        with closing(Store(made.url("migration"), SystemClock())) as store:
            migrate(store)
        for name in ("node0", "node1"):
            node = make_node(workshop, folder / name, made.url(name), folder / "journal")
            stack.callback(node.stop)
            node.start()
            made.nodes.append(node)
        yield made


@pytest.mark.timeout(900)
@pytest.mark.row("INC-25", "I1", "I2", "I3", "I7", "I8", "I9")
@pytest.mark.parametrize(
    "fault",
    [
        Site.restart,
        Site.kill,
        Site.lose_power,
        Site.kill_backend,
        Site.stop_backends,
        Site.lose_answers,
        Site.use_up_connections,
    ],
    ids=lambda fault: fault.__name__,
)
def test_two_nodes_survive(
    site: Site, fault: Callable[[Site], None], request: pytest.FixtureRequest
) -> None:
    rounds, clients = (5, 120) if request.config.getoption("--full") else (1, 30)
    for _ in range(rounds):
        site.crowd = Crowd(site.nodes, clients)
        received = site.crowd.live_through(partial(fault, site))
        assert judge(site.nodes[0].live, received) == []


@pytest.mark.timeout(300)
def test_a_node_serves_the_schema_of_the_next_version_and_no_later_one(site: Site) -> None:
    site.crowd = Crowd(site.nodes, 30)
    received = site.crowd.live_through(site.upgrade)
    assert judge(site.nodes[0].live, received) == []
    site.nodes[1].stop()
    # As the migration does that takes away what this version uses.
    site.administer("UPDATE compatibility SET oldest = '9999'")
    with pytest.raises(AssertionError, match="upgrade this node"):
        site.nodes[1].start()
    assert site.nodes[1].child is not None
    assert site.nodes[1].child.returncode == 1
    site.administer(
        "ALTER TABLE invitations DROP COLUMN of_the_next_version",
        f"UPDATE alembic_version SET version_num = '{newest()}'",
        f"UPDATE compatibility SET oldest = '{OLDEST}'",
    )
    site.nodes[1].start()
