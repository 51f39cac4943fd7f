"""Terms: what a registration can be found by, see `search`."""

import unicodedata
from collections.abc import Iterable

import sqlalchemy as sa

from estserver.store.engine import Transaction
from estserver.store.tables import search_terms

_SHORTEST = 2
_LONGEST = 200


def folded(text: str) -> str:
    """Return text as terms are compared: full width, half width and case make no difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())[:_LONGEST]


def terms_of(name: str, email: str | None, device_id: str | None, names: Iterable[str]) -> set[str]:
    """Return what a registration can be found by; `names` as `kind:value`."""
    whole = folded(name)
    words = [word for word in whole.split() if len(word) >= _SHORTEST]
    values = [value.partition(":")[2] for value in names]
    return {
        whole,
        *words,
        *(folded(text) for text in (email, device_id, *values) if text),
    } - {""}


def remember(tx: Transaction, number: str, terms: Iterable[str]) -> None:
    """Make a registration findable by its terms."""
    rows = [{"term": term, "number": number} for term in sorted(terms)]
    if rows:
        tx.connection.execute(sa.insert(search_terms), rows)
