"""What happens to PostgreSQL servers: killed, stopped, cut off, taken over from by a standby."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psycopg

from scripts.benchmarks.postgresql import Cluster, main_process
from tests.faults.serving import PATIENCE_SECONDS


def administer(cluster: Cluster) -> psycopg.Connection[tuple[int]]:
    """Connect as the administrator, each statement for itself."""
    return psycopg.connect(host=str(cluster.folder), user="postgres", autocommit=True)


def backends(administrator: psycopg.Connection[tuple[int]], node: str = "node%") -> list[int]:
    """Return the processes that serve nodes, or the one with a name."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s"
    return [pid for (pid,) in administrator.execute(query, [node])]


def kill_main_process(cluster: Cluster) -> None:
    """SIGKILL the postmaster; its backends notice as soon as they wait for something."""
    os.kill(main_process(cluster.folder), signal.SIGKILL)


def power_off(cluster: Cluster) -> None:
    """SIGKILL every process of a server at the same moment."""
    main = main_process(cluster.folder)
    # So that it makes no new ones meanwhile.
    os.kill(main, signal.SIGSTOP)
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    for pid in (*map(int, children), main):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while cluster.running:
        time.sleep(0.01)


def start_again(cluster: Cluster) -> None:
    """Start a server that was killed, as soon as the last of its processes is gone."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return cluster.start()
        except subprocess.CalledProcessError:
            # Its memory is in use as long as one of its backends has not noticed.
            if time.monotonic() > deadline:
                raise


def copy(primary: Cluster, standby: Cluster, host: str, port: int = 5432) -> None:
    """Make and start a standby that follows `primary`, which it reaches at `host`."""
    standby.run(
        "pg_basebackup",
        *("-D", standby.data, "-h", host, "-p", str(port), "-U", "postgres"),
        *("-R", "-c", "fast", "-X", "stream", "--no-sync"),
    )
    standby.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    with administer(primary) as connection:
        query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        while connection.execute(query).fetchone() != (1,):
            assert time.monotonic() < deadline, (standby.folder / "log").read_text()
