"""nameConstraints of an issuing CA (RFC 5280 §4.2.1.10): names it may not certify. Pure.

`cryptography` enforces them when it verifies a chain, which is too late: a relying party would
reject what we had issued. So they are judged here, before anything is planned.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

from cryptography import x509

from estserver.names import same_name


def constraints_of(issuer: x509.Certificate) -> x509.NameConstraints | None:
    """Return what limits the names that `issuer` may certify; None: nothing does."""
    try:
        return issuer.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None


def forbidden(
    found: x509.NameConstraints | None, subject: x509.Name, names: Iterable[x509.GeneralName]
) -> list[x509.GeneralName]:
    """Return those of subject and `names` that constraints do not let pass."""
    if found is None:
        return []
    everything = [*names, *([x509.DirectoryName(subject)] if len(subject) else [])]
    return [
        name
        for name in everything
        if not _permitted(name, found.permitted_subtrees or [])
        or any(_within(name, tree) for tree in found.excluded_subtrees or [])
    ]


def _permitted(name: x509.GeneralName, trees: list[x509.GeneralName]) -> bool:
    """A kind of name that no permitted subtree speaks of is unrestricted."""
    own_kind = [tree for tree in trees if type(tree) is type(name)]
    return not own_kind or any(_within(name, tree) for tree in own_kind)


def _within(name: x509.GeneralName, tree: x509.GeneralName) -> bool:
    match name, tree:
        case x509.DNSName(), x509.DNSName():
            return _is_below(name.value.removeprefix("*."), tree.value)
        case x509.RFC822Name(), x509.RFC822Name():
            return _mail_within(name.value, tree.value)
        case x509.UniformResourceIdentifier(), x509.UniformResourceIdentifier():
            return _host_within(urlsplit(name.value).hostname or "", tree.value)
        case x509.IPAddress(), x509.IPAddress():
            return _address_within(name, tree)
        case x509.DirectoryName(), x509.DirectoryName():
            rdns = list(name.value.rdns)[: len(list(tree.value.rdns))]
            return same_name(x509.Name(rdns), tree.value)
    return False


def _is_below(host: str, tree: str) -> bool:
    """DNS: the constraint itself and everything with labels added on the left."""
    host, tree = host.lower(), tree.lower().removeprefix(".")
    return not tree or host == tree or host.endswith(f".{tree}")


def _mail_within(address: str, tree: str) -> bool:
    """Mail: one mailbox, all mailboxes of one host, or (leading dot) of the hosts below."""
    if "@" in tree:
        return address.lower() == tree.lower()
    return _host_within(address.rpartition("@")[2], tree)


def _host_within(host: str, tree: str) -> bool:
    host, tree = host.lower(), tree.lower()
    return host.endswith(tree) if tree.startswith(".") else host == tree


def _address_within(name: x509.IPAddress, tree: x509.IPAddress) -> bool:
    address, network = name.value, tree.value
    return (
        isinstance(address, IPv4Address | IPv6Address)
        and isinstance(network, IPv4Network | IPv6Network)
        and address.version == network.version
        and address in network
    )
