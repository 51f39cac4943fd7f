"""EST /simpleenroll: what may be sent, what comes back, and what is refused how (sheet E and G)."""

import base64
import gzip
import random
import sqlite3
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from ipaddress import ip_address

import pytest
from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID
from structlog.testing import capture_logs

from estserver import failpoints
from estserver.invitations import Handover
from estserver.model import EnrollmentState
from tests.der import attribute
from tests.live import ORIGIN, Live, basic, make_csr, new_key
from tests.protocols.est_wire import (
    CERTS_ONLY,
    EST,
    PKCS10,
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

STRICT = "\n[est]\npem = false\n"
BASIC_CONSTRAINTS = "2.5.29.19"
MICROSOFT_EXTENSIONS = "1.3.6.1.4.1.311.2.1.14"
UNSTRUCTURED_NAME = "1.2.840.113549.1.9.2"


@pytest.fixture
def failpoint() -> Iterator[Callable[[str], None]]:
    yield failpoints.arm
    failpoints.disarm()


def wrapped(der: bytes, columns: int, end: str) -> bytes:
    return (end.join(textwrap.wrap(base64.b64encode(der).decode(), columns)) + end).encode()


def pem(der: bytes, label: str) -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (
        label.encode(),
        wrapped(der, 64, "\n"),
        label.encode(),
    )


# -- what may be sent ----------------------------------------------------------------------------


@pytest.mark.row("EST-071", "EST-113", "EST-114", "EST-115", "EST-116")
def test_base64_der_and_a_pin_give_200_and_exactly_the_issued_certificate(live: Live) -> None:
    handover, key = live.invite("device"), new_key()
    answer = post(live, csr(key=key), by=handover)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == CERTS_ONLY
    assert answer.headers["Content-Transfer-Encoding"] == "base64"
    info = cms.ContentInfo.load(base64.b64decode(answer.body), strict=True)
    signed = info["content"]
    assert signed["encap_content_info"]["content"].native is None
    assert (len(signed["signer_infos"]), len(signed["digest_algorithms"])) == (0, 0)
    (certificate,) = answer.certificates()
    assert certificate.public_key() == key.public_key()
    (stored,) = issued(live, handover)
    assert stored.sha256 == certificate.fingerprint(hashes.SHA256())
    certificate.verify_directly_issued_by(live.core.chains["issuing"][0])


@pytest.mark.row("EST-072", "EST-073")
@pytest.mark.parametrize(
    "content_type",
    [
        PKCS10,
        "Application/PKCS10",
        "application/pkcs10; charset=utf-8",
        "APPLICATION/pkcs10;name=x;smime-type=y",
        " application/pkcs10 ",
        "",
    ],
)
def test_content_types_are_read_kindly(live: Live, content_type: str) -> None:
    handover = live.invite("device")
    answer = post(live, csr(), by=handover, headers={"Content-Type": content_type})
    assert answer.status == 200


@pytest.mark.row("EST-073")
def test_a_missing_content_type_is_accepted_and_logged(live: Live) -> None:
    headers = {"Authorization": basic(live.invite("device"))}
    with capture_logs() as lines:
        answer = live.request("POST", f"{EST}/simpleenroll", body=csr(), headers=headers)
    assert answer.status == 200
    (line,) = [line for line in lines if line["event"] == "csr.tolerated"]
    assert (line["log_level"], line["error"]) == ("warning", "without Content-Type")


@pytest.mark.row("EST-073")
@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/pkcs7-mime", "pkcs10", "x"],
)
def test_a_wrong_content_type_is_415_naming_the_right_one(live: Live, content_type: str) -> None:
    handover = live.invite("device")
    answer = post(live, csr(), by=handover, headers={"Content-Type": content_type})
    assert answer.status == 415
    assert b"application/pkcs10" in answer.body
    assert units_used(live, handover) == 0


@pytest.mark.row("EST-074")
@pytest.mark.parametrize("encoding", ["base64", "BASE64", "binary", "7bit", "garbage"])
def test_content_transfer_encoding_is_ignored(live: Live, encoding: str) -> None:
    headers = {"Content-Transfer-Encoding": encoding}
    assert post(live, csr(), by=live.invite("device"), headers=headers).status == 200


@pytest.mark.row("EST-075")
def test_white_space_in_base64_means_nothing(live: Live) -> None:
    handover, der = live.invite("device"), make_csr(new_key())
    line = base64.b64encode(der)
    forms = [
        line,
        line + b"\n",
        wrapped(der, 64, "\n"),
        wrapped(der, 64, "\r\n"),
        wrapped(der, 76, "\r\n"),
        b"\r\n\r\n  " + wrapped(der, 76, " \t\n") + b"\n\n",
    ]
    bodies = {post(live, form, by=handover).body for form in forms}
    assert len(bodies) == 1
    assert len(issued(live, handover)) == 1


@pytest.mark.row("EST-076", "EST-077")
@pytest.mark.parametrize("form", ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST", "DER"])
def test_pem_and_der_are_tolerated_and_logged_or_refused_by_the_strict(
    make_live: Callable[[str], Live], form: str
) -> None:
    der = make_csr(new_key())
    body = der if form == "DER" else pem(der, form)
    live = make_live("")
    with capture_logs() as lines:
        assert post(live, body, by=live.invite("device")).status == 200
    assert "csr.tolerated" in {line["event"] for line in lines}
    strict = make_live(STRICT)
    handover = strict.invite("device")
    answer = post(strict, body, by=handover)
    assert answer.status == 400
    assert b"body is not base64" in answer.body
    assert post(strict, base64.b64encode(der), by=handover).status == 200


@pytest.mark.row("EST-085", "EST-196")
def test_chunked_bodies_are_read(live: Live) -> None:
    body, handover = csr(), live.invite("device")
    with Wire(live) as wire:
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:10], body[10:100], body[100:])
        )
        wire.send(
            f"POST {EST}/simpleenroll HTTP/1.1",
            "Host: localhost",
            f"Authorization: {basic(handover)}",
            f"Content-Type: {PKCS10}",
            "Transfer-Encoding: chunked",
            body=chunks + b"0\r\n\r\n",
        )
        assert wire.answer().status == 200


