"""Leases and duties: one does it at a time, and another goes on where it died."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from estserver import duties
from estserver.duties import Duties, Duty, node_name
from estserver.errors import Unavailable
from estserver.store import Transaction, leases
from tests.parts import Parts

TERM = timedelta(seconds=30)


def holder(parts: Parts, name: str) -> str | None:
    lease = parts.store.read(lambda tx: leases.get(tx, name))
    return None if lease is None else lease.holder


def take(parts: Parts, by: str) -> bool:
    return parts.store.write(lambda tx: leases.take(tx, "crls", by, TERM))


def test_a_lease_has_one_holder_until_it_runs_out(both: Parts) -> None:
    assert take(both, "a:1:0")
    assert not take(both, "b:1:0")
    both.clock.advance(TERM - timedelta(seconds=2))
    assert take(both, "a:1:0")
    both.clock.advance(TERM - timedelta(seconds=2))
    assert not take(both, "b:1:0")
    both.clock.advance(timedelta(seconds=4))
    assert take(both, "b:1:0")
    assert not take(both, "a:1:0")
    assert holder(both, "crls") == "b:1:0"


def test_a_lease_that_is_left_is_free_at_once(both: Parts) -> None:
    assert take(both, "a:1:0")
    both.store.write(lambda tx: leases.leave(tx, "b:1:0"))
    assert not take(both, "b:1:0")
    both.store.write(lambda tx: leases.leave(tx, "a:1:0"))
    assert take(both, "b:1:0")


def test_of_many_that_take_a_lease_at_once_one_gets_it(both: Parts) -> None:
    nodes = [both, both.another(), both.another()]
    start = threading.Barrier(len(nodes))

    def race(number: int) -> bool:
        start.wait(10)
        return take(nodes[number], f"node:{number}:0")

    try:
        with ThreadPoolExecutor(len(nodes)) as pool:
            assert sorted(pool.map(race, range(len(nodes)))) == [False, False, True]
    finally:
        for node in nodes[1:]:
            node.store.close()


def test_those_alive_are_listed_by_name(both: Parts) -> None:
    def take_both(tx: Transaction) -> None:
        leases.take(tx, node_name(Path("/srv/%a")), "a:1:0", TERM)
        leases.take(tx, "crls", "a:1:0", TERM)

    both.store.write(take_both)
    (found,) = both.store.read(lambda tx: leases.held(tx, "node "))
    assert found.name.endswith(":/srv/%a")
    both.clock.advance(2 * TERM)
    assert both.store.read(lambda tx: leases.held(tx, "node ")) == []


class Turns:
    """Two nodes that do one duty as fast as they can; each turn says who has done it."""

    def __init__(self, parts: Parts, executor: ThreadPoolExecutor) -> None:
        self.done: list[str] = []
        self._turn = asyncio.Event()
        self.duties = {
            name: Duties(parts.store, parts.clock, name, executor) for name in ("a", "b")
        }

    def begin(self, name: str, *, alone: bool = True, seconds: float = 0) -> asyncio.Task[None]:
        async def work() -> None:
            self.done.append(name)
            self._turn.set()

        duty = Duty("crls", seconds, work, alone=alone)
        return asyncio.create_task(self.duties[name].perform(duty))

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not happened():
                await self._turn.wait()
                self._turn.clear()


@pytest.fixture
def turns(both: Parts) -> Iterator[Turns]:
    with ThreadPoolExecutor(4) as executor:
        yield Turns(both, executor)


async def test_a_duty_goes_over_when_its_holder_dies(both: Parts, turns: Turns) -> None:
    first = turns.begin("a")
    await turns.until(lambda: "a" in turns.done)
    second = turns.begin("b")
    count = len(turns.done)
    await turns.until(lambda: len(turns.done) > count + 20)
    assert set(turns.done) == {"a"}
    first.cancel()
    both.clock.advance(TERM)
    await turns.until(lambda: "b" in turns.done)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert holder(both, "crls") == "b"


async def test_a_duty_goes_over_at_once_when_its_holder_leaves(turns: Turns) -> None:
    first = turns.begin("a")
    await turns.until(lambda: "a" in turns.done)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await asyncio.to_thread(turns.duties["a"].leave)
    second = turns.begin("b")
    await turns.until(lambda: "b" in turns.done)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


async def test_a_server_that_never_lives_an_hour_still_does_what_is_hourly(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "FIRST_SECONDS", 0)
    task = turns.begin("a", seconds=3600)
    await turns.until(lambda: turns.done == ["a"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_every_worker_does_needs_no_lease(both: Parts, turns: Turns) -> None:
    tasks = [turns.begin(name, alone=False) for name in ("a", "b")]
    await turns.until(lambda: set(turns.done) == {"a", "b"})
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert holder(both, "crls") is None


def test_a_lease_at_hand_is_not_written_at_every_turn(parts: Parts) -> None:
    with ThreadPoolExecutor(1) as executor:
        own = Duties(parts.store, parts.clock, "a", executor)
        duty = Duty("crls", TERM.total_seconds() / 3, lambda: asyncio.sleep(0))
        assert own.take(duty)
        first = parts.store.read(lambda tx: leases.get(tx, "crls"))
        parts.clock.advance(TERM / 3)
        assert own.take(duty)
        assert parts.store.read(lambda tx: leases.get(tx, "crls")) == first
        parts.clock.advance(TERM / 3)
        assert own.take(duty)
        assert parts.store.read(lambda tx: leases.get(tx, "crls")) != first


def test_leaving_without_a_database_is_no_stumble(parts: Parts) -> None:
    with ThreadPoolExecutor(1) as executor:
        own = Duties(parts.store, parts.clock, "a", executor)
        parts.store.close()
        own.leave()
    with pytest.raises(Unavailable):
        parts.store.write(lambda tx: leases.leave(tx, "a"))
