"""StatusWatch: publishes what is due, and says so in time when nobody manages to.

A CRL that lapses stops every relying party that checks it; a responder certificate that lapses,
all that ask. Both are renewed at half of their life, so a quarter left means that renewal has
failed for long, and that there is as long again to do something (INC-28).
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta

import structlog

from estserver.errors import Error, Unavailable
from estserver.model import Clock
from estserver.status.authority import StatusAuthority
from estserver.status.shelf import CRLAge

_REPEAT = timedelta(hours=1)
_PUBLISHING = "CRLs"
log = structlog.get_logger("estserver.status")


class StatusWatch:
    """What the server does again and again about certificate status. Both duties may block."""

    def __init__(self, status: StatusAuthority, clock: Clock) -> None:
        self._status = status
        self._clock = clock
        self._said: dict[str, datetime] = {}

    def publish(self) -> None:
        """Publish what is due; why that fails is logged at once and every hour.

        Raises Unavailable.
        """
        failed: dict[str, str] = {}
        try:
            self._status.publish_due()
        except Unavailable:
            raise
        except Error as error:
            failed[_PUBLISHING] = error.detail
        self._tell(failed, {_PUBLISHING})

    def look(self) -> None:
        """Log what is about to lapse, at once and every hour."""
        alarms = dict(self.alarms())
        self._tell(alarms, self._said.keys() - {_PUBLISHING} | alarms.keys())

    def alarms(self) -> Iterator[tuple[str, str]]:
        """Yield what must not wait until tomorrow: what it is about, and a sentence.

        Without the database, by what was last seen of it.
        """
        try:
            ages = self._status.ages()
        except Unavailable:
            ages = [age for age in self._status.remembered_ages() if age.age is not None]
        for age in ages:
            if age.red:
                yield f"CRL {age.name}", crl_alarm(age)
        for life in self._status.responders():
            if life.red and life.left is not None:
                sentence = (
                    f"the OCSP responder certificate of {life.issuer} expires in "
                    f"{shown(life.left)} and has not been renewed: look for errors in the log"
                )
                yield f"OCSP responder {life.issuer}", sentence

    def _tell(self, standing: Mapping[str, str], among: AbstractSet[str]) -> None:
        """Log what stands of these matters, and which of them stands no more."""
        now = self._clock.now()
        for about in among:
            sentence, said = standing.get(about), self._said.get(about)
            if sentence is None:
                if said is not None:
                    log.info("status.recovered", object=about)
                    del self._said[about]
            elif said is None or not said <= now < said + _REPEAT:
                log.error("status.alarm", object=about, error=sentence)
                self._said[about] = now


def crl_alarm(age: CRLAge) -> str:
    """Say that a CRL is about to lapse or has lapsed."""
    if age.left is None:
        return f"there is no CRL of {age.name}: relying parties that check it refuse everybody"
    if age.left <= timedelta(0):
        return (
            f"the CRL of {age.name} lapsed {shown(-age.left)} ago: relying parties that check it "
            "refuse everybody"
        )
    return f"the CRL of {age.name} lapses in {shown(age.left)} and no newer one could be published"


def shown(span: timedelta) -> str:
    """Show a duration for people: days and hours, or hours and minutes."""
    minutes = int(span.total_seconds() // 60)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min"
