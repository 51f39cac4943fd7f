"""Clients that nobody looks after: the same order failing for days is paused and shown.

A client on a timer goes on for years after a name, an address or a registration has changed. What
it orders and never gets is counted once an hour at most, so that it costs next to nothing; after
`acme.pause_after` it is refused with a sentence that says how to go on. Another order of the same
account is none the worse, and one that renews a certificate is never paused.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from prometheus_client import Gauge

from estserver import http
from estserver.errors import NotFound, Refused, TooManyAttempts
from estserver.model import EnrollmentState, Event, Origin
from estserver.protocols.acme import failure_records, records
from estserver.protocols.acme.failure_records import Failure, name_order
from estserver.protocols.acme.problems import Identifier
from estserver.protocols.acme.records import Account
from estserver.steps import Steps, change, look
from estserver.store import Store, Transaction, ordered

_COUNTED_EVERY = timedelta(hours=1)
_LEAST = 10
"""Counted failures before anything is paused: somebody who tries by hand stays below."""
_AGAIN = timedelta(days=1)
_MAX_REASON = 500

paused_orders = Gauge(
    "estserver_acme_paused_orders",
    "Orders that are paused because they failed for days",
    registry=http.registry,
    multiprocess_mode="mostrecent",
)


class Failures:
    """Counts what fails, and says what is paused. Its methods block."""

    def __init__(self, store: Store, pause_after: timedelta) -> None:
        """`pause_after` zero: nothing is counted or paused."""
        self._store = store
        self._pause_after = pause_after

    def report(self) -> None:
        """Tell the metrics of this worker how many orders are paused."""
        paused_orders.set(self._store.read(failure_records.count_paused))

    def requiring_unpaused(
        self, account: Account, identifiers: Sequence[Identifier]
    ) -> Steps[None]:
        """Raise TooManyAttempts if this order of this account is paused."""
        order = name_order(identifiers)
        found = yield from look(lambda tx: failure_records.failure(tx, account.id, order))
        if found is None or found.paused_at is None:
            return
        raise TooManyAttempts(
            f"this order is paused: it has failed since {found.first_at:%Y-%m-%d}, last because: "
            f"{found.reason.rstrip('.')}. Mend that, or stop the client; then ask the "
            f"administrator to run: estserver acme unpause {account.id}",
            retry_after=_AGAIN,
        )

    def counting(
        self, account: Account, identifiers: Sequence[Identifier], error: Refused, origin: Origin
    ) -> Steps[None]:
        """Count that an order was refused. Most calls only read: one an hour is counted."""
        order = name_order(identifiers)
        if isinstance(error, TooManyAttempts) or (
            yield from look(lambda tx: self._counted(tx, account.id, order))
        ):
            return
        yield from change(lambda tx: self.count_in(tx, account.id, order, error.detail, origin))

    def count_in(
        self, tx: Transaction, account: str, order: Sequence[str], reason: str, origin: Origin
    ) -> None:
        """Count in a transaction; what was counted within the hour stays as it is."""
        if self._counted(tx, account, order):
            return
        found = failure_records.failure(tx, account, order)
        if found is None or tx.now - found.last_at > self._pause_after or _done_since(tx, found):
            found = Failure(account, None, tuple(order), "", 0, tx.now, tx.now, None)
        long = tx.now - found.first_at >= self._pause_after and found.times + 1 >= _LEAST
        failure_records.put(
            tx,
            replace(
                found,
                reason=reason[:_MAX_REASON],
                times=found.times + 1,
                last_at=tx.now,
                paused_at=found.paused_at or (tx.now if long else None),
            ),
        )
        if long and found.paused_at is None:
            detail = {"identifiers": " ".join(order), "reason": reason[:_MAX_REASON]}
            tx.audit(Event("order.paused", "server", f"account {account}", detail), origin)

    def _counted(self, tx: Transaction, account: str, order: Sequence[str]) -> bool:
        if not self._pause_after:
            return True
        found = failure_records.failure(tx, account, order)
        return found is not None and tx.now - found.last_at < _COUNTED_EVERY


def _done_since(tx: Transaction, failure: Failure) -> bool:
    """Tell whether the order was fulfilled since it began to fail."""
    since = records.orders_since(tx, failure.account, failure.first_at)
    same = [one for one in since if name_order(one.identifiers) == failure.identifiers]
    states = ordered.enrollment_states(tx, [one.authority_key for one in same])
    return any(state is EnrollmentState.ISSUED for _, state, _ in states.values())


def unpause(tx: Transaction, account: str, *, by: str, origin: Origin) -> list[Failure]:
    """Let an account try again what was paused; return what that is. Raises NotFound."""
    paused = [one for one in failure_records.listing(tx, paused=True) if one.account == account]
    if not paused:
        raise NotFound(f"nothing of account {account} is paused: see `estserver acme paused`")
    for one in paused:
        failure_records.forget(tx, account, one.identifiers)
        detail = {"identifiers": " ".join(one.identifiers)}
        tx.audit(Event("order.unpaused", by, f"account {account}", detail), origin)
    return paused
