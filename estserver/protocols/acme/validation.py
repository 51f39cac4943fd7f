"""The validator: shows that an identifier is in its account's hands, or says what is amiss.

It knows no database and no orders: a challenge goes in, and a refusal may come out. All that it
sends into the world goes through one set of lookups and one wall of address rules.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from estserver.config import Settings
from estserver.model import Clock
from estserver.protocols.acme.addresses import AddressRules, Dialler, OwnListener, read_address
from estserver.protocols.acme.caa import CAAPolicy
from estserver.protocols.acme.challenge import Challenge, ChallengeFailed
from estserver.protocols.acme.dns01 import DNS01, DNSPersist01
from estserver.protocols.acme.http01 import HTTP01
from estserver.protocols.acme.lookups import Lookups
from estserver.protocols.acme.tlsalpn01 import TLSALPN01
from estserver.settings import Listeners

DEADLINE = timedelta(seconds=10)
"""What one validation may take, and once more the reading of CAA records after it."""
_FOR_WILDCARDS = frozenset({"dns-01", "dns-persist-01"})


class Validator:
    """Validates challenges; one object serves any number of them at once."""

    def __init__(self, settings: Settings, clock: Clock, *, deadline: timedelta = DEADLINE) -> None:
        """Raise ConfigurationError: acme.resolvers or acme.allow_networks cannot be read."""
        acme = settings.acme
        self._seconds = deadline.total_seconds()
        lookups = Lookups(acme.resolvers, self._seconds / 2)
        rules = AddressRules(acme.allow_networks, _own_listeners(settings.listeners))
        dialler = Dialler(lookups, rules)
        self._methods: Mapping[str, Callable[[Challenge], Awaitable[None]]] = {
            "http-01": HTTP01(
                dialler,
                http_port=acme.http_port,
                tls_port=acme.tls_port,
                seconds=self._seconds,
            ).validate,
            "dns-01": DNS01(lookups).validate,
            "tls-alpn-01": TLSALPN01(dialler, port=acme.tls_port, seconds=self._seconds).validate,
            "dns-persist-01": DNSPersist01(lookups, acme.caa_identities, clock).validate,
        }
        self._caa = CAAPolicy(lookups, acme.caa_identities) if acme.caa else None

    async def validate(self, challenge: Challenge) -> None:
        """Return once the challenge is met and CAA records, where they count, do not forbid it.

        One attempt: trying again is the caller's decision (RFC 8555 §8.2).
        Raises ChallengeFailed: what is amiss, as an ACME problem type and a sentence.
        Raises ConfigurationError: there are no name servers to ask.
        """
        method = self._methods.get(challenge.type)
        if method is None:
            raise ChallengeFailed("unauthorized", f"{challenge.type} is not a known challenge")
        if challenge.wildcard and challenge.type not in _FOR_WILDCARDS:
            # Who holds a host does not hold all names beneath it (RFC 8555 §8.3, RFC 8737 §3).
            raise ChallengeFailed("unauthorized", f"{challenge.type} proves no wildcard")
        try:
            async with asyncio.timeout(self._seconds):
                await method(challenge)
        except TimeoutError as error:
            raise ChallengeFailed(
                "connection", f"the validation took longer than {self._seconds:g} seconds"
            ) from error
        await self.check_caa(challenge)

    async def check_caa(self, challenge: Challenge) -> None:
        """Judge the CAA records alone, where the settings have them count.

        For validations that are relied on long after they took place.
        Raises ChallengeFailed caa: the records forbid it or cannot be read.
        """
        if self._caa is None or challenge.identifier_type != "dns":
            return
        try:
            async with asyncio.timeout(self._seconds):
                await self._caa.require_permission(challenge)
        except TimeoutError as error:
            raise ChallengeFailed("caa", "the CAA records could not be read in time") from error


def _own_listeners(listeners: Listeners) -> tuple[OwnListener, ...]:
    """What listens on every address, or on what is not an address, is ours at each of them."""
    found = []
    for listener in (listeners.web, listeners.devices, listeners.status, listeners.management):
        bind = read_address(listener.bind)
        found.append(
            OwnListener(None if bind is None or bind.is_unspecified else bind, listener.port)
        )
    return tuple(found)
