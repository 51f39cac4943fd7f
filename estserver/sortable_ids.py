"""Identifiers that sort by the time they were made."""

import secrets
import threading
from datetime import datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_id_lock = threading.Lock()
_newest_id = 0


def new_id(now: datetime) -> str:
    """Make an identifier that sorts by time: 10 symbols of milliseconds, 12 random (60 bits).

    Within a process later ones sort later even in the same second.
    """
    global _newest_id  # noqa: PLW0603 - the order of identifiers is a fact of the process
    number = int(now.timestamp() * 1000) << 60 | secrets.randbits(60)
    with _id_lock:
        if number <= _newest_id:
            number = _newest_id + 1 + secrets.randbits(40)
        _newest_id = number
    return _text(number)


def first_id(moment: datetime) -> str:
    """Return what sorts before every identifier made at `moment` or later."""
    return _text(int(moment.timestamp() * 1000) << 60)


def _text(number: int) -> str:
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(100, -1, -10)])
