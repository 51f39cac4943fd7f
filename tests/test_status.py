"""Certificate status: CRL numbering and schedule, OCSP answers, judged by three other programs."""

import dataclasses
import hashlib
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from estserver import failpoints
from estserver.ca.keys import generate_key
from estserver.errors import Error, Fault, NotFound, Unavailable
from estserver.model import KeyType, RevocationReason
from estserver.status import OCSP_LIFETIME, CRLAge
from estserver.store import audit_checks, certificates, crls, revocations
from tests.status_driver import LIFETIME, ORIGIN, FickleKey, House, build, question, run

GOOD, REVOKED, UNKNOWN = (
    ocsp.OCSPCertStatus.GOOD,
    ocsp.OCSPCertStatus.REVOKED,
    ocsp.OCSPCertStatus.UNKNOWN,
)
MALFORMED = ocsp.OCSPResponseStatus.MALFORMED_REQUEST
UNAUTHORIZED = ocsp.OCSPResponseStatus.UNAUTHORIZED
TRY_LATER = ocsp.OCSPResponseStatus.TRY_LATER
BIN = Path(sys.executable).parent


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = build(tmp_path)
    yield house
    house.store.close()


@pytest.fixture
def answering(house: House) -> House:
    house.install_responder()
    return house


def parsed(der: bytes) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(der)


def number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def lint(*command: str) -> None:
    """Run pkilint; its exit status is the number of findings."""
    assert run(str(BIN / command[0]), *command[1:]).strip() == ""


# -- CRLs ------------------------------------------------------------------------------------------


def test_rfc5280_5_a_crl_has_number_authority_key_and_both_dates(house: House) -> None:
    published = house.status.publish("issuing")
    crl = parsed(published.der)
    authority = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = house.certificate().extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority.key_identifier == own.digest
    assert number(crl) == published.number == 1
    assert crl.issuer == house.certificate().subject
    assert crl.last_update_utc == published.this_update <= house.clock.now()
    assert crl.next_update_utc == published.next_update == published.this_update + LIFETIME


def test_every_reason_stands_in_the_crl_and_unspecified_is_left_out(house: House) -> None:
    asked = {}
    for reason in RevocationReason:
        certificate, enrollment = house.issue(f"host {reason.value}")
        house.revoke(enrollment, reason)
        asked[certificate.serial_number] = reason
    listed = {}
    for entry in parsed(house.status.publish("issuing").der):
        try:
            found = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
        except x509.ExtensionNotFound:
            found = "unspecified"
        listed[entry.serial_number] = found
    assert listed == {serial: reason.value for serial, reason in asked.items()}


@pytest.mark.row("INC-29")
@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_3072])
def test_openssl_gnutls_and_pkilint_accept_the_crl(tmp_path: Path, key_type: KeyType) -> None:
    house = build(tmp_path, key_type=key_type)
    for reason in (RevocationReason.UNSPECIFIED, RevocationReason.KEY_COMPROMISE):
        certificate, enrollment = house.issue(f"host {reason.value}")
        house.revoke(enrollment, reason)
    file = house.write_der("issuing.crl", house.status.publish("issuing").der)
    chain = house.write_pem("chain.pem", house.certificate(), house.root)
    said = run("openssl", "crl", "-inform", "DER", "-in", file, "-CAfile", chain, "-text", "-noout")
    assert "verify OK" in said
    assert f"{certificate.serial_number:X}" in said
    assert "Key Compromise" in said
    assert "Revoked certificates (2)" in run("certtool", "--crl-info", "--inder", "--infile", file)
    lint("lint_crl", "lint", "-t", "CRL", "-p", "PKIX", "-s", "WARNING", file)
    house.store.close()


def test_a_crl_is_made_again_at_half_its_life_and_not_before(house: House) -> None:
    first = house.status.publish("issuing")
    house.clock.offset += LIFETIME / 2 - timedelta(seconds=10)
    assert house.status.publish("issuing") == first
    house.clock.offset += timedelta(seconds=10)
    second = house.status.publish("issuing")
    assert second.number == first.number + 1
    assert second.this_update >= first.this_update + LIFETIME / 2


