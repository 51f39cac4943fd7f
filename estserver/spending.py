"""Spending: what each issuance draws on, used up in the transaction that records its intent.

Every rule is a condition of an UPDATE, or a look at a row that is held until the commit; whatever
was checked earlier was only to refuse early.
"""

from collections import Counter
from collections.abc import Sequence

from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    CertificateRefused,
    Conflict,
    NotReleased,
    Refused,
    RegistrationClosed,
)
from estserver.model import (
    ACMEOrder,
    Authority,
    CertificateRecord,
    CertificateState,
    Internal,
    Invitation,
    InvitationState,
    InvitationUnit,
    Renewal,
    Replacement,
)
from estserver.store import Transaction, certificates, ordered, registrations


def spend(tx: Transaction, authorities: Sequence[Authority]) -> list[Refused | None]:
    """Use up what each entitlement draws on: the only place that does.

    Returns for each None, or why the invitation has no unit for it: AlreadyIssued, BadCredentials,
    RegistrationClosed, NotReleased, Conflict; for orders CertificateRefused too. Of such a one
    nothing was used up.
    Raises for the rarer authorities the same and CertificateRefused; nothing may be kept then.
    """
    units = Counter(a.number for a in authorities if isinstance(a, InvitationUnit))
    taken = registrations.spend_units(tx, units)
    orders = iter(_spend_orders(tx, [a for a in authorities if isinstance(a, ACMEOrder)]))
    outcomes: list[Refused | None] = []
    for authority in authorities:
        match authority:
            case ACMEOrder():
                outcomes.append(next(orders))
            case InvitationUnit(number) if number in taken:
                outcomes.append(None)
            case _:
                outcomes.append(_spend(tx, authority))
    return outcomes


def _spend(
    tx: Transaction, authority: InvitationUnit | Replacement | Renewal | Internal
) -> Refused | None:
    match authority:
        case InvitationUnit(number):
            # There were too few for all who asked: one by one, as long as there are any.
            if not registrations.spend_unit(tx, number):
                return _why_no_unit(tx, registrations.get(tx, number))
        case Replacement(number, replaces):
            if not registrations.spend_replacement(tx, number):
                require_not_cancelled(tx, number)
                raise Conflict(
                    "the certificate was replaced once already: ask the administrator",
                    values={"reason": "replaced"},
                )
            _require_standing(tx, replaces)
        case Renewal():
            _spend_renewal(tx, authority)
        case Internal():
            pass
    return None


def _spend_orders(tx: Transaction, orders: Sequence[ACMEOrder]) -> list[Refused | None]:
    """Use up what orders draw on: a unit of an open invitation, or nothing where one renews."""
    units = Counter(one.invitation for one in orders if one.invitation and one.spends_unit)
    taken = registrations.spend_units(tx, units, bound=True)
    renewing = [one for one in orders if one.renews is not None]
    numbers = {one.invitation for one in renewing if one.invitation is not None}
    held = registrations.by_numbers(tx, numbers, hold=True)
    standing = ordered.standing_among(tx, {one.renews for one in renewing if one.renews})

    def refusal(order: ACMEOrder) -> Refused | None:
        number = order.invitation
        if number is None:
            return None
        if order.renews is None:
            # Where there were too few for all who asked: one by one, as long as there are any.
            if number in taken or registrations.spend_unit(tx, number, bound=True):
                return None
            return _why_no_unit(tx, registrations.get(tx, number), bound=True)
        if number in held and held[number].state is InvitationState.CANCELLED:
            return _closed()
        # Let nobody renew what was revoked since it was looked at (INC-1).
        if order.renews not in standing:
            return revoked(certificates.certificate(tx, order.renews))
        return None

    return [refusal(order) for order in orders]


def _spend_renewal(tx: Transaction, authority: Renewal) -> None:
    number = authority.invitation
    if authority.spends_pin and not registrations.spend_renewal_pin(tx, number or ""):
        raise _why_no_renewal(tx, registrations.get(tx, number or ""))
    require_not_cancelled(tx, number)
    _require_standing(tx, authority.renews, shown=authority.shown)


def require_not_cancelled(tx: Transaction, number: str | None) -> None:
    """Raise RegistrationClosed if the registration is cancelled; it is held until the commit."""
    invitation = None if number is None else registrations.get(tx, number, hold=True)
    if invitation is not None and invitation.state is InvitationState.CANCELLED:
        raise _closed()


def _require_standing(tx: Transaction, identifier: str, *, shown: bool = True) -> None:
    """Let nobody renew what was revoked since it was looked at (INC-1).

    Where it was not shown, a PIN was made to renew it even so; but never what is on hold.
    """
    row = certificates.certificate(tx, identifier, hold=True)
    if row is None or row.on_hold or (shown and row.state is not CertificateState.VALID):
        raise revoked(row)


def revoked(row: CertificateRecord | None) -> CertificateRefused:
    """Say that the certificate for a key is revoked or on hold, and what to do."""
    if row is not None and row.on_hold:
        return on_hold(row.serial_hex)
    serial = "" if row is None else row.serial_hex
    return CertificateRefused(
        f"the certificate for this key (serial {serial}) is revoked: "
        "ask the administrator for a new PIN and make a new key",
        reason="revoked",
        values={"serial": serial},
    )


def on_hold(serial_hex: str) -> CertificateRefused:
    """Say that a certificate is on hold, and what to do: nothing is lost by waiting."""
    return CertificateRefused(
        f"the certificate with serial {serial_hex} is on hold: keep it and its key, and ask the "
        "administrator to release it",
        reason="on-hold",
        values={"serial": serial_hex},
    )


def _closed() -> RegistrationClosed:
    return RegistrationClosed(
        "this registration was cancelled: ask the administrator", values={"reason": "cancelled"}
    )


def _why_no_unit(tx: Transaction, invitation: Invitation | None, *, bound: bool = False) -> Refused:
    if (shut := _why_shut(invitation)) is not None:
        return shut
    if invitation is not None and invitation.units_used < invitation.units:
        if bound:
            return RegistrationClosed("this registration has ended", values={"reason": "ended"})
        return _expired(tx, invitation)
    if bound:
        return AlreadyIssued(
            "all certificates of this registration are issued: renew them with the same names, "
            "or ask the administrator for more"
        )
    return AlreadyIssued(
        "this PIN has been used: go on with the key it was used with, or ask the administrator"
    )


def _why_no_renewal(tx: Transaction, invitation: Invitation | None) -> Refused:
    if (shut := _why_shut(invitation)) is not None:
        return shut
    if invitation is not None and invitation.renewal_pin:
        return _expired(tx, invitation)
    if invitation is not None and invitation.units_used < invitation.units:
        return BadCredentials("that PIN is not for renewing this certificate", reason="other")
    return AlreadyIssued("this PIN has been used: ask the administrator for a new one")


def _why_shut(invitation: Invitation | None) -> Refused | None:
    if invitation is None or invitation.state is InvitationState.CANCELLED:
        return _closed()
    if invitation.state is InvitationState.HELD:
        return NotReleased(
            "the administrator has not released this registration yet: try again later"
        )
    return None


def _expired(tx: Transaction, invitation: Invitation) -> Refused:
    if invitation.expires_at > tx.now:
        # What was missing a moment ago is there again: an officer gave a unit or a PIN back.
        return Conflict("the registration has just been changed: try again")
    return BadCredentials(
        "the PIN has expired: ask the administrator for a new one", reason="expired"
    )
