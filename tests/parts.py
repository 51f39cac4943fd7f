"""The core put together in process: real database, real keys, no HTTP; only the clock can move."""

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from cryptography import x509

from estserver import config
from estserver.authentication import Authenticator, CertificateCredential, PINCredential
from estserver.ca.hierarchy import Authority, make_hierarchy
from estserver.ca.issuer import Issuer, StatusURLs
from estserver.csr import CSR, read_csr
from estserver.invitations import Handover, Invitations, Registration
from estserver.journal import Journal
from estserver.keyring import Keyring, new_master
from estserver.model import (
    Entitlement,
    Issued,
    KeyType,
    Origin,
    Pending,
    Secret,
    Via,
)
from estserver.profiles import Profile
from estserver.ra import EnrollmentRequest, RegistrationAuthority
from estserver.store import Store, migrate
from tests.live import Key, MovableClock, make_csr, new_key

ORIGIN = Origin("test", "cli")
URLS = StatusURLs(
    "http://pki.example.ac.jp/ca/issuing.cer",
    "http://pki.example.ac.jp/ocsp",
    "http://pki.example.ac.jp/crl/issuing.crl",
)
SOURCE = "198.51.100.7"
APPLICANTS: dict[str, dict[str, Any]] = {
    "person": {"name": "山田 太郎", "email": "taro@example.ac.jp"},
    "mail": {"email": "taro@example.ac.jp"},
    "device": {"device_id": "printer-17", "names": ("dns:printer-17.example.ac.jp",)},
    "server": {"names": ("dns:www.example.ac.jp",)},
    "officer": {"name": "Hanako Sato", "email": "hanako@example.ac.jp"},
}


class StillClock(MovableClock):
    """A time that passes only when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self._start = super().now()

    def now(self) -> datetime:
        """Return the moment it was made plus what it was advanced by."""
        return self._start + self.offset


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A root and an issuing CA."""

    root: Authority
    issuing: Authority

    @property
    def chain(self) -> tuple[x509.Certificate, x509.Certificate]:
        """The issuing CA's certificate and the root's."""
        return self.issuing.certificate, self.root.certificate


def make_ca(key_type: KeyType = KeyType.EC_P256) -> Hierarchy:
    """Make a hierarchy that is valid now."""
    return Hierarchy(*make_hierarchy("Example University", key_type, MovableClock().now()))


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything below HTTP on one database."""

    url: str
    clock: MovableClock
    settings: config.Settings
    ca: Hierarchy
    master: str
    store: Store
    profiles: dict[str, Profile]
    issuer: Issuer
    invitations: Invitations
    authenticator: Authenticator
    ra: RegistrationAuthority

    def another(self, **profiles: dict[str, Any]) -> "Parts":
        """Open the same database a second time, as another process would."""
        settings = config.Settings(profiles=profiles) if profiles else self.settings
        return open_parts(
            self.url, ca=self.ca, clock=self.clock, settings=settings, master=self.master
        )

    def invite(self, profile: str = "device", **fields: Any) -> Handover:
        """Register an applicant with sensible names."""
        registration = Registration(profile, **{**APPLICANTS.get(profile, {}), **fields})
        return self.invitations.issue(registration, by="test", origin=ORIGIN)

    def entitle(self, handover: Handover) -> Entitlement:
        """Show the PIN at the EST door."""
        assert handover.pin is not None
        credential = PINCredential(handover.invitation.number, handover.pin, SOURCE)
        return self.authenticator.entitle(credential)

    def ask(self, entitlement: Entitlement, csr: CSR, via: Via = Via.EST) -> Issued | Pending:
        """Ask for a certificate."""
        return self.ra.enroll(EnrollmentRequest(entitlement, csr, via, ORIGIN))

    def enroll(self, handover: Handover, key: Key | None = None) -> Issued:
        """Show the PIN and take the certificate."""
        answer = self.ask(self.entitle(handover), csr_of(key))
        assert isinstance(answer, Issued)
        return answer

    def renew(self, held: Issued, key: Key | None = None, **more: Any) -> Issued:
        """Renew with the certificate and the same names."""
        entitlement = self.authenticator.renew(CertificateCredential(held.der), **more)
        answer = self.ask(entitlement, csr_like(held.der, key), Via.RENEWAL)
        assert isinstance(answer, Issued)
        return answer


def open_parts(
    url: str,
    *,
    ca: Hierarchy,
    clock: MovableClock | None = None,
    settings: config.Settings | None = None,
    master: str | None = None,
    journal: Journal | None = None,
) -> Parts:
    """Put the core together on a database, which is brought to the newest schema."""
    clock = clock or MovableClock()
    settings = settings or config.Settings()
    master = master or new_master()
    store = Store(url, clock, journal)
    migrate(store)
    profiles = {
        name: Profile(name, rules, ca.issuing.certificate)
        for name, rules in settings.profiles.items()
    }
    invitations = Invitations(
        store, clock, Keyring(Secret(master)), profiles, settings.limits, "Example University"
    )
    issuer = Issuer("issuing", ca.chain, ca.issuing.key, URLS)
    return Parts(
        url=url,
        clock=clock,
        settings=settings,
        ca=ca,
        master=master,
        store=store,
        profiles=profiles,
        issuer=issuer,
        invitations=invitations,
        authenticator=Authenticator(store, clock, invitations, profiles),
        ra=RegistrationAuthority(
            store,
            clock,
            profiles,
            {"issuing": issuer},
            timedelta(seconds=60),
            holds=settings.revocation.hold,
        ),
    )


def csr_of(key: Key | None = None, **names: Any) -> CSR:
    """Read a CSR that asks for nothing but what the registration grants."""
    return read_csr(make_csr(key or new_key(), **names))


def csr_like(der: bytes, key: Key | None = None) -> CSR:
    """Read a CSR with exactly the names of a certificate."""
    certificate = x509.load_der_x509_certificate(der)
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = tuple(san.value)
    except x509.ExtensionNotFound:
        names = ()
    return csr_of(key, subject=certificate.subject, names=names)


def unguard_audit(connection: sa.Connection) -> None:
    """Let audit rows be changed, as whoever owns the database can."""
    is_postgresql = connection.dialect.name == "postgresql"
    for name in ("no_update", "no_delete", *(("no_truncate",) if is_postgresql else ())):
        where = " ON audit_events" if is_postgresql else ""
        connection.exec_driver_sql(f"DROP TRIGGER audit_events_{name}{where}")


def with_rules(name: str, **rules: Any) -> config.Settings:
    """Return settings in which a shipped profile has other rules."""
    return config.Settings(profiles={name: rules})


def exactly(entitlement: Entitlement) -> Entitlement:
    """Ask for the names exactly, as ACME does."""
    return dataclasses.replace(
        entitlement, grant=dataclasses.replace(entitlement.grant, exact=True)
    )
