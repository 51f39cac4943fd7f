"""What recovery looks up and puts back: rows that a restored database has forgotten.

Everything here may run again: what is there already stays as it is.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from cryptography import x509

from estserver.model import (
    CertificateState,
    EnrollmentState,
    InvitationState,
    RevocationReason,
    Via,
)
from estserver.names import display_name, encode_name, encode_names, format_general_name
from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.findable import remember, terms_of
from estserver.store.journalling import KEPT
from estserver.store.purging import PURGED
from estserver.store.tables import (
    blocked_keys,
    certificate_bytes,
    certificates,
    crl_floors,
    enrollments,
    invitations,
)

UNKNOWN = "unknown"
"""The profile of a certificate of which nothing but its revocation is known."""
_SPENDING = ("pending", "approved", "issuing", "issued")
"""States of enrollments that hold a unit of their invitation."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the database has of an enrollment; `certificate` None: no row, `signed`: its DER."""

    state: EnrollmentState
    certificate: CertificateState | None
    signed: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """A certificate or intent to put back. `der` None: it was never signed, and never will be.

    `facts` are the fields of the journal's intent. `certificate` is what they say, read: signed by
    its issuer where `der` is there, else only good to read.
    """

    enrollment: str
    facts: Mapping[str, Any]
    at: int
    tbs: bytes
    certificate: x509.Certificate
    spki: bytes
    spki_sha256: bytes
    der: bytes | None
    sha256: bytes | None


def known_enrollments(tx: Transaction, identifiers: Sequence[str]) -> dict[str, Known]:
    """Find enrollments with their certificates."""
    query = (
        sa.select(
            enrollments.c.id,
            enrollments.c.state,
            certificates.c.state.label("certificate"),
            certificates.c.sha256,
        )
        .outerjoin(certificates, certificates.c.enrollment == enrollments.c.id)
        .where(enrollments.c.id.in_(identifiers))
    )
    return {
        row.id: Known(
            EnrollmentState(row.state),
            None if row.certificate is None else CertificateState(row.certificate),
            row.sha256 is not None,
        )
        for row in tx.connection.execute(query)
    }