@pytest.mark.row("INC-25")
def test_a_revocation_makes_one_new_crl_and_the_next_look_none(house: House) -> None:
    house.status.publish("issuing")
    certificate, enrollment = house.issue("host")
    house.revoke(enrollment)
    second = house.status.publish("issuing")
    assert [entry.serial_number for entry in parsed(second.der)] == [certificate.serial_number]
    assert house.status.publish("issuing") == second
    assert house.status.publish_due() == [second]
    assert house.another_process().publish("issuing").number == second.number == 2


def test_a_revocation_that_commits_late_is_not_overlooked(house: House) -> None:
    # Its transaction began, and dated it, before the CRL was made; it was seen only afterwards.
    certificate, enrollment = house.issue("host")
    house.clock.offset += timedelta(seconds=20)
    first = house.status.publish("issuing")
    house.clock.offset -= timedelta(seconds=20)
    house.revoke(enrollment)
    house.clock.offset += timedelta(seconds=20)
    second = house.status.publish("issuing")
    assert second.number == first.number + 1
    assert parsed(second.der).get_revoked_certificate_by_serial_number(certificate.serial_number)


def test_a_crl_from_the_future_is_replaced(house: House) -> None:
    house.clock.offset += timedelta(hours=1)
    early = house.status.publish("issuing")
    house.clock.offset -= timedelta(hours=1)
    late = house.status.publish("issuing")
    assert late.number == early.number + 1
    assert late.this_update <= house.clock.now()


@pytest.mark.row("INC-25", "I5", "I6")
def test_numbers_grow_and_nothing_is_lost_under_eight_publishers(house: House) -> None:
    issued = [house.issue(f"host {index}") for index in range(24)]
    publishers = [house.another_process() for _ in range(8)]

    def work(index: int) -> list[tuple[int, int]]:
        seen = []
        for certificate, enrollment in issued[index::8]:
            house.revoke(enrollment)
            crl = publishers[index].publish("issuing")
            assert parsed(crl.der).get_revoked_certificate_by_serial_number(
                certificate.serial_number
            )
            seen.append((crl.number, len(parsed(crl.der))))
        return seen

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(work, range(8)))
    for history in seen:
        assert history == sorted(history)
        assert len({number for number, _ in history}) == len(history)
    every = sorted({pair for history in seen for pair in history})
    assert len({number for number, _ in every}) == len(every), "one number, one CRL"
    assert every == sorted(every, key=lambda pair: pair[1]), "a later CRL lists no less"
    final = parsed(house.status.publish("issuing").der)
    counted = Counter(entry.serial_number for entry in final)
    assert counted == Counter(certificate.serial_number for certificate, _ in issued)
    signed = house.store.read(lambda tx: list(audit_checks.broken_links(tx.connection)))
    assert signed == []
    for publisher in publishers:
        publisher._store.close()


@pytest.mark.row("I6")
def test_the_number_of_a_deleted_crl_never_comes_back(house: House) -> None:
    first = house.status.publish("issuing")
    for _ in range(5):
        house.clock.offset += LIFETIME
        house.status.publish("issuing")
    stored = house.store.read(lambda tx: crls.newest(tx, "issuing"))
    assert stored is not None
    again = dataclasses.replace(stored, number=first.number)
    assert not house.store.write(lambda tx: crls.put(tx, again, b""))
    assert house.status.crl("issuing").number == 6


def test_every_crl_has_its_row_in_the_audit_trail(house: House) -> None:
    house.status.publish("issuing")
    _, enrollment = house.issue("host")
    house.revoke(enrollment)
    house.status.publish("issuing")
    rows = house.store.read(
        lambda tx: tx.connection.exec_driver_sql(
            "SELECT detail FROM audit_events WHERE event = 'crl.signed' ORDER BY id"
        ).all()
    )
    assert [row.detail for row in rows] == [
        '{"entries": 0, "number": 1}',
        '{"entries": 1, "number": 2}',
    ]


