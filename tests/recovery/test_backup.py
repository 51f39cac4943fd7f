"""Backups are whole and private, and come back where they were; everything is verified."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from estserver import verification
from estserver.ca.ceremony import create_instance
from estserver.cli import main
from estserver.errors import BadInput
from estserver.mail.letters import TEMPLATES_FOLDER
from estserver.model import Event
from estserver.store import Store, Transaction, audit, dumping, health, migrate, require_current
from estserver.verification import verify, verify_due
from tests.invariants import violations
from tests.live import Live, MovableClock
from tests.parts import ORIGIN, unguard_audit
from tests.postgres import make_schema
from tests.recovery.losses import der, revoke, run


def test_a_backup_is_whole_private_and_never_overwrites(outliving: Live, tmp_path: Path) -> None:
    live, backup = outliving, tmp_path / "backup"
    assert "whoever has it can sign" in run(live.directory, "backup", str(backup)).stderr
    assert {path.stat().st_mode & 0o077 for path in backup.rglob("*") if path.is_file()} == {0}
    assert "is not empty" in run(live.directory, "backup", str(backup), status=1).stderr
    refused = run(live.directory, "restore", str(backup), status=1)
    assert "is there already: nothing was restored" in refused.stderr
    before = sorted(path for path in live.directory.rglob("*"))
    place = tmp_path / "elsewhere"
    (backup / "instance/ca/issuing.key").write_bytes(b"something else")
    refused = run(live.directory, "restore", str(backup), "--into", str(place), status=1)
    assert "not what was backed up" in refused.stderr
    (backup / "manifest.json").unlink()
    refused = run(live.directory, "restore", str(backup), "--into", str(place), status=1)
    assert f"{backup} is no backup" in refused.stderr
    assert not place.exists()
    assert sorted(path for path in live.directory.rglob("*")) == before


def test_a_backup_holds_the_templates_of_ones_own(outliving: Live, tmp_path: Path) -> None:
    live, place = outliving, tmp_path / "elsewhere"
    shutil.copytree(TEMPLATES_FOLDER, live.directory / "mail")
    path = live.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8") + '[mail]\ntemplates = "mail"\n'
    path.write_text(text, encoding="utf-8")
    run(live.directory, "backup", str(tmp_path / "backup"))
    run(live.directory, "restore", str(tmp_path / "backup"), "--into", str(place))
    names = sorted(file.name for file in TEMPLATES_FOLDER.iterdir())
    assert sorted(file.name for file in (place / "mail").iterdir()) == names


def test_a_manifest_grants_no_privilege(outliving: Live, tmp_path: Path) -> None:
    backup, place = tmp_path / "backup", tmp_path / "elsewhere"
    run(outliving.directory, "backup", str(backup))
    manifest = json.loads((backup / "manifest.json").read_text(encoding="utf-8"))
    for file in manifest["files"]:
        file["mode"] |= 0o4000
    (backup / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    run(outliving.directory, "restore", str(backup), "--into", str(place))
    assert {file.stat().st_mode & 0o7000 for file in place.rglob("*") if file.is_file()} == {0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: [m], "should be an object"),
        (lambda _: "backup", "should be an object"),
        (lambda m: {**m, "format": 99}, "another version"),
        (lambda m: {**m, "format": [1]}, "another version"),
        (lambda m: {**m, "made_at": 5}, "made_at Input should be a valid string"),
        (lambda m: {**m, "directory": None}, "directory Input should be a valid string"),
        (lambda m: {**m, "directory": "here"}, "leads out"),
        (lambda m: {**m, "configuration": "../estserver.toml"}, "leads out"),
        (lambda m: {**m, "configuration": ["estserver.toml"]}, "configuration Input should be"),
        (lambda m: {**m, "files": {}}, "files Input should be"),
        (lambda m: {**m, "files": "all"}, "files Input should be"),
        (lambda m: {**m, "files": [None]}, "files.0 Input should be"),
        (lambda m: {**m, "files": [["database"]]}, "files.0 Input should be"),
        (lambda m: {k: v for k, v in m.items() if k != "files"}, "files Field required"),
        (lambda m: {k: v for k, v in m.items() if k != "directory"}, "directory Field required"),
        (lambda m: _file(m, path=7), "files.1.path Input should be a valid string"),
        (lambda m: _file(m, mode="0600"), "files.1.mode Input should be a valid integer"),
        (lambda m: _file(m, mode=None), "files.1.mode Input should be a valid integer"),
        (lambda m: _file(m, sha256=[]), "files.1.sha256 Input should be a valid string"),
        (lambda m: _file(m, sha256="none"), "not what was backed up"),
        (lambda m: _file(m, path="/etc/passwd"), "leads out"),
        (lambda m: _file(m, path="a\0b"), "leads out"),
        (lambda m: _file(m, place="../../elsewhere"), "leads out"),
        (lambda m: _file(m, path="x" * 5000), "file name too long"),
        (lambda m: _file(m, place="x" * 5000), "file name too long"),
        (lambda m: _file(m, path="instance"), "not what was backed up"),
    ],
)
def test_a_manifest_of_nonsense_is_refused_in_words(
    backed_up: tuple[Path, Path], tmp_path: Path, change: Callable[[Any], Any], said: str
) -> None:
    instance, backup = backed_up
    manifest, place = backup / "manifest.json", tmp_path / "restored"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(json.dumps(change(json.loads(text))), encoding="utf-8")
    try:
        refused = run(instance, "restore", str(backup), "--into", str(place), status=1).stderr
    finally:
        manifest.write_text(text, encoding="utf-8")
    assert refused.startswith("Error: ")
    assert said.lower() in refused.lower()
    assert refused.count("\n") == 1
    assert not [path for path in place.rglob("*") if path.is_file()]


def _file(manifest: Any, **changes: Any) -> Any:
    """Return the manifest with another second file."""
    first, second, *others = manifest["files"]
    return {**manifest, "files": [first, {**second, **changes}, *others]}


@pytest.fixture(scope="module")
def backed_up(shared: Live, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an instance and a backup of it."""
    backup = tmp_path_factory.mktemp("backup") / "backup"
    run(shared.directory, "backup", str(backup))
    return shared.directory, backup


