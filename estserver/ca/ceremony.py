"""The key ceremony: a new instance with its own root CA, issuing CA, secrets and database.

Only CA certificates are made here. Everything below them, the server's own TLS certificates too, is
issued by the registration authority once `serve` runs, so that each has its row and can be revoked.

An instance is made whole or not at all: what a failed ceremony has written is removed again.
"""

import contextlib
import hashlib
import ipaddress
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import dedent

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estserver import config, pin
from estserver.ca.issuer import signature_hash
from estserver.ca.keys import PrivateKey, encrypt_key, generate_key, write_private
from estserver.errors import BadInput
from estserver.keyring import new_master
from estserver.model import Clock, Event, KeyType, Origin, Secret
from estserver.names import check_text, is_wildcard, parse_general_name
from estserver.store import Store, migrate

KEY_TYPES = (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_3072, KeyType.RSA_4096)
ROOT_LIFE = timedelta(days=20 * 365 + 5)
ISSUING_LIFE = timedelta(days=10 * 365 + 2)
_BACKDATE = timedelta(hours=1)
"""Leaves begin five minutes in the past; their issuer must not begin after them."""
_NAME_MAX = 64
_CN_ROOM = 24
"""What ` Issuing CA 2026-XXXXXX` takes up of the 64 characters of a CN (RFC 5280 Appendix A.1)."""
_ANY_POLICY = x509.ObjectIdentifier("2.5.29.32.0")


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


@dataclass(frozen=True, slots=True)
class Authority:
    """A certification authority fresh from the ceremony."""

    certificate: x509.Certificate
    key: PrivateKey


def fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256 in upper-case hex with colons."""
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2)).upper()


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
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"{directory} is not empty: choose a new folder")
    now = clock.now()
    with _all_or_nothing(directory):
        root, issuing = make_hierarchy(options.organization, options.key_type, now)
        passphrase = Secret(secrets.token_urlsafe(32))
        write_private(directory / "secrets/passphrase", f"{passphrase.reveal()}\n".encode())
        write_private(directory / "secrets/master.key", f"{new_master()}\n".encode())
        for name, authority in (("root", root), ("issuing", issuing)):
            write_private(directory / f"ca/{name}.key", encrypt_key(authority.key, passphrase))
            pem = authority.certificate.public_bytes(Encoding.PEM)
            (directory / f"ca/{name}.crt").write_bytes(pem)
        # curl --cacert must reach the root whoever runs it; the keys beside it are 0600.
        (directory / "ca").chmod(0o755)
        configuration = directory / "estserver.toml"
        configuration.write_text(_configuration(options, now), encoding="utf-8")
        instance = Instance(configuration, root.certificate, issuing.certificate)
        _create_database(config.load(configuration), clock, instance, by)
    return instance


def make_hierarchy(
    organization: str, key_type: KeyType, now: datetime
) -> tuple[Authority, Authority]:
    """Make a root and an issuing CA below it.

    Both names carry a part that no other instance has: a browser that trusts an older CA of the
    same name would mix the two up (INC-25). O is what Firefox groups certificates by (SEED-17).
    """
    unique = f"{now.year}-{''.join(secrets.choice(pin.ALPHABET) for _ in range(6))}"
    short = organization if len(organization) <= _NAME_MAX - _CN_ROOM else ""
    root_key, issuing_key = generate_key(key_type), generate_key(key_type)
    root_name = _name(organization, f"{short} Root CA {unique}")
    # RFC 5280 §6.1 does not look at a trust anchor's path length, so the root states none.
    root = (
        _ca_builder(root_name, root_key, now, ROOT_LIFE, path_length=None)
        .issuer_name(root_name)
        .sign(root_key, signature_hash(root_key))
    )
    root_key_id = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    issuing_name = _name(organization, f"{short} Issuing CA {unique}")
    # No CDP and no AIA: the root's key goes off-line and signs no CRL, and a pointer to a list that
    # is not there makes strict relying parties reject the whole chain. An issuing CA that is lost
    # is ended by removing the root. anyPolicy lets profiles assert policies (RFC 5280 §4.2.1.4).
    issuing = (
        _ca_builder(issuing_name, issuing_key, now, ISSUING_LIFE, path_length=0)
        .issuer_name(root_name)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_key_id),
            critical=False,
        )
        .add_extension(
            x509.CertificatePolicies([x509.PolicyInformation(_ANY_POLICY, None)]), critical=False
        )
        .sign(root_key, signature_hash(root_key))
    )
    return Authority(root, root_key), Authority(issuing, issuing_key)


def _name(organization: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name.strip()),
        ]
    )


def _ca_builder(
    subject: x509.Name, key: PrivateKey, now: datetime, life: timedelta, *, path_length: int | None
) -> x509.CertificateBuilder:
    """Begin a CA certificate: what root and issuing CA share (RFC 5280 §4.2.1.2, .3, .9)."""
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    begin = now - _BACKDATE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + life - timedelta(seconds=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


@contextlib.contextmanager
def _all_or_nothing(directory: Path) -> Iterator[None]:
    """Remove what was written when the body fails; the folder itself stays if it was there."""
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        _clear(directory, keep=existed)
        raise BadInput(f"{error.filename or directory}: {error.strerror}") from error
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


def _create_database(settings: config.Settings, clock: Clock, instance: Instance, by: str) -> None:
    store = Store(settings.database_url, clock)
    try:
        migrate(store)
        event = Event("instance.created", by, "instance", {"root_sha256": instance.fingerprint})
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
    organization = check_text(options.organization, "organization", _NAME_MAX)
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
        else check_text(options.organization_ja, "organization", _NAME_MAX),
        key_type=options.key_type,
        ports=ports,
        bind=options.bind,
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


def _configuration(options: InstanceOptions, now: datetime) -> str:
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

        # The root's key, ca/root.key, is needed for no daily work: keep it off this machine.
        [issuers.issuing]
        certificate = "ca/issuing.crt"
        chain = ["ca/root.crt"]
        key = "ca/issuing.key"

        # What is issued and revoked, for `estserver recover`, and the audit trail's anchor. Put both
        # on another disk: they are of use once this one is lost.
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
