"""Walks in convoy: what one alone would get, for few commits; none waits for a slow one."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, cast

import pytest
import sqlalchemy as sa

from estserver.authentication import PINCredential
from estserver.convoy import Convoy
from estserver.csr import CSR
from estserver.errors import AlreadyIssued, Fault, KeyNotAllowed, Refused, Unavailable
from estserver.invitations import Handover
from estserver.model import Issued, Pending, Via
from estserver.ra import EnrollmentRequest
from estserver.steps import Read, Steps, apart, change, look, read, write
from estserver.store import Transaction
from estserver.store.tables import attempts, certificates
from tests.live import new_key
from tests.parts import ORIGIN, SOURCE, Parts, csr_of

MakeParts = Callable[..., Parts]
Outcome = Issued | Pending | BaseException


@pytest.fixture
def convoy(parts: Parts) -> Iterator[Convoy]:
    yield from _convoy_of(parts)


def _convoy_of(parts: Parts) -> Iterator[Convoy]:
    with ThreadPoolExecutor(2) as pool:
        convoy = Convoy(parts.store, pool)
        yield convoy
        convoy.close()


def enrolling(parts: Parts, handover: Handover, csr: CSR) -> Steps[Issued | Pending]:
    """The street as a door walks it."""
    assert handover.pin is not None
    credential = PINCredential(handover.invitation.number, handover.pin, SOURCE)
    entitlement = yield from parts.authenticator.entitling(credential)
    request = EnrollmentRequest(entitlement, csr, Via.EST, ORIGIN)
    return (yield from parts.ra.enrolling(request))


def together(convoy: Convoy, parts: Parts, walks: Sequence[tuple[Handover, CSR]]) -> list[Outcome]:
    """Let all walks begin at the same moment; return what each came to."""

    async def main() -> list[Outcome]:
        return await asyncio.gather(
            *(convoy.walk(enrolling(parts, *walk)) for walk in walks), return_exceptions=True
        )

    return asyncio.run(main())


def issued(outcomes: Sequence[Outcome]) -> list[Issued]:
    found = [outcome for outcome in outcomes if isinstance(outcome, Issued)]
    assert len({one.der for one in found}) == len({one.enrollment for one in found})
    return found


def count(parts: Parts) -> int:
    query = sa.select(sa.func.count()).select_from(certificates)
    number: int = parts.store.read(lambda tx: tx.connection.execute(query).scalar_one())
    return number


@pytest.mark.row("A-35")
def test_forty_enrollments_share_few_commits(parts: Parts, convoy: Convoy) -> None:
    walks = [(parts.invite(), csr_of()) for _ in range(20)]
    many = parts.invite(units=20)
    walks += [(many, csr_of()) for _ in range(20)]
    begun: list[object] = []
    sa.event.listen(parts.store.engine, "begin", begun.append)
    outcomes = together(convoy, parts, walks)
    assert len(issued(outcomes)) == 40
    assert count(parts) == 40
    # Two commits and two reads would do; some may have come a moment later.
    assert len(begun) < 40
    assert parts.invitations.get(many.invitation.number).units_used == 20


def test_its_thread_interrupts_no_loop_and_no_other_thread_is_like_it(convoy: Convoy) -> None:
    async def policy() -> int:
        return await convoy.walk(look(lambda _tx: os.sched_getscheduler(0)))

    assert asyncio.run(policy()) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.row("I2")
def test_who_is_refused_keeps_nobody_else(both: Parts) -> None:
    spent = both.invite()
    both.enroll(spent)
    few = both.invite(units=3)
    walks = [(spent, csr_of())] + [(both.invite(), csr_of()) for _ in range(8)]
    walks += [(few, csr_of()) for _ in range(6)]
    for convoy in _convoy_of(both):
        outcomes = together(convoy, both, walks)
    assert isinstance(outcomes[0], AlreadyIssued)
    assert len(issued(outcomes[1:9])) == 8
    assert len(issued(outcomes[9:])) == 3
    assert sum(isinstance(outcome, AlreadyIssued) for outcome in outcomes[9:]) == 3
    assert count(both) == 1 + 8 + 3


def test_the_same_question_gets_the_same_answer_however_often(both: Parts) -> None:
    handover, csr = both.invite(), csr_of()
    for convoy in _convoy_of(both):
        outcomes = together(convoy, both, [(handover, csr)] * 6)
    assert len(issued(outcomes)) == 6
    assert len({one.der for one in issued(outcomes)}) == 1
    assert count(both) == 1


def test_one_key_is_certified_for_one_registration_only(both: Parts) -> None:
    csr = csr_of(new_key())
    for convoy in _convoy_of(both):
        outcomes = together(convoy, both, [(both.invite(), csr) for _ in range(5)])
    assert len(issued(outcomes)) == 1
    assert sum(isinstance(outcome, KeyNotAllowed) for outcome in outcomes) == 4


def test_what_cannot_be_done_together_is_done_one_by_one(convoy: Convoy) -> None:
    def put(tx: Transaction, keys: Sequence[str]) -> list[str | Refused]:
        for key in keys:
            tx.connection.execute(sa.insert(attempts).values(key=key, failures=1, window_start=0))
        return list(keys)

    async def main() -> list[str | BaseException]:
        return await asyncio.gather(
            *(convoy.walk(write(put, key)) for key in "abcab"), return_exceptions=True
        )

    outcomes = asyncio.run(main())
    assert sorted(one for one in outcomes if isinstance(one, str)) == ["a", "b", "c"]
    assert sum(isinstance(one, sa.exc.IntegrityError) for one in outcomes) == 2


def test_units_of_ones_own_fail_alone(convoy: Convoy) -> None:
    def putting(key: str) -> Steps[str]:
        row = sa.insert(attempts).values(key=key, failures=1, window_start=0)
        yield from change(lambda tx: tx.connection.execute(row))
        found = yield from look(
            lambda tx: tx.connection.execute(
                sa.select(attempts.c.key).where(attempts.c.key == key)
            ).scalar_one()
        )
        return str(found)

    async def main() -> list[str | BaseException]:
        return await asyncio.gather(
            *(convoy.walk(putting(key)) for key in "xyx"), return_exceptions=True
        )

    outcomes = asyncio.run(main())
    assert outcomes[:2] == ["x", "y"]
    assert isinstance(outcomes[2], sa.exc.IntegrityError)


def test_nobody_waits_for_what_takes_long(parts: Parts, convoy: Convoy) -> None:
    finished = threading.Event()

    async def main() -> Outcome:
        slow = asyncio.create_task(convoy.walk(apart(lambda: finished.wait(30))))
        quick = await convoy.walk(enrolling(parts, parts.invite(), csr_of()))
        finished.set()
        assert await slow
        return quick

    assert isinstance(asyncio.run(main()), Issued)


@pytest.mark.row("INC-25")
def test_a_client_that_hangs_up_does_not_stop_its_enrollment(parts: Parts, convoy: Convoy) -> None:
    handover, csr = parts.invite(), csr_of()

    async def main() -> None:
        walk = asyncio.create_task(convoy.walk(enrolling(parts, handover, csr)))
        await asyncio.sleep(0)
        walk.cancel()
        await asyncio.gather(walk, return_exceptions=True)

    asyncio.run(main())
    convoy.close()
    assert count(parts) == 1
    again = parts.ask(parts.entitle(handover), csr)
    assert isinstance(again, Issued)
    assert again.repeated


@pytest.mark.row("I8")
def test_nobody_waits_for_ever(convoy: Convoy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estserver.convoy._LONGEST_SECONDS", 0.05)
    finished = threading.Event()
    with pytest.raises(Unavailable):
        asyncio.run(convoy.walk(apart(lambda: finished.wait(30))))
    finished.set()


class _NoThreads(ThreadPoolExecutor):
    """A system that has no thread left to start, while an old one still takes what is queued."""

    def submit(self, work: Callable[..., Any], /, *_: object, **__: object) -> NoReturn:
        self.queued = work
        raise RuntimeError("can't start new thread")


def test_a_step_that_answers_too_few_ends_its_walks_and_no_others(convoy: Convoy) -> None:
    def too_few(_tx: Transaction, asked: Sequence[int]) -> list[int]:
        return list(asked)[:-1]

    async def main() -> list[int | BaseException]:
        good = [convoy.walk(look(lambda _tx: 7)) for _ in range(3)]
        bad = [convoy.walk(read(too_few, number)) for number in range(3)]
        ended = await asyncio.gather(*good, *bad, return_exceptions=True)
        return [*ended, await convoy.walk(look(lambda _tx: 7))]

    *ended, afterwards = asyncio.run(main())
    assert ended[:3] == [7, 7, 7]
    assert {type(one) for one in ended[3:]} == {Fault}
    assert afterwards == 7


def test_what_none_foresaw_ends_the_walks_of_a_turn_and_not_those_after(convoy: Convoy) -> None:
    async def main() -> int:
        with pytest.raises(Fault):
            await convoy.walk(_of_no_kind())
        return await convoy.walk(look(lambda _tx: 7))

    assert asyncio.run(main()) == 7


def _of_no_kind() -> Steps[int]:
    yield Read(cast(Any, {}), None)  # a step whose function cannot even be compared with others
    return 1


def test_where_there_is_no_thread_for_what_takes_long_the_walk_is_told(parts: Parts) -> None:
    async def main() -> int:
        with pytest.raises(RuntimeError, match="new thread"):
            await poor.walk(apart(lambda: done.append(1)))
        threads.queued()
        return await poor.walk(look(lambda _tx: 7))

    done: list[int] = []
    threads = _NoThreads()
    poor = Convoy(parts.store, threads)
    assert asyncio.run(main()) == 7
    poor.close()
    assert done == []


def test_a_closed_database_is_unavailable_for_all(parts: Parts, convoy: Convoy) -> None:
    walks = [(parts.invite(), csr_of()) for _ in range(3)]
    entitled = [parts.entitle(handover) for handover, _ in walks]
    parts.store.close()

    async def main() -> list[Outcome]:
        return await asyncio.gather(
            *(
                convoy.walk(
                    parts.ra.enrolling(EnrollmentRequest(entitlement, csr, Via.EST, ORIGIN))
                )
                for entitlement, (_, csr) in zip(entitled, walks, strict=True)
            ),
            return_exceptions=True,
        )

    assert all(isinstance(outcome, Unavailable) for outcome in asyncio.run(main()))