@pytest.mark.row("INC-25", "I5")
def test_a_lost_database_comes_back_where_it_was_and_nothing_else_is_touched(
    live: Live, tmp_path: Path
) -> None:
    """Three in the morning: the database is gone, the folder around it is not."""
    backup, directory = tmp_path / "backup", live.directory
    run(directory, "backup", str(backup))
    holder = live.enroll(live.invite("device", device_id="printer-1"))
    revoke(live, holder, "keyCompromise")
    live.stop()
    configuration, root_key = directory / "estserver.toml", directory / "ca/root.key"
    edited = configuration.read_text(encoding="utf-8") + "\n# edited since\n"
    configuration.write_text(edited, encoding="utf-8")
    root_key.unlink()
    refused = run(directory, "restore", str(backup), status=1)
    assert "estserver.db is there already: nothing was restored" in refused.stderr
    for file in directory.glob("estserver.db*"):
        file.unlink()
    assert "estserver restore" in run(directory, "recover", "--journal", ".", status=1).stderr

    result = run(directory, "restore", str(backup))
    assert f"The database of {directory} is as it was" in result.stdout
    assert "nothing else was touched" in result.stdout
    assert f"{configuration} is another than in the backup, and stays as it is" in result.stderr
    assert f"copy {backup / 'instance/ca/root.key'} there" in result.stderr
    assert configuration.read_text(encoding="utf-8") == edited
    assert not root_key.exists()
    assert stat.S_IMODE((directory / "estserver.db").stat().st_mode) == 0o600
    # What to do next can be typed as it stands.
    next_command = result.stderr.split("Before serving: estserver ")[1].split(" [--crl")[0]
    told = CliRunner().invoke(main, next_command.split())
    assert told.exit_code == 0, told.output
    assert f"certificate {holder.certificate.serial_number:x}: was missing" in told.stdout
    live.start()
    assert violations(live.core, [der(holder)]) == []
    assert verify(live.core).problems == ()


def test_a_database_never_comes_back_into_another_instance(
    backed_up: tuple[Path, Path], tmp_path: Path
) -> None:
    _, backup = backed_up
    other = tmp_path / "other"
    create_instance(other, MovableClock())
    (other / "estserver.db").unlink()
    refused = run(other, "restore", str(backup), status=1)
    assert "no CA of it is one of the backup: nothing was restored" in refused.stderr
    assert not (other / "estserver.db").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_database_that_root_brings_back_is_the_services(
    backed_up: tuple[Path, Path], tmp_path: Path
) -> None:
    _, backup = backed_up
    place = tmp_path / "restored"
    run(place, "restore", str(backup))
    (place / "estserver.db").unlink()
    os.chown(place, 4711, 4712)
    run(place, "restore", str(backup))
    made = {path: path.stat() for path in place.glob("estserver.db*")}
    assert place / "estserver.db" in made
    assert {(owned.st_uid, owned.st_gid) for owned in made.values()} == {(4711, 4712)}


