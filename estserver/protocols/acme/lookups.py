"""DNS for validations: each question is asked once, of the configured name servers, uncached.

Aliases are followed by the name server, which must be a recursive resolver. What DNS answers is
the account's word or a stranger's: it never stands in a refusal.
"""

import asyncio
import ipaddress
import pkgutil
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from estserver.errors import ConfigurationError
from estserver.protocols.acme.challenge import ChallengeFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Ask = Callable[..., Awaitable[tuple[Any, ...]]]

_ASK = "estserver.protocols.acme.resolving:ask"
_DNS_PORT = 53
_SERVER = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?|[0-9A-Fa-f:.]+"
)


@dataclass(frozen=True, slots=True)
class CAARecord:
    """One CAA record (RFC 8659 §4.1): `tag` in lower case, `value` as its octets."""

    critical: bool
    tag: str
    value: bytes


class Lookups:
    """Asks. `servers` is ADDRESS or ADDRESS:PORT each; none: those of the system."""

    def __init__(self, servers: Sequence[str], lifetime_seconds: float) -> None:
        """Raise ConfigurationError: a server that is no address."""
        self._servers = tuple(_read_server(text) for text in servers)
        self._lifetime_seconds = lifetime_seconds
        self._ask_dns: _Ask | None = None

    async def addresses(self, name: str) -> tuple[Address, ...]:
        """Return all addresses of a host name, those of IPv6 first.

        Raises ChallengeFailed dns: no such name, no addresses, or neither question answered.
        """
        answers = await asyncio.gather(
            self._ask(name, "AAAA"), self._ask(name, "A"), return_exceptions=True
        )
        found: list[Address] = []
        failures: list[BaseException] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                failures.append(answer)
            else:
                found += [ipaddress.ip_address(record.address) for record in answer]
        # One family's failure is no obstacle where the other has answered; a fault always is.
        for failure in failures:
            if not found or not isinstance(failure, ChallengeFailed):
                raise failure
        if not found:
            raise ChallengeFailed("dns", f"{name} has neither A nor AAAA records")
        return tuple(found)

    async def texts(self, name: str) -> tuple[bytes, ...]:
        """Return the values of all TXT records, the strings of each joined; none is ().

        Raises ChallengeFailed dns: no such name, or not answered.
        """
        return tuple(b"".join(record.strings) for record in await self._ask(name, "TXT"))

    async def caa(self, name: str) -> tuple[CAARecord, ...]:
        """Return the CAA records at exactly this name (or what it is an alias of); none is ().

        Raises ChallengeFailed dns: not answered. A name that does not exist has none.
        """
        return tuple(
            CAARecord(bool(record.flags & 0x80), _lower(record.tag), record.value)
            for record in await self._ask(name, "CAA", absent_ok=True)
        )

    async def _ask(self, name: str, kind: str, *, absent_ok: bool = False) -> tuple[Any, ...]:
        ask = self._ask_dns
        if ask is None:
            # dnspython is 2.4 MB, and takes 0.1 s: only who validates has it, and off the loop.
            found: _Ask = await asyncio.to_thread(pkgutil.resolve_name, _ASK)
            ask = self._ask_dns = found
        return await ask(
            name, kind, self._servers, seconds=self._lifetime_seconds, absent_ok=absent_ok
        )


def _lower(tag: bytes) -> str:
    """RFC 8659 §4.1: "Matching of tags is case insensitive"."""
    return tag.decode("ascii", "replace").lower()


def _read_server(text: str) -> tuple[str, int]:
    match = _SERVER.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        port = int(match["port"] or _DNS_PORT)
        if not 1 <= port <= 65535:
            raise ValueError(port)
        return str(ipaddress.ip_address(match["v6"] or match["v4"] or text)), port
    except ValueError as error:
        raise ConfigurationError(
            f"acme.resolvers: {text!r} is not ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT"
        ) from error
