"""A running instance for tests: real database, keys and listeners; only the clock can move."""

import asyncio
import base64
import os
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection, HTTPMessage, HTTPSConnection
from itertools import count
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs7,
)
from cryptography.x509 import ocsp

from estserver import config
from estserver.ca.ceremony import InstanceOptions, Ports, create_instance
from estserver.config import Settings
from estserver.core import Core, open_core
from estserver.invitations import Handover, Registration
from estserver.model import Origin
from estserver.server import Server

ORIGIN = Origin("test", "cli")
_LISTENERS = ("web", "devices", "status", "management")


class MovableClock:
    """The real time plus what a test has advanced it by."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        """Return the present moment as the instance sees it."""
        return datetime.now(UTC).replace(microsecond=0) + self.offset

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        self.offset += by


def _port_numbers() -> Iterator[int]:
    """Yield ports below the ephemeral range, so that no outgoing connection takes one first."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    base = 20000 + worker * 3000
    for number in count(os.getpid() % 1500):
        port = base + number % 3000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


_ports = _port_numbers()


def free_ports() -> Ports:
    """Return four free ports on loopback."""
    return Ports(*(next(_ports) for _ in _LISTENERS))


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer as it came over the wire."""

    status: int
    headers: HTTPMessage
    body: bytes

    def certificates(self) -> list[x509.Certificate]:
        """Decode a base64 certs-only PKCS#7 body."""
        return pkcs7.load_der_pkcs7_certificates(base64.b64decode(self.body))


@dataclass(slots=True)
class Live:
    """An instance and its server in a thread of its own."""

    directory: Path
    settings: Settings
    clock: MovableClock
    core: Core = field(init=False)
    server: Server = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    _thread: threading.Thread = field(init=False)

    def start(self) -> None:
        """Open the core and listen."""
        self.core = open_core(self.settings, self.clock, with_keys=True)
        self.server = Server(self.core)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self.call(self.server.start())
            # Real clients keep real time: a clock that a test moves by a year must not get them
            # a TLS certificate of that year. Tests renew it by hand where they are about that.
            for task in self.server._tasks:
                if task.get_name() == "tls":
                    self._loop.call_soon_threadsafe(task.cancel)
        except BaseException:
            self.stop()
            raise

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def stop(self) -> None:
        """Stop serving and close the database."""
        left = self.call(self._connections())
        self.call(self.server.stop())
        self.call(_abort(left))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.core.close()

    async def _connections(self) -> list[asyncio.Transport]:
        runners = [runner.server for runner in self.server._runners]
        found = [
            c.transport for server in runners if server is not None for c in server.connections
        ]
        below = [_below_tls(transport) for transport in found if transport is not None]
        return [transport for transport in below if transport is not None]

    def restart(self) -> None:
        """Stop and start again on the same directory."""
        self.stop()
        self.start()

    @property
    def root(self) -> Path:
        """The root certificate, PEM."""
        return self.directory / "ca/root.crt"

    def url(self, listener: str) -> str:
        """Base URL of a listener."""
        value: str = getattr(self.settings.listeners, listener).url
        return value

    def port(self, listener: str) -> int:
        """TCP port of a listener on 127.0.0.1."""
        number: int = getattr(self.settings.listeners, listener).port
        return number

    def invite(self, profile: str, **fields: Any) -> Handover:
        """Register with sensible defaults for the profile."""
        defaults: dict[str, dict[str, Any]] = {
            "person": {"name": "山田 太郎", "email": "taro@example.ac.jp"},
            "mail": {"email": "taro@example.ac.jp"},
            "device": {"device_id": "printer-17"},
            "server": {"names": ("dns:www.example.ac.jp",)},
            "officer": {"name": "Hanako Sato", "email": "hanako@example.ac.jp"},
        }
        given = {"mail": False} if profile != "mail" else {}
        registration = Registration(profile, **{**defaults.get(profile, {}), **given, **fields})
        return self.core.invitations.issue(registration, by="test", origin=ORIGIN)

    def tls(self, holder: "Holder | None" = None, **versions: ssl.TLSVersion) -> ssl.SSLContext:
        """Return a client context that trusts the instance's root, with a certificate if given."""
        context = ssl.create_default_context(cafile=str(self.root))
        for name, version in versions.items():
            setattr(context, name, version)
        if holder is not None:
            # A file of its own each time: another thread may be reading the last one.
            with tempfile.NamedTemporaryFile(dir=self.directory, suffix=".pem") as pem:
                pem.write(holder.pem)
                pem.flush()
                context.load_cert_chain(pem.name)
        return context

    def request(
        self,
        method: str,
        path: str,
        *,
        listener: str = "devices",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        holder: "Holder | None" = None,
    ) -> Answer:
        """Make one HTTP request on a connection of its own."""
        port = self.port(listener)
        plain = listener in {"status", "management"}
        connection = (
            HTTPConnection("127.0.0.1", port, timeout=30)
            if plain
            else HTTPSConnection("localhost", port, timeout=30, context=self.tls(holder))
        )
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def enroll(
        self,
        handover: Handover,
        key: "Key | None" = None,
        *,
        operation: str = "simpleenroll",
        **names: Any,
    ) -> "Holder":
        """Enroll over EST with the handed-over PIN and return key and certificate."""
        key = key or new_key()
        answer = self.request(
            "POST",
            f"/.well-known/est/{operation}",
            body=base64.b64encode(make_csr(key, **names)),
            headers={"Content-Type": "application/pkcs10", "Authorization": basic(handover)},
        )
        assert answer.status == 200, answer.body
        return Holder(key, answer.certificates()[0])

    def said_by_ocsp(
        self,
        certificate: x509.Certificate,
        algorithm: hashes.HashAlgorithm = hashes.SHA256(),  # noqa: B008 - it has no state
    ) -> ocsp.OCSPCertStatus:
        """Ask what the responder says of a certificate; `algorithm` names its issuer."""
        issuer = x509.load_pem_x509_certificate((self.directory / "ca/issuing.crt").read_bytes())
        question = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, algorithm).build()
        answer = self.request(
            "POST",
            "/ocsp",
            listener="status",
            body=question.public_bytes(Encoding.DER),
            headers={"Content-Type": "application/ocsp-request"},
        )
        return ocsp.load_der_ocsp_response(answer.body).certificate_status


