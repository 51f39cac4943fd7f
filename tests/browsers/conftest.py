"""One Firefox for the tests of a module, emptied after each."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browsers.firefox import Firefox
from tests.live import Live


@pytest.fixture(scope="module")
def browser(
    template: Path,
    shared: Live,  # noqa: ARG001 - stops after Firefox, whose connections are gone then
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Firefox]:
    with Firefox(tmp_path_factory.mktemp("firefox")) as firefox:
        firefox.trust(template / "ca/root.crt")
        yield firefox


@pytest.fixture
def firefox(
    browser: Firefox,
    make_live: Callable[[str], Live],  # noqa: ARG001 - stops after the connections are gone
) -> Iterator[Firefox]:
    yield browser
    browser.forget()
    browser.forget_downloads()
