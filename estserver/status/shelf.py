"""What CRLs there are: taken from the database once, piece by piece, and kept for everybody.

Processes take CRLs from each other here: one that only adds entries to what is known costs the
reading of those, and whatever comes out of the database is verified before anybody gets it.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from estserver.ca import crl as layout
from estserver.ca.crl import Entries, Frame
from estserver.ca.issuer import Issuer
from estserver.errors import Fault
from estserver.model import Clock
from estserver.store import Store, Transaction, crls, to_unix
from estserver.store.crls import StoredCRL

RED = 0.25
"""Share of a CRL's life that is left when somebody must be told (INC-28)."""
SETTLING = timedelta(minutes=10)
"""How much earlier than it can be seen a revocation may be dated: commits wait, clocks differ."""
_LOOK_AGAIN = timedelta(seconds=2)

Key = tuple[str, str]
"""Issuer and scope."""


class DamagedCRL(Fault):
    """What is stored of a CRL is not what was signed; the next one is made of the certificates."""

    code = "damaged-crl"


@dataclass(frozen=True, slots=True)
class CRL:
    """One published CRL. `scope`: "" for all of an issuer, else the profile whose shard it is.

    `pieces` one after the other are the complete DER; so are those of the delta CRL, where the
    issuer makes them. The delta has what was added to the entries since its base was made, and
    before that, as `delta_changes`, what the base or a CRL since then listed otherwise: holds that
    ended. `holds_ended` counts those that the entries have taken note of.
    """

    issuer: str
    number: int
    this_update: datetime
    next_update: datetime
    scope: str
    entries: Entries
    frame: Frame
    generation: int
    base_number: int
    base_size: int
    base_at: datetime
    delta_changes: bytes
    holds_ended: int
    delta_frame: Frame | None

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The signed CRL; consecutive ones share most pieces."""
        return self.frame.around(self.entries.chunks)

    @property
    def delta(self) -> tuple[bytes, ...] | None:
        """The signed delta CRL, or None: this issuer makes none."""
        if self.delta_frame is None:
            return None
        return self.delta_frame.around(self.delta_entries)

    @property
    def delta_entries(self) -> tuple[bytes, ...]:
        """The entries of the delta CRL."""
        return self.delta_changes, *self.entries.after(self.base_size)

    @property
    def der(self) -> bytes:
        """The signed CRL in one piece: a copy, of 50 MB for a million entries."""
        return b"".join(self.pieces)

    def life_left(self, now: datetime) -> float:
        """Return the share of its life that is left: 1 when new, 0 once nextUpdate has come."""
        life = self.next_update - self.this_update
        if not life:
            return 0.0
        return min(1.0, max(0.0, (self.next_update - now) / life))


@dataclass(frozen=True, slots=True)
class CRLAge:
    """How old a newest CRL is. Without a CRL `age` and `left` are None and no life is left.

    `left`: until nextUpdate, negative after it.
    """

    issuer: str
    age: timedelta | None
    life_left: float
    scope: str = ""
    left: timedelta | None = None

    @property
    def red(self) -> bool:
        """Tell whether it is so old that publication must have failed twice."""
        return self.life_left <= RED

    @property
    def name(self) -> str:
        """What to call it: the issuer, and the profile of a shard."""
        return name_of(self.issuer, self.scope)


@dataclass(frozen=True, slots=True)
class _Shelved:
    crl: CRL
    recent: dict[str, int]


class Shelf:
    """The newest CRL of each issuer and scope, by what is stored. Thread-safe."""

    def __init__(self, store: Store, clock: Clock, issuers: Mapping[str, Issuer]) -> None:
        self._store = store
        self._clock = clock
        self._issuers = issuers
        self._taking = {name: threading.Lock() for name in issuers}
        self._shelved: dict[Key, _Shelved] = {}
        self._looked: dict[Key, datetime] = {}

    def look(self, key: Key) -> CRL | None:
        """Return the newest CRL in the database; entries at hand are not read again."""
        with self._taking[key[0]]:
            known = self.remembered(key)

            def read(tx: Transaction) -> tuple[StoredCRL, list[bytes]] | None:
                stored = crls.newest(tx, *key)
                if stored is None:
                    return None
                if known is not None and known.number == stored.number:
                    return stored, []
                start = 0 if known is None or not _extends(stored, known) else known.entries.size
                return stored, list(crls.entries(tx, stored, after=start))

            found = self._store.read(read)
            if found is None:
                return None
            self._looked[key] = self._clock.now()
            stored, more = found
            if known is None or known.number != stored.number:
                return self._take(key, stored, known, more)
            if known.next_update != stored.next_update:
                # Dismissed: its number stands, its time is over.
                known = replace(
                    known, this_update=stored.this_update, next_update=stored.next_update
                )
                self._shelved[key] = replace(self._shelved[key], crl=known)
            return known

    def _take(self, key: Key, stored: StoredCRL, known: CRL | None, more: list[bytes]) -> CRL:
        """Put a stored CRL together. Raises Fault: the pieces are not what was signed."""
        since = stored.this_update - SETTLING
        entries, recent = Entries(), dict[str, int]()
        if known is not None and _extends(stored, known):
            entries, recent = known.entries, lately(self._shelved[key].recent, since)
        for run in _gathered(more):
            entries = entries.plus(run, 0)
            recent |= dict(layout.listed(run, since))
        entries = replace(entries, count=stored.entries_count)
        taken = _whole(stored, entries)
        if stored.generation:
            tbs, signature = layout.take_apart(taken.frame)
            if not self._issuers[stored.issuer].vouches_for(tbs.around(entries.chunks), signature):
                raise DamagedCRL(
                    f"CRL {stored.number} of {name_of(*key)} is damaged in the database: its "
                    "signature does not verify"
                )
        self._shelved[key] = _Shelved(taken, recent)
        return taken

    def put(self, key: Key, crl: CRL, recent: dict[str, int]) -> None:
        """Take a CRL that was just published; `recent`: what it lists of the last minutes."""
        with self._taking[key[0]]:
            known = self.remembered(key)
            if known is None or known.number < crl.number:
                self._shelved[key] = _Shelved(crl, recent)

    def remembered(self, key: Key) -> CRL | None:
        """Return what `look` last returned, or was published here since; never blocks."""
        shelved = self._shelved.get(key)
        return None if shelved is None else shelved.crl

    def recent(self, key: Key) -> dict[str, int]:
        """Return serial and time of what the remembered CRL lists of the minutes before it."""
        return self._shelved[key].recent

    def at_hand(self, key: Key) -> CRL | None:
        """Return the newest CRL if somebody has just looked for it; never blocks."""
        newest, looked = self.remembered(key), self._looked.get(key)
        now = self._clock.now()
        if newest is None or looked is None or not looked <= now < looked + _LOOK_AGAIN:
            return None
        return newest if newest.this_update <= now else None

    def age(self, key: Key, newest: CRL | None) -> CRLAge:
        """Tell how old `newest` is, which was found under `key`."""
        issuer, scope = key
        if newest is None:
            return CRLAge(issuer, None, 0.0, scope)
        now = self._clock.now()
        left = newest.next_update - now
        return CRLAge(issuer, now - newest.this_update, newest.life_left(now), scope, left)


def name_of(issuer: str, scope: str) -> str:
    """Name a CRL for people: its issuer, and the profile of a shard."""
    return f"{issuer} {scope}".rstrip()


def lately(recent: Mapping[str, int], moment: datetime) -> dict[str, int]:
    """Return those of `recent` (serial: time) that are dated `moment` or later."""
    horizon = to_unix(moment)
    return {serial: at for serial, at in recent.items() if at >= horizon}


def _extends(stored: StoredCRL, known: CRL) -> bool:
    """Tell whether `stored` only adds entries to what is known."""
    return 0 < stored.generation == known.generation


def _gathered(runs: list[bytes]) -> Iterator[bytes]:
    """Join short runs into longer ones: a CRL that grew by one entry at a time has many."""
    gathered: list[bytes] = []
    size = 0
    for run in runs:
        if gathered and size + len(run) > layout.CHUNK_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
        gathered.append(run)
        size += len(run)
    if gathered:
        yield b"".join(gathered)


def _whole(stored: StoredCRL, entries: Entries) -> CRL:
    """Put frame and entries together."""
    delta = None
    if stored.delta_head is not None and stored.delta_tail is not None:
        delta = Frame(stored.delta_head, stored.delta_tail)
    return CRL(
        issuer=stored.issuer,
        number=stored.number,
        this_update=stored.this_update,
        next_update=stored.next_update,
        scope=stored.scope,
        entries=entries,
        frame=Frame(stored.head, stored.tail),
        generation=stored.generation,
        base_number=stored.base_number,
        base_size=stored.base_size,
        base_at=stored.base_at,
        delta_changes=stored.delta_changes,
        holds_ended=stored.holds_ended,
        delta_frame=delta,
    )