def beside(live: Live) -> Live:
    """Return a second node, not started: the same directory, database and URLs, other ports."""
    return Live(live.directory, on_ports(live.settings, free_ports()), live.clock)


def on_ports(settings: Settings, ports: Ports) -> Settings:
    """Return `settings` with the listeners on other ports; what they are called stays."""
    moved = {
        name: getattr(settings.listeners, name).model_copy(update={"port": port})
        for name, port in zip(_LISTENERS, ports_of(ports), strict=True)
    }
    listeners = settings.listeners.model_copy(update=moved)
    return settings.model_copy(update={"listeners": listeners})


def _below_tls(transport: asyncio.Transport) -> asyncio.Transport | None:
    """Return what carries a connection, if it still does: TLS above it, closed twice, does not
    abort (Python 3.11.2)."""
    tls = getattr(transport, "_ssl_protocol", None)
    wire: asyncio.Transport | None = transport if tls is None else tls._transport
    return wire


async def _abort(transports: list[asyncio.Transport]) -> None:
    """Cut connections of browsers that are slow to say goodbye: their loop is about to end."""
    for transport in transports:
        transport.abort()
    # Each loses its connection on one turn of the loop and closes its socket on the next.
    for _ in range(3):
        await asyncio.sleep(0)


Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Holder:
    """A private key and its certificate."""

    key: Key
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """Key and certificate as PEM."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key + self.certificate.public_bytes(Encoding.PEM)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_csr(
    key: Key,
    *,
    subject: x509.Name | str = "",
    names: tuple[x509.GeneralName, ...] = (),
    attributes: tuple[tuple[x509.ObjectIdentifier, bytes], ...] = (),
) -> bytes:
    """Make a DER CSR; `subject` text becomes a CN, empty gives an empty subject."""
    if isinstance(subject, str):
        rdns = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
        subject = x509.Name(rdns)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for oid, value in attributes:
        builder = builder.add_attribute(oid, value)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def basic(handover: Handover) -> str:
    """Return the Authorization header for an invitation's EST door."""
    assert handover.pin is not None
    pair = f"{handover.invitation.number}:{handover.pin.reveal()}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


class Workshop:
    """Makes instances in temporary folders; the hierarchy is made once and copied."""

    def __init__(self, template: Path) -> None:
        self._template = template
        self._instances: list[Live] = []

    def make(self, directory: Path, toml: str = "", *, start: bool = True) -> Live:
        """Make an instance with `toml` added to its configuration, and start it."""
        ports = free_ports()
        shutil.copytree(self._template, directory)
        path = directory / "estserver.toml"
        text = path.read_text(encoding="utf-8")
        for old, new in zip((1, 2, 3, 4), ports_of(ports), strict=True):
            text = text.replace(f"port = {old}\n", f"port = {new}\n")
            text = text.replace(f':{old}"', f':{new}"')
        path.write_text(text + toml, encoding="utf-8")
        live = Live(directory, config.load(path), MovableClock())
        if start:
            live.start()
            self._instances.append(live)
        return live

    def close(self) -> None:
        """Stop every instance that was started here."""
        for live in self._instances:
            live.stop()


def ports_of(ports: Ports) -> tuple[int, int, int, int]:
    """Return the four ports in the order of the listeners."""
    return ports.web, ports.devices, ports.status, ports.management


def make_template(directory: Path, *, age: timedelta = timedelta(0)) -> Path:
    """Make the instance that others are copied from, as of `age` ago.

    Ports 1 to 4 are placeholders.
    """
    clock = MovableClock()
    clock.advance(-age)
    create_instance(directory, clock, InstanceOptions(ports=Ports(1, 2, 3, 4)))
    return directory
