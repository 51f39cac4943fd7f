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
_SYMBOLS = frozenset(ALPHABET)
# Of ASCII: what looks alike, and the blanks and hyphens that are left out.
_FORGIVEN = str.maketrans("OIL", "011", "\t\n\v\f\r\x1c\x1d\x1e\x1f -")
_VALUES = {symbol: value for value, symbol in enumerate(ALPHABET)}
_DOUBLED = {symbol: sum(divmod(value * 2, 32)) for symbol, value in _VALUES.items()}
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
    if not folded.isascii():
        folded = "".join(character for character in folded if not _is_left_out(character))
    symbols = folded.translate(_FORGIVEN)
    if len(symbols) not in _GROUPS or not _SYMBOLS.issuperset(symbols):
        raise BadCredentials("that is not a PIN", reason="malformed")
    if _check_symbol(symbols[:-1]) != symbols[-1]:
        raise MistypedPIN("the PIN has a typing mistake: compare it with what you were given")
    return Secret(symbols)


def _is_left_out(character: str) -> bool:
    """Tell whether a character is a blank, a hyphen or what stands in for one."""
    hyphen = unicodedata.category(character) == "Pd" or character in "\u30fc\u2212"
    return hyphen or character.isspace()


def _check_symbol(body: str) -> str:
    # Doubling the rightmost symbol and every other one, digits summed in base 32.
    doubled, plain = body[::-2], body[-2::-2]
    total = sum(_DOUBLED[symbol] for symbol in doubled) + sum(_VALUES[symbol] for symbol in plain)
    return ALPHABET[-total % len(ALPHABET)]
