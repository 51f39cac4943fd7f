"""Where a registration stands, and what a certificate says, as its pages need to know it.

Blocking reads of the core; nothing here changes anything. The step of the wizard follows from the
records alone, so that going back, reloading, a second tab and a later day all find the same page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from estserver.errors import BadCredentials, Conflict, NotReleased, RegistrationClosed
from estserver.model import (
    CertificateRecord,
    CertificateState,
    Enrollment,
    EnrollmentState,
    Invitation,
    InvitationState,
)
from estserver.names import display_name, format_general_name
from estserver.protocols import Services
from estserver.web.sessions import WebSession

_WAITING = (EnrollmentState.PENDING, EnrollmentState.APPROVED, EnrollmentState.ISSUING)


class Step(StrEnum):
    """What comes next for the owner of a confirmed PIN."""

    ISSUE = "issue"
    WAIT = "wait"
    TAKE = "take"


@dataclass(frozen=True, slots=True)
class Taken:
    """A certificate that can be taken: its enrollment, its record and the DER."""

    enrollment: Enrollment
    record: CertificateRecord
    der: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A certificate that is of no use: `how` is revoked, expired or on-hold."""

    how: str
    serial: str


@dataclass(frozen=True, slots=True)
class Standing:
    """One registration at one moment.

    `certificates`: the valid ones, newest first. `waiting`: what an officer must decide or what is
    being signed. `ended`: the newest certificate where it is revoked, on hold or expired.
    `rejected`: the reason an officer gave, where that was the last thing that happened.
    `attempts`: how many enrollments there were: every new one gets a new key. `renews`: what a
    renewal PIN would renew.
    """

    invitation: Invitation
    step: Step
    certificates: tuple[Taken, ...]
    waiting: Enrollment | None
    ended: Ended | None
    rejected: str | None
    attempts: int
    renews: Taken | None
    units_left: int
    replaceable: bool


def standing(services: Services, session: WebSession) -> Standing:
    """Say where the registration of a session stands.

    Raises BadCredentials (a newer PIN; or expired with nothing left to take), RegistrationClosed,
    NotReleased, NotFound.
    """
    invitation = services.authenticator.invitation(session.credential)
    now = services.clock.now()
    rows = services.ra.of_invitation(invitation.number)
    certificates = tuple(
        Taken(enrollment, *found)
        for enrollment, record in rows
        if record is not None and record.state_at(now) is CertificateState.VALID
        if (found := services.ra.certificate_of(enrollment.id)) is not None
    )
    waiting = next((e for e, _ in rows if e.state in _WAITING), None)
    left_in_time = now < invitation.expires_at
    left = invitation.units - invitation.units_used if left_in_time else 0
    renews = _renewed_by_pin(services, rows) if invitation.renewal_pin and left_in_time else None
    if waiting is not None:
        step = Step.WAIT
    elif certificates and renews is None:
        step = Step.TAKE
    else:
        step = Step.ISSUE
    newest = rows[0] if rows else None
    ended = None
    if newest is not None and newest[1] is not None:
        state = newest[1].state_at(now)
        if state in (CertificateState.REVOKED, CertificateState.EXPIRED):
            how = "on-hold" if newest[1].on_hold else state.value
            ended = Ended(how, serial_as_firefox(int(newest[1].serial_hex, 16)))
    if step is Step.ISSUE and now >= invitation.expires_at and ended is None:
        raise BadCredentials(
            "the PIN has expired: ask the administrator for a new one", reason="expired"
        )
    rejected = None
    if newest is not None and newest[0].state is EnrollmentState.REJECTED:
        rejected = newest[0].reason or ""
    return Standing(
        invitation=invitation,
        step=step,
        certificates=certificates,
        waiting=waiting,
        ended=ended,
        rejected=rejected,
        attempts=len(rows),
        renews=renews,
        units_left=left,
        replaceable=bool(certificates) and _replaceable(services, session),
    )


def _renewed_by_pin(
    services: Services, rows: Sequence[tuple[Enrollment, CertificateRecord | None]]
) -> Taken | None:
    """Return what a renewal PIN renews, by the authenticator's own rule: also an expired one."""
    for enrollment, record in rows:
        if record is None or record.state not in (CertificateState.VALID, CertificateState.REVOKED):
            continue
        if record.on_hold:
            return None
        if (found := services.ra.certificate_of(enrollment.id)) is not None:
            return Taken(enrollment, *found)
    return None


