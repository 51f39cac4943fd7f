"""The worst day: the disk is lost, a backup is restored, and the journal tells what came since."""

import base64
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver import config, recovery, verification
from estserver.anchor import AnchorFile
from estserver.ca.ceremony import create_instance
from estserver.cli import main
from estserver.errors import BadInput
from estserver.invitations import Handover
from estserver.journal import Entry, FileJournal, Reading, encode_octets
from estserver.mail.letters import TEMPLATES_FOLDER
from estserver.model import Event
from estserver.store import Store, Transaction, audit, dumping, health, migrate, require_current
from estserver.store.tables import blocked_keys
from estserver.verification import verify, verify_due
from tests.invariants import violations
from tests.live import (
    Answer,
    Holder,
    Key,
    Live,
    MovableClock,
    Workshop,
    basic,
    make_csr,
    new_key,
)
from tests.parts import ORIGIN, Hierarchy, unguard_audit
from tests.postgres import make_schema

REGISTRATION: dict[str, object] = {
    "number": "4711",
    "profile": "device",
    "name": "printer",
    "organization": "",
    "names": [],
    "language": "en",
    "doors": "est",
    "units": 1,
    "units_used": 0,
    "state": "open",
    "approval": False,
    "created_at": 0,
    "created_by": "anybody",
    "expires_at": 0,
    "pin_generation": 1,
    "renewal_pin": False,
    "replaced": False,
}
REVOCATION: dict[str, object] = {
    "issuer": "issuing",
    "serial": "4711",
    "revoked_at": 0,
    "reason": "superseded",
}


