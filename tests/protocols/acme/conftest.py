"""Connections that the wire client keeps are closed with the module."""

from collections.abc import Iterator

import pytest

from tests.protocols.acme.wire import hang_up


@pytest.fixture(autouse=True)
def kept_connections() -> Iterator[None]:
    yield
    hang_up()
