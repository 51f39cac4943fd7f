"""EST simpleenroll: the names that are certified, what waits for an officer, what fails."""

import base64
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID
from structlog.testing import capture_logs

from estserver import failpoints
from estserver.invitations import Handover
from estserver.model import EnrollmentState
from tests.der import attribute
from tests.live import ORIGIN, Live, make_csr, new_key
from tests.protocols.est_wire import (
    Wire,
    common_name,
    csr,
    extension_request,
    issued,
    names_of,
    post,
    raw_csr,
    san,
    text,
    units_used,
)

BASIC_CONSTRAINTS = "2.5.29.19"
MICROSOFT_EXTENSIONS = "1.3.6.1.4.1.311.2.1.14"
UNSTRUCTURED_NAME = "1.2.840.113549.1.9.2"


@pytest.fixture
def failpoint() -> Iterator[Callable[[str], None]]:
    yield failpoints.arm
    failpoints.disarm()


# -- names and extensions ------------------------------------------------------------------------


@pytest.mark.row("EST-087", "EST-092")
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"subject": "printer-99"}, b"printer-99"),
        ({"names": (x509.DNSName("evil.example.com"),)}, b"evil.example.com"),
        ({"names": (x509.IPAddress(ip_address("192.0.2.99")),)}, b"192.0.2.99"),
        ({"names": (x509.RFC822Name("root@example.ac.jp"),)}, b"root@example.ac.jp"),
        ({"names": (x509.DNSName("*.example.ac.jp"),)}, b"*.example.ac.jp"),
    ],
)
def test_a_name_outside_the_registration_is_403_naming_it(
    shared: Live, fields: dict[str, object], says: bytes
) -> None:
    handover = shared.invite("device", names=("dns:p17.example.ac.jp", "ip:192.0.2.17"))
    answer = post(shared, csr(**fields), by=handover)
    assert answer.status == 403
    assert says in answer.body
    assert units_used(shared, handover) == 0


@pytest.mark.row("EST-087", "EST-092", "EST-093")
def test_names_come_from_the_registration_whatever_the_csr_leaves_out(live: Live) -> None:
    names = ("dns:p17.example.ac.jp", "ip:192.0.2.17", "ip:2001:db8::17", "uri:urn:dev:17")
    wanted = {
        x509.DNSName("p17.example.ac.jp"),
        x509.IPAddress(ip_address("192.0.2.17")),
        x509.IPAddress(ip_address("2001:db8::17")),
        x509.UniformResourceIdentifier("urn:dev:17"),
    }
    for fields in (
        {},
        {"subject": "printer-17"},
        {"subject": "p17.example.ac.jp"},
        {"names": (x509.DNSName("P17.Example.AC.jp"),)},
    ):
        answer = post(live, csr(**fields), by=live.invite("device", names=names))
        (certificate,) = answer.certificates()
        assert certificate.subject == common_name("printer-17")
        assert set(names_of(certificate)) == wanted


