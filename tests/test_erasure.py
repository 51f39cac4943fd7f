"""Who asks to be forgotten: all that names somebody goes, by whatever door it came; proofs stay."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509

from estserver.campaigns import Campaigns
from estserver.errors import Conflict, Unavailable
from estserver.invitations import Handover
from estserver.journal import Reading
from estserver.model import Door, RevocationReason
from estserver.protocols.acme import tables
from estserver.protocols.acme.erasure import ACMEMemory
from estserver.protocols.acme.tidying import Tidying
from estserver.retention import Purge, Purged
from estserver.server import open_purge
from estserver.settings import Retention
from estserver.store import Transaction, audit_checks
from estserver.store.campaigns import Campaign
from estserver.store.purging import ERASURE, PURGED
from estserver.store.selection import Selection
from estserver.store.tables import enrollments
from estserver.verification import verify
from tests.live import ORIGIN, Answer, Holder, Live, basic, make_csr, new_key
from tests.protocols.acme.wire import Client, registered
from tests.web.test_renewal import certified

MARK = "quargel"
"""Stands in everything that the tests' person says, types or is called."""
NAME, EMAIL, HOST = "Quargel Zwiebelturm", "quargel@example.ac.jp", "quargel.example.org"


def traces(live: Live) -> set[str]:
    """Name the columns of all tables in which the person is found."""

    def read(tx: Transaction) -> set[str]:
        connection = tx.connection
        found = set()
        for table in sa.inspect(connection).get_table_names():
            for row in connection.exec_driver_sql(f"SELECT * FROM {table}").mappings():
                for column, value in row.items():
                    raw = bytes(value) if isinstance(value, bytes | memoryview) else value
                    text = raw if isinstance(raw, bytes) else str(raw).encode()
                    if MARK.encode() in text.lower():
                        found.add(f"{table}.{column}")
        return found

    return live.core.store.read(read)


@dataclass(slots=True)
class Person:
    """Somebody who has used every door, and what came of it."""

    live: Live
    numbers: list[str] = field(default_factory=list)
    serials: list[int] = field(default_factory=list)

    def invite(self, profile: str, **fields: object) -> Handover:
        """Register the person or something that is called like it."""
        handover = self.live.invite(profile, **fields)
        self.numbers.append(handover.invitation.number)
        return handover

    def holds(self, certificate: x509.Certificate) -> None:
        self.serials.append(certificate.serial_number)

    def come_by_web(self) -> Holder:
        doors = frozenset({Door.WEB, Door.EST})
        handover, holder = certified(
            self.live, name=NAME, email=EMAIL, doors=doors, units=2, mail=True
        )
        self.numbers.append(handover.invitation.number)
        self.holds(holder.certificate)
        return holder

    def renew(self, holder: Holder) -> None:
        csr = make_csr(new_key(), subject=holder.certificate.subject, names=_names(holder))
        answer = ask(self.live, "simplereenroll", csr, holder=holder)
        assert answer.status == 200, answer.body
        self.holds(answer.certificates()[0])

    def come_by_est(self) -> None:
        handover = self.invite("device", device_id="quargel-printer")
        # What is refused is written down with what was asked for.
        csr = make_csr(new_key(), subject="quargel-scanner")
        assert ask(self.live, "simpleenroll", csr, handover).status == 403
        self.holds(self.live.enroll(handover).certificate)

    def wait_for_approval(self) -> None:
        for number, decision in enumerate((None, "quargel has left us")):
            handover = self.invite("device", device_id=f"quargel-{number}", approval=True)
            assert ask(self.live, "simpleenroll", make_csr(new_key()), handover).status == 202
            if decision is not None:
                ra = self.live.core.ra
                enrollment, _ = ra.of_invitation(handover.invitation.number)[0]
                ra.reject(enrollment.id, reason=decision, by="test", origin=ORIGIN)

    def come_by_acme(self) -> None:
        client = registered(self.live, HOST, units=9, email=EMAIL)
        assert client.invitation is not None
        self.numbers.append(client.invitation)
        assert client.post(client.kid or "", {"contact": [f"mailto:{EMAIL}"]}).status == 200
        self.holds(client.issue(HOST).leaf)
        # One order is forgotten before it is asked for; its audit rows are not.
        assert client.order(HOST).status == 201
        self.live.clock.advance(timedelta(days=8))
        settings = self.live.settings
        acme = settings.acme.model_copy(update={"order_retention": timedelta(0)})
        settings = settings.model_copy(update={"acme": acme})
        Tidying(replace(self.live.server.services, settings=settings)).tidy()
        assert client.order(HOST).status == 201

    def be_campaigned_for(self) -> None:
        day = self.live.clock.now() + timedelta(days=5)
        campaign = Campaign("spring", self.live.clock.now(), day, None, "test", None)
        for number in self.numbers:
            Campaigns(self.live.core.store, self.live.clock).start(
                campaign, Selection(invitation=number), mail=True, origin=ORIGIN
            )

    def be_revoked(self) -> None:
        for serial in self.serials:
            record = self.live.core.ra.find(serial)
            self.live.core.ra.revoke(
                record.enrollment,
                reason=RevocationReason.AFFILIATION_CHANGED,
                comment=f"{NAME} asked by {EMAIL}",
                by="test",
                origin=ORIGIN,
            )


