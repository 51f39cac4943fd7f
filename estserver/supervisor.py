"""Several workers on one machine: a supervisor that reads no secret starts them and keeps them up.

The workers share their ports (SO_REUSEPORT: the kernel spreads connections over them), the
database, and the counters, which any of them adds up for /metrics. They are forked from the
supervisor, which has imported everything and opened nothing: no key, no database, no thread.

A worker speaks through a pipe, and says by SIGUSR1 that there is something to read. Another pipe,
which only the supervisor can write to, ends with it; then the workers end too.
"""

import asyncio
import contextlib
import fcntl
import gc
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import structlog
from prometheus_client import Counter, Gauge, values

from estserver import logs, systemd
from estserver.config import Settings
from estserver.duties import process_name
from estserver.errors import ConfigurationError, Error, Fault
from estserver.wording import trouble

if TYPE_CHECKING:
    from estserver.listeners import Sockets

log = structlog.get_logger("estserver.supervisor")

FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0
_STEADY_SECONDS = 60.0
"""Who lived that long died of something else than its start: the delays begin anew."""
_STOP_MARGIN = 8
"""Seconds beyond `limits.request_seconds` for a worker to end; systemd waits a little longer."""
_STOPPING = {signal.SIGTERM, signal.SIGINT}
_SIGNALS = {*_STOPPING, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1}
_READY = b"+"


def supervise(
    settings: Settings, reread: Callable[[], Settings], workers: int, *, test_mode: bool
) -> None:
    """Serve with `workers` processes until SIGTERM or SIGINT; SIGHUP is passed on to all.

    Raises ConfigurationError: a port is in use, or the first worker cannot start.
    Raises Fault: a worker could not be ended in order.
    """
    logs.configure(settings.log)
    for name, listener in settings.listeners.each():
        if listener.serves and listener.socket is None and listener.port == 0:
            raise ConfigurationError(f"listeners.{name}.port: workers need a number they can share")
    with _shared_counters(settings.directory) as identity:
        supervisor = _Supervisor(settings, reread, workers, identity)
        supervisor.run(test_mode=test_mode)


@contextlib.contextmanager
def _shared_counters(instance: Path) -> Iterator[list[str]]:
    """Let all counters made from now on lie in files that every worker can read.

    Yields a list whose only item names the process that counts.
    """
    if "estserver.http" in sys.modules:
        raise Fault("there are counters already that cannot be shared")
    identity = ["supervisor"]
    with _folder_of_counters(instance) as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        # By slot, not by process: a worker goes on where the one before it has died.
        values.ValueClass = values.MultiProcessValue(lambda: identity[0])  # type: ignore[no-untyped-call]  # prometheus_client
        yield identity


@contextlib.contextmanager
def _folder_of_counters(instance: Path) -> Iterator[str]:
    """Make a folder that ends with us, and end those that killed supervisors of `instance` left.

    The lock on a folder lives as long as its supervisor or one of the workers, which inherit it.
    """
    name = f"estserver-counters-{hashlib.sha256(bytes(instance)).hexdigest()[:16]}-"
    with contextlib.ExitStack() as ours:
        # Nobody may find our folder before it is locked.
        with _locked(instance, fcntl.LOCK_EX):
            for left in Path(tempfile.gettempdir()).glob(f"{name}*"):
                # In use, or another user's.
                with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(left)
            folder = ours.enter_context(tempfile.TemporaryDirectory(prefix=name))
            ours.enter_context(_locked(Path(folder), fcntl.LOCK_EX))
        yield folder


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold the lock on a folder. Raises OSError: it cannot be had."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Worker:
    """A slot: the process in it, the pipe it speaks through, and when the next may start."""

    number: int
    due: float
    pid: int = 0
    voice: int = -1
    said: str = ""
    ready: bool = False
    started: float = 0.0
    failures: int = 0


