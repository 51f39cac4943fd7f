"""Verification: every stored certificate against its row, the CRLs, and the audit chain.

What it reads was written by the program whose work it checks, so it trusts no row: signatures,
digests and fields are taken from the stored bytes again.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver.core import Core
from estserver.model import CertificateRecord, CertificateState, EnrollmentState
from estserver.names import display_name
from estserver.store import Transaction, certificates, health, revocations
from estserver.store.audit_checks import broken_links

_PAGE = 200
_SETTLING = timedelta(minutes=10)
"""A revocation is dated when its transaction begins, and seen when it commits."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` went through, and a sentence for everything that does not fit."""

    certificates: int
    events: int
    problems: tuple[str, ...]


def verify(core: Core) -> Verification:
    """Re-check every stored certificate against its row, the CRLs, and the audit chain."""
    count, last = 0, None
    problems: list[str] = []
    while page := core.store.read(partial(_page, last=last)):
        for record, state, der in page:
            problems += [
                f"certificate {record.serial_hex}: {problem}"
                for problem in _misfits(record, state, der, core.chains)
            ]
        count += len(page)
        last = page[-1][0].enrollment
    for issuer in core.chains:
        problems += core.store.read(partial(_unlisted, issuer=issuer))
    events, broken = core.store.read(_audit_trail)
    return Verification(count, events, (*problems, *broken))


_Stored = tuple[CertificateRecord, EnrollmentState | None, bytes | None]


def _page(tx: Transaction, last: str | None) -> list[_Stored]:
    stored = []
    for record in certificates.page(tx, before=last, limit=_PAGE):
        enrollment = certificates.enrollment(tx, record.enrollment)
        state = None if enrollment is None else enrollment.state
        stored.append((record, state, certificates.der(tx, record.enrollment)))
    return stored


def _misfits(
    record: CertificateRecord,
    state: EnrollmentState | None,
    der: bytes | None,
    chains: Mapping[str, tuple[x509.Certificate, ...]],
) -> Iterator[str]:
    """Yield what is wrong between a row and its bytes."""
    if der is None:
        if record.state is CertificateState.VALID or record.sha256 is not None:
            yield f"is {record.state.value} but its bytes are not stored"
        return
    if record.state in {CertificateState.ISSUING, CertificateState.ABANDONED}:
        yield f"is {record.state.value} but its bytes are stored"
    if state is not EnrollmentState.ISSUED:
        yield f"its enrollment is {'missing' if state is None else state.value}"
    if record.sha256 != hashlib.sha256(der).digest():
        yield "its bytes do not have the SHA-256 of its row"
    try:
        certificate = x509.load_der_x509_certificate(der)
        spki = certificate.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
    except ValueError:
        yield "its bytes are no certificate"
        return
    facts = {
        "serial": f"{certificate.serial_number:x}" == record.serial_hex,
        "notBefore": certificate.not_valid_before_utc == record.not_before,
        "notAfter": certificate.not_valid_after_utc == record.not_after,
        "public key": hashlib.sha256(spki).digest() == record.spki_sha256,
        "subject": display_name(certificate.subject) == record.subject,
    }
    for fact in (name for name, same in facts.items() if not same):
        yield f"its {fact} differs from its row"
    if record.issuer not in chains:
        yield f"its issuer {record.issuer} is not configured, the signature cannot be checked"
        return
    try:
        certificate.verify_directly_issued_by(chains[record.issuer][0])
    except (InvalidSignature, ValueError, TypeError):
        yield f"its signature is not that of issuer {record.issuer}"


def _audit_trail(tx: Transaction) -> tuple[int, list[str]]:
    return health.count_events(tx), list(broken_links(tx.connection))


def _unlisted(tx: Transaction, issuer: str) -> list[str]:
    """List revoked certificates that a later CRL lacks: a revocation must never be lost."""
    newest = revocations.newest_crl(tx, issuer)
    if newest is None:
        return []
    number, this_update, _, der = newest
    listed = {entry.serial_number for entry in x509.load_der_x509_crl(der)}
    return [
        f"certificate {serial:x}: was revoked before CRL {number} of {issuer}, which lacks it"
        for serial, revoked_at, _ in revocations.revoked(tx, issuer)
        if revoked_at < this_update - _SETTLING and serial not in listed
    ]
