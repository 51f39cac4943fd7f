"""The rows of an issuance, written for many at once: first the intents, then the certificates.

Rows are made where nobody waits for the database, so that no lock is held meanwhile.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from estserver.errors import Fault
from estserver.model import (
    CertificateState,
    Draft,
    Enrollment,
    EnrollmentState,
    Plan,
)
from estserver.names import display_name, encode_name, encode_names, format_general_name
from estserver.store import prepared
from estserver.store.engine import Transaction, to_unix
from estserver.store.journalling import tell_certificate, tell_intent
from estserver.store.tables import certificate_bytes, certificates, enrollments

Row = Mapping[str, Any]

_ENROLLMENTS = prepared.insert(
    enrollments,
    *("id", "correlation", "authority_key", "spki_sha256", "invitation", "profile", "state", "via"),
    *("applicant", "subject", "names", "spki", "renews", "proof", "created_at"),
)
_CERTIFICATES = prepared.insert(
    certificates,
    *("enrollment", "issuer", "serial", "subject", "names", "profile", "invitation", "via"),
    *("state", "not_before", "not_after", "spki_sha256", "renews", "created_at"),
)
_BYTES = prepared.insert(certificate_bytes, "enrollment", "tbs")

_SIGNED = prepared.update(
    sa.update(certificates)
    .where(
        certificates.c.enrollment == sa.bindparam("identifier"),
        certificates.c.sha256.is_(None),
        certificates.c.state == CertificateState.ISSUING.value,
    )
    .values(sha256=sa.bindparam("digest"), state=CertificateState.VALID.value)
)
_SIGNED_BYTES = prepared.update(
    sa.update(certificate_bytes)
    .where(certificate_bytes.c.enrollment == sa.bindparam("identifier"))
    .values(der=sa.bindparam("octets"))
)
_ISSUED = prepared.update(
    sa.update(enrollments)
    .where(
        enrollments.c.id == sa.bindparam("identifier"),
        enrollments.c.state == EnrollmentState.ISSUING.value,
    )
    .values(state=EnrollmentState.ISSUED.value)
)


@dataclass(frozen=True, slots=True)
class IntentRows:
    """What is about to be signed, as rows; made by `intent_rows` only."""

    enrollment: Enrollment
    draft: Draft
    certificate: Row
    octets: Row


def enrollment_row(enrollment: Enrollment, correlation: str) -> Row:
    """Make the row of an enrollment; there is one at most for each key and `correlation`."""
    return {
        "id": enrollment.id,
        "correlation": correlation,
        "authority_key": enrollment.authority_key,
        "spki_sha256": enrollment.spki_sha256,
        "invitation": enrollment.invitation,
        "profile": enrollment.profile,
        "state": enrollment.state.value,
        "via": enrollment.via.value,
        "applicant": enrollment.applicant,
        "subject": encode_name(enrollment.subject),
        "names": encode_names(enrollment.names),
        "spki": enrollment.spki,
        "renews": enrollment.renews,
        "proof": enrollment.proof,
        "created_at": to_unix(enrollment.created_at),
    }


def intent_rows(enrollment: Enrollment, plan: Plan, draft: Draft, now: datetime) -> IntentRows:
    """Make the rows that must exist before the signature does."""
    certificate = {
        "enrollment": enrollment.id,
        "issuer": draft.issuer,
        "serial": f"{draft.serial:040x}",
        "subject": display_name(plan.subject),
        "names": json.dumps([format_general_name(name) for name in plan.names]),
        "profile": plan.profile,
        "invitation": enrollment.invitation,
        "via": enrollment.via.value,
        "state": CertificateState.ISSUING.value,
        "not_before": to_unix(draft.not_before),
        "not_after": to_unix(draft.not_after),
        "spki_sha256": enrollment.spki_sha256,
        "renews": enrollment.renews,
        "created_at": to_unix(now),
    }
    octets = {"enrollment": enrollment.id, "tbs": draft.tbs}
    return IntentRows(enrollment, draft, certificate, octets)


def add_enrollments(tx: Transaction, rows: Sequence[Row]) -> bool:
    """Insert enrollments; False if one was there already: then the unit must not be kept."""
    return _ENROLLMENTS.run(tx.connection, rows) == len(rows)


def drop_enrollments(tx: Transaction, identifiers: Sequence[str]) -> None:
    """Take back enrollments that this very transaction has inserted: they were refused."""
    if identifiers:
        tx.change(sa.delete(enrollments).where(enrollments.c.id.in_(identifiers)))


def add_intents(tx: Transaction, intents: Sequence[IntentRows]) -> None:
    """Insert what is about to be signed. Raises Fault: a serial was given before."""
    if _CERTIFICATES.run(tx.connection, [intent.certificate for intent in intents]) != len(intents):
        raise Fault("a serial number was given before")
    _BYTES.run(tx.connection, [intent.octets for intent in intents])
    for intent in intents:
        tell_intent(tx, intent.enrollment, intent.draft)


def put_certificates(tx: Transaction, signed: Sequence[tuple[str, bytes]]) -> bool:
    """Store signed certificates: enrollment and DER.

    False if not all of them are only intended, as they were when they were signed: one is revoked,
    given up or stored by now, or stands here twice. Then the unit must not be kept.
    """
    rows = [
        {"identifier": identifier, "octets": der, "digest": hashlib.sha256(der).digest()}
        for identifier, der in signed
    ]
    if _SIGNED.run(tx.connection, rows) != len(rows):
        return False
    _SIGNED_BYTES.run(tx.connection, rows)
    _ISSUED.run(tx.connection, rows)
    for identifier, der in signed:
        tell_certificate(tx, identifier, der)
    return True
