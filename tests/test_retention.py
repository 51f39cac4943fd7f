"""What is erased when its time is over, what stays as proof, and that the rest still fits."""

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.cli import main
from estserver.errors import Conflict, NotFound
from estserver.model import Door, RevocationReason
from estserver.protocols.acme.erasure import ACMEMemory
from estserver.retention import Purge, Purged
from estserver.settings import Retention
from estserver.store import Transaction
from estserver.store.audit_checks import PURGE
from estserver.store.purging import PURGED
from estserver.store.tables import audit_events
from estserver.verification import verify
from tests.live import ORIGIN, Holder, Live

_DOORS = frozenset({Door.WEB, Door.EST})
_NOTHING = Purged(0, 0, 0, 0)


def purge(live: Live, rules: Retention | None = None) -> Purge:
    return Purge(live.core.store, live.clock, rules or Retention(), [ACMEMemory()])


def run(live: Live, rules: Retention | None = None) -> Purged:
    return purge(live, rules).run(by="test", origin=ORIGIN)


def enroll(live: Live) -> tuple[str, Holder]:
    handover = live.invite("person", doors=_DOORS, name="Taro Yamada")
    return handover.invitation.number, live.enroll(handover)


def everything(live: Live) -> bytes:
    """All that the database says, as one heap of octets."""

    def read(tx: Transaction) -> bytes:
        connection = tx.connection
        names = sa.inspect(connection).get_table_names()
        rows = [connection.exec_driver_sql(f"SELECT * FROM {name}").all() for name in names]
        return b"".join(
            value if isinstance(value, bytes) else str(value).encode()
            for table in rows
            for row in table
            for value in row
        )

    return live.core.store.read(read)


def test_nothing_is_erased_before_its_time(live: Live) -> None:
    _, holder = enroll(live)
    live.clock.advance(timedelta(days=395 + 730))
    done = run(live, Retention(mail=timedelta(days=9999), audit=timedelta(days=9999)))
    # Our own TLS and responder certificates ended earlier.
    assert (done.registrations, done.letters, done.events) == (0, 0, 0)
    assert live.core.ra.find(holder.certificate.serial_number).subject != PURGED


def test_names_go_and_proofs_stay(live: Live) -> None:
    _, holder = enroll(live)
    live.clock.advance(timedelta(days=395 + 740))
    done = run(live)
    # Our own TLS and responder certificates ended too.
    assert done.certificates >= 1
    assert done.registrations == 1
    assert done.events > 0
    heap = everything(live)
    assert b"Taro" not in heap
    assert b"taro@" not in heap
    assert holder.certificate.public_bytes(Encoding.DER) not in heap
    record = live.core.ra.find(holder.certificate.serial_number)
    assert record.subject == PURGED
    assert record.sha256 is not None
    assert run(live) == _NOTHING


def test_what_is_left_still_verifies(live: Live) -> None:
    enroll(live)
    live.clock.advance(timedelta(days=395 + 740))
    run(live)
    assert verify(live.core).problems == ()


def test_the_trail_says_that_and_how_much_was_erased(live: Live) -> None:
    enroll(live)
    live.clock.advance(timedelta(days=395 + 740))
    done = run(live)
    query = sa.select(audit_events.c.detail).where(audit_events.c.event == PURGE)
    rows = live.core.store.read(lambda tx: tx.connection.scalars(query).all())
    assert sum(json.loads(row)["rows"] for row in rows) == done.events > 0


def test_who_asks_is_erased_at_once_but_not_from_under_a_valid_certificate(live: Live) -> None:
    number, holder = enroll(live)
    with pytest.raises(Conflict, match="still valid"):
        purge(live).erase(number, by="test", origin=ORIGIN)
    record = live.core.ra.find(holder.certificate.serial_number)
    live.core.ra.revoke(
        record.enrollment,
        reason=RevocationReason.CESSATION_OF_OPERATION,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    assert purge(live).erase(number, by="test", origin=ORIGIN).certificates == 1
    heap = everything(live)
    assert b"Taro" not in heap
    assert b"taro@" not in heap
    assert verify(live.core).problems == ()
    with pytest.raises(NotFound):
        purge(live).erase("0000000000", by="test", origin=ORIGIN)


def test_the_command_erases_and_says_what_it_leaves(live: Live) -> None:
    number, _ = enroll(live)

    def command(*arguments: str) -> Result:
        configuration = str(live.directory / "estserver.toml")
        return CliRunner().invoke(main, ["--config", configuration, "purge", *arguments])

    assert json.loads(command("--json").stdout)["certificates"] == 0
    assert "Backups and journals" in command().stderr
    refused = command("--invitation", number)
    assert refused.exit_code == 1
    assert "still valid" in refused.stderr
