"""The journal: on the disk before anything becomes true, chained, and read in any condition."""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from estserver.errors import AlreadyIssued, BadInput, Unavailable
from estserver.journal import Entry, FileJournal, Reading
from estserver.model import Event, RevocationReason
from estserver.store import Transaction
from tests.live import MovableClock
from tests.parts import ORIGIN, Parts, csr_of

FILE_BYTES = 1 << 20


def _open(folder: Path, file_bytes: int = FILE_BYTES) -> FileJournal:
    return FileJournal(folder, MovableClock(), file_bytes)


def _crl(number: int) -> Entry:
    return Entry("crl", {"issuer": "issuing", "number": number})


def _numbers(reading: Reading) -> list[int]:
    return [line.entry.fields["number"] for line in reading]


def test_entries_come_back_in_order_across_files(tmp_path: Path) -> None:
    with closing(_open(tmp_path, file_bytes=4096)) as written:
        for number in range(100):
            written.append([_crl(number)])
    reading = Reading(tmp_path)
    assert _numbers(reading) == list(range(100))
    assert len(reading.files) > 2
    assert (reading.problems, reading.notes) == ([], [])


def test_nothing_written_leaves_no_file(tmp_path: Path) -> None:
    with closing(_open(tmp_path / "journal")) as written:
        written.append([])
    assert not (tmp_path / "journal").exists()
    with pytest.raises(BadInput, match="there is no journal"):
        Reading(tmp_path)


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    with closing(_open(tmp_path / "journal")) as written:
        written.append([_crl(1)])
    (file,) = (tmp_path / "journal").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_a_line_torn_by_a_crash_is_told_and_costs_nothing(tmp_path: Path) -> None:
    with closing(_open(tmp_path)) as written:
        written.append([_crl(1), _crl(2)])
    (file,) = tmp_path.iterdir()
    os.truncate(file, file.stat().st_size - 20)
    reading = Reading(file)
    assert _numbers(reading) == [1]
    assert reading.problems == []
    assert "torn by a crash" in reading.notes[0]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda lines: [*lines[:2], *lines[3:]], id="a line is gone"),
        pytest.param(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], id="two swapped"),
        pytest.param(
            lambda lines: [*lines[:2], lines[2].replace(b'"number":1', b'"number":7'), *lines[3:]],
            id="one edited",
        ),
        pytest.param(lambda lines: [*lines[:2], b"nonsense", *lines[3:]], id="one overwritten"),
        pytest.param(lambda lines: lines[1:], id="the beginning is gone"),
        pytest.param(lambda lines: [*lines[:2], lines[1], *lines[2:]], id="one twice"),
    ],
)
def test_a_changed_journal_is_found_and_read_all_the_same(
    tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    with closing(_open(tmp_path)) as written:
        written.append([_crl(number) for number in range(5)])
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"\n".join(damage(file.read_bytes().split(b"\n"))))
    reading = Reading(tmp_path)
    assert 4 in _numbers(reading)
    assert reading.problems


def test_a_missing_file_between_two_is_found(tmp_path: Path) -> None:
    with closing(_open(tmp_path, file_bytes=4096)) as written:
        for number in range(100):
            written.append([_crl(number)])
    first, second, *_ = sorted(tmp_path.iterdir())
    second.unlink()
    reading = Reading(tmp_path)
    assert _numbers(reading)[0] == 0
    assert "does not continue the file before it" in reading.problems[0]
    first.unlink()
    reading = Reading(tmp_path)
    assert _numbers(reading)
    # Old files may go once a backup holds what they tell.
    assert reading.problems == []
    assert "the files before it are not here" in reading.notes[0]


def test_many_threads_share_fsyncs_and_each_finds_its_entry_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    real = os.fdatasync
    gate = threading.Event()

    def slow(descriptor: int) -> None:
        # The first sync waits until every other thread has written: they share the second.
        syncs.append(descriptor)
        if len(syncs) == 1:
            assert gate.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    written = _open(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(written.append, [_crl(number)]) for number in range(16)]
        while len(_numbers(Reading(tmp_path)) if any(tmp_path.iterdir()) else []) < 16:
            pass
        gate.set()
        for one in waiting:
            one.result(10)
    assert len(syncs) == 2
    written.close()
    assert sorted(_numbers(Reading(tmp_path))) == list(range(16))


