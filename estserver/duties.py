"""Duties: what is done again and again besides the requests, each by itself, so that none waits.

A duty that one worker of all nodes can do for all is done by whoever holds its lease; when the
holder dies, another takes over once the lease has run out. A new duty is one `Duty` in a list.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog

from estserver.errors import Error, Unavailable
from estserver.model import Clock
from estserver.store import Store, leases
from estserver.store.outages import explained

log = structlog.get_logger("estserver.duties")

NODE = "node "
"""Begins the name of the lease that a node holds for as long as it lives."""
FIRST_SECONDS = 60
"""The first turn comes no later: a server that never lives an hour still does what is hourly."""
_SHORTEST_TERM = timedelta(seconds=8)
_MISSED_TURNS = 3


@dataclass(frozen=True, slots=True)
class Duty:
    """`work`, to be done every `seconds`; `alone`: by one worker of all nodes at a time.

    `work` must stay right if two do it at the same moment all the same.
    """

    name: str
    seconds: float
    work: Callable[[], Awaitable[object]]
    alone: bool = True


def node_name(directory: Path) -> str:
    """Name the lease of the node that serves the instance in `directory` of this machine."""
    return f"{NODE}{socket.gethostname()}:{directory}"


def process_name(process: int, worker: int = 0) -> str:
    """Name a process, or a worker of a supervisor, as leases do: unlike any other alive."""
    return f"{socket.gethostname()}:{process}:{worker}"


class Duties:
    """Does duties for one process, which `holder` names. Thread-safe."""

    def __init__(self, store: Store, clock: Clock, holder: str, executor: Executor) -> None:
        self._store = store
        self._clock = clock
        self._holder = holder
        self._executor = executor
        self._waiting: set[str] = set()
        self._told: set[str] = set()

    async def perform(self, duty: Duty) -> None:
        """Do a duty for ever; a failure is logged and tried again."""
        pause = min(duty.seconds, FIRST_SECONDS)
        while True:
            await asyncio.sleep(pause)
            pause = duty.seconds
            try:
                if not duty.alone or await self._is_ours(duty):
                    await duty.work()
                self.resumed(duty.name)
            except Unavailable as error:
                self.delayed(duty.name, error)
                pause = min(duty.seconds, FIRST_SECONDS)
            except Exception:
                # A background task must outlive its failures.
                log.exception("background.failed", operation=duty.name)
                self.resumed(duty.name)

    def delayed(self, operation: str, error: Error) -> None:
        """Log why something has to wait: each reason once until all goes on. On the loop."""
        why = explained(error)
        if why not in self._told:
            log.warning("background.delayed", operation=operation, error=why)
        self._told.add(why)
        self._waiting.add(operation)

    def resumed(self, operation: str) -> None:
        """Log that nothing has to wait any more, if something had to. On the loop."""
        if self._waiting == {operation}:
            self._told.clear()
            log.info("background.resumed")
        self._waiting.discard(operation)

    def leave(self) -> None:
        """Let the others take over at once; without the database they wait for the terms' end."""
        with contextlib.suppress(Unavailable):
            self._store.write(lambda tx: leases.leave(tx, self._holder))

    async def _is_ours(self, duty: Duty) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self.take, duty)

    def take(self, duty: Duty) -> bool:
        """Hold the lease of a duty, or see that another does; most turns of either write nothing.

        May block. Raises Unavailable.
        """
        name, term = duty.name, max(_SHORTEST_TERM, timedelta(seconds=duty.seconds) * _MISSED_TURNS)
        lease = self._store.read(lambda tx: leases.get(tx, name))
        if lease is not None:
            left = lease.until - self._clock.now()
            if lease.holder != self._holder and left > timedelta(0):
                return False
            if lease.holder == self._holder and left > term / 2:
                return True
        return self._store.write(lambda tx: leases.take(tx, name, self._holder, term))
