"""Credential in, Entitlement out: who asks, and what may therefore be issued.

Every door ends here. A credential is facts from the wire that nobody has checked; the verdict is a
value that says what may be issued, or an exception. Never a bool, never None.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta

from cryptography import x509

from estserver.ca.template import alternative_names
from estserver.credentials import ACMEAccount, CertificateCredential, ConfirmedPIN, PINCredential
from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    CertificateRefused,
    Conflict,
    NotEntitled,
    NotFound,
    NotReleased,
    RegistrationClosed,
)
from estserver.external_binding import unbindable
from estserver.granted_names import covers, outside
from estserver.invitations import Invitations
from estserver.model import (
    ACMEOrder,
    Applicant,
    CertificateRecord,
    CertificateState,
    Clock,
    Door,
    Entitlement,
    Grant,
    Invitation,
    InvitationState,
    InvitationUnit,
    Renewal,
    RenewalAuth,
    Replacement,
)
from estserver.names import decode_names, format_general_name
from estserver.profiles import Profile
from estserver.spending import on_hold
from estserver.steps import Steps, look, read, walk
from estserver.store import Store, Transaction, campaigns, certificates, holders, ordered

__all__ = [
    "ACMEAccount",
    "Authenticator",
    "CertificateCredential",
    "ConfirmedPIN",
    "PINCredential",
    "grant_of",
    "loosely",
]


class Authenticator:
    """Turns credentials into entitlements. All checks are live: nothing is remembered."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        invitations: Invitations,
        profiles: dict[str, Profile],
        *,
        order_grace: timedelta = timedelta(days=30),
    ) -> None:
        """`order_grace`: how long past its end a certificate still counts as being renewed."""
        self._store = store
        self._clock = clock
        self._invitations = invitations
        self._profiles = profiles
        self._order_grace = order_grace

    def entitle(
        self,
        credential: PINCredential | ConfirmedPIN,
        profile: str | None = None,
        *,
        counted: bool = True,
    ) -> Entitlement:
        """Say what a PIN entitles to: a new enrollment, or the renewal a renewal PIN was made for.

        `profile` is the label asked at, None where none was named. `counted` False where asking
        spends nothing, so that a wrong PIN is no failed attempt.
        Raises BadCredentials, TooManyAttempts, RegistrationClosed, NotReleased, NotEntitled.
        """
        return walk(self.entitling(credential, profile, counted=counted), self._store)

    def entitling(
        self,
        credential: PINCredential | ConfirmedPIN,
        profile: str | None = None,
        *,
        counted: bool = True,
    ) -> Steps[Entitlement]:
        """Return the steps of `entitle`."""
        invitation = yield from self.finding_invitation(credential, counted=counted)
        if profile is not None and profile != invitation.profile:
            raise NotEntitled(
                f"this PIN is not for the label {profile}: use {invitation.profile}, or no label"
            )
        if invitation.renewal_pin:
            newest = yield from self._newest(invitation)
            if newest is not None:
                return self._renewal_by_pin(invitation, newest)
        return Entitlement(
            applicant=Applicant("invitation", invitation.number),
            profile=invitation.profile,
            grant=self._profiles[invitation.profile].grant(invitation),
            approved=not invitation.approval,
            authority=InvitationUnit(invitation.number),
        )

    def invitation(
        self, credential: PINCredential | ConfirmedPIN, *, counted: bool = True
    ) -> Invitation:
        """Return the live invitation behind a PIN. Expiry is judged when a unit is spent.

        Raises BadCredentials, TooManyAttempts, RegistrationClosed (cancelled), NotReleased.
        """
        return walk(self.finding_invitation(credential, counted=counted), self._store)

    def finding_invitation(
        self, credential: PINCredential | ConfirmedPIN, *, counted: bool = True
    ) -> Steps[Invitation]:
        """Return the steps of `invitation`."""
        if isinstance(credential, PINCredential):
            invitation = yield from self._invitations.redeeming(
                credential.number, credential.pin, source=credential.source, counted=counted
            )
            if Door.EST not in invitation.doors:
                raise BadCredentials("the invitation number or the PIN is wrong", reason="door")
        else:
            invitation = yield from self._invitations.getting(credential.number)
            if invitation.pin_generation != credential.pin_generation:
                raise BadCredentials("a new PIN was issued: enter that one", reason="replaced")
        if invitation.profile not in self._profiles:
            raise RegistrationClosed("the kind of certificate of this registration is gone")
        if invitation.state is InvitationState.CANCELLED:
            raise RegistrationClosed(
                "this registration was cancelled: ask the administrator",
                values={"reason": "cancelled"},
            )
        if invitation.state is InvitationState.HELD:
            raise NotReleased(
                "the administrator has not released this registration yet: try again later"
            )
        return invitation

    def replacement(self, credential: ConfirmedPIN) -> Entitlement:
        """Entitle the owner who lost the key to one replacement of the newest certificate.

        Raises RegistrationClosed, Conflict (used before, nothing to replace, too late).
        """
        invitation = self.invitation(credential)
        newest = walk(self._newest(invitation), self._store)
        now = self._clock.now()
        profile = self._profiles[invitation.profile]
        if newest is None or newest.state_at(now) is not CertificateState.VALID:
            raise Conflict(
                "there is no valid certificate to replace", values={"reason": "no-certificate"}
            )
        if invitation.replaced:
            raise Conflict(
                "the certificate was replaced once already: ask the administrator",
                values={"reason": "replaced"},
            )
        if now - newest.created_at > profile.settings.replacement:
            raise Conflict(
                "the time for replacing it yourself is over: ask the administrator",
                values={"reason": "too-late"},
            )
        return Entitlement(
            applicant=Applicant("invitation", invitation.number),
            profile=invitation.profile,
            grant=profile.grant(invitation),
            approved=True,
            authority=Replacement(invitation.number, newest.enrollment),
        )

    def _renewal_by_pin(self, invitation: Invitation, newest: CertificateRecord) -> Entitlement:
        """Entitle to the one renewal that a PIN issued after the last unit stands for.

        Raises RegistrationClosed, NotEntitled (the profile wants the certificate too),
        CertificateRefused (it is on hold).
        """
        if newest.on_hold:
            raise on_hold(newest.serial_hex)
        self._require_open(invitation)
        profile = self._profiles[invitation.profile]
        if profile.settings.renewal.auth is RenewalAuth.CERTIFICATE_AND_PIN:
            raise NotEntitled(
                "this PIN renews together with the certificate in use: show that one as well"
            )
        return Entitlement(
            applicant=Applicant("invitation", invitation.number),
            profile=invitation.profile,
            grant=profile.grant(invitation),
            approved=True,
            authority=Renewal(newest.enrollment, invitation.number, spends_pin=True, shown=False),
        )

    def holder(self, credential: CertificateCredential) -> CertificateRecord:
        """Return the row of exactly the presented certificate, if it may be used at all now.

        Identity is the SHA-256 of the DER, never a name (INC-4). Expired ones pass here: the
        profile's grace decides about them.
        Raises CertificateRefused: unknown, revoked, on hold, not yet valid.
        """
        return walk(self.finding_holder(credential), self._store)

    def finding_holder(self, credential: CertificateCredential) -> Steps[CertificateRecord]:
        """Return the steps of `holder`."""
        record, _ = yield from self._finding_holder(credential)
        return record

    def _finding_holder(
        self, credential: CertificateCredential
    ) -> Steps[tuple[CertificateRecord, Invitation | None]]:
        """Find a certificate that may be used, and its registration if it has one."""
        record, invitation = yield from read(holders.find, credential.der)
        if record is None:
            raise CertificateRefused(
                "this certificate was not issued here: present the one you want to renew",
                reason="unknown",
            )
        shown = {"serial": record.serial_hex, "subject": record.subject}
        if record.on_hold:
            raise on_hold(record.serial_hex)
        if record.state is not CertificateState.VALID:
            raise CertificateRefused(
                f"the certificate with serial {record.serial_hex} is revoked: "
                "ask the administrator for a new invitation",
                reason="revoked",
                values=shown,
            )
        if self._clock.now() < record.not_before:
            raise CertificateRefused(
                f"the certificate is not valid before {record.not_before:%Y-%m-%d %H:%M} UTC",
                reason="not-yet-valid",
                values=shown,
            )
        return record, invitation

    def renew(
        self,
        credential: CertificateCredential,
        *,
        profile: str | None = None,
        pin: PINCredential | ConfirmedPIN | None = None,
    ) -> Entitlement:
        """Entitle the holder of a certificate to renew it with the same names.

        `profile` is the label asked at; `pin` what was shown besides, for profiles that want both.
        Raises CertificateRefused, RegistrationClosed, NotEntitled, BadCredentials.
        """
        return walk(self.renewing(credential, profile=profile, pin=pin), self._store)

    def renewing(
        self,
        credential: CertificateCredential,
        *,
        profile: str | None = None,
        pin: PINCredential | ConfirmedPIN | None = None,
    ) -> Steps[Entitlement]:
        """Return the steps of `renew`."""
        record, invitation = yield from self._finding_holder(credential)
        rules = self._profiles.get(record.profile)
        if rules is None or record.profile.startswith("_"):
            raise NotEntitled("certificates of this kind are not renewed here")
        if profile is not None and profile != record.profile:
            raise NotEntitled(f"this certificate is not renewed at the label {profile}")
        yield from self._requiring_time(record, rules)
        if invitation is not None:
            self._require_open(invitation)
        elif record.invitation is not None:
            raise NotFound(f"there is no invitation {record.invitation}")
        auth = rules.settings.renewal.auth
        if auth is RenewalAuth.PIN:
            raise NotEntitled("certificates of this kind are renewed with a PIN: ask for one")
        spends_pin = auth is RenewalAuth.CERTIFICATE_AND_PIN
        if spends_pin:
            yield from self._require_renewal_pin(pin, invitation)
        return Entitlement(
            applicant=Applicant("certificate", record.serial_hex),
            profile=record.profile,
            grant=grant_of(credential.der),
            approved=True,
            authority=Renewal(record.enrollment, record.invitation, spends_pin=spends_pin),
        )

    # -- ACME ------------------------------------------------------------------------------------

    def bind(self, number: str) -> Invitation:
        """Return the invitation that a new account may still be bound to.

        Raises BadCredentials, the same for every reason; `reason` tells the audit which.
        """
        try:
            invitation = self._invitations.get(number)
        except NotFound as error:
            raise unbindable("unknown") from error
        if Door.ACME not in invitation.doors:
            raise unbindable("door")
        if invitation.state is not InvitationState.OPEN:
            raise unbindable(invitation.state.value)
        if self._clock.now() >= invitation.expires_at:
            raise unbindable("expired")
        return invitation

    def require_registration(self, invitation: Invitation) -> None:
        """Raise unless a registration, as it was just read, lets its account in.

        RegistrationClosed: cancelled or ended, door or profile gone; NotReleased.
        """
        if invitation.profile not in self._profiles:
            raise RegistrationClosed(
                f"the profile {invitation.profile} is not issued any more: ask the administrator",
                values={"reason": "profile"},
            )
        if Door.ACME not in invitation.doors:
            raise RegistrationClosed("this registration does not open the ACME door any more")
        if invitation.state is InvitationState.HELD:
            raise NotReleased(
                "the administrator has not released this registration yet: try again later"
            )
        self._require_open(invitation)

    def ordering(
        self, account: ACMEAccount, identifier: str, names: Sequence[x509.GeneralName]
    ) -> Steps[Entitlement]:
        """Return the steps that say what an ACME order of exactly these names gives.

        Its account's registration passed `require_registration`. Whether open accounts have shown
        their names to be theirs is for the caller to know.
        They raise NamesNotAllowed, AlreadyIssued (no unit is left), CertificateRefused (one with
        these names is on hold), BadInput (the profile does not certify such names).
        """
        invitation = account.registration
        profile = account.profile if invitation is None else invitation.profile
        rules = self._profiles[profile]
        rules.require_door(Door.ACME)
        grant = rules.order(names, invitation)
        renews = approved = None
        if invitation is not None:
            for name in names:
                if not covers(invitation, name):
                    raise outside(format_general_name(name))
            shown = {format_general_name(name) for name in names}
            before = yield from read(self._ordered_before, (invitation.number, shown))
            if before is not None and before.on_hold:
                raise on_hold(before.serial_hex)
            renews = None if before is None else before.enrollment
            if renews is None and invitation.units_used >= invitation.units:
                raise AlreadyIssued(
                    "all certificates of this registration are issued: renew them with the same "
                    "names, or ask the administrator for more"
                )
            approved = renews is not None or not invitation.approval
        return Entitlement(
            applicant=Applicant("account", account.identifier),
            profile=profile,
            grant=grant,
            approved=not rules.settings.approval if approved is None else approved,
            authority=ACMEOrder(
                identifier, None if invitation is None else invitation.number, renews
            ),
        )

    def _ordered_before(
        self, tx: Transaction, orders: Sequence[tuple[str, Collection[str]]]
    ) -> list[ordered.Before | None]:
        """Find what orders of names would renew, for many invitations at once."""
        return ordered.newest_certificates(tx, orders, since=tx.now - self._order_grace)

    def _requiring_time(self, record: CertificateRecord, rules: Profile) -> Steps[None]:
        now = self._clock.now()
        renewal = rules.settings.renewal
        if now > record.not_after + renewal.grace:
            day = f"{record.not_after:%Y-%m-%d}"
            raise CertificateRefused(
                f"the certificate with serial {record.serial_hex} expired on {day} "
                "and cannot renew any more: ask the administrator for a new PIN",
                reason="expired",
                values={"serial": record.serial_hex, "date": day},
            )
        if renewal.window is not None and now < record.not_after - renewal.window:
            if (yield from look(lambda tx: campaigns.running(tx, record.enrollment))) is not None:
                # Asked to renew early: it would be unkind to refuse it.
                return
            opens = f"{record.not_after - renewal.window:%Y-%m-%d}"
            raise CertificateRefused(
                f"it is too early to renew: not before {opens}",
                reason="too-early",
                values={"date": opens},
            )

    def _require_open(self, invitation: Invitation) -> None:
        if invitation.state is InvitationState.CANCELLED:
            raise RegistrationClosed(
                "the registration behind this certificate was cancelled: ask the administrator",
                values={"reason": "cancelled"},
            )
        if invitation.renew_until is not None and self._clock.now() >= invitation.renew_until:
            raise RegistrationClosed(
                f"renewals of this registration ended on {invitation.renew_until:%Y-%m-%d}",
                values={"reason": "ended"},
            )

    def _require_renewal_pin(
        self, pin: PINCredential | ConfirmedPIN | None, invitation: Invitation | None
    ) -> Steps[None]:
        if pin is None or invitation is None:
            raise BadCredentials("renewal needs the certificate and a PIN", reason="missing")
        # Whether it still has a renewal in it is judged when that is spent: a repeated question
        # after a lost answer comes with a PIN that has none any more.
        shown = yield from self.finding_invitation(pin)
        if shown.number != invitation.number:
            raise BadCredentials("that PIN is not for renewing this certificate", reason="other")

    def _newest(self, invitation: Invitation) -> Steps[CertificateRecord | None]:
        found = yield from look(
            lambda tx: certificates.invitation_certificates(tx, invitation.number)
        )
        live = (CertificateState.VALID, CertificateState.REVOKED)
        return next((record for record in found if record.state in live), None)


def grant_of(der: bytes) -> Grant:
    """Return exactly the names of a certificate of ours (RFC 7030 §4.2.2)."""
    certificate = x509.load_der_x509_certificate(der)
    # All its extensions would be made, which takes as long as to make its names ten times.
    encoded = alternative_names(der)
    names = () if encoded is None else decode_names(encoded)
    return Grant(certificate.subject, frozenset(names), exact=True)


def loosely(entitlement: Entitlement) -> Entitlement:
    """Let a CSR leave names out: for pages, whose keys come without names."""
    return replace(entitlement, grant=replace(entitlement.grant, exact=False))
