"""What is on record of a certificate: revoked once, found, taken, its trail."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa
from cryptography import x509

from estserver.errors import Conflict, NotFound
from estserver.model import CertificateState, RevocationReason
from estserver.store.tables import audit_events
from tests.live import new_key
from tests.parts import ORIGIN, Parts, csr_of
from tests.ra.street import events, revoke


def test_revocation_happens_once_and_says_so(parts: Parts) -> None:
    issued = parts.enroll(parts.invite())
    record = parts.ra.revoke(
        issued.enrollment,
        reason=RevocationReason.AFFILIATION_CHANGED,
        comment="left",
        by="test",
        origin=ORIGIN,
    )
    assert (record.state, record.reason) == (
        CertificateState.REVOKED,
        RevocationReason.AFFILIATION_CHANGED,
    )
    with pytest.raises(Conflict, match="already"):
        revoke(parts, issued, RevocationReason.KEY_COMPROMISE)
    with pytest.raises(NotFound):
        revoke(parts, replace(issued, enrollment="nothing"))
    again = parts.ra.find(int(record.serial_hex, 16))
    assert (again.reason, again.revoked_at) == (record.reason, record.revoked_at)


def test_twenty_revocations_at_once_are_one(both: Parts) -> None:
    issued = both.enroll(both.invite())

    def go(_: int) -> bool:
        try:
            revoke(both, issued)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(go, range(20))) == 1
    assert events(both).count("certificate.revoked") == 1


def test_what_is_issued_can_be_found(parts: Parts) -> None:
    handover = parts.invite()
    issued = parts.enroll(handover)
    certificate = x509.load_der_x509_certificate(issued.der)
    record = parts.ra.find(certificate.serial_number)
    assert record.enrollment == issued.enrollment
    assert parts.ra.certificate_of(issued.enrollment) == (record, issued.der)
    assert [r for _, r in parts.ra.of_invitation(handover.invitation.number)] == [record]
    assert parts.ra.certificate_of("nothing") is None
    for serial in (1, 1 << 200):
        with pytest.raises(NotFound):
            parts.ra.find(serial)
    assert parts.ra.issuer_of("device") == "issuing"


def test_that_the_owner_holds_it_is_noted_once(parts: Parts) -> None:
    issued = parts.enroll(parts.invite())
    for _ in range(2):
        parts.ra.mark_taken(issued.enrollment, by="owner", origin=ORIGIN)
    assert events(parts).count("certificate.taken") == 1
    assert parts.ra.enrollment(issued.enrollment).taken_at is not None


@pytest.mark.row("EST-203")
def test_an_issuance_leaves_its_trail(parts: Parts) -> None:
    handover, key = parts.invite(), new_key()
    issued = parts.enroll(handover, key)
    query = sa.select(audit_events).order_by(audit_events.c.id)
    rows = parts.store.read(lambda tx: tx.connection.execute(query).all())
    assert [row.event for row in rows] == [
        "invitation.issued",
        "certificate.intended",
        "certificate.issued",
    ]
    assert rows[1].actor == f"invitation {handover.invitation.number}"
    assert rows[1].object == f"enrollment {issued.enrollment}"
    assert csr_of(key).spki_sha256.hex() in rows[1].detail
    assert hashlib.sha256(issued.der).hexdigest() in rows[2].detail


def test_identifiers_sort_by_time(parts: Parts) -> None:
    handover = parts.invite(units=30)
    made = [parts.enroll(handover).enrollment for _ in range(20)]
    assert made == sorted(made)
    assert len(set(made)) == 20
