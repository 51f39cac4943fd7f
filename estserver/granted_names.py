"""Granted names: what a CSR asks for, compared with what may be certified. Pure.

A CSR is only ever compared; what stands in the certificate comes from the grant.
"""

from collections.abc import Hashable, Mapping

from cryptography import x509
from cryptography.x509.oid import NameOID

from estserver.csr import CSR
from estserver.errors import IdentityMismatch, NamesNotAllowed
from estserver.model import Grant, Invitation
from estserver.names import (
    canonical_general_name,
    display_name,
    format_general_name,
    same_name,
)


def require_within(csr: CSR, grant: Grant) -> None:
    """Let a CSR ask for less than the grant, never for anything outside it (RFC 7030 §3.7)."""
    # Most ask for what is granted letter by letter, which takes no folding to see.
    if others := [name for name in csr.names if name not in grant.names]:
        granted = {canonical_general_name(name) for name in grant.names}
        for name in others:
            if canonical_general_name(name) not in granted:
                raise outside(format_general_name(name))
    attributes = list(grant.subject)
    if unlike := [attribute for attribute in csr.subject if attribute not in attributes]:
        hosts = {
            str(name.value).lower()
            for name in grant.names
            if isinstance(name, x509.DNSName | x509.IPAddress)
        }
        allowed = [x509.Name([attribute]) for attribute in attributes]
        for attribute in unlike:
            is_host = attribute.oid == NameOID.COMMON_NAME and str(attribute.value).lower() in hosts
            alone = x509.Name([attribute])
            if not is_host and not any(same_name(alone, one) for one in allowed):
                raise outside(display_name(alone))


def require_ordered(csr: CSR, grant: Grant) -> None:
    """RFC 8555 §7.4: "The CSR MUST indicate the exact same set of requested identifiers".

    They may stand in the subjectAltName or in the CN; whatever else a subject holds is not looked
    at, since nothing of it is copied.
    """
    asked = {canonical_general_name(name): format_general_name(name) for name in csr.names}
    ordered = {canonical_general_name(name): format_general_name(name) for name in grant.names}
    hosts = {
        str(name.value).lower(): canonical_general_name(name)
        for name in grant.names
        if isinstance(name, x509.DNSName | x509.IPAddress)
    }
    for attribute in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        text = str(attribute.value)
        named = hosts.get(text.lower(), ("cn", text))
        asked[named] = ordered.get(named, f"CN={text}")
    if how := _difference(asked, ordered):
        raise IdentityMismatch(f"the CSR {how} compared with the order; they must be the same")


def covers(invitation: Invitation, name: x509.GeneralName) -> bool:
    """Tell whether a registration grants `name`.

    One that grants `*.example.org` grants `a.example.org` too: its holder could answer for that
    host with the wildcard certificate anyway.
    """
    granted = {canonical_general_name(one) for one in invitation.names}
    if canonical_general_name(name) in granted:
        return True
    if not isinstance(name, x509.DNSName) or name.value.startswith("*."):
        return False
    wildcard = x509.DNSName(f"*.{name.value.partition('.')[2]}")
    return canonical_general_name(wildcard) in granted


def outside(shown: str) -> NamesNotAllowed:
    """Make the refusal of a name that a registration does not grant; `shown` is its text form."""
    return NamesNotAllowed(
        f"the registration does not grant {shown}; leave it out or ask the administrator",
        values={"name": shown},
    )


def require_same(csr: CSR, grant: Grant) -> None:
    """RFC 7030 §4.2.2: Subject and SubjectAltName MUST be identical to the certificate's."""
    if csr.subject != grant.subject and not same_name(csr.subject, grant.subject):
        raise IdentityMismatch(
            f"the CSR's subject is {display_name(csr.subject) or 'empty'}, it must be "
            f"{display_name(grant.subject) or 'empty'}, as in the certificate being renewed"
        )
    if frozenset(csr.names) == grant.names:
        return
    asked = {canonical_general_name(name): format_general_name(name) for name in csr.names}
    granted = {canonical_general_name(name): format_general_name(name) for name in grant.names}
    if how := _difference(asked, granted):
        raise IdentityMismatch(
            f"the CSR's subjectAltName {how} compared with the certificate being renewed; they "
            "must be the same"
        )


_Shown = Mapping[tuple[str, Hashable], str]


def _difference(asked: _Shown, wanted: _Shown) -> str:
    """Say what was asked for besides what is wanted, and what was not; empty: they are the same."""
    more = ", ".join(sorted(asked[key] for key in asked.keys() - wanted.keys()))
    less = ", ".join(sorted(wanted[key] for key in wanted.keys() - asked.keys()))
    parts = [f"adds {more}"] * bool(more) + [f"lacks {less}"] * bool(less)
    return " and ".join(parts)
