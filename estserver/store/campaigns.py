"""Renewal campaigns: rows in, frozen values out."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from estserver.model import CertificateState
from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.tables import campaign_members, campaigns, certificates


@dataclass(frozen=True, slots=True)
class Campaign:
    """An early renewal of many certificates: from `begins_at` on, done by `renew_by`."""

    name: str
    begins_at: datetime
    renew_by: datetime
    explanation: str | None
    """A URL that says why."""
    created_by: str
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a campaign has come, in certificates."""

    members: int
    renewed: int
    """Those with a valid successor."""
    gone: int
    """Those revoked or expired without one."""

    @property
    def waiting(self) -> int:
        """Those that are still to be renewed."""
        return self.members - self.renewed - self.gone


def _campaign(row: sa.Row[Any]) -> Campaign:
    return Campaign(
        name=row.name,
        begins_at=from_unix(row.begins_at),
        renew_by=from_unix(row.renew_by),
        explanation=row.explanation,
        created_by=row.created_by,
        ended_at=None if row.ended_at is None else from_unix(row.ended_at),
    )


def add(tx: Transaction, campaign: Campaign) -> bool:
    """Insert a campaign; False if one of that name is there already."""
    return tx.insert_new(
        campaigns,
        name=campaign.name,
        begins_at=to_unix(campaign.begins_at),
        renew_by=to_unix(campaign.renew_by),
        explanation=campaign.explanation,
        created_by=campaign.created_by,
    )


def get(tx: Transaction, name: str) -> Campaign | None:
    """Find a campaign."""
    query = sa.select(campaigns).where(campaigns.c.name == name)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else _campaign(row)


def every(tx: Transaction) -> list[Campaign]:
    """List all campaigns, newest first."""
    query = sa.select(campaigns).order_by(campaigns.c.begins_at.desc(), campaigns.c.name)
    return [_campaign(row) for row in tx.connection.execute(query)]


def end(tx: Transaction, name: str) -> bool:
    """End a campaign; False if it has ended or is not there."""
    changed = tx.change(
        sa.update(campaigns)
        .where(campaigns.c.name == name, campaigns.c.ended_at.is_(None))
        .values(ended_at=tx.at)
    )
    return changed == 1


def join(tx: Transaction, name: str, enrollments: Sequence[str]) -> list[str]:
    """Mark certificates; return those that were not marked before."""
    return [
        enrollment
        for enrollment in enrollments
        if tx.insert_new(campaign_members, campaign=name, enrollment=enrollment)
    ]


_RUNNING = (
    sa.select(campaigns)
    .join(campaign_members, campaign_members.c.campaign == campaigns.c.name)
    .where(
        campaign_members.c.enrollment == sa.bindparam("enrollment"), campaigns.c.ended_at.is_(None)
    )
    .order_by(campaigns.c.renew_by)
    .limit(1)
)


def running(tx: Transaction, enrollment: str) -> Campaign | None:
    """Return the most urgent running campaign that a certificate is marked for."""
    row = tx.connection.execute(_RUNNING, {"enrollment": enrollment}).one_or_none()
    return None if row is None else _campaign(row)


def progress(tx: Transaction, name: str) -> Progress:
    """Count how far a campaign has come."""
    newer = certificates.alias()
    successor = sa.exists().where(
        newer.c.renews == certificates.c.enrollment, newer.c.state == CertificateState.VALID.value
    )
    live = sa.and_(
        certificates.c.state == CertificateState.VALID.value, certificates.c.not_after >= tx.at
    )
    query = (
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(sa.case((successor, 1), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(sa.case((~successor & ~live, 1), else_=0)), 0),
        )
        .select_from(campaign_members)
        .join(certificates, certificates.c.enrollment == campaign_members.c.enrollment)
        .where(campaign_members.c.campaign == name)
    )
    members, renewed, gone = tx.connection.execute(query).one()
    return Progress(members, int(renewed), int(gone))
