"""Attempts at challenges: taken from the database, made by the validator, settled in the database.

Any node may take an attempt; a lease keeps two from taking the same one, and one that is never
settled comes due again. The server tries again by itself before it gives up (RFC 8555 §8.2).
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import structlog

from estserver.errors import Error, NotFound, Unavailable
from estserver.model import Event, Origin
from estserver.protocols import Services
from estserver.protocols.acme import authorization_records, records
from estserver.protocols.acme.answers import problem_json
from estserver.protocols.acme.authorization_records import Authorization, Challenge
from estserver.protocols.acme.challenge import Challenge as Question
from estserver.protocols.acme.challenge import ChallengeFailed
from estserver.protocols.acme.failure_records import name_order
from estserver.protocols.acme.failures import Failures
from estserver.protocols.acme.states import AuthorizationStatus, ChallengeStatus
from estserver.protocols.acme.urls import URLs
from estserver.protocols.acme.validation import Validator
from estserver.store import Transaction
from estserver.store.outages import explained

log = structlog.get_logger("estserver.acme")

RETRY_AFTER = (timedelta(seconds=3), timedelta(seconds=10))
"""How long after each failed attempt the next begins; after the last one there is none."""
_LEASE = timedelta(seconds=120)
"""Far longer than an attempt takes, and than `authorizations.HASTE`: one under way stays alone."""
_AT_ONCE = 16
_POLL_SECONDS = 1.0
_ORIGIN = Origin("background", "server")


class Attempts:
    """Makes attempts for as long as the server runs."""

    def __init__(
        self, services: Services, urls: URLs, validator: Validator, failures: Failures
    ) -> None:
        self._services = services
        self._failures = failures
        self._urls = urls
        self._validator = validator
        self._woken = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Say that a client has just responded to a challenge; call it on the event loop."""
        self._woken.set()

    async def run_forever(self) -> None:
        """Take what is due, one second after the other, and at once when woken."""
        while True:
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            try:
                await self._begin_due()
            except Unavailable as error:
                self._services.duties.delayed("challenges", error)
            except Exception:
                # A background task must outlive its failures.
                log.exception("background.failed", operation="challenges")

    async def _begin_due(self) -> None:
        free = _AT_ONCE - len(self._running)
        if free <= 0:
            return
        store = self._services.store
        due = await self._services.run(
            store.read, lambda tx: authorization_records.due_challenges(tx, limit=free)
        )
        self._services.duties.resumed("challenges")
        for seen in due:
            until = self._services.clock.now() + _LEASE
            if await self._services.run(store.write, _lease(seen, until)):
                task = asyncio.create_task(self._attempt(seen))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _attempt(self, seen: Challenge) -> None:
        try:
            authorization, question = await self._services.run(
                self._services.store.read, lambda tx: self._question(tx, seen)
            )
            problem = None
            if authorization.status(self._services.clock.now()) is AuthorizationStatus.PENDING:
                problem = await self._validate(question)
            else:
                problem = problem_json("unauthorized", "the authorization was given up or expired")
            await self._services.run(
                self._services.store.write,
                lambda tx: self._settle(tx, seen, authorization, problem),
            )
        except Error as error:
            # Left as it is: the lease runs out and the attempt is made again.
            log.warning("challenge.delayed", error=explained(error))
        except Exception:
            # A background task must outlive its failures.
            log.exception("background.failed", operation="challenge")

    async def _validate(self, question: Question) -> dict[str, Any] | None:
        """Return what went wrong as a problem document, None if nothing did."""
        try:
            await self._validator.validate(question)
        except ChallengeFailed as error:
            return problem_json(error.problem, error.detail, 403)
        except Error as error:
            log.error("challenge.failed", error=error.detail)  # noqa: TRY400 - says it all
            return problem_json("serverInternal", "the challenge could not be tried", 500)
        return None

    def _question(self, tx: Transaction, seen: Challenge) -> tuple[Authorization, Question]:
        authorization = authorization_records.authorization(tx, seen.authorization)
        account = None if authorization is None else records.account(tx, authorization.account)
        if authorization is None or account is None:
            raise NotFound("a challenge without authorization or account")
        thumbprint = seen.thumbprint or account.key.thumbprint
        return authorization, Question(
            type=seen.type,
            identifier_type=authorization.identifier.type,
            identifier=authorization.identifier.value,
            wildcard=authorization.wildcard,
            token=seen.token,
            key_authorization=f"{seen.token}.{thumbprint}",
            account_uri=self._urls.account(account.id),
        )

    def _settle(
        self,
        tx: Transaction,
        seen: Challenge,
        authorization: Authorization,
        problem: Mapping[str, Any] | None,
    ) -> None:
        """Record how an attempt ended: valid, invalid for good, or to be tried again.

        Once the last challenge of an order is valid the order is ready, because that is derived.
        """
        error = None
        due_at = None
        if problem is None:
            status = ChallengeStatus.VALID
        else:
            error = dict(problem)
            # §8.2: "MUST add an entry to the "error" field … after each failed validation".
            if seen.error is not None:
                earlier = dict(seen.error)
                error["subproblems"] = [*earlier.pop("subproblems", []), earlier]
            again = seen.attempts < len(RETRY_AFTER)
            status = ChallengeStatus.PROCESSING if again else ChallengeStatus.INVALID
            due_at = tx.now + RETRY_AFTER[seen.attempts] if again else None
        if not authorization_records.settle_challenge(
            tx, seen.id, status=status, error=error, due_at=due_at
        ):
            return
        if status is not ChallengeStatus.PROCESSING:
            tx.audit(
                Event(
                    f"challenge.{status}",
                    f"account {authorization.account}",
                    f"authorization {authorization.id}",
                    {"type": seen.type, "identifier": authorization.identifier.value},
                ),
                _ORIGIN,
            )
        if problem is not None and status is ChallengeStatus.INVALID:
            reason = f"{authorization.identifier.value}: {problem['detail']}"
            for order in records.orders_with(tx, authorization.account, authorization.id):
                named = name_order(order.identifiers)
                self._failures.count_in(tx, authorization.account, named, reason, _ORIGIN)


def _lease(seen: Challenge, until: datetime) -> Callable[[Transaction], bool]:
    return lambda tx: authorization_records.lease_challenge(tx, seen, until=until)
