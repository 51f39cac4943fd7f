"""Composition root: a core becomes doors, listeners and background tasks; what starts anything."""

import asyncio
import gc
import os
import pkgutil
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog
from aiohttp import web
from cryptography import x509

from estserver import allocator, failpoints, logs, systemd
from estserver.anchor import AnchorFile
from estserver.ca.keys import read_secret, readable_by_others
from estserver.config import Settings
from estserver.convoy import Convoy
from estserver.core import Core, SystemClock, open_core
from estserver.duties import Duties, Duty, node_name, process_name
from estserver.errors import ConfigurationError, Error, Fault
from estserver.listeners import (
    Sockets,
    TLSFiles,
    bind,
    close,
    listen,
    load_certificate,
    tls_context,
    try_certificate,
)
from estserver.model import Origin
from estserver.notices import Reminders
from estserver.own_certificates import OwnCertificates
from estserver.protocols import EnrollmentProtocol, Services
from estserver.retention import Purge
from estserver.settings import Listener
from estserver.status import StatusWatch
from estserver.store import health, registrations
from estserver.verification import measure, verify_due

log = structlog.get_logger("estserver.server")

PROTOCOLS: Mapping[str, str] = {
    "web": "estserver.web.wizard:WebProtocol",
    "est": "estserver.protocols.est:ESTProtocol",
    "acme": "estserver.protocols.acme:ACMEProtocol",
    "renewal": "estserver.web.renewal:RenewalProtocol",
    "status": "estserver.protocols.status:StatusProtocol",
    "management": "estserver.management:Management",
}
"""What a listener may serve: each an EnrollmentProtocol, imported only where it is served."""
MEMORIES = ("estserver.protocols.acme.erasure:ACMEMemory",)
"""What protocols remember of people in tables of their own: each a `retention.Memory`."""
_ASKS_FOR_CERTIFICATES = frozenset({"est", "renewal"})
_PLAIN = frozenset({"status", "management"})
_RELOADED = {"profiles", "tls_issuer", "issuers"}
"""What SIGHUP takes from the file, or refuses as a whole."""
_THREADS = 32
_MAIL_SECONDS = 5
_REMIND_SECONDS = 600
_PURGE_SECONDS = 3600
_PUBLISH_SECONDS = 2
_WATCH_SECONDS = 10
_TIDY_SECONDS = 60
_ALIVE_SECONDS = 20
_PROOF_SECONDS = 300
_ORIGIN = Origin("background", "server")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among those that serve one instance.

    `holder` is its name in leases; `sockets` were bound for it, None: it binds its own; `tell`
    takes what systemd wants to know of a whole service.
    """

    holder: str
    sockets: Sockets | None = None
    tell: Callable[[str], None] = systemd.tell


class Server:
    """A running estserver. `start`, then `stop`; `reload` takes profiles and certificates anew."""

    def __init__(self, core: Core, place: Place | None = None) -> None:
        """`place`: where this process stands among others; None where it is the only one."""
        self._core = core
        self._place = place or Place(process_name(os.getpid()))
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="core")
        self._passphrase = read_secret(core.settings.path(core.settings.secrets.passphrase))
        self._own = OwnCertificates(
            core.settings, core.clock, core.ra, core.chains, self._passphrase
        )
        self.services = Services(
            settings=core.settings,
            clock=core.clock,
            store=core.store,
            keyring=core.keyring,
            profiles=core.profiles,
            chains=core.chains,
            invitations=core.invitations,
            authenticator=core.authenticator,
            ra=core.ra,
            status=core.status,
            journal=core.journal,
            executor=self._executor,
            convoy=Convoy(core.store, self._executor),
            duties=Duties(core.store, core.clock, self._place.holder, self._executor),
        )
        self._office = None if core.settings.mail.host is None else core.post_office()
        self._watch = StatusWatch(core.status, core.clock)
        # Nothing to do but to be there: `doctor` tells which nodes live.
        node = node_name(core.settings.directory)
        self._presence = Duty(node, _ALIVE_SECONDS, lambda: asyncio.sleep(0))
        self._contexts: list[tuple[ssl.SSLContext, Listener]] = []
        self._tls: x509.Certificate | None = None
        self._runners: list[web.AppRunner] = []
        self._sockets: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.ports: dict[str, int] = {}

    async def start(self) -> None:
        """Finish what a crash left, renew our own certificates, publish CRLs, then listen."""
        settings = self._core.settings
        sockets = self._place.sockets
        if sockets is None:
            sockets = bind(settings.listeners, settings.directory)
        try:
            await self.services.run(self._prepare)
            doors: dict[str, EnrollmentProtocol] = {}
            for name, listener in settings.listeners.each():
                for door in listener.serves:
                    if door not in doors:
                        doors[door] = _kind(name, door)(self.services)
                if listener.serves:
                    served = [doors[door] for door in listener.serves]
                    await self._listen(name, listener, served, sockets[name])
        except BaseException:
            close(sockets)
            raise
        for name, opened in doors.items():
            for work in opened.background():
                self._begin(name, work)
        for duty in self._duties():
            self._begin(duty.name, self.services.duties.perform(duty))
        log.info(
            "server.started",
            directory=str(settings.directory),
            ports=self.ports,
            sockets={
                name: str(settings.path(listener.socket))
                for name, listener in settings.listeners.each()
                if listener.serves and listener.socket is not None
            },
        )

    def _prepare(self) -> None:
        for sentence in readable_by_others(self._core.settings.secret_files()):
            log.warning("secret.exposed", error=sentence)
        if risk := self._core.store.read(health.asynchronous_standby):
            log.warning("database.asynchronous", error=risk)
        try:
            self._core.ra.finish(_ORIGIN)
        except Fault:
            # What cannot be finished is tried again every minute; it keeps nobody else waiting.
            log.exception("background.failed", operation="intents")
        self._use_responders()
        self._tls = self._own.tls().certificate
        self._watch.publish()
        self._drop_anchor()
        measure(self._core)
        # Its first turn is long after the first look at `doctor`.
        self.services.duties.take(self._presence)

    def _duties(self) -> list[Duty]:
        core, run = self._core, self.services.run
        young = timedelta(seconds=_TIDY_SECONDS)
        duties = [
            Duty("crls", _PUBLISH_SECONDS, lambda: run(self._watch.publish)),
            Duty("status", _WATCH_SECONDS, lambda: run(self._watch.look), alone=False),
            Duty("intents", _TIDY_SECONDS, lambda: run(core.ra.finish, _ORIGIN, older_than=young)),
            Duty("superseded", _TIDY_SECONDS, lambda: run(core.ra.revoke_superseded, _ORIGIN)),
            Duty("attempts", _TIDY_SECONDS, lambda: run(self._forget_attempts)),
            Duty("anchor", _PROOF_SECONDS, lambda: run(self._drop_anchor)),
            Duty("verification", _PROOF_SECONDS, lambda: run(verify_due, core, _ORIGIN)),
            # Every worker reads the files of its machine, and has metrics and memory of its own.
            Duty("verified", _PROOF_SECONDS, lambda: run(measure, core), alone=False),
            Duty("responders", _TIDY_SECONDS, lambda: run(self._use_responders), alone=False),
            Duty("tls", _TIDY_SECONDS, self._renew_tls, alone=False),
            Duty("memory", _TIDY_SECONDS, lambda: run(allocator.release_pages), alone=False),
            self._presence,
        ]
        if core.settings.retention.automatic:
            purging = partial(open_purge(core).run, by="server", origin=_ORIGIN)
            duties.append(Duty("purge", _PURGE_SECONDS, lambda: run(purging)))
        if self._office is not None:
            reminders = Reminders(core.store, core.clock, core.profiles)
            duties.append(Duty("mail", _MAIL_SECONDS, self._office.deliver_due))
            duties.append(Duty("reminders", _REMIND_SECONDS, lambda: run(reminders.post_due)))
        return duties

    def _use_responders(self) -> None:
        for name, issuer in self._core.issuers.items():
            if issuer.certificate.not_valid_after_utc <= self._core.clock.now():
                # It can certify nobody, and nobody asks about what has expired with it.
                continue
            own = self._own.responder(name)
            self._core.status.use_responder(name, own.certificate, own.key)

    async def _renew_tls(self) -> None:
        """Put our own TLS certificate into the listeners once there is a newer one."""
        own = await self.services.run(self._own.tls)
        if own.certificate == self._tls:
            return
        for context, listener in self._contexts:
            if listener.certificate is None:
                load_certificate(context, TLSFiles(own.path), self._passphrase)
        self._tls = own.certificate

    def _drop_anchor(self) -> None:
        """Note once an hour, outside the database, how the audit trail stands."""
        file = AnchorFile(self._core.settings.path(self._core.settings.audit.anchor))
        file.drop_due(self._core.store, self._core.clock.now())

    def _forget_attempts(self) -> None:
        horizon = self._core.clock.now() - timedelta(days=1)
        self._core.store.write(lambda tx: registrations.forget_attempts(tx, older_than=horizon))

    def _begin(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_tell_of_death)
        self._tasks.append(task)

    async def _listen(
        self,
        name: str,
        listener: Listener,
        doors: Sequence[EnrollmentProtocol],
        sockets: Sequence[socket.socket],
    ) -> None:
        context = None
        if listener.socket is None and not set(listener.serves) <= _PLAIN:
            context = await self.services.run(self._context, listener)
            self._contexts.append((context, listener))
        runner, servers = await listen(
            name, listener, doors, context, self._core.settings.limits, sockets
        )
        self._runners.append(runner)
        self._sockets += servers
        if listener.socket is None:
            self.ports[name] = sockets[0].getsockname()[1]

    def _context(self, listener: Listener) -> ssl.SSLContext:
        asks = bool(set(listener.serves) & _ASKS_FOR_CERTIFICATES)
        return tls_context(
            asks=asks,
            trust=[certificate for chain in self._core.chains.values() for certificate in chain],
            files=self._files(listener),
            passphrase=self._passphrase,
        )

    def _files(self, listener: Listener) -> TLSFiles:
        if listener.certificate is None:
            return TLSFiles(self._own.tls().path)
        settings = self._core.settings
        key = None if listener.key is None else settings.path(listener.key)
        return TLSFiles(settings.path(listener.certificate), key)

    async def reload(self, reread: Callable[[], Settings]) -> None:
        """Load profiles and TLS certificates again. What cannot be used leaves the old in place."""
        kept = []
        try:
            settings = await self.services.run(reread)
            self._core.take_profiles(settings)
        except ConfigurationError as error:
            log.error("profiles.reload-failed", error=error.detail)  # noqa: TRY400 - says it all
            kept.append("profiles")
        else:
            if waiting := _waiting_keys(self._core.settings, settings):
                keys = ", ".join(waiting)
                log.warning("restart.needed", error=f"only a restart takes the new {keys}")
        for context, listener in self._contexts:
            try:
                files = await self.services.run(self._usable_files, listener)
                load_certificate(context, files, self._passphrase)
            except Error as error:
                log.error("certificate.reload-failed", error=error.detail)  # noqa: TRY400 - says it all
                kept.append(f"the TLS certificate for {listener.url}")
        if kept:
            log.error("server.reload-failed", error=f"the old ones stay: {', '.join(kept)}")
        else:
            log.info("server.reloaded", directory=str(self._core.settings.directory))

    def _usable_files(self, listener: Listener) -> TLSFiles:
        files = self._files(listener)
        try_certificate(files, self._passphrase)
        return files

    async def stop(self) -> None:
        """Stop listening, let requests under way finish, stop background work."""
        for listening in self._sockets:
            listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in self._runners:
            await runner.cleanup()
        await self.services.run(self.services.convoy.close)
        await self.services.run(self.services.duties.leave)
        self._executor.shutdown(wait=True)
        log.info("server.stopped")


def _waiting_keys(running: Settings, written: Settings) -> list[str]:
    """Name the keys whose values in the file only a restart takes."""
    old = dict(_leaves(running.model_dump(exclude=_RELOADED)))
    new = dict(_leaves(written.model_dump(exclude=_RELOADED)))
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _leaves(table: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def import_doors(settings: Settings) -> None:
    """Import what the listeners serve, and what sends mail where any is sent.

    Raises ConfigurationError: a listener serves what there is not.
    """
    for listener, one in settings.listeners.each():
        for door in one.serves:
            _kind(listener, door)
    if settings.mail.host is not None:
        pkgutil.resolve_name("estserver.mail.post")


def _kind(listener: str, door: str) -> Callable[[Services], EnrollmentProtocol]:
    if door not in PROTOCOLS:
        raise ConfigurationError(f"listeners.{listener}.serves: unknown: {door}")
    kind: Callable[[Services], EnrollmentProtocol] = pkgutil.resolve_name(PROTOCOLS[door])
    return kind


def open_purge(core: Core) -> Purge:
    """Return what erases whatever its time has come for, with every protocol's own."""
    memories = [pkgutil.resolve_name(name)() for name in MEMORIES]
    return Purge(core.store, core.clock, core.settings.retention, memories)


