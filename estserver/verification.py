"""Verification: everything stored is read again and must agree with everything else.

Certificates with their rows, what OCSP and the CRLs say with what was revoked, the audit trail with
its links and its anchor. What is read was written by the program whose work is checked, so no row
is trusted: signatures, digests and fields are taken from the stored bytes again.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from prometheus_client import Gauge

from estserver import http
from estserver.anchor import AnchorFile
from estserver.core import Core
from estserver.errors import Error
from estserver.model import (
    CertificateRecord,
    CertificateState,
    EnrollmentState,
    Event,
    Origin,
    PublicKey,
)
from estserver.names import display_name
from estserver.store import Transaction, certificates, crls, health, revocations, to_unix
from estserver.store.audit_checks import Anchor, broken_links
from estserver.store.purging import PURGED

log = structlog.get_logger("estserver.verification")

_PAGE = 200
_SETTLING = timedelta(minutes=10)
"""Revocations and releases are dated when their transaction begins, and seen when it commits."""
_TOLD = 100
"""Problems named one by one in the log; `estserver verify` shows all."""
_problems = Gauge(
    "estserver_verification_problems",
    "What the last verification found",
    registry=http.registry,
    multiprocess_mode="mostrecent",
)
_finished = Gauge(
    "estserver_verification_timestamp_seconds",
    "When the last verification ended",
    registry=http.registry,
    multiprocess_mode="mostrecent",
)

Progress = Callable[[str, int], None]
"""Told what is being gone through and how much of it is done, after each batch."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` went through, and a sentence for everything that does not fit.

    `answers` counts the CRLs and OCSP answers among it; `anchors` those of the audit trail.
    """

    certificates: int
    answers: int
    events: int
    anchors: int
    problems: tuple[str, ...]


def verify(core: Core, progress: Progress = lambda _what, _done: None) -> Verification:
    """Re-check everything that is stored.

    OCSP answers are made anew and compared where the issuers' responders are at hand, in `serve`.
    Raises Unavailable.
    """
    anchors, unreadable = _anchors(core)
    problems: list[str] = [*unreadable]
    count, answers, last = 0, 0, None
    while page := core.store.read(partial(_page, last=last)):
        for record, state, der in page:
            about = [*_misfits(record, state, der, core.chains)]
            if der is not None and not about and _answers(core, record.issuer):
                answers += 1
                about += _wrong_status(core, record, der)
            problems += [f"certificate {record.serial_hex}: {problem}" for problem in about]
        count += len(page)
        progress("certificates", count)
        last = page[-1][0].enrollment
    for issuer, chain in core.chains.items():
        found = core.store.read(partial(_crl, issuer=issuer, signer=chain[0]))
        answers += found is not None
        problems += found or ()
        progress("CRLs and OCSP answers", answers)
    events, broken = core.store.read(
        lambda tx: (health.count_events(tx), list(broken_links(tx.connection, anchors)))
    )
    progress("audit rows", events)
    return Verification(count, answers, events, len(anchors), (*problems, *broken))


def _answers(core: Core, issuer: str) -> bool:
    """Tell whether OCSP answers for an issuer here: nobody asks once it has expired."""
    signer = core.issuers.get(issuer)
    return signer is not None and signer.certificate.not_valid_after_utc > core.clock.now()


def _anchors(core: Core) -> tuple[list[Anchor], list[str]]:
    file = AnchorFile(core.settings.path(core.settings.audit.anchor))
    try:
        return file.read(), []
    except Error as error:
        return [], [error.detail]


def verify_due(core: Core, origin: Origin) -> Verification | None:
    """Verify if it is time: at the interval set, and after a restore or an upgrade.

    What came out is told in the log, in metrics and in the audit trail, where `doctor` reads it.
    """
    every = core.settings.audit.verify_every
    if not every:
        return None
    newest = core.store.read(health.newest_verification)
    if (
        newest is not None
        and newest.version == version("estserver")
        and core.clock.now() - newest.at < every
    ):
        return None
    result = verify(core)
    record(core, result, by="server", origin=origin)
    for problem in result.problems[:_TOLD]:
        log.error("verification.problem", error=problem)
    log.info("verification.finished", problems=len(result.problems))
    measure(core)
    return result


def measure(core: Core) -> None:
    """Set the metrics by the last verification, whichever process made it. Raises Unavailable."""
    if not core.settings.audit.verify_every:
        # There may be none for years, and the whole trail would be gone through to find it.
        return
    newest = core.store.read(health.newest_verification)
    if newest is not None:
        _problems.set(newest.problems)
        _finished.set(newest.at.timestamp())


def record(core: Core, result: Verification, *, by: str, origin: Origin) -> None:
    """Put the outcome into the audit trail. Raises Unavailable."""
    detail: dict[str, str | int | bool | None] = {
        "version": version("estserver"),
        "certificates": result.certificates,
        "answers": result.answers,
        "events": result.events,
        "problems": len(result.problems),
    }
    event = Event(health.VERIFIED, by, "instance", detail)
    core.store.write(lambda tx: tx.audit(event, origin))


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
        signed = record.state is CertificateState.VALID or record.sha256 is not None
        if signed and record.subject != PURGED:
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


def _wrong_status(core: Core, record: CertificateRecord, der: bytes) -> Iterator[str]:
    """Ask our own OCSP responder, and yield what does not fit the row."""
    issuer = core.chains[record.issuer][0]
    certificate = x509.load_der_x509_certificate(der)
    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA256())
    # With a nonce, no answer of a moment ago is repeated: what was revoked or released is seen.
    request = request.add_extension(x509.OCSPNonce(b"verification"), critical=False)
    answer = ocsp.load_der_ocsp_response(
        core.status.answer(request.build().public_bytes(Encoding.DER)).der
    )
    if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        yield f"OCSP says {answer.response_status.name} about it"
        return
    if not _is_signed(answer, issuer):
        yield "the OCSP answer about it does not verify"
    said = answer.certificate_status
    if said is not _SAID.get(record.state, ocsp.OCSPCertStatus.UNKNOWN):
        now = core.store.read(lambda tx: certificates.certificate(tx, record.enrollment))
        if now is None or said is not _SAID.get(now.state, ocsp.OCSPCertStatus.UNKNOWN):
            yield f"is {record.state.value} and OCSP says {said.name}"


_SAID = {
    CertificateState.VALID: ocsp.OCSPCertStatus.GOOD,
    CertificateState.REVOKED: ocsp.OCSPCertStatus.REVOKED,
}


def _is_signed(answer: ocsp.OCSPResponse, issuer: x509.Certificate) -> bool:
    """Tell whether an OCSP answer is signed by whom its issuer delegated it to."""
    signer = answer.certificates[0] if answer.certificates else issuer
    key, algorithm = signer.public_key(), answer.signature_hash_algorithm
    try:
        if signer != issuer:
            signer.verify_directly_issued_by(issuer)
        if isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
            key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
            key.verify(answer.signature, answer.tbs_response_bytes, padding.PKCS1v15(), algorithm)
        else:
            return False
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _crl(tx: Transaction, issuer: str, signer: x509.Certificate) -> list[str] | None:
    """Say what is wrong with the newest CRL; None: there is none yet.

    A revocation must never be lost, and nothing may be listed that was not revoked.
    """
    newest = crls.whole(tx, issuer)
    if newest is None:
        return None
    stored, der = newest
    about = f"CRL {stored.number} of {issuer}"
    try:
        crl = x509.load_der_x509_crl(der)
    except ValueError:
        return [f"{about}: its bytes are no CRL"]
    key = signer.public_key()
    problems = []
    if not (isinstance(key, PublicKey) and crl.is_signature_valid(key)):
        problems.append(f"{about}: its signature is not that of its issuer")
    if crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number != stored.number:
        problems.append(f"{about}: its number differs from its row")
    listed = {entry.serial_number for entry in crl}
    revoked = {int(serial, 16): at for page in crls.revoked(tx, issuer) for serial, at, _ in page}
    # By its bytes: the row of one that is to be made anew says when that was asked for.
    settled = to_unix(crl.last_update_utc - _SETTLING)
    problems += [
        f"certificate {serial:x}: was revoked before {about}, which lacks it"
        for serial, at in revoked.items()
        if at < settled and serial not in listed
    ]
    # What was released is off the next list, which may just be being made.
    ended = crls.holds_ended(tx, issuer, "", since=crl.last_update_utc - _SETTLING)
    suspects = sorted(listed - revoked.keys() - {int(serial, 16) for serial, _, _ in ended})
    for first in range(0, len(suspects), _PAGE):
        serials = suspects[first : first + _PAGE]
        statuses = revocations.statuses(tx, issuer, serials)
        problems += [
            f"certificate {serial:x}: is not revoked and {about} lists it"
            for serial in serials
            if serial not in statuses or statuses[serial][1] is None
        ]
    return problems
