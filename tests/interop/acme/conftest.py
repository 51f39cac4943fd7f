"""One world for the tests of each client, a shell in it, and what `invite` prints there."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from estserver.cli.acme_handover import print_acme
from estserver.invitations import Handover
from tests.interop.acme.world import World, make_world, old_template
from tests.interop.commands import Shell

PrintFor = Callable[[Handover], dict[str, list[str]]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is marked `full` to `--full`."""
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_template(tmp_path_factory.mktemp("old") / "instance")


@pytest.fixture(scope="module")
def world(old: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with make_world(old, tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture
def shell(world: World, tmp_path: Path) -> Shell:
    return world.shell(tmp_path)


@pytest.fixture
def handover(world: World) -> Handover:
    return world.live.invite("server", names=("dns:one.example.org", "dns:two.example.org"))


@pytest.fixture
def print_for(world: World, capsys: pytest.CaptureFixture[str]) -> PrintFor:
    """Return what tells the lines that `invite` prints for each client."""

    def print_for(handover: Handover) -> dict[str, list[str]]:
        print_acme(world.live.core, handover.invitation, world.live.root, every_client=True)
        sections: dict[str, list[str]] = {}
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("    ") and sections:
                sections[list(sections)[-1]].append(line[4:])
            elif match := re.fullmatch(r"  ([A-Za-z][a-zA-Z.-]+)(| [^ ].*)", line):
                sections[match[1]] = []
        return {client: lines for client, lines in sections.items() if lines}

    return print_for


@pytest.fixture
def printed(handover: Handover, print_for: PrintFor) -> dict[str, list[str]]:
    return print_for(handover)
