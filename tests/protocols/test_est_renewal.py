"""EST /simplereenroll: the certificate shown is the one renewed, with the same names (sheet H)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from estserver.model import RevocationReason, Via
from tests.der import attribute, tlv
from tests.live import ORIGIN, Answer, Holder, Live, new_key
from tests.protocols.est_wire import (
    Wire,
    change_subject,
    common_name,
    csr,
    extension_request,
    issued,
    names_of,
    post,
    raw_csr,
    renewed,
    san,
    units_used,
)

CHANGE = "\n[profiles.device]\nchange_subject_name = true\n"
NAMES = ("dns:p17.example.ac.jp", "dns:p17.example.com")
FIRST, SECOND = (x509.DNSName(name.removeprefix("dns:")) for name in NAMES)
SAN = "2.5.29.17"


def revoke(live: Live, holder: Holder, reason: RevocationReason) -> None:
    record = live.core.ra.find(holder.certificate.serial_number)
    live.core.ra.revoke(record.enrollment, reason=reason, comment=None, by="test", origin=ORIGIN)


def subject_of(*pairs: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


@pytest.mark.row("EST-127", "EST-128", "EST-113", "EST-116")
@pytest.mark.parametrize("rekey", [False, True])
def test_the_holder_renews_with_the_same_or_a_new_key(live: Live, *, rekey: bool) -> None:
    handover = live.invite("device", names=NAMES)
    holder = live.enroll(handover)
    key = new_key() if rekey else holder.key
    answer = renewed(live, holder, key=key)
    assert answer.status == 200
    (certificate,) = answer.certificates()
    assert certificate.public_key() == key.public_key()
    assert certificate.subject == holder.certificate.subject
    assert set(names_of(certificate)) == set(names_of(holder.certificate))
    assert certificate.serial_number != holder.certificate.serial_number
    assert units_used(live, handover) == 1
    records = issued(live, handover)
    assert {record.via for record in records} == {Via.EST, Via.RENEWAL}
    again = renewed(live, Holder(key, certificate))
    assert again.status == 200


@pytest.mark.row("EST-129", "EST-143")
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"subject": common_name("printer-18")}, b"printer-18"),
        ({"subject": x509.Name([])}, b"subject is empty"),
        (
            {
                "subject": subject_of(
                    (NameOID.COMMON_NAME, "printer-17"), (NameOID.ORGANIZATION_NAME, "Evil")
                )
            },
            b"Evil",
        ),
        ({"names": (FIRST,)}, b"lacks dns:p17.example.com"),
        ({"names": ()}, b"lacks"),
        ({"names": (FIRST, SECOND, x509.DNSName("x.example"))}, b"adds dns:x.example"),
        ({"names": (FIRST, x509.DNSName("x.example"))}, b"adds dns:x.example and lacks"),
    ],
)
def test_other_names_than_the_certificates_are_400_naming_the_difference(
    shared: Live, fields: dict[str, object], says: bytes
) -> None:
    handover = shared.invite("device", names=NAMES)
    holder = shared.enroll(handover)
    answer = renewed(shared, holder, **fields)
    assert answer.status == 400
    assert says in answer.body
    assert len(issued(shared, handover)) == 1


@pytest.mark.row("EST-129")
def test_the_order_of_rdns_matters(make_live: Callable[[str], Live]) -> None:
    live = make_live('\n[profiles.device]\nsubject = ["O={organization}", "CN={device_id}"]\n')
    holder = live.enroll(live.invite("device"))
    turned = x509.Name(list(holder.certificate.subject)[::-1])
    assert renewed(live, holder, subject=turned).status == 400
    assert renewed(live, holder).status == 200


@pytest.mark.row("EST-130")
def test_names_are_compared_by_the_rules_of_rfc_5280(live: Live) -> None:
    holder = live.enroll(live.invite("device", device_id="Printer  17", names=NAMES))
    oid = bytes.fromhex("0603550403")
    printable = tlv(0x30, tlv(0x31, tlv(0x30, oid, tlv(0x13, b"PRINTER 17"))))
    names = extension_request((SAN, san(SECOND, x509.DNSName("P17.EXAMPLE.AC.JP"))))
    body = raw_csr(names, subject_der=printable)
    assert post(live, body, path="simplereenroll", holder=holder).status == 200


@pytest.mark.row("EST-131")
def test_change_subject_name_takes_what_it_says_and_keeps_nothing_else(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live(CHANGE)
    whole = subject_of((NameOID.COMMON_NAME, "printer-17"))
    cases: list[tuple[bytes, x509.Name, set[x509.GeneralName]]] = [
        (change_subject(whole, FIRST), whole, {FIRST}),
        (change_subject(None, FIRST, SECOND), x509.Name([]), {FIRST, SECOND}),
        (change_subject(whole), whole, set()),
        (
            change_subject(common_name("p17.example.com"), SECOND),
            common_name("p17.example.com"),
            {SECOND},
        ),
    ]
    for change, subject, names in cases:
        holder = live.enroll(live.invite("device", names=NAMES))
        current = extension_request((SAN, san(*names_of(holder.certificate))))
        body = raw_csr(change, current, subject=holder.certificate.subject)
        answer = post(live, body, path="simplereenroll", holder=holder)
        assert answer.status == 200, answer.body
        (certificate,) = answer.certificates()
        assert certificate.subject == subject
        assert set(names_of(certificate)) == names
        if not len(subject):
            san_extension = certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            )
            assert san_extension.critical


@pytest.mark.row("EST-132", "EST-094")
def test_change_subject_name_is_refused_where_it_breaks_a_rule(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live(CHANGE)
    handover = live.invite("device", names=NAMES)
    holder = live.enroll(handover)
    current = extension_request((SAN, san(*names_of(holder.certificate))))
    mine = holder.certificate.subject
    empty = attribute("1.3.6.1.5.5.7.7.36", b"\x30\x00")
    nobody = attribute("1.3.6.1.5.5.7.7.36", b"\x30\x02\x30\x00")
    refused = [
        (raw_csr(empty, current, subject=mine), 400),
        (raw_csr(nobody, current, subject=mine), 400),
        (raw_csr(change_subject(mine), current, subject=common_name("printer-18")), 400),
        (raw_csr(change_subject(mine), subject=mine), 400),
        (raw_csr(change_subject(common_name("printer-18")), current, subject=mine), 403),
        (raw_csr(change_subject(None, x509.DNSName("x.example")), current, subject=mine), 403),
    ]
    for body, status in refused:
        answer = post(live, body, path="simplereenroll", holder=holder)
        assert answer.status == status, answer.body
    assert len(issued(live, handover)) == 1
    with_pin = raw_csr(change_subject(mine), subject=mine)
    assert post(live, with_pin, by=live.invite("device", names=NAMES)).status == 403


@pytest.mark.row("EST-132", "EST-094")
@pytest.mark.parametrize("path", ["simplereenroll", "simpleenroll"])
def test_change_subject_name_is_403_where_the_profile_does_not_allow_it(
    live: Live, path: str
) -> None:
    holder = live.enroll(live.invite("device", names=NAMES))
    current = extension_request((SAN, san(*names_of(holder.certificate))))
    subject = holder.certificate.subject
    body = raw_csr(change_subject(subject, FIRST), current, subject=subject)
    assert post(live, body, path=path, holder=holder).status == 403


@pytest.mark.row("EST-133")
def test_without_the_certificate_there_is_no_renewal(live: Live) -> None:
    handover = live.invite("device")
    live.enroll(handover)
    for by in (None, handover, live.invite("device")):
        answer = post(live, csr(subject="printer-17"), path="simplereenroll", by=by)
        assert answer.status == 403
        assert b"Re-enroll needs the certificate being renewed" in answer.body


@pytest.mark.row("EST-133")
def test_a_renewal_pin_renews_once_without_the_certificate_at_simpleenroll(live: Live) -> None:
    handover = live.invite("device")
    live.enroll(handover)
    fresh = live.core.invitations.new_pin(
        handover.invitation.number, expires=None, by="test", origin=ORIGIN
    )
    assert post(live, csr(), by=handover).status == 401
    assert post(live, csr(), by=fresh).status == 200
    assert post(live, csr(), by=fresh).status == 401
    assert units_used(live, handover) == 1


@pytest.mark.row("EST-134")
def test_the_label_must_be_that_of_the_certificate(live: Live) -> None:
    holder = live.enroll(live.invite("device"))
    answer = renewed(live, holder, path="server/simplereenroll")
    assert answer.status == 403
    assert b"label server" in answer.body
    assert renewed(live, holder, path="device/simplereenroll").status == 200


@pytest.mark.row("EST-135")
@pytest.mark.parametrize("reason", [RevocationReason.SUPERSEDED, RevocationReason.KEY_COMPROMISE])
def test_a_revoked_certificate_does_not_renew(live: Live, reason: RevocationReason) -> None:
    holder = live.enroll(live.invite("device"))
    revoke(live, holder, reason)
    answer = renewed(live, holder)
    assert answer.status == 403
    assert b"is revoked" in answer.body


@pytest.mark.row("EST-136")
def test_an_expired_certificate_renews_within_the_grace_and_not_after(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live('\n[profiles.device]\nrenewal = {grace = "10d"}\n')
    holder = live.enroll(live.invite("device"))
    live.clock.advance(timedelta(days=370))
    assert renewed(live, holder).status == 200
    live.clock.advance(timedelta(days=6))
    answer = renewed(live, holder)
    assert answer.status == 403
    day = f"{holder.certificate.not_valid_after_utc:%Y-%m-%d}"
    assert f"expired on {day}".encode() in answer.body
    assert b"new PIN" in answer.body


@pytest.mark.row("EST-137")
def test_too_early_is_403_with_the_day(make_live: Callable[[str], Live]) -> None:
    live = make_live('\n[profiles.device]\nrenewal = {window = "30d"}\n')
    holder = live.enroll(live.invite("device"))
    answer = renewed(live, holder)
    opens = holder.certificate.not_valid_after_utc - timedelta(days=30)
    assert answer.status == 403
    assert f"not before {opens:%Y-%m-%d}".encode() in answer.body
    live.clock.advance(timedelta(days=340))
    assert renewed(live, holder).status == 200


@pytest.mark.row("EST-138")
def test_the_old_key_is_refused_where_policy_wants_a_new_one(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("\n[profiles.device]\nrenewal = {same_key = false}\n")
    holder = live.enroll(live.invite("device"))
    answer = renewed(live, holder, key=holder.key)
    assert answer.status == 400
    assert b"needs a new key" in answer.body
    assert renewed(live, holder).status == 200


@pytest.mark.row("EST-138")
def test_a_key_of_another_device_or_a_compromised_one_is_refused(live: Live) -> None:
    first = live.enroll(live.invite("device"))
    second = live.enroll(live.invite("device", device_id="printer-18"))
    answer = renewed(live, first, key=second.key)
    assert answer.status == 400
    assert b"another registration" in answer.body
    revoke(live, second, RevocationReason.KEY_COMPROMISE)
    answer = renewed(live, first, key=second.key)
    assert answer.status == 400
    assert b"compromised" in answer.body
    assert post(live, csr(key=second.key), by=live.invite("device")).status == 400


@pytest.mark.row("EST-139")
def test_a_repeated_renewal_gives_the_same_certificate_for_a_day(live: Live) -> None:
    handover = live.invite("device")
    holder, key = live.enroll(handover), new_key()
    first = renewed(live, holder, key=key)
    live.clock.advance(timedelta(hours=23))
    assert renewed(live, holder, key=key).body == first.body
    assert len(issued(live, handover)) == 2
    live.clock.advance(timedelta(hours=2))
    later = renewed(live, holder, key=key)
    assert later.status == 200
    assert later.body != first.body


@pytest.mark.row("EST-139")
def test_parallel_renewals_with_one_key_give_one_certificate(live: Live) -> None:
    handover = live.invite("device")
    holder = live.enroll(handover)
    context, body = live.tls(holder), csr(subject=holder.certificate.subject)

    def renew(_: int) -> Answer:
        with Wire(live, context=context) as wire:
            return wire.ask("POST", "simplereenroll", body=body)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(renew, range(8)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert len(issued(live, handover)) == 2


@pytest.mark.row("EST-140")
def test_the_old_certificate_keeps_working_after_a_renewal(live: Live) -> None:
    holder = live.enroll(live.invite("device"))
    assert renewed(live, holder).status == 200
    assert renewed(live, holder).status == 200


@pytest.mark.row("EST-087", "EST-137")
def test_renewals_end_with_the_registration(live: Live) -> None:
    until = live.clock.now() + timedelta(days=10)
    ending = live.enroll(live.invite("device", renew_until=until))
    cancelled_by = live.invite("device", device_id="printer-18")
    cancelled = live.enroll(cancelled_by)
    assert renewed(live, ending).status == 200
    live.core.invitations.cancel(cancelled_by.invitation.number, by="test", origin=ORIGIN)
    answer = renewed(live, cancelled)
    assert answer.status == 403
    assert b"cancelled" in answer.body
    live.clock.advance(timedelta(days=11))
    answer = renewed(live, ending)
    assert answer.status == 403
    assert f"ended on {until:%Y-%m-%d}".encode() in answer.body


@pytest.mark.row("EST-143")
def test_the_key_in_the_csr_says_nothing_about_who_asks(live: Live) -> None:
    """A CSR of A over the connection of B is judged as B's."""
    a = live.enroll(live.invite("device"))
    b = live.enroll(live.invite("device", device_id="printer-18"))
    body = csr(key=a.key, subject=a.certificate.subject)
    answer = post(live, body, path="simplereenroll", holder=b)
    assert answer.status == 400
    assert renewed(live, b).status == 200


@pytest.mark.row("EST-144", "EST-142")
def test_enrolling_with_the_own_certificate_never_changes_the_subject(live: Live) -> None:
    holder = live.enroll(live.invite("device", names=NAMES))
    for body, status in (
        (csr(), 200),
        (csr(subject="printer-17"), 200),
        (csr(subject="printer-18"), 403),
        (csr(names=(x509.DNSName("x.example"),)), 403),
    ):
        answer = post(live, body, holder=holder)
        assert answer.status == status
        if status == 200:
            (certificate,) = answer.certificates()
            assert certificate.subject == holder.certificate.subject
            assert set(names_of(certificate)) == set(names_of(holder.certificate))
