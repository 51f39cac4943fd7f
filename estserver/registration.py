"""What an administrator registers, and what is then handed over."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from estserver.model import Door, Invitation, Language, Secret


@dataclass(frozen=True, slots=True)
class Registration:
    """What an administrator registers; checked by `Invitations.issue`.

    `names` are texts such as `dns:host.example`. `doors` None opens the profile's default doors.
    """

    profile: str
    name: str = ""
    email: str | None = None
    device_id: str | None = None
    names: tuple[str, ...] = ()
    doors: frozenset[Door] | None = None
    units: int = 1
    expires: timedelta = timedelta(days=30)
    renew_until: datetime | None = None
    language: Language = Language.EN
    approval: bool | None = None
    hold: bool = False
    mail: bool = True


@dataclass(frozen=True, slots=True)
class Handover:
    """What is shown once: the invitation, its PIN (None: ACME only) and its URL token (web)."""

    invitation: Invitation
    pin: Secret | None
    token: Secret | None
