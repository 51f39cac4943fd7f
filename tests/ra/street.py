"""Questions to a core about what it has granted, noted and signed."""

from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa

from estserver.authentication import ConfirmedPIN
from estserver.csr import CSR
from estserver.invitations import Handover
from estserver.model import CertificateState, Issued, Pending, RevocationReason
from estserver.store import certificates
from estserver.store.tables import audit_events
from estserver.store.tables import certificates as certificate_rows
from tests.parts import ORIGIN, Parts

MakeParts = Callable[..., Parts]
TICK = timedelta(seconds=1)


def used(parts: Parts, handover: Handover) -> int:
    return parts.invitations.get(handover.invitation.number).units_used


def events(parts: Parts) -> list[str]:
    query = sa.select(audit_events.c.event).order_by(audit_events.c.id)
    return list(parts.store.read(lambda tx: tx.connection.execute(query).scalars().all()))


def count(parts: Parts) -> int:
    query = sa.select(sa.func.count()).select_from(certificate_rows)
    number: int = parts.store.read(lambda tx: tx.connection.execute(query).scalar_one())
    return number


def confirmed(parts: Parts, handover: Handover) -> ConfirmedPIN:
    invitation = parts.invitations.get(handover.invitation.number)
    return ConfirmedPIN(invitation.number, invitation.pin_generation)


def revoke(
    parts: Parts, issued: Issued, reason: RevocationReason = RevocationReason.UNSPECIFIED
) -> None:
    parts.ra.revoke(issued.enrollment, reason=reason, comment=None, by="test", origin=ORIGIN)


def state(parts: Parts, identifier: str) -> CertificateState:
    record = parts.store.read(lambda tx: certificates.certificate(tx, identifier))
    assert record is not None
    return record.state


def pending(parts: Parts, handover: Handover, csr: CSR) -> str:
    answer = parts.ask(parts.entitle(handover), csr)
    assert isinstance(answer, Pending)
    assert answer.retry_after == timedelta(seconds=60)
    return answer.enrollment


def new_pin(parts: Parts, handover: Handover) -> Handover:
    number = handover.invitation.number
    return parts.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN)