@pytest.mark.row("EST-085")
def test_compressed_bodies_are_415(live: Live) -> None:
    handover = live.invite("device")
    headers = {"Content-Encoding": "gzip"}
    answer = post(live, gzip.compress(csr()), by=handover, headers=headers)
    assert answer.status == 415
    assert units_used(live, handover) == 0


@pytest.mark.row("EST-084")
def test_a_body_over_the_limit_is_413_and_closes(live: Live) -> None:
    size = live.settings.limits.body_bytes
    with Wire(live) as wire:
        wire.send(
            f"POST {EST}/simpleenroll HTTP/1.1", "Host: localhost", f"Content-Length: {size + 1}"
        )
        answer = wire.answer()
        assert (answer.status, answer.headers["Connection"]) == (413, "close")
    with Wire(live) as wire:
        chunk = b"4000\r\n" + b"A" * 0x4000 + b"\r\n"
        wire.send(
            f"POST {EST}/simpleenroll HTTP/1.1",
            "Host: localhost",
            "Transfer-Encoding: chunked",
            body=chunk * (size // 0x4000 + 1),
        )
        answer = wire.answer()
        assert (answer.status, answer.headers["Connection"]) == (413, "close")


# -- what is no CSR ------------------------------------------------------------------------------


GOOD = make_csr(new_key())


@pytest.mark.row("EST-078", "EST-079", "EST-080", "EST-118")
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", b"is empty"),
        (b" \r\n ", b"is empty"),
        (b"MII!" + base64.b64encode(GOOD)[4:], b"not base64"),
        (base64.b64encode(GOOD)[:-3], b"padding is wrong"),
        (base64.urlsafe_b64encode(GOOD + b"\xff\xff\xff"), b"URL-safe"),
        (base64.b64encode(GOOD[:-7]), b"cut short"),
        (base64.b64encode(GOOD + b"\x00"), b"1 bytes follow"),
        (base64.b64encode(GOOD + GOOD), b"more than one request"),
        (base64.b64encode(b"\x30\x80" + GOOD[4:] + b"\0\0"), b"indefinite"),
        (base64.b64encode(GOOD.replace(b"\x02\x01\x00", b"\x02\x01\x01", 1)), b"version"),
        (base64.b64encode(GOOD[:-1] + bytes([GOOD[-1] ^ 1])), b"signature"),
    ],
)
def test_each_malformed_body_is_400_saying_what_is_wrong(
    shared: Live, body: bytes, says: bytes
) -> None:
    handover = shared.invite("device")
    answer = post(shared, body, by=handover)
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert says in answer.body
    assert answer.body.splitlines()[-1].startswith(b"Reference: ")
    assert answer.body.endswith(b"\n")
    assert units_used(shared, handover) == 0


@pytest.mark.row("EST-080")
def test_a_signature_by_another_key_is_refused(shared: Live) -> None:
    mine, other = new_key(), new_key()
    spki = [
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for key in (mine, other)
    ]
    body = base64.b64encode(make_csr(mine).replace(spki[0], spki[1]))
    answer = post(shared, body, by=shared.invite("device"))
    assert answer.status == 400
    assert b"signature" in answer.body
    assert b"does not verify" in answer.body


@pytest.mark.row("EST-081", "EST-083")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: make_csr(rsa.generate_private_key(65537, 1024)), b"2048"),
        (lambda: make_csr(rsa.generate_private_key(3, 2048)), b"exponent"),
        (lambda: make_csr(ec.generate_private_key(ec.SECP192R1())), b"P-192"),
        (lambda: make_csr(ec.generate_private_key(ec.SECP256K1())), b"secp256k1"),
    ],
)
def test_weak_keys_are_400_naming_what_is_allowed(
    shared: Live, make: Callable[[], bytes], says: bytes
) -> None:
    answer = post(shared, base64.b64encode(make()), by=shared.invite("device"))
    assert answer.status == 400
    assert says in answer.body
    assert b"P-256" in answer.body


@pytest.mark.row("EST-081")
def test_a_key_that_cannot_sign_is_refused_in_words(shared: Live) -> None:
    key = x25519.X25519PrivateKey.generate().public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    answer = post(shared, raw_csr(spki=spki), by=shared.invite("device"))
    assert answer.status == 400
    assert b"cannot sign" in answer.body


@pytest.mark.row("EST-083")
def test_a_key_that_the_profile_does_not_take_is_400_naming_those_it_takes(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live('\n[profiles.device]\nkeys = ["ec-p384", "ed25519"]\n')
    handover = live.invite("device")
    answer = post(live, csr(), by=handover)
    assert answer.status == 400
    assert b"ec-p384, ed25519" in answer.body
    key = ed25519.Ed25519PrivateKey.generate()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    body = base64.b64encode(request.public_bytes(Encoding.DER))
    assert post(live, body, by=handover).certificates()[0].public_key() == key.public_key()


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
