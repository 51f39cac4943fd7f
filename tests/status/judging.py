"""What programs of others and pkilint say of CRLs and OCSP answers."""

import sys
from pathlib import Path

from cryptography import x509
from cryptography.x509 import ocsp

from tests.status_driver import run

GOOD, REVOKED, UNKNOWN = (
    ocsp.OCSPCertStatus.GOOD,
    ocsp.OCSPCertStatus.REVOKED,
    ocsp.OCSPCertStatus.UNKNOWN,
)


MALFORMED = ocsp.OCSPResponseStatus.MALFORMED_REQUEST
UNAUTHORIZED = ocsp.OCSPResponseStatus.UNAUTHORIZED
BIN = Path(sys.executable).parent


def parsed(der: bytes) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(der)


def lint(*command: str) -> None:
    """Run pkilint; its exit status is the number of findings."""
    assert run(str(BIN / command[0]), *command[1:]).strip() == ""
