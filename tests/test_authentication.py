"""Credential in, entitlement out: identity is one row, and every check is live."""

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import config
from estserver.authentication import (
    CertificateCredential,
    ConfirmedPIN,
    PINCredential,
    loosely,
)
from estserver.errors import (
    BadCredentials,
    CertificateRefused,
    NotEntitled,
    NotReleased,
    Refused,
    RegistrationClosed,
    Unavailable,
)
from estserver.invitations import Handover
from estserver.model import (
    Door,
    InvitationUnit,
    Issued,
    Renewal,
    RevocationReason,
    Secret,
    Via,
)
from tests.live import new_key
from tests.parts import ORIGIN, SOURCE, Hierarchy, Parts, csr_like, csr_of, make_ca, with_rules

MakeParts = Callable[..., Parts]


def show(parts: Parts, der: bytes, **more: Any) -> Any:
    return parts.authenticator.renew(CertificateCredential(der), **more)


def refused(parts: Parts, der: bytes) -> str:
    """Return why a certificate is refused."""
    with pytest.raises(CertificateRefused) as refusal:
        show(parts, der)
    return refusal.value.reason


def credential(handover: Handover, number: str | None = None) -> PINCredential:
    assert handover.pin is not None
    shown = handover.invitation.number if number is None else number
    return PINCredential(shown, handover.pin, SOURCE)


# -- PINs ----------------------------------------------------------------------------------------


@pytest.mark.row("EST-050", "EST-051", "EST-066")
def test_a_pin_entitles_to_a_unit_of_its_invitation(parts: Parts) -> None:
    handover = parts.invite()
    for number in (handover.invitation.number, ""):
        entitlement = parts.authenticator.entitle(credential(handover, number))
        assert entitlement.authority == InvitationUnit(handover.invitation.number)
        assert entitlement.approved
        assert str(entitlement.applicant) == f"invitation {handover.invitation.number}"


@pytest.mark.row("EST-052", "EST-086")
def test_a_pin_is_bound_to_its_number_and_its_label(parts: Parts) -> None:
    handover, other = parts.invite(), parts.invite()
    with pytest.raises(BadCredentials):
        parts.authenticator.entitle(credential(handover, other.invitation.number))
    parts.authenticator.entitle(credential(handover), "device")
    with pytest.raises(NotEntitled, match="label server"):
        parts.authenticator.entitle(credential(handover), "server")


def test_an_invitation_without_the_est_door_is_unknown_there(parts: Parts) -> None:
    handover = parts.invite(doors=frozenset({Door.ACME}))
    assert handover.pin is None
    web = parts.invite("person", doors=frozenset({Door.WEB}))
    with pytest.raises(BadCredentials):
        parts.authenticator.entitle(credential(web))


def test_held_and_cancelled_registrations_say_so_to_the_right_pin_only(parts: Parts) -> None:
    handover = parts.invite(hold=True)
    with pytest.raises(NotReleased):
        parts.authenticator.entitle(credential(handover))
    parts.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    with pytest.raises(RegistrationClosed):
        parts.authenticator.entitle(credential(handover))
    other = parts.invite()
    assert other.pin is not None
    with pytest.raises(BadCredentials):
        parts.authenticator.entitle(PINCredential(handover.invitation.number, other.pin, SOURCE))


def test_a_new_pin_ends_the_sessions_of_the_old_one(parts: Parts) -> None:
    handover = parts.invite("person")
    number = handover.invitation.number
    session = ConfirmedPIN(number, handover.invitation.pin_generation)
    parts.authenticator.entitle(session)
    parts.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN)
    with pytest.raises(BadCredentials) as refusal:
        parts.authenticator.entitle(session)
    assert refusal.value.reason == "replaced"


def test_a_registration_whose_profile_is_gone_is_closed(parts: Parts) -> None:
    handover = parts.invite("mail")
    del parts.profiles["mail"]
    with pytest.raises(RegistrationClosed):
        parts.authenticator.entitle(ConfirmedPIN(handover.invitation.number, 1))


# -- certificates --------------------------------------------------------------------------------