def require_redeemable(services: Services, invitation: Invitation) -> None:
    """Let only those be asked for a PIN whom a PIN can help. It tells nothing of the PIN.

    Raises RegistrationClosed (cancelled), NotReleased, BadCredentials (dead, or expired and nothing
    left to take).
    """
    if invitation.state is InvitationState.CANCELLED:
        raise RegistrationClosed(
            "this registration was cancelled: ask the administrator", values={"reason": "cancelled"}
        )
    if invitation.state is InvitationState.HELD:
        raise NotReleased(
            "the administrator has not released this registration yet: try again later"
        )
    if invitation.pin_dead:
        raise BadCredentials(
            "this PIN was tried too often and is dead: ask the administrator for a new one",
            reason="dead",
        )
    now = services.clock.now()
    if now < invitation.expires_at:
        return
    for enrollment, record in services.ra.of_invitation(invitation.number):
        if enrollment.state in _WAITING:
            return
        if record is None:
            continue
        # What is on hold may be there to be taken tomorrow, and the owner wants to know.
        if record.on_hold or record.state_at(now) is CertificateState.VALID:
            return
    raise BadCredentials(
        "the PIN has expired: ask the administrator for a new one", reason="expired"
    )


def _replaceable(services: Services, session: WebSession) -> bool:
    try:
        services.authenticator.replacement(session.credential)
    except Conflict:
        return False
    return True


def renewals(services: Services, renewed: CertificateRecord) -> tuple[Taken, ...]:
    """Return the valid certificates that renew exactly this one, newest first."""
    now = services.clock.now()
    rows = services.ra.of_invitation(renewed.invitation) if renewed.invitation else []
    return tuple(
        Taken(enrollment, *found)
        for enrollment, record in rows
        if enrollment.renews == renewed.enrollment and record is not None
        if record.state_at(now) is CertificateState.VALID
        if (found := services.ra.certificate_of(enrollment.id)) is not None
    )


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What people compare: every field as Firefox's Certificate Manager shows it."""

    common_name: str
    subject: str
    names: tuple[str, ...]
    serial: str
    sha256: str
    issuer_organization: str
    issuer_common_name: str
    not_before: datetime
    not_after: datetime
    der: bytes

    @property
    def file_stem(self) -> str:
        """File name without its ending: `<cn>_<yyyy-mm>`, fit for every file system."""
        kept = "".join("_" if c in '\\/:*?"<>|%' or not c.isprintable() else c for c in self.label)
        return f"{kept.strip('. ') or 'certificate'}_{self.not_before:%Y-%m}"

    @property
    def label(self) -> str:
        """The name a list shows."""
        return self.common_name or (self.names[0] if self.names else "certificate")


def facts(der: bytes) -> CertificateFacts:
    """Read what a page shows of a certificate; `der` passed our own wall before or is our own."""
    certificate = x509.load_der_x509_certificate(der)
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(format_general_name(name) for name in san)
    except x509.ExtensionNotFound:
        names = ()
    return CertificateFacts(
        common_name=_last(certificate.subject, NameOID.COMMON_NAME),
        subject=display_name(certificate.subject),
        names=names,
        serial=serial_as_firefox(certificate.serial_number),
        sha256=colon_hex(certificate.fingerprint(hashes.SHA256())),
        issuer_organization=_last(certificate.issuer, NameOID.ORGANIZATION_NAME),
        issuer_common_name=_last(certificate.issuer, NameOID.COMMON_NAME),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        der=der,
    )


def serial_as_firefox(serial: int) -> str:
    """Return a serial as Firefox's Certificate Manager prints it: the DER content octets."""
    return colon_hex(serial.to_bytes(serial.bit_length() // 8 + 1, "big"))


def colon_hex(octets: bytes) -> str:
    """Return `72:1D:B3:80` for four octets."""
    return octets.hex(":").upper()


def _last(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(oid)
    return str(found[-1].value) if found else ""
