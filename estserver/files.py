"""Files written whole and durably, or not at all; they go on belonging to whom they belonged."""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

PRIVATE, _PUBLIC = 0o600, 0o666


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read. Raises OSError."""
    make_folder(path.parent)
    with drafted(path, BytesIO(content), mode=PRIVATE):
        pass


def write_public(path: Path, content: bytes) -> None:
    """Write a file for others to read, as far as the umask lets them. Raises OSError."""
    with drafted(path, BytesIO(content)):
        pass


@contextlib.contextmanager
def drafted(path: Path, content: BinaryIO, *, mode: int | None = None) -> Iterator[Path]:
    """Write `content` beside `path`; it takes its place once the body ends, never if that fails.

    It keeps owner and, without `mode`, mode of the file that it replaces. No link is followed: root
    may be writing where somebody else may make one. Raises OSError.
    """
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    try:
        _write(draft, content, path, mode)
        yield draft
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _write(draft: Path, content: BinaryIO, path: Path, mode: int | None) -> None:
    before = path.lstat() if path.is_file() and not path.is_symlink() else None
    # Nobody reads it before it has the mode of the one it replaces.
    made_with = mode or (_PUBLIC if before is None else PRIVATE)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(draft, flags, made_with), "wb") as file:
        shutil.copyfileobj(content, file)
        give(file.fileno(), before or path.parent.stat())
        if mode is None and before is not None:
            os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
        file.flush()
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder for its owner only, with those above it, unless it is there. Raises OSError."""
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            give(descriptor, folder.parent.stat())
        finally:
            os.close(descriptor)


def give(descriptor: int, like: os.stat_result) -> None:
    """Let what root has just made belong to whom `like` belongs: its folder, or the one before.

    The service, which is not root, must be able to use it. Raises OSError.
    """
    if os.geteuid() == 0:
        os.fchown(descriptor, like.st_uid, like.st_gid)


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
