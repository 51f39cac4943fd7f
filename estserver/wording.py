"""Words for what English sentences are made of: counted things, and what the system said no to."""

import os
import pwd
from pathlib import Path


def counted(number: int, one: str, many: str = "") -> str:
    """Return `1 certificate` or `2 certificates`; `many` where an s at the end does not do."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def trouble(error: OSError, path: Path | None = None) -> str:
    """Say what is wrong with a file and what to do; `path`: which, if the error names none."""
    place = path if error.filename is None else Path(os.fsdecode(error.filename))
    said = (error.strerror or str(error)).lower()
    if place is None:
        return said
    if isinstance(error, PermissionError):
        return f"{place}: {said}: {whose(place)}"
    return f"{place}: {said}"


def whose(path: Path) -> str:
    """Say whom the first file on the way to `path` belongs to that we may look at, and who we are.

    A folder that may not be entered hides what is below it.
    """
    us = user_name(os.geteuid())
    for place in (path, *path.absolute().parents):
        try:
            owner = user_name(place.stat().st_uid)
        except OSError:
            continue
        if owner == us:
            return f"{place} belongs to {owner}, but its mode does not allow that"
        return f"{place} belongs to {owner} and this runs as {us}: run it as {owner}"
    return f"this runs as {us}"


def user_name(user: int) -> str:
    """Return what the system calls a user, or `user 103` if it knows none by that number."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