def test_a_backup_without_secrets_says_what_to_put_back(outliving: Live, tmp_path: Path) -> None:
    live, backup, place = outliving, tmp_path / "backup", tmp_path / "elsewhere"
    run(live.directory, "backup", str(backup), "--no-secrets")
    assert not (backup / "instance/secrets").exists()
    result = run(live.directory, "restore", str(backup), "--into", str(place))
    for name in ("master.key", "passphrase"):
        assert f"made without {place}/secrets/{name}" in result.stderr
    shutil.copytree(live.directory / "secrets", place / "secrets")
    assert "all fit" in run(place, "verify").stdout


def test_everything_is_verified_each_day_and_after_a_restore_or_an_upgrade(
    outliving: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = outliving
    live.enroll(live.invite("device", device_id="printer-1"))
    live.core.status.publish_due()
    result = verify_due(live.core, ORIGIN)
    assert result is not None
    assert result.problems == ()
    # TLS, OCSP responder, device: each asked about over OCSP; and the CRL.
    assert (result.certificates, result.answers) == (3, 4)
    assert verify_due(live.core, ORIGIN) is None
    live.clock.advance(timedelta(hours=24))
    assert verify_due(live.core, ORIGIN) is not None
    event = Event(health.RESTORED, "test", "instance")
    live.core.store.write(lambda tx: tx.audit(event, ORIGIN))
    assert verify_due(live.core, ORIGIN) is not None
    assert verify_due(live.core, ORIGIN) is None
    with monkeypatch.context() as upgraded:
        upgraded.setattr(verification, "version", lambda _: "99")
        assert verify_due(live.core, ORIGIN) is not None

    def steal_history(tx: Transaction) -> None:
        unguard_audit(tx.connection)
        tx.connection.exec_driver_sql("DELETE FROM audit_events WHERE event = 'certificate.issued'")
        tx.connection.exec_driver_sql("UPDATE certificate_bytes SET der = substr(der, 1, 100)")

    live.core.store.write(steal_history)
    monkeypatch.setattr(verification, "version", lambda _: "100")
    found = verify_due(live.core, ORIGIN)
    assert found is not None
    said = "\n".join(found.problems)
    assert said.count("its bytes are no certificate") == found.certificates
    assert "audit row" in said
    metrics = live.request("GET", "/metrics", listener="management").body.decode()
    told = [line for line in metrics.splitlines() if "verification_problems" in line]
    assert float(told[-1].split()[-1]) == len(found.problems)
    doctor = run(live.directory, "doctor", "--json", status=1).stdout
    (line,) = (one for one in json.loads(doctor) if one["check"] == "verification")
    assert line["verdict"] == "bad"


def test_a_postgresql_database_is_dumped_and_filled_again(
    postgresql: Path, clock: MovableClock, tmp_path: Path
) -> None:
    url = make_schema(postgresql)
    with closing(Store(url, clock)) as store:
        migrate(store)
        event = Event("test.noted", "test", "thing")
        store.write(lambda tx: tx.audit(event, ORIGIN))
        dumping.dump(store, tmp_path / "dump")
        with pytest.raises(BadInput, match="is not empty"):
            dumping.refill(url, tmp_path / "dump")
        (schema,) = store.read(
            lambda tx: tx.connection.exec_driver_sql("SELECT current_schema()").one()
        )
        store.write(lambda tx: tx.connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE"))
    dumping.refill(url, tmp_path / "dump")
    with closing(Store(url, clock)) as store:
        require_current(store)
        assert store.read(health.count_events) == 1


def test_the_audit_trail_is_exported_whole_or_readable(outliving: Live) -> None:
    live = outliving
    live.enroll(live.invite("device", device_id="printer-1"))
    rows = [
        json.loads(line)
        for line in run(live.directory, "audit", "export", "--json").stdout.splitlines()
    ]
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        again = audit.digest({**row, "previous": bytes.fromhex(row["previous"])})
        assert again.hex() == row["hash"]
    text = run(live.directory, "audit", "export").stdout
    assert "certificate.issued" in text
    assert run(live.directory, "audit", "export", "--since", "2999-01-01").stdout == ""
