"""Two workers behind a front share Unix sockets, which outlive each of them."""

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.nodes import Crowd, invite, judge
from tests.faults.serving import Process
from tests.interop.fronts import make_fronted
from tests.live import Live, Workshop, make_csr, new_key


@pytest.fixture(params=["haproxy", "nginx"])
def fronted(template: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    """Return two workers whose https listeners are reached through a front alone."""
    served: list[Process] = []

    def serve(live: Live) -> None:
        served.append(Process(live, ("--workers", "2")))
        served[0].start()
        served[0].until_told("worker.ready", 2)

    _, front = make_fronted(Workshop(template), tmp_path / "instance", request.param, serve)
    yield served[0]
    front.stop()
    served[0].stop()
    shutil.rmtree(front.folder)


def nothing_more() -> None:
    """All that is to happen has happened."""


def ticks(pid: int) -> int:
    """Return what CPU time a process has used: utime and stime of proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.row("INC-25", "I1", "I2", "I3", "I9")
def test_each_worker_serves_the_socket_whichever_is_killed(fronted: Process) -> None:
    def kill_one_after_the_other() -> None:
        for ready in (3, 4):
            os.kill(fronted.workers[0], signal.SIGKILL)
            fronted.until_told("worker.ready", ready)

    received = Crowd([fronted], 30).live_through(kill_one_after_the_other)
    # None left: the supervisor holds the socket, where those who come meanwhile wait.
    for pid in fronted.workers:
        os.kill(pid, signal.SIGKILL)
    received += Crowd([fronted], 6).live_through(nothing_more)
    assert judge(fronted.live, received) == []


def test_both_workers_have_work(fronted: Process) -> None:
    (handover,) = invite(fronted.live, 1)
    holder = fronted.live.enroll(handover)
    subject = holder.certificate.subject
    before = [ticks(pid) for pid in fronted.workers]

    def renew(_: int) -> int:
        csr = make_csr(new_key(), subject=subject)
        return fronted.live.request(
            "POST",
            "/.well-known/est/simplereenroll",
            body=csr,
            headers={"Content-Type": "application/pkcs10"},
            holder=holder,
        ).status

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(renew, range(200))) == {200}
    used = [ticks(pid) - start for pid, start in zip(fronted.workers, before, strict=True)]
    assert min(used) * 4 > max(used)
