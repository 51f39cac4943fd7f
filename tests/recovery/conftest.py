"""An instance whose journal and anchor outlive it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from estserver import config
from tests.live import Live, Workshop


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return the disk that outlives."""
    return tmp_path / "other-disk"


@pytest.fixture
def outliving(template: Path, tmp_path: Path, elsewhere: Path) -> Iterator[Live]:
    """Return an instance whose journal and anchor lie on another disk."""
    live = Workshop(template).make(tmp_path / "instance", start=False)
    path = live.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8")
    for name in ('path = "journal"', 'anchor = "journal/audit.anchor"'):
        key, _, value = name.partition(' = "')
        assert name in text
        text = text.replace(name, f'{key} = "{elsewhere}/{value}')
    path.write_text(text, encoding="utf-8")
    live.settings = config.load(path)
    live.start()
    yield live
    if not live._loop.is_closed():
        live.stop()
