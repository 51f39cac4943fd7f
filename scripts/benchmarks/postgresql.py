"""A PostgreSQL of one's own: a new cluster on a Unix socket, gone when the block ends."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def server_programs() -> Path | None:
    """Return the folder of the newest PostgreSQL server programs, None without any."""
    packaged = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    if packaged:
        return packaged[-1].parent
    found = shutil.which("initdb")
    return None if found is None else Path(found).parent


def _run(*command: str | Path) -> None:
    """Run a server program as the user postgres: it refuses to work for root."""
    if os.geteuid() == 0:
        command = ("runuser", "-u", "postgres", "--", *command)
    # No pipes: the server that pg_ctl starts would keep them open.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


@contextmanager
def cluster(programs: Path, parent: Path, *options: str) -> Iterator[Path]:
    """Run a cluster with `options` such as `fsync=off`; give the folder of its socket.

    `parent`: a short path, since a socket's is at most 107 octets, and one that the user postgres
    can enter.
    """
    folder = Path(tempfile.mkdtemp(prefix="estserver-pg-", dir=parent))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    _run(
        programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"
    )
    settings = ("listen_addresses=", *options)
    words = f"-k {folder} " + " ".join(f"-c {setting}" for setting in settings)
    control = (programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", words)
    _run(*control, "start")
    try:
        yield folder
    finally:
        _run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def main_process(folder: Path) -> int:
    """Return the pid of the cluster whose socket lies in `folder`."""
    return int((folder / "data/postmaster.pid").read_text().split()[0])
