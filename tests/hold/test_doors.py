"""What is on hold is renewed at no door, and nothing is lost by it."""

import base64
from datetime import timedelta
from functools import partial

import pytest

from estserver.authentication import ACMEAccount, CertificateCredential
from estserver.campaigns import Campaigns
from estserver.errors import CertificateRefused
from estserver.model import (
    CertificateRecord,
    Issued,
    RevocationReason,
    Via,
)
from estserver.steps import walk
from estserver.store import purging
from tests.hold.acts import (
    FOR_GOOD,
    HOLD,
    release,
    revoke,
    row,
)
from tests.live import Live, make_csr, new_key
from tests.parts import ORIGIN, Parts, csr_like, csr_of
from tests.protocols.acme.wire import b64, registered
from tests.web.applicant import link, pem, signed_in


def test_no_renewal_of_what_is_on_hold_and_none_is_lost_by_it(office: Parts) -> None:
    handover = office.invite(units=2)
    key = new_key()
    issued = office.enroll(handover, key)
    revoke(office, issued.enrollment, HOLD)
    with pytest.raises(CertificateRefused, match="on hold: keep it and its key") as refusal:
        office.renew(issued)
    assert refusal.value.reason == "on-hold"
    # The same question as before, whose answer was lost: neither an answer nor a new unit.
    with pytest.raises(CertificateRefused, match="on hold"):
        office.enroll(handover, key)
    release(office, issued.enrollment)
    assert office.enroll(handover, key).der == issued.der
    office.renew(issued, new_key())


def test_what_is_held_while_its_renewal_is_judged_is_not_renewed(office: Parts) -> None:
    issued = office.enroll(office.invite())
    entitlement = office.authenticator.renew(CertificateCredential(issued.der))
    revoke(office, issued.enrollment, HOLD)
    with pytest.raises(CertificateRefused, match="on hold"):
        office.ask(entitlement, csr_like(issued.der))


def test_a_renewal_pin_does_not_renew_what_is_on_hold(office: Parts) -> None:
    handover = office.invite()
    issued = office.enroll(handover)
    fresh = office.invitations.new_pin(
        handover.invitation.number, expires=None, by="officer", origin=ORIGIN
    )
    entitlement = office.entitle(fresh)
    revoke(office, issued.enrollment, HOLD)
    for attempt in (partial(office.entitle, fresh), partial(office.ask, entitlement, csr_of())):
        with pytest.raises(CertificateRefused, match="on hold"):
            attempt()
    # For what is revoked for good an administrator may well mean it to be renewed.
    revoke(office, issued.enrollment, FOR_GOOD)
    office.enroll(fresh)


def test_an_acme_order_gets_nothing_for_names_of_which_one_is_on_hold(offices: Parts) -> None:
    """Neither with a unit that is left, nor by renewing an older certificate with the names."""
    invitation = offices.invite("server", units=5).invitation
    names = tuple(invitation.names)

    def order(number: int) -> Issued:
        account = ACMEAccount("account", invitation, invitation.profile)
        steps = offices.authenticator.ordering(account, f"order{number}", names)
        answer = offices.ask(walk(steps, offices.store), csr_of(names=names), Via.ACME)
        assert isinstance(answer, Issued)
        return answer

    order(0)
    second = order(1)
    assert offices.ra.certificate(second.enrollment).renews is not None
    revoke(offices, second.enrollment, HOLD)
    with pytest.raises(CertificateRefused, match="on hold"):
        order(2)
    release(offices, second.enrollment)
    order(3)


def test_every_door_says_that_a_certificate_is_on_hold(held_allowed: Live) -> None:
    live = held_allowed
    holder = live.enroll(live.invite("device"))
    record = live.core.ra.find(holder.certificate.serial_number)
    assert isinstance(record, CertificateRecord)
    live.core.ra.revoke(record.enrollment, reason=HOLD, comment=None, by="officer", origin=ORIGIN)
    refused = live.request(
        "POST",
        "/.well-known/est/simplereenroll",
        body=base64.b64encode(make_csr(new_key(), subject=holder.certificate.subject)),
        headers={"Content-Type": "application/pkcs10"},
        holder=holder,
    )
    assert refused.status == 403
    assert b"is on hold" in refused.body
    for language, words in (("en", "is on hold"), ("ja", "一時停止中")):
        for path in ("/renew", "/test"):
            page = live.request("GET", f"{path}?lang={language}", holder=holder)
            assert words in page.body.decode()
            assert "renewal PIN" not in page.body.decode()


