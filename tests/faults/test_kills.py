"""A server killed at every named failpoint, again and again, under clients that keep trying."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from estserver import failpoints
from tests.faults.nodes import invite, judge
from tests.faults.serving import PATIENCE_SECONDS, Client, Process
from tests.live import Workshop

CLIENTS = 6


@pytest.fixture
def process(template: Path, tmp_path: Path) -> Iterator[Process]:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    server = Process(live, ("--test-mode",))
    yield server
    server.stop()


def _run_killed(process: Process, failpoint: str, kills: int, seed: int) -> list[str]:
    """Kill the server `kills` times at `failpoint` under load and judge what is left.

    Each round brings new clients; those of earlier rounds are still trying.
    """
    chance = random.Random(seed)
    clients: list[Client] = []
    threads: list[threading.Thread] = []
    for _ in range(kills):
        # The first clients may have to wait until the last kill is over.
        patience = 2 * PATIENCE_SECONDS * kills
        fresh = [
            Client(process.live, handover, patience) for handover in invite(process.live, CLIENTS)
        ]
        clients += fresh
        process.environment["ESTSERVER_FAILPOINT"] = (
            f"{failpoint}:{chance.randint(1, CLIENTS)}:kill"
        )
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
    findings = [
        f"I3: a client ended with {client.final}" for client in clients if client.final != 200
    ]
    findings += [
        "the same question got two answers" for client in clients if len(set(client.received)) > 1
    ]
    received = [der for client in clients for der in client.received]
    return [*findings, *judge(process.live, received)]


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