def trail(live: Live) -> list[dict[str, Any]]:
    return live.core.store.read(audit_checks.events)


class _Interrupted(ACMEMemory):
    """The database goes away while it erases."""

    def forget_registrations(self, tx: Transaction, numbers: Sequence[str]) -> None:
        super().forget_registrations(tx, numbers)
        raise Unavailable("the database is busy", retry_after=timedelta(seconds=1))


def left_over(tx: Transaction, numbers: list[str]) -> tuple[set[str], list[int]]:
    """Return the states of the enrollments, and how many rows ACME still has."""
    states = sa.select(enrollments.c.state).where(enrollments.c.invitation.in_(numbers))
    kept = (tables.accounts, tables.orders, tables.authorizations, tables.challenges)
    counts = [sa.select(sa.func.count()).select_from(table) for table in kept]
    return (
        set(tx.connection.scalars(states)),
        [tx.connection.execute(count).scalar_one() for count in counts],
    )


def erase_all(person: Person) -> list[Purged]:
    purge = open_purge(person.live.core)
    return [purge.erase(number, by="test", origin=ORIGIN) for number in person.numbers]


def _names(holder: Holder) -> tuple[x509.GeneralName, ...]:
    san = x509.SubjectAlternativeName
    return tuple(holder.certificate.extensions.get_extension_for_class(san).value)


def ask(
    live: Live,
    operation: str,
    csr: bytes,
    handover: Handover | None = None,
    holder: Holder | None = None,
) -> Answer:
    credentials = {} if handover is None else {"Authorization": basic(handover)}
    return live.request(
        "POST",
        f"/.well-known/est/{operation}",
        body=base64.b64encode(csr),
        headers={"Content-Type": "application/pkcs10", **credentials},
        holder=holder,
    )


@pytest.fixture
def person(both_live: Live) -> Person:
    """Somebody of whom the database is full: SQLite's, then PostgreSQL's."""
    found = Person(both_live)
    # First, since the clock is moved in it.
    found.come_by_acme()
    found.renew(found.come_by_web())
    found.come_by_est()
    found.wait_for_approval()
    found.be_campaigned_for()
    return found


