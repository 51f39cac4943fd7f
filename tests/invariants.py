"""The one program that judges an instance after every fault: invariants I1 to I9 (design §4)."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver.core import Core
from estserver.journal import Reading
from estserver.store import Transaction, audit_checks
from estserver.store import crls as published
from estserver.store.tables import (
    audit_events,
    certificate_bytes,
    certificates,
    enrollments,
    invitations,
)

_PAIRS = {
    ("issuing", "issuing"),
    ("issued", "valid"),
    ("issued", "revoked"),
    ("issuing", "revoked"),
    ("abandoned", "abandoned"),
    ("abandoned", "revoked"),
}


def violations(core: Core, received: Iterable[bytes]) -> list[str]:
    """Return a sentence for every invariant that does not hold; `received` is DER from clients."""
    ders = list(received)

    def judge(tx: Transaction) -> list[str]:
        return [
            *_delivered_is_stored(tx, ders),
            *_stored_is_journalled(core, tx),
            *_units_are_kept(tx),
            *_serials_are_unique(tx),
            *_crl_numbers_grow(tx),
            *_everything_is_audited(tx),
            *_states_are_known(tx),
            *_signatures_hold(core, tx),
        ]

    return [*core.store.read(judge), *_revoked_stays_revoked(core)]


def _delivered_is_stored(tx: Transaction, ders: list[bytes]) -> Iterator[str]:
    for der in ders:
        serial = x509.load_der_x509_certificate(der).serial_number
        row = tx.connection.execute(
            sa.select(certificate_bytes.c.der)
            .join(certificates, certificates.c.enrollment == certificate_bytes.c.enrollment)
            .where(
                certificates.c.serial == f"{serial:040x}",
                certificates.c.sha256 == hashlib.sha256(der).digest(),
            )
        ).one_or_none()
        if row is None:
            yield f"I1: a client holds certificate {serial:x}, the database does not"
        elif bytes(row.der) != der:
            yield f"I1: certificate {serial:x} is stored with other bytes"


def _stored_is_journalled(core: Core, tx: Transaction) -> Iterator[str]:
    """Whatever the database has, and so whatever can be delivered, stands in the journal."""
    kept = core.settings.journal.path
    if kept is None or not core.settings.path(kept).exists():
        return
    told = {
        line.entry.octets("der")
        for line in Reading(core.settings.path(kept))
        if line.entry.kind == "certificate"
    }
    query = sa.select(certificate_bytes.c.enrollment, certificate_bytes.c.der)
    for row in tx.connection.execute(query.where(certificate_bytes.c.der.is_not(None))):
        if bytes(row.der) not in told:
            yield f"I1: the certificate of enrollment {row.enrollment} is not in the journal"


def _units_are_kept(tx: Transaction) -> Iterator[str]:
    query = (
        sa.select(enrollments.c.authority_key, sa.func.count())
        .join(certificates, certificates.c.enrollment == enrollments.c.id)
        .where(
            enrollments.c.authority_key.like("invitation:%"),
            enrollments.c.renews.is_(None),
            enrollments.c.state != "abandoned",
        )
        .group_by(enrollments.c.authority_key)
    )
    for key, count in tx.connection.execute(query):
        row = tx.connection.execute(
            sa.select(invitations.c.units, invitations.c.units_used).where(
                invitations.c.number == key.removeprefix("invitation:")
            )
        ).one()
        if count > row.units or count > row.units_used:
            yield f"I2: {key} grants {row.units}, spent {row.units_used}, issued {count}"
    orders = (
        sa.select(enrollments.c.authority_key, sa.func.count())
        .where(enrollments.c.authority_key.like("order:%"))
        .group_by(enrollments.c.authority_key)
    )
    for key, count in tx.connection.execute(orders):
        if count > 1:
            yield f"I2: {key} led to {count} enrollments"


def _serials_are_unique(tx: Transaction) -> Iterator[str]:
    rows = tx.connection.execute(sa.select(certificates.c.issuer, certificates.c.serial))
    for pair, count in Counter((row.issuer, row.serial) for row in rows).items():
        if count > 1:
            yield f"I4: serial {pair} stands {count} times"


def _crl_numbers_grow(tx: Transaction) -> Iterator[str]:
    signed: dict[str, list[int]] = {}
    query = sa.select(audit_events.c.object, audit_events.c.detail)
    for row in tx.connection.execute(query.where(audit_events.c.event == "crl.signed")):
        signed.setdefault(row.object, []).append(json.loads(row.detail)["number"])
    for issuer, numbers in signed.items():
        if len(set(numbers)) < len(numbers):
            yield f"I6: {issuer} used a CRL number twice"
    for stored in published.page(tx):
        pieces = (stored.head, *published.entries(tx, stored), stored.tail)
        crl = x509.load_der_x509_crl(b"".join(pieces))
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        if number != stored.number:
            yield f"I6: CRL {stored.number} says it is {number}"
        if len(crl) != stored.entries_count:
            yield f"I6: CRL {stored.number} has not the entries that it was signed with"
        if number > max(signed.get(f"issuer {stored.issuer}", [0])):
            yield f"I6: nothing in the audit trail says that CRL {number} was signed"
        if not stored.this_update <= tx.now < stored.next_update + timedelta(days=7):
            yield f"I6: CRL {stored.number} is not of this time"


def _everything_is_audited(tx: Transaction) -> Iterator[str]:
    yield from (f"I7: {sentence}" for sentence in audit_checks.broken_links(tx.connection))
    seen = {
        (row.event, row.object, row.detail)
        for row in tx.connection.execute(
            sa.select(audit_events.c.event, audit_events.c.object, audit_events.c.detail)
        )
    }
    intended = {item[1] for item in seen if item[0] == "certificate.intended"}
    issued = {item[1] for item in seen if item[0] == "certificate.issued"}
    recovered = {item[1] for item in seen if item[0] == "certificate.recovered"}
    for row in tx.connection.execute(sa.select(certificates)):
        if f"certificate {int(row.serial, 16):x}" in recovered:
            # What said so before is lost with the database that was restored.
            continue
        if f"enrollment {row.enrollment}" not in intended:
            yield f"I7: nothing in the audit trail says that {row.serial} was intended"
        if row.sha256 is not None and f"certificate {int(row.serial, 16):x}" not in issued:
            yield f"I7: nothing in the audit trail says that {row.serial} was issued"


def _states_are_known(tx: Transaction) -> Iterator[str]:
    if tx.connection.dialect.name == "sqlite":
        verdict = tx.connection.exec_driver_sql("PRAGMA integrity_check").scalar_one()
        if verdict != "ok":
            yield f"I9: integrity_check says {verdict}"
    query = sa.select(enrollments.c.id, enrollments.c.state, certificates.c.state).join(
        certificates, certificates.c.enrollment == enrollments.c.id
    )
    for identifier, before, after in tx.connection.execute(query):
        if (before, after) not in _PAIRS:
            yield f"I9: enrollment {identifier} is {before} while its certificate is {after}"
    bytes_of = sa.select(certificates.c.state, certificate_bytes.c.der).join(
        certificate_bytes, certificate_bytes.c.enrollment == certificates.c.enrollment
    )
    for state, der in tx.connection.execute(bytes_of):
        if (state == "valid" and der is None) or (state in {"issuing", "abandoned"} and der):
            yield f"I9: a certificate is {state} and its bytes are {'there' if der else 'missing'}"


def _signatures_hold(core: Core, tx: Transaction) -> Iterator[str]:
    query = sa.select(certificates.c.issuer, certificate_bytes).join(
        certificates, certificates.c.enrollment == certificate_bytes.c.enrollment
    )
    for row in tx.connection.execute(query):
        if row.der is None:
            continue
        certificate = x509.load_der_x509_certificate(bytes(row.der))
        certificate.verify_directly_issued_by(core.chains[row.issuer][0])
        if certificate.tbs_certificate_bytes != bytes(row.tbs):
            yield f"I1: certificate {certificate.serial_number:x} is not the committed draft"


def _revoked_stays_revoked(core: Core) -> Iterator[str]:
    rows = core.store.read(
        lambda tx: tx.connection.execute(
            sa.select(certificates.c.issuer, certificates.c.serial, certificate_bytes.c.der)
            .join(certificate_bytes, certificate_bytes.c.enrollment == certificates.c.enrollment)
            .where(certificates.c.state == "revoked", certificates.c.not_after > tx.at)
        ).all()
    )
    if not core.issuers:
        return
    for row in rows:
        serial = int(row.serial, 16)
        crl = x509.load_der_x509_crl(core.status.publish(row.issuer).der)
        if crl.get_revoked_certificate_by_serial_number(serial) is None:
            yield f"I5: {serial:x} is revoked and not on the CRL"
        if row.der is None:
            continue
        request = (
            ocsp.OCSPRequestBuilder()
            .add_certificate(
                x509.load_der_x509_certificate(bytes(row.der)),
                core.chains[row.issuer][0],
                hashes.SHA256(),
            )
            .build()
        )
        answer = ocsp.load_der_ocsp_response(
            core.status.answer(request.public_bytes(Encoding.DER)).der
        )
        if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            continue
        if answer.certificate_status is not ocsp.OCSPCertStatus.REVOKED:
            yield f"I5: {serial:x} is revoked and OCSP says {answer.certificate_status}"
