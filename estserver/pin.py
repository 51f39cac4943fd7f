"""Access PINs as people meet them: the alphabet, the check symbol, forgiving input.

Crockford's base 32 and a check symbol from the same alphabet (Luhn's sum modulo 32), which catches
every single wrong symbol and nearly every swapped pair, so that a typing mistake costs no attempt.
"""

import secrets
import unicodedata
from collections.abc import Callable

from estserver.errors import BadCredentials, MistypedPIN
from estserver.model import Secret

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SHORT = 8
"""40 bits: enough where a secret URL finds the record and the PIN only confirms."""
LONG = 13
"""65 bits: needed where the door is guessable."""
_LOOK_ALIKES = str.maketrans("OIL", "011")
_GROUPS = {SHORT + 1: (3, 3, 3), LONG + 1: (5, 5, 4)}
_MAX_INPUT = 128


def generate(symbols: int, choose: Callable[[str], str] = secrets.choice) -> Secret:
    """Make a PIN of `symbols` random symbols and a check symbol, in groups."""
    body = "".join(choose(ALPHABET) for _ in range(symbols))
    whole = body + _check_symbol(body)
    groups, start = [], 0
    for size in _GROUPS[len(whole)]:
        groups.append(whole[start : start + size])
        start += size
    return Secret("-".join(groups))


def normalize(typed: str) -> Secret:
    """Return the PIN's symbols from what somebody typed.

    Full width, lower case, blanks, hyphens of any kind, O for 0, I and L for 1 are forgiven.
    Raises MistypedPIN (looks like a PIN, check symbol wrong) and BadCredentials (not like a PIN).
    """
    if len(typed) > _MAX_INPUT:
        raise BadCredentials("that is not a PIN", reason="malformed")
    folded = unicodedata.normalize("NFKC", typed).upper()
    kept = "".join(c for c in folded if not c.isspace() and unicodedata.category(c) != "Pd")
    symbols = kept.replace("\u30fc", "").replace("\u2212", "").translate(_LOOK_ALIKES)
    if len(symbols) not in _GROUPS or not set(symbols) <= set(ALPHABET):
        raise BadCredentials("that is not a PIN", reason="malformed")
    if _check_symbol(symbols[:-1]) != symbols[-1]:
        raise MistypedPIN("the PIN has a typing mistake: compare it with what you were given")
    return Secret(symbols)


def _check_symbol(body: str) -> str:
    total = 0
    for position, symbol in enumerate(reversed(body)):
        value = ALPHABET.index(symbol)
        if position % 2 == 0:
            # Doubling the rightmost symbol and every other one, digits summed in base 32.
            value = sum(divmod(value * 2, len(ALPHABET)))
        total += value
    return ALPHABET[-total % len(ALPHABET)]
