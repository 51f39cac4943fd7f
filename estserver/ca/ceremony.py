"""The key ceremony: a new instance with its own root CA, issuing CA, secrets and database.

Only CA certificates are made here. Everything below them, the server's own TLS certificates too, is
issued by the registration authority once `serve` runs, so that each has its row and can be revoked.

An instance is made whole or not at all: what a failed ceremony has written is removed again.
"""

import contextlib
import ipaddress
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from textwrap import dedent

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import config
from estserver.ca.hierarchy import KEY_TYPES, NAME_MAX, fingerprint, make_hierarchy
from estserver.ca.keys import encrypt_key
from estserver.ca.rollover import Ceremony
from estserver.ca.root_folder import new_passphrase, require_empty, write_root
from estserver.errors import BadInput
from estserver.files import write_private, write_public
from estserver.keyring import new_master
from estserver.model import Clock, Event, KeyType, Origin, Secret
from estserver.names import check_text, is_wildcard, parse_general_name
from estserver.store import Store, migrate
from estserver.wording import trouble


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of the four listeners; the defaults are those of the settings."""

    web: int = 8443
    devices: int = 9443
    status: int = 8080
    management: int = 9180


@dataclass(frozen=True, slots=True)
class InstanceOptions:
    """What an operator may choose. `hosts` first is the name in URLs; addresses may follow.

    `bind` None listens on loopback for a loopback host and on all addresses for any other.
    """

    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    devices_host: str | None = None
    organization: str = "Example Organization"
    organization_ja: str | None = None
    key_type: KeyType = KeyType.EC_P256
    ports: Ports = field(default_factory=Ports)
    bind: str | None = None
    root_folder: Path | None = None
    """Where the root's key goes, to be carried away; None: among the instance's files."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A new instance: its configuration file and its two CA certificates."""

    configuration: Path
    root: x509.Certificate
    issuing: x509.Certificate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root certificate as people compare it: upper case, colons."""
        return fingerprint(self.root)


def create_instance(
    directory: Path,
    clock: Clock,
    options: InstanceOptions | None = None,
    *,
    by: str = "operator",
) -> Instance:
    """Make a complete instance in `directory`, which must be empty or absent.

    Writes estserver.toml, ca/ (certificates, encrypted keys), secrets/ and the database.
    Raises BadInput (not empty, a host that is no name or address, a text too long) and
    ConfigurationError or Unavailable (the database named in the environment cannot be used).
    """
    options = _checked(options or InstanceOptions())
    now = clock.now()
    with _all_or_nothing(directory), contextlib.ExitStack() as stack:
        root, issuing = make_hierarchy(options.organization, options.key_type, now)
        configuration, passphrase = _write_foundations(directory, options, now, "ca/root.crt")
        if options.root_folder is None:
            write_private(directory / "ca/root.key", encrypt_key(root.key, passphrase))
        else:
            stack.enter_context(_all_or_nothing(options.root_folder))
            write_root(options.root_folder, root)
        write_private(directory / "ca/issuing.key", encrypt_key(issuing.key, passphrase))
        for name, authority in (("root", root), ("issuing", issuing)):
            pem = authority.certificate.public_bytes(Encoding.PEM)
            write_public(directory / f"ca/{name}.crt", pem)
        instance = Instance(configuration, root.certificate, issuing.certificate)
        created = {"root_sha256": instance.fingerprint}
        _create_database(config.load(configuration), clock, by, created)
    return instance


def create_subordinate(
    directory: Path,
    clock: Clock,
    options: InstanceOptions | None = None,
    *,
    by: str = "operator",
) -> Path:
    """Make an instance without a root, whose issuing CA an existing CA is to certify.

    Returns the path of the CSR; the instance serves once the certificate is installed.
    Raises as `create_instance`.
    """
    options = _checked(options or InstanceOptions())
    now = clock.now()
    with _all_or_nothing(directory):
        configuration, _ = _write_foundations(directory, options, now, "ca/issuing-chain.crt")
        settings = config.load(configuration)
        csr = Ceremony(configuration, settings, now).request("issuing", options.key_type)
        _create_database(settings, clock, by, {"csr": csr.name})
    return csr


def _write_foundations(
    directory: Path, options: InstanceOptions, now: datetime, chain: str
) -> tuple[Path, Secret]:
    """Write secrets and configuration; return its path and the passphrase of the CA keys."""
    passphrase = new_passphrase()
    write_private(directory / "secrets/passphrase", f"{passphrase.reveal()}\n".encode())
    write_private(directory / "secrets/master.key", f"{new_master()}\n".encode())
    # curl --cacert must reach the root whoever runs it; the keys beside it are 0600.
    (directory / "ca").mkdir()
    (directory / "ca").chmod(0o755)
    configuration = directory / "estserver.toml"
    write_public(configuration, _configuration(options, now, chain).encode())
    return configuration, passphrase


@contextlib.contextmanager
def _all_or_nothing(directory: Path) -> Iterator[None]:
    """Remove what was written when the body fails; the folder itself stays if it was there.

    Raises BadInput: something lies in it already, or it cannot be written.
    """
    require_empty(directory)
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        _clear(directory, keep=existed)
        raise BadInput(trouble(error, directory)) from error
    except BaseException:
        _clear(directory, keep=existed)
        raise


def _clear(directory: Path, *, keep: bool) -> None:
    """Empty a folder; a mount point or the working directory could not be removed and made anew."""
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
        return
    for child in directory.iterdir():
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)
        else:
            child.unlink(missing_ok=True)


def _create_database(
    settings: config.Settings, clock: Clock, by: str, created: dict[str, str]
) -> None:
    store = Store(settings.database_url, clock)
    try:
        migrate(store)
        event = Event("instance.created", by, "instance", created)
        store.write(lambda tx: tx.audit(event, Origin("", "cli")))
    finally:
        store.close()
    database = settings.database_url.removeprefix("sqlite:///")
    if database != settings.database_url:
        # SQLite gives its journal files the mode of the database.
        Path(database).chmod(0o600)


def _checked(options: InstanceOptions) -> InstanceOptions:
    """Return `options` with names in normal form. Raises BadInput."""
    if options.key_type not in KEY_TYPES:
        raise BadInput(f"a CA key is one of {', '.join(KEY_TYPES)}")
    if not options.hosts:
        raise BadInput("an instance needs at least one host")
    devices = options.devices_host
    organization = check_text(options.organization, "organization", NAME_MAX)
    ports = options.ports
    numbers = [ports.web, ports.devices, ports.status, ports.management]
    if len(set(numbers)) < len(numbers):
        raise BadInput("every listener needs a port of its own")
    return InstanceOptions(
        hosts=tuple(dict.fromkeys(_host(host) for host in options.hosts)),
        devices_host=None if devices is None else _host(devices),
        organization=organization,
        organization_ja=organization
        if options.organization_ja is None
        else check_text(options.organization_ja, "organization", NAME_MAX),
        key_type=options.key_type,
        ports=ports,
        bind=options.bind,
        root_folder=options.root_folder,
    )


def _host(text: str) -> str:
    """Return a host name or address in normal form. Raises BadInput."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        name = parse_general_name(f"dns:{text}")
    if is_wildcard(name):
        raise BadInput(f"a listener cannot be called {text}")
    return str(name.value)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _configuration(options: InstanceOptions, now: datetime, chain: str) -> str:
    """Write the instance's estserver.toml: what differs from the defaults, and what to edit."""
    host = options.hosts[0]
    devices = options.devices_host or host
    # JSON strings are TOML basic strings, but for DEL, which `check_text` refuses.
    quoted = {
        "organization": json.dumps(options.organization, ensure_ascii=False),
        "organization_ja": json.dumps(options.organization_ja, ensure_ascii=False),
        "hosts": json.dumps(list(dict.fromkeys((*options.hosts, devices)))),
        "bind": json.dumps(options.bind or ("127.0.0.1" if _is_loopback(host) else "0.0.0.0")),
    }
    ports = options.ports
    return dedent(f"""\
        # Made by `estserver init` on {now:%Y-%m-%d}. Paths start at this file's folder.
        # Every key, its default and what it does: conf/estserver.toml in the distribution.

        # Names and addresses in the server's own TLS certificates.
        hosts = {quoted["hosts"]}

        [branding]
        organization = {quoted["organization"]}
        organization_ja = {quoted["organization_ja"]}
        # support = "Registration office, extension 1234"

        [database]
        url = "sqlite:///estserver.db"

        [secrets]
        # Whoever has the database but not these two files can neither test PINs nor sign.
        master = "secrets/master.key"
        passphrase = "secrets/passphrase"

        # Pages for people: never asks for a client certificate.
        [listeners.web]
        bind = {quoted["bind"]}
        port = {ports.web}
        url = {_url("https", host, ports.web)}

        # EST and renewal: takes a client certificate. A host name of its own is best, because
        # browsers remember "Cancel" by host.
        [listeners.devices]
        bind = {quoted["bind"]}
        port = {ports.devices}
        url = {_url("https", devices, ports.devices)}

        # CRL, OCSP and CA certificates. The URL stands in every certificate: choose it to last.
        [listeners.status]
        bind = {quoted["bind"]}
        port = {ports.status}
        url = {_url("http", host, ports.status)}

        # Metrics and health: for this machine only.
        [listeners.management]
        bind = "127.0.0.1"
        port = {ports.management}
        url = {_url("http", "localhost", ports.management)}

        # The root's key is needed for no daily work: keep it off this machine.
        [issuers.issuing]
        certificate = "ca/issuing.crt"
        chain = ["{chain}"]
        key = "ca/issuing.key"

        # What is issued and revoked, for `estserver recover`, and the audit trail's anchor. Put
        # both on another disk: they are of use once this one is lost.
        [journal]
        path = "journal"
        [audit]
        anchor = "journal/audit.anchor"

        # Without a host, commands print the mail for you to send.
        # [mail]
        # host = "smtp.example.org"
        # sender = "certificates@example.org"

        [log]
        format = "console"
        """)


def _url(scheme: str, host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return json.dumps(f"{scheme}://{shown}:{port}")
