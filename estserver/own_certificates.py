"""The server's own certificates: TLS and OCSP responders, issued through `ra` like all others.

Each lives in one file, encrypted key and chain together, so that they are replaced as one. A
certificate past half of its life is replaced by one with a new key. All workers of a machine use
the same files: one of them makes what is missing, the others wait for it. Every node has its own.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estserver.ca.chains import Chains
from estserver.ca.keys import PrivateKey, encrypt_key, generate_key, load_key
from estserver.config import Settings
from estserver.csr import read_csr
from estserver.errors import ConfigurationError, Fault, NotFound
from estserver.files import write_private
from estserver.model import (
    Applicant,
    CertificateState,
    Clock,
    Door,
    Entitlement,
    Grant,
    Internal,
    Issued,
    KeyType,
    Origin,
    Secret,
    Via,
)
from estserver.names import parse_general_name
from estserver.ra import EnrollmentRequest, RegistrationAuthority
from estserver.settings import ProfileSettings

TLS_PROFILE = "_tls"
"""A leading underscore keeps internal profiles from being EST labels."""
_TLS_LIFE = timedelta(days=90)
_OCSP_LIFE = timedelta(days=30)
_ORIGIN = Origin("own-certificates", "server")


def ocsp_profile(issuer: str) -> str:
    """Name the internal profile of an issuer's OCSP responder certificates."""
    return f"_ocsp-{issuer}"


def responder_purpose(issuer: str) -> str:
    """Name what an issuer's OCSP responder certificate is for."""
    return f"ocsp-{issuer}"


def own_file(settings: Settings, purpose: str) -> Path:
    """Return where key and chain for a purpose are."""
    return settings.path(Path("keys") / f"{purpose}.pem")


def internal_profiles(settings: Settings) -> dict[str, ProfileSettings]:
    """Return the settings of the profiles that only the server itself uses."""

    def profile(title: str, issuer: str, usage: str, validity: timedelta) -> ProfileSettings:
        return ProfileSettings(
            title=title,
            title_ja=title,
            issuer=issuer,
            doors=(Door.EST,),
            default_doors=(),
            subject=("CN={first_name}",),
            names=("dns", "ip"),
            keys=(KeyType.EC_P256,),
            validity=validity,
            extended_key_usage=(usage,),
        )

    responders = {
        ocsp_profile(name): profile("OCSP responder", name, "ocspSigning", _OCSP_LIFE)
        for name in settings.issuers
    }
    return {TLS_PROFILE: profile("TLS", settings.own_issuer, "serverAuth", _TLS_LIFE), **responders}


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """One of our own: `path` holds key (encrypted), certificate and chain as PEM."""

    path: Path
    key: PrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]


class OwnCertificates:
    """Keeps the server's own certificates fresh. `renew` may block and is safe to repeat."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        ra: RegistrationAuthority,
        chains: Chains,
        passphrase: Secret,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._ra = ra
        self._chains = chains
        self._passphrase = passphrase

    def tls(self) -> OwnCertificate:
        """Return the TLS certificate for all of the configured hosts, made or renewed as needed."""
        names = frozenset(
            parse_general_name(f"{'ip' if _is_address(host) else 'dns'}:{host}")
            for host in self._settings.hosts
        )
        return self._fresh("tls", TLS_PROFILE, Grant(x509.Name([]), names))

    def responder(self, issuer: str) -> OwnCertificate:
        """Return the OCSP responder certificate of an issuer, made or renewed as needed."""
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, f"OCSP responder {issuer}"[:64])
        organization = self._chains[issuer][0].subject.get_attributes_for_oid(
            NameOID.ORGANIZATION_NAME
        )
        subject = x509.Name([*organization, common_name])
        grant = Grant(subject, frozenset())
        return self._fresh(responder_purpose(issuer), ocsp_profile(issuer), grant)

    def _fresh(self, purpose: str, profile: str, grant: Grant) -> OwnCertificate:
        path = own_file(self._settings, purpose)
        chain = self._chains.sent(self._ra.issuer_of(profile))
        own = self._usable(path, profile, grant)
        if own is None or own.chain != chain:
            with _turn(path.parent):
                own = self._usable(path, profile, grant)
                if own is None:
                    own = self._make(path, purpose, profile, grant)
                elif own.chain != chain:
                    # Another issuer is taking over: the same certificate gets a way to its root.
                    own = self._write(path, own.key, own.certificate, profile)
        return own

    def _usable(self, path: Path, profile: str, grant: Grant) -> OwnCertificate | None:
        """Return what the file holds unless it is time for, or there is need of, another."""
        if not path.exists():
            return None
        own = self._load(path)
        life = own.certificate.not_valid_after_utc - own.certificate.not_valid_before_utc
        half = own.certificate.not_valid_before_utc + life / 2
        fresh = own.certificate.not_valid_before_utc <= self._clock.now() < half
        stands = fresh and self._covers(own.certificate, profile, grant) and self._stands(own)
        return own if stands else None

    def _load(self, path: Path) -> OwnCertificate:
        key = load_key(path, self._passphrase)
        try:
            certificates = x509.load_pem_x509_certificates(path.read_bytes())
        except ValueError as error:
            raise ConfigurationError(f"{path}: holds no PEM certificate") from error
        if certificates[0].public_key() != key.public_key():
            raise ConfigurationError(f"{path}: key and certificate do not belong together")
        return OwnCertificate(path, key, certificates[0], tuple(certificates[1:]))

    def _covers(self, certificate: x509.Certificate, profile: str, grant: Grant) -> bool:
        """Tell whether hosts and issuer are still those of the configuration."""
        try:
            san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names = frozenset(san.value)
        except x509.ExtensionNotFound:
            names = frozenset()
        issuer, *_ = self._chains[self._ra.issuer_of(profile)]
        return names == grant.names and certificate.issuer == issuer.subject

    def _stands(self, own: OwnCertificate) -> bool:
        """Tell whether it has its row and was not revoked."""
        try:
            record = self._ra.find(own.certificate.serial_number)
        except NotFound:
            return False
        same = record.sha256 == own.certificate.fingerprint(hashes.SHA256())
        return same and record.state is CertificateState.VALID

    def _make(self, path: Path, purpose: str, profile: str, grant: Grant) -> OwnCertificate:
        key = generate_key(KeyType.EC_P256)
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        csr = read_csr(request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
        entitlement = Entitlement(
            applicant=Applicant("server", purpose),
            profile=profile,
            grant=grant,
            approved=True,
            authority=Internal(purpose),
        )
        answer = self._ra.enroll(EnrollmentRequest(entitlement, csr, Via.INTERNAL, _ORIGIN))
        if not isinstance(answer, Issued):
            raise Fault(f"our own certificate for {purpose} waits for approval")
        return self._write(path, key, x509.load_der_x509_certificate(answer.der), profile)

    def _write(
        self, path: Path, key: PrivateKey, certificate: x509.Certificate, profile: str
    ) -> OwnCertificate:
        """Write key, certificate and what goes with it: a way to each root in use."""
        chain = [certificate, *self._chains.sent(self._ra.issuer_of(profile))]
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in chain)
        write_private(path, encrypt_key(key, self._passphrase) + pem)
        return self._load(path)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other worker of this machine makes a certificate in `folder`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("wb") as file:
        # Let go of when the file is closed, or its process killed.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
