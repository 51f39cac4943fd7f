"""The machine: which cores do what, what processes cost, who else was at work."""

import os
import platform
import resource
import shutil
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cryptography
from cryptography.hazmat.backends.openssl import backend

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cores:
    """Who works where. With two cores two workers share the second with the generator."""

    server: tuple[int, ...]
    pair: tuple[int, ...]
    generator: tuple[int, ...]

    @property
    def apart(self) -> bool:
        """Whether two workers and the generator have cores of their own."""
        return not set(self.pair) & set(self.generator)


def divide_cores() -> Cores:
    """Give the first core to the server and the last ones to the generator."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return Cores((cores[0],), (cores[0],), (cores[0],))
    if len(cores) < 4:  # two workers on cores of their own leave none to the generator
        return Cores((cores[0],), (cores[0], cores[1]), (cores[-1],))
    return Cores((cores[0],), (cores[0], cores[1]), tuple(cores[2:6]))


def pinned(command: Iterable[str | Path], cores: tuple[int, ...]) -> list[str]:
    """Return a command that runs on these cores only."""
    taskset = shutil.which("taskset")
    if taskset is None:
        raise RuntimeError("taskset is missing: install util-linux")
    return [taskset, "-c", ",".join(map(str, cores)), *map(str, command)]


@contextmanager
def on_cores(cores: tuple[int, ...]) -> Iterator[None]:
    """Run the block on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pid: int, cores: tuple[int, ...]) -> None:
    """Move a process and its descendants to these cores; their later children stay there."""
    for member in tree(pid):
        for thread in Path(f"/proc/{member}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def tree(pid: int) -> list[int]:
    """Return a process and its descendants that are alive."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU seconds of process trees, those of children that have ended included."""
    total = 0
    for pid in {member for root in roots for member in tree(root)}:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # utime, stime, cutime, cstime: proc(5).
        total += sum(int(ticks) for ticks in stat.rsplit(") ", 1)[1].split()[11:15])
    return total / _TICKS


def resident_megabytes(pid: int) -> float:
    """Resident memory of one process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak_megabytes() -> float:
    """Most memory that this process has held since it was executed (getrusage knows its parent)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def busy_seconds(cores: tuple[int, ...]) -> float:
    """Seconds that these cores have worked for anybody, stolen time included."""
    wanted = {f"cpu{core}" for core in cores}
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name in wanted:
            # user, nice, system, (idle, iowait,) irq, softirq, steal: proc(5).
            total += sum(int(ticks[column]) for column in (0, 1, 2, 5, 6, 7))
    return total / _TICKS


class Meter:
    """What process trees used, and what others used of the same cores, since it was made."""

    def __init__(self, roots: Iterable[int], cores: tuple[int, ...]) -> None:
        self._roots = tuple(roots)
        self._cores = cores
        self._begun = time.monotonic()
        self._busy = busy_seconds(cores)
        self._cpu = cpu_seconds(self._roots)

    def cpu(self) -> float:
        """CPU seconds of the trees."""
        return cpu_seconds(self._roots) - self._cpu

    def others(self) -> float:
        """Share of the cores' time that went to other processes."""
        elapsed = (time.monotonic() - self._begun) * len(self._cores)
        mine = self.cpu()
        return max(0.0, busy_seconds(self._cores) - self._busy - mine) / elapsed


def describe(folder: Path) -> dict[str, str]:
    """Say what this machine is, as far as figures depend on it."""
    info = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2] for line in info.splitlines() if "model name" in line]
    return {
        "processor": names[0].strip() if names else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tls library": ssl.OPENSSL_VERSION,
        "signing library": f"cryptography {cryptography.__version__}, "
        f"{backend.openssl_version_text()}",
        "file system": _file_system(folder),
    }


def _file_system(folder: Path) -> str:
    """Name the file system that a folder lies on: on tmpfs a durable commit costs nothing."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, name, *_ = line.split()
        inside = folder.resolve().is_relative_to(mount)
        if inside and len(mount) >= len(best):
            best, kind = mount, name
    return kind
