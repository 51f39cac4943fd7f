"""Connections that stay open from one transaction to the next, for threads that have many.

To take a connection from the pool and to give it back costs more than a small transaction.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

_IDLE_SECONDS = 1.0
"""After a longer rest it passes through the pool, which looks whether the database is there."""


class Kept:
    """One connection, taken when it is needed. For one thread at a time."""

    def __init__(self, engine: sa.Engine) -> None:
        """`engine`: with the execution options that its transactions shall have."""
        self._engine = engine
        self._connection: sa.Connection | None = None
        self._used = 0.0

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Run a transaction, and commit it unless the block raises.

        Raises what the database raises; the next transaction has another connection then.
        """
        if time.monotonic() - self._used > _IDLE_SECONDS:
            self.close()
        if self._connection is None:
            self._connection = self._engine.connect()
        try:
            with self._connection.begin():
                yield self._connection
        except BaseException:
            self.close()
            raise
        self._used = time.monotonic()

    def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
