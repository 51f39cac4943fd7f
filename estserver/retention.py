"""Retention: what is kept how long, and erased when that is over or when somebody asks for it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from estserver.errors import Conflict, NotFound
from estserver.model import Clock, Event, Origin
from estserver.settings import Retention
from estserver.store import Store, Transaction, purging, registrations
from estserver.store.audit_checks import PURGE

T = TypeVar("T")
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Purged:
    """How many of each were erased, or would be."""

    certificates: int
    registrations: int
    letters: int
    events: int


class Purge:
    """Erases what its time has come for. Every batch is a transaction of its own: run it again."""

    def __init__(self, store: Store, clock: Clock, rules: Retention) -> None:
        self._store = store
        self._clock = clock
        self._rules = rules

    def run(
        self, *, by: str, origin: Origin, progress: Callable[[int], None] = lambda _done: None
    ) -> Purged:
        """Erase everything that is older than the rules keep it. Raises Unavailable."""
        rules = self._rules
        certificates = self._erase(
            rules.certificates, purging.ended_certificates, purging.purge_certificates, progress
        )
        registered = self._erase(
            rules.registrations, purging.ended_registrations, purging.purge_registrations, progress
        )
        letters = self._store.write(lambda tx: purging.purge_mail(tx, before=tx.now - rules.mail))
        events = self._erase(
            rules.audit, purging.old_events, partial(_purge_events, by, origin), progress
        )
        return Purged(certificates, registered, letters, events)

    def erase(self, number: str, *, by: str, origin: Origin) -> Purged:
        """Erase one registration and all it led to, now, as its owner may ask.

        Raises NotFound; Conflict: one of its certificates is still good.
        """

        def unit(tx: Transaction) -> Purged:
            if registrations.get(tx, number) is None:
                raise NotFound(f"there is no invitation {number}")
            if purging.live_certificates(tx, number):
                raise Conflict(
                    f"invitation {number} has certificates that are still valid: revoke them first"
                )
            rows = purging.certificates_of(tx, number)
            objects = [f"invitation {number}", *(f"enrollment {one}" for one in rows)]
            purging.purge_certificates(tx, rows)
            purging.purge_registrations(tx, [number])
            if events := purging.events_about(tx, objects):
                _purge_events(by, origin, tx, events)
            tx.audit(Event("registration.erased", by, f"invitation {number}"), origin)
            return Purged(len(rows), 1, 0, len(events))

        return self._store.write(unit)

    def _erase(
        self,
        kept: timedelta,
        find: Callable[..., list[T]],
        purge: Callable[[Transaction, list[T]], None],
        progress: Callable[[int], None],
    ) -> int:
        """Erase in batches what ended longer than `kept` ago; return how many."""
        before: datetime = self._clock.now() - kept
        erased = 0
        while found := self._store.read(lambda tx: find(tx, before=before, limit=_BATCH)):
            self._store.write(partial(_apply, purge, found))
            erased += len(found)
            progress(erased)
        return erased


def _apply(purge: Callable[[Transaction, list[T]], None], found: list[T], tx: Transaction) -> None:
    purge(tx, found)


def _purge_events(by: str, origin: Origin, tx: Transaction, ids: list[int]) -> None:
    """Erase what audit rows say, and say so: `verify` takes no other erasure."""
    purging.purge_events(tx, ids)
    tx.audit(Event(PURGE, by, "audit trail", {"through": max(ids), "rows": len(ids)}), origin)
