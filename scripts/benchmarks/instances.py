"""Instances of estserver under load: made, registered with, served, and their answers checked."""

import base64
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estserver import config
from estserver.ca.ceremony import InstanceOptions, Ports, create_instance
from estserver.core import Core, SystemClock, open_core
from estserver.invitations import Handover, Registration
from estserver.model import Origin
from estserver.store import Store, migrate
from scripts.benchmarks.generator import Target
from scripts.benchmarks.machine import pinned

ESTSERVER = (sys.executable, "-m", "estserver")
REPOSITORY = Path(__file__).parent.parent.parent
_ORIGIN = Origin("bench", "cli")
_PATIENCE_SECONDS = 120
_SETTINGS = """
[acme]
orders_per_hour = 100000000
accounts_per_hour = 100000000
"""


@dataclass(frozen=True, slots=True)
class Serving:
    """A running `estserver serve`: its process, and the seconds from exec to listening."""

    child: subprocess.Popen[bytes]
    start_seconds: float


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance in a folder of its own."""

    directory: Path
    settings: config.Settings

    @property
    def root(self) -> Path:
        """The root's certificate, PEM."""
        return self.directory / "ca/root.crt"

    @property
    def configuration(self) -> Path:
        """The configuration file."""
        return self.directory / "estserver.toml"

    def target(self, listener: str, holders: tuple[Path, ...] = ()) -> Target:
        """Return where a listener is reached."""
        port: int = getattr(self.settings.listeners, listener).port
        return Target(port, root=self.root, tls=listener != "status", holders=holders)

    @contextmanager
    def core(self) -> Iterator[Core]:
        """Open the core beside the server, as commands do."""
        core = open_core(self.settings, SystemClock(), with_keys=False)
        try:
            yield core
        finally:
            core.close()

    def invite(self, profile: str, count: int = 1, **fields: Any) -> list[Handover]:
        """Register `count` times the same."""
        registration = Registration(profile, mail=False, **fields)
        with self.core() as core, ThreadPoolExecutor(16) as pool:
            return list(
                pool.map(
                    lambda _: core.invitations.issue(registration, by="bench", origin=_ORIGIN),
                    range(count),
                )
            )

    @contextmanager
    def serving(self, cores: tuple[int, ...], *arguments: str) -> Iterator[Serving]:
        """Serve on these cores until the block ends."""
        log_file = self.directory / "serve.log"
        command = [*ESTSERVER, "--config", str(self.configuration), "serve"]
        begun = time.monotonic()
        with log_file.open("ab") as log:
            child = subprocess.Popen(
                pinned([*command, *arguments], cores), stdout=log, stderr=log, cwd=REPOSITORY
            )
        try:
            listening = wait_for_port(self.settings.listeners.management.port, child, log_file)
            yield Serving(child, listening - begun)
        finally:
            child.terminate()
            child.wait(_PATIENCE_SECONDS)


def make_instance(
    directory: Path,
    *,
    database: str | None = None,
    journal: bool = False,
    change: Callable[[str], str] = lambda text: text,
) -> Instance:
    """Make an instance with limits that no load meets.

    `database`: instead of SQLite. `journal`: whether one is kept. `change`: what else is to be
    written into its configuration.
    """
    ports = Ports(*free_ports(4))
    made = create_instance(directory, SystemClock(), InstanceOptions(ports=ports))
    text = made.configuration.read_text(encoding="utf-8")
    text = text.replace('format = "console"', 'format = "json"')
    if database is not None:
        text = text.replace("sqlite:///estserver.db", database)
    text = re.sub(r"^\[journal\]\n(path = .*\n)?", "", text, flags=re.MULTILINE)
    if journal:
        text += '\n[journal]\npath = "journal"\n'
    made.configuration.write_text(change(text) + _SETTINGS, encoding="utf-8")
    instance = Instance(directory, config.load(made.configuration))
    if database is not None:
        store = Store(database, SystemClock())
        try:
            migrate(store)
        finally:
            store.close()
    return instance


def free_ports(count: int) -> list[int]:
    """Return TCP ports on loopback that were free a moment ago, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def wait_for_port(port: int, child: subprocess.Popen[bytes], log: Path) -> float:
    """Wait until somebody listens; return when that was. Raises RuntimeError: the child ended."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until and child.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return time.monotonic()
        time.sleep(0.002)
    child.kill()
    raise RuntimeError(f"{child.args!r} does not listen:\n{log.read_text()}")


def credentials(handover: Handover) -> str:
    """Return number and PIN as HTTP Basic has them."""
    if handover.pin is None:
        raise RuntimeError("the invitation has no PIN")
    return f"{handover.invitation.number}:{handover.pin.reveal()}"


# -- CSRs and what came of them --------------------------------------------------------------------


def make_csr(
    key: ec.EllipticCurvePrivateKey, *, subject: str = "", names: Sequence[str] = ()
) -> bytes:
    """Make a CSR, base64; `subject` is its CN, `names` are host names."""
    alternative = [x509.DNSName(name) for name in names]
    common_name = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(common_name))
    if alternative:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
    return base64.b64encode(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


def make_csrs(count: int, *, subject: str = "", names: Sequence[str] = ()) -> list[bytes]:
    """Make CSRs, each with a P-256 key of its own."""
    keys = (ec.generate_private_key(ec.SECP256R1()) for _ in range(count))
    return [make_csr(key, subject=subject, names=names) for key in keys]


def certificates_in(body: bytes) -> list[x509.Certificate]:
    """Read what doors answer with: base64 of a certs-only PKCS#7, or PEM."""
    if body.startswith(b"-----"):
        return x509.load_pem_x509_certificates(body)
    return pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))


class Checker:
    """Looks at every certificate that came back, over a whole run."""

    def __init__(self) -> None:
        self._serials: set[tuple[bytes, int]] = set()
        self.checked = 0

    def check(self, csr: bytes, body: bytes) -> x509.Certificate:
        """Return the certificate for the key of `csr` (base64).

        Raises RuntimeError: there is none, or its serial was seen before.
        """
        key = x509.load_der_x509_csr(base64.b64decode(csr)).public_key()
        found = [one for one in certificates_in(body) if one.public_key() == key]
        if not found:
            raise RuntimeError("a certificate came back for another key")
        identity = (found[0].issuer.public_bytes(), found[0].serial_number)
        if identity in self._serials:
            raise RuntimeError(f"serial {identity[1]:x} came back twice")
        self._serials.add(identity)
        self.checked += 1
        return found[0]

    def serials(self, issuer: x509.Name) -> list[int]:
        """Return the serials of an issuer's certificates that came back."""
        name = issuer.public_bytes()
        return [serial for signer, serial in self._serials if signer == name]


def require_chain(target: Target) -> None:
    """Raise ssl.SSLError unless the server's chain leads to the target's root, for its name."""
    context = ssl.create_default_context(cafile=target.root)
    connection = HTTPSConnection(target.name, target.port, timeout=30, context=context)
    try:
        connection.connect()
    finally:
        connection.close()
