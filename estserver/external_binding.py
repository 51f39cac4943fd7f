"""The External Account Binding that an invitation stands for (RFC 8555 §7.3.4)."""

import base64

from estserver.errors import BadCredentials
from estserver.keyring import Keyring
from estserver.model import Invitation, Secret

KEY_BYTES = 96
"""At least the output of SHA-512 (RFC 7518 §3.2); a multiple of 3, so that base64 needs no padding,
and of 16, because dehydrated pads any other key with blanks that openssl refuses."""


def acme_binding(keyring: Keyring, invitation: Invitation) -> tuple[str, Secret]:
    """Return `kid` and MAC key (base64url, 128 characters) of an invitation.

    The key is derived, so nothing of it is stored, and not from the PIN, which could then be
    guessed offline from one signed binding. A new PIN makes a new key.
    """
    generation = str(invitation.pin_generation)
    for counter in range(256):
        raw = keyring.derive(
            "acme-eab", invitation.number, generation, str(counter), length=KEY_BYTES
        )
        text = base64.urlsafe_b64encode(raw).decode()
        # certbot takes a key that begins with a hyphen for an option.
        if text[0].isalnum():
            break
    return invitation.number, Secret(text)


def unbindable(reason: str) -> BadCredentials:
    """Make the one refusal of every external account binding that is not accepted."""
    return BadCredentials(
        "the external account binding is not accepted: its kid is unknown, its MAC is wrong, or "
        "it has expired or is used up",
        reason=reason,
    )
