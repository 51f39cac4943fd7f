"""Gate: lets one process at a time write to an SQLite file, the others waiting in line.

SQLite's own way to wait is to sleep and look again, which leaves processors idle. Whoever does not
come through here is still kept out by SQLite's locks.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa


class Gate:
    """The gate of one database; open for all others than files. For one thread only."""

    def __init__(self, url: sa.URL) -> None:
        on_disk = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
        self._database = Path(str(url.database)) if on_disk else None
        self._descriptor: int | None = None

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Wait for the gate and hold it. Raises OSError: the lock file cannot be made."""
        if self._database is None:
            yield
            return
        if self._descriptor is None:
            self._descriptor = _open_lock(self._database)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the lock file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _open_lock(database: Path) -> int:
    """Open the file beside a database that its writers lock, owned as the database is.

    A command that root runs must not lock the service out.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(database.with_name(f"{database.name}.lock"), flags, 0o600)
    if os.geteuid() == 0 and database.exists():
        owner = database.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor
