"""Fixtures: instances that really run, and the option for the long forms of the fault tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live import Live, Workshop, make_template


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="long forms: 25 kills a failpoint, long fuzzing"
    )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template") / "instance")


@pytest.fixture
def make_live(template: Path, tmp_path: Path) -> Iterator[Callable[[str], Live]]:
    """Return a function that makes and starts an instance with some TOML added."""
    workshop = Workshop(template)
    numbers = iter(range(1000))

    def make(toml: str = "") -> Live:
        return workshop.make(tmp_path / f"instance{next(numbers)}", toml)

    yield make
    workshop.close()


@pytest.fixture
def live(make_live: Callable[[str], Live]) -> Live:
    """Return an instance of its own for this test."""
    return make_live("")


@pytest.fixture(scope="module")
def shared(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Return an instance that the tests of one module share: only for tests that do not mind."""
    workshop = Workshop(template)
    yield workshop.make(tmp_path_factory.mktemp("shared") / "instance")
    workshop.close()
