"""What a door is: the interface every protocol and every set of pages implements.

A new protocol is one class and one line in `server.PROTOCOLS`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from aiohttp import web

from estserver.authentication import Authenticator
from estserver.ca.chains import Chains
from estserver.config import Settings
from estserver.convoy import Convoy
from estserver.duties import Duties
from estserver.errors import Refused, Unavailable
from estserver.invitations import Invitations
from estserver.journal import FileJournal
from estserver.keyring import Keyring
from estserver.model import Clock, Origin
from estserver.profiles import Profile
from estserver.ra import RegistrationAuthority
from estserver.status import StatusAuthority
from estserver.steps import Steps
from estserver.store import Store

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Services:
    """What a door may use. The core is synchronous: call it through `run`, or walk its steps."""

    settings: Settings
    clock: Clock
    store: Store
    """For what a protocol remembers of its own; certificates are the core's business."""
    keyring: Keyring
    profiles: Mapping[str, Profile]
    chains: Chains
    invitations: Invitations
    authenticator: Authenticator
    ra: RegistrationAuthority
    status: StatusAuthority
    journal: FileJournal | None
    executor: Executor
    convoy: Convoy
    duties: Duties
    """For what a door does again and again: `background` may return `duties.perform(Duty(…))`."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking call of the core on the thread pool.

        A client that hangs up does not stop it half-way: the call is shielded.
        """
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(self.executor, lambda: function(*args, **kwargs))
        return await asyncio.shield(call)

    async def walk(self, steps: Steps[T]) -> T:
        """Walk through the core in company: for what many customers ask at the same time.

        A client that hangs up does not stop it half-way.
        """
        return await self.convoy.walk(steps)

    async def record_refusal(self, applicant: str, error: Refused, origin: Origin) -> None:
        """Put the refusal of an identified applicant into the audit trail.

        A database that cannot take it must not turn a clear refusal into a fault: the request's
        log line says the same.
        """
        with contextlib.suppress(Unavailable):
            await self.run(self.ra.record_refusal, applicant, error, origin)


class EnrollmentProtocol(Protocol):
    """One door. `name` stands in a listener's `serves`; `prefix` is its mount point."""

    name: str
    prefix: str

    def application(self) -> web.Application:
        """Return the routes with their own error rendering."""
        ...

    def background(self) -> Sequence[Coroutine[None, None, None]]:
        """Return tasks to run for as long as the server does."""
        ...
