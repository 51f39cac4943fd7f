"""Steps: how a walk through the core asks for the database without saying when it is asked.

A walk is a generator. Between its yields it only computes; a yield asks for what takes the
database or much time. So the street is written once and walked in two ways: `walk` does each step
at once, for one walk; a `Convoy` takes many walks along, does equal steps of all of them with one
statement each, and writes for all of them in one commit.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from estserver.errors import Error, Fault
from estserver.store import Store, Transaction

A = TypeVar("A")
T = TypeVar("T")

Together = Callable[[Transaction, Sequence[A]], Sequence[T | Error]]
"""A function of a transaction that does the same for many: one outcome for each, in their order.

An Error as an outcome refuses that one, which then must have changed nothing. What is raised
undoes all; each is then tried by itself.
"""


@dataclass(frozen=True, slots=True)
class Read:
    """Do `together` for `mine`, and whoever else asks for the same, on a snapshot."""

    together: Together[Any, Any]
    mine: Any


@dataclass(frozen=True, slots=True)
class Write:
    """Do `together` for `mine`, and whoever else asks for the same, durably."""

    together: Together[Any, Any]
    mine: Any


@dataclass(frozen=True, slots=True)
class Apart:
    """Run what takes more than a millisecond where nobody waits for it."""

    run: Callable[[], Any]


Steps = Generator[Read | Write | Apart, Any, T]


def read(together: Together[A, T], mine: A) -> Steps[T]:
    """Ask for one step of reading; raises what refuses this one, and Unavailable."""
    result: T = yield Read(together, mine)
    return result


def write(together: Together[A, T], mine: A) -> Steps[T]:
    """Ask for one step of writing; raises what refuses this one, and Unavailable."""
    result: T = yield Write(together, mine)
    return result


def look(run: Callable[[Transaction], T]) -> Steps[T]:
    """Ask for a read of one's own; others read on the same snapshot."""
    result: T = yield Read(alone, run)
    return result


def change(run: Callable[[Transaction], T]) -> Steps[T]:
    """Ask for a unit of work that nobody shares."""
    result: T = yield Write(alone, run)
    return result


def apart(run: Callable[[], T]) -> Steps[T]:
    """Ask for time."""
    result: T = yield Apart(run)
    return result


def alone(tx: Transaction, runs: Sequence[Callable[[Transaction], T]]) -> list[T]:
    """Do what each wants done, in turn: one that raises undoes all, and each is tried by itself."""
    return [run(tx) for run in runs]


def do(tx: Transaction, together: Together[A, T], mine: Sequence[A]) -> Sequence[T | Error]:
    """Do a step for all of `mine` in one transaction.

    Raises the refusal of one that is alone, so that nothing of its unit of work is kept, and Fault:
    `together` does not answer each.
    """
    outcomes = together(tx, mine)
    if len(outcomes) != len(mine):
        raise Fault("a step that many took together does not answer each")
    if len(mine) == 1 and isinstance(outcomes[0], Error):
        raise outcomes[0]
    return outcomes


def walk(steps: Steps[T], store: Store) -> T:
    """Do the steps of one walk as they come; return what it returns or raise what it raises."""
    try:
        step = next(steps)
        while True:
            try:
                outcome = _do(step, store)
            # Whatever goes wrong is the walk's to judge, at the place where it asked.
            except BaseException as error:  # noqa: BLE001 - see above
                step = steps.throw(error)
            else:
                step = steps.send(outcome)
    except StopIteration as end:
        result: T = end.value
        return result


def _do(step: Read | Write | Apart, store: Store) -> Any:
    match step:
        case Apart(run):
            return run()
        case Read(together, mine):
            return store.read(lambda tx: do(tx, together, [mine]))[0]
        case Write(together, mine):
            return store.write(lambda tx: do(tx, together, [mine]))[0]
