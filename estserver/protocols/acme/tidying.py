"""Forgetting what is over: used nonces, orders that came to nothing, failures nobody repeats.

What a certificate came from is kept as long as the certificate's own row: its order, and the
authorizations that say by which rule or challenge its names were allowed.
"""

from datetime import UTC, datetime

from estserver.protocols import Services
from estserver.protocols.acme import authorization_records, failure_records, records
from estserver.store import Transaction

SECONDS = 60
"""How often there may be something to forget."""
_AT_ONCE = 100
"""Orders to a transaction, so that nobody waits long for the writer."""
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Tidying:
    """Forgets; any number of nodes may do it at the same time."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._retention = services.settings.acme.order_retention
        # What ended earlier was looked at before: orders with a certificate stay for good, and
        # need not be walked over every minute.
        self._done_until = _BEGINNING

    def tidy(self) -> None:
        """Forget all that is to be forgotten by now. Raises Unavailable."""
        store = self._services.store
        store.write(records.forget_nonces)
        until = self._services.clock.now() - self._retention
        store.write(lambda tx: failure_records.forget_before(tx, until))
        since = self._done_until

        def orders(tx: Transaction) -> int:
            return records.forget_orders(tx, since=since, until=until, limit=_AT_ONCE)

        def early(tx: Transaction) -> int:
            ended = authorization_records.early_ended(tx, since=since, until=until, limit=_AT_ONCE)
            authorization_records.forget(tx, ended)
            return len(ended)

        for forget in (orders, early):
            while store.write(forget) == _AT_ONCE:
                pass
        self._done_until = until
