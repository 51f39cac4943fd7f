"""A post office of an instance, and the SMTP server that it delivers to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from estserver.core import Core, open_core
from tests.live import Live, Workshop
from tests.mail.offices import MakeOffice, Office
from tests.mailing import Sink, sink, smtp

__all__ = ["sink"]


@pytest.fixture
def make_office(template: Path, tmp_path: Path) -> Iterator[MakeOffice]:
    cores: list[Core] = []
    workshop = Workshop(template)

    def make(toml: str = "") -> Office:
        live: Live = workshop.make(tmp_path / f"instance{len(cores)}", toml, start=False)
        core = open_core(live.settings, live.clock, with_keys=False)
        cores.append(core)
        return Office(core, live.clock, core.post_office())

    yield make
    for core in cores:
        core.close()


@pytest.fixture
def office(make_office: MakeOffice, sink: Sink) -> Office:
    return make_office(smtp(sink.port))