def test_rfc5280_3_3_an_expired_certificate_leaves_the_crl_after_one_carried_it(
    house: House,
) -> None:
    certificate, enrollment = house.issue("host")
    house.revoke(enrollment)
    assert len(parsed(house.status.publish("issuing").der)) == 1
    house.clock.offset = certificate.not_valid_after_utc - house.clock.now() + house.clock.offset
    house.clock.offset += timedelta(hours=1)
    assert len(parsed(house.status.publish("issuing").der)) == 1
    house.clock.offset += timedelta(days=4)
    assert len(parsed(house.status.publish("issuing").der)) == 0


def test_a_crl_that_does_not_verify_is_not_published(tmp_path: Path) -> None:
    house = build(tmp_path, keys={"issuing": FickleKey()})
    with pytest.raises(Fault, match="does not verify"):
        house.status.publish("issuing")
    assert house.store.read(lambda tx: crls.newest(tx, "issuing")) is None
    house.store.close()


def test_one_broken_issuer_does_not_keep_the_others_from_publishing(tmp_path: Path) -> None:
    keys = {"broken": FickleKey(), "issuing": generate_key(KeyType.EC_P256)}
    house = build(tmp_path, names=("broken", "issuing"), keys=keys)
    with pytest.raises(Fault, match="broken"):
        house.status.publish_due()
    assert house.store.read(lambda tx: revocations.newest_crl_number(tx, "issuing")) == 1
    house.store.close()


def test_the_newest_crl_is_served_while_the_database_is_away(tmp_path: Path) -> None:
    directory = tmp_path / "here"
    directory.mkdir()
    house = build(directory)
    published = house.status.crl("issuing")
    house.store.engine.dispose()
    directory.rename(tmp_path / "gone")
    assert house.status.crl("issuing") == published
    with pytest.raises(Unavailable):
        house.status.publish("issuing")
    (tmp_path / "gone").rename(directory)
    assert house.status.publish("issuing") == published
    house.store.close()


@pytest.mark.row("INC-28")
def test_the_oldest_crl_turns_red_at_a_quarter_of_its_life(tmp_path: Path) -> None:
    house = build(tmp_path, names=("issuing", "second"))
    assert house.status.ages()[0] == CRLAge("issuing", None, 0.0)
    assert [age.red for age in house.status.ages()] == [True, True]
    house.status.publish_due()
    assert [age.red for age in house.status.ages()] == [False, False]
    house.clock.offset += LIFETIME * 0.74
    assert [age.red for age in house.status.ages()] == [False, False]
    house.clock.offset += LIFETIME * 0.02
    house.status.publish("second")
    assert [age.red for age in house.status.ages()] == [True, False]
    house.store.close()


def test_an_unknown_issuer_has_no_crl_and_takes_no_responder(answering: House) -> None:
    certificate = answering.install_responder()
    for attempt in (
        lambda: answering.status.crl("other"),
        lambda: answering.status.publish("other"),
        lambda: answering.status.use_responder("other", certificate, answering.keys["issuing"]),
    ):
        with pytest.raises(NotFound):
            attempt()


# -- OCSP ------------------------------------------------------------------------------------------


@pytest.mark.row("INC-27")
@pytest.mark.parametrize(
    "algorithm",
    [hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()],
    ids=lambda algorithm: algorithm.name,
)
def test_a_valid_certificate_is_good_under_every_hash(
    answering: House, algorithm: hashes.HashAlgorithm
) -> None:
    certificate, _ = answering.issue("host")
    asked = question(certificate, answering.certificate(), algorithm)
    request = ocsp.load_der_ocsp_request(asked)
    answer = answering.status.answer(asked)
    response = ocsp.load_der_ocsp_response(answer.der)
    single = next(response.responses)
    assert single.certificate_status is GOOD
    assert single.serial_number == certificate.serial_number
    assert single.issuer_name_hash == request.issuer_name_hash
    assert single.issuer_key_hash == request.issuer_key_hash
    assert single.this_update_utc == response.produced_at_utc == answer.this_update
    assert single.next_update_utc == answer.next_update == single.this_update_utc + OCSP_LIFETIME
    assert answer.cacheable


