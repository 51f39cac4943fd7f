"""Convoy: many walks through the core side by side, for doors with many customers.

One thread takes every walk that waits as far as its next step, then does the steps of all of them:
one snapshot for what they read, one commit for what they write, one message to the event loop for
those that have arrived. What costs a hop between threads, a transaction or an fsync costs it once
for all. A walk that fails, or that is refused, keeps none of the others.
"""

import asyncio
import collections
import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

from estserver.errors import Fault, Unavailable
from estserver.steps import Apart, Read, Steps, Together, Write, alone, do
from estserver.store import Store, Transaction

T = TypeVar("T")

_LONGEST_SECONDS = 28
"""How long anybody waits, below the 30 s of invariant I8; the walk itself goes on to its end."""
_LINGER_SECONDS = 0.003
"""Less than an fsync on most disks, which all that come meanwhile will share."""


_Askers = list[tuple["_Walk", Any]]
_Unit = tuple[Together[Any, Any], _Askers]
_Run = Callable[[Transaction], Sequence[Any]]
_Tell = Callable[[], Sequence[Any]]


@dataclass(slots=True)
class _Walk:
    """A walk, who waits for it, and what its last step came to."""

    steps: Steps[Any]
    loop: asyncio.AbstractEventLoop
    waiting: asyncio.Future[Any]
    outcome: Any = None
    error: BaseException | None = None
    away: bool = False

    def advance(self) -> Read | Write | Apart | None:
        """Go on to the next step; None: this was the end."""
        error, self.error = self.error, None
        try:
            return self.steps.send(self.outcome) if error is None else self.steps.throw(error)
        except StopIteration as end:
            self.outcome = end.value
        except BaseException as failure:  # noqa: BLE001 - for whoever waits
            self.error = failure
        return None

    def settle(self) -> None:
        """Tell whoever waits; on the event loop only."""
        if self.waiting.done():  # the client is gone, or was told to come again
            return
        if self.error is None:
            self.waiting.set_result(self.outcome)
        else:
            self.waiting.set_exception(self.error)


class _Arrivals:
    """Walks that wait to be taken along. Any thread adds, one takes.

    Who takes is woken for the first and then once for all: to be woken for each took a tenth of the
    server's time.
    """

    def __init__(self) -> None:
        self._walks: collections.deque[_Walk | None] = collections.deque()
        self._enough = 1
        self._bell = threading.Event()

    def add(self, walk: _Walk | None) -> None:
        self._walks.append(walk)
        if len(self._walks) >= self._enough:
            self._bell.set()

    def take(self, company: int) -> list[_Walk | None]:
        """Wait for somebody, and a moment for as many as `company`; return all who are there."""
        self._wait(1, None)
        self._wait(company, _LINGER_SECONDS)
        return [self._walks.popleft() for _ in range(len(self._walks))]

    def _wait(self, enough: int, seconds: float | None) -> None:
        # Whoever adds looks at the number afterwards: one of the two sees that there are enough.
        self._enough = enough
        rung = True
        while len(self._walks) < enough and rung:
            self._bell.clear()
            rung = len(self._walks) >= enough or self._bell.wait(seconds)


