"""PINs right and wrong, tried at both doors."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from estserver import pin
from estserver.errors import BadCredentials, TooManyAttempts
from estserver.invitations import Handover
from estserver.model import Secret
from estserver.steps import walk
from tests.parts import SOURCE, Parts

MakeParts = Callable[..., Parts]
SECOND = timedelta(seconds=1)


def person(parts: Parts, **fields: Any) -> Handover:
    return parts.invite("person", **fields)


def wrong(length: int = pin.SHORT) -> Secret:
    return pin.generate(length)


def try_pin(
    parts: Parts, handover: Handover, typed: Secret | None = None
) -> type[Exception] | None:
    """Type a PIN behind the URL; return what was raised."""
    assert handover.token is not None
    invitation = parts.invitations.by_token(handover.token.reveal())
    secret = typed or handover.pin
    assert secret is not None
    try:
        parts.invitations.confirm(invitation, secret, source=SOURCE)
    except (BadCredentials, TooManyAttempts) as error:
        return type(error)
    return None


def redeem(
    parts: Parts, number: str, secret: Secret, source: str = SOURCE
) -> tuple[type[Exception], str] | None:
    """Show a PIN at the guessable door; return class and text of what was raised."""
    try:
        walk(parts.invitations.redeeming(number, secret, source=source), parts.store)
    except (BadCredentials, TooManyAttempts) as error:
        return type(error), error.detail
    return None