def test_the_answer_names_its_responder_by_key_and_carries_its_certificate(house: House) -> None:
    responder = house.install_responder()
    certificate, _ = house.issue("host")
    response = house.ask(question(certificate, house.certificate()))
    own = responder.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert response.responder_key_hash == own.digest
    assert response.certificates == [responder]
    key = responder.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))


@pytest.mark.row("I5")
def test_a_revocation_shows_at_once_with_time_and_reason(answering: House) -> None:
    for reason in RevocationReason:
        certificate, enrollment = answering.issue(f"host {reason.value}")
        asked = question(certificate, answering.certificate())
        assert answering.ask(asked).certificate_status is GOOD
        answering.revoke(enrollment, reason)
        response = answering.ask(asked)
        assert response.certificate_status is REVOKED
        assert response.revocation_time_utc is not None
        assert response.revocation_time_utc <= answering.clock.now()
        found = response.revocation_reason
        assert (found.value if found else "unspecified") == reason.value


def test_an_expired_certificate_keeps_its_status(answering: House) -> None:
    alive, _ = answering.issue("alive")
    dead, enrollment = answering.issue("dead")
    answering.revoke(enrollment)
    answering.clock.offset += timedelta(days=366)
    answering.install_responder()
    assert answering.ask(question(alive, answering.certificate())).certificate_status is GOOD
    assert answering.ask(question(dead, answering.certificate())).certificate_status is REVOKED


def question_by_serial(house: House, serial: int) -> bytes:
    issuer = house.certificate()
    point = issuer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        hashlib.sha256(issuer.subject.public_bytes()).digest(),
        hashlib.sha256(point).digest(),
        serial,
        hashes.SHA256(),
    )
    return builder.build().public_bytes(Encoding.DER)


def test_a_serial_never_issued_is_unknown_and_not_cached(answering: House) -> None:
    for serial in (1, 2**158, 2**200):
        answer = answering.status.answer(question_by_serial(answering, serial))
        assert ocsp.load_der_ocsp_response(answer.der).certificate_status is UNKNOWN
        assert not answer.cacheable


@pytest.mark.row("INC-27", "I4")
def test_an_intent_is_unknown_until_its_certificate_is_stored(answering: House) -> None:
    failpoints.arm("intent-committed:1:raise")
    try:
        with pytest.raises(Fault):
            answering.issue("host")
    finally:
        failpoints.disarm()
    row = answering.store.read(lambda tx: certificates.page(tx, limit=1))[0]
    asked = question_by_serial(answering, int(row.serial_hex, 16))
    assert answering.ask(asked).certificate_status is UNKNOWN
    assert answering.ra.finish(ORIGIN) == 1
    assert answering.ask(asked).certificate_status is GOOD


@pytest.mark.row("I4")
def test_an_abandoned_intent_is_never_good_but_can_be_revoked(answering: House) -> None:
    failpoints.arm("intent-committed:1:raise")
    try:
        with pytest.raises(Fault):
            answering.issue("host")
    finally:
        failpoints.disarm()
    row = answering.store.read(lambda tx: certificates.page(tx, limit=1))[0]
    serial = int(row.serial_hex, 16)
    answering.clock.offset += timedelta(hours=25)
    answering.ra.finish(ORIGIN)
    assert answering.ask(question_by_serial(answering, serial)).certificate_status is UNKNOWN
    answering.revoke(row.enrollment, RevocationReason.KEY_COMPROMISE)
    assert answering.ask(question_by_serial(answering, serial)).certificate_status is REVOKED
    crl = parsed(answering.status.publish("issuing").der)
    assert crl.get_revoked_certificate_by_serial_number(serial) is not None


