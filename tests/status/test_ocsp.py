"""OCSP: every status, every responder, several certificates in one request."""

import hashlib
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from estserver import failpoints
from estserver.ca.keys import generate_key
from estserver.errors import Fault
from estserver.model import KeyType, RevocationReason
from estserver.status import OCSP_LIFETIME
from estserver.store import certificates
from tests.live import ORIGIN
from tests.status.judging import GOOD, MALFORMED, REVOKED, UNAUTHORIZED, UNKNOWN, lint, parsed
from tests.status_driver import House, build, question, run

TRY_LATER = ocsp.OCSPResponseStatus.TRY_LATER


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


def test_the_programs_that_judge_are_installed() -> None:
    for program in ("openssl", "ocsptool", "certtool"):
        assert shutil.which(program), f"{program} is missing: apt install openssl gnutls-bin"
