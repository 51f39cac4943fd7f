"""A small CA for each test, and one that answers OCSP."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.status_driver import House, build


@pytest.fixture
def make_house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(**fields: Any) -> House:
        directory = tmp_path / f"house{len(made)}"
        directory.mkdir()
        made.append(build(directory, **fields))
        return made[-1]

    yield make
    for house in made:
        house.store.close()


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


@pytest.fixture
def answering(house: House) -> House:
    house.install_responder()
    return house