class Convoy:
    """Walks for those who wait on event loops. `close` takes all to their ends first."""

    def __init__(self, store: Store, executor: Executor) -> None:
        """`executor` is where steps that take long are done apart."""
        self._store = store
        self._reader = store.reader()
        self._executor = executor
        self._arrivals = _Arrivals()
        self._away = 0
        self._thread = threading.Thread(target=self._drive, name="convoy", daemon=True)
        self._thread.start()

    async def walk(self, steps: Steps[T]) -> T:
        """Take a walk along and return what it returns; it goes on when nobody waits any more.

        Raises what the walk raises, and Unavailable: it has not come to its end in time.
        """
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[T] = loop.create_future()
        self._arrivals.add(_Walk(steps, loop, waiting))
        patience = loop.call_later(_LONGEST_SECONDS, _give_up, waiting)
        try:
            return await waiting
        finally:
            patience.cancel()

    def close(self) -> None:
        """Return when every walk has come to its end; no other may begin."""
        self._arrivals.add(None)
        self._thread.join()

    def _drive(self) -> None:
        _yield_to_loops()
        closing = False
        company = 1
        while self._away or not closing:
            arrived = self._arrived(company)
            closing = closing or None in arrived
            walks = [walk for walk in arrived if walk is not None]
            # Slowly forgotten: one who came alone may only have been the first of many.
            company = max(len(walks), company * 3 // 4)
            while walks:
                walks = self._turned(walks)
        self._reader.close()

    def _arrived(self, company: int) -> list[_Walk | None]:
        """Wait for as many as the last `company` had; who came alone the last times, for nobody."""
        arrived = self._arrivals.take(company)
        for walk in arrived:
            if walk is not None and walk.away:
                walk.away = False
                self._away -= 1
        return arrived

    def _turned(self, walks: Sequence[_Walk]) -> list[_Walk]:
        """Take walks a turn further; a mistake of ours ends them, and not the thread of all."""
        try:
            return self._turn(walks)
        except Exception as error:  # noqa: BLE001 - told to everybody who waits
            for walk in walks:
                walk.error = Fault("a step went wrong that many took together")
                walk.error.__cause__ = error
            _tell(walks)
            return []

    def _turn(self, walks: Sequence[_Walk]) -> list[_Walk]:
        """Take each walk past its next write, reading what it must before; return who goes on."""
        writes: dict[Together[Any, Any], _Askers] = {}
        while walks:
            reads: dict[Together[Any, Any], _Askers] = {}
            self._advance(walks, reads, writes)
            self._do(list(reads.items()), self._read_all)
            walks = [walk for askers in reads.values() for walk, _ in askers]
        self._do(_divided(writes), self._write_all)
        return [walk for askers in writes.values() for walk, _ in askers]

    def _advance(
        self,
        walks: Sequence[_Walk],
        reads: dict[Together[Any, Any], _Askers],
        writes: dict[Together[Any, Any], _Askers],
    ) -> None:
        """Take each walk to its next step, and note what it asks for."""
        ended: list[_Walk] = []
        for walk in walks:
            match walk.advance():
                case Read(together, mine):
                    reads.setdefault(together, []).append((walk, mine))
                case Write(together, mine):
                    writes.setdefault(together, []).append((walk, mine))
                case Apart(run):
                    self._go_apart(walk, run)
                case None:
                    ended.append(walk)
        _tell(ended)

    def _go_apart(self, walk: _Walk, run: Callable[[], Any]) -> None:
        taken = threading.Lock()

        def work() -> None:
            if not taken.acquire(blocking=False):
                return
            try:
                walk.outcome = run()
            except BaseException as error:  # noqa: BLE001 - the walk's to judge
                walk.error = error
            self._arrivals.add(walk)

        walk.away = True
        self._away += 1
        try:
            self._executor.submit(work)
        except RuntimeError as error:
            # The system has no thread to give. The work is queued all the same: another thread may
            # have begun it.
            if taken.acquire(blocking=False):
                walk.error = error
                self._arrivals.add(walk)

    def _do(
        self, units: Sequence[_Unit], run_all: Callable[[Sequence[_Run]], Sequence[_Tell]]
    ) -> None:
        """Do steps, equal ones together; what cannot be done together is tried one by one."""
        if not units:
            return
        runs = [partial(do, together=how, mine=[mine for _, mine in who]) for how, who in units]
        again: list[_Unit] = []
        for (together, askers), tell in zip(units, run_all(runs), strict=True):
            try:
                outcomes = tell()
            except BaseException as error:  # noqa: BLE001 - the walks' to judge
                if len(askers) > 1 and not isinstance(error, Unavailable):
                    again += [(together, [asker]) for asker in askers]
                    continue
                outcomes = [error] * len(askers)
            for (walk, _), outcome in zip(askers, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    walk.error = outcome
                else:
                    walk.outcome = outcome
        self._do(again, run_all)

    def _read_all(self, runs: Sequence[_Run]) -> Sequence[_Tell]:
        return [partial(self._reader.read, run) for run in runs]

    def _write_all(self, runs: Sequence[_Run]) -> Sequence[_Tell]:
        try:
            return self._store.write_all(runs)
        except Unavailable as error:
            return [partial(_refuse, error)] * len(runs)


def _yield_to_loops() -> None:
    """Do not interrupt whoever runs when this thread has something to do, on Linux.

    What arrives meanwhile makes the group larger: measured on one core, renewals over new
    connections took a sixth less of it, enrollments a twentieth.
    """
    if hasattr(os, "SCHED_BATCH"):
        # Where this is forbidden all goes on as before.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))


def _divided(writes: Mapping[Together[Any, Any], _Askers]) -> list[_Unit]:
    """Make units of work: one for all who do the same, one each for those who do theirs alone."""
    shared = [(together, askers) for together, askers in writes.items() if together is not alone]
    return shared + [(alone, [asker]) for asker in writes.get(alone, ())]


def _refuse(error: Unavailable) -> NoReturn:
    raise error


def _give_up(waiting: asyncio.Future[Any]) -> None:
    if not waiting.done():
        sentence = "this takes too long: ask again"
        waiting.set_exception(Unavailable(sentence, retry_after=timedelta(seconds=5)))


def _tell(ended: Sequence[_Walk]) -> None:
    """Tell those who wait for these walks, with one message to each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Walk]] = {}
    for walk in ended:
        by_loop.setdefault(walk.loop, []).append(walk)
    for loop, arrived in by_loop.items():
        # Without its loop nobody waits for an answer any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, arrived)


def _settle(arrived: Sequence[_Walk]) -> None:
    for walk in arrived:
        walk.settle()
