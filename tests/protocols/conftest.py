"""A status listener over HTTP."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from estserver.protocols.status import StatusProtocol
from tests.protocols.status_wire import Serve, Site
from tests.status_driver import build


@pytest.fixture
async def site(tmp_path: Path, aiohttp_server: Serve) -> AsyncIterator[Site]:
    directory = tmp_path / "house"
    directory.mkdir()
    house = build(directory)
    house.install_responder()
    with ThreadPoolExecutor(8) as executor:
        server = await aiohttp_server(StatusProtocol(house.services(executor)).application())
        assert server.port is not None
        yield Site(
            house,
            server.port,
            house.write_pem("issuer.pem", house.certificate()),
            house.write_pem("trust.pem", house.certificate(), house.root),
        )
        await server.close()
    house.store.close()
