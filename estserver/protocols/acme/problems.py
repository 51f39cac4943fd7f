"""Problem documents: what an ACME client is told when something is refused (RFC 8555 §6.7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    BadCSR,
    Conflict,
    CredentialsRequired,
    Error,
    Fault,
    IdentityMismatch,
    LinkingFailed,
    NamesNotAllowed,
    NotEntitled,
    NotFound,
    Refused,
    RegistrationClosed,
    TooManyAttempts,
    Unavailable,
)
from estserver.http import BodyTooLarge, UnsupportedMediaType

URN = "urn:ietf:params:acme:error:"
CONTENT_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Identifier:
    """What an account wants certified: `type` dns or ip, `value` in its normal form."""

    type: str
    value: str

    def json(self) -> dict[str, str]:
        """Return the object of RFC 8555 §7.1.3."""
        return {"type": self.type, "value": self.value}


class Problem(Refused):
    """A refusal in ACME's own words; `kind` is the last part of its URN.

    `members` are further members of the document, `links` pairs of rel and URL.
    """

    code = "acme-problem"

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        status: int = 400,
        members: Mapping[str, Any] | None = None,
        links: Sequence[tuple[str, str]] = (),
        location: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status = status
        self.members: Mapping[str, Any] = members or {}
        self.links = tuple(links)
        self.location = location


@dataclass(frozen=True, slots=True)
class Subproblem:
    """What is wrong with one identifier of several (RFC 8555 §6.7.1)."""

    kind: str
    detail: str
    identifier: Identifier

    def json(self) -> dict[str, Any]:
        """Return the subproblem object."""
        return {
            "type": URN + self.kind,
            "detail": self.detail,
            "identifier": self.identifier.json(),
        }


def about_identifiers(subproblems: Sequence[Subproblem]) -> Problem:
    """Make one refusal of what is wrong with several identifiers.

    Where all are of one kind that is the kind of the whole, else it is `compound`.
    """
    kinds = {problem.kind for problem in subproblems}
    shown = "; ".join(f"{p.identifier.value}: {p.detail}" for p in subproblems[:5])
    return Problem(
        kinds.pop() if len(kinds) == 1 else "compound",
        f"some identifiers cannot be ordered: {shown}",
        members={"subproblems": [problem.json() for problem in subproblems]},
    )


def malformed(detail: str) -> Problem:
    """Make the refusal of a request that breaks the protocol's form."""
    return Problem("malformed", detail)


def unauthorized(detail: str, status: int = 403) -> Problem:
    """Make the refusal of a request that its signer may not make."""
    return Problem("unauthorized", detail, status=status)


RENDER: Mapping[type[Error], tuple[str, int]] = {
    Refused: ("malformed", 400),
    BadCSR: ("badCSR", 400),
    LinkingFailed: ("badCSR", 400),
    IdentityMismatch: ("badCSR", 400),
    NamesNotAllowed: ("rejectedIdentifier", 403),
    CredentialsRequired: ("unauthorized", 401),
    BadCredentials: ("unauthorized", 403),
    AlreadyIssued: ("unauthorized", 403),
    NotEntitled: ("unauthorized", 403),
    # §7.3.6 has 401 for accounts that are closed; a registration that is closed closes them.
    RegistrationClosed: ("unauthorized", 401),
    TooManyAttempts: ("rateLimited", 429),
    NotFound: ("malformed", 404),
    Conflict: ("malformed", 409),
    BodyTooLarge: ("malformed", 413),
    UnsupportedMediaType: ("malformed", 415),
    Fault: ("serverInternal", 500),
    Unavailable: ("serverInternal", 503),
}
"""Problem type and status by error class; one that is not listed has those of its nearest base."""


def kind_and_status(error: Error) -> tuple[str, int]:
    """Return problem type and status code of an error by its class or nearest base."""
    if isinstance(error, Problem):
        return error.kind, error.status
    return next(RENDER[base] for base in type(error).__mro__ if base in RENDER)


def document(error: Error, reference: str) -> dict[str, Any]:
    """Return the problem document of an error; of a fault it tells nothing but the reference."""
    kind, status = kind_and_status(error)
    body: dict[str, Any] = {"type": URN + kind, "detail": _detail(error), "status": status}
    if isinstance(error, Problem):
        body |= error.members
    if isinstance(error, Fault):
        body["detail"] += f" (reference {reference})"
    return body


def _detail(error: Error) -> str:
    match error:
        case Unavailable():
            return "the service cannot take this request now: try again later"
        case Fault():
            return "internal error"
        case _:
            return error.detail
