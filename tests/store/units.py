"""Units of work that count and note, and a gate that lets many in together."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa

from estserver.model import Event, Origin
from estserver.store import Store, Transaction, audit_checks
from estserver.store.tables import attempts

MakeStore = Callable[..., Store]


def put(tx: Transaction, key: str, count: int = 1) -> None:
    """Write a row: any table serves."""
    tx.connection.execute(sa.insert(attempts).values(key=key, failures=count, window_start=0))


def keys(store: Store) -> set[str]:
    return set(store.read(lambda tx: tx.connection.execute(sa.select(attempts.c.key)).scalars()))


class Gate:
    """Holds the writer thread so that the units behind it end up in one group."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entered, self._leave = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._store.write, args=(self._wait,))
        self._thread.start()
        assert self._entered.wait(10)

    def _wait(self, _: Transaction) -> None:
        self._entered.set()
        assert self._leave.wait(10)

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._thread.join()


def in_one_group(store: Store, units: list[Callable[[Transaction], Any]]) -> list[Any]:
    """Run units in one commit; return each one's result or what it raised."""

    def run(unit: Callable[[Transaction], Any]) -> Any:
        try:
            return store.write(unit)
        except Exception as error:  # noqa: BLE001 - given to the test
            return error

    with ThreadPoolExecutor(len(units)) as pool:
        with Gate(store):
            futures = []
            for waiting, unit in enumerate(units, start=1):
                futures.append(pool.submit(run, unit))
                while store._queue.qsize() < waiting:
                    pass
        return [future.result(30) for future in futures]


def noting(number: int, name: str) -> Callable[[Transaction], None]:
    detail: dict[str, str | int | bool | None] = {"n": number, "text": "\u2028é", "no": None}
    event = Event(name, "admin 山田", f"thing {number}", detail)
    return lambda tx: tx.audit(event, Origin(f"r{number}", "::1"))


def note(store: Store, count: int, name: str = "thing.happened") -> None:
    for number in range(count):
        store.write(noting(number, name))


def findings(store: Store) -> list[str]:
    return store.read(lambda tx: list(audit_checks.broken_links(tx.connection)))
