"""Who may hold certificates and release them, and what may follow what (certificateHold)."""

from datetime import timedelta
from functools import partial

import pytest

from estserver import verification
from estserver.errors import Conflict
from estserver.model import (
    CertificateState,
    RevocationReason,
)
from estserver.revoking import Revocation, revoke_selected
from estserver.store import Transaction, crls, revocations
from estserver.store.selection import Selection, count
from tests.command_line import Shell
from tests.hold.acts import FOR_GOOD, HOLD, refused, release, revoke, row, said
from tests.invariants import violations
from tests.live import Live
from tests.parts import ORIGIN, Parts
from tests.test_races import Overlap


@pytest.mark.row("INC-30")
def test_without_the_setting_nothing_is_held_or_released(live: Live) -> None:
    serial = f"{live.enroll(live.invite('device')).certificate.serial_number:x}"
    shell = Shell(live.directory)
    for command in (
        ("hold", serial),
        ("release", serial),
        ("revoke", serial, "--reason", "certificateHold"),
        ("revoke-selected", "--profile", "device", "--reason", "certificateHold", "--yes"),
    ):
        assert "`hold = true` under [revocation]" in refused(shell, "certificates", *command)
    assert shell.json("certificates", "show", serial)["state"] == "valid"


def test_an_officer_holds_and_releases_and_ocsp_follows(held_allowed: Live) -> None:
    live = held_allowed
    holder = live.enroll(live.invite("device", email="owner@example.ac.jp"))
    serial = f"{holder.certificate.serial_number:x}"
    shell = Shell(live.directory)
    told = said(shell, "certificates", "hold", serial, "--comment", "lost its badge")
    assert f"Certificate {serial} is on hold. OCSP says so.\n" in told
    shown = shell.json("certificates", "show", serial)
    assert (shown["state"], shown["reason"]) == ("revoked", "certificateHold")
    assert "on hold" in said(shell, "certificates", "list")
    assert "is on hold already" in refused(shell, "certificates", "hold", serial)
    told = said(shell, "certificates", "release", serial)
    assert f"Certificate {serial} is on hold no more: valid. OCSP says so.\n" in told
    assert "is not on hold: it is valid" in refused(shell, "certificates", "release", serial)
    told = said(shell, "certificates", "revoke", serial, "--reason", "certificateHold")
    assert "is on hold. OCSP says so." in told
    told = said(shell, "certificates", "revoke", serial, "--reason", "superseded")
    assert "is revoked (superseded). OCSP says so." in told
    assert "is revoked already" in refused(shell, "certificates", "hold", serial)
    assert "is revoked for good" in refused(shell, "certificates", "release", serial)
    letters = shell.json("mail", "list")
    assert sorted(letter["letter"] for letter in letters) == [
        "held",
        "held",
        "released",
        "revoked",
    ]
    assert violations(live.core, []) == []
    assert verification.verify(live.core).problems == ()


def test_many_are_held_together_and_what_is_held_is_revoked_with_the_rest(offices: Parts) -> None:
    handover = offices.invite(units=3)
    issued = [offices.enroll(handover) for _ in range(3)]
    everything = Selection(profile="device")
    revoke(offices, issued[0].enrollment, HOLD)
    pause = Revocation(HOLD, None, "officer")
    for_good = Revocation(FOR_GOOD, None, "officer")
    held = offices.store.read(partial(count, selection=pause.among(everything)))
    meant = offices.store.read(partial(count, selection=for_good.among(everything)))
    assert (held, meant) == (2, 3)
    assert revoke_selected(offices.store, everything, pause, ORIGIN) == 2
    assert all(row(offices, one).on_hold for one in issued)
    assert revoke_selected(offices.store, everything, for_good, ORIGIN) == 3
    assert {row(offices, one).reason for one in issued} == {FOR_GOOD}


def test_a_hold_that_becomes_a_revocation_keeps_its_date(office: Parts) -> None:
    issued = office.enroll(office.invite())
    revoke(office, issued.enrollment, HOLD)
    held_at = row(office, issued).revoked_at
    office.clock.advance(timedelta(days=3))
    revoke(office, issued.enrollment, FOR_GOOD)
    record = row(office, issued)
    assert (record.revoked_at, record.reason) == (held_at, FOR_GOOD)


def test_what_is_revoked_for_good_is_neither_held_nor_released(office: Parts) -> None:
    issued = office.enroll(office.invite())
    revoke(office, issued.enrollment, FOR_GOOD)
    with pytest.raises(Conflict, match="revoked already"):
        revoke(office, issued.enrollment, HOLD)
    with pytest.raises(Conflict, match="revoked for good"):
        release(office, issued.enrollment)


def test_a_hold_blocks_no_key_and_a_compromise_after_it_does(office: Parts) -> None:
    issued = office.enroll(office.invite())
    key = row(office, issued).spki_sha256
    revoke(office, issued.enrollment, HOLD)
    assert not office.store.read(lambda tx: revocations.is_blocked(tx, key))
    revoke(office, issued.enrollment, RevocationReason.KEY_COMPROMISE)
    assert office.store.read(lambda tx: revocations.is_blocked(tx, key))


def test_only_what_is_signed_and_in_time_is_held(office: Parts) -> None:
    issued = office.enroll(office.invite())
    office.clock.advance(timedelta(days=800))
    with pytest.raises(Conflict, match="has expired"):
        revoke(office, issued.enrollment, HOLD)


def test_what_expires_while_it_is_held_can_be_released_and_is_expired(office: Parts) -> None:
    issued = office.enroll(office.invite(email="owner@example.ac.jp"))
    revoke(office, issued.enrollment, HOLD)
    office.clock.advance(timedelta(days=800))
    assert row(office, issued).state_at(office.clock.now()) is CertificateState.REVOKED
    assert release(office, issued.enrollment).state_at(office.clock.now()) == "expired"


@pytest.mark.parametrize("last", ["release", "revoke"])
def test_two_nodes_that_release_and_revoke_at_once_end_in_a_revocation(
    offices: Parts, last: str
) -> None:
    """A revocation for good is never undone, and what a release undid is revoked all the same."""
    there = offices.another()
    issued = offices.enroll(offices.invite())
    revoke(offices, issued.enrollment, HOLD)

    def ending(tx: Transaction) -> object:
        if last == "release":
            return revocations.revoke(tx, issued.enrollment, reason=FOR_GOOD, comment=None)
        return revocations.release(tx, issued.enrollment)

    def other() -> None:
        if last == "release":
            with pytest.raises(Conflict, match="for good"):
                release(there, issued.enrollment)
        else:
            revoke(there, issued.enrollment, FOR_GOOD)

    try:
        Overlap(offices).run(ending, other)
    finally:
        there.store.close()
    assert row(offices, issued).reason is FOR_GOOD
    ended = offices.store.read(
        lambda tx: crls.count_holds_ended(tx, "issuing", ""),
    )
    assert ended == 1
