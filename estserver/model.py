"""The nouns of enrollment: frozen values and enumerations. No I/O, no policy.

Times are timezone-aware UTC in whole seconds. Certificates and keys are DER unless a name
says PEM. SHA-256 digests are 32 raw bytes unless a name says hex.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class Clock(Protocol):
    """The only source of the present: `now` is UTC, aware, whole seconds."""

    def now(self) -> datetime:
        """Return the present moment."""
        ...


class Secret:
    """A string that never shows itself: `repr` and `str` are `***`; `reveal()` is explicit."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself; the caller answers for where it goes."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__


class Door(StrEnum):
    """The ways an invitation can be redeemed."""

    WEB = "web"
    EST = "est"
    ACME = "acme"


class Via(StrEnum):
    """How an enrollment came in; `internal` is the server's own TLS and OCSP certificates."""

    WEB = "web"
    EST = "est"
    ACME = "acme"
    RENEWAL = "renewal"
    INTERNAL = "internal"


class Language(StrEnum):
    """Languages of pages and mail."""

    JA = "ja"
    EN = "en"


class KeyType(StrEnum):
    """Key types by the names that configuration, CLI and pages use."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    EC_P521 = "ec-p521"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    ED25519 = "ed25519"

    @property
    def rsa_bits(self) -> int | None:
        """Modulus size in bits, or None for the other families."""
        return int(self.value[4:]) if self.value.startswith("rsa-") else None


class InvitationState(StrEnum):
    """`held` until released; `open` until cancelled. Expiry is derived from time, not stored."""

    HELD = "held"
    OPEN = "open"
    CANCELLED = "cancelled"


class EnrollmentState(StrEnum):
    """The life of one enrollment.

    pending -> approved | rejected; approved -> issuing; issuing -> issued | abandoned.
    An enrollment that needs no approval starts as `issuing`.
    """

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    ISSUING = "issuing"
    ISSUED = "issued"
    ABANDONED = "abandoned"


class CertificateState(StrEnum):
    """`expired` is derived from time and never stored.

    What is on hold is `revoked`, as CRL and OCSP say it: whoever asks for `valid` is safe, and
    only those who can end a hold look at the reason.
    """

    ISSUING = "issuing"
    VALID = "valid"
    REVOKED = "revoked"
    EXPIRED = "expired"
    ABANDONED = "abandoned"


class RevocationReason(StrEnum):
    """Reasons that revocation takes: RFC 5280 §5.3.1 by its own names.

    All are final but certificateHold, which only an officer gives, where the instance has holds
    at all (INC-30). removeFromCRL is no reason to revoke: delta CRLs alone say it.
    """

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    CA_COMPROMISE = "cACompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    CERTIFICATE_HOLD = "certificateHold"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"


class RenewalAuth(StrEnum):
    """What a renewal must present (SEED-10)."""

    CERTIFICATE = "certificate"
    CERTIFICATE_AND_PIN = "certificate+pin"
    PIN = "pin"


@dataclass(frozen=True, slots=True)
class Grant:
    """What may stand in the certificate.

    `exact`: the CSR must ask for all of it and nothing else (RFC 7030 §4.2.2); otherwise what the
    CSR leaves out is filled in from here. `ordered`: the CSR must ask for exactly these names, in
    the subjectAltName or as CN, and the rest of its subject means nothing (RFC 8555 §7.4).
    `not_before` and `not_after`, UTC and whole seconds: what was ordered; None leaves it to the
    profile.
    """

    subject: x509.Name
    names: frozenset[x509.GeneralName]
    exact: bool = False
    ordered: bool = False
    not_before: datetime | None = None
    not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asks, as the audit log names it: `invitation 4711`, `certificate 0a1b…`, `server`."""

    kind: str
    identifier: str

    def __str__(self) -> str:
        return f"{self.kind} {self.identifier}"


@dataclass(frozen=True, slots=True)
class InvitationUnit:
    """One new enrollment out of the units an invitation grants."""

    number: str

    @property
    def key(self) -> str:
        """Identifies the authority; one key pair gets one answer under it."""
        return f"invitation:{self.number}"


@dataclass(frozen=True, slots=True)
class Replacement:
    """The one self-service replacement of an invitation whose key was lost."""

    number: str
    replaces: str

    @property
    def key(self) -> str:
        """The invitation's own key: the replacing key pair is one of its answers."""
        return f"invitation:{self.number}"


@dataclass(frozen=True, slots=True)
class Renewal:
    """The right to renew one exact certificate; `renews` is its enrollment id.

    `spends_pin`: the invitation's renewal PIN was shown and is used up by the issuance.
    `shown`: the certificate itself was shown, and must still stand when the intent is committed.
    """

    renews: str
    invitation: str | None
    spends_pin: bool = False
    shown: bool = True

    @property
    def key(self) -> str:
        """Identifies the authority by the certificate being renewed."""
        return f"renewal:{self.renews}"


