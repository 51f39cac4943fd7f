"""The supervisor: what it survives, and what one that was killed leaves behind."""

import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.serving import Process
from tests.live import Workshop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where temporary files go."""
    made = tmp_path / "temporary"
    made.mkdir()
    return made


@pytest.fixture
def served(template: Path, tmp_path: Path, folder: Path) -> Iterator[list[Process]]:
    """Return two instances that two workers each may serve."""
    workshop = Workshop(template)
    processes = [
        Process(
            workshop.make(tmp_path / name, start=False),
            arguments=("--workers", "2"),
            environment={"TMPDIR": str(folder)},
        )
        for name in ("ours", "theirs")
    ]
    yield processes
    for one in processes:
        one.stop()


def test_the_counters_of_a_killed_supervisor_end_with_the_next_and_no_others_do(
    served: list[Process], folder: Path
) -> None:
    ours, theirs = served
    theirs.start()
    (others,) = folder.iterdir()
    ours.start()
    ours.until_told("worker.ready", 2)
    (left,) = set(folder.iterdir()) - {others}
    workers = ours.workers
    ours.kill()
    theirs.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert set(folder.iterdir()) == {left, others}
    again = replace(ours)
    again.start()
    assert not left.exists()
    assert others.exists()
    # Its second worker may still be starting: that must not get in the way of the end.
    again.stop()
    assert again.child is not None
    assert again.child.returncode == 0
    assert set(folder.iterdir()) == {others}


_WITH_A_CHILD = """
import os, subprocess, sys
subprocess.Popen(["sleep", "600"])
os.execv(sys.executable, [sys.executable, "-m", "estserver", *sys.argv[1:]])
"""


def test_a_child_that_is_none_of_its_workers_ends_and_the_supervisor_goes_on(
    served: list[Process],
) -> None:
    ours = replace(served[0], program=("-c", _WITH_A_CHILD))
    ours.start()
    ours.until_told("worker.ready", 2)
    stranger, *workers = ours.workers
    os.kill(stranger, signal.SIGTERM)
    ours.until(lambda: ours.workers == workers)
    os.kill(workers[0], signal.SIGKILL)
    ours.until_told("worker.ready", 3)
    ours.stop()
    assert ours.child is not None
    assert ours.child.returncode == 0


@pytest.mark.parametrize("binds", [False, True], ids=["for the ports", "for its pipe"])
def test_where_a_worker_cannot_be_started_the_others_go_on_and_it_is_tried_again(
    served: list[Process], *, binds: bool
) -> None:
    ours, _ = served
    ours.start()
    ours.until_told("worker.ready", 2)
    assert ours.child is not None
    ports = sum(bool(listener.serves) for _, listener in ours.live.settings.listeners.each())
    # One more comes of the pipe of the worker that ends.
    before = _descriptors_left(ours.child.pid, ports if binds else 0)
    first, second = ours.workers
    os.kill(first, signal.SIGKILL)
    ours.until(lambda: ours.told("worker.failed") >= 2)
    assert "too many open files" in ours.log.read_text()
    assert ours.workers == [second]
    resource.prlimit(ours.child.pid, resource.RLIMIT_NOFILE, before)
    ours.until_told("worker.ready", 3)
    ours.stop()
    assert ours.child.returncode == 0


def _descriptors_left(pid: int, count: int) -> tuple[int, int]:
    """Let a process open `count` files more and no others; return what limited it before."""
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    limit = 0
    while count or limit in used:
        count -= limit not in used
        limit += 1
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, most))
