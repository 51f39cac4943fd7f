"""A small CA for tests of certificate status: real keys, real database, no listener."""

import random
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from estserver.authentication import Authenticator
from estserver.ca.chains import Chains
from estserver.ca.issuer import Issuer, StatusURLs
from estserver.ca.keys import PrivateKey, generate_key
from estserver.config import Settings
from estserver.convoy import Convoy
from estserver.csr import read_csr
from estserver.duties import Duties
from estserver.invitations import Invitations
from estserver.keyring import Keyring
from estserver.model import (
    Applicant,
    Entitlement,
    Grant,
    Internal,
    Issued,
    KeyType,
    RevocationReason,
    Secret,
    Via,
)
from estserver.own_certificates import internal_profiles, ocsp_profile
from estserver.profiles import Profile
from estserver.protocols import Services
from estserver.ra import EnrollmentRequest, RegistrationAuthority
from estserver.settings import IssuerSettings
from estserver.status import CRLRules, StatusAuthority
from estserver.store import Store, migrate, to_unix
from estserver.store.tables import certificates, enrollments
from tests.live import ORIGIN, MovableClock

LIFETIME = timedelta(days=7)
_YEARS = timedelta(days=3650)
Buffer: TypeAlias = bytes | bytearray | memoryview


def name(text: str) -> x509.Name:
    """Make a Name with an organization and a common name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, text),
        ]
    )


def authority(
    subject: str,
    key: PrivateKey,
    issuer: tuple[x509.Certificate, PrivateKey] | None = None,
) -> x509.Certificate:
    """Make a CA certificate; a root without `issuer`."""
    now = datetime.now(UTC).replace(microsecond=0)
    own_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    above = own_key
    if issuer is not None:
        above = issuer[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
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
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(subject) if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _YEARS)
        .not_valid_after(now + _YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(own_key, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), critical=False
        )
    )
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256())


@dataclass(frozen=True, slots=True)
class House:
    """A CA with one or more issuers under one root, and all that enrolls, revokes and tells."""

    directory: Path
    clock: MovableClock
    settings: Settings
    store: Store
    root: x509.Certificate
    issuers: Mapping[str, Issuer]
    keys: Mapping[str, PrivateKey]
    profiles: dict[str, Profile]
    ra: RegistrationAuthority
    status: StatusAuthority

    def certificate(self, issuer: str = "issuing") -> x509.Certificate:
        """Return the certificate of an issuing CA."""
        return self.issuers[issuer].certificate

    def issue(
        self, common_name: str, profile: str = "device", key: PrivateKey | None = None
    ) -> tuple[x509.Certificate, str]:
        """Enroll; return the certificate and its enrollment id."""
        key = key or generate_key(KeyType.EC_P256)
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        csr = read_csr(request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
        entitlement = Entitlement(
            applicant=Applicant("server", common_name),
            profile=profile,
            grant=Grant(name(common_name), frozenset()),
            approved=True,
            authority=Internal(common_name),
        )
        answer = self.ra.enroll(EnrollmentRequest(entitlement, csr, Via.INTERNAL, ORIGIN))
        assert isinstance(answer, Issued)
        return x509.load_der_x509_certificate(answer.der), answer.enrollment

    def revoke(
        self, enrollment: str, reason: RevocationReason = RevocationReason.SUPERSEDED
    ) -> None:
        """Revoke as an officer would."""
        self.ra.revoke(enrollment, reason=reason, comment=None, by="officer test", origin=ORIGIN)

    def install_responder(self, issuer: str = "issuing") -> x509.Certificate:
        """Issue and install an OCSP responder certificate."""
        key = generate_key(KeyType.EC_P256)
        certificate, _ = self.issue(f"OCSP responder {issuer}", ocsp_profile(issuer), key)
        self.status.use_responder(issuer, certificate, key)
        return certificate

    def another_process(self) -> StatusAuthority:
        """Return a status authority with a connection of its own to the same database."""
        store = Store(self.settings.database.url, self.clock)
        return authority_on(store, self.clock, self.issuers, self.settings, self.profiles)

    def ask(self, request: bytes) -> ocsp.OCSPResponse:
        """Ask over OCSP without HTTP."""
        return ocsp.load_der_ocsp_response(self.status.answer(request).der)

    def services(self, executor: Executor) -> Services:
        """Put together what a door may use."""
        keyring = Keyring(Secret("0" * 64))
        settings = self.settings
        invitations = Invitations(
            self.store, self.clock, keyring, self.profiles, settings.limits, "Example"
        )
        return Services(
            settings=settings,
            clock=self.clock,
            store=self.store,
            keyring=keyring,
            profiles=self.profiles,
            chains=Chains({name: issuer.chain for name, issuer in self.issuers.items()}),
            invitations=invitations,
            authenticator=Authenticator(self.store, self.clock, invitations, self.profiles),
            ra=self.ra,
            journal=None,
            status=self.status,
            executor=executor,
            convoy=Convoy(self.store, executor),
            duties=Duties(self.store, self.clock, "test", executor),
        )

    def write_pem(self, file: str, *certificates: x509.Certificate) -> str:
        """Write certificates for a client program; return the path."""
        path = self.directory / file
        path.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
        return str(path)

    def write_der(self, file: str, der: bytes) -> str:
        """Write bytes for a client program; return the path."""
        path = self.directory / file
        path.write_bytes(der)
        return str(path)


def build(
    directory: Path,
    names: Sequence[str] = ("issuing",),
    key_type: KeyType = KeyType.EC_P256,
    keys: Mapping[str, PrivateKey] | None = None,
    *,
    url: str | None = None,
    own_crls: Sequence[str] = (),
    **rules_of_issuers: Any,
) -> House:
    """Make a CA in `directory`; every issuer has a subject and a key of its own.

    `own_crls`: profiles that get a CRL of their own. The rest is settings of every issuer.
    """
    clock = MovableClock()
    settings = Settings(
        database={"url": url or f"sqlite:///{directory / 'status.db'}"},
        issuers={
            name: IssuerSettings(
                certificate=Path(f"{name}.pem"),
                chain=(Path("root.pem"),),
                key=Path("key.pem"),
                **rules_of_issuers,
            )
            for name in names
        },
        profiles={name: {"own_crl": True} for name in own_crls},
    )
    store = Store(settings.database.url, clock)
    migrate(store)
    root_key = generate_key(KeyType.EC_P256)
    root = authority("Root", root_key)
    keys = keys or {name: generate_key(key_type) for name in names}
    issuers = {}
    for issuer in names:
        certificate = authority(f"CA {issuer}", keys[issuer], (root, root_key))
        urls = StatusURLs(
            f"http://pki.example.org/ca/{issuer}.cer",
            "http://pki.example.org/ocsp",
            f"http://pki.example.org/crl/{issuer}.crl",
            f"http://pki.example.org/delta/{issuer}.crl",
        )
        issuers[issuer] = Issuer(issuer, (certificate, root), keys[issuer], urls)
    rules = {**settings.profiles, **internal_profiles(settings)}
    profiles = {n: Profile(n, rule, issuers[rule.issuer].certificate) for n, rule in rules.items()}
    return House(
        directory=directory,
        clock=clock,
        settings=settings,
        store=store,
        root=root,
        issuers=issuers,
        keys=keys,
        profiles=profiles,
        ra=RegistrationAuthority(store, clock, profiles, issuers, holds=True),
        status=authority_on(store, clock, issuers, settings, profiles),
    )


def authority_on(
    store: Store,
    clock: MovableClock,
    issuers: Mapping[str, Issuer],
    settings: Settings,
    profiles: Mapping[str, Profile],
) -> StatusAuthority:
    """Put a status authority together as `core` does."""
    rules = {
        name: CRLRules(issuer.crl_lifetime, issuer.delta_crls)
        for name, issuer in settings.issuers.items()
    }
    return StatusAuthority(store, clock, issuers, rules, profiles)


def question(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    algorithm: hashes.HashAlgorithm | None = None,
    nonce: bytes | None = None,
) -> bytes:
    """Make an OCSP request for one certificate, DER."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        certificate, issuer, algorithm or hashes.SHA256()
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