@pytest.mark.row("INC-27", "EST-185")
def test_every_certificate_is_good_the_moment_it_is_handed_out(answering: House) -> None:
    def work(index: int) -> ocsp.OCSPCertStatus:
        certificate, _ = answering.issue(f"host {index}")
        return answering.ask(question(certificate, answering.certificate())).certificate_status

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(work, range(100))) == {GOOD}


def test_the_servers_own_certificates_answer_like_all_others(house: House) -> None:
    responder = house.install_responder()
    tls, enrollment = house.issue("localhost", "_tls")
    for certificate in (responder, tls):
        assert house.ask(question(certificate, house.certificate())).certificate_status is GOOD
    house.revoke(enrollment)
    assert house.ask(question(tls, house.certificate())).certificate_status is REVOKED


@pytest.mark.parametrize("length", [1, 16, 32, 33, 128])
def test_rfc9654_a_nonce_comes_back_and_forbids_caching(answering: House, length: int) -> None:
    certificate, _ = answering.issue("host")
    nonce = random.Random(length).randbytes(length)
    answer = answering.status.answer(question(certificate, answering.certificate(), nonce=nonce))
    response = ocsp.load_der_ocsp_response(answer.der)
    assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == nonce
    assert not answer.cacheable


@pytest.mark.parametrize("length", [0, 129, 200])
def test_rfc9654_an_empty_or_long_nonce_is_malformed(answering: House, length: int) -> None:
    certificate, _ = answering.issue("host")
    asked = question(certificate, answering.certificate(), nonce=bytes(length))
    assert answering.ask(asked).response_status is MALFORMED


def test_rfc6960_4_1_2_only_critical_extensions_must_be_understood(answering: House) -> None:
    certificate, _ = answering.issue("host")
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        certificate, answering.certificate(), hashes.SHA256()
    )
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    for critical, status in ((False, ocsp.OCSPResponseStatus.SUCCESSFUL), (True, MALFORMED)):
        asked = builder.add_extension(strange, critical=critical).build()
        assert answering.ask(asked.public_bytes(Encoding.DER)).response_status is status


def test_another_ca_gets_unauthorized_even_with_the_same_name(
    answering: House, tmp_path: Path
) -> None:
    (tmp_path / "twin").mkdir()
    twin = build(tmp_path / "twin")
    certificate, _ = twin.issue("host")
    assert twin.certificate().subject == answering.certificate().subject
    for issuer in (twin.certificate(), answering.root):
        asked = question(certificate, issuer)
        assert answering.ask(asked).response_status is UNAUTHORIZED
    twin.store.close()


def test_without_a_responder_in_force_the_answer_is_try_later(house: House) -> None:
    certificate, _ = house.issue("host")
    asked = question(certificate, house.certificate())
    assert house.ask(asked).response_status is TRY_LATER
    responder = house.install_responder()
    house.clock.offset = responder.not_valid_after_utc - house.clock.now() - timedelta(seconds=60)
    answer = house.status.answer(asked)
    assert answer.next_update == responder.not_valid_after_utc
    house.clock.offset += timedelta(seconds=61)
    assert house.ask(asked).response_status is TRY_LATER


def test_only_a_delegated_certificate_becomes_responder(house: House) -> None:
    key = generate_key(KeyType.EC_P256)
    responder, _ = house.issue("responder", "_ocsp-issuing", key)
    device_key = generate_key(KeyType.EC_P256)
    device, _ = house.issue("device", "device", device_key)
    for certificate, its_key in (
        (responder, device_key),
        (device, device_key),
        (house.certificate(), house.keys["issuing"]),
    ):
        with pytest.raises(Fault):
            house.status.use_responder("issuing", certificate, its_key)
    house.status.use_responder("issuing", responder, key)


def test_a_responder_is_replaced_while_others_ask(answering: House) -> None:
    certificate, _ = answering.issue("host")
    asked = question(certificate, answering.certificate())
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(answering.ask, asked) for _ in range(100)]
        newest = answering.install_responder()
        assert {answer.result().certificate_status for answer in answers} == {GOOD}
    assert answering.ask(asked).certificates == [newest]


# -- several certificates in one request -----------------------------------------------------------


