"""A PostgreSQL of one's own: a new cluster on a Unix socket, gone when the block ends."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Cluster:
    """A PostgreSQL server: its data and its socket lie in `folder`.

    `settings` such as `fsync=off` are given at each start.
    """

    programs: Path
    folder: Path
    settings: tuple[str, ...]

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def running(self) -> bool:
        """Tell whether there is a postmaster; one that was killed left its file behind."""
        try:
            return Path(f"/proc/{main_process(self.folder)}").exists()
        except FileNotFoundError:
            return False

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run a server program as the user postgres: it refuses to work for root.

        Raises subprocess.CalledProcessError.
        """
        command: tuple[str | Path, ...] = (self.programs / program, *arguments)
        if os.geteuid() == 0:
            command = ("runuser", "-u", "postgres", "--", *command)
        # No pipes: the server that pg_ctl starts would keep them open.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def control(self, action: str, *arguments: str) -> None:
        """Let pg_ctl do something and wait until it is done."""
        self.run("pg_ctl", "-D", self.data, "-w", action, *arguments)

    def create(self) -> None:
        """Make the data directory; everybody who may open the socket is let in."""
        options = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.run("initdb", "-D", self.data, *options)

    def start(self) -> None:
        """Start, and wait until it answers."""
        settings = ("listen_addresses=", *self.settings)
        words = f"-k {self.folder} " + " ".join(f"-c {setting}" for setting in settings)
        self.control("start", "-l", str(self.folder / "log"), "-o", words)


@contextmanager
def cluster_folder(programs: Path, parent: Path, *settings: str) -> Iterator[Cluster]:
    """Give a cluster without data, in a folder that is gone when the block ends.

    `parent`: a short path, since a socket's is at most 107 octets, and one that the user postgres
    can enter.
    """
    folder = Path(tempfile.mkdtemp(prefix="estserver-pg-", dir=parent))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    made = Cluster(programs, folder, settings)
    try:
        yield made
    finally:
        if made.running:
            made.control("stop", "-m", "immediate")
        shutil.rmtree(folder)


@contextmanager
def cluster(programs: Path, parent: Path, *settings: str) -> Iterator[Path]:
    """Run a new cluster until the block ends, as `cluster_folder` says; give its folder."""
    with cluster_folder(programs, parent, *settings) as made:
        made.create()
        made.start()
        yield made.folder


def main_process(folder: Path) -> int:
    """Return the pid of the cluster whose socket lies in `folder`."""
    return int((folder / "data/postmaster.pid").read_text().split()[0])
