"""What CRL, delta CRL and OCSP tell of a hold and of its end (RFC 5280 §5.2.4, §5.3.1)."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver.ca.keys import generate_key
from estserver.model import (
    KeyType,
)
from estserver.own_certificates import ocsp_profile
from estserver.status.answers import FRESH_SECONDS
from tests.hold.acts import FOR_GOOD, GOOD, HOLD, REMOVED, REVOKED, reasons, release, revoke
from tests.status_driver import House, question, run


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
