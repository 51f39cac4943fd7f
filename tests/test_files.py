"""What root writes for the service: on the disk before it has its name, and the service's own."""

import os
import stat
from pathlib import Path

import pytest

from estserver.anchor import AnchorFile
from estserver.files import write_private
from tests.command_line import Shell
from tests.live import MovableClock


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_writes_belongs_to_whom_the_instance_belongs(shell: Shell) -> None:
    owner = (4711, 4712)
    configuration = shell.directory / "estserver.toml"
    for path in (shell.directory, *shell.directory.rglob("*")):
        os.chown(path, *owner)
    configuration.chmod(0o640)
    shell.run("ca", "new-issuer", "second")
    shell.run("ca", "request", "third")
    made = [configuration, *(shell.directory / "ca").iterdir()]
    assert {path.name for path in made} >= {"second.key", "second.crt", "third.key", "third.csr"}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {owner}
    assert _mode(configuration) == 0o640
    assert _mode(shell.directory / "ca/second.key") == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_journal_and_the_anchor_that_root_begins_are_the_services(shell: Shell) -> None:
    for path in (shell.directory, *shell.directory.rglob("*")):
        os.chown(path, 4711, 4712)
    shell.run("invite", "--profile", "device", "--device-id", "printer-1")
    anchor = shell.directory / "journal/audit.anchor"
    AnchorFile(anchor).begin_anew(MovableClock().now(), "a test")
    made = [anchor, *(shell.directory / "journal").glob("*.jsonl"), anchor.parent]
    assert len(made) == 3
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(4711, 4712)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_folders_that_root_makes_on_the_way_are_the_services_and_private(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    write_private(tmp_path / "on/the/way", b"secret")
    for folder in (tmp_path / "on", tmp_path / "on/the"):
        assert (folder.stat().st_uid, folder.stat().st_gid, _mode(folder)) == (4711, 4712, 0o700)


def test_a_ceremony_follows_no_link_but_that_of_the_configuration(
    shell: Shell, tmp_path: Path
) -> None:
    configuration, elsewhere = shell.directory / "estserver.toml", tmp_path / "elsewhere"
    configuration.rename(shell.directory / "real.toml")
    configuration.symlink_to("real.toml")
    elsewhere.write_text("precious", encoding="utf-8")
    (shell.directory / "ca/second.csr").symlink_to(elsewhere)
    shell.run("ca", "request", "second")
    shell.run("ca", "new-issuer", "third")
    assert configuration.is_symlink()
    assert "[issuers.third]" in configuration.read_text(encoding="utf-8")
    assert elsewhere.read_text(encoding="utf-8") == "precious"
    assert (shell.directory / "ca/second.csr").read_bytes().startswith(b"-----BEGIN CERT")


def test_what_a_ceremony_leaves_is_on_the_disk(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is synced whole, and so is its folder: seen at the system call itself."""
    synced: dict[int, int] = {}
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced[found.st_ino] = found.st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    before = {path.stat().st_ino for path in shell.directory.rglob("*")}
    shell.run("ca", "new-issuer", "second")
    folder = shell.directory / "ca"
    made = [path for path in folder.iterdir() if path.stat().st_ino not in before]
    assert {path.name for path in made} == {"second.key", "second.crt", "second-chain.crt"}
    for path in (*made, shell.directory / "estserver.toml"):
        assert synced.get(path.stat().st_ino) == path.stat().st_size, path
    assert synced.keys() >= {shell.directory.stat().st_ino, folder.stat().st_ino}


def test_a_certificate_goes_into_a_pipe_as_into_a_file(shell: Shell, tmp_path: Path) -> None:
    csr = shell.run("ca", "request", "second").stdout.strip()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        folder = str(shell.directory / "ca")
        passphrase = str(shell.directory / "secrets/passphrase")
        shell.run(
            *("ca", "sign", csr, "--root", folder),
            *("--root-passphrase", passphrase, "--out", str(pipe)),
        )
        assert os.read(reading, 1 << 16).startswith(b"-----BEGIN CERTIFICATE-----")
    finally:
        os.close(reading)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
