"""CRLs: what stands in them, when a new one is made, and that none is lost."""

import dataclasses
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from estserver.ca.keys import generate_key
from estserver.errors import Fault, NotFound, Unavailable
from estserver.model import KeyType, RevocationReason
from estserver.status import CRLAge
from estserver.store import audit_checks, crls, revocations
from tests.status.judging import lint, parsed
from tests.status_driver import LIFETIME, FickleKey, House, build, run


def number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


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
