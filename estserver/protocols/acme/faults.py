"""Faults on purpose, for people who harden their own clients: `serve --test-mode` alone arms them.

`ESTSERVER_FAULTS=badnonce=5,error=2,delay=100,authzreuse=50,page=1`: the percentage of requests
whose good nonce is refused, of those that end in a 500, by how many milliseconds answers are
delayed at most, how many percent of the names that a challenge has shown are taken as shown in the
next order, and how many orders a page of the list of orders holds.
"""

import re
import secrets
from dataclasses import dataclass

from estserver.errors import ConfigurationError, Fault
from estserver.protocols.acme.nonces import bad_nonce

_TERM = re.compile(
    r"(badnonce|error|authzreuse)=(100|[0-9]{1,2})|(delay)=([0-9]{1,5})|(page)=([1-9][0-9]{0,3})"
)


@dataclass(frozen=True, slots=True)
class Faults:
    """How often what goes wrong: in percent, but `delay` in milliseconds and `page` in orders."""

    badnonce: int = 0
    error: int = 0
    delay: int = 0
    authzreuse: int = 100
    page: int = 50

    def strike(self) -> None:
        """Raise Fault or Problem badNonce as often as was asked for."""
        if self.error and secrets.randbelow(100) < self.error:
            raise Fault("a fault on purpose")
        if self.badnonce and secrets.randbelow(100) < self.badnonce:
            raise bad_nonce()

    def reuses(self) -> bool:
        """Tell whether a name that a challenge has shown need not be shown again this time."""
        return secrets.randbelow(100) < self.authzreuse

    def seconds(self) -> float:
        """Return how long the next answer shall wait."""
        return secrets.randbelow(self.delay + 1) / 1000


armed = Faults()
"""What is armed in this process; replaced by `arm`."""


def arm(text: str) -> None:
    """Arm faults; the empty text disarms. Raises ConfigurationError."""
    global armed  # noqa: PLW0603 - test mode is a fact of the process
    found: dict[str, int] = {}
    for term in filter(None, text.split(",")):
        match = _TERM.fullmatch(term.strip())
        if match is None:
            raise ConfigurationError(
                "ESTSERVER_FAULTS: not a list of badnonce=PERCENT, error=PERCENT, "
                "delay=MILLISECONDS, authzreuse=PERCENT, page=ORDERS"
            )
        name, value = filter(None, match.groups())
        found[name] = int(value)
    armed = Faults(**found)
