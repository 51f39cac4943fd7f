"""The journal: an append-only, hash-chained record off the database, from which it can be refilled.

Entries reach the disk before the transaction they belong to is committed, so whatever the database
holds, and whatever a client was ever given, stands here. The converse does not hold: an entry whose
transaction failed afterwards says only what was about to be true, and `recovery` reads it so.

Each process writes files of its own into one folder: JSON, one entry a line. A line's `chain` is
the SHA-256 of the `chain` before it and of the line without its own; a file's first line names the
last `chain` of the file before it. A crash can tear only the last line of a file, which then was
never promised to anybody. No PIN, key or other secret ever stands here.
"""

import base64
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from estserver.errors import BadInput, Unavailable
from estserver.files import give, make_folder, sync_folder
from estserver.model import Clock

SUFFIX = ".jsonl"
OPENED = "opened"
_NOTHING = bytes(32)
_LOW = 1 << 20
"""Bytes: with less free, the next certificates find the disk full."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened: JSON values only, bytes as base64 (`octets`), times as unix seconds.

    Kinds: intent, certificate, abandoned, revocation, release, crl, registration; the chain adds
    `opened`.
    """

    kind: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return a field that holds text. Raises KeyError, TypeError."""
        value = self.fields[name]
        if not isinstance(value, str):
            raise TypeError(name)
        return value

    def octets(self, name: str) -> bytes:
        """Return a field that holds bytes. Raises KeyError, TypeError, ValueError."""
        return base64.b64decode(self.fields[name], validate=True)


def encode_octets(value: bytes) -> str:
    """Return bytes as entries hold them."""
    return base64.b64encode(value).decode()


class Journal(Protocol):
    """Where the store puts entries before it commits what they tell of."""

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries durably. Raises Unavailable: nothing of them may become true then."""
        ...


class _File:
    """One file of a journal: written by many threads, which share each other's fsync."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._descriptor = os.open(path, flags, 0o600)
        self.size = 0
        self.broken = False
        self._durable = 0
        self._syncing = threading.Lock()
        give(self._descriptor, path.parent.stat())
        sync_folder(path.parent)

    def write(self, octets: bytes) -> int:
        """Append and return the size to wait for. Raises OSError, leaving the file as it was."""
        try:
            rest = memoryview(octets)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            # Half an entry may stand at the end: nothing more may follow it.
            self.broken = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(octets)
        return self.size

    def wait_durable(self, size: int) -> None:
        """Return once the first `size` octets are on the disk. Raises OSError."""
        with self._syncing:
            if self._durable >= size:
                return
            written = self.size
            try:
                os.fdatasync(self._descriptor)
            except OSError:
                # The system may have dropped what it could not write and tells only once.
                self.broken = True
                raise
            self._durable = written

    def close(self) -> None:
        """Wait for what is under way and let go of the file; an empty one is removed."""
        with contextlib.suppress(OSError):
            self.wait_durable(self.size)
        with self._syncing:
            os.close(self._descriptor)
            if self.size == 0:
                self._path.unlink(missing_ok=True)


class FileJournal:
    """The journal of one process, in `folder`, which other processes share. Thread-safe.

    A file is begun with the first entry: a command that changes nothing leaves none behind.
    """

    def __init__(self, folder: Path, clock: Clock, file_bytes: int) -> None:
        self._folder = folder
        self._clock = clock
        self._file_bytes = file_bytes
        self._writer = f"{clock.now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        self._attempts = 0
        self._begun = 0
        self._head = _NOTHING
        self._file: _File | None = None
        self._failure: str | None = None
        self._writing = threading.Lock()

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries; return once they are on the disk.

        Raises Unavailable: the disk is full, read-only or gone. The next call tries anew.
        """
        if not entries:
            return
        try:
            with self._writing:
                file = self._usable_file()
                head, lines = self._chain(self._head, entries)
                size = file.write(lines)
                self._head = head
            file.wait_durable(size)
        except OSError as error:
            self._failure = f"the journal in {self._folder} cannot be written: {error.strerror}"
            raise Unavailable(
                "nothing can be recorded in the journal now: try again",
                retry_after=timedelta(seconds=5),
            ) from error
        self._failure = None

    def _usable_file(self) -> _File:
        file = self._file
        if file is not None and (file.broken or file.size >= self._file_bytes):
            self._file = None
            file.close()
        if self._file is None:
            self._file = self._begin_file()
        return self._file

    def _begin_file(self) -> _File:
        make_folder(self._folder)
        # A name that failed once may be taken by what could not be removed.
        self._attempts += 1
        file = _File(self._folder / f"{self._writer}-{self._attempts:06}{SUFFIX}")
        previous = self._head.hex()
        opened = {"writer": self._writer, "file": self._begun + 1, "previous": previous}
        head, line = self._chain(self._head, [Entry(OPENED, opened)])
        try:
            file.write(line)
        except OSError:
            file.close()
            raise
        self._head = head
        self._begun += 1
        return file

    def _chain(self, head: bytes, entries: Sequence[Entry]) -> tuple[bytes, bytes]:
        """Return the new end of the chain and the lines that lead to it."""
        at = int(self._clock.now().timestamp())
        lines = []
        for entry in entries:
            body = _canonical({"at": at, "kind": entry.kind, **entry.fields})
            head = _link(head, body)
            lines.append(f'{body[:-1]},"chain":"{head.hex()}"}}\n')
        return head, "".join(lines).encode()

    def problem(self) -> str | None:
        """Say why nothing can be issued, or will not be soon; None: all is well."""
        if self._failure is not None:
            return self._failure
        place = self._folder
        while not place.exists():
            place = place.parent
        if not os.access(place, os.W_OK | os.X_OK):
            return f"the journal's folder {place} cannot be written"
        if shutil.disk_usage(place).free < _LOW:
            return f"the disk of the journal in {self._folder} is full"
        return None

    def close(self) -> None:
        """Let go of the file."""
        with self._writing:
            if self._file is not None:
                self._file.close()
                self._file = None


