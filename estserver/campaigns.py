"""Renewal campaigns: many certificates renewed early, before a CA ends or a key type falls.

A campaign marks certificates. From then on ACME's and EST's renewal information ask their holders
to renew by the campaign's date, and owners with an address get a letter. Nothing is revoked here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from estserver import notices
from estserver.errors import BadInput, Conflict, NotFound
from estserver.model import CertificateRecord, Clock, Event, Origin
from estserver.store import Store, Transaction, campaigns
from estserver.store.campaigns import Campaign, Progress
from estserver.store.selection import Selection, select

_BATCH = 200
_SHORTEST_WINDOW = timedelta(minutes=1)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_URL = re.compile(r"https?://[!-~]{1,500}")


@dataclass(frozen=True, slots=True)
class RenewalWindow:
    """When a certificate should be renewed, and a URL that says why it is early, if it is."""

    start: datetime
    end: datetime
    explanation: str | None = None


class Campaigns:
    """Starts, shows and ends campaigns, and tells when a certificate should be renewed."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def start(
        self,
        campaign: Campaign,
        selection: Selection,
        *,
        mail: bool,
        origin: Origin,
        progress: Callable[[int], None] = lambda _marked: None,
    ) -> int:
        """Mark every certificate of a selection; return how many were not marked before.

        In batches: run again, the same campaign goes on where a crash ended it.
        Raises BadInput: it would end before it begins; a name that cannot stand in a Message-ID, an
        explanation that is no URL. Conflict: the name is another's.
        """
        if not _NAME.fullmatch(campaign.name):
            raise BadInput("a campaign is called by up to 64 letters a-z, digits, hyphens or dots")
        if campaign.explanation is not None and not _URL.fullmatch(campaign.explanation):
            raise BadInput("the explanation is not a URL: it begins with https:// or http://")
        if campaign.renew_by <= self._clock.now():
            raise BadInput("the day to renew by lies in the past")
        self._store.write(partial(_begin, campaign, origin))
        marked = 0
        last: str | None = None
        while found := self._store.read(
            partial(select, selection=selection, after=last, limit=_BATCH)
        ):
            last = found[-1].enrollment
            marked += self._store.write(partial(_mark, campaign, found, mail=mail))
            progress(marked)
        return marked

    def all(self) -> list[tuple[Campaign, Progress]]:
        """List all campaigns, newest first, with how far they have come."""
        return self._store.read(
            lambda tx: [(one, campaigns.progress(tx, one.name)) for one in campaigns.every(tx)]
        )

    def get(self, name: str) -> tuple[Campaign, Progress]:
        """Find a campaign and how far it has come. Raises NotFound."""
        campaign = self._store.read(lambda tx: campaigns.get(tx, name))
        if campaign is None:
            raise NotFound(f"there is no campaign {name}")
        return campaign, self._store.read(lambda tx: campaigns.progress(tx, name))

    def end(self, name: str, *, by: str, origin: Origin) -> None:
        """End a campaign: its certificates are renewed when they would have been.

        Raises NotFound, Conflict.
        """

        def unit(tx: Transaction) -> None:
            if not campaigns.end(tx, name):
                raise Conflict(f"campaign {name} has ended already")
            tx.audit(Event("campaign.ended", by, f"campaign {name}"), origin)

        self.get(name)
        self._store.write(unit)

    def window(self, record: CertificateRecord) -> RenewalWindow:
        """Say when a certificate should be renewed (RFC 9773 §4.2).

        In the last third of its life; at once where it is revoked for good (nothing renews while
        it is on hold); while a campaign runs that it is marked for, by the campaign's date.
        """
        if record.revoked_at is not None and not record.on_hold:
            return RenewalWindow(record.revoked_at - timedelta(hours=1), record.revoked_at)
        life = record.not_after - record.not_before
        start = record.not_after - life / 3
        end = start + max(life / 24, _SHORTEST_WINDOW)
        campaign = self._store.read(lambda tx: campaigns.running(tx, record.enrollment))
        if campaign is None or campaign.renew_by >= end:
            return RenewalWindow(start, end)
        start = min(campaign.begins_at, campaign.renew_by - _SHORTEST_WINDOW)
        return RenewalWindow(start, campaign.renew_by, campaign.explanation)


def _begin(campaign: Campaign, origin: Origin, tx: Transaction) -> None:
    if campaigns.add(tx, campaign):
        detail = {"renew_by": campaign.renew_by.isoformat(), "explanation": campaign.explanation}
        tx.audit(
            Event("campaign.started", campaign.created_by, f"campaign {campaign.name}", detail),
            origin,
        )
        return
    there = campaigns.get(tx, campaign.name)
    if there is None or there.ended_at is not None or there.renew_by != campaign.renew_by:
        raise Conflict(f"there is another campaign {campaign.name}: choose a new name")


def _mark(
    campaign: Campaign, found: list[CertificateRecord], tx: Transaction, *, mail: bool
) -> int:
    new = set(campaigns.join(tx, campaign.name, [record.enrollment for record in found]))
    if mail:
        for record in found:
            if record.enrollment in new:
                notices.tell_campaign(tx, record, campaign)
    return len(new)
