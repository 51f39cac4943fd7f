"""Wrong PINs counted by the network they come from, for doors whose locator can be guessed.

Lock the channel, never the person: a count delays its own source and nobody else. Counts are
durable, so that a restart or a second worker forgives nothing.
"""

import ipaddress
from datetime import timedelta

from estserver.errors import TooManyAttempts
from estserver.model import Clock
from estserver.steps import Steps, change, look
from estserver.store import registrations
from estserver.wording import counted

WINDOW_SECONDS = 3600
_IPV4_PREFIX = 24
_IPV6_PREFIX = 56


class SourceThrottle:
    """At most `limit` wrong PINs from one source prefix in an hour. Thread-safe."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self._clock = clock
        self._limit = limit

    def require_quiet(self, source: str) -> Steps[None]:
        """Raise TooManyAttempts once a source has used up its guesses. Writes nothing."""
        key = source_key(source)
        count = yield from look(lambda tx: registrations.failures(tx, key, window=WINDOW_SECONDS))
        if count >= self._limit:
            left = WINDOW_SECONDS - int(self._clock.now().timestamp()) % WINDOW_SECONDS
            raise TooManyAttempts(
                f"too many wrong PINs from your network: try again in {counted(left, 'second')}",
                retry_after=timedelta(seconds=left),
            )

    def count(self, source: str) -> Steps[None]:
        """Count one wrong PIN."""
        key = source_key(source)
        yield from change(lambda tx: registrations.count_attempt(tx, key, window=WINDOW_SECONDS))


def source_key(source: str) -> str:
    """Name the network a request came from: /24 for IPv4, /56 for IPv6."""
    try:
        # The zone of a link-local address names an interface of ours, not a network of theirs.
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return "source:local"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    prefix = _IPV4_PREFIX if address.version == 4 else _IPV6_PREFIX
    return f"source:{ipaddress.ip_network((address, prefix), strict=False)}"