def _tell_of_death(task: asyncio.Task[None]) -> None:
    """Log the error that ended a task, which asyncio would keep to itself."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background.died", operation=task.get_name(), exc_info=error)


async def serve(
    settings: Settings, reread: Callable[[], Settings], place: Place | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP takes profiles and TLS certificates anew."""
    logs.configure(settings.log)
    allocator.keep_little()
    place = place or Place(process_name(os.getpid()))
    stopped = asyncio.Event()
    reloading: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    # A reload asked for while we start waits until there is something to reload.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    core = open_core(settings, SystemClock(), with_keys=True)
    try:
        server = Server(core, place)

        def reload() -> None:
            task = loop.create_task(server.reload(reread), name="reload")
            task.add_done_callback(_tell_of_death)
            reloading.add(task)
            task.add_done_callback(reloading.discard)

        try:
            await server.start()
            loop.add_signal_handler(signal.SIGHUP, reload)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            # What is there now stays: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            gc.enable()
            place.tell("READY=1")
            await stopped.wait()
            place.tell("STOPPING=1")
        finally:
            await server.stop()
    finally:
        core.close()


def enter_test_mode(environment: Mapping[str, str]) -> None:
    """Honour ESTSERVER_FAILPOINT and ESTSERVER_FAULTS. Raises ConfigurationError."""
    if text := environment.get("ESTSERVER_FAILPOINT"):
        failpoints.arm(text)
    if text := environment.get("ESTSERVER_FAULTS"):
        pkgutil.resolve_name("estserver.protocols.acme.faults:arm")(text)
