"""The worst day: the disk is lost, a backup is restored, and the journal tells what came since."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import config
from estserver.cli import main
from estserver.verification import verify
from tests.invariants import violations
from tests.live import Holder, Live, Workshop, basic, make_csr, new_key


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


def der(holder: Holder) -> bytes:
    return holder.certificate.public_bytes(Encoding.DER)


def lose_and_restore(live: Live, backup: Path) -> None:
    """Take the instance's disk away, and put the backup in its place."""
    live.stop()
    shutil.rmtree(live.directory)
    run(live.directory, "restore", str(backup))


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
    refused = live.request(
        "POST",
        "/.well-known/est/simpleenroll",
        body=base64.b64encode(make_csr(new_key())),
        headers={"Content-Type": "application/pkcs10", "Authorization": basic(spent)},
    )
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
