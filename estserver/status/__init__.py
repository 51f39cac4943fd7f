"""What relying parties are told about certificates, by CRL and by OCSP, and who watches over it."""

from estserver.status.answers import FRESH_SECONDS, OCSP_LIFETIME, OCSPAnswer
from estserver.status.authority import StatusAuthority
from estserver.status.crls import CRLRules
from estserver.status.shelf import CRL, RED, CRLAge
from estserver.status.watch import StatusWatch

__all__ = [
    "CRL",
    "FRESH_SECONDS",
    "OCSP_LIFETIME",
    "RED",
    "CRLAge",
    "CRLRules",
    "OCSPAnswer",
    "StatusAuthority",
    "StatusWatch",
]
