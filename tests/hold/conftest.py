"""Instances in which certificates may be held."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hold.acts import ALLOWED, ON
from tests.live import Live
from tests.parts import Parts
from tests.status_driver import House, build


@pytest.fixture
def held_allowed(make_live: Callable[[str], Live]) -> Live:
    """Return an instance whose officers may hold certificates."""
    return make_live(ON)


@pytest.fixture
def office(make_parts: Callable[..., Parts]) -> Parts:
    """Return a core in process with holds."""
    return make_parts(settings=ALLOWED)


@pytest.fixture
def offices(make_parts: Callable[..., Parts], make_database: Callable[[], str]) -> Parts:
    """Return a core in process with holds, once on SQLite and once on PostgreSQL."""
    return make_parts(make_database(), settings=ALLOWED)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Return a CA that makes delta CRLs."""
    built = build(tmp_path, delta_crls=True, own_crls=("device",))
    built.install_responder()
    yield built
    built.store.close()
