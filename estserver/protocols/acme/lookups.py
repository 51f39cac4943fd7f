"""DNS for validations: each question is asked once, of the configured name servers, uncached.

Aliases are followed by the name server, which must be a recursive resolver. What DNS answers is
the account's word or a stranger's: it never stands in a refusal.
"""

import asyncio
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.CAA import CAA
from dns.rdtypes.ANY.TXT import TXT
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA

from estserver.errors import ConfigurationError
from estserver.protocols.acme.challenge import ChallengeFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_DNS_PORT = 53
_SERVER = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?|[0-9A-Fa-f:.]+"
)
_UDP_PAYLOAD = 1232
"""Octets of an answer over UDP: what passes every path unfragmented (DNS flag day 2020)."""


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

    async def addresses(self, name: str) -> tuple[Address, ...]:
        """Return all addresses of a host name, those of IPv6 first.

        Raises ChallengeFailed dns: no such name, no addresses, or neither question answered.
        """
        v6, v4 = await asyncio.gather(
            self._ask(name, RdataType.AAAA), self._ask(name, RdataType.A), return_exceptions=True
        )
        found: list[Address] = []
        failures: list[BaseException] = []
        for answer in (v6, v4):
            if isinstance(answer, BaseException):
                failures.append(answer)
            else:
                found += [
                    ipaddress.ip_address(record.address)
                    for record in answer
                    if isinstance(record, A | AAAA)
                ]
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
        return tuple(
            b"".join(record.strings)
            for record in await self._ask(name, RdataType.TXT)
            if isinstance(record, TXT)
        )

    async def caa(self, name: str) -> tuple[CAARecord, ...]:
        """Return the CAA records at exactly this name (or what it is an alias of); none is ().

        Raises ChallengeFailed dns: not answered. A name that does not exist has none.
        """
        return tuple(
            CAARecord(bool(record.flags & 0x80), _lower(record.tag), record.value)
            for record in await self._ask(name, RdataType.CAA, absent_ok=True)
            if isinstance(record, CAA)
        )

    async def _ask(
        self, name: str, kind: RdataType, *, absent_ok: bool = False
    ) -> tuple[object, ...]:
        try:
            # The dot at the end keeps search lists of the system out of it.
            answer = await self._resolver().resolve(
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
                "dns", f"DNS could not be asked for the {kind.name} records of {name}"
            ) from error
        return tuple(answer.rrset or ())

    def _resolver(self) -> dns.asyncresolver.Resolver:
        """Make a resolver; the system's settings are read anew, for they change under a server."""
        if self._servers:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers = [
                dns.nameserver.Do53Nameserver(str(address), port) for address, port in self._servers
            ]
        else:
            try:
                resolver = dns.asyncresolver.Resolver()
            except dns.exception.DNSException as error:
                raise ConfigurationError(
                    "acme.resolvers: none are set and the system names none"
                ) from error
        resolver.lifetime = self._lifetime_seconds
        resolver.use_edns(0, 0, _UDP_PAYLOAD)
        return resolver


def _lower(tag: bytes) -> str:
    """RFC 8659 §4.1: "Matching of tags is case insensitive"."""
    return tag.decode("ascii", "replace").lower()


def _read_server(text: str) -> tuple[Address, int]:
    match = _SERVER.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        port = int(match["port"] or _DNS_PORT)
        if not 1 <= port <= 65535:
            raise ValueError(port)
        return ipaddress.ip_address(match["v6"] or match["v4"] or text), port
    except ValueError as error:
        raise ConfigurationError(
            f"acme.resolvers: {text!r} is not ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT"
        ) from error
