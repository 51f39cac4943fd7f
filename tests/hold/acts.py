"""What tests about holds do and ask again and again."""

from cryptography import x509
from cryptography.x509 import ocsp

from estserver import config
from estserver.model import (
    CertificateRecord,
    Issued,
    RevocationReason,
)
from tests.command_line import Shell
from tests.parts import ORIGIN, Parts
from tests.status_driver import House

ON = "[revocation]\nhold = true\n"
HOLD = RevocationReason.CERTIFICATE_HOLD
FOR_GOOD = RevocationReason.PRIVILEGE_WITHDRAWN
REMOVED = x509.ReasonFlags.remove_from_crl
GOOD, REVOKED = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED
ALLOWED = config.Settings(revocation={"hold": True})


def revoke(of: Parts | House, enrollment: str, reason: RevocationReason) -> None:
    of.ra.revoke(enrollment, reason=reason, comment=None, by="officer", origin=ORIGIN)


def release(of: Parts | House, enrollment: str) -> CertificateRecord:
    return of.ra.release(enrollment, comment=None, by="officer", origin=ORIGIN)


def said(shell: Shell, *arguments: str) -> str:
    """Run a command; the server in here may log between its lines."""
    return shell.run(*arguments).stdout


def refused(shell: Shell, *arguments: str) -> str:
    return shell.run(*arguments, status=1).stderr


def row(parts: Parts, issued: Issued) -> CertificateRecord:
    return parts.ra.certificate(issued.enrollment)


def reasons(der: bytes) -> dict[int, x509.ReasonFlags | None]:
    """Return what a CRL lists, serial and reason; no serial twice."""
    crl = x509.load_der_x509_crl(der)
    found: dict[int, x509.ReasonFlags | None] = {}
    for entry in crl:
        assert entry.serial_number not in found
        try:
            reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
        except x509.ExtensionNotFound:
            reason = None
        found[entry.serial_number] = reason
    return found