def make_intent(issuer: x509.Name) -> dict[str, object]:
    """Return what a journal would have of an intent to sign a CA's certificate."""
    key = new_key()
    builder = (
        x509.CertificateBuilder(issuer, issuer, key.public_key(), 4711)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    tbs = builder.sign(key, hashes.SHA256()).tbs_certificate_bytes
    return {
        "enrollment": "forged",
        "authority": "anything",
        "profile": "device",
        "invitation": None,
        "via": "est",
        "applicant": "anybody",
        "proof": "none",
        "renews": None,
        "issuer": "issuing",
        "serial": f"{4711:x}",
        "tbs": encode_octets(tbs),
    }


INTENT = make_intent(x509.Name([]))


def run(directory: Path, *arguments: str, status: int = 0) -> Result:
    configuration = str(directory / "estserver.toml")
    result = CliRunner().invoke(main, ["--config", configuration, *arguments])
    assert result.exit_code == status, result.output
    return result


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


def revoke(live: Live, holder: Holder, reason: str = "superseded") -> None:
    run(
        live.directory,
        *("certificates", "revoke", f"{holder.certificate.serial_number:x}", "--reason", reason),
    )


def ask(live: Live, handover: Handover, key: Key | None = None) -> Answer:
    """Enroll with a PIN, whatever comes of it."""
    return live.request(
        "POST",
        "/.well-known/est/simpleenroll",
        body=base64.b64encode(make_csr(key or new_key())),
        headers={"Content-Type": "application/pkcs10", "Authorization": basic(handover)},
    )


def der(holder: Holder) -> bytes:
    return holder.certificate.public_bytes(Encoding.DER)


def lose_and_restore(live: Live, backup: Path) -> None:
    """Take the instance's disk away, and put the backup in its place."""
    live.stop()
    shutil.rmtree(live.directory)
    run(live.directory, "restore", str(backup))


def blocked(live: Live) -> list[bytes]:
    """List the SHA-256 of the keys that are blocked for ever."""
    with closing(Store(live.settings.database_url, live.clock)) as store:
        query = sa.select(blocked_keys.c.spki_sha256)
        return store.read(lambda tx: [bytes(one) for one in tx.connection.scalars(query)])


def published(live: Live, path: Path) -> int:
    """Save the CRL that relying parties have and return its number."""
    crl = live.core.status.publish("issuing")
    path.write_bytes(crl.der)
    return crl.number


@pytest.mark.timeout(300)
@pytest.mark.row("INC-25", "I1", "I4", "I5", "I6")
def test_restore_drill(
    outliving: Live, tmp_path: Path, elsewhere: Path, request: pytest.FixtureRequest
) -> None:
    full = request.config.getoption("--full")
    issued, revoked = (200, 20) if full else (30, 6)
    live = outliving
    # The backup knows some invitations of what comes after it, and one certificate.
    known = [live.invite("device", device_id=f"old-{n}") for n in range(issued // 2)]
    first = live.enroll(live.invite("device", device_id="first"))
    backup = tmp_path / "backup"
    run(live.directory, "backup", str(backup))

    fresh = [live.invite("device", device_id=f"new-{n}") for n in range(issued - len(known))]
    handovers = known + fresh
    holders = [live.enroll(handover) for handover in handovers]
    for holder in [first, *holders[: revoked - 1]]:
        revoke(live, holder)
    number = published(live, tmp_path / "last.crl")
    lose_and_restore(live, backup)

    options = ("--journal", str(elsewhere / "journal"), "--crl", str(tmp_path / "last.crl"))
    shown = json.loads(run(live.directory, "recover", *options, "--dry-run", "--json").stdout)
    assert len(shown["certificates"]) == issued
    told = json.loads(run(live.directory, "recover", *options, "--json").stdout)
    assert {**told, "applied": False, "units": []} == {**shown, "units": []}
    assert sorted(told["units"]) == sorted(handover.invitation.number for handover in known)
    assert len(told["revocations"]) == revoked
    assert told["crl_numbers"] == {"issuing": number}
    assert told["problems"] == []
    assert "Nothing is missing" in run(live.directory, "recover", *options).stdout

    live.start()
    received = [der(holder) for holder in (first, *holders)]
    assert violations(live.core, received) == []
    crl = live.core.status.publish("issuing")
    assert crl.number > number
    listed = {entry.serial_number for entry in x509.load_der_x509_crl(crl.der)}
    assert listed == {
        holder.certificate.serial_number for holder in (first, *holders[: revoked - 1])
    }
    # A spent PIN gives no second certificate, but the first one again.
    spent = known[-1]
    again = live.enroll(spent, holders[len(known) - 1].key)
    assert der(again) == der(holders[len(known) - 1])
    refused = ask(live, spent)
    assert refused.status == 401, refused.body
    # What was issued after the backup renews.
    renewed = live.request(
        "POST",
        "/.well-known/est/simplereenroll",
        body=base64.b64encode(make_csr(new_key(), subject=holders[-1].certificate.subject)),
        headers={"Content-Type": "application/pkcs10"},
        holder=holders[-1],
    )
    assert renewed.status == 200, renewed.body
    assert verify(live.core).problems == ()


@pytest.mark.row("INC-3", "I5")
def test_what_was_taken_back_stays_taken_back(
    outliving: Live, tmp_path: Path, elsewhere: Path
) -> None:
    """Cancelled registrations, replaced PINs and blocked keys: a restore must open none again."""
    live = outliving
    cancelled, renewed, stolen = (live.invite("device", device_id=f"d{n}") for n in range(3))
    holder = live.enroll(stolen)
    run(live.directory, "backup", str(tmp_path / "backup"))
    run(live.directory, "invitations", "cancel", cancelled.invitation.number)
    run(live.directory, "invitations", "new-pin", renewed.invitation.number)
    revoke(live, holder, "keyCompromise")
    lose_and_restore(live, tmp_path / "backup")

    told = run(live.directory, "recover", "--journal", str(elsewhere / "journal")).stdout
    assert f"invitation {cancelled.invitation.number}: had been cancelled" in told
    assert f"invitation {renewed.invitation.number}: its PIN had been replaced" in told
    live.start()
    for handover in (cancelled, renewed):
        answer = ask(live, handover)
        assert answer.status in {401, 403}, answer.body
    blocked = ask(live, live.invite("device", device_id="d4"), holder.key)
    assert blocked.status == 400
    assert b"compromised" in blocked.body
    assert violations(live.core, []) == []


@pytest.mark.row("I5", "I6")
def test_a_serial_of_which_only_a_crl_tells_stays_revoked(
    outliving: Live, tmp_path: Path, elsewhere: Path
) -> None:
    live = outliving
    run(live.directory, "backup", str(tmp_path / "backup"))
    holder = live.enroll(live.invite("device", device_id="printer-1"))
    revoke(live, holder)
    number = published(live, tmp_path / "last.crl")
    lose_and_restore(live, tmp_path / "backup")

    told = run(live.directory, "recover", "--crl", str(tmp_path / "last.crl"), "--json").stdout
    (revocation,) = json.loads(told)["revocations"]
    assert revocation["serial"] == f"{holder.certificate.serial_number:x}"
    assert revocation["known"] is False
    live.start()
    assert violations(live.core, []) == []
    crl = live.core.status.publish("issuing")
    assert crl.number > number
    listed = [entry.serial_number for entry in x509.load_der_x509_crl(crl.der)]
    assert listed == [holder.certificate.serial_number]
    # Found later, the journal tells the rest of it.
    run(live.directory, "recover", "--journal", str(elsewhere / "journal"))
    assert violations(live.core, [der(holder)]) == []
    assert verify(live.core).problems == ()


def test_no_key_is_blocked_for_a_serial_of_which_only_a_crl_tells(
    outliving: Live, tmp_path: Path, elsewhere: Path
) -> None:
    live = outliving
    run(live.directory, "backup", str(tmp_path / "backup"))
    holder = live.enroll(live.invite("device", device_id="printer-1"))
    revoke(live, holder, "keyCompromise")
    published(live, tmp_path / "last.crl")
    lose_and_restore(live, tmp_path / "backup")

    run(live.directory, "recover", "--crl", str(tmp_path / "last.crl"))
    assert blocked(live) == []
    run(live.directory, "recover", "--journal", str(elsewhere / "journal"))
    spki = holder.certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert blocked(live) == [hashlib.sha256(spki).digest()]


def test_who_was_erased_is_not_quietly_back(
    outliving: Live, tmp_path: Path, elsewhere: Path
) -> None:
    live = outliving
    known = live.invite("device", device_id="quargel-1")
    run(live.directory, "backup", str(tmp_path / "backup"))
    fresh = live.invite("device", device_id="quargel-2")
    for handover in (known, fresh):
        revoke(live, live.enroll(handover))
        run(live.directory, "purge", "--invitation", handover.invitation.number)
    lose_and_restore(live, tmp_path / "backup")

    journal = ("--journal", str(elsewhere / "journal"))
    told = run(live.directory, "recover", *journal).stderr
    for handover in (known, fresh):
        number = handover.invitation.number
        assert f"had been erased: estserver purge --invitation {number}" in told
        run(live.directory, "purge", "--invitation", number)
    assert "had been erased" not in run(live.directory, "recover", *journal).stderr
    assert b"quargel" not in (live.directory / "estserver.db").read_bytes()
    assert "all fit" in run(live.directory, "verify").stdout


def test_a_damaged_journal_is_used_as_far_as_it_goes(
    outliving: Live, tmp_path: Path, elsewhere: Path
) -> None:
    live = outliving
    run(live.directory, "backup", str(tmp_path / "backup"))
    first, second, third = (live.enroll(live.invite("device", device_id=f"d{n}")) for n in range(3))
    lose_and_restore(live, tmp_path / "backup")
    (file,) = (
        path for path in (elsewhere / "journal").glob("*.jsonl") if b"d2" in path.read_bytes()
    )
    forged = base64.b64encode(der(second)).decode()
    other = base64.b64encode(der(second)[:-8] + bytes(8)).decode()
    text = file.read_text(encoding="utf-8")
    assert forged in text
    file.write_text(text.replace(forged, other)[:-10], encoding="utf-8")

    result = run(live.directory, "recover", "--journal", str(elsewhere / "journal"), status=1)
    assert "does not follow the line before it as it was" in result.stderr
    assert "its signature is not that of its issuer" in result.stderr
    assert "torn by a crash" in result.stderr
    live.start()
    # The third's last line is torn: its serial stays taken, and may be revoked.
    assert violations(live.core, [der(first)]) == []
    assert live.core.ra.find(third.certificate.serial_number).state == "abandoned"


@pytest.mark.row("INC-25")
def test_what_a_stranger_writes_into_the_journal_is_never_signed(
    outliving: Live, tmp_path: Path, elsewhere: Path
) -> None:
    """The chain has no key, so a forged line may fit; only what bears our signature is believed."""
    live = outliving
    run(live.directory, "backup", str(tmp_path / "backup"))
    handover = live.invite("device", device_id="printer-1")
    lose_and_restore(live, tmp_path / "backup")
    issuing = x509.load_pem_x509_certificate((live.directory / "ca/issuing.crt").read_bytes())
    forged = {**make_intent(issuing.subject), "invitation": handover.invitation.number}
    file_journal = FileJournal(elsewhere / "journal", live.clock, 1 << 20)
    file_journal.append([Entry("intent", forged)])
    file_journal.close()

    told = run(live.directory, "recover", "--journal", str(elsewhere / "journal")).stdout
    assert f"certificate {4711:x}: had been begun, and is given up" in told
    live.start()
    assert live.core.ra.find(4711).state == "abandoned"
    assert live.core.ra.certificate_of("forged") is None
    assert violations(live.core, []) == []


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("registration", {"number": "4711"}),
        ("registration", {"number": ["4711"]}),
        ("registration", {**REGISTRATION, "pin_generation": "many"}),
        ("registration", {**REGISTRATION, "units": 1 << 40}),
        ("registration", {**REGISTRATION, "units_used": 2}),
        ("revocation", {**REVOCATION, "serial": "-5"}),
        ("revocation", {**REVOCATION, "serial": "f" * 60}),
        ("revocation", {**REVOCATION, "issuer": 5}),
        ("revocation", {**REVOCATION, "revoked_at": 1 << 80}),
        ("crl", {"issuer": "issuing", "number": 1 << 63}),
        ("crl", {"issuer": ["issuing"], "number": 5}),
        ("certificate", {"enrollment": 5, "der": "AAAA"}),
        ("certificate", {"enrollment": "forged", "der": "AAAA"}),
        ("intent", {**INTENT, "via": "thin air"}),
        ("intent", {**INTENT, "invitation": ["4711"]}),
        ("intent", {**INTENT, "applicant": {"name": "anybody"}}),
    ],
)
def test_a_line_that_makes_no_sense_is_told_and_harms_nothing(
    live: Live, tmp_path: Path, kind: str, fields: dict[str, object]
) -> None:
    file_journal = FileJournal(tmp_path / "journal", live.clock, 1 << 20)
    file_journal.append([Entry(kind, fields)])
    file_journal.close()
    difference = recovery.compare(live.core, Reading(tmp_path / "journal"), [])
    assert len(difference.problems) == 1, difference
    assert difference.empty
    assert live.core.status.publish("issuing").der


def test_a_crl_of_somebody_else_recovers_nothing(
    outliving: Live, tmp_path: Path, ca: Hierarchy
) -> None:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.issuing.certificate.subject)
        .last_update(outliving.clock.now())
        .next_update(outliving.clock.now() + timedelta(days=1))
    )
    foreign = builder.sign(ca.issuing.key, hashes.SHA256())
    (tmp_path / "foreign.crl").write_bytes(foreign.public_bytes(Encoding.PEM))
    (tmp_path / "none.crl").write_bytes(b"nothing")
    for name, said in (("foreign", "not signed by an issuer"), ("none", "is not a CRL")):
        refused = run(
            outliving.directory, "recover", "--crl", str(tmp_path / f"{name}.crl"), status=1
        )
        assert said in refused.stderr
    assert "--journal, --crl or both" in run(outliving.directory, "recover", status=2).stderr


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
    assert "is no backup" in refused.stderr
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
        (lambda m: _file(m, path="x" * 5000), "File name too long"),
        (lambda m: _file(m, place="x" * 5000), "File name too long"),
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
    assert said in refused
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


