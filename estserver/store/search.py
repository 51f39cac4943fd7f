"""Finding registrations and certificates by how a name, an address or a word of it begins.

A table of terms with an index, instead of a scan with LIKE: at a million certificates an officer
on the telephone still gets an answer at once, on both databases, and in every script.
"""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from estserver.model import CertificateRecord, Invitation
from estserver.store import certificates as certificate_rows
from estserver.store import registrations
from estserver.store.engine import Transaction
from estserver.store.findable import folded
from estserver.store.tables import certificates, enrollments, search_terms

_LAST = "\U0010ffff"
"""Sorts after everything that begins alike."""


def registrations_like(tx: Transaction, prefix: str, *, limit: int) -> list[Invitation]:
    """List registrations of which a term begins with `prefix`, by term; `limit` at most."""
    query = (
        sa.select(search_terms.c.number)
        .where(*_begins(prefix))
        .order_by(search_terms.c.term, search_terms.c.number)
        .limit(limit)
    )
    numbers = dict.fromkeys(tx.connection.execute(query).scalars())
    found = [registrations.get(tx, number) for number in numbers]
    return [invitation for invitation in found if invitation is not None]


def certificates_like(tx: Transaction, prefix: str, *, limit: int) -> list[CertificateRecord]:
    """List certificates of such registrations, by term and newest first; `limit` at most."""
    query = (
        sa.select(certificates.c.enrollment)
        .join(enrollments, enrollments.c.id == certificates.c.enrollment)
        .join(search_terms, search_terms.c.number == enrollments.c.invitation)
        .where(*_begins(prefix))
        .order_by(search_terms.c.term, search_terms.c.number, certificates.c.enrollment.desc())
        .limit(limit)
    )
    identifiers = dict.fromkeys(tx.connection.execute(query).scalars())
    found = [certificate_rows.certificate(tx, identifier) for identifier in identifiers]
    return [record for record in found if record is not None]


def _begins(prefix: str) -> Iterable[sa.ColumnElement[Any]]:
    low = folded(prefix)
    return search_terms.c.term >= low, search_terms.c.term < low + _LAST