def joint_question(house: House, *serials: int) -> str:
    """Let openssl ask about several certificates at once; return the path of the request."""
    issuer = house.write_pem("issuer.pem", house.certificate())
    file = str(house.directory / "joint.req")
    asked = [part for serial in serials for part in ("-serial", str(serial))]
    run("openssl", "ocsp", "-issuer", issuer, *asked, "-no_nonce", "-reqout", file)
    return file


def test_rfc6960_4_2_2_3_each_certificate_of_a_request_gets_its_answer(answering: House) -> None:
    good, _ = answering.issue("good")
    revoked, enrollment = answering.issue("revoked")
    answering.revoke(enrollment)
    serials = (good.serial_number, revoked.serial_number, 4711, good.serial_number)
    request = Path(joint_question(answering, *serials)).read_bytes()
    answer = answering.status.answer(request)
    response = ocsp.load_der_ocsp_response(answer.der)
    said = [(one.serial_number, one.certificate_status) for one in response.responses]
    assert said == list(zip(serials, (GOOD, REVOKED, UNKNOWN, GOOD), strict=True))
    assert not answer.cacheable
    lint("lint_ocsp_response", "lint", answering.write_der("joint.resp", answer.der))


@pytest.mark.parametrize(
    ("count", "status"), [(10, ocsp.OCSPResponseStatus.SUCCESSFUL), (11, MALFORMED)]
)
def test_ten_certificates_at_once_are_enough(
    answering: House, count: int, status: ocsp.OCSPResponseStatus
) -> None:
    request = Path(joint_question(answering, *range(1, count + 1))).read_bytes()
    assert answering.ask(request).response_status is status


def test_certificates_of_two_issuers_cannot_share_a_request(tmp_path: Path) -> None:
    house = build(tmp_path, names=("issuing", "second"))
    house.install_responder()
    house.install_responder("second")
    issuers = [house.write_pem(f"{n}.pem", house.certificate(n)) for n in ("issuing", "second")]
    file = str(tmp_path / "mixed.req")
    asked = [part for issuer in issuers for part in ("-issuer", issuer, "-serial", "1")]
    run("openssl", "ocsp", *asked, "-no_nonce", "-reqout", file)
    assert house.ask(Path(file).read_bytes()).response_status is UNAUTHORIZED
    house.store.close()


# -- judged by others ------------------------------------------------------------------------------


@pytest.mark.row("INC-29")
def test_openssl_gnutls_and_pkilint_accept_every_kind_of_answer(answering: House) -> None:
    issuer = answering.write_pem("issuer.pem", answering.certificate())
    trust = answering.write_pem("trust.pem", answering.certificate(), answering.root)
    states = {"good": "good", "revoked": "revoked"}
    for name, state in states.items():
        certificate, enrollment = answering.issue(name)
        if state == "revoked":
            answering.revoke(enrollment, RevocationReason.KEY_COMPROMISE)
        request, response = (str(answering.directory / f"{name}.{kind}") for kind in ("q", "a"))
        leaf = answering.write_pem(f"{name}.pem", certificate)
        command = ("openssl", "ocsp", "-issuer", issuer, "-cert", leaf)
        run(*command, "-reqout", request)
        der = answering.status.answer(Path(request).read_bytes()).der
        answering.write_der(f"{name}.a", der)
        said = run(*command, "-no_nonce", "-respin", response, "-CAfile", trust)
        assert "Response verify OK" in said
        assert f"{leaf}: {state}" in said
        said = run("ocsptool", "-e", "--load-response", response, "--load-trust", trust)
        assert "Success" in said
        lint("lint_ocsp_response", "lint", response)
        without_nonce = answering.status.answer(question(certificate, answering.certificate()))
        lint("lint_ocsp_response", "lint", answering.write_der("plain.a", without_nonce.der))


# -- garbage ---------------------------------------------------------------------------------------