def _canonical(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _link(previous: bytes, body: str) -> bytes:
    return hashlib.sha256(previous + body.encode()).digest()


# -- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One entry as read: where it stands and when it was written (unix seconds)."""

    where: str
    at: int
    entry: Entry


class Reading:
    """Reads a journal file, or every file of a folder; tells what does not fit while it goes.

    `notes` are harmless (a last line torn by a crash); `problems` mean that entries were changed,
    removed or lost. Entries that can be read are given all the same: in a disaster each counts.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadInput: there is no journal."""
        self.notes: list[str] = []
        self.problems: list[str] = []
        self.files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not self.files or not all(file.is_file() for file in self.files):
            raise BadInput(f"{path}: there is no journal")
        self._ends: dict[Any, tuple[Any, bytes]] = {}

    def __iter__(self) -> Iterator[Line]:
        """Yield the entries, file by file in the order of their names."""
        for file in self.files:
            yield from self._read(file)

    def _read(self, file: Path) -> Iterator[Line]:
        *lines, torn = file.read_bytes().split(b"\n")
        if torn:
            self.notes.append(f"{file.name}: its last line was torn by a crash; it never counted")
        head = _NOTHING
        opened: tuple[Any, Any] = (None, None)
        for number, octets in enumerate(lines, 1):
            where = f"{file.name} line {number}"
            fields = _parse(octets)
            if fields is None:
                self.problems.append(f"{where}: is no entry")
                continue
            chain, at, kind = fields.pop("chain"), fields.pop("at"), fields.pop("kind")
            if number == 1:
                opened = fields.get("writer"), fields.get("file")
                head = self._beginning(where, *opened, str(fields.get("previous")))
            if _link(head, _canonical({"at": at, "kind": kind, **fields})).hex() != chain:
                self.problems.append(f"{where}: does not follow the line before it as it was")
            head = bytes.fromhex(chain)
            if kind != OPENED:
                yield Line(where, at, Entry(kind, fields))
        self._ends[opened[0]] = opened[1], head

    def _beginning(self, where: str, writer: object, number: object, previous: str) -> bytes:
        """Return what a file says it continues, after comparing that with the file before it."""
        before = self._ends.get(writer)
        if before is not None and (before[0] + 1, before[1].hex()) != (number, previous):
            self.problems.append(f"{where}: does not continue the file before it as it was")
        elif before is None and number != 1:
            self.notes.append(f"{where}: the files before it are not here")
        try:
            return bytes.fromhex(previous)
        except ValueError:
            return _NOTHING


def _parse(octets: bytes) -> dict[str, Any] | None:
    """Read one line; None: it is none of ours."""
    try:
        fields = json.loads(octets)
        known = isinstance(fields["at"], int) and isinstance(fields["kind"], str)
        if known and len(bytes.fromhex(fields["chain"])) == len(_NOTHING):
            return dict(fields)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None