@pytest.mark.row("EST-093")
def test_an_empty_subject_makes_the_subject_alt_name_critical(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("\n[profiles.server]\nsubject = []\n")
    (certificate,) = post(live, csr(), by=live.invite("server")).certificates()
    assert len(certificate.subject) == 0
    extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    assert extension.critical


@pytest.mark.row("EST-088", "EST-089", "EST-082", "EST-182", "EST-184")
def test_no_extension_of_a_csr_reaches_the_certificate(live: Live) -> None:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    purposes = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.5.29.37.0")])
    unknown = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(common_name("printer-17"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(x509.UnrecognizedExtension(unknown, b"\x05\x00"), critical=False)
        .add_extension(x509.OCSPNoCheck(), critical=False)
        .sign(new_key(), hashes.SHA256())
    )
    plain = post(live, csr(), by=live.invite("device")).certificates()[0]
    body = base64.b64encode(request.public_bytes(Encoding.DER))
    asked = post(live, body, by=live.invite("device")).certificates()[0]
    for oid in (
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
    ):
        extension = asked.extensions.get_extension_for_oid(oid)
        assert extension == plain.extensions.get_extension_for_oid(oid)
    assert {e.oid for e in asked.extensions} == {e.oid for e in plain.extensions}


@pytest.mark.row("EST-090", "EST-091", "EST-097")
def test_attributes_twice_are_400_and_unknown_ones_are_ignored(shared: Live) -> None:
    name = ("2.5.29.17", san(x509.DNSName("p17.example.ac.jp")))
    invite = {"names": ("dns:p17.example.ac.jp",)}
    one = extension_request(name)
    twice = [
        raw_csr(one, extension_request((BASIC_CONSTRAINTS, b"\x30\x00"))),
        raw_csr(extension_request(name, name)),
    ]
    for body in twice:
        assert post(shared, body, by=shared.invite("device", **invite)).status == 400
    microsoft = extension_request(name, attribute_oid=MICROSOFT_EXTENSIONS)
    answer = post(shared, raw_csr(microsoft), by=shared.invite("device", **invite))
    assert answer.status == 200
    outside = extension_request(
        ("2.5.29.17", san(x509.DNSName("x.example"))), attribute_oid=MICROSOFT_EXTENSIONS
    )
    answer = post(shared, raw_csr(outside), by=shared.invite("device", **invite))
    assert answer.status == 403
    unknown = attribute("1.3.6.1.4.1.99999.2", b"\x05\x00")
    named = attribute(UNSTRUCTURED_NAME, text("somebody"))
    answer = post(shared, raw_csr(one, unknown, named), by=shared.invite("device", **invite))
    assert answer.status == 200
    assert b"somebody" not in answer.certificates()[0].public_bytes(Encoding.DER)


@pytest.mark.row("EST-097", "EST-060")
def test_mutated_requests_are_refusals_and_spend_nothing(live: Live) -> None:
    """The wall has its own fuzz tests; here it is what stands around it."""
    handover, good = live.invite("device"), make_csr(new_key(), subject="printer-17")
    chance = random.Random(7030)
    with Wire(live) as wire:
        for _ in range(150):
            octets = bytearray(good)
            for _ in range(chance.randrange(1, 4)):
                octets[chance.randrange(len(octets))] = chance.randrange(256)
            if bytes(octets) == good:
                continue
            answer = wire.enroll(handover, base64.b64encode(octets))
            assert answer.status in {400, 403}, answer.body
    assert units_used(live, handover) == 0
    assert issued(live, handover) == []


# -- approval ------------------------------------------------------------------------------------


def pending_id(live: Live, handover: Handover) -> str:
    (found,) = live.core.ra.of_invitation(handover.invitation.number)
    assert found[0].state is EnrollmentState.PENDING
    return found[0].id


@pytest.mark.row("EST-120", "EST-121", "EST-122", "EST-124", "EST-112")
def test_an_enrollment_that_waits_is_202_until_it_is_approved(live: Live) -> None:
    handover, key = live.invite("device", approval=True), new_key()
    for _ in range(3):
        # Each time a new connection and a new signature over the same key.
        answer = post(live, csr(key=key), by=handover)
        assert (answer.status, answer.body) == (202, b"")
        assert answer.headers["Content-Length"] == "0"
        assert answer.headers["Retry-After"] == "60"
    identifier = pending_id(live, handover)
    live.restart()
    assert post(live, csr(key=key), by=handover).status == 202
    live.core.ra.approve(identifier, by="officer", origin=ORIGIN)
    answer = post(live, csr(key=key), by=handover)
    assert answer.status == 200
    assert answer.certificates()[0].public_key() == key.public_key()
    assert len(issued(live, handover)) == 1


@pytest.mark.row("EST-121")
def test_a_rejection_is_told_with_the_officers_words(live: Live) -> None:
    handover, body = live.invite("device", approval=True), csr()
    assert post(live, body, by=handover).status == 202
    identifier = pending_id(live, handover)
    live.core.ra.reject(identifier, reason="device is scrapped", by="officer", origin=ORIGIN)
    answer = post(live, body, by=handover)
    assert answer.status == 403
    assert b"device is scrapped" in answer.body
    assert issued(live, handover) == []


@pytest.mark.row("EST-123")
def test_a_pending_request_answers_no_other_applicant(live: Live) -> None:
    first, second = (live.invite("device", approval=True) for _ in range(2))
    body = csr()
    assert post(live, body, by=first).status == 202
    live.core.ra.approve(pending_id(live, first), by="officer", origin=ORIGIN)
    assert post(live, body, by=second).status != 200
    assert post(live, body, by=first).status == 200
    assert issued(live, second) == []


# -- our failures --------------------------------------------------------------------------------


@pytest.mark.row("EST-125", "EST-060")
def test_a_busy_database_is_503_with_retry_after_and_spends_nothing(live: Live) -> None:
    handover, body = live.invite("device"), csr()
    with closing(sqlite3.connect(live.directory / "estserver.db", timeout=30)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        answer = post(live, body, by=handover)
        blocker.rollback()
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert b"try again later" in answer.body
    assert units_used(live, handover) == 0
    assert post(live, body, by=handover).status == 200


@pytest.mark.row("EST-126", "EST-117")
def test_an_unexpected_failure_is_500_with_only_a_reference(
    live: Live, failpoint: Callable[[str], None]
) -> None:
    handover, body = live.invite("device"), csr()
    failpoint("planned:1:raise")
    with capture_logs() as lines:
        answer = post(live, body, by=handover)
    assert answer.status == 500
    head, _, reference = answer.body.decode().strip().partition("\nReference: ")
    assert head == "Internal error."
    (line,) = [line for line in lines if line["event"] == "request.failed"]
    assert line["request_id"] == reference
    assert units_used(live, handover) == 0
    assert post(live, body, by=handover).status == 200


@pytest.mark.row("EST-062", "EST-064")
@pytest.mark.parametrize("name", ["intent-committed", "signed", "stored", "first-byte"])
def test_a_failure_after_the_pin_was_spent_loses_nothing(
    live: Live, failpoint: Callable[[str], None], name: str
) -> None:
    handover, body = live.invite("device"), csr()
    failpoint(f"{name}:1:raise")
    assert post(live, body, by=handover).status == 500
    assert units_used(live, handover) == 1
    answer = post(live, body, by=handover)
    assert answer.status == 200
    (stored,) = issued(live, handover)
    assert stored.sha256 == answer.certificates()[0].fingerprint(hashes.SHA256())


@pytest.mark.row("EST-117", "EST-118")
def test_a_refusal_can_be_found_by_its_reference(shared: Live) -> None:
    handover = shared.invite("device")
    with capture_logs() as lines:
        answer = post(shared, csr(subject="someone-else"), by=handover)
    reference = answer.body.decode().rpartition("Reference: ")[2].strip()
    (line,) = [line for line in lines if line.get("request_id") == reference]
    assert line["outcome"] == "names-not-allowed"
    assert line["operation"] == "simpleenroll"
    assert line["applicant"] == f"invitation {handover.invitation.number}"


@pytest.mark.row("EST-062")
def test_a_repeat_after_the_certificate_expired_needs_a_new_pin(live: Live) -> None:
    handover, body = live.invite("device"), csr()
    assert post(live, body, by=handover).status == 200
    live.clock.advance(timedelta(days=366))
    assert post(live, body, by=handover).status == 401
