"""Purpose-bound keys from the one master secret that is kept outside the database."""

import base64
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from estserver.errors import BadInput, ConfigurationError
from estserver.model import Secret

_MASTER_BYTES = 32


def new_master() -> str:
    """Make a master secret: 256 random bits, base64url."""
    return secrets.token_urlsafe(_MASTER_BYTES)


class Keyring:
    """Derives keys by HKDF-SHA-256 (RFC 5869); the purpose is the info, so keys never cross."""

    def __init__(self, master: Secret) -> None:
        """Raises ConfigurationError: the master secret is shorter than 256 bits."""
        try:
            self._master = _decode(master.reveal())
        except ValueError:
            # Without its cause, which may quote the secret.
            raise ConfigurationError("the master secret is not base64url") from None
        if len(self._master) < _MASTER_BYTES:
            raise ConfigurationError("the master secret is shorter than 256 bits")
        self._mac_keys: dict[str, bytes] = {}

    def derive(self, purpose: str, *parts: str, length: int = 32) -> bytes:
        """Return the key for `purpose` and `parts`; the same words give the same key for ever."""
        info = "\x1f".join(("estserver", purpose, *parts)).encode()
        return HKDFExpand(hashes.SHA256(), length, info).derive(self._master)

    def mac(self, purpose: str, message: bytes) -> bytes:
        """Return HMAC-SHA-256 of `message` under the key for `purpose`."""
        key = self._mac_keys.get(purpose)
        if key is None:
            key = self._mac_keys[purpose] = self.derive(purpose)
        return hmac.digest(key, message, "sha256")

    def seal(self, purpose: str, content: bytes) -> str:
        """Encrypt and authenticate `content`; base64url text fit for a cookie or a form field."""
        nonce = secrets.token_bytes(12)
        sealed = AESGCM(self.derive(purpose)).encrypt(nonce, content, purpose.encode())
        return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    def unseal(self, purpose: str, text: str) -> bytes:
        """Undo `seal`. Raises BadInput: not sealed by this keyring for this purpose."""
        try:
            raw = _decode(text)
            return AESGCM(self.derive(purpose)).decrypt(raw[:12], raw[12:], purpose.encode())
        except (ValueError, InvalidTag) as error:
            raise BadInput("the sealed value is not ours") from error


def _decode(text: str) -> bytes:
    """Read base64url without padding; raises ValueError where the library would skip symbols."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
