"""Databases that lived with an older schema: what stands in them stays, and is found."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from estserver.store import Store, Transaction, certificates, migrate
from estserver.store import migrate as migrating
from estserver.store.tables import campaign_members, campaigns, enrollments
from estserver.store.tables import certificates as certificate_rows
from tests.live import MovableClock

_MIGRATIONS = Path(migrating.__code__.co_filename).parent / "migrations"
_KEY = bytes(range(32))


@pytest.fixture
def aged(make_database: Callable[[], str], clock: MovableClock) -> Iterator[Store]:
    with closing(Store(make_database(), clock)) as store:
        with store.engine.connect() as connection:
            connection.execution_options(estserver_write=True)
            with connection.begin():
                config = Config()
                config.set_main_option("script_location", str(_MIGRATIONS))
                config.attributes["connection"] = connection
                command.upgrade(config, "0011")
        yield store


def _certified(tx: Transaction) -> None:
    """Put two certificates of one key, and a campaign for both, into any schema."""
    tx.connection.execute(
        sa.insert(campaigns).values(name="early", begins_at=0, renew_by=1, created_by="officer")
    )
    for name in ("a", "b"):
        common = {
            "spki_sha256": _KEY,
            "profile": "device",
            "via": "est",
            "created_at": tx.at,
        }
        tx.connection.execute(
            sa.insert(enrollments).values(
                id=name,
                correlation=name,
                authority_key=f"order:{name}",
                state="issued",
                applicant="device",
                subject=b"",
                names=b"",
                spki=b"",
                proof="none",
                **common,
            )
        )
        tx.connection.execute(
            sa.insert(certificate_rows).values(
                enrollment=name,
                issuer="issuing",
                serial=f"{ord(name):040x}",
                subject="CN=device",
                names=["dns:device.example.org"],
                state="valid",
                not_before=tx.at,
                not_after=tx.at + 1,
                sha256=name.encode() * 32,
                **common,
            )
        )
        tx.connection.execute(sa.insert(campaign_members).values(enrollment=name, campaign="early"))


def _everything(tx: Transaction) -> list[list[tuple[object, ...]]]:
    tables = (enrollments, certificate_rows, campaign_members)
    return [
        [tuple(row) for row in tx.connection.execute(sa.select(table).order_by(*table.primary_key))]
        for table in tables
    ]


def _refused(store: Store, statement: sa.Update | sa.Delete) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        store.write(lambda tx: tx.change(statement))


def test_what_was_issued_before_stays_and_is_found(aged: Store) -> None:
    aged.write(_certified)
    before = aged.read(_everything)
    migrate(aged)
    assert aged.read(_everything) == before
    found = aged.read(lambda tx: certificates.by_spki(tx, _KEY))
    assert sorted(record.enrollment for record in found) == ["a", "b"]
    (record,) = aged.read(lambda tx: certificates.by_serial(tx, ord("b")))
    assert record.enrollment == "b"


def test_members_of_campaigns_still_need_their_certificate(aged: Store) -> None:
    aged.write(_certified)
    migrate(aged)
    _refused(aged, sa.delete(certificate_rows).where(certificate_rows.c.enrollment == "a"))


def test_certificates_still_need_their_enrollment(aged: Store) -> None:
    aged.write(_certified)
    migrate(aged)
    _refused(aged, sa.update(enrollments).where(enrollments.c.id == "a").values(id="c"))


def test_one_question_has_one_enrollment(aged: Store) -> None:
    aged.write(_certified)
    migrate(aged)
    second = sa.update(enrollments).where(enrollments.c.id == "b")
    _refused(aged, second.values(correlation="a"))
    # The same words with another key are another question, but not of an order.
    both = sa.update(enrollments).values(spki_sha256=sa.cast(enrollments.c.id, sa.LargeBinary))
    assert aged.write(lambda tx: tx.change(both)) == 2
    assert aged.write(lambda tx: tx.change(second.values(correlation="a"))) == 1
    _refused(aged, sa.update(enrollments).values(correlation="order:1"))


def test_a_serial_is_given_once_by_each_issuer(aged: Store) -> None:
    aged.write(_certified)
    migrate(aged)
    same = sa.update(certificate_rows).where(certificate_rows.c.enrollment == "a")
    _refused(aged, same.values(serial=f"{ord('b'):040x}"))
    other = {"serial": f"{ord('b'):040x}", "issuer": "another"}
    assert aged.write(lambda tx: tx.change(same.values(**other))) == 1
    assert len(aged.read(lambda tx: certificates.by_serial(tx, ord("b")))) == 2


def test_what_is_no_certificate_is_nobodys(aged: Store) -> None:
    migrate(aged)
    for octets in (b"", b"\x30", b"\x30\x03\x02\x01\x01", bytes(700)):
        assert aged.read(partial(certificates.by_der, der=octets)) is None
