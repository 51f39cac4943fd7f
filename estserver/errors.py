"""Every way an operation can end badly, as one tree.

Error
 +- Refused                      theirs: the client may read `detail`
 |   +- BadInput                 a field, file or argument that breaks a rule
 |   +- BadCSR                   not one well-formed PKCS#10 whose proof of possession holds
 |   |   +- KeyNotAllowed        weak, known-bad, or of a type the profile does not take
 |   |   +- IncompleteCSR        lacks what csrattrs announced as required
 |   +- LinkingFailed            the CSR is not bound to this TLS connection
 |   +- IdentityMismatch         names differ from the certificate being renewed
 |   +- NamesNotAllowed          a name outside the grant
 |   +- CredentialsRequired      nobody said who is asking
 |   +- BadCredentials           who is asking could not be confirmed
 |   |   +- MistypedPIN          the check symbol is wrong; costs no attempt
 |   +- TooManyAttempts          this source or door must wait
 |   +- NotEntitled              known, but may not have this
 |   |   +- CertificateRefused   the certificate presented may not be used for this
 |   |   +- RegistrationClosed   cancelled, ended or expired registration
 |   |   +- NotReleased          the registration is held back until its PIN is handed over
 |   |   +- EnrollmentRejected   an officer said no
 |   +- AlreadyIssued            the authority is spent and the key is another one
 |   +- NotFound                 no such thing
 |   +- Conflict                 the thing is not in a state that allows this
 +- Fault                        ours: the client only gets a reference
     +- Unavailable              try again later: database busy, shutting down, disk full
     +- LintFailed               a draft broke a rule it must never break
     +- ConfigurationError       settings, files or secrets on disk; names the key path or file

No HTTP and no logging here: each protocol renders the tree by one table of its own
(their tests, such as `tests/protocols/test_est_errors.py`, walk it and prove each table total).
"""

from collections.abc import Mapping
from datetime import timedelta


class Error(Exception):
    """Base of everything estserver raises on purpose.

    `code` is stable and machine-readable. `detail` is one English sentence fit for the client.
    `values` are the facts inside the sentence, so that a page can say it in another language.
    """

    code = "error"

    def __init__(
        self,
        detail: str,
        *,
        retry_after: timedelta | None = None,
        values: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        self.values: Mapping[str, str] = values or {}


class Refused(Error):
    """The request cannot be granted as it stands; says what was wrong and what to do."""

    code = "refused"


class BadInput(Refused):
    """A field, file or argument breaks a rule."""

    code = "bad-input"


class BadCSR(Refused):
    """Not exactly one well-formed PKCS#10 whose proof of possession holds."""

    code = "bad-csr"


class KeyNotAllowed(BadCSR):
    """The public key is weak, known to be bad, or of a type the profile does not take."""

    code = "key-not-allowed"


class IncompleteCSR(BadCSR):
    """The CSR lacks an attribute that csrattrs announced as required."""

    code = "incomplete-csr"


class LinkingFailed(Refused):
    """The CSR is not linked to the TLS connection it came over (RFC 7030 §3.5)."""

    code = "linking-failed"


class IdentityMismatch(Refused):
    """The names asked for differ from those of the certificate being renewed."""

    code = "identity-mismatch"


class NamesNotAllowed(Refused):
    """A name was asked for that the registration does not grant."""

    code = "names-not-allowed"


class CredentialsRequired(Refused):
    """No credential came with the request."""

    code = "credentials-required"


class BadCredentials(Refused):
    """The credential is wrong, unknown, expired or used up.

    `reason` tells which, for the audit trail only: clients must not learn it.
    """

    code = "bad-credentials"

    def __init__(self, detail: str, *, reason: str = "wrong") -> None:
        super().__init__(detail)
        self.reason = reason


class MistypedPIN(BadCredentials):
    """The PIN's check symbol does not fit: a typing mistake, which costs no attempt."""

    code = "mistyped-pin"


class TooManyAttempts(Refused):
    """This source or door has failed too often and must wait `retry_after`."""

    code = "too-many-attempts"


class NotEntitled(Refused):
    """The applicant is known but may not have what was asked for."""

    code = "not-entitled"


class CertificateRefused(NotEntitled):
    """The presented certificate is revoked, expired, foreign or not for this use.

    `reason` is one of revoked, on-hold, expired, not-yet-valid, unknown, wrong-usage, too-early.
    """

    code = "certificate-refused"

    def __init__(
        self, detail: str, *, reason: str, values: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail, values=values)
        self.reason = reason


class RegistrationClosed(NotEntitled):
    """The registration was cancelled, has ended or has expired."""

    code = "registration-closed"


class NotReleased(NotEntitled):
    """The registration is held back until its PIN was handed over."""

    code = "not-released"


class EnrollmentRejected(NotEntitled):
    """An officer rejected the enrollment; the detail carries the reason given."""

    code = "enrollment-rejected"


class AlreadyIssued(Refused):
    """The registration's certificates are issued; this key is not one of theirs."""

    code = "already-issued"


class NotFound(Refused):
    """No such thing, or not one the client may know about."""

    code = "not-found"


class Conflict(Refused):
    """The thing exists but is not in a state that allows this."""

    code = "conflict"


class Fault(Error):
    """Our failure: logged in full under a reference, rendered as the reference alone."""

    code = "fault"


class Unavailable(Fault):
    """We cannot serve this now; `retry_after` says when to ask again."""

    code = "unavailable"


class LintFailed(Fault):
    """A draft certificate broke a rule that no certificate of ours may break."""

    code = "lint-failed"


class ConfigurationError(Fault):
    """Settings, files or secrets on disk are wrong; the detail names the key path or file."""

    code = "configuration-error"
