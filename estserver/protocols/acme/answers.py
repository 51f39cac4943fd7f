"""What handlers return, and the JSON of each resource (RFC 8555 §7.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from estserver.protocols.acme.authorization_records import Authorization, Challenge
from estserver.protocols.acme.problems import URN
from estserver.protocols.acme.records import Account, Order
from estserver.protocols.acme.states import (
    AuthorizationStatus,
    ChallengeStatus,
    OrderStatus,
)
from estserver.protocols.acme.urls import URLs


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply but for the headers that every reply has.

    `links` are pairs of rel and URL. `content` with `content_type` where it is no JSON; then
    `carries_certificate` may be true.
    """

    body: Mapping[str, Any] | None = None
    status: int = 200
    location: str | None = None
    links: tuple[tuple[str, str], ...] = ()
    retry_after: int | None = None
    content: bytes = b""
    content_type: str = "application/json"
    carries_certificate: bool = False
    enrollment: str | None = None


@dataclass(frozen=True, slots=True)
class OrderView:
    """An order with everything that was derived; `enrollment` is the id of what came of it."""

    order: Order
    status: OrderStatus
    enrollment: str | None
    error: Mapping[str, Any] | None


def rfc3339(moment: datetime) -> str:
    """Return a time as RFC 3339 has it, UTC."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def problem_json(kind: str, detail: str, status: int = 403) -> dict[str, Any]:
    """Return a problem document to stand inside another resource."""
    return {"type": URN + kind, "detail": detail, "status": status}


def account_json(account: Account, urls: URLs, *, created: bool = False) -> dict[str, Any]:
    """Return the account object; the binding only in the answer that made the account.

    RFC 8555 §7.3.4 wants it there; certbot's library breaks on it later.
    """
    body: dict[str, Any] = {
        "status": account.status.value,
        "contact": list(account.contacts),
        "orders": urls.orders(account.id),
    }
    if account.terms is not None:
        body["termsOfServiceAgreed"] = True
    if created and account.binding is not None:
        body["externalAccountBinding"] = dict(account.binding)
    return body


def order_json(view: OrderView, urls: URLs) -> dict[str, Any]:
    """Return the order object."""
    order = view.order
    body: dict[str, Any] = {
        "status": view.status.value,
        "expires": rfc3339(order.expires_at),
        "identifiers": [identifier.json() for identifier in order.identifiers],
        "authorizations": [urls.authorization(one) for one in order.authorizations],
        "finalize": urls.finalize(order.id),
        "profile": order.profile,
    }
    if order.not_before is not None:
        body["notBefore"] = rfc3339(order.not_before)
    if order.not_after is not None:
        body["notAfter"] = rfc3339(order.not_after)
    if order.replaces is not None:
        body["replaces"] = order.replaces
    if view.status is OrderStatus.VALID:
        body["certificate"] = urls.certificate(order.id)
    if view.status is OrderStatus.INVALID and view.error is not None:
        body["error"] = dict(view.error)
    return body


def authorization_json(authorization: Authorization, urls: URLs, now: datetime) -> dict[str, Any]:
    """Return the authorization object; once it is settled, only the challenge that settled it."""
    status = authorization.status(now)
    shown = authorization.challenges
    if status is not AuthorizationStatus.PENDING:
        done = {ChallengeStatus.VALID, ChallengeStatus.INVALID}
        shown = tuple(one for one in shown if one.status in done) or shown
    body: dict[str, Any] = {
        "status": status.value,
        "identifier": authorization.identifier.json(),
        "expires": rfc3339(authorization.expires_at),
        "challenges": [challenge_json(one, urls) for one in shown],
    }
    if authorization.wildcard:
        body["wildcard"] = True
    return body


def challenge_json(challenge: Challenge, urls: URLs) -> dict[str, Any]:
    """Return the challenge object."""
    body: dict[str, Any] = {
        "type": challenge.type,
        "url": urls.challenge(challenge.id),
        "status": challenge.status.value,
        "token": challenge.token,
    }
    if challenge.validated_at is not None:
        body["validated"] = rfc3339(challenge.validated_at)
    if challenge.error is not None:
        body["error"] = dict(challenge.error)
    return body
