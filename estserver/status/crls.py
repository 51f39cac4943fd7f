"""CRLPublisher: what is on a CRL, and when the next one is due.

The only caller of `Issuer.sign_crl`. A CRL lists all that its issuer revoked (scope ""), or what
was revoked of one profile (its shard). It is made anew from the certificates at half of its life;
in between what was revoked since is added at its end, which costs one signature and one small row
however long the list is. Where a hold has ended, the list is made anew at once, and the delta CRL
goes on from its base.
"""

import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice

import structlog
from cryptography import x509

from estserver.ca import crl as layout
from estserver.ca.crl import Entries, Frame, Row
from estserver.ca.issuer import Issuer
from estserver.errors import Fault, NotFound, Unavailable
from estserver.model import Clock, Event, Origin
from estserver.status.shelf import CRL, SETTLING, DamagedCRL, Key, Shelf, lately
from estserver.store import Store, Transaction, crls, revocations, to_unix
from estserver.store.crls import StoredCRL

_RENEW = 0.5
"""Share of a CRL's life that is left when the next one is made."""
_BEHIND = timedelta(days=1)
_AHEAD = timedelta(days=370)
"""How far the clock may be from the newest CRL before nobody should believe it."""
_ORPHANED = 3600
"""How old the entries of a CRL that was never finished are, seconds, before they are swept."""
_FEW = 10_000
"""How many entries are added to a CRL at most; more make a new one."""
_ATTEMPTS = 20
_EVER = datetime(1970, 1, 1, tzinfo=UTC)
_ORIGIN = Origin("status", "server")

log = structlog.get_logger("estserver.status")


