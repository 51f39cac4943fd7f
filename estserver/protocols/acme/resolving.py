"""One question to DNS by dnspython, which is imported with this module: at the first question."""

from collections.abc import Sequence
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.resolver

from estserver.errors import ConfigurationError
from estserver.protocols.acme.challenge import ChallengeFailed

_UDP_PAYLOAD = 1232
"""Octets of an answer over UDP: what passes every path unfragmented (DNS flag day 2020)."""


async def ask(
    name: str,
    kind: str,
    servers: Sequence[tuple[str, int]],
    *,
    seconds: float,
    absent_ok: bool,
) -> tuple[Any, ...]:
    """Return the records of one kind, as dnspython has them; none is ().

    `servers`: address and port of each; none: those of the system. `seconds`: for all tries.
    Raises ChallengeFailed dns: not answered, or no such name unless `absent_ok`.
    Raises ConfigurationError: there are no servers.
    """
    try:
        # The dot at the end keeps search lists of the system out of it.
        answer = await _resolver(servers, seconds).resolve(
            dns.name.from_text(f"{name}."), kind, raise_on_no_answer=False, search=False
        )
    except dns.resolver.NXDOMAIN as error:
        if absent_ok:
            return ()
        raise ChallengeFailed("dns", f"{name} does not exist in DNS") from error
    except dns.exception.Timeout as error:
        raise ChallengeFailed("dns", f"DNS did not answer in time for {name}") from error
    except dns.exception.DNSException as error:
        raise ChallengeFailed(
            "dns", f"DNS could not be asked for the {kind} records of {name}"
        ) from error
    return tuple(answer.rrset or ())


def _resolver(servers: Sequence[tuple[str, int]], seconds: float) -> dns.asyncresolver.Resolver:
    """Make a resolver; the system's settings are read anew, for they change under a server."""
    if servers:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [
            dns.nameserver.Do53Nameserver(address, port) for address, port in servers
        ]
    else:
        try:
            resolver = dns.asyncresolver.Resolver()
        except dns.exception.DNSException as error:
            raise ConfigurationError(
                "acme.resolvers: none are set and the system names none"
            ) from error
    resolver.lifetime = seconds
    resolver.use_edns(0, 0, _UDP_PAYLOAD)
    return resolver
