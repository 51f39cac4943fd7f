"""Certificates on hold (RFC 5280 certificateHold): who may, what everybody is told, and the end."""

import base64
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver import config, verification
from estserver.authentication import ACMEAccount, CertificateCredential
from estserver.ca.keys import generate_key
from estserver.campaigns import Campaigns
from estserver.errors import CertificateRefused, Conflict
from estserver.history import History, Standing
from estserver.journal import Entry
from estserver.model import (
    CertificateRecord,
    CertificateState,
    Issued,
    KeyType,
    RevocationReason,
    Via,
)
from estserver.own_certificates import ocsp_profile
from estserver.revoking import Revocation, revoke_selected
from estserver.status.answers import FRESH_SECONDS
from estserver.steps import walk
from estserver.store import Transaction, crls, from_unix, purging, revocations
from estserver.store.selection import Selection, count
from tests.command_line import Shell
from tests.invariants import violations
from tests.live import Live, Workshop, make_csr, new_key
from tests.parts import ORIGIN, Parts, csr_like, csr_of
from tests.protocols.acme.wire import b64, registered
from tests.status_driver import House, build, question, run
from tests.test_races import Overlap
from tests.web.applicant import link, pem, signed_in

ON = "[revocation]\nhold = true\n"
HOLD = RevocationReason.CERTIFICATE_HOLD
FOR_GOOD = RevocationReason.PRIVILEGE_WITHDRAWN
REMOVED = x509.ReasonFlags.remove_from_crl
GOOD, REVOKED = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED


@pytest.fixture
def held_allowed(make_live: Callable[[str], Live]) -> Live:
    """Return an instance whose officers may hold certificates."""
    return make_live(ON)


ALLOWED = config.Settings(revocation={"hold": True})


@pytest.fixture
def office(make_parts: Callable[..., Parts]) -> Parts:
    """Return a core in process with holds."""
    return make_parts(settings=ALLOWED)