@dataclass(frozen=True, slots=True)
class CRLRules:
    """How the CRLs of one issuer are made. `lifetime`: from thisUpdate to nextUpdate."""

    lifetime: timedelta
    deltas: bool = False


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What the certificates say at one moment. `changes`: of a delta that keeps its base, or None.

    `recent`: serial and time of what was revoked in the last minutes.
    """

    now: datetime
    number: int
    entries: Entries
    recent: dict[str, int]
    holds_ended: int
    changes: bytes | None


class CRLPublisher:
    """Publishes the CRLs of `issuers`. Thread-safe; every method may block."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        issuers: Mapping[str, Issuer],
        rules: Mapping[str, CRLRules],
        shelf: Shelf,
    ) -> None:
        self._store = store
        self._clock = clock
        self._issuers = issuers
        self._rules = rules
        self._publishing = {name: threading.Lock() for name in issuers}
        self._shelf = shelf
        self._settled: dict[Key, tuple[int, int]] = {}

    def publish(self, issuer: str, scope: str = "") -> CRL:
        """Return the newest CRL, made now if one is due.

        One is due when there is none, half of its life is over, it is from the future, something
        was revoked that it does not list, or a hold has ended since.
        Raises Unavailable; Fault: the clock cannot be right, or what was signed does not verify.
        """
        key = (issuer, scope)
        with self._publishing[issuer]:
            for _ in range(_ATTEMPTS):
                now = self._clock.now()
                try:
                    newest = self._shelf.look(key)
                except DamagedCRL:
                    log.exception("crl.damaged", issuer=issuer, profile=scope)
                    newest = None
                if newest is None or newest.generation == 0 or _is_over(newest, now):
                    self._check_clock(issuer, newest, now)
                    made = self._renew(key)
                elif (fresh := self._unlisted(newest)) is None:
                    self._check_clock(issuer, newest, now)
                    made = self._renew(key, newest)
                elif fresh:
                    self._check_clock(issuer, newest, now)
                    made = self._extend(newest, fresh)
                else:
                    return newest
                if made is not None:
                    return made
        raise Unavailable(
            f"other publishers keep overtaking the CRL of {issuer}",
            retry_after=timedelta(seconds=5),
        )

    def newest(self, issuer: str, scope: str = "") -> CRL:
        """Return the newest CRL, after publishing the first one if there is none.

        One from the future is replaced first, unless the clock cannot be right.
        Raises NotFound: no such shard; Unavailable: the database is, and none is at hand; Fault.
        """
        key = (issuer, scope)
        try:
            newest = self._shelf.look(key)
        except Unavailable:
            # A CRL holds until its nextUpdate: relying parties need not suffer with the database.
            newest = self._shelf.remembered(key)
            if newest is None:
                raise
            return newest
        if newest is None and scope:
            raise NotFound(f"there is no CRL of profile {scope} alone")
        now = self._clock.now()
        if newest is None or now < newest.this_update <= now + _BEHIND:
            return self.publish(issuer, scope)
        return newest

    # -- making the next one ---------------------------------------------------------------------

    def _check_clock(self, issuer: str, newest: CRL | None, now: datetime) -> None:
        """Raise Fault rather than date a CRL by a clock that contradicts what is known.

        Relying parties would refuse a CRL from the future, and take one from the past for lapsed,
        while the one they have is still good.
        """
        certificate = self._issuers[issuer].certificate
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise Fault(
                f"no CRL of {issuer} is made: at {now:%Y-%m-%d %H:%M} UTC, which this server's "
                "clock says, its certificate is not valid: set the clock right"
            )
        if newest is None or newest.this_update - _BEHIND <= now <= newest.this_update + _AHEAD:
            return
        raise Fault(
            f"no CRL of {issuer} is made: this server's clock says {now:%Y-%m-%d %H:%M} UTC, and "
            f"CRL {newest.number} was made on {newest.this_update:%Y-%m-%d %H:%M}: set the clock "
            f"right, or if it is right run `estserver crl renew {issuer}`"
        )

    def _unlisted(self, newest: CRL) -> list[Row] | None:
        """Return what was revoked around the making of `newest`, or since, and is not on it.

        None: adding to it is not enough, since a hold has ended, or it is too much to add.

        A revocation is dated when its transaction begins and seen when it commits, which may be
        after a CRL was made and dated: times alone would overlook it, so serials are compared.
        """
        key = (newest.issuer, newest.scope)
        since = newest.this_update - SETTLING

        def read(tx: Transaction) -> tuple[int, list[Row] | None]:
            if crls.count_holds_ended(tx, *key) != newest.holds_ended:
                return 0, None
            count = crls.count_revoked(tx, *key, since=since)
            if self._settled.get(key) == (newest.number, count):
                return count, []
            rows = (row for page in crls.revoked(tx, *key, since=since) for row in page)
            return count, list(islice((row for row in rows if row[0] not in recent), _FEW + 1))

        recent = self._shelf.recent(key)
        count, rows = self._store.read(read)
        if rows == []:
            self._settled[key] = (newest.number, count)
        if rows is None or len(rows) > _FEW:
            return None
        # What the delta says has left the list cannot be added to the same delta.
        changed = {serial for serial, _ in layout.listed(newest.delta_changes, _EVER)}
        return None if any(row[0] in changed for row in rows) else rows

    def _extend(self, newest: CRL, rows: list[Row]) -> CRL | None:
        """Publish `newest` with more entries; None if another publisher was faster."""
        key = (newest.issuer, newest.scope)
        added = layout.encode(rows)
        entries = newest.entries.plus(added, len(rows))
        now, number = self._store.read(
            lambda tx: (tx.now, revocations.newest_crl_number(tx, newest.issuer) + 1)
        )
        crl = self._sign(replace(newest, number=number, entries=entries), now)
        added_now = {serial: at for serial, at, _ in rows}
        recent = lately(self._shelf.recent(key) | added_now, now - SETTLING)
        if not self._put(crl, added):
            return None
        self._shelf.put(key, crl, recent)
        return crl

    def _renew(self, key: Key, newest: CRL | None = None) -> CRL | None:
        """Publish what the certificates say now; None if another publisher was faster.

        Delta CRLs begin anew with it, or go on from the base of `newest`.
        """
        issuer, scope = key
        base = newest if self._rules[issuer].deltas else None
        found = self._store.read(lambda tx: self._snapshot(tx, key, base))
        now, number, entries = found.now, found.number, found.entries
        if found.changes is None:
            base = None
        generation = to_unix(now) << 20 | secrets.randbits(20)
        crl = self._sign(
            CRL(
                issuer=issuer,
                number=number,
                this_update=now,
                next_update=now,
                scope=scope,
                entries=entries,
                frame=Frame(b"", b""),
                generation=generation,
                base_number=number if base is None else base.base_number,
                base_size=entries.size,
                base_at=now if base is None else base.base_at,
                delta_changes=found.changes or b"",
                holds_ended=found.holds_ended,
                delta_frame=None,
            ),
            now,
        )
        # A unit of work for each run: no other unit shall wait for 50 MB to be written.
        position = 0
        for run in entries.chunks[:-1]:
            self._store.write(_adding(generation, position, run))
            position += len(run)
        if not self._put(crl, entries.chunks[-1] if entries.chunks else b""):
            return None
        self._shelf.put(key, crl, found.recent)
        self._sweep(now)
        return crl

    def _snapshot(self, tx: Transaction, key: Key, base: CRL | None) -> _Snapshot:
        since = to_unix(tx.now - SETTLING)
        entries, recent = Entries(), dict[str, int]()
        for page in crls.revoked(tx, *key):
            entries = entries.plus(layout.encode(page), len(page))
            if page[-1][1] >= since:
                recent |= {serial: at for serial, at, _ in page if at >= since}
        return _Snapshot(
            now=tx.now,
            number=revocations.newest_crl_number(tx, key[0]) + 1,
            entries=entries,
            recent=recent,
            holds_ended=crls.count_holds_ended(tx, *key),
            changes=None if base is None else _changes(tx, key, base.base_at - SETTLING),
        )

    def _sweep(self, now: datetime) -> None:
        """Delete entries of generations that are over, a run at a time."""
        below = to_unix(now) - _ORPHANED << 20
        for orphan in self._store.read(lambda tx: crls.orphans(tx, below=below)):
            self._store.write(_sweeping(*orphan))

    def _sign(self, crl: CRL, now: datetime) -> CRL:
        """Date `crl`, which has all but its frames, and sign it and its delta."""
        issuer, rules = self._issuers[crl.issuer], self._rules[crl.issuer]
        next_update = now + rules.lifetime
        url = issuer.urls.crl_of(crl.scope)

        def frame(entries: tuple[bytes, ...], *extensions: x509.ExtensionType) -> Frame:
            if crl.scope:
                extensions = (*extensions, layout.shard_point(url))
            scope = layout.Scope(
                issuer.certificate,
                issuer.algorithm,
                tuple(
                    x509.Extension(value.oid, not isinstance(value, x509.FreshestCRL), value)
                    for value in extensions
                ),
            )
            size = sum(map(len, entries))
            tbs = layout.lay_out(scope, crl.number, now, next_update, size)
            signature = issuer.sign_crl(tbs.around(entries))
            return layout.complete(tbs, size, issuer.algorithm, signature)

        dated = replace(crl, this_update=now, next_update=next_update)
        if not rules.deltas:
            return replace(dated, frame=frame(crl.entries.chunks), delta_frame=None)
        freshest = layout.freshest(issuer.urls.delta_of(crl.scope))
        base = x509.DeltaCRLIndicator(crl.base_number)
        return replace(
            dated,
            frame=frame(crl.entries.chunks, freshest),
            delta_frame=frame(crl.delta_entries, base),
        )

    def _put(self, crl: CRL, added: bytes) -> bool:
        """Store a signed CRL, `added` being the last of its entries; False: somebody was faster."""
        delta = crl.delta_frame
        stored = StoredCRL(
            issuer=crl.issuer,
            scope=crl.scope,
            number=crl.number,
            this_update=crl.this_update,
            next_update=crl.next_update,
            head=crl.frame.head,
            tail=crl.frame.tail,
            generation=crl.generation,
            entries_size=crl.entries.size,
            entries_count=crl.entries.count,
            base_number=crl.base_number,
            base_size=crl.base_size,
            base_at=crl.base_at,
            delta_changes=crl.delta_changes,
            holds_ended=crl.holds_ended,
            delta_head=None if delta is None else delta.head,
            delta_tail=None if delta is None else delta.tail,
        )
        detail = {"number": crl.number, "entries": crl.entries.count}
        event = Event(
            "crl.signed",
            "server",
            f"issuer {crl.issuer}",
            {**detail, "profile": crl.scope} if crl.scope else detail,
        )

        def unit(tx: Transaction) -> bool:
            if not crls.put(tx, stored, added):
                return False
            tx.audit(event, _ORIGIN)
            return True

        return self._store.write(unit)


def _changes(tx: Transaction, key: Key, since: datetime) -> bytes | None:
    """Return all that is different since a base was made, as entries of a delta; None: too much.

    RFC 5280 §5.2.4: what was revoked, whose reason changed, and what was released from a hold that
    any CRL since then may have listed.
    """
    rows = (row for page in crls.revoked(tx, *key, since=since) for row in page)
    changed = {serial: (at, reason) for serial, at, reason in islice(rows, _FEW + 1)}
    for serial, at, reason in crls.holds_ended(tx, *key, since=since):
        changed[serial] = at, reason or layout.REMOVED
    if len(changed) > _FEW:
        return None
    return layout.encode((serial, at, reason) for serial, (at, reason) in changed.items())


def _is_over(crl: CRL, now: datetime) -> bool:
    return crl.this_update > now or crl.life_left(now) <= _RENEW


def _adding(generation: int, position: int, run: bytes) -> Callable[[Transaction], None]:
    return lambda tx: crls.add_entries(tx, generation, position, run)


def _sweeping(generation: int, position: int) -> Callable[[Transaction], None]:
    return lambda tx: crls.sweep(tx, generation, position)
