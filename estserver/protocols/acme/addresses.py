"""Which addresses a validation may dial: the wall between accounts and the networks around us.

Invariants: every address that a name resolves to is judged before the first packet leaves, and
what is dialled is the judged address itself, never the name again (INC-13). A network is opened
by `acme.allow_networks` only, and only inside the special range it names, so that 10.0.0.0/8
does not open 169.254.169.254. Our own listeners stay shut whatever is opened.
"""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from estserver.errors import BadInput, ConfigurationError
from estserver.names import parse_general_name
from estserver.protocols.acme.challenge import ChallengeFailed
from estserver.protocols.acme.lookups import Address, Lookups

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class _Range:
    """A block of the IANA special-purpose registries; `shut` ones no setting opens."""

    network: Network
    title: str
    shut: bool = False


def _range(network: str, title: str, *, shut: bool = False) -> _Range:
    return _Range(ipaddress.ip_network(network), title, shut=shut)


# RFC 6890 and the registries it founded; blocks that are globally reachable are left out.
_SPECIAL = (
    _range("0.0.0.0/8", "this network", shut=True),
    _range("10.0.0.0/8", "private use"),
    _range("100.64.0.0/10", "shared address space"),
    _range("127.0.0.0/8", "loopback"),
    _range("169.254.0.0/16", "link-local, cloud metadata"),
    _range("172.16.0.0/12", "private use"),
    _range("192.0.0.0/24", "protocol assignments"),
    _range("192.0.2.0/24", "documentation"),
    _range("192.88.99.0/24", "6to4 relays"),
    _range("192.168.0.0/16", "private use"),
    _range("198.18.0.0/15", "benchmarking"),
    _range("198.51.100.0/24", "documentation"),
    _range("203.0.113.0/24", "documentation"),
    _range("224.0.0.0/4", "multicast", shut=True),
    _range("240.0.0.0/4", "reserved, broadcast", shut=True),
    _range("::1/128", "loopback"),
    # The kernel would dial the IPv4 address inside: an IPv4 address has to come as one.
    _range("::ffff:0:0/96", "IPv4-mapped", shut=True),
    _range("64:ff9b::/96", "NAT64"),
    _range("2001::/23", "protocol assignments, Teredo"),
    _range("2001:db8::/32", "documentation"),
    _range("2002::/16", "6to4"),
    _range("3fff::/20", "documentation"),
    _range("fc00::/7", "unique local"),
    _range("fe80::/10", "link-local"),
    _range("ff00::/8", "multicast", shut=True),
)
# Of IPv6 nothing else is in use, and what is not in use has no business here.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_ELSEWHERE = _range("::/0", "not global unicast", shut=True)


@dataclass(frozen=True, slots=True)
class OwnListener:
    """A socket of ours; `bind` None is every address of this machine."""

    bind: Address | None
    port: int


class AddressRules:
    """Says which addresses may be dialled."""

    def __init__(self, allowed: Sequence[str], own: Sequence[OwnListener]) -> None:
        """Raise ConfigurationError: a network that is none, or that spans special ranges."""
        self._allowed = tuple(_read_network(text) for text in allowed)
        self._own = tuple(own)

    def judge(self, address: Address, port: int) -> None:
        """Raise ChallengeFailed connection unless `address` and `port` may be dialled.

        The detail names the kind of the address and never the address: what internal names
        resolve to is not for every account to read.
        """
        special = _special(address)
        if special is not None and (special.shut or not self._opened(address)):
            raise ChallengeFailed(
                "connection",
                f"the host has an address that may not be reached from here ({special.title}); "
                "the administrator can allow networks",
            )
        inner = _embedded(address)
        if inner is not None:
            self.judge(inner, port)
        if any(_is_own(own, address, port) for own in self._own):
            raise ChallengeFailed("connection", "the host is this server itself")

    def _opened(self, address: Address) -> bool:
        return any(address in network for network in self._allowed)


class Dialler:
    """From a host and a port to the addresses that may be dialled for them."""

    def __init__(self, lookups: Lookups, rules: AddressRules) -> None:
        self._lookups = lookups
        self._rules = rules

    async def targets(self, host: str, port: int) -> tuple[Address, ...]:
        """Resolve `host` once and return what to dial: an IPv6 address, then an IPv4 one.

        `host` is a host name or an address without brackets. One address of each family is
        enough: "v6 first, one fallback" is what Boulder does, and what operators expect.
        Raises ChallengeFailed: dns where the name has no addresses or cannot be resolved,
        connection where `host` is no host name or any of its addresses may not be dialled.
        """
        addresses = await self._addresses(host)
        for address in addresses:
            self._rules.judge(address, port)
        first_of_family = {address.version: address for address in reversed(addresses)}
        return tuple(first_of_family[version] for version in (6, 4) if version in first_of_family)

    async def _addresses(self, host: str) -> tuple[Address, ...]:
        literal = read_address(host)
        if literal is not None:
            return (literal,)
        try:
            name = parse_general_name(f"dns:{host}").value
        except BadInput as error:
            # With it 127.1, 2130706433, 0177.0.0.1 and 0x7f000001, which resolvers and libraries
            # may take for addresses: nothing is resolved that ends in a number.
            raise ChallengeFailed("connection", "the host is not a plain host name") from error
        if name.startswith("*"):
            raise ChallengeFailed("connection", "the host is a wildcard")
        return await self._lookups.addresses(name)


def read_address(text: str) -> Address | None:
    """Read an address in its plain form; None where `text` is none, or has a zone."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return None
    return address


def _read_network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigurationError(
            f"acme.allow_networks: {text!r} is not a network such as 10.0.0.0/8"
        ) from error
    if not any(_within(network, special.network) for special in _SPECIAL if not special.shut):
        raise ConfigurationError(
            f"acme.allow_networks: {text} does not lie within one range that is closed by default "
            "and may be opened, such as 10.0.0.0/8; public networks need no entry"
        )
    return network


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def _special(address: Address) -> _Range | None:
    for special in _SPECIAL:
        if address in special.network:
            return special
    return None if address.version == 4 or address in _GLOBAL_UNICAST else _ELSEWHERE


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that a gateway would dial for this one."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in ipaddress.ip_network("64:ff9b::/96"):  # RFC 6052 §2.1
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def _is_own(own: OwnListener, address: Address, port: int) -> bool:
    if own.port != port:
        return False
    return address == own.bind if own.bind is not None else _is_this_machine(address)


def _is_this_machine(address: Address) -> bool:
    """Ask the kernel: it dials an address of its own from that very address.

    Connecting a datagram socket sends nothing.
    """
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            # No route: the dial that follows will say so.
            return False
        return ipaddress.ip_address(probe.getsockname()[0]) == address
