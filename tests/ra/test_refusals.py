"""What ends an authority, and what a refused CSR leaves behind: nothing."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    CertificateRefused,
    Fault,
    IdentityMismatch,
    KeyNotAllowed,
    NamesNotAllowed,
    NotReleased,
    Refused,
    RegistrationClosed,
)
from estserver.model import Entitlement, InvitationState, RevocationReason
from estserver.store import Transaction, registrations
from tests.live import Key, new_key
from tests.parts import ORIGIN, Hierarchy, Parts, csr_of, exactly, with_rules
from tests.ra.street import TICK, MakeParts, count, revoke, used

# -- what ends an authority ------------------------------------------------------------------


@pytest.mark.row("EST-058")
def test_an_expired_pin_issues_nothing_but_what_it_issued(parts: Parts) -> None:
    handover = parts.invite(expires=timedelta(days=1))
    parts.clock.advance(timedelta(days=1) - TICK)
    parts.entitle(handover)
    parts.clock.advance(TICK)
    with pytest.raises(BadCredentials) as refused:
        parts.enroll(handover)
    assert refused.value.reason == "expired"
    assert count(parts) == 0


def test_a_cancelled_registration_issues_nothing_even_once_entitled(parts: Parts) -> None:
    handover, key = parts.invite(units=2), new_key()
    parts.enroll(handover, key)
    entitlement = parts.entitle(handover)
    parts.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    with pytest.raises(RegistrationClosed):
        parts.ask(entitlement, csr_of())
    with pytest.raises(RegistrationClosed):
        parts.enroll(handover, key)
    assert count(parts) == 1


def test_a_registration_on_hold_issues_once_released(parts: Parts) -> None:
    handover = parts.invite(hold=True)
    with pytest.raises(NotReleased):
        parts.entitle(handover)
    parts.invitations.release(handover.invitation.number, by="test", origin=ORIGIN)
    entitlement = parts.entitle(handover)
    parts.enroll(handover)
    with pytest.raises(AlreadyIssued):
        parts.ask(entitlement, csr_of())


def test_a_registration_put_on_hold_after_judging_issues_nothing(parts: Parts) -> None:
    handover = parts.invite(hold=True)
    parts.invitations.release(handover.invitation.number, by="test", origin=ORIGIN)
    entitlement = parts.entitle(handover)

    def hold(tx: Transaction) -> bool:
        number = handover.invitation.number
        return registrations.set_state(tx, number, before=None, to=InvitationState.HELD)

    assert parts.store.write(hold)
    with pytest.raises(NotReleased):
        parts.ask(entitlement, csr_of())


@pytest.fixture(scope="module")
def big_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _blocked(parts: Parts, key: Key) -> None:
    revoke(parts, parts.enroll(parts.invite(), key), RevocationReason.KEY_COMPROMISE)


def _certified(parts: Parts, key: Key) -> None:
    parts.enroll(parts.invite(), key)


REFUSALS: dict[str, tuple[type[Refused], str, dict[str, Any], Any]] = {
    "another name": (NamesNotAllowed, "", {"subject": "other"}, None),
    "another SAN": (NamesNotAllowed, "", {"names": (x509.DNSName("x.example.ac.jp"),)}, None),
    "not exact": (IdentityMismatch, "exact", {}, None),
    "key type": (KeyNotAllowed, "rsa", {}, None),
    "compromised key": (KeyNotAllowed, "", {}, _blocked),
    "another's key": (KeyNotAllowed, "", {}, _certified),
    "CA key": (KeyNotAllowed, "ca", {}, None),
    "root key": (KeyNotAllowed, "root", {}, None),
}


@pytest.mark.row("EST-060", "INC-6")
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refused_csr_spends_nothing(
    make_parts: MakeParts, ca: Hierarchy, big_key: rsa.RSAPrivateKey, refusal: str
) -> None:
    parts = make_parts(settings=with_rules("device", keys=("ec-p256",)))
    kind, how, names, prepare = REFUSALS[refusal]
    keys: dict[str, Any] = {"rsa": big_key, "ca": ca.issuing.key, "root": ca.root.key}
    key = keys.get(how) or new_key()
    if prepare is not None:
        prepare(parts, key)
    before = count(parts)
    handover = parts.invite()
    entitlement = parts.entitle(handover)
    if how == "exact":
        entitlement = exactly(entitlement)
    with pytest.raises(kind):
        parts.ask(entitlement, csr_of(key, **names))
    assert (used(parts, handover), count(parts)) == (0, before)
    parts.enroll(handover)
    assert used(parts, handover) == 1


@pytest.mark.row("A-10", "EST-138")
def test_a_compromised_key_is_blocked_for_ever_for_everybody(parts: Parts) -> None:
    handover, key = parts.invite(units=5), new_key()
    issued = parts.enroll(handover, key)
    parts.clock.advance(timedelta(days=300))
    revoke(parts, issued, RevocationReason.KEY_COMPROMISE)
    parts.clock.advance(timedelta(days=300))
    for other in (parts.invite(), parts.invite("server")):
        with pytest.raises(KeyNotAllowed, match="compromised"):
            parts.enroll(other, key)


def test_a_key_revoked_for_another_reason_is_not_blocked(make_parts: MakeParts) -> None:
    parts = make_parts(settings=with_rules("device", validity="1d"))
    handover, key = parts.invite(units=2), new_key()
    revoke(parts, parts.enroll(handover, key), RevocationReason.CESSATION_OF_OPERATION)
    parts.clock.advance(timedelta(days=2))
    with pytest.raises(CertificateRefused):
        parts.enroll(handover, key)


@pytest.mark.row("A-10", "EST-138")
def test_a_key_certified_for_another_registration_is_refused(parts: Parts) -> None:
    key = new_key()
    parts.enroll(parts.invite(), key)
    with pytest.raises(KeyNotAllowed, match="another registration"):
        parts.enroll(parts.invite(), key)


# -- revocation and finding ------------------------------------------------------------------


def test_an_entitlement_for_a_profile_that_is_gone_is_a_fault(parts: Parts) -> None:
    entitlement: Entitlement = replace(parts.entitle(parts.invite()), profile="gone")
    with pytest.raises(Fault, match="not configured"):
        parts.ask(entitlement, csr_of())
