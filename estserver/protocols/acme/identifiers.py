"""Identifiers from the wire: dns and ip, in one normal form each (RFC 8555 §7.1.3, RFC 8738)."""

import ipaddress
from collections.abc import Sequence
from typing import Any

from cryptography import x509

from estserver.errors import BadInput
from estserver.names import format_general_name, parse_general_name
from estserver.protocols.acme.problems import (
    Identifier,
    Problem,
    Subproblem,
    about_identifiers,
    malformed,
)

_MAX_IDENTIFIERS = 100
_MAX_SHOWN = 256


def read_identifiers(value: object) -> tuple[Identifier, ...]:
    """Read the `identifiers` of a newOrder: in their order, normal form, doubles dropped.

    Raises Problem malformed, unsupportedIdentifier, rejectedIdentifier, or compound with one
    subproblem for each identifier that is wrong.
    """
    if not isinstance(value, list) or not value:
        raise malformed("identifiers must be a list of at least one")
    if len(value) > _MAX_IDENTIFIERS:
        raise malformed(f"an order takes at most {_MAX_IDENTIFIERS} identifiers")
    found: dict[Identifier, None] = {}
    wrong: list[Subproblem] = []
    for each in value:
        raw = _read_raw(each)
        try:
            found[_normal(raw)] = None
        except Problem as error:
            wrong.append(Subproblem(error.kind, error.detail, raw))
    if wrong:
        raise about_identifiers(wrong)
    return tuple(found)


def read_identifier(value: object) -> Identifier:
    """Read one identifier, as newAuthz takes it. Raises Problem."""
    return _normal(_read_raw(value))


def general_name(identifier: Identifier) -> x509.GeneralName:
    """Return an identifier in normal form as it stands in certificates."""
    return parse_general_name(f"{identifier.type}:{identifier.value}")


def general_names(identifiers: Sequence[Identifier]) -> tuple[x509.GeneralName, ...]:
    """Return identifiers in normal form as they stand in certificates, in the same order."""
    return tuple(general_name(identifier) for identifier in identifiers)


def _read_raw(value: Any) -> Identifier:
    if not isinstance(value, dict):
        raise malformed("an identifier must be an object of type and value")
    kind, name = value.get("type"), value.get("value")
    if not isinstance(kind, str) or not isinstance(name, str) or not name:
        raise malformed("an identifier needs type and value, both strings")
    return Identifier(kind[:_MAX_SHOWN], name)


def _normal(raw: Identifier) -> Identifier:
    if raw.type not in {"dns", "ip"}:
        raise Problem("unsupportedIdentifier", "only the types dns and ip can be ordered")
    if raw.type == "ip":
        return Identifier("ip", _normal_address(raw.value))
    if not raw.value.isascii():
        # RFC 8555 §7.1.3: "MUST be encoded … as A-labels".
        raise malformed("a dns identifier must be ASCII, international names as A-labels")
    try:
        name = parse_general_name(f"dns:{raw.value}")
    except BadInput as error:
        raise malformed(error.detail) from error
    return Identifier("dns", format_general_name(name).removeprefix("dns:"))


def _normal_address(text: str) -> str:
    """RFC 8738 §3: the form of RFC 5952 §4, and of dotted decimal, "without leading zeros"."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise malformed("an ip identifier must be one IPv4 or IPv6 address") from error
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped is not None or address.scope_id is not None
    ):
        raise malformed("an ip identifier may be neither mapped from IPv4 nor have a zone")
    if str(address) != text:
        raise malformed(f"write this address as {address} (RFC 5952)")
    return text
