"""Terms: what a registration can be found by, see `search`."""

import re
import unicodedata
from collections.abc import Iterable

import sqlalchemy as sa

from estserver.store.engine import Transaction
from estserver.store.tables import search_terms

_PARTS = re.compile(r"[\s_.-]+")
_SHORTEST = 2
_LONGEST = 200


def folded(text: str) -> str:
    """Return text as terms are compared: full width, half width and case make no difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())[:_LONGEST]


def terms_of(name: str, email: str | None, device_id: str | None, names: Iterable[str]) -> set[str]:
    """Return what a registration can be found by; `names` as `kind:value`."""
    values = [value.partition(":")[2] for value in names]
    wholes = {folded(text) for text in (name, email, device_id, *values) if text}
    # The parts of names of people and devices; those of hosts and addresses are all alike.
    parts = _PARTS.split(f"{folded(name)} {folded(device_id or '')}")
    return (wholes | {part for part in parts if len(part) >= _SHORTEST}) - {""}


def remember(tx: Transaction, number: str, terms: Iterable[str]) -> None:
    """Make a registration findable by its terms."""
    rows = [{"term": term, "number": number} for term in sorted(terms)]
    if rows:
        tx.connection.execute(sa.insert(search_terms), rows)