class FickleKey(ec.EllipticCurvePrivateKey):
    """A key store gone bad: it shows one public key and signs with another."""

    def __init__(self) -> None:
        self._shown = ec.generate_private_key(ec.SECP256R1())
        self._used = ec.generate_private_key(ec.SECP256R1())

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the key that should have signed."""
        return self._shown.public_key()

    @property
    def curve(self) -> ec.EllipticCurve:
        """Return the curve of both."""
        return self._shown.curve

    @property
    def key_size(self) -> int:
        """Return the size of both."""
        return self._shown.key_size

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Sign with the wrong key."""
        return self._used.sign(bytes(data), signature_algorithm)

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        """No key store does this for a CA."""
        raise NotImplementedError

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        """No key store gives these away."""
        raise NotImplementedError

    def private_bytes(self, *_arguments: object) -> bytes:
        """No key store gives these away."""
        raise NotImplementedError

    def __copy__(self) -> "FickleKey":
        return self

    def __deepcopy__(self, _memo: object) -> "FickleKey":
        return self


def run(*command: str) -> str:
    """Run a client program; return all it said. Fails the test if the program fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {said}"
    return said


def revoke_in_bulk(house: House, count: int, profile: str = "device") -> list[int]:
    """Put `count` revoked certificates into the database as rows; return their serials.

    Spread over the year before now, so that none is too young to be settled.
    """
    now = to_unix(house.clock.now())
    dice = random.Random(count)
    serials = [dice.getrandbits(159) for _ in range(count)]
    reasons = [reason.value for reason in RevocationReason]
    with house.store.engine.begin() as connection:
        enrolled = dict(connection.execute(sa.select(enrollments)).mappings().first() or {})
        issued = dict(connection.execute(sa.select(certificates)).mappings().first() or {})
        for start in range(0, count, 10_000):
            block = range(start, min(count, start + 10_000))
            names = [f"bulk-{profile}-{index:08}" for index in block]
            rows = [{**enrolled, "id": name, "correlation": name} for name in names]
            connection.execute(sa.insert(enrollments), rows)
            rows = [
                {
                    **issued,
                    "enrollment": name,
                    "serial": f"{serials[index]:040x}",
                    "profile": profile,
                    "sha256": None,
                    "state": "revoked",
                    "revoked_at": now - 30_000_000 + index * 29_000_000 // count,
                    "reason": reasons[index % len(reasons)],
                }
                for index, name in zip(block, names, strict=True)
            ]
            connection.execute(sa.insert(certificates), rows)
    return serials
