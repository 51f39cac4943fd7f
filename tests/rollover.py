"""A change of root on an instance that runs: each step as an operator makes it."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import config
from estserver.ca.hierarchy import Authority
from estserver.core import open_core
from tests.command_line import Shell
from tests.live import Live, MovableClock

PROFILES = ("person", "mail", "device", "server", "officer")


@dataclass(slots=True)
class Rollover:
    """The steps of README, in their order; `next` takes over from `issuing`."""

    live: Live
    old: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.old = x509.load_pem_x509_certificate(self.live.root.read_bytes())

    @property
    def new(self) -> x509.Certificate:
        """The new root."""
        return self.live.core.chains["next"][-1]

    @property
    def cross(self) -> dict[str, x509.Certificate]:
        """OldWithNew and NewWithOld."""
        path = self.live.directory / "ca/next-cross.crt"
        found = x509.load_pem_x509_certificates(path.read_bytes())
        names = {self.old.subject: "OldWithNew", self.new.subject: "NewWithOld"}
        return {names[one.subject]: one for one in found}

    def announce(self) -> None:
        """Make the new root and tell the world; everything is still issued by the old one."""
        self.edit("hosts =", 'tls_issuer = "issuing"\nhosts =')
        folder = str(self.live.directory / "stick")
        Shell(self.live.directory).run("ca", "new-root", "next", folder, "--succeeds", "issuing")
        self.restart()

    def move_profiles(self, *names: str) -> None:
        """Let the new issuing CA issue from now on. No restart."""
        for name in names or PROFILES:
            self.append(f'[profiles.{name}]\nissuer = "next"\n')
        self.reload()

    def move_tls(self) -> None:
        """Let the listeners show a certificate of the new issuing CA. No restart."""
        self.edit('tls_issuer = "issuing"', 'tls_issuer = "next"')
        self.reload()

    def retire(self) -> None:
        """Let the old issuing CA issue nothing any more."""
        self.edit("[issuers.issuing]\n", "[issuers.issuing]\nretired = true\n")
        self.restart()

    def finish(self) -> None:
        """Hand out the new root alone."""
        self.edit('succeeds = ["issuing"]\n', "")
        self.edit('cross = ["ca/next-cross.crt"]\n', "")
        self.restart()

    def edit(self, old: str, new: str) -> None:
        """Change the configuration file."""
        text = self._path.read_text(encoding="utf-8")
        assert old in text
        self._path.write_text(text.replace(old, new), encoding="utf-8")

    def append(self, toml: str) -> None:
        """Add tables to the configuration file."""
        text = self._path.read_text(encoding="utf-8")
        self._path.write_text(f"{text}\n{toml}", encoding="utf-8")

    def reload(self) -> None:
        """Do what SIGHUP does."""
        self.live.call(self.live.server.reload(lambda: config.load(self._path)))

    def restart(self) -> None:
        """Start again with the configuration as it is now."""
        self.live.settings = config.load(self._path)
        self.live.restart()

    @property
    def _path(self) -> Path:
        return self.live.directory / "estserver.toml"


def write_pem(path: Path, *certificates: x509.Certificate) -> None:
    """Write certificates to a file."""
    path.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))


def split(path: Path) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """Return the self-signed certificates of a file, and the others."""
    found = x509.load_pem_x509_certificates(path.read_bytes())
    roots = [one for one in found if one.issuer == one.subject]
    return roots, [one for one in found if one.issuer != one.subject]


def present() -> datetime:
    """Return the real time."""
    return MovableClock().now()


def certify(
    csr: x509.CertificateSigningRequest,
    by: Authority,
    *,
    public_key: ec.EllipticCurvePublicKey | None = None,
    ca: bool = True,
    path_length: int | None = 0,
    usage: bool = True,
    begin: timedelta = timedelta(hours=-1),
    end: timedelta = timedelta(days=3000),
) -> x509.Certificate:
    """Sign as a corporate CA might: right unless told otherwise."""
    key = public_key or csr.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(by.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(present() + begin)
        .not_valid_after(present() + end)
        .add_extension(
            x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    for extension in by.certificate.extensions:
        if usage and isinstance(extension.value, x509.KeyUsage):
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(by.key, hashes.SHA256())


def settings_of(shell: Shell) -> config.Settings:
    """Read the configuration as it is now."""
    return config.load(shell.directory / "estserver.toml")


def opens(shell: Shell) -> None:
    """The instance must open with all of its keys, as `serve` opens it."""
    open_core(settings_of(shell), MovableClock(), with_keys=True).close()