@pytest.mark.timeout(120)
def test_who_asks_to_be_forgotten_is_and_the_proofs_hold(person: Person) -> None:
    live = person.live
    bystander = live.enroll(live.invite("device", device_id="bystander"))
    with pytest.raises(Conflict, match="still valid"):
        open_purge(live.core).erase(person.numbers[0], by="test", origin=ORIGIN)
    person.be_revoked()
    before = traces(live)
    assert before >= {
        *("acme_accounts.contacts", "acme_orders.identifiers", "acme_authorizations.value"),
        *("audit_events.detail", "certificate_bytes.der", "certificates.comment"),
        *("enrollments.reason", "invitations.email", "outbox.recipient", "search_terms.term"),
    }
    # Killed half-way, it is run again.
    halfway = Purge(live.core.store, live.clock, Retention(), [_Interrupted()])
    with pytest.raises(Unavailable):
        halfway.erase(person.numbers[-1], by="test", origin=ORIGIN)
    assert verify(live.core).problems == ()
    acme = live.core.store.read(lambda tx: ACMEMemory().actors(tx, person.numbers[0]))
    assert len(acme) == 1
    done = erase_all(person)
    assert traces(live) == set()
    assert not [row for row in trail(live) if row["actor"] in acme]
    assert live.core.store.read(partial(left_over, numbers=person.numbers)) == (
        {"issued", "rejected"},
        [0, 0, 0, 0],
    )
    assert sum(one.certificates for one in done) == len(person.serials)
    assert all(one.events > 0 for one in done[:-1])
    assert sum(one.letters for one in done) > 0

    verified = verify(live.core)
    assert (verified.problems, verified.certificates > len(person.serials)) == ((), True)
    last = {}
    for line in (reading := Reading(live.directory / "journal")):
        if line.entry.kind == "registration":
            last[line.entry.fields["number"]] = line.entry.fields["name"]
    assert {last[number] for number in person.numbers} == {PURGED}
    assert reading.problems == []
    for serial in person.serials:
        record = live.core.ra.find(serial)
        assert (record.subject, record.reason) == (PURGED, RevocationReason.AFFILIATION_CHANGED)
    crl = x509.load_der_x509_crl(live.core.status.publish("issuing").der)
    assert {entry.serial_number for entry in crl} == set(person.serials)
    assert live.core.ra.find(bystander.certificate.serial_number).subject == "CN=bystander"
    erased = [row["object"] for row in trail(live) if row["event"] == ERASURE]
    assert erased == [f"invitation {number}" for number in person.numbers]
    assert erase_all(person) == [Purged(0, 1, 0, 0)] * len(done)
    assert verify(live.core).problems == ()
    if (file := live.settings.database_file) is not None:
        # Nor is it in the pages that SQLite has left, once the write-ahead file is taken in.
        live.restart()
        assert MARK.encode() not in file.read_bytes().lower()


@pytest.mark.timeout(120)
def test_what_nobody_asked_to_forget_is_forgotten_when_its_time_is_over(person: Person) -> None:
    live = person.live
    live.clock.advance(timedelta(days=395 + 740))
    Purge(live.core.store, live.clock, Retention(), [ACMEMemory()]).run(by="test", origin=ORIGIN)
    assert traces(live) == set()
    assert verify(live.core).problems == ()


@pytest.mark.timeout(120)
def test_accounts_that_nobody_was_invited_to_are_forgotten_when_nothing_hangs_on_them(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("[acme]\nrequire_eab = false\n")
    contact = [f"mailto:{EMAIL}"]
    for names in ((), (HOST,)):
        client = Client(live)
        assert client.register(contact=contact).status == 201
        for name in names:
            assert client.order(name).status == 201
    purge = Purge(live.core.store, live.clock, Retention(), [ACMEMemory()])
    live.clock.advance(timedelta(days=700))
    purge.run(by="test", origin=ORIGIN)
    assert traces(live) >= {"acme_accounts.contacts", "acme_orders.identifiers"}
    # Orders that came to nothing end by themselves.
    Tidying(live.server.services).tidy()
    live.clock.advance(timedelta(days=500))
    purge.run(by="test", origin=ORIGIN)
    assert traces(live) == set()
    assert verify(live.core).problems == ()
