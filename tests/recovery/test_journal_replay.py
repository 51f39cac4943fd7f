"""What was issued and revoked after a backup comes back from journal and CRL."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver import recovery
from estserver.anchor import AnchorFile
from estserver.journal import Entry, FileJournal, Reading, encode_octets
from estserver.verification import verify
from tests.invariants import violations
from tests.live import Live, make_csr, new_key
from tests.parts import Hierarchy
from tests.recovery.losses import ask, blocked, der, lose_and_restore, revoke, run

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
    assert re.search(r"audit trail: lost with the database: [1-9]\d* rows? that the anchor", told)
    assert f"in {journal / 'audit.anchor'} knew" in told
    (file,) = list(journal.glob("*.jsonl"))[:1]
    assert "audit trail: lost" in run(place, "recover", "--journal", str(file)).stdout
    assert (journal / "audit.anchor").read_bytes() == kept
    assert json.loads(run(place, "recover", "--journal", str(journal), "--json").stdout)[
        "audit_rows_lost"
    ]
    assert run(place, "verify").exit_code == 0
    # A damaged one keeps nothing from coming back.
    (journal / "audit.anchor").write_text("nothing\n", encoding="utf-8")
    damaged = run(place, "recover", "--journal", str(journal))
    assert "what the audit trail has lost cannot be told by it" in damaged.stderr
