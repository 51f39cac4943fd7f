"""ChangeSubjectName: a re-enrollment that asks for other names (RFC 7030 §4.2.2, RFC 6402 §2.8)."""

from dataclasses import replace
from datetime import datetime

from cryptography import x509

from estserver.csr import CSR
from estserver.errors import BadCSR, NotEntitled
from estserver.model import Entitlement, Grant
from estserver.profiles import Profile


def change_names(
    csr: CSR,
    entitlement: Entitlement,
    *,
    profile: Profile,
    registered: Grant | None,
    now: datetime,
) -> tuple[CSR, Entitlement]:
    """Return CSR and entitlement for the new names, once the old and the new ones were checked.

    A CSR without ChangeSubjectName comes back as it is, and so does its entitlement.
    The CSR itself must name the current certificate. "If the subject field is absent, the name
    field will be set to an empty sequence"; an absent subjectAlt removes the extension: nothing is
    kept from the old names. `registered` is what the registration grants today; no name outside it
    can be had (RFC 7030 §3.7).
    Raises NotEntitled (not by this profile, not with a PIN), IdentityMismatch, NamesNotAllowed,
    BadCSR (no name would be left).
    """
    change = csr.change_subject
    if change is None:
        return csr, entitlement
    if not profile.settings.change_subject_name:
        raise NotEntitled(f"profile {profile.name} does not let a renewal change names")
    if entitlement.applicant.kind != "certificate" or registered is None:
        raise NotEntitled("ChangeSubjectName needs the certificate whose names are to change")
    profile.plan(csr, replace(entitlement.grant, exact=True), now)
    wanted = Grant(change.subject or x509.Name([]), frozenset(change.names or ()), exact=True)
    if not len(wanted.subject) and not wanted.names:
        raise BadCSR("ChangeSubjectName leaves neither subject nor subjectAltName")
    renamed = replace(csr, subject=wanted.subject, names=tuple(wanted.names))
    profile.plan(renamed, replace(registered, exact=False), now)
    return renamed, replace(entitlement, grant=wanted)
