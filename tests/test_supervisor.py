"""The supervisor: what one that was killed leaves behind."""

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