@pytest.fixture
def offices(make_parts: Callable[..., Parts], make_database: Callable[[], str]) -> Parts:
    """Return a core in process with holds, once on SQLite and once on PostgreSQL."""
    return make_parts(make_database(), settings=ALLOWED)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Return a CA that makes delta CRLs."""
    built = build(tmp_path, delta_crls=True, own_crls=("device",))
    built.install_responder()
    yield built
    built.store.close()


def revoke(of: Parts | House, enrollment: str, reason: RevocationReason) -> None:
    of.ra.revoke(enrollment, reason=reason, comment=None, by="officer", origin=ORIGIN)


def release(of: Parts | House, enrollment: str) -> CertificateRecord:
    return of.ra.release(enrollment, comment=None, by="officer", origin=ORIGIN)


def said(shell: Shell, *arguments: str) -> str:
    """Run a command; the server in here may log between its lines."""
    return shell.run(*arguments).stdout


def refused(shell: Shell, *arguments: str) -> str:
    return shell.run(*arguments, status=1).stderr


def row(parts: Parts, issued: Issued) -> CertificateRecord:
    return parts.ra.certificate(issued.enrollment)


def reasons(der: bytes) -> dict[int, x509.ReasonFlags | None]:
    """Return what a CRL lists, serial and reason; no serial twice."""
    crl = x509.load_der_x509_crl(der)
    found: dict[int, x509.ReasonFlags | None] = {}
    for entry in crl:
        assert entry.serial_number not in found
        try:
            reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
        except x509.ExtensionNotFound:
            reason = None
        found[entry.serial_number] = reason
    return found


# -- who may ---------------------------------------------------------------------------------------


@pytest.mark.row("INC-30")
def test_without_the_setting_nothing_is_held_or_released(live: Live) -> None:
    serial = f"{live.enroll(live.invite('device')).certificate.serial_number:x}"
    shell = Shell(live.directory)
    for command in (
        ("hold", serial),
        ("release", serial),
        ("revoke", serial, "--reason", "certificateHold"),
        ("revoke-selected", "--profile", "device", "--reason", "certificateHold", "--yes"),
    ):
        assert "`hold = true` under [revocation]" in refused(shell, "certificates", *command)
    assert shell.json("certificates", "show", serial)["state"] == "valid"


def test_an_officer_holds_and_releases_and_ocsp_follows(held_allowed: Live) -> None:
    live = held_allowed
    holder = live.enroll(live.invite("device", email="owner@example.ac.jp"))
    serial = f"{holder.certificate.serial_number:x}"
    shell = Shell(live.directory)
    told = said(shell, "certificates", "hold", serial, "--comment", "lost its badge")
    assert f"Certificate {serial} is on hold. OCSP says so.\n" in told
    shown = shell.json("certificates", "show", serial)
    assert (shown["state"], shown["reason"]) == ("revoked", "certificateHold")
    assert "on hold" in said(shell, "certificates", "list")
    assert "is on hold already" in refused(shell, "certificates", "hold", serial)
    told = said(shell, "certificates", "release", serial)
    assert f"Certificate {serial} is on hold no more: valid. OCSP says so.\n" in told
    assert "is not on hold: it is valid" in refused(shell, "certificates", "release", serial)
    told = said(shell, "certificates", "revoke", serial, "--reason", "certificateHold")
    assert "is on hold. OCSP says so." in told
    told = said(shell, "certificates", "revoke", serial, "--reason", "superseded")
    assert "is revoked (superseded). OCSP says so." in told
    assert "is revoked already" in refused(shell, "certificates", "hold", serial)
    assert "is revoked for good" in refused(shell, "certificates", "release", serial)
    letters = shell.json("mail", "list")
    assert sorted(letter["letter"] for letter in letters) == [
        "held",
        "held",
        "released",
        "revoked",
    ]
    assert violations(live.core, []) == []
    assert verification.verify(live.core).problems == ()


def test_many_are_held_together_and_what_is_held_is_revoked_with_the_rest(offices: Parts) -> None:
    handover = offices.invite(units=3)
    issued = [offices.enroll(handover) for _ in range(3)]
    everything = Selection(profile="device")
    revoke(offices, issued[0].enrollment, HOLD)
    pause = Revocation(HOLD, None, "officer")
    for_good = Revocation(FOR_GOOD, None, "officer")
    held = offices.store.read(partial(count, selection=pause.among(everything)))
    meant = offices.store.read(partial(count, selection=for_good.among(everything)))
    assert (held, meant) == (2, 3)
    assert revoke_selected(offices.store, everything, pause, ORIGIN) == 2
    assert all(row(offices, one).on_hold for one in issued)
    assert revoke_selected(offices.store, everything, for_good, ORIGIN) == 3
    assert {row(offices, one).reason for one in issued} == {FOR_GOOD}


# -- what may follow what --------------------------------------------------------------------------


def test_a_hold_that_becomes_a_revocation_keeps_its_date(office: Parts) -> None:
    issued = office.enroll(office.invite())
    revoke(office, issued.enrollment, HOLD)
    held_at = row(office, issued).revoked_at
    office.clock.advance(timedelta(days=3))
    revoke(office, issued.enrollment, FOR_GOOD)
    record = row(office, issued)
    assert (record.revoked_at, record.reason) == (held_at, FOR_GOOD)


def test_what_is_revoked_for_good_is_neither_held_nor_released(office: Parts) -> None:
    issued = office.enroll(office.invite())
    revoke(office, issued.enrollment, FOR_GOOD)
    with pytest.raises(Conflict, match="revoked already"):
        revoke(office, issued.enrollment, HOLD)
    with pytest.raises(Conflict, match="revoked for good"):
        release(office, issued.enrollment)


def test_a_hold_blocks_no_key_and_a_compromise_after_it_does(office: Parts) -> None:
    issued = office.enroll(office.invite())
    key = row(office, issued).spki_sha256
    revoke(office, issued.enrollment, HOLD)
    assert not office.store.read(lambda tx: revocations.is_blocked(tx, key))
    revoke(office, issued.enrollment, RevocationReason.KEY_COMPROMISE)
    assert office.store.read(lambda tx: revocations.is_blocked(tx, key))


def test_only_what_is_signed_and_in_time_is_held(office: Parts) -> None:
    issued = office.enroll(office.invite())
    office.clock.advance(timedelta(days=800))
    with pytest.raises(Conflict, match="has expired"):
        revoke(office, issued.enrollment, HOLD)


def test_what_expires_while_it_is_held_can_be_released_and_is_expired(office: Parts) -> None:
    issued = office.enroll(office.invite(email="owner@example.ac.jp"))
    revoke(office, issued.enrollment, HOLD)
    office.clock.advance(timedelta(days=800))
    assert row(office, issued).state_at(office.clock.now()) is CertificateState.REVOKED
    assert release(office, issued.enrollment).state_at(office.clock.now()) == "expired"


@pytest.mark.parametrize("last", ["release", "revoke"])
def test_two_nodes_that_release_and_revoke_at_once_end_in_a_revocation(
    offices: Parts, last: str
) -> None:
    """A revocation for good is never undone, and what a release undid is revoked all the same."""
    there = offices.another()
    issued = offices.enroll(offices.invite())
    revoke(offices, issued.enrollment, HOLD)

    def ending(tx: Transaction) -> object:
        if last == "release":
            return revocations.revoke(tx, issued.enrollment, reason=FOR_GOOD, comment=None)
        return revocations.release(tx, issued.enrollment)

    def other() -> None:
        if last == "release":
            with pytest.raises(Conflict, match="for good"):
                release(there, issued.enrollment)
        else:
            revoke(there, issued.enrollment, FOR_GOOD)

    try:
        Overlap(offices).run(ending, other)
    finally:
        there.store.close()
    assert row(offices, issued).reason is FOR_GOOD
    ended = offices.store.read(
        lambda tx: crls.count_holds_ended(tx, "issuing", ""),
    )
    assert ended == 1


# -- what relying parties are told -----------------------------------------------------------------


def test_crl_and_ocsp_tell_a_hold_and_its_end(house: House) -> None:
    other, _ = house.issue("another")
    certificate, enrollment = house.issue("host")
    serial, issuer = certificate.serial_number, house.certificate()

    def answer() -> ocsp.OCSPResponse:
        return ocsp.load_der_ocsp_response(house.status.answer(question(certificate, issuer)).der)

    house.status.publish("issuing")
    assert answer().certificate_status is GOOD
    revoke(house, enrollment, HOLD)
    assert reasons(house.status.publish("issuing").der) == {
        serial: x509.ReasonFlags.certificate_hold
    }
    held = answer()
    assert (held.certificate_status, held.revocation_reason) == (
        REVOKED,
        x509.ReasonFlags.certificate_hold,
    )
    release(house, enrollment)
    # The answer of a moment ago is not repeated, and the next list is made at once.
    assert answer().certificate_status is GOOD
    assert reasons(house.status.publish("issuing").der) == {}
    asked = ocsp.load_der_ocsp_response(house.status.answer(question(other, issuer)).der)
    assert asked.certificate_status is GOOD


def test_rfc5280_5_2_4_a_delta_lists_what_left_the_list_or_changed_its_reason(
    house: House,
) -> None:
    (one, first), (two, second), (three, third) = (house.issue(f"host {n}") for n in range(3))
    revoke(house, first, HOLD)
    revoke(house, second, HOLD)
    base = house.status.publish("issuing")
    release(house, first)
    revoke(house, second, FOR_GOOD)
    changed = house.status.publish("issuing")
    assert changed.base_number == base.number
    assert reasons(changed.der) == {two.serial_number: x509.ReasonFlags.privilege_withdrawn}
    assert changed.delta is not None
    assert reasons(b"".join(changed.delta)) == {
        one.serial_number: REMOVED,
        two.serial_number: x509.ReasonFlags.privilege_withdrawn,
    }
    # What is revoked afterwards is added behind it, and who was removed comes back but once.
    revoke(house, third, FOR_GOOD)
    longer = house.status.publish("issuing")
    assert longer.delta is not None
    assert set(reasons(b"".join(longer.delta))) == {
        one.serial_number,
        two.serial_number,
        three.serial_number,
    }
    revoke(house, first, HOLD)
    again = house.status.publish("issuing")
    assert again.delta is not None
    delta = reasons(b"".join(again.delta))
    assert delta[one.serial_number] is x509.ReasonFlags.certificate_hold
    assert delta == reasons(again.der)
    assert again.base_number == base.number
    # The next base begins anew.
    house.clock.offset += timedelta(days=4)
    release(house, first)
    renewed = house.status.publish("issuing")
    assert renewed.delta is not None
    assert reasons(b"".join(renewed.delta)) == {}
    assert renewed.base_number == renewed.number


def test_a_hold_that_no_full_crl_before_the_base_had_is_removed_too(house: House) -> None:
    """Any complete CRL since the base may be brought up to date by the delta."""
    base = house.status.publish("issuing")
    certificate, enrollment = house.issue("host")
    revoke(house, enrollment, HOLD)
    house.status.publish("issuing")
    release(house, enrollment)
    last = house.status.publish("issuing")
    assert last.delta is not None
    assert reasons(b"".join(last.delta)) == {certificate.serial_number: REMOVED}
    assert last.base_number == base.number


def test_the_crl_of_a_profile_alone_follows_too_and_others_are_left_in_peace(
    house: House,
) -> None:
    certificate, enrollment = house.issue("host", "device")
    revoke(house, enrollment, HOLD)
    house.status.publish_due()
    assert set(reasons(house.status.publish("issuing", "device").der)) == {
        certificate.serial_number
    }
    release(house, enrollment)
    before = house.status.crl("issuing").number
    assert [reasons(crl.der) for crl in house.status.publish_due()] == [{}, {}]
    numbers = [crl.number for crl in house.status.publish_due()]
    assert numbers == [before + 2, before + 3]


def test_another_node_takes_the_list_that_lost_an_entry_and_makes_no_other(house: House) -> None:
    certificate, enrollment = house.issue("host")
    revoke(house, enrollment, HOLD)
    house.status.publish("issuing")
    there = house.another_process()
    there.publish("issuing")
    release(house, enrollment)
    made = there.publish("issuing")
    taken = house.status.publish("issuing")
    assert (taken.number, taken.der, taken.delta) == (made.number, made.der, made.delta)
    assert reasons(b"".join(taken.delta or ())) == {certificate.serial_number: REMOVED}


def test_openssl_and_gnutls_read_holds_and_their_ends(house: House) -> None:
    _, enrollment = house.issue("host")
    chain = house.write_pem("chain.pem", house.certificate(), house.root)
    revoke(house, enrollment, HOLD)
    held = house.write_der("held.crl", house.status.publish("issuing").der)
    command = ("openssl", "crl", "-inform", "DER", "-CAfile", chain, "-text", "-in")
    told = run(*command, held)
    assert "verify OK" in told
    assert "Certificate Hold" in told
    release(house, enrollment)
    last = house.status.publish("issuing")
    assert "No Revoked Certificates" in run(*command, house.write_der("full.crl", last.der))
    delta = house.write_der("delta.crl", b"".join(last.delta or ()))
    told = run(*command, delta)
    assert "verify OK" in told
    assert "Remove From CRL" in told
    assert "Revoked certificates (1)" in run("certtool", "--crl-info", "--inder", "--infile", delta)


def test_openssl_verifies_by_an_old_crl_and_the_delta_that_undoes_its_hold(house: House) -> None:
    certificate, enrollment = house.issue("host")
    leaf = house.write_pem("leaf.pem", certificate)
    chain = house.write_pem("chain.pem", house.certificate(), house.root)
    command = ("openssl", "verify", "-CAfile", chain, "-crl_check", "-extended_crl", "-use_deltas")

    def option(file: str, der: bytes) -> tuple[str, str]:
        written = house.directory / file
        written.write_bytes(x509.load_der_x509_crl(der).public_bytes(Encoding.PEM))
        return "-CRLfile", str(written)

    revoke(house, enrollment, HOLD)
    base = option("base.pem", house.status.publish("issuing").der)
    with pytest.raises(AssertionError, match="certificate revoked"):
        run(*command, *base, leaf)
    release(house, enrollment)
    delta = house.status.publish("issuing").delta
    assert delta is not None
    assert f"{leaf}: OK" in run(*command, *base, *option("delta.pem", b"".join(delta)), leaf)


# -- every door ------------------------------------------------------------------------------------


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


# -- after the worst day ---------------------------------------------------------------------------


def told(kind: str, at: int, reason: str | None = None) -> Entry:
    """Return a line of a journal about one certificate."""
    about = {"issuer": "issuing", "serial": "4711", "enrollment": "one"}
    if kind == "release":
        return Entry(kind, {**about, "released_at": at})
    return Entry(kind, {**about, "revoked_at": at, "reason": reason})


HELD, RELEASED, ENDED = (
    partial(told, "revocation", reason="certificateHold"),
    partial(told, "release"),
    partial(told, "revocation", reason="superseded"),
)


@pytest.mark.parametrize(
    ("lines", "at", "reason"),
    [
        ([HELD(1)], 1, HOLD),
        ([HELD(1), RELEASED(2)], 2, None),
        ([HELD(1), RELEASED(2), HELD(3)], 3, HOLD),
        # In one second, the lines of a file keep their order.
        ([HELD(1), RELEASED(1)], 1, None),
        ([HELD(1), RELEASED(1), HELD(1)], 1, HOLD),
        # The file of another node may be read first.
        ([RELEASED(2), HELD(1)], 2, None),
        # For good is for good, and since it was held.
        ([HELD(1), ENDED(1)], 1, RevocationReason.SUPERSEDED),
        ([ENDED(3), RELEASED(4)], 3, RevocationReason.SUPERSEDED),
        ([HELD(1), RELEASED(4), ENDED(3)], 3, RevocationReason.SUPERSEDED),
    ],
)
def test_of_holds_and_releases_the_last_one_counts_and_for_good_counts_most(
    lines: list[Entry], at: int, reason: RevocationReason | None
) -> None:
    history = History()
    for line in lines:
        history.take(line)
    assert history.told == {("issuing", 0x4711): Standing(from_unix(at), reason)}


def test_a_published_crl_restores_a_hold_unless_the_journal_knows_its_end(house: House) -> None:
    certificate, enrollment = house.issue("host")
    revoke(house, enrollment, HOLD)
    published = x509.load_der_x509_crl(house.status.publish("issuing").der)
    record = house.ra.certificate(enrollment)
    assert record.revoked_at is not None
    key = ("issuing", certificate.serial_number)
    history = History()
    history.take_crl("issuing", published)
    assert history.told == {key: Standing(record.revoked_at, HOLD)}
    release(house, enrollment)
    house.status.publish("issuing")
    delta = house.status.publish("issuing").delta
    assert delta is not None
    history = History()
    history.take_crl("issuing", x509.load_der_x509_crl(b"".join(delta)))
    assert history.told == {}


def test_recovery_replays_holds_releases_and_revocations(template: Path, tmp_path: Path) -> None:
    """A backup from before the end of anything, and a journal of all of it."""
    directory, journal, backup = (tmp_path / name for name in ("instance", "journal", "backup"))
    live = Workshop(template).make(directory, ON, start=False)
    kept = live.settings.journal.model_copy(update={"path": journal})
    live.settings = live.settings.model_copy(update={"journal": kept})
    live.start()
    handover = live.invite("device", units=5)
    holders = [live.enroll(handover) for _ in range(5)]
    serials = [holder.certificate.serial_number for holder in holders]
    rows = [live.core.ra.find(serial).enrollment for serial in serials]
    _never, held, released, ended, before = rows
    ra = live.core.ra
    ra.revoke(before, reason=HOLD, comment=None, by="officer", origin=ORIGIN)
    shell = Shell(directory)
    shell.run("backup", str(backup))
    for enrollment in (held, released, ended):
        ra.revoke(enrollment, reason=HOLD, comment=None, by="officer", origin=ORIGIN)
    for enrollment in (released, before):
        ra.release(enrollment, comment=None, by="officer", origin=ORIGIN)
    ra.revoke(ended, reason=FOR_GOOD, comment=None, by="officer", origin=ORIGIN)
    live.core.status.publish_due()
    stood = [live.core.ra.certificate(enrollment) for enrollment in rows]
    assert [one.reason for one in stood] == [None, HOLD, None, FOR_GOOD, None]
    number = live.core.status.crl("issuing").number
    published = tmp_path / "last.crl"
    published.write_bytes(live.core.status.crl("issuing").der)
    live.stop()
    shutil.rmtree(directory)
    shell.run("restore", str(backup))

    # A list alone tells of holds too, and never of a release.
    alone = shell.json("recover", "--crl", str(published), "--dry-run")
    assert {(one["serial"], one["reason"]) for one in alone["revocations"]} == {
        (f"{serials[1]:x}", "certificateHold"),
        (f"{serials[3]:x}", "privilegeWithdrawn"),
    }
    assert alone["releases"] == []
    recover = ("recover", "--journal", str(journal), "--crl", str(published))
    shown = shell.json(*recover)
    assert {one["serial"] for one in shown["revocations"]} == {f"{serials[n]:x}" for n in (1, 3)}
    assert shown["releases"] == [f"{serials[4]:x}"]
    assert shown["problems"] == []
    assert "Nothing is missing." in said(shell, *recover)
    live.start()
    try:
        assert [live.core.ra.certificate(enrollment) for enrollment in rows] == stood
        crl = live.core.status.publish("issuing")
        assert crl.number > number
        assert set(reasons(crl.der)) == {serials[1], serials[3]}
        assert violations(live.core, []) == []
        assert verification.verify(live.core).problems == ()
    finally:
        live.stop()


# -- over ACME -------------------------------------------------------------------------------------


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


# -- what goes on meanwhile ------------------------------------------------------------------------


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


def test_every_node_says_good_within_ten_seconds_of_a_release(house: House) -> None:
    certificate, enrollment = house.issue("host")
    there = house.another_process()
    asked = question(certificate, house.certificate())

    def status() -> ocsp.OCSPCertStatus:
        return ocsp.load_der_ocsp_response(there.answer(asked).der).certificate_status

    key = generate_key(KeyType.EC_P256)
    responder, _ = house.issue("OCSP responder", ocsp_profile("issuing"), key)
    there.use_responder("issuing", responder, key)
    revoke(house, enrollment, HOLD)
    assert status() is REVOKED
    release(house, enrollment)
    # What it answered a moment ago it may say for four seconds, and caches for five more.
    assert FRESH_SECONDS + 5 < 10
    house.clock.offset += timedelta(seconds=FRESH_SECONDS)
    assert status() is GOOD


def test_openssl_reads_a_hold_in_an_ocsp_answer(house: House) -> None:
    certificate, enrollment = house.issue("host")
    leaf = house.write_pem("leaf.pem", certificate)
    issuer = house.write_pem("issuer.pem", house.certificate())
    chain = house.write_pem("chain.pem", house.certificate(), house.root)
    asked = question(certificate, house.certificate())

    def told() -> str:
        answer = house.write_der("answer.der", house.status.answer(asked).der)
        command = ("openssl", "ocsp", "-sha256", "-respin", answer, "-issuer", issuer)
        return run(*command, "-cert", leaf, "-CAfile", chain)

    revoke(house, enrollment, HOLD)
    assert f"{leaf}: revoked" in (answer := told())
    assert "Reason: certificateHold" in answer
    release(house, enrollment)
    assert f"{leaf}: good" in told()
