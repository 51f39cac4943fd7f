"""Several nodes on one database, the crowd that asks all of them, and what must hold after."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from estserver import config
from estserver.core import open_core
from estserver.invitations import Handover
from tests.faults.serving import PATIENCE_SECONDS, Client, Process
from tests.invariants import violations
from tests.live import Live, Workshop

_THREADS = 12


def make_node(workshop: Workshop, directory: Path, url: str, journal: Path) -> Process:
    """Make a node with the CA of all that `workshop` makes, on the database at `url`."""
    live = workshop.make(directory, start=False)
    path = directory / "estserver.toml"
    text = path.read_text(encoding="utf-8").replace("sqlite:///estserver.db", url)
    path.write_text(text.replace('"journal"\n', f'"{journal}"\n'), encoding="utf-8")
    live.settings = config.load(path)
    return Process(live)


def invite(live: Live, count: int) -> list[Handover]:
    """Register devices, as the command does beside a server."""
    live.core = open_core(live.settings, live.clock, with_keys=False)
    try:
        return [live.invite("device", device_id=f"device-{n}") for n in range(count)]
    finally:
        live.core.close()


@dataclass
class Crowd:
    """Devices that ask all nodes in turn, some at the same time, each until it is served."""

    nodes: list[Process]
    count: int
    clients: list[Client] = field(default_factory=list)
    _answers: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def live_through(self, fault: Callable[[], object]) -> list[bytes]:
        """Let `fault` happen early among the answers; return every certificate handed out."""
        first, *others = (node.live for node in self.nodes)
        self.clients = [
            Client(first, handover, 5 * PATIENCE_SECONDS, tuple(others), self._answers)
            for handover in invite(first, self.count)
        ]
        with ThreadPoolExecutor(_THREADS) as pool:
            asking: list[Future[None]] = [pool.submit(client.run) for client in self.clients]
            self.wait_for(self.count // 3)
            fault()
        for client in asking:
            client.result()
        assert [client.final for client in self.clients] == [200] * self.count
        # I1: the same question got the same bytes, whichever node was asked. I8: at once or soon.
        assert all(len(set(client.received)) == 1 for client in self.clients)
        assert sum(client.hung for client in self.clients) == 0
        return [der for client in self.clients for der in client.received]

    def wait_for(self, answers: int) -> None:
        """Wait until so many more certificates were handed out; each client gets its own twice."""
        for _ in range(answers):
            assert self._answers.acquire(timeout=PATIENCE_SECONDS)


def judge(live: Live, received: list[bytes]) -> list[str]:
    """Return what the invariant checker finds."""
    core = open_core(live.settings, live.clock, with_keys=True)
    try:
        return violations(core, received)
    finally:
        core.close()
