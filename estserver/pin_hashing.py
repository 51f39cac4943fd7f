"""PINs as the database keeps them: a hash each, peppered with the master secret.

A long PIN has so many random bits that a keyed hash is enough, and that one is looked up by. A
short one could be tried out by whoever steals database and master secret: Argon2id makes each
guess cost.
"""

import hmac
import secrets
from concurrent.futures import ThreadPoolExecutor

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from estserver import pin
from estserver.keyring import Keyring
from estserver.model import Secret
from estserver.store.registrations import PINHash


class PINHasher:
    """Hashes PINs and compares them with their hashes. Thread-safe.

    PINs come as `pin.normalize` returns them.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        # Argon2id takes tens of milliseconds and 19 MiB: one thread of its own, so that it has them
        # once, however many PINs come.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="argon2id")

    def hash(self, symbols: Secret) -> PINHash:
        """Return what to store of a PIN."""
        if len(symbols.reveal()) > pin.SHORT + 1:
            return PINHash("hmac", b"", self.pepper(symbols))
        salt = secrets.token_bytes(16)
        derive = self._argon2id(salt).derive
        digest = self._thread.submit(derive, symbols.reveal().encode()).result()
        return PINHash("argon2id", salt, digest)

    def matches(self, stored: PINHash, symbols: Secret) -> bool:
        """Tell whether this is the PIN that was stored."""
        if stored.scheme == "hmac":
            return hmac.compare_digest(stored.digest, self.pepper(symbols))
        verify = self._argon2id(stored.salt).verify
        try:
            self._thread.submit(verify, symbols.reveal().encode(), stored.digest).result()
        except InvalidKey:
            return False
        return True

    def pepper(self, symbols: Secret) -> bytes:
        """Return the hash by which a long PIN is looked up, 32 bytes."""
        return self._keyring.mac("pin", symbols.reveal().encode())

    def _argon2id(self, salt: bytes) -> Argon2id:
        # OWASP's second setting: 19 MiB, two passes. The pepper goes in as Argon2's own secret.
        return Argon2id(
            salt=salt,
            length=32,
            iterations=2,
            lanes=1,
            memory_cost=19 * 1024,
            secret=self._keyring.derive("pin-argon2id"),
        )