def known_invitations(tx: Transaction, numbers: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return state and PIN generation of the invitations that are there, by number."""
    query = sa.select(invitations.c.number, invitations.c.state, invitations.c.pin_generation)
    rows = tx.connection.execute(query.where(invitations.c.number.in_(numbers)))
    return {row.number: (row.state, row.pin_generation) for row in rows}


def unerased(tx: Transaction, numbers: Sequence[str]) -> set[str]:
    """Return those of the invitations that still name somebody."""
    query = sa.select(invitations.c.number).where(
        invitations.c.number.in_(numbers), invitations.c.name != PURGED
    )
    return set(tx.connection.execute(query).scalars())


def known_revocations(
    tx: Transaction, issuer: str, serials: Sequence[int]
) -> dict[int, tuple[str, tuple[datetime, RevocationReason] | None]]:
    """Return enrollment, and when and why it was revoked, of the serials that have a row."""
    query = sa.select(certificates).where(
        certificates.c.issuer == issuer,
        certificates.c.serial.in_([f"{serial:040x}" for serial in serials]),
    )
    return {
        int(row.serial, 16): (
            row.enrollment,
            None
            if row.revoked_at is None
            else (from_unix(row.revoked_at), RevocationReason(row.reason)),
        )
        for row in tx.connection.execute(query)
    }


def read_registration(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the journal keeps of an invitation. Raises KeyError, TypeError, ValueError."""
    kept: dict[str, Any] = {}
    for column in KEPT:
        # A journal of an older version may lack what came later.
        value = fields.get(column.name) if column.nullable else fields[column.name]
        kind = list if isinstance(column.type, sa.JSON) else column.type.python_type
        if not isinstance(value, kind) and not (value is None and column.nullable):
            raise TypeError(column.name)
        bits = 63 if isinstance(column.type, sa.BigInteger) else 31
        if isinstance(value, int) and not 0 <= value < 1 << bits:
            raise ValueError(column.name)
        kept[column.name] = value
    if not 0 <= kept["units_used"] <= kept["units"] or kept["state"] not in set(InvitationState):
        raise ValueError("units or state")
    return kept


def add_invitation(tx: Transaction, kept: Mapping[str, Any]) -> bool:
    """Put an invitation back as the journal has it; no PIN and no URL opens it any more."""
    added = tx.insert_new(
        invitations,
        **kept,
        pin_scheme="hmac",
        pin_hash=secrets.token_bytes(32),
        pin_salt=b"",
        pin_failures=0,
        pin_failed_at=0,
        pin_dead=True,
        url_generation=1,
    )
    if added:
        named = (kept["name"], kept.get("email"), kept.get("device_id"), kept["names"])
        remember(tx, kept["number"], terms_of(*named))
    return added


def nobodys_invitation(number: str, lost: Lost) -> dict[str, Any]:
    """Return what stands for an invitation of which only a certificate is known: cancelled."""
    return {
        "number": number,
        "profile": lost.facts["profile"],
        "name": "",
        "organization": "",
        "names": [],
        "language": "en",
        "doors": "",
        "units": 1,
        "units_used": 1,
        "state": "cancelled",
        "approval": False,
        "created_at": lost.at,
        "created_by": "recovery",
        "expires_at": lost.at,
        "pin_generation": 1,
        "renewal_pin": False,
        "replaced": False,
    }


def close_invitation(tx: Transaction, number: str) -> None:
    """Cancel an invitation that was cancelled."""
    tx.change(
        sa.update(invitations).where(invitations.c.number == number).values(state="cancelled")
    )


def kill_pin(tx: Transaction, number: str, generation: int) -> None:
    """End a PIN that was replaced: only a newer one than `generation` opens the invitation."""
    tx.change(
        sa.update(invitations)
        .where(invitations.c.number == number)
        .values(pin_dead=True, pin_generation=generation, renewal_pin=False)
    )


def count_units(tx: Transaction, number: str) -> bool:
    """Let an invitation have spent what its enrollments took; return whether that was more."""
    taken = (
        sa.select(sa.func.count())
        .select_from(enrollments)
        .where(
            enrollments.c.invitation == number,
            enrollments.c.renews.is_(None),
            enrollments.c.state.in_(_SPENDING),
        )
    )
    count: int = tx.connection.execute(taken).scalar_one()
    spent = sa.case((invitations.c.units < count, invitations.c.units), else_=count)
    changed = tx.change(
        sa.update(invitations)
        .where(invitations.c.number == number, invitations.c.units_used < spent)
        .values(units_used=spent)
    )
    return changed == 1


def spend_rights(tx: Transaction, number: str, authority: str) -> None:
    """Use up the replacement or the renewal PIN that a recovered enrollment may have drawn on."""
    values = {"replaced": True} if authority.startswith("invitation:") else {"renewal_pin": False}
    tx.change(sa.update(invitations).where(invitations.c.number == number).values(**values))


def put_back(tx: Transaction, lost: Lost) -> None:
    """Insert or complete the rows of one enrollment.

    Raises KeyError, ValueError: the facts are not those of an intent.
    """
    facts, certificate = lost.facts, lost.certificate
    state = EnrollmentState.ABANDONED if lost.der is None else EnrollmentState.ISSUED
    names = _names(certificate)
    before = _forget_unknown(tx, facts["issuer"], certificate.serial_number)
    tx.insert_new(
        enrollments,
        id=lost.enrollment,
        correlation=f"recovered:{lost.enrollment}",
        authority_key=facts["authority"],
        spki_sha256=lost.spki_sha256,
        invitation=facts["invitation"],
        profile=facts["profile"],
        state=state.value,
        via=Via(facts["via"]).value,
        applicant=facts["applicant"],
        subject=encode_name(certificate.subject),
        names=encode_names(names),
        spki=lost.spki,
        renews=facts["renews"],
        proof=facts["proof"],
        created_at=lost.at,
    )
    tx.change(
        sa.update(enrollments).where(enrollments.c.id == lost.enrollment).values(state=state.value)
    )
    tx.insert_new(
        certificates,
        enrollment=lost.enrollment,
        issuer=facts["issuer"],
        serial=f"{certificate.serial_number:040x}",
        subject=display_name(certificate.subject),
        names=[format_general_name(name) for name in names],
        profile=facts["profile"],
        invitation=facts["invitation"],
        via=Via(facts["via"]).value,
        state=state.value if lost.der is None else CertificateState.VALID.value,
        not_before=to_unix(certificate.not_valid_before_utc),
        not_after=to_unix(certificate.not_valid_after_utc),
        sha256=lost.sha256,
        spki_sha256=lost.spki_sha256,
        renews=facts["renews"],
        created_at=lost.at,
    )
    tx.insert_new(certificate_bytes, enrollment=lost.enrollment, tbs=lost.tbs, der=lost.der)
    if lost.der is not None:
        _complete(tx, lost)
    if before is not None:
        revoke_again(tx, lost.enrollment, *before)


def _forget_unknown(
    tx: Transaction, issuer: str, serial: int
) -> tuple[datetime, RevocationReason] | None:
    """Make room where an earlier recovery knew only that a serial was revoked; return that."""
    row = tx.connection.execute(
        sa.select(certificates).where(
            certificates.c.issuer == issuer,
            certificates.c.serial == f"{serial:040x}",
            certificates.c.spki_sha256 == b"",
        )
    ).one_or_none()
    if row is None:
        return None
    tx.change(sa.delete(certificates).where(certificates.c.enrollment == row.enrollment))
    tx.change(sa.delete(enrollments).where(enrollments.c.id == row.enrollment))
    return from_unix(row.revoked_at), RevocationReason(row.reason)


def _complete(tx: Transaction, lost: Lost) -> None:
    """Put the signed certificate into rows that a backup had before it was signed."""
    tx.change(
        sa.update(certificates)
        .where(certificates.c.enrollment == lost.enrollment, certificates.c.sha256.is_(None))
        .values(
            sha256=lost.sha256,
            state=sa.case(
                (certificates.c.state == CertificateState.REVOKED.value, certificates.c.state),
                else_=CertificateState.VALID.value,
            ),
        )
    )
    tx.change(
        sa.update(certificate_bytes)
        .where(certificate_bytes.c.enrollment == lost.enrollment, certificate_bytes.c.der.is_(None))
        .values(der=lost.der)
    )


def _names(certificate: x509.Certificate) -> tuple[x509.GeneralName, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(found.value)


def revoke_again(
    tx: Transaction, enrollment: str, revoked_at: datetime, reason: RevocationReason
) -> bool:
    """Revoke a certificate as it was revoked before; False if it is. Blocks compromised keys.

    One that is on hold is revoked by this too: the caller knows that it was, or held again.
    """
    changed = tx.change(
        sa.update(certificates)
        .where(
            certificates.c.enrollment == enrollment,
            sa.or_(
                certificates.c.state != CertificateState.REVOKED.value,
                certificates.c.reason == RevocationReason.CERTIFICATE_HOLD.value,
            ),
        )
        .values(
            state=CertificateState.REVOKED.value,
            revoked_at=to_unix(revoked_at),
            reason=reason.value,
            comment="recovered",
        )
    )
    if changed and reason is RevocationReason.KEY_COMPROMISE:
        query = sa.select(certificates.c.spki_sha256)
        key = tx.connection.execute(query.where(certificates.c.enrollment == enrollment))
        if digest := key.scalar_one():
            # Nothing is known of the key of a serial that only a CRL tells of.
            tx.insert_new(blocked_keys, spki_sha256=digest, reason=reason.value, blocked_at=tx.at)
    return changed == 1


def add_unknown(
    tx: Transaction, enrollment: str, issuer: str, serial: int, not_after: datetime
) -> None:
    """Make a row for a serial of which nothing is known, so that it can stay revoked."""
    nobody = x509.Name([])
    tx.insert_new(
        enrollments,
        id=enrollment,
        correlation=f"recovered:{enrollment}",
        authority_key=f"recovered:{issuer}:{serial:x}",
        spki_sha256=b"",
        profile=UNKNOWN,
        state=EnrollmentState.ABANDONED.value,
        via=Via.INTERNAL.value,
        applicant="recovery",
        subject=encode_name(nobody),
        names=encode_names(()),
        spki=b"",
        proof="none",
        created_at=tx.at,
    )
    tx.insert_new(
        certificates,
        enrollment=enrollment,
        issuer=issuer,
        serial=f"{serial:040x}",
        subject="",
        names=[],
        profile=UNKNOWN,
        via=Via.INTERNAL.value,
        state=CertificateState.ABANDONED.value,
        not_before=tx.at,
        not_after=to_unix(not_after),
        spki_sha256=b"",
        created_at=tx.at,
    )


def raise_crl_number(tx: Transaction, issuer: str, number: int) -> None:
    """Let the next CRL of `issuer` have a number above `number`."""
    if not tx.insert_new(crl_floors, issuer=issuer, number=number):
        tx.change(
            sa.update(crl_floors)
            .where(crl_floors.c.issuer == issuer, crl_floors.c.number < number)
            .values(number=number)
        )