@dataclass(frozen=True, slots=True)
class ACMEOrder:
    """One ACME order: it gives one certificate, whatever keys it is finalized with.

    `renews` is the enrollment of the account's certificate with the same names, live or just
    expired: then the order takes no unit of its invitation.
    """

    order: str
    invitation: str | None
    renews: str | None = None

    @property
    def key(self) -> str:
        """Identifies the authority by the order."""
        return f"order:{self.order}"

    @staticmethod
    def of(key: str) -> str | None:
        """Return the order that a key identifies; None: it is another authority's."""
        return key.removeprefix("order:") if key.startswith("order:") else None

    @property
    def spends_unit(self) -> bool:
        """Whether a unit of the invitation is used up."""
        return self.invitation is not None and self.renews is None


@dataclass(frozen=True, slots=True)
class Internal:
    """The server's own needs: TLS and OCSP responder certificates; `purpose` names which."""

    purpose: str

    @property
    def key(self) -> str:
        """Identifies the authority by its purpose."""
        return f"internal:{self.purpose}"


Authority = InvitationUnit | Replacement | Renewal | ACMEOrder | Internal


@dataclass(frozen=True, slots=True)
class Entitlement:
    """The verdict of authentication: what may be issued to whom, and what that draws on."""

    applicant: Applicant
    profile: str
    grant: Grant
    approved: bool
    authority: Authority


@dataclass(frozen=True, slots=True)
class Plan:
    """One certificate as it shall be, complete but for its serial. Made by `Profile.plan` only.

    `names` keeps the order in which they will stand in the subjectAltName; `spki` is `public_key`
    as the certificate will hold it, DER.
    `extensions` are all but SKI, AKI and those that hold the issuer's URLs.
    """

    profile: str
    issuer: str
    subject: x509.Name
    names: tuple[x509.GeneralName, ...]
    public_key: PublicKey
    spki: bytes
    not_before: datetime
    not_after: datetime
    extensions: tuple[x509.Extension[x509.ExtensionType], ...]
    publish_status: bool = True
    """False leaves out CDP and the OCSP URL: an OCSP responder vouches for itself."""
    own_crl: bool = False
    """Whether the CDP is the CRL of the profile alone."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A linted to-be-signed certificate: `tbs` is exactly what will be signed, once."""

    issuer: str
    serial: int
    tbs: bytes
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Invitation:
    """A registration: who or what may enroll, through which doors, until when."""

    number: str
    profile: str
    name: str
    email: str | None
    device_id: str | None
    names: tuple[x509.GeneralName, ...]
    language: Language
    doors: frozenset[Door]
    units: int
    units_used: int
    state: InvitationState
    approval: bool
    created_at: datetime
    expires_at: datetime
    renew_until: datetime | None
    pin_generation: int
    pin_failures: int
    pin_dead: bool
    """True once the PIN was guessed at too often behind the URL; `new-pin` revives."""
    renewal_pin: bool
    """True while a PIN that was issued after the last unit waits to renew once."""
    replaced: bool
    """True once the owner has used the one self-service replacement."""
    url_generation: int
    organization: str = ""

    @property
    def label(self) -> str:
        """What a list calls the applicant: name, device id, first host or address, or number."""
        hosts = (str(n.value) for n in self.names if isinstance(n, (x509.DNSName, x509.IPAddress)))
        return self.name or self.device_id or next(hosts, self.number)


@dataclass(frozen=True, slots=True)
class Enrollment:
    """One request for one certificate; `id` sorts by time."""

    id: str
    authority_key: str
    spki_sha256: bytes
    invitation: str | None
    profile: str
    state: EnrollmentState
    via: Via
    applicant: str
    subject: x509.Name
    names: tuple[x509.GeneralName, ...]
    spki: bytes
    renews: str | None
    proof: str
    created_at: datetime
    decided_by: str | None
    reason: str | None
    taken_at: datetime | None
    """When the owner confirmed to hold certificate and key (SEED-16)."""


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """The row of one certificate; `enrollment` is its identity, `serial_hex` lower case.

    `state` never is `expired` here; `state_at` derives that. `der` is None until signed.
    """

    enrollment: str
    issuer: str
    serial_hex: str
    subject: str
    names: tuple[str, ...]
    profile: str
    invitation: str | None
    via: Via
    state: CertificateState
    not_before: datetime
    not_after: datetime
    sha256: bytes | None
    spki_sha256: bytes
    renews: str | None
    created_at: datetime
    revoked_at: datetime | None
    reason: RevocationReason | None

    @property
    def on_hold(self) -> bool:
        """Tell whether its revocation is one that an officer can take back."""
        return self.reason is RevocationReason.CERTIFICATE_HOLD

    def state_at(self, now: datetime) -> CertificateState:
        """Return the state at `now`; a valid certificate past notAfter is expired."""
        if self.state is CertificateState.VALID and now > self.not_after:
            return CertificateState.EXPIRED
        return self.state


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from: what audit rows and the request's log line share."""

    request_id: str
    source: str
    """Peer address, or `cli`, `server`."""


@dataclass(frozen=True, slots=True)
class Event:
    """One audit row's content; `detail` holds no secret and is JSON."""

    name: str
    actor: str
    object: str
    detail: Mapping[str, str | int | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Issued:
    """The answer to an enrollment: the stored DER. `repeated` if it had been given before."""

    enrollment: str
    der: bytes
    repeated: bool


@dataclass(frozen=True, slots=True)
class Pending:
    """The enrollment waits for an officer; ask again after `retry_after`."""

    enrollment: str
    retry_after: timedelta
