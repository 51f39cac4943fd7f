"""What ACME orders led to, looked up for many orders at once."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from estserver.model import CertificateState, Enrollment, EnrollmentState, RevocationReason, Via
from estserver.store import prepared
from estserver.store.certificates import enrollment_of
from estserver.store.engine import Transaction, to_unix
from estserver.store.tables import ORDERED, certificate_bytes, certificates, enrollments

_UNDER = prepared.Lookup(
    sa.select(enrollments).where(ORDERED).order_by(enrollments.c.id.desc()),
    enrollments.c.authority_key,
)
_STATES = prepared.Lookup(
    sa.select(
        enrollments.c.authority_key, enrollments.c.id, enrollments.c.state, enrollments.c.reason
    ).where(ORDERED),
    enrollments.c.authority_key,
)
_ON_HOLD = sa.func.coalesce(certificates.c.reason, "") == RevocationReason.CERTIFICATE_HOLD.value
_SHOWN = sa.cast(certificates.c.names, sa.Text)
_PLACE = certificates.c.enrollment + ":" + certificates.c.serial
_NEWEST = (
    sa.select(
        enrollments.c.invitation,
        _SHOWN.label("shown"),
        sa.func.max(_PLACE).label("newest"),
        sa.func.max(sa.case((_ON_HOLD, _PLACE))).label("held"),
    )
    .join(enrollments, enrollments.c.id == certificates.c.enrollment)
    .where(
        enrollments.c.invitation.in_(sa.bindparam("numbers", expanding=True)),
        certificates.c.via == Via.ACME.value,
        # In a way that tempts no planner to walk along all that is valid.
        sa.or_(certificates.c.state + "" == CertificateState.VALID.value, _ON_HOLD),
        certificates.c.not_after >= sa.bindparam("since"),
        _SHOWN.in_(sa.bindparam("texts", expanding=True)),
    )
    .group_by(enrollments.c.invitation, _SHOWN)
)


@dataclass(frozen=True, slots=True)
class Before:
    """The certificate that an order would renew, or that keeps it waiting, being on hold."""

    enrollment: str
    serial_hex: str
    on_hold: bool


def enrollments_under(
    tx: Transaction, authority_keys: Collection[str]
) -> dict[str, list[Enrollment]]:
    """Return what each authority led to, whatever the key, newest first."""
    found: dict[str, list[Enrollment]] = {}
    for row in _UNDER.run(tx.connection, set(authority_keys)):
        found.setdefault(row.authority_key, []).append(enrollment_of(row))
    return found


def enrollment_states(
    tx: Transaction, authority_keys: Collection[str]
) -> dict[str, tuple[str, EnrollmentState, str | None]]:
    """Return id, state and reason of the enrollments under authorities that give one each."""
    return {
        row.authority_key: (row.id, EnrollmentState(row.state), row.reason)
        for row in _STATES.run(tx.connection, set(authority_keys))
    }


def newest_certificates(
    tx: Transaction, orders: Sequence[tuple[str, Collection[str]]], *, since: datetime
) -> list[Before | None]:
    """Find what orders would renew: of an invitation, exactly these names, as texts in any order.

    That is the newest certificate that came over ACME, is valid, and does not end before `since`;
    or one like it that is on hold, however many others are valid.
    """
    # A plan sorts its names, so equal names make equal texts.
    asked = [(number, json.dumps(sorted(names))) for number, names in orders]
    parameters = {
        "numbers": list({number for number, _ in asked}),
        "texts": list({text for _, text in asked}),
        "since": to_unix(since),
    }
    rows = tx.connection.execute(_NEWEST, parameters)
    found = {(row.invitation, row.shown): _before(row) for row in rows}
    return [found.get(one) for one in asked]


def _before(row: sa.Row[Any]) -> Before:
    enrollment, _, serial = (row.held or row.newest).partition(":")
    return Before(enrollment, f"{int(serial, 16):x}", row.held is not None)


_STANDING = prepared.Lookup(
    sa.select(certificates.c.enrollment)
    .where(certificates.c.state + "" == CertificateState.VALID.value)
    # In one order for all, or two transactions would wait for each other.
    .order_by(certificates.c.enrollment)
    .with_for_update(read=True),
    certificates.c.enrollment,
)


def standing_among(tx: Transaction, identifiers: Collection[str]) -> set[str]:
    """Return those of some enrollments whose certificates are valid; they stay so to the commit."""
    return {row.enrollment for row in _STANDING.run(tx.connection, sorted(set(identifiers)))}


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate to be handed out, DER, and the name of its issuer."""

    enrollment: str
    issuer: str
    der: bytes


_ISSUED = prepared.Lookup(
    sa.select(certificates.c.enrollment, certificates.c.issuer, certificate_bytes.c.der)
    .join(certificate_bytes, certificate_bytes.c.enrollment == certificates.c.enrollment)
    .where(certificate_bytes.c.der.is_not(None)),
    certificates.c.enrollment,
)


def issued(tx: Transaction, identifiers: Collection[str]) -> dict[str, Issued]:
    """Find the certificates of enrollments."""
    return {
        row.enrollment: Issued(row.enrollment, row.issuer, bytes(row.der))
        for row in _ISSUED.run(tx.connection, set(identifiers))
    }