def test_garbage_is_malformed_and_never_an_exception(answering: House) -> None:
    certificate, _ = answering.issue("host")
    asked = question(certificate, answering.certificate())
    for garbage in (
        b"",
        b"\x30",
        b"\x30\x00",
        b"\x05\x00",
        b"\x30\x80\x00\x00",
        asked + b"\x00",
        asked[:-1],
        b"\x30\x84\xff\xff\xff\xff" + asked,
        b"\x30" * 4000,
        bytes.fromhex("30023000"),
        bytes.fromhex("300430023000"),
        bytes.fromhex("30043002a000"),
        certificate.public_bytes(Encoding.DER),
    ):
        assert answering.ask(garbage).response_status is MALFORMED


def test_a_request_over_four_kibibytes_is_malformed(answering: House) -> None:
    certificate, _ = answering.issue("host")
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        certificate, answering.certificate(), hashes.SHA256()
    )
    for size, status in ((3000, ocsp.OCSPResponseStatus.SUCCESSFUL), (4096, MALFORMED)):
        ballast = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(size))
        asked = builder.add_extension(ballast, critical=False).build()
        assert answering.ask(asked.public_bytes(Encoding.DER)).response_status is status


def test_only_version_1_is_understood_and_a_requestor_may_name_itself(answering: House) -> None:
    certificate, _ = answering.issue("host")
    outer = asn1.decode_der(asn1.TLV, question(certificate, answering.certificate()))
    requests = bytes(asn1.decode_der(asn1.TLV, bytes(outer.data)).data)
    requestor = bytes.fromhex("a1078105") + b"a@b.c"
    for before, status in (
        (bytes.fromhex("a003020100"), ocsp.OCSPResponseStatus.SUCCESSFUL),
        (bytes.fromhex("a003020101"), MALFORMED),
        (requestor, ocsp.OCSPResponseStatus.SUCCESSFUL),
        (bytes.fromhex("a003020100") + requestor, ocsp.OCSPResponseStatus.SUCCESSFUL),
        (requestor + bytes.fromhex("a003020100"), MALFORMED),
    ):
        assert answering.ask(sequence(sequence(before + requests))).response_status is status


def sequence(content: bytes) -> bytes:
    length = (len(content),) if len(content) < 128 else (0x81, len(content))
    return bytes((0x30, *length)) + content


def mutants(seed: bytes, count: int, dice: random.Random) -> Iterator[bytes]:
    """Yield `count` damaged copies of `seed`: bytes changed, cut, doubled, inserted."""
    for _ in range(count):
        mutant = bytearray(seed)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(mutant) or 1)
            match dice.randrange(4):
                case 0 if mutant:
                    mutant[at] = dice.randrange(256)
                case 1:
                    del mutant[at : at + dice.randint(1, 8)]
                case 2:
                    mutant[at:at] = mutant[at : at + dice.randint(1, 16)]
                case _:
                    mutant[at:at] = dice.randbytes(dice.randint(1, 4))
        yield bytes(mutant)


@pytest.mark.row("INC-9")
def test_two_thousand_mutations_never_raise_and_never_make_good_of_another_serial(
    answering: House,
) -> None:
    certificate, _ = answering.issue("host")
    asked = question(certificate, answering.certificate(), nonce=bytes(16))
    dice = random.Random(6960)
    seen = Counter[str]()
    for mutant in mutants(asked, 2000, dice):
        try:
            response = answering.ask(mutant)
        except Error as error:
            pytest.fail(f"{error!r} for {mutant.hex()}")
        seen[response.response_status.name] += 1
        if response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL:
            for single in response.responses:
                is_ours = single.serial_number == certificate.serial_number
                assert (single.certificate_status is GOOD) == is_ours
    assert set(seen) <= {"SUCCESSFUL", "MALFORMED_REQUEST", "UNAUTHORIZED"}
    assert seen["MALFORMED_REQUEST"] > 500
    assert seen["SUCCESSFUL"] > 0


def test_the_programs_that_judge_are_installed() -> None:
    for program in ("openssl", "ocsptool", "certtool"):
        assert shutil.which(program), f"{program} is missing: apt install openssl gnutls-bin"
