"""The state machines of RFC 8555 §7.1.6 as tables, and what is derived instead of stored. Pure.

Stored are: the status of accounts and of challenges, and that a client gave up an authorization.
The status of authorizations and orders is derived from these and the time, so that nothing can say
one thing here and another there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from estserver.model import EnrollmentState


class AccountStatus(StrEnum):
    """RFC 8555 §7.1.2."""

    VALID = "valid"
    DEACTIVATED = "deactivated"
    REVOKED = "revoked"


class ChallengeStatus(StrEnum):
    """RFC 8555 §8."""

    PENDING = "pending"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


class AuthorizationStatus(StrEnum):
    """RFC 8555 §7.1.4."""

    PENDING = "pending"
    VALID = "valid"
    INVALID = "invalid"
    DEACTIVATED = "deactivated"
    EXPIRED = "expired"
    REVOKED = "revoked"


class OrderStatus(StrEnum):
    """RFC 8555 §7.1.3."""

    PENDING = "pending"
    READY = "ready"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


ACCOUNT_MOVES: Mapping[AccountStatus, frozenset[AccountStatus]] = {
    AccountStatus.VALID: frozenset({AccountStatus.DEACTIVATED, AccountStatus.REVOKED}),
    AccountStatus.DEACTIVATED: frozenset(),
    AccountStatus.REVOKED: frozenset(),
}
CHALLENGE_MOVES: Mapping[ChallengeStatus, frozenset[ChallengeStatus]] = {
    ChallengeStatus.PENDING: frozenset({ChallengeStatus.PROCESSING}),
    ChallengeStatus.PROCESSING: frozenset({ChallengeStatus.VALID, ChallengeStatus.INVALID}),
    ChallengeStatus.VALID: frozenset(),
    ChallengeStatus.INVALID: frozenset(),
}
AUTHORIZATION_MOVES: Mapping[AuthorizationStatus, frozenset[AuthorizationStatus]] = {
    AuthorizationStatus.PENDING: frozenset(
        # Giving up a pending authorization is what §7.5.2 is used for most: it frees a limit.
        {
            AuthorizationStatus.VALID,
            AuthorizationStatus.INVALID,
            AuthorizationStatus.DEACTIVATED,
        }
    ),
    AuthorizationStatus.VALID: frozenset(
        {
            AuthorizationStatus.DEACTIVATED,
            AuthorizationStatus.EXPIRED,
            AuthorizationStatus.REVOKED,
        }
    ),
    AuthorizationStatus.INVALID: frozenset(),
    AuthorizationStatus.DEACTIVATED: frozenset(),
    AuthorizationStatus.EXPIRED: frozenset(),
    AuthorizationStatus.REVOKED: frozenset(),
}
ORDER_MOVES: Mapping[OrderStatus, frozenset[OrderStatus]] = {
    OrderStatus.PENDING: frozenset({OrderStatus.READY, OrderStatus.INVALID}),
    OrderStatus.READY: frozenset({OrderStatus.PROCESSING, OrderStatus.INVALID}),
    OrderStatus.PROCESSING: frozenset({OrderStatus.VALID, OrderStatus.INVALID}),
    OrderStatus.VALID: frozenset(),
    OrderStatus.INVALID: frozenset(),
}


def authorization_status(
    challenges: Iterable[ChallengeStatus], *, deactivated: bool, expires: datetime, now: datetime
) -> AuthorizationStatus:
    """Derive the status of an authorization from its challenges and the time."""
    statuses = set(challenges)
    if deactivated:
        return AuthorizationStatus.DEACTIVATED
    if ChallengeStatus.VALID in statuses:
        return AuthorizationStatus.VALID if now < expires else AuthorizationStatus.EXPIRED
    # A failed challenge settles it: the client may not try another type (§7.1.6).
    if ChallengeStatus.INVALID in statuses or now >= expires:
        return AuthorizationStatus.INVALID
    return AuthorizationStatus.PENDING


@dataclass(frozen=True, slots=True)
class OrderFacts:
    """What the status of an order follows from. `enrollment` is the one under its authority key."""

    authorizations: tuple[AuthorizationStatus, ...]
    enrollment: EnrollmentState | None
    expires: datetime


def order_status(facts: OrderFacts, now: datetime) -> OrderStatus:
    """Derive the status of an order.

    Once there is an enrollment it alone decides: an authorization that runs out later takes no
    certificate back.
    """
    if facts.enrollment is not None:
        return _OF_ENROLLMENT[facts.enrollment]
    statuses = set(facts.authorizations)
    lost = statuses - {AuthorizationStatus.PENDING, AuthorizationStatus.VALID}
    if lost or now >= facts.expires:
        return OrderStatus.INVALID
    if AuthorizationStatus.PENDING in statuses:
        return OrderStatus.PENDING
    return OrderStatus.READY


_OF_ENROLLMENT: Mapping[EnrollmentState, OrderStatus] = {
    EnrollmentState.PENDING: OrderStatus.PROCESSING,
    EnrollmentState.APPROVED: OrderStatus.PROCESSING,
    EnrollmentState.REJECTED: OrderStatus.INVALID,
    EnrollmentState.ISSUING: OrderStatus.PROCESSING,
    EnrollmentState.ISSUED: OrderStatus.VALID,
    EnrollmentState.ABANDONED: OrderStatus.INVALID,
}
