"""What every draft must pass before it may be signed.

The parsed draft must equal the plan field by field, and obey the RFC 5280 rules that no profile may
loosen. (pkilint, far slower, judges one certificate of every profile in the tests and in `doctor`.)
"""

from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from estserver.errors import LintFailed
from estserver.model import Plan

_MAX_SERIAL_BITS = 159
_MIN_SERIAL_BITS = 64


def lint(draft: x509.Certificate, plan: Plan, issuer: x509.Certificate, serial: int) -> None:
    """Raise LintFailed, naming the rule, unless `draft` is exactly `plan` under `issuer`."""
    try:
        findings = [*_against_plan(draft, plan, issuer, serial), *_against_rfc5280(draft, issuer)]
    except Exception as error:
        # Whatever the parser trips over must not be signed.
        raise LintFailed(f"the draft cannot be parsed: {type(error).__name__}") from error
    if findings:
        raise LintFailed("the draft differs from its plan: " + "; ".join(findings))


def lint_spliced(
    draft: x509.Certificate, plan: Plan, serial: int, *, issuer_ends: datetime
) -> None:
    """Raise LintFailed unless `draft`, spliced into a linted template, is right where it varies."""
    bits = serial.bit_length()
    names = next(
        (e for e in plan.extensions if isinstance(e.value, x509.SubjectAlternativeName)), None
    )
    checks = {
        "serial": draft.serial_number == serial,
        "notBefore": draft.not_valid_before_utc == plan.not_before,
        "notAfter": draft.not_valid_after_utc == plan.not_after,
        "subject": draft.subject == plan.subject,
        "RFC 5280 §4.1.2.2 serial length": _MIN_SERIAL_BITS < bits <= _MAX_SERIAL_BITS,
        "RFC 5280 §4.1.2.5 within the issuer": plan.not_after <= issuer_ends,
        "RFC 5280 §4.1.2.5 begins before it ends": plan.not_before < plan.not_after,
        "RFC 5280 §4.1.2.6 a name": bool(plan.subject.rdns)
        or (names is not None and names.critical),
        "RFC 5280 §4.2.1.6 no empty subjectAltName": names is None or len(plan.names) > 0,
    }
    if not all(checks.values()):
        findings = "; ".join(name for name, holds in checks.items() if not holds)
        raise LintFailed(f"the draft differs from its plan: {findings}")


def _against_plan(
    draft: x509.Certificate, plan: Plan, issuer: x509.Certificate, serial: int
) -> list[str]:
    own = {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_INFORMATION_ACCESS,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
    }
    planned = {extension.oid: extension for extension in plan.extensions}
    found = {extension.oid: extension for extension in draft.extensions}
    checks = {
        "version": draft.version is x509.Version.v3,
        "serial": draft.serial_number == serial,
        "issuer": draft.issuer.public_bytes() == issuer.subject.public_bytes(),
        "subject": draft.subject.public_bytes() == plan.subject.public_bytes(),
        "notBefore": draft.not_valid_before_utc == plan.not_before,
        "notAfter": draft.not_valid_after_utc == plan.not_after,
        "public key": draft.public_key() == plan.public_key,
        "extension set": found.keys() - own == planned.keys(),
        "extension values": all(found.get(oid) == planned[oid] for oid in planned),
        "no extension of ours planned": not (planned.keys() & own),
        "where its status is found": plan.publish_status
        == (ExtensionOID.CRL_DISTRIBUTION_POINTS in found),
    }
    return [name for name, holds in checks.items() if not holds]


def _against_rfc5280(draft: x509.Certificate, issuer: x509.Certificate) -> list[str]:
    extensions = draft.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject_key = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    issuer_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    own_key = x509.SubjectKeyIdentifier.from_public_key(draft.public_key())
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        names = None
    bits = draft.serial_number.bit_length()
    checks = {
        "§4.1.2.2 serial length": _MIN_SERIAL_BITS < bits <= _MAX_SERIAL_BITS,
        "§4.1.2.5 within the issuer": draft.not_valid_after_utc <= issuer.not_valid_after_utc,
        "§4.1.2.5 begins before it ends": draft.not_valid_before_utc < draft.not_valid_after_utc,
        "§4.1.2.6 a name": bool(len(draft.subject)) or (names is not None and names.critical),
        "§4.2.1.6 no empty subjectAltName": names is None or len(list(names.value)) > 0,
        "§4.2.1.9 no CA": constraints.critical and not constraints.value.ca,
        "§4.2.1.3 no signing of certificates or CRLs": usage.critical
        and not usage.value.key_cert_sign
        and not usage.value.crl_sign,
        "§4.2.1.3 a usage": usage.value.digital_signature
        or usage.value.content_commitment
        or usage.value.key_encipherment
        or usage.value.key_agreement,
        "§4.2.1.12 a purpose": len(list(purposes)) > 0
        and x509.ObjectIdentifier("2.5.29.37.0") not in list(purposes),
        "§4.2.1.1 authority key": authority.key_identifier == issuer_key.digest,
        "§4.2.1.2 subject key": subject_key.digest == own_key.digest,
    }
    return [f"RFC 5280 {name}" for name, holds in checks.items() if not holds]
