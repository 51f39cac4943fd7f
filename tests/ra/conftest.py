"""Cores in process whose databases are judged after each test; failpoints stay unarmed."""

import hashlib
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from cryptography import x509

from estserver import failpoints
from estserver.store import Transaction, audit_checks
from estserver.store.tables import certificate_bytes, enrollments
from estserver.store.tables import certificates as certificate_rows
from tests.parts import Parts
from tests.ra.street import MakeParts


@pytest.fixture(autouse=True)
def _unarmed() -> Iterator[None]:
    failpoints.disarm()
    yield
    failpoints.disarm()


@pytest.fixture
def parts(make_parts: MakeParts) -> Iterator[Parts]:
    """Return a core, and judge its database after the test."""
    made = make_parts()
    yield made
    judge(made)


@pytest.fixture
def both(make_database: Callable[[], str], make_parts: MakeParts) -> Iterator[Parts]:
    """The same on SQLite and on PostgreSQL."""
    made = make_parts(make_database())
    yield made
    judge(made)


def judge(parts: Parts) -> None:
    def look(tx: Transaction) -> list[str]:
        return list(audit_checks.broken_links(tx.connection))

    assert parts.store.read(look) == []
    row_of = certificate_rows.c.enrollment
    joined = (
        sa.select(certificate_rows, certificate_bytes, enrollments.c.state.label("asked"))
        .join(certificate_bytes, certificate_bytes.c.enrollment == row_of)
        .join(enrollments, enrollments.c.id == row_of)
    )
    for row in parts.store.read(lambda tx: tx.connection.execute(joined).all()):
        assert (row.der is None) == (row.sha256 is None)
        if row.der is not None:
            der = bytes(row.der)
            assert hashlib.sha256(der).digest() == bytes(row.sha256)
            assert x509.load_der_x509_certificate(der).tbs_certificate_bytes == bytes(row.tbs)
            assert row.state in {"valid", "revoked"}
            assert row.asked == "issued"
        else:
            assert row.state in {"issuing", "abandoned", "revoked"}