class _Supervisor:
    def __init__(
        self, settings: Settings, reread: Callable[[], Settings], workers: int, identity: list[str]
    ) -> None:
        # Not before the counters are shared.
        from estserver import http, listeners, server  # noqa: PLC0415 - see above

        self._listeners, self._server = listeners, server
        self._settings = settings
        self._reread = reread
        self._identity = identity
        # The first one makes what all need; the others follow once it listens.
        self._workers = [_Worker(n, due=0.0 if n == 0 else float("inf")) for n in range(workers)]
        self._held: Sockets = {}
        self._lifeline = os.pipe()
        self._pid = os.getpid()
        self._begun = False
        self._reloaded = False
        self._restarts = Counter(
            "estserver_worker_restarts",
            "Workers started again after one died",
            registry=http.registry,
        )
        self._serving = Gauge(
            "estserver_workers",
            "Workers that listen",
            registry=http.registry,
            multiprocess_mode="sum",
        )

    def run(self, *, test_mode: bool) -> None:
        """Start, keep up, stop."""
        if test_mode:
            self._server.enter_test_mode(os.environ)
        self._server.import_doors(self._settings)
        gc.collect()
        gc.freeze()
        gc.enable()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._take_addresses()
            self._keep_up()
        finally:
            try:
                self._stop()
            finally:
                # What came meanwhile, as from a worker that was just ready, would kill us now.
                while signal.sigtimedwait(_SIGNALS, 0) is not None:
                    pass
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _take_addresses(self) -> None:
        """Find out whether the ports are free, and hold on to what cannot be bound twice."""
        held = self._listeners.bind(self._settings.listeners, self._settings.directory)
        for name, listener in self._settings.listeners.each():
            if listener.serves and listener.socket is None:
                self._listeners.close({name: held.pop(name)})
        self._held = held

    def _keep_up(self) -> None:
        while True:
            for worker in self._workers:
                if worker.pid == 0 and worker.due <= time.monotonic():
                    self._start(worker)
            asleep = [worker.due for worker in self._workers if worker.pid == 0]
            pause = min(asleep, default=float("inf")) - time.monotonic()
            heard = signal.sigtimedwait(_SIGNALS, max(0.0, min(pause, _STEADY_SECONDS)))
            if heard is not None and heard.si_signo in _STOPPING:
                return
            if heard is not None and heard.si_signo == signal.SIGHUP:
                self._reloaded = True
                self._signal_all(signal.SIGHUP)
            for worker in self._workers:
                self._hear(worker)
            for worker, how in self._reap():
                if not self._begun:
                    raise ConfigurationError(how)
                log.error("worker.died", worker=worker.number, error=how)
                self._restarts.inc()
                self._put_off(worker)

    # -- one worker ------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        worker.started = time.monotonic()
        try:
            sockets = self._listeners.bind(
                self._settings.listeners, self._settings.directory, beside=self._held
            )
        except ConfigurationError as error:
            self._could_not_start(worker, error.detail)
            return
        try:
            self._fork(worker, sockets)
        except OSError as error:
            # No memory, no process, no descriptor left: the others go on.
            self._could_not_start(worker, trouble(error))
        finally:
            self._listeners.close(sockets)

    def _fork(self, worker: _Worker, sockets: "Sockets") -> None:
        """Start a process for `worker`. Raises OSError: the system has none to give."""
        hear, say = os.pipe()
        try:
            worker.pid = os.fork()
        except OSError:
            os.close(hear)
            os.close(say)
            raise
        if worker.pid == 0:
            self._work(worker.number, sockets, say, hear)
        os.close(say)
        os.set_blocking(hear, False)
        worker.voice, worker.said = hear, ""
        if self._reloaded:
            # It minds it once it listens.
            os.kill(worker.pid, signal.SIGHUP)

    def _could_not_start(self, worker: _Worker, why: str) -> None:
        if not self._begun:
            raise ConfigurationError(why)
        self._put_off(worker)
        log.error("worker.failed", worker=worker.number, error=why)

    def _work(self, number: int, sockets: "Sockets", say: int, hear: int) -> NoReturn:
        """Be a worker: nobody returns from here."""
        status = 1
        try:
            for inherited in (hear, self._lifeline[1], *(one.voice for one in self._workers)):
                if inherited >= 0:
                    os.close(inherited)
            self._listeners.close(self._held)
            self._identity[0] = str(number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGUSR1})
            asyncio.run(self._serve(number, sockets, partial(self._tell, say)))
            status = 0
        except Error as error:
            os.write(say, error.detail.encode())
        except BaseException:
            log.exception("worker.failed", worker=number)
            os.write(say, b"internal error")
        finally:
            # The frames below and what runs at exit are the supervisor's.
            os._exit(status)

    async def _serve(self, number: int, sockets: "Sockets", tell: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.remove_reader(self._lifeline[0])
            log.error("supervisor.gone")
            os.kill(os.getpid(), signal.SIGTERM)

        loop.add_reader(self._lifeline[0], end)
        place = self._server.Place(process_name(self._pid, number), sockets, tell)
        await self._server.serve(self._settings, self._reread, place)

    def _tell(self, say: int, state: str) -> None:
        if state == "READY=1":
            os.write(say, _READY)
            os.kill(self._pid, signal.SIGUSR1)

    def _hear(self, worker: _Worker) -> None:
        """Take what a worker has to say: that it listens, or the sentence it ends with."""
        if worker.voice < 0:
            return
        try:
            said = os.read(worker.voice, 4096)
        except BlockingIOError:
            return
        worker.said += said.removeprefix(_READY).decode(errors="replace")
        if not said.startswith(_READY):
            return
        worker.ready = True
        self._serving.set(sum(one.ready for one in self._workers))
        log.info("worker.ready", worker=worker.number, pid=worker.pid)
        if not self._begun:
            self._begun = True
            systemd.tell("READY=1")
            for other in self._workers:
                other.due = 0.0

    def _reap(self) -> Iterator[tuple[_Worker, str]]:
        """Yield the workers that have died, and how; "" for an end in order."""
        while any(worker.pid for worker in self._workers):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = next((worker for worker in self._workers if worker.pid == pid), None)
            if worker is None:
                # In a container we are the parent of whatever lost its own.
                continue
            self._hear(worker)
            os.close(worker.voice)
            worker.pid, worker.voice, worker.ready = 0, -1, False
            self._serving.set(sum(one.ready for one in self._workers))
            code = os.waitstatus_to_exitcode(status)
            died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"status {code}"
            yield worker, "" if code == 0 else worker.said or died

    def _put_off(self, worker: _Worker) -> None:
        """Let the worker start at once, and later and later if it keeps dying."""
        now = time.monotonic()
        if now - worker.started > _STEADY_SECONDS:
            worker.failures = 0
        worker.due = now + min(LONGEST_DELAY, FIRST_DELAY * 2.0**worker.failures)
        worker.failures = min(worker.failures + 1, 20)

    # -- the end ---------------------------------------------------------------------------------

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, number)

    def _stop(self) -> None:
        """End all workers. Raises Fault: one did not end, or not in order."""
        systemd.tell("STOPPING=1")
        self._listeners.close(self._held)
        self._signal_all(signal.SIGTERM)
        troubles = []
        seconds = self._settings.limits.request_seconds + _STOP_MARGIN
        deadline = time.monotonic() + seconds
        while any(worker.pid for worker in self._workers):
            left = deadline - time.monotonic()
            if left <= 0:
                troubles.append(f"workers did not end within {seconds} seconds and were killed")
                self._signal_all(signal.SIGKILL)
                deadline = float("inf")
            signal.sigtimedwait({signal.SIGCHLD}, min(max(left, 0.1), _STEADY_SECONDS))
            for worker, how in self._reap():
                if how and not troubles:
                    troubles.append(f"worker {worker.number}: {how}")
        log.info("supervisor.stopped")
        if troubles:
            raise Fault("; ".join(troubles))
