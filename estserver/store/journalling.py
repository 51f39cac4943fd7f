"""What the store tells the journal: every change that a restored database would have forgotten.

Called by the functions that make the change, so that no caller can leave it out.
"""

from typing import Any

import sqlalchemy as sa

from estserver.journal import Entry, encode_octets
from estserver.model import Draft, Enrollment
from estserver.store.engine import Transaction
from estserver.store.tables import certificates, invitations

KEPT = tuple(
    column
    for column in invitations.c
    if not column.name.startswith(("pin_", "url_")) or column.name == "pin_generation"
)
"""What a journal may keep of an invitation: nothing that helps to guess a PIN or finds a URL."""


def tell_registration(tx: Transaction, number: str) -> None:
    """Tell how an invitation stands now."""
    if tx.journals:
        query = sa.select(*KEPT).where(invitations.c.number == number)
        row = tx.connection.execute(query).mappings().one()
        tx.journal(Entry("registration", dict(row)))


def tell_intent(tx: Transaction, enrollment: Enrollment, draft: Draft) -> None:
    """Tell what is about to be signed, and what that draws on."""
    if tx.journals:
        fields = {
            "enrollment": enrollment.id,
            "authority": enrollment.authority_key,
            "invitation": enrollment.invitation,
            "profile": enrollment.profile,
            "via": enrollment.via.value,
            "applicant": enrollment.applicant,
            "proof": enrollment.proof,
            "renews": enrollment.renews,
            "issuer": draft.issuer,
            "serial": f"{draft.serial:x}",
            "spki_sha256": enrollment.spki_sha256.hex(),
            "tbs": encode_octets(draft.tbs),
        }
        tx.journal(Entry("intent", fields))


def tell_certificate(tx: Transaction, enrollment: str, der: bytes) -> None:
    """Tell what was signed."""
    if tx.journals:
        tx.journal(Entry("certificate", {"enrollment": enrollment, "der": encode_octets(der)}))


def tell_abandoned(tx: Transaction, enrollment: str) -> None:
    """Tell that an intent was given up."""
    tx.journal(Entry("abandoned", {"enrollment": enrollment}))


def tell_revocation(tx: Transaction, enrollment: str) -> None:
    """Tell that a certificate is revoked from now on, or on hold, as its row says."""
    if tx.journals:
        row = _row_of(tx, enrollment)
        fields = {"revoked_at": row.revoked_at, "reason": row.reason}
        tx.journal(Entry("revocation", {**_named(enrollment, row), **fields}))


def tell_release(tx: Transaction, enrollment: str) -> None:
    """Tell that the hold of a certificate has ended."""
    if tx.journals:
        named = _named(enrollment, _row_of(tx, enrollment))
        tx.journal(Entry("release", {**named, "released_at": tx.at}))


def _row_of(tx: Transaction, enrollment: str) -> sa.Row[Any]:
    query = sa.select(certificates).where(certificates.c.enrollment == enrollment)
    return tx.connection.execute(query).one()


def _named(enrollment: str, row: sa.Row[Any]) -> dict[str, Any]:
    serial = f"{int(row.serial, 16):x}"
    return {"enrollment": enrollment, "issuer": row.issuer, "serial": serial}


def tell_crl(tx: Transaction, issuer: str, number: int) -> None:
    """Tell which CRL number is taken."""
    tx.journal(Entry("crl", {"issuer": issuer, "number": number}))
