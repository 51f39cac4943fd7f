"""Words of sentences: counts, and what the system said no to."""

import os
from pathlib import Path

import pytest

from estserver.wording import counted, trouble


def test_one_is_one_and_all_other_numbers_are_many() -> None:
    assert counted(1, "certificate") == "1 certificate"
    assert counted(0, "certificate") == "0 certificates"
    assert counted(2, "certificate fits", "certificates fit") == "2 certificates fit"


def _error(path: Path) -> OSError:
    with pytest.raises(OSError, match=path.name) as caught:
        path.read_bytes()
    return caught.value


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "issuing.crt"
    assert trouble(_error(path)) == f"{path}: no such file or directory"
    assert trouble(OSError(28, "No space left on device")) == "no space left on device"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_read_a_file_learns_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "issuing.key"
    path.write_text("key")
    path.chmod(0o600)
    os.seteuid(65534)
    try:
        said = trouble(_error(path))
    finally:
        os.seteuid(0)
    assert said.startswith(f"{path}: permission denied: ")
    assert said.endswith(" belongs to root and this runs as nobody: run it as root")