def test_a_full_disk_is_unavailable_and_heals_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    room = [10_000]

    def write(descriptor: int, octets: bytes) -> int:
        # A disk takes what fits and then nothing.
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(descriptor, bytes(octets)[: room[0]])
        room[0] -= taken
        return taken

    written = _open(tmp_path)
    written.append([_crl(0)])
    monkeypatch.setattr(os, "write", write)
    kept = [0]
    for number in range(1, 200):
        with suppress(Unavailable):
            written.append([_crl(number)])
            kept.append(number)
    assert len(kept) < 100
    assert "No space left" in str(written.problem())
    room[0] = 1 << 20
    written.append([_crl(1000)])
    assert written.problem() is None
    written.close()
    reading = Reading(tmp_path)
    assert _numbers(reading) == [*kept, 1000]
    assert reading.problems == []


def test_what_could_not_be_made_durable_was_never_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    written = _open(tmp_path)
    written.append([_crl(1)])
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(Unavailable):
            written.append([_crl(2)])
        with pytest.raises(Unavailable):
            written.append([_crl(3)])
    written.append([_crl(4)])
    written.close()
    # A new file each time: a disk that lost pages once is not asked about them again.
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    written = _open(tmp_path / "file" / "journal")
    with pytest.raises(Unavailable):
        written.append([_crl(1)])
    assert "cannot be written" in str(written.problem())


def test_a_disk_that_is_nearly_full_is_told_before_anybody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "is full" in str(_open(tmp_path).problem())


# -- with the store -------------------------------------------------------------------------------


@pytest.fixture
def journalled(both: Parts, make_parts: Callable[..., Parts], tmp_path: Path) -> Iterator[Parts]:
    """Return a core that keeps a journal in `tmp_path`/journal, on both databases."""
    with closing(_open(tmp_path / "journal")) as kept:
        yield make_parts(both.url, journal=kept, master=both.master)


def _kinds(tmp_path: Path) -> list[str]:
    return [line.entry.kind for line in Reading(tmp_path / "journal")]


def test_everything_that_a_restore_would_forget_is_told(journalled: Parts, tmp_path: Path) -> None:
    handover = journalled.invite("device")
    issued = journalled.enroll(handover)
    journalled.ra.revoke(
        issued.enrollment,
        reason=RevocationReason.SUPERSEDED,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    journalled.invitations.new_pin(
        handover.invitation.number, expires=None, by="test", origin=ORIGIN
    )
    journalled.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    told = [line.entry for line in Reading(tmp_path / "journal")]
    assert [entry.kind for entry in told] == [
        *("registration", "intent", "certificate", "revocation"),
        *("registration", "registration"),
    ]
    assert told[2].octets("der") == issued.der
    assert told[4].fields["pin_generation"] == 2
    assert told[5].fields["state"] == "cancelled"
    assert not any(name.startswith(("pin_h", "pin_s", "url")) for name in told[0].fields)


def test_a_refused_request_is_not_told(journalled: Parts, tmp_path: Path) -> None:
    handover = journalled.invite("device")
    journalled.enroll(handover)
    before = _kinds(tmp_path)
    with pytest.raises(AlreadyIssued):
        journalled.enroll(handover)
    assert _kinds(tmp_path) == before


def test_with_a_full_journal_nothing_is_issued_spent_or_revoked(
    journalled: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = journalled.invite("device"), journalled.invite("device")
    issued = journalled.enroll(first)
    entitlement, csr = journalled.entitle(second), csr_of()
    revoke = partial(
        journalled.ra.revoke,
        issued.enrollment,
        reason=RevocationReason.SUPERSEDED,
        comment=None,
        by="test",
        origin=ORIGIN,
    )

    def full(_descriptor: int, _octets: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        with pytest.raises(Unavailable) as refused:
            journalled.ask(entitlement, csr)
        assert refused.value.retry_after is not None
        with pytest.raises(Unavailable):
            revoke()
        assert journalled.invitations.get(second.invitation.number).units_used == 0
        assert journalled.ra.of_invitation(second.invitation.number) == []
    assert journalled.ask(entitlement, csr)
    revoke()


def test_what_needs_no_journal_goes_on_while_it_is_full(
    journalled: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units that wait together are committed together, but do not fail together."""
    number = journalled.invite("device").invitation.number
    begun, go_on = threading.Event(), threading.Event()

    def hold(_tx: Transaction) -> None:
        begun.set()
        assert go_on.wait(10)

    def full(_descriptor: int, _octets: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with ThreadPoolExecutor(3) as pool:
        holding = pool.submit(journalled.store.write, hold)
        assert begun.wait(10)
        cancelling = pool.submit(journalled.invitations.cancel, number, by="test", origin=ORIGIN)
        event = Event("test.noted", "test", "test")
        noting = pool.submit(journalled.store.write, lambda tx: tx.audit(event, ORIGIN))
        while journalled.store._queue.qsize() < 2:
            pass
        go_on.set()
        holding.result(10)
        noting.result(10)
        with pytest.raises(Unavailable):
            cancelling.result(10)
    assert journalled.invitations.get(number).state == "open"