@pytest.mark.row("EST-127")
@pytest.mark.parametrize(
    "names", [(), ("dns:a.example",), ("dns:a.example", "dns:b.example", "ip:192.0.2.1")]
)
def test_a_certificate_entitles_to_its_own_names_exactly(
    parts: Parts, names: tuple[str, ...]
) -> None:
    held = parts.enroll(parts.invite(names=names))
    entitlement = show(parts, held.der, profile="device")
    certificate = x509.load_der_x509_certificate(held.der)
    alternative = [
        name
        for extension in certificate.extensions
        if isinstance(extension.value, x509.SubjectAlternativeName)
        for name in extension.value
    ]
    assert len(alternative) == len(names)
    assert entitlement.grant.names == set(alternative)
    assert entitlement.grant.subject == certificate.subject
    assert entitlement.grant.exact
    assert entitlement.authority.renews == held.enrollment
    assert not loosely(entitlement).grant.exact


def resigned(ca: Hierarchy, certificate: x509.Certificate) -> bytes:
    """Return the same DN, serial, names and key under another CA's signature."""
    builder = x509.CertificateBuilder(
        ca.issuing.certificate.subject,
        certificate.subject,
        certificate.public_key(),
        certificate.serial_number,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        list(certificate.extensions),
    )
    signed = builder.sign(ca.issuing.key, hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


@pytest.mark.row("INC-4", "A-7", "EST-134")
def test_only_exactly_the_certificate_of_the_row_is_known(parts: Parts) -> None:
    held = parts.enroll(parts.invite())
    certificate = x509.load_der_x509_certificate(held.der)
    namesake = make_ca()
    ours = parts.ca
    for der in (
        resigned(namesake, certificate),
        resigned(ours, certificate),
        parts.ca.issuing.certificate.public_bytes(Encoding.DER),
        parts.ca.root.certificate.public_bytes(Encoding.DER),
        held.der[:-1] + bytes([held.der[-1] ^ 1]),
        b"",
        b"no certificate at all",
    ):
        assert refused(parts, der) == "unknown"


@pytest.mark.row("INC-4", "EST-143")
def test_a_sibling_certificate_renews_only_itself(parts: Parts) -> None:
    one = parts.enroll(parts.invite())
    two = parts.enroll(parts.invite(device_id="printer-18", names=()))
    entitlement = show(parts, two.der)
    assert entitlement.authority.renews == two.enrollment
    with pytest.raises(Refused):
        parts.ask(entitlement, csr_like(one.der), Via.RENEWAL)


@pytest.mark.row("INC-4")
def test_a_certificate_of_the_same_names_is_another_certificate(parts: Parts) -> None:
    one, two = (parts.enroll(parts.invite()) for _ in range(2))
    parts.ra.revoke(
        one.enrollment,
        reason=RevocationReason.UNSPECIFIED,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    assert refused(parts, one.der) == "revoked"
    assert show(parts, two.der).authority.renews == two.enrollment


@pytest.mark.row("INC-1", "EST-026", "EST-135")
def test_a_revoked_certificate_is_refused_at_once_everywhere(both: Parts) -> None:
    held = both.enroll(both.invite())
    other = both.another()
    with closing(other.store):
        show(other, held.der)
        both.ra.revoke(
            held.enrollment,
            reason=RevocationReason.UNSPECIFIED,
            comment=None,
            by="test",
            origin=ORIGIN,
        )
        assert refused(both, held.der) == "revoked"
        assert refused(other, held.der) == "revoked"
    again = both.another()
    with closing(again.store):
        assert refused(again, held.der) == "revoked"


@pytest.mark.row("EST-024", "EST-136", "A-7")
def test_an_expired_certificate_renews_within_the_grace_only(make_parts: MakeParts) -> None:
    rules = {"validity": "10d", "renewal": {"grace": "2d"}}
    parts = make_parts(settings=with_rules("device", **rules))
    held = parts.enroll(parts.invite())
    end = x509.load_der_x509_certificate(held.der).not_valid_after_utc
    strict = parts.another(device={"validity": "10d"})
    with closing(strict.store):
        # The clock goes on while the test runs.
        moment = timedelta(minutes=1)
        parts.clock.advance(end - parts.clock.now() - moment)
        show(strict, held.der)
        parts.clock.advance(2 * moment)
        assert refused(strict, held.der) == "expired"
        show(parts, held.der)
        parts.clock.advance(timedelta(days=2) - 2 * moment)
        show(parts, held.der)
        parts.clock.advance(2 * moment)
        assert refused(parts, held.der) == "expired"


def test_a_certificate_that_is_not_valid_yet_is_refused(parts: Parts) -> None:
    held = parts.enroll(parts.invite())
    parts.clock.advance(-timedelta(minutes=6))
    assert refused(parts, held.der) == "not-yet-valid"


@pytest.mark.row("EST-137")
def test_a_renewal_before_its_window_says_when_it_opens(make_parts: MakeParts) -> None:
    parts = make_parts(settings=with_rules("device", renewal={"window": "30d"}))
    held = parts.enroll(parts.invite())
    opens = x509.load_der_x509_certificate(held.der).not_valid_after_utc - timedelta(days=30)
    with pytest.raises(CertificateRefused, match=f"not before {opens:%Y-%m-%d}") as refusal:
        show(parts, held.der)
    assert refusal.value.reason == "too-early"
    parts.clock.advance(opens - parts.clock.now())
    show(parts, held.der)


@pytest.mark.row("EST-134")
def test_a_certificate_is_renewed_at_its_own_label_only(parts: Parts) -> None:
    held = parts.enroll(parts.invite())
    with pytest.raises(NotEntitled, match="label server"):
        show(parts, held.der, profile="server")


@pytest.mark.row("INC-3")
def test_the_registration_ends_renewals_not_the_certificate(parts: Parts) -> None:
    ends = parts.clock.now() + timedelta(days=100)
    handover = parts.invite(renew_until=ends)
    held = parts.enroll(handover)
    for _ in range(3):
        parts.clock.advance(timedelta(days=30))
        held = parts.renew(held)
    parts.clock.advance(timedelta(days=10))
    for _ in range(20):
        with pytest.raises(RegistrationClosed) as refusal:
            show(parts, held.der)
        assert refusal.value.values == {"reason": "ended"}


@pytest.mark.row("INC-3", "INC-17")
def test_a_cancelled_registration_ends_renewals(parts: Parts) -> None:
    handover = parts.invite()
    held = parts.renew(parts.enroll(handover))
    parts.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    with pytest.raises(RegistrationClosed) as refusal:
        show(parts, held.der)
    assert refusal.value.values == {"reason": "cancelled"}


@pytest.mark.row("EST-140")
def test_the_old_certificate_still_renews_while_both_stand(parts: Parts) -> None:
    held = parts.enroll(parts.invite())
    parts.renew(held)
    assert parts.renew(held).der


def test_a_certificate_of_a_profile_that_is_gone_is_not_renewed(parts: Parts) -> None:
    held = parts.enroll(parts.invite())
    del parts.profiles["device"]
    with pytest.raises(NotEntitled):
        show(parts, held.der)


# -- certificate, PIN, or both -------------------------------------------------------------------


def renewal_by(make_parts: MakeParts, auth: str) -> tuple[Parts, Handover, Issued]:
    parts = make_parts(settings=with_rules("device", renewal={"auth": auth}))
    handover = parts.invite()
    return parts, handover, parts.enroll(handover)


def renewal_pin(parts: Parts, handover: Handover) -> PINCredential:
    number = handover.invitation.number
    return credential(parts.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN))


@pytest.mark.row("SEED-10", "EST-055")
def test_renewal_by_certificate_needs_no_pin(make_parts: MakeParts) -> None:
    parts, _, held = renewal_by(make_parts, "certificate")
    assert show(parts, held.der).authority == Renewal(
        held.enrollment, show(parts, held.der).authority.invitation
    )


@pytest.mark.row("SEED-10", "EST-056")
def test_renewal_by_certificate_and_pin_needs_both_and_its_lost_answer_is_found(
    make_parts: MakeParts,
) -> None:
    parts, handover, held = renewal_by(make_parts, "certificate+pin")
    with pytest.raises(BadCredentials) as refusal:
        show(parts, held.der)
    assert refusal.value.reason == "missing"
    pin = renewal_pin(parts, handover)
    with pytest.raises(NotEntitled, match="together with the certificate"):
        parts.authenticator.entitle(pin)
    other = parts.invite()
    with pytest.raises(BadCredentials):
        show(parts, held.der, pin=credential(other))
    entitlement = show(parts, held.der, pin=pin)
    csr = csr_like(held.der, new_key())
    renewed = parts.ask(entitlement, csr, Via.RENEWAL)
    assert isinstance(renewed, Issued)
    again = parts.ask(show(parts, held.der, pin=pin), csr, Via.RENEWAL)
    assert isinstance(again, Issued)
    assert again.der == renewed.der
    with pytest.raises(Refused):
        parts.ask(show(parts, held.der, pin=pin), csr_like(held.der, new_key()), Via.RENEWAL)


@pytest.mark.row("SEED-10", "EST-056")
def test_the_pin_that_enrolled_does_not_renew(make_parts: MakeParts) -> None:
    parts, handover, held = renewal_by(make_parts, "certificate+pin")
    entitlement = show(parts, held.der, pin=credential(handover))
    with pytest.raises(Refused):
        parts.ask(entitlement, csr_like(held.der, new_key()), Via.RENEWAL)
    more = parts.invite(units=2)
    held = parts.enroll(more)
    with pytest.raises(BadCredentials) as refusal:
        parts.ask(
            show(parts, held.der, pin=credential(more)),
            csr_like(held.der, new_key()),
            Via.RENEWAL,
        )
    assert refusal.value.reason == "other"


@pytest.mark.row("SEED-10")
def test_renewal_by_pin_takes_no_certificate(make_parts: MakeParts) -> None:
    parts, handover, held = renewal_by(make_parts, "pin")
    with pytest.raises(NotEntitled, match="with a PIN"):
        show(parts, held.der)
    renewed = parts.ask(parts.authenticator.entitle(renewal_pin(parts, handover)), csr_of())
    assert isinstance(renewed, Issued)
    assert parts.ra.enrollment(renewed.enrollment).renews == held.enrollment


@pytest.mark.row("INC-3")
def test_a_renewal_pin_does_not_outlive_the_registration(parts: Parts) -> None:
    handover = parts.invite(renew_until=parts.clock.now() + timedelta(days=10))
    parts.enroll(handover)
    pin = renewal_pin(parts, handover)
    parts.clock.advance(timedelta(days=10))
    with pytest.raises(RegistrationClosed):
        parts.authenticator.entitle(pin)


# -- no verdict without a check ------------------------------------------------------------------


@pytest.mark.row("INC-7")
@pytest.mark.parametrize(
    "shown",
    [
        PINCredential("", Secret(""), SOURCE),
        PINCredential("1", Secret("0" * 14), SOURCE),
        PINCredential("' OR 1=1--", Secret("' OR 1=1--"), SOURCE),
        PINCredential("\x00", Secret("\x00" * 14), SOURCE),
        PINCredential("ü", Secret("00000-00000-0000"), "not an address"),
        ConfirmedPIN("nobody", 1),
        ConfirmedPIN("' OR 1=1--", 1),
        ConfirmedPIN("", 0),
    ],
)
def test_what_nobody_was_given_entitles_to_nothing(both: Parts, shown: Any) -> None:
    both.invite()
    with pytest.raises(Refused):
        both.authenticator.entitle(shown)


@pytest.mark.row("INC-7", "INC-2")
def test_an_authenticator_without_its_database_entitles_nobody(parts: Parts) -> None:
    handover = parts.invite()
    held = parts.enroll(handover)
    with parts.store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE certificate_bytes")
        connection.exec_driver_sql("DROP TABLE certificates")
        connection.exec_driver_sql("ALTER TABLE invitations RENAME TO gone")
    for attempt in (
        lambda: parts.authenticator.entitle(credential(handover)),
        lambda: show(parts, held.der),
    ):
        with pytest.raises(Unavailable):
            attempt()


def test_internal_profiles_renew_nothing(make_parts: MakeParts) -> None:
    parts = make_parts(settings=config.Settings())
    held = parts.enroll(parts.invite())
    with parts.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE certificates SET profile = '_tls'")
    parts.profiles["_tls"] = parts.profiles["device"]
    with pytest.raises(NotEntitled):
        show(parts, held.der)
