"""What the store tells the journal: every change that a restored database would have forgotten.

Called by the functions that make the change, so that no caller can leave it out.
"""

import sqlalchemy as sa

from estserver.journal import Entry, encode_octets
from estserver.model import Draft, Enrollment, RevocationReason
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


def tell_revocation(tx: Transaction, enrollment: str, reason: RevocationReason) -> None:
    """Tell that a certificate is revoked from now on."""
    if tx.journals:
        query = sa.select(certificates.c.issuer, certificates.c.serial)
        row = tx.connection.execute(query.where(certificates.c.enrollment == enrollment)).one()
        fields = {
            "enrollment": enrollment,
            "issuer": row.issuer,
            "serial": f"{int(row.serial, 16):x}",
            "revoked_at": tx.at,
            "reason": reason.value,
        }
        tx.journal(Entry("revocation", fields))


def tell_crl(tx: Transaction, issuer: str, number: int) -> None:
    """Tell which CRL number is taken."""
    tx.journal(Entry("crl", {"issuer": issuer, "number": number}))