def test_the_anchor_beside_the_journal_tells_how_much_of_the_trail_is_lost(
    live: Live, tmp_path: Path
) -> None:
    """The journal's folder outlived, and the audit anchor in it; the instance is elsewhere now."""
    backup, place, journal = tmp_path / "backup", tmp_path / "restored", live.directory / "journal"
    run(live.directory, "backup", str(backup))
    live.enroll(live.invite("device", device_id="printer-1"))
    AnchorFile(journal / "audit.anchor").drop(live.core.store, live.clock.now())
    run(live.directory, "restore", str(backup), "--into", str(place))
    kept = (journal / "audit.anchor").read_bytes()

    told = run(place, "recover", "--journal", str(journal)).stdout
    assert re.search(r"audit trail: [1-9]\d* rows are lost with the database; the anchor of", told)
    assert f"in {journal / 'audit.anchor'} knew them" in told
    assert (journal / "audit.anchor").read_bytes() == kept
    assert json.loads(run(place, "recover", "--journal", str(journal), "--json").stdout)[
        "audit_rows_lost"
    ]
    assert run(place, "verify").exit_code == 0
    # A damaged one keeps nothing from coming back.
    (journal / "audit.anchor").write_text("nothing\n", encoding="utf-8")
    damaged = run(place, "recover", "--journal", str(journal))
    assert "what the audit trail has lost cannot be told by it" in damaged.stderr


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
