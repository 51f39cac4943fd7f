"""Holds and releases come back from journal and CRL as they were."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from estserver import verification
from estserver.history import History, Standing
from estserver.journal import Entry
from estserver.model import (
    RevocationReason,
)
from estserver.store import from_unix
from tests.command_line import Shell
from tests.hold.acts import FOR_GOOD, HOLD, ON, reasons, release, revoke, said
from tests.invariants import violations
from tests.live import Workshop
from tests.parts import ORIGIN
from tests.status_driver import House


def told(kind: str, at: int, reason: str | None = None) -> Entry:
    """Return a line of a journal about one certificate."""
    about = {"issuer": "issuing", "serial": "4711", "enrollment": "one"}
    if kind == "release":
        return Entry(kind, {**about, "released_at": at})
    return Entry(kind, {**about, "revoked_at": at, "reason": reason})


HELD, RELEASED, ENDED = (
    partial(told, "revocation", reason="certificateHold"),
    partial(told, "release"),
    partial(told, "revocation", reason="superseded"),
)


@pytest.mark.parametrize(
    ("lines", "at", "reason"),
    [
        ([HELD(1)], 1, HOLD),
        ([HELD(1), RELEASED(2)], 2, None),
        ([HELD(1), RELEASED(2), HELD(3)], 3, HOLD),
        # In one second, the lines of a file keep their order.
        ([HELD(1), RELEASED(1)], 1, None),
        ([HELD(1), RELEASED(1), HELD(1)], 1, HOLD),
        # The file of another node may be read first.
        ([RELEASED(2), HELD(1)], 2, None),
        # For good is for good, and since it was held.
        ([HELD(1), ENDED(1)], 1, RevocationReason.SUPERSEDED),
        ([ENDED(3), RELEASED(4)], 3, RevocationReason.SUPERSEDED),
        ([HELD(1), RELEASED(4), ENDED(3)], 3, RevocationReason.SUPERSEDED),
    ],
)
def test_of_holds_and_releases_the_last_one_counts_and_for_good_counts_most(
    lines: list[Entry], at: int, reason: RevocationReason | None
) -> None:
    history = History()
    for line in lines:
        history.take(line)
    assert history.told == {("issuing", 0x4711): Standing(from_unix(at), reason)}


def test_a_published_crl_restores_a_hold_unless_the_journal_knows_its_end(house: House) -> None:
    certificate, enrollment = house.issue("host")
    revoke(house, enrollment, HOLD)
    published = x509.load_der_x509_crl(house.status.publish("issuing").der)
    record = house.ra.certificate(enrollment)
    assert record.revoked_at is not None
    key = ("issuing", certificate.serial_number)
    history = History()
    history.take_crl("issuing", published)
    assert history.told == {key: Standing(record.revoked_at, HOLD)}
    release(house, enrollment)
    house.status.publish("issuing")
    delta = house.status.publish("issuing").delta
    assert delta is not None
    history = History()
    history.take_crl("issuing", x509.load_der_x509_crl(b"".join(delta)))
    assert history.told == {}


def test_recovery_replays_holds_releases_and_revocations(template: Path, tmp_path: Path) -> None:
    """A backup from before the end of anything, and a journal of all of it."""
    directory, journal, backup = (tmp_path / name for name in ("instance", "journal", "backup"))
    live = Workshop(template).make(directory, ON, start=False)
    kept = live.settings.journal.model_copy(update={"path": journal})
    live.settings = live.settings.model_copy(update={"journal": kept})
    live.start()
    handover = live.invite("device", units=5)
    holders = [live.enroll(handover) for _ in range(5)]
    serials = [holder.certificate.serial_number for holder in holders]
    rows = [live.core.ra.find(serial).enrollment for serial in serials]
    _never, held, released, ended, before = rows
    ra = live.core.ra
    ra.revoke(before, reason=HOLD, comment=None, by="officer", origin=ORIGIN)
    shell = Shell(directory)
    shell.run("backup", str(backup))
    for enrollment in (held, released, ended):
        ra.revoke(enrollment, reason=HOLD, comment=None, by="officer", origin=ORIGIN)
    for enrollment in (released, before):
        ra.release(enrollment, comment=None, by="officer", origin=ORIGIN)
    ra.revoke(ended, reason=FOR_GOOD, comment=None, by="officer", origin=ORIGIN)
    live.core.status.publish_due()
    stood = [live.core.ra.certificate(enrollment) for enrollment in rows]
    assert [one.reason for one in stood] == [None, HOLD, None, FOR_GOOD, None]
    number = live.core.status.crl("issuing").number
    published = tmp_path / "last.crl"
    published.write_bytes(live.core.status.crl("issuing").der)
    live.stop()
    shutil.rmtree(directory)
    shell.run("restore", str(backup))

    # A list alone tells of holds too, and never of a release.
    alone = shell.json("recover", "--crl", str(published), "--dry-run")
    assert {(one["serial"], one["reason"]) for one in alone["revocations"]} == {
        (f"{serials[1]:x}", "certificateHold"),
        (f"{serials[3]:x}", "privilegeWithdrawn"),
    }
    assert alone["releases"] == []
    recover = ("recover", "--journal", str(journal), "--crl", str(published))
    shown = shell.json(*recover)
    assert {one["serial"] for one in shown["revocations"]} == {f"{serials[n]:x}" for n in (1, 3)}
    assert shown["releases"] == [f"{serials[4]:x}"]
    assert shown["problems"] == []
    assert "Nothing is missing." in said(shell, *recover)
    live.start()
    try:
        assert [live.core.ra.certificate(enrollment) for enrollment in rows] == stood
        crl = live.core.status.publish("issuing")
        assert crl.number > number
        assert set(reasons(crl.der)) == {serials[1], serials[3]}
        assert violations(live.core, []) == []
        assert verification.verify(live.core).problems == ()
    finally:
        live.stop()
