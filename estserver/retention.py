"""Retention: what is kept how long, and erased when that is over or when somebody asks for it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar

from estserver.errors import Conflict, NotFound
from estserver.model import Clock, Event, InvitationState, Origin
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


class Memory(Protocol):
    """What a protocol remembers in tables of its own, as far as it tells of people.

    Each call belongs to the transaction that erases the rest.
    """

    def actors(self, tx: Transaction, number: str) -> list[str]:
        """Name, as audit rows do, who else acted for a registration: `account 4f2…`."""
        ...

    def forget_registrations(self, tx: Transaction, numbers: Sequence[str]) -> None:
        """Erase all that stems from these registrations."""
        ...

    def forget_certificates(self, tx: Transaction, enrollments: Sequence[str]) -> None:
        """Erase what these certificates came from."""
        ...

    def forget_idle(self, tx: Transaction, before: datetime) -> None:
        """Erase what no registration stands behind and nobody has used since `before`."""
        ...


class Purge:
    """Erases what its time has come for. Every batch is a transaction of its own: run it again."""

    def __init__(
        self, store: Store, clock: Clock, rules: Retention, memories: Sequence[Memory]
    ) -> None:
        """`memories`: of every protocol that has tables of its own, served or not."""
        self._store = store
        self._clock = clock
        self._rules = rules
        self._memories = memories

    def run(
        self, *, by: str, origin: Origin, progress: Callable[[int], None] = lambda _done: None
    ) -> Purged:
        """Erase everything that is older than the rules keep it. Raises Unavailable."""
        rules = self._rules
        certificates = self._erase(
            rules.certificates, purging.ended_certificates, self._purge_certificates, progress
        )
        registered = self._erase(
            rules.registrations, purging.ended_registrations, self._purge_registrations, progress
        )
        self._store.write(lambda tx: self._forget_idle(tx, tx.now - rules.registrations))
        letters = self._store.write(lambda tx: purging.purge_mail(tx, before=tx.now - rules.mail))
        events = self._erase(
            rules.audit, purging.old_events, partial(_purge_events, by, origin), progress
        )
        return Purged(certificates, registered, letters, events)

    def erase(self, number: str, *, by: str, origin: Origin) -> Purged:
        """Erase one registration and all it led to, now, as its owner may ask.

        Cancels it first. Killed half-way, run it again: what tells where something is goes last.
        Raises NotFound; Conflict: one of its certificates is still good.
        """

        def close(tx: Transaction) -> list[str]:
            _require_ended(tx, number)
            if registrations.set_state(tx, number, before=None, to=InvitationState.CANCELLED):
                tx.audit(Event("invitation.cancelled", by, f"invitation {number}"), origin)
            others = [name for memory in self._memories for name in memory.actors(tx, number)]
            return [*purging.audited_as(tx, number), *others]

        def unit(tx: Transaction) -> tuple[int, int]:
            _require_ended(tx, number)
            unpurged = purging.unpurged_certificates(tx, number)
            for some in _batches(unpurged):
                self._purge_certificates(tx, some)
            letters = self._purge_registrations(tx, [number])
            tx.audit(Event(purging.ERASURE, by, f"invitation {number}"), origin)
            return len(unpurged), letters

        about = self._store.write(close)
        events = self._erase_events(about, by, origin)
        certificates, letters = self._store.write(unit)
        # What was refused to it meanwhile.
        events += self._erase_events(about, by, origin)
        return Purged(certificates, 1, letters, events)

    def _purge_certificates(self, tx: Transaction, enrollments: Sequence[str]) -> None:
        purging.purge_certificates(tx, enrollments)
        for memory in self._memories:
            memory.forget_certificates(tx, enrollments)

    def _purge_registrations(self, tx: Transaction, numbers: Sequence[str]) -> int:
        for memory in self._memories:
            memory.forget_registrations(tx, numbers)
        return purging.purge_registrations(tx, numbers)

    def _forget_idle(self, tx: Transaction, before: datetime) -> None:
        for memory in self._memories:
            memory.forget_idle(tx, before)

    def _erase_events(self, about: Sequence[str], by: str, origin: Origin) -> int:
        """Erase what audit rows say of these objects and actors; return how many rows."""
        erased = 0
        for some in _batches(about):
            query = partial(purging.events_about, names=some, limit=_BATCH)
            while found := self._store.read(query):
                self._store.write(partial(_purge_events, by, origin, ids=found))
                erased += len(found)
        return erased

    def _erase(
        self,
        kept: timedelta,
        find: Callable[..., list[T]],
        purge: Callable[[Transaction, list[T]], object],
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


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), _BATCH):
        yield names[first : first + _BATCH]


def _apply(
    purge: Callable[[Transaction, list[T]], object], found: list[T], tx: Transaction
) -> None:
    purge(tx, found)


def _require_ended(tx: Transaction, number: str) -> None:
    if registrations.get(tx, number) is None:
        raise NotFound(f"there is no invitation {number}")
    if purging.live_certificates(tx, number):
        raise Conflict(
            f"invitation {number} has certificates that are still valid: revoke them first"
        )


def _purge_events(by: str, origin: Origin, tx: Transaction, ids: list[int]) -> None:
    """Erase what audit rows say, and say so: `verify` takes no other erasure."""
    purging.purge_events(tx, ids)
    tx.audit(Event(PURGE, by, "audit trail", {"through": max(ids), "rows": len(ids)}), origin)
