"""Composition root: a core becomes doors, listeners and background tasks; what starts anything."""

import asyncio
import os
import signal
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import structlog
from aiohttp import web
from cryptography import x509

from estserver import failpoints, logs
from estserver.ca.keys import read_secret, readable_by_others
from estserver.config import Settings
from estserver.core import Core, SystemClock, open_core
from estserver.errors import ConfigurationError, Error, Fault, Unavailable
from estserver.listeners import TLSFiles, listen, load_certificate, tls_context, try_certificate
from estserver.management import Management
from estserver.model import Origin
from estserver.own_certificates import OwnCertificates
from estserver.protocols import EnrollmentProtocol, Services
from estserver.protocols.acme import ACMEProtocol, faults
from estserver.protocols.est import ESTProtocol
from estserver.protocols.status import StatusProtocol
from estserver.settings import Listener
from estserver.store import registrations
from estserver.web.renewal import RenewalProtocol
from estserver.web.wizard import WebProtocol

log = structlog.get_logger("estserver.server")

PROTOCOLS: Sequence[Callable[[Services], EnrollmentProtocol]] = (
    WebProtocol,
    ESTProtocol,
    ACMEProtocol,
    RenewalProtocol,
    StatusProtocol,
    Management,
)
_ASKS_FOR_CERTIFICATES = frozenset({"est", "renewal"})
_PLAIN = frozenset({"status", "management"})
_THREADS = 32
_MAIL_SECONDS = 5
_PUBLISH_SECONDS = 2
_TIDY_SECONDS = 60
_ORIGIN = Origin("background", "server")


class Server:
    """A running estserver. `start`, then `stop`; `reload` takes profiles and certificates anew."""

    def __init__(self, core: Core) -> None:
        self._core = core
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
            executor=self._executor,
        )
        self._office = core.post_office()
        self._contexts: list[tuple[ssl.SSLContext, Listener]] = []
        self._tls: x509.Certificate | None = None
        self._runners: list[web.AppRunner] = []
        self._sockets: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.ports: dict[str, int] = {}

    async def start(self) -> None:
        """Finish what a crash left, renew our own certificates, publish CRLs, then listen."""
        await self.services.run(self._prepare)
        doors = {door.name: door for door in (make(self.services) for make in PROTOCOLS)}
        used: dict[str, None] = {}
        for name in ("web", "devices", "status", "management"):
            listener: Listener = getattr(self._core.settings.listeners, name)
            if unknown := set(listener.serves) - doors.keys():
                raise ConfigurationError(
                    f"listeners.{name}.serves: unknown: {', '.join(sorted(unknown))}"
                )
            served = [doors[door] for door in listener.serves]
            if served:
                await self._listen(name, listener, served)
            used |= dict.fromkeys(listener.serves)
        for name in used:
            for work in doors[name].background():
                self._begin(name, work)
        for seconds, name, duty in self._duties():
            self._begin(name, _every(seconds, name, duty))
        log.info("server.started", directory=str(self._core.settings.directory), ports=self.ports)

    def _prepare(self) -> None:
        for sentence in readable_by_others(self._core.settings.secret_files()):
            log.warning("secret.exposed", error=sentence)
        try:
            self._core.ra.finish(_ORIGIN)
        except Fault:
            # What cannot be finished is tried again every minute; it keeps nobody else waiting.
            log.exception("background.failed", operation="intents")
        self._use_responders()
        self._tls = self._own.tls().certificate
        self._core.status.publish_due()

    def _duties(self) -> list[tuple[float, str, Callable[[], Awaitable[object]]]]:
        """List what is done again and again: each by itself, so that none waits for another."""
        core, run = self._core, self.services.run
        young = timedelta(seconds=_TIDY_SECONDS)
        duties: list[tuple[float, str, Callable[[], Awaitable[object]]]] = [
            (_PUBLISH_SECONDS, "crls", lambda: run(core.status.publish_due)),
            (_TIDY_SECONDS, "intents", lambda: run(core.ra.finish, _ORIGIN, older_than=young)),
            (_TIDY_SECONDS, "superseded", lambda: run(core.ra.revoke_superseded, _ORIGIN)),
            (_TIDY_SECONDS, "responders", lambda: run(self._use_responders)),
            (_TIDY_SECONDS, "tls", self._renew_tls),
            (_TIDY_SECONDS, "attempts", lambda: run(self._forget_attempts)),
        ]
        if self._office.sends:
            duties.append((_MAIL_SECONDS, "mail", self._office.deliver_due))
        return duties

    def _use_responders(self) -> None:
        for name in self._core.issuers:
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

    def _forget_attempts(self) -> None:
        horizon = self._core.clock.now() - timedelta(days=1)
        self._core.store.write(lambda tx: registrations.forget_attempts(tx, older_than=horizon))

    def _begin(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_tell_of_death)
        self._tasks.append(task)

    async def _listen(
        self, name: str, listener: Listener, doors: Sequence[EnrollmentProtocol]
    ) -> None:
        context = None
        if listener.socket is None and not set(listener.serves) <= _PLAIN:
            context = await self.services.run(self._context, listener)
            self._contexts.append((context, listener))
        limits = self._core.settings.limits
        try:
            runner, listening = await listen(
                listener, doors, context, limits, self._core.settings.directory
            )
        except OSError as error:
            where = listener.socket or f"{listener.bind} port {listener.port}"
            raise ConfigurationError(
                f"listeners.{name}: cannot listen on {where}: "
                f"{os.strerror(error.errno or 0).lower()}"
            ) from error
        self._runners.append(runner)
        self._sockets.append(listening)
        if listener.socket is None:
            self.ports[name] = listening.sockets[0].getsockname()[1]

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
        try:
            self._core.take_profiles(await self.services.run(reread))
        except ConfigurationError as error:
            log.error("profiles.reload-failed", error=error.detail)  # noqa: TRY400 - says it all
        for context, listener in self._contexts:
            try:
                files = await self.services.run(self._usable_files, listener)
                load_certificate(context, files, self._passphrase)
            except Error as error:
                log.error("certificate.reload-failed", error=error.detail)  # noqa: TRY400 - says it all
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
        self._executor.shutdown(wait=True)
        log.info("server.stopped")


