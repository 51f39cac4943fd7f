"""Cores in process whose time stands still."""

from collections.abc import Callable

import pytest

from tests.invitations.pins import MakeParts
from tests.parts import Parts, StillClock


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def parts(make_parts: MakeParts, clock: StillClock) -> Parts:
    return make_parts(clock=clock)


@pytest.fixture
def both(make_database: Callable[[], str], make_parts: MakeParts, clock: StillClock) -> Parts:
    """The same on SQLite and on PostgreSQL."""
    return make_parts(make_database(), clock=clock)
