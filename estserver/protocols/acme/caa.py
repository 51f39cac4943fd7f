"""CAA: whether the owner of a name lets this CA issue (RFC 8659), to this account (RFC 8657)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from estserver.protocols.acme.challenge import Challenge, ChallengeFailed
from estserver.protocols.acme.lookups import CAARecord, Lookups

_KNOWN = frozenset({"issue", "issuewild", "iodef", "issuemail", "contactemail", "contactphone"})
"""Tags whose meaning we know; those besides issue and issuewild ask nothing of this CA."""

# RFC 8659 §4.2: issue-value, whose value characters are printable but for the semicolon.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_PARAMETER = re.compile(
    r"(?P<tag>[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)[ \t]*=[ \t]*"
    r"(?P<value>[\x21-\x3a\x3c-\x7e]*)"
)


@dataclass(frozen=True, slots=True)
class IssueValue:
    """Whom an issue property names: `issuer` in lower case, empty for nobody.

    `parameters` by tag in lower case; a tag given twice has several values.
    """

    issuer: str
    parameters: Mapping[str, tuple[str, ...]]


def read_issue_value(value: bytes) -> IssueValue | None:
    """Read the grammar of RFC 8659 §4.2; None where `value` breaks it."""
    try:
        text = value.decode("ascii")
    except UnicodeDecodeError:
        return None
    issuer, *rest = (part.strip(" \t") for part in text.split(";"))
    if issuer and not _DOMAIN.fullmatch(issuer):
        return None
    parameters: dict[str, tuple[str, ...]] = {}
    # An empty part at the end is what "ca.example;" leaves.
    for part in rest[:-1] if rest and not rest[-1] else rest:
        match = _PARAMETER.fullmatch(part)
        if match is None:
            return None
        tag = match["tag"].lower()
        parameters[tag] = (*parameters.get(tag, ()), match["value"])
    return IssueValue(issuer.lower(), parameters)


class CAAPolicy:
    """Reads CAA records for this CA, known to them by its `identities`, domain names."""

    def __init__(self, lookups: Lookups, identities: Sequence[str]) -> None:
        self._lookups = lookups
        self._identities = frozenset(name.lower() for name in identities)

    async def require_permission(self, challenge: Challenge) -> None:
        """Raise ChallengeFailed caa unless the records let us issue for this challenge's name."""
        where, records = await self._relevant(challenge.identifier)
        for record in records:
            # RFC 8659 §4.1: a critical property that a CA does not understand forbids issuance.
            if record.critical and record.tag not in _KNOWN:
                raise _forbidden(where, "hold a critical property that is unknown here")
        issue = [record for record in records if record.tag == "issue"]
        wild = [record for record in records if record.tag == "issuewild"]
        # §4.3: where there are any, issuewild takes the place of issue for wildcards.
        judged = wild if challenge.wildcard and wild else issue
        if judged and not any(self._permits(record, challenge) for record in judged):
            raise _forbidden(where, "do not name this CA for this account and method")

    async def _relevant(self, name: str) -> tuple[str, tuple[CAARecord, ...]]:
        """Climb from `name` to the first that has CAA records (RFC 8659 §3)."""
        labels = name.split(".")
        for start in range(len(labels)):
            domain = ".".join(labels[start:])
            try:
                records = await self._lookups.caa(domain)
            except ChallengeFailed as error:
                # What cannot be read may forbid.
                raise ChallengeFailed(
                    "caa", f"the CAA records of {domain} could not be read"
                ) from error
            if records:
                return domain, records
        return name, ()

    def _permits(self, record: CAARecord, challenge: Challenge) -> bool:
        value = read_issue_value(record.value)
        if value is None or value.issuer not in self._identities:
            return False
        # RFC 8657 §3: several accounturi parameters make a property unsatisfiable.
        if value.parameters.get("accounturi", (challenge.account_uri,)) != (challenge.account_uri,):
            return False
        methods = value.parameters.get("validationmethods")
        return methods is None or (
            len(methods) == 1 and challenge.type in re.split(r"[ \t]*,[ \t]*", methods[0])
        )


def _forbidden(where: str, how: str) -> ChallengeFailed:
    return ChallengeFailed("caa", f"the CAA records of {where} {how}")
