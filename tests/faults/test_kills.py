"""A server killed at every named failpoint, again and again, under clients that keep trying."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from estserver import failpoints
from estserver.core import open_core
from estserver.invitations import Handover
from tests.faults.serving import Client
from tests.invariants import violations
from tests.live import Live, Workshop

CLIENTS = 6
PATIENCE_SECONDS = 120


@dataclass
class Process:
    """`estserver serve` as a process of its own, killed and started again as often as needed."""

    live: Live
    program: tuple[str, ...] = ("-m", "estserver")
    child: subprocess.Popen[bytes] | None = None

    def start(self, failpoint: str | None = None) -> None:
        environment = {**os.environ}
        environment.pop("ESTSERVER_FAILPOINT", None)
        if failpoint:
            environment["ESTSERVER_FAILPOINT"] = failpoint
        with (self.live.directory / "serve.log").open("ab") as log:
            self.child = subprocess.Popen(
                [
                    sys.executable,
                    *self.program,
                    "--config",
                    str(self.live.directory / "estserver.toml"),
                    "serve",
                    "--test-mode",
                ],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parent.parent.parent,
            )

    def wait_killed(self) -> None:
        """Wait for the failpoint to end the process."""
        assert self.child is not None
        assert self.child.wait(PATIENCE_SECONDS) == -signal.SIGKILL

    def stop(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait(PATIENCE_SECONDS)


@pytest.fixture
def process(template: Path, tmp_path: Path) -> Iterator[Process]:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    server = Process(live)
    yield server
    server.stop()


def _invite(live: Live, number: int) -> list[Handover]:
    live.core = open_core(live.settings, live.clock, with_keys=False)
    try:
        return [live.invite("device", device_id=f"device-{n}") for n in range(number)]
    finally:
        live.core.close()


def _run_killed(process: Process, failpoint: str, kills: int, seed: int) -> list[str]:
    """Kill the server `kills` times at `failpoint` under load and judge what is left.

    Each round brings new clients; those of earlier rounds are still trying.
    """
    chance = random.Random(seed)
    clients: list[Client] = []
    threads: list[threading.Thread] = []
    for _ in range(kills):
        # The first clients may have to wait until the last kill is over.
        patience = PATIENCE_SECONDS * kills
        fresh = [
            Client(process.live, handover, patience) for handover in _invite(process.live, CLIENTS)
        ]
        clients += fresh
        process.start(f"{failpoint}:{chance.randint(1, CLIENTS)}:kill")
        for client in fresh:
            threads.append(threading.Thread(target=client.run))
            threads[-1].start()
        process.wait_killed()
    process.start()
    for thread in threads:
        thread.join()
    process.stop()
    findings = [
        f"I3: a client ended with {client.final}" for client in clients if client.final != 200
    ]
    findings += [
        "the same question got two answers" for client in clients if len(set(client.received)) > 1
    ]
    core = open_core(process.live.settings, process.live.clock, with_keys=True)
    try:
        received = [der for client in clients for der in client.received]
        return [*findings, *violations(core, received)]
    finally:
        core.close()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("failpoint", failpoints.NAMES)
@pytest.mark.row("EST-064", "INC-25", "INC-35", "I1", "I2", "I3", "I7", "I9")
def test_nothing_is_lost_when_the_server_dies_at(
    process: Process, failpoint: str, request: pytest.FixtureRequest
) -> None:
    kills = 25 if request.config.getoption("--full") else 5
    assert _run_killed(process, failpoint, kills, seed=failpoints.NAMES.index(failpoint)) == []


@pytest.mark.timeout(300)
def test_the_checker_catches_a_server_that_delivers_before_it_stores(process: Process) -> None:
    process.program = (str(Path(__file__).parent / "deliver_before_store.py"),)
    findings = _run_killed(process, "last-byte", 1, seed=1)
    assert any("I1: a client holds" in finding or "two answers" in finding for finding in findings)
