"""Anti-replay nonces: made without a trace, remembered only once they were used (RFC 8555 §6.5).

A nonce is the time it was made, 128 random bits and a MAC over both, so any node that has the
master secret takes it, after a restart too; only redemption writes a row. Strangers who fetch
nonces cost nothing durable.
"""

import base64
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from estserver.keyring import Keyring
from estserver.protocols.acme.problems import Problem

_NONCE = re.compile(r"[A-Za-z0-9_-]{48}")
_TIME_BYTES, _RANDOM_BYTES, _MAC_BYTES = 5, 16, 15
_SKEW = timedelta(minutes=5)
"""How far ahead another node's clock may be."""


@dataclass(frozen=True, slots=True)
class Nonce:
    """A nonce that is one of ours and in time, until `expires_at`; made by `Nonces.check`."""

    text: str
    expires_at: datetime


def bad_nonce() -> Problem:
    """Make the refusal that tells a client to try again with the nonce that comes with it."""
    # acme.sh decides by this very text whether to try again.
    return Problem("badNonce", "JWS has an invalid anti-replay nonce")


class Nonces:
    """Makes and recognises nonces; whether one was used before is for the records to say."""

    def __init__(self, keyring: Keyring, lifetime: timedelta) -> None:
        self._key = keyring.derive("acme-nonce")
        self._lifetime = lifetime

    def make(self, now: datetime) -> str:
        """Return a fresh nonce: 48 characters of base64url."""
        content = int(now.timestamp()).to_bytes(_TIME_BYTES) + secrets.token_bytes(_RANDOM_BYTES)
        return base64.urlsafe_b64encode(content + self._mac(content)).decode()

    def check(self, text: str | None, now: datetime) -> Nonce:
        """Return the nonce of a request.

        Raises Problem badNonce: there is none, it was never issued by this cluster, or is too old.
        """
        if text is None or not _NONCE.fullmatch(text):
            raise bad_nonce()
        raw = base64.urlsafe_b64decode(text)
        content, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(content)):
            raise bad_nonce()
        made = int.from_bytes(content[:_TIME_BYTES])
        age = now.timestamp() - made
        if not -_SKEW.total_seconds() <= age < self._lifetime.total_seconds():
            raise bad_nonce()
        return Nonce(text, now + timedelta(seconds=self._lifetime.total_seconds() - age))

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256")[:_MAC_BYTES]