async def _every(seconds: float, name: str, duty: Callable[[], Awaitable[object]]) -> None:
    """Do a duty again and again; a failure is logged and tried again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await duty()
        except Unavailable as error:
            log.warning("background.delayed", operation=name, error=error.detail)
        except Exception:
            # A background task must outlive its failures.
            log.exception("background.failed", operation=name)


def _tell_of_death(task: asyncio.Task[None]) -> None:
    """Log the error that ended a task, which asyncio would keep to itself."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background.died", operation=task.get_name(), exc_info=error)


async def serve(settings: Settings, reread: Callable[[], Settings]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP takes profiles and TLS certificates anew."""
    logs.configure(settings.log)
    core = open_core(settings, SystemClock(), with_keys=True)
    try:
        server = Server(core)
        stopped = asyncio.Event()
        reloading: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()

        def reload() -> None:
            task = loop.create_task(server.reload(reread), name="reload")
            task.add_done_callback(_tell_of_death)
            reloading.add(task)
            task.add_done_callback(reloading.discard)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        loop.add_signal_handler(signal.SIGHUP, reload)
        try:
            await server.start()
            await stopped.wait()
        finally:
            await server.stop()
    finally:
        core.close()


def enter_test_mode(environment: Mapping[str, str]) -> None:
    """Honour ESTSERVER_FAILPOINT and ESTSERVER_FAULTS. Raises ConfigurationError."""
    if text := environment.get("ESTSERVER_FAILPOINT"):
        failpoints.arm(text)
    if text := environment.get("ESTSERVER_FAULTS"):
        faults.arm(text)
