"""Named places where a test may break the process: random kills do not find ordering bugs.

Nothing is armed outside `serve --test-mode`; then `reach` costs one dictionary look-up.
"""

import os
import re
import signal
import threading
import time
from dataclasses import dataclass

from estserver.errors import ConfigurationError, Fault

NAMES = (
    *("parsed", "planned", "intent-journalled", "intent-committed"),
    *("signed", "stored-journalled", "stored", "first-byte", "last-byte"),
)


@dataclass(slots=True)
class _Failpoint:
    at: int
    action: str
    seconds: float
    reached: int = 0


_armed: dict[str, _Failpoint] = {}
_lock = threading.Lock()


def arm(text: str) -> None:
    """Arm `name:n:kill|raise|sleep[:seconds]`: act when `name` is reached the n-th time.

    Raises ConfigurationError: an unknown name or action, or n not a positive number.
    """
    name, _, rest = text.partition(":")
    count, _, rest = rest.partition(":")
    action, _, seconds = rest.partition(":")
    wrong = name not in NAMES or action not in {"kill", "raise", "sleep"}
    if wrong or not re.fullmatch(r"[1-9][0-9]{0,8}", count):
        raise ConfigurationError(
            f"ESTSERVER_FAILPOINT: not NAME:N:kill|raise|sleep[:SECONDS] with NAME one of {NAMES}"
        )
    if not re.fullmatch(r"([0-9]{1,6}(\.[0-9]{1,6})?)?", seconds, re.ASCII):
        raise ConfigurationError("ESTSERVER_FAILPOINT: seconds must be a number")
    _armed[name] = _Failpoint(int(count), action, float(seconds or 1))


def disarm() -> None:
    """Forget every failpoint."""
    _armed.clear()


def reach(name: str) -> None:
    """Say that the code is at `name`; does what was armed there. Raises Fault for `raise`."""
    point = _armed.get(name)
    if point is None:
        return
    with _lock:
        point.reached += 1
        due = point.reached == point.at
    if not due:
        return
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "raise":
        raise Fault(f"failpoint {name}")
    else:
        time.sleep(point.seconds)
