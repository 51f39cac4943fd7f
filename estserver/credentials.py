"""Credentials: facts from the wire that nobody has checked yet."""

from dataclasses import dataclass

from estserver.model import Invitation, Secret


@dataclass(frozen=True, slots=True)
class PINCredential:
    """HTTP Basic at a guessable door: number (may be empty) and PIN, from `source`."""

    number: str
    pin: Secret
    source: str


@dataclass(frozen=True, slots=True)
class ConfirmedPIN:
    """A web session in which the PIN was confirmed; `pin_generation` ends it with a new PIN."""

    number: str
    pin_generation: int


@dataclass(frozen=True, slots=True)
class CertificateCredential:
    """The peer certificate whose key the client proved to hold in the TLS handshake; DER."""

    der: bytes


@dataclass(frozen=True, slots=True)
class ACMEAccount:
    """An account whose key signed the request.

    `registration` is what it was bound to, if anything, as this request found it; `profile` what
    it gets where there is none.
    """

    identifier: str
    registration: Invitation | None
    profile: str
