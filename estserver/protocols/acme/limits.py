"""Rate limits by the generic cell rate algorithm: one number for each key, refilled evenly.

Kept in memory: each node counts for itself, and a restart forgives.
"""

import threading
from datetime import timedelta

from estserver.errors import TooManyAttempts
from estserver.model import Clock
from estserver.protocols.acme.records import Account
from estserver.settings import ACME
from estserver.throttling import source_key

_HOUR = 3600.0
MAX_KEYS = 100_000
"""More are not remembered, however many networks come."""


class HourlyLimit:
    """So many an hour for each key, all at once if need be. Thread-safe."""

    def __init__(self, what: str, per_hour: int, clock: Clock) -> None:
        """`what` names in the plural what is counted, for the refusal."""
        self._what = what
        self._per_hour = per_hour
        self._clock = clock
        self._lock = threading.Lock()
        # When each key will be as good as new.
        self._rested_at: dict[str, float] = {}

    def spend(self, key: str) -> None:
        """Count one. Raises TooManyAttempts with the time until the next is allowed."""
        now = self._clock.now().timestamp()
        cost = _HOUR / self._per_hour
        with self._lock:
            rested_at = max(now, self._rested_at.get(key, now)) + cost
            wait = rested_at - now - _HOUR
            if wait > 0:
                raise TooManyAttempts(
                    f"more than {self._per_hour} {self._what} in an hour: try again later",
                    retry_after=timedelta(seconds=wait),
                )
            if len(self._rested_at) >= MAX_KEYS and key not in self._rested_at:
                self._forget(now)
            self._rested_at[key] = rested_at

    def _forget(self, now: float) -> None:
        """Make room: keys as good as new go, and of the others all but those that spent most."""
        busy = sorted(((at, key) for key, at in self._rested_at.items() if at > now), reverse=True)
        self._rested_at = {key: at for at, key in busy[: MAX_KEYS // 2]}


class OrderLimits:
    """What new orders and early authorizations are counted by: the account and the network.

    An invitation has one account in all its life, so the limit of the account is the invitation's.
    """

    def __init__(self, settings: ACME, clock: Clock) -> None:
        self._by_account = HourlyLimit("new orders", settings.orders_per_hour, clock)
        what = "new orders from your network"
        self._by_network = HourlyLimit(what, settings.network_orders_per_hour, clock)

    def spend(self, account: Account, source: str) -> None:
        """Count one order of `account` that came from `source`. Raises TooManyAttempts."""
        self._by_account.spend(account.id)
        self._by_network.spend(source_key(source))
