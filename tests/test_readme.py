"""README's commands for the shell, run as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import Live

README = Path(__file__).parent.parent / "README.md"
BIN = Path(sys.executable).parent


def _commands(live: Live) -> str:
    """Return the blocks about EST in one script, for this instance instead of the demo."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    about_est = [block for block in blocks if "quickstart" not in block and "init" not in block]
    script = "\n".join(about_est)
    for old, new in {
        "$PWD/.venv/bin": str(BIN),
        "$PWD/var/demo": str(live.directory),
        "var/demo": str(live.directory),
        "https://localhost:9443": live.url("devices"),
        "http://localhost:8080": live.url("status"),
    }.items():
        assert old in script
        script = script.replace(old, new)
    return script


@pytest.mark.row("EST-197")
def test_the_commands_of_the_readme_do_what_it_says(live: Live, tmp_path: Path) -> None:
    script = _commands(live)
    invite = re.search(r"^estserver invite .*$", script, re.MULTILINE)
    assert invite is not None
    # The README has the reader copy number and PIN by hand.
    made = subprocess.run(
        [BIN / "estserver", *invite[0].split()[1:], "--json"],
        env={**os.environ, "ESTSERVER_CONFIG": str(live.directory / "estserver.toml")},
        capture_output=True,
        check=True,
    )
    door = json.loads(made.stdout)["est"]
    script = script.replace(invite[0], "")
    script = re.sub(r"export PIN=\S+", f"export PIN={door['username']}:{door['password']}", script)
    clone = tmp_path / "clone"
    clone.mkdir()
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "device.crt: OK" in done.stdout
    assert "device.crt: revoked" in done.stdout
    assert "CN=printer-17" in done.stdout
    files = clone / "var/printer-17"
    new = (files / "new.crt").read_text(encoding="ascii")
    assert new != (files / "device.crt").read_text(encoding="ascii")
    # Keys beside the sources would be one commit away from everybody; git ignores var.
    assert [path.name for path in clone.iterdir()] == ["var"]
    assert (clone / "var/backup/manifest.json").stat().st_size > 0
    # By how fast this machine is, the CRL of the revocation came before the backup or after it.
    assert "Nothing is missing." in done.stdout or "All of it was put back" in done.stdout
