"""Notices: what the owner of a certificate is told by mail, and when.

Each is a row of the outbox whose id is made of what it is about, so that no crash, no second node
and no second look puts it there twice. Written in the transaction of the change it tells of; the
reminders of the end, which nobody causes, by a duty of the server.
"""

from collections.abc import Mapping
from datetime import timedelta
from functools import partial

from estserver.model import CertificateRecord, Clock, RevocationReason
from estserver.profiles import Profile
from estserver.store import Store, Transaction, certificates, outbox, registrations
from estserver.store.campaigns import Campaign
from estserver.store.engine import to_unix

_LATE = timedelta(days=3)
"""A reminder that is later than this is left out: the next one tells the same."""


def tell_issued(tx: Transaction, record: CertificateRecord) -> None:
    """Tell the owner, if there is an address, of a new certificate, or of a renewal."""
    if record.renews is None:
        _tell(tx, record, f"issued-{record.enrollment}", "issued")
        return
    old = certificates.certificate(tx, record.renews)
    if old is not None:
        _tell(tx, record, f"renewed-{record.enrollment}", "renewed", old_serial=old.serial_hex)


def tell_revoked(tx: Transaction, record: CertificateRecord, reason: RevocationReason) -> None:
    """Tell the owner, if there is an address, that a certificate was revoked and why."""
    _tell(tx, record, f"revoked-{record.enrollment}", "revoked", reason=reason.value)


def tell_held(tx: Transaction, record: CertificateRecord) -> None:
    """Tell the owner, if there is an address, that a certificate does not work for now."""
    # Not by the certificate alone: it may be held and released again and again.
    _tell(tx, record, f"held-{tx.at}-{record.enrollment}", "held")


def tell_released(tx: Transaction, record: CertificateRecord) -> None:
    """Tell the owner, if there is an address, that a certificate works again."""
    _tell(tx, record, f"released-{tx.at}-{record.enrollment}", "released")


def tell_campaign(tx: Transaction, record: CertificateRecord, campaign: Campaign) -> None:
    """Ask the owner, if there is an address, to renew by the date of a campaign."""
    _tell(
        tx,
        record,
        f"renew-early-{campaign.name}-{record.enrollment}",
        "renew-early",
        renew_by=str(to_unix(campaign.renew_by)),
        explanation=campaign.explanation or "",
    )


class Reminders:
    """Tells owners of certificates that end soon, or have ended, without a renewal."""

    def __init__(self, store: Store, clock: Clock, profiles: Mapping[str, Profile]) -> None:
        self._store = store
        self._clock = clock
        self._profiles = profiles

    def post_due(self) -> int:
        """Put every reminder whose time has come into the outbox; return how many.

        A certificate gets the most urgent one only, however long nobody looked.
        Raises Unavailable.
        """
        posted = 0
        for profile in tuple(self._profiles.values()):
            settings = profile.settings
            earlier = timedelta(0)
            for before in sorted(settings.notices.before_expiry):
                if before <= settings.validity / 2:
                    begins = max(earlier, before - _LATE)
                    posted += self._post(profile.name, "expiring", begins, before)
                    earlier = before
            if settings.notices.expired:
                posted += self._post(profile.name, "expired", -_LATE, timedelta(0))
        return posted

    def _post(self, profile: str, template: str, after: timedelta, until: timedelta) -> int:
        """Remind of what ends between `after` and `until` from now."""
        now = self._clock.now()
        letter = template if template == "expired" else f"{template}-{until.days}"
        posted = 0
        query = partial(
            outbox.ending, letter=letter, profile=profile, after=now + after, until=now + until
        )
        while due := self._store.read(query):
            posted += self._store.write(partial(self._remind, letter, template, due))
        return posted

    def _remind(self, letter: str, template: str, due: list[str], tx: Transaction) -> int:
        posted = 0
        for enrollment in due:
            record = certificates.certificate(tx, enrollment)
            if record is not None:
                days = str(-(-(record.not_after - tx.now) // timedelta(days=1)))
                posted += _tell(tx, record, f"{letter}-{enrollment}", template, days=days)
        return posted


def _tell(
    tx: Transaction, record: CertificateRecord, identifier: str, template: str, **values: str
) -> bool:
    """Put a letter about a certificate into the outbox; False: nobody to tell, or told before."""
    invitation = registrations.get(tx, record.invitation or "")
    if invitation is None or invitation.email is None:
        return False
    return outbox.post(
        tx,
        identifier=identifier,
        template=template,
        invitation=invitation,
        recipient=invitation.email,
        values={
            "serial": record.serial_hex,
            "not_after": str(to_unix(record.not_after)),
            **values,
        },
    )
