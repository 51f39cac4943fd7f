"""Which browser on which system a request seems to come from, as far as advice depends on it."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["firefox", "windows", "macos", "ios", "android", "linux"]
KINDS: tuple[Kind, ...] = ("firefox", "windows", "macos", "ios", "android", "linux")
_FIRST_ANDROID_WITH_AES = 14


@dataclass(frozen=True, slots=True)
class Platform:
    """`kind` chooses the import instructions; `compatible` preselects the old PKCS#12 format."""

    kind: Kind
    firefox: bool
    compatible: bool


def detect(user_agent: str) -> Platform:
    """Guess from a User-Agent; nothing but advice and preselection may depend on it.

    Firefox for Android and iOS cannot import personal certificates: there the system's way counts.
    """
    firefox = "Firefox/" in user_agent and "Seamonkey" not in user_agent
    android = re.search(r"Android (\d+)", user_agent)
    if android is not None or "Android" in user_agent:
        old = android is None or int(android[1]) < _FIRST_ANDROID_WITH_AES
        return Platform("android", firefox, old)
    if re.search(r"iPhone|iPad|iPod", user_agent):
        return Platform("ios", "FxiOS" in user_agent, compatible=True)
    macos = "Macintosh" in user_agent
    if firefox:
        return Platform("firefox", firefox, macos)
    if macos:
        return Platform("macos", firefox, compatible=True)
    return Platform("windows" if "Windows" in user_agent else "linux", firefox, compatible=False)
