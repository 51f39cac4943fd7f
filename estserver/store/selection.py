"""Certificates by what they have in common: for mass revocation and campaigns."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from estserver.errors import BadInput
from estserver.model import (
    CertificateRecord,
    CertificateState,
    KeyType,
    PublicKey,
    RevocationReason,
)
from estserver.public_keys import describe_key
from estserver.store import certificates as records
from estserver.store.engine import Transaction, to_unix
from estserver.store.findable import folded
from estserver.store.tables import certificates, enrollments, invitations, search_terms

_COUNTED = 5000
MAX_SERIALS = 30_000
"""What both databases take in one statement."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What certificates must have in common; None or empty does not matter.

    Only those that count: valid now, or still being issued, and where `held` is set those on hold.
    Never the server's own. `email` is the registration's, in full. `serials` are numbers, of
    whatever issuer.
    """

    issuer: str | None = None
    profile: str | None = None
    key_type: KeyType | None = None
    invitation: str | None = None
    email: str | None = None
    issued_after: datetime | None = None
    issued_before: datetime | None = None
    serials: frozenset[int] = frozenset()
    held: bool = False

    def __post_init__(self) -> None:
        """Raises BadInput: nothing is named, which would be everything; too many serials."""
        if len(self.serials) > MAX_SERIALS:
            raise BadInput(f"more than {MAX_SERIALS} serials: split the list")
        if not any(getattr(self, name) for name in self.__slots__ if name != "held"):
            raise BadInput(
                "say which certificates: by issuer, profile, key type, invitation, address, time "
                "of issue or serials"
            )


def is_used(tx: Transaction, column: Literal["issuer", "profile"], name: str) -> bool:
    """Tell whether any certificate has this issuer or profile."""
    query = sa.select(sa.exists().where(certificates.c[column] == name))
    return bool(tx.connection.execute(query).scalar_one())


def select(
    tx: Transaction, *, selection: Selection, after: str | None, limit: int
) -> list[CertificateRecord]:
    """Return the next page of a selection, oldest first; `after` is the last page's last id.

    Empty only at the end: pages are read on until there is something.
    """
    while page := _page(tx, selection, after, limit):
        after = page[-1][0]
        chosen = [
            identifier
            for identifier, spki in page
            if selection.key_type is None or _type_of(spki) == selection.key_type
        ]
        found = [records.certificate(tx, identifier) for identifier in chosen]
        if found:
            return [record for record in found if record is not None]
    return []


def count(tx: Transaction, selection: Selection) -> int:
    """Count a selection."""
    number, after = 0, None
    while page := _page(tx, selection, after, _COUNTED):
        after = page[-1][0]
        number += sum(
            selection.key_type is None or _type_of(spki) == selection.key_type for _, spki in page
        )
    return number


def _page(
    tx: Transaction, selection: Selection, after: str | None, limit: int
) -> Sequence[tuple[str, bytes]]:
    # In a way that tempts no planner to walk along all that is valid.
    state = certificates.c.state + ""
    counts: list[sa.ColumnElement[bool]] = [
        state.in_((CertificateState.VALID.value, CertificateState.ISSUING.value))
    ]
    if selection.held:
        counts.append(certificates.c.reason == RevocationReason.CERTIFICATE_HOLD.value)
    query = (
        sa.select(certificates.c.enrollment, enrollments.c.spki)
        .join(enrollments, enrollments.c.id == certificates.c.enrollment)
        .where(
            sa.or_(*counts),
            certificates.c.not_after >= tx.at,
            certificates.c.via != "internal",
        )
        .order_by(certificates.c.enrollment)
        .limit(limit)
    )
    for column, wanted in (
        (certificates.c.issuer, selection.issuer),
        (certificates.c.profile, selection.profile),
        (enrollments.c.invitation, selection.invitation),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    if selection.email is not None:
        query = query.where(enrollments.c.invitation.in_(_registered_for(tx, selection.email)))
    if selection.issued_after is not None:
        query = query.where(certificates.c.created_at >= to_unix(selection.issued_after))
    if selection.issued_before is not None:
        query = query.where(certificates.c.created_at < to_unix(selection.issued_before))
    if selection.serials:
        query = query.where(
            certificates.c.serial.in_([f"{serial:040x}" for serial in selection.serials])
        )
    if after is not None:
        query = query.where(certificates.c.enrollment > after)
    return [(row.enrollment, bytes(row.spki)) for row in tx.connection.execute(query)]


def _registered_for(tx: Transaction, email: str) -> list[str]:
    """List the registrations with this address; a term may as well be a name or a host."""
    wanted = folded(email)
    rows = tx.connection.execute(
        sa.select(invitations.c.number, invitations.c.email)
        .join(search_terms, search_terms.c.number == invitations.c.number)
        .where(search_terms.c.term == wanted)
    )
    return [row.number for row in rows if folded(row.email or "") == wanted]


def _type_of(spki: bytes) -> str:
    """Name the type of a key that passed the wall when it came in."""
    return str(describe_key(cast("PublicKey", load_der_public_key(spki))))