def test_the_wizard_shows_a_hold_and_after_it_the_certificate(held_allowed: Live) -> None:
    live = held_allowed
    handover = live.invite("person")
    visitor, page = signed_in(live, handover)
    visitor.submit(page, "issue-form", csr=pem(make_csr(new_key())))
    ((enrollment, _),) = live.core.ra.of_invitation(handover.invitation.number)
    live.core.ra.revoke(enrollment.id, reason=HOLD, comment=None, by="officer", origin=ORIGIN)
    page = visitor.get(link(handover))
    assert "This certificate is on hold" in page.title
    assert "only the administrator can end this" in page.seen
    assert 'name="issue"' not in page.text
    assert "一時停止中" in visitor.get(f"{link(handover)}?lang=ja").seen
    # Nor is the PIN's end what the owner has to know.
    live.clock.advance(timedelta(days=40))
    _, page = signed_in(live, handover)
    assert "This certificate is on hold" in page.title
    fresh = live.core.invitations.new_pin(
        handover.invitation.number, expires=None, by="officer", origin=ORIGIN
    )
    visitor, page = signed_in(live, fresh)
    assert "on hold" in page.seen
    assert 'name="issue"' not in page.text
    live.core.ra.release(enrollment.id, comment=None, by="officer", origin=ORIGIN)
    assert "This PIN renews the certificate" in visitor.get(link(handover)).seen


@pytest.mark.row("ACME-157")
def test_acme_puts_nothing_on_hold_and_revokes_for_good_what_is(held_allowed: Live) -> None:
    live = held_allowed
    client = registered(live, "www.example.ac.jp", units=2)
    done = client.issue("www.example.ac.jp")
    asked = {"certificate": b64(done.der)}
    client.post("revoke-cert", {**asked, "reason": 6}).refused(400, "badRevocationReason")
    enrollment = live.core.ra.find(done.leaf.serial_number).enrollment
    live.core.ra.revoke(enrollment, reason=HOLD, comment=None, by="officer", origin=ORIGIN)
    record = live.core.ra.certificate(enrollment)
    assert Campaigns(live.core.store, live.clock).window(record).start > live.clock.now()
    problem = client.order("www.example.ac.jp").refused(403, "unauthorized")
    assert "is on hold: keep it and its key" in problem["detail"]
    assert client.post("revoke-cert", {**asked, "reason": 1}).status == 200
    assert live.core.ra.certificate(enrollment).reason is RevocationReason.KEY_COMPROMISE
    client.post("revoke-cert", asked).refused(400, "alreadyRevoked")


@pytest.mark.parametrize("held", ["old", "new"])
def test_what_was_renewed_is_revoked_after_its_overlap_though_one_was_on_hold_then(
    office: Parts, held: str
) -> None:
    there = office.another(device={"renewal": {"revoke_superseded": True}})
    try:
        old = office.enroll(office.invite())
        new = office.renew(old, new_key())
        on_hold = old if held == "old" else new
        revoke(office, on_hold.enrollment, HOLD)
        office.clock.advance(timedelta(days=15))
        assert there.ra.revoke_superseded(ORIGIN) == 0
        office.clock.advance(timedelta(days=30))
        assert there.ra.revoke_superseded(ORIGIN) == 0
        release(office, on_hold.enrollment)
        assert there.ra.revoke_superseded(ORIGIN) == 1
        assert row(office, old).reason is RevocationReason.SUPERSEDED
    finally:
        there.store.close()


def test_a_registration_whose_certificate_is_on_hold_is_not_erased(office: Parts) -> None:
    handover = office.invite()
    issued = office.enroll(handover)
    revoke(office, issued.enrollment, HOLD)
    number = handover.invitation.number
    assert office.store.read(lambda tx: purging.live_certificates(tx, number)) == 1
    revoke(office, issued.enrollment, FOR_GOOD)
    assert office.store.read(lambda tx: purging.live_certificates(tx, number)) == 0
