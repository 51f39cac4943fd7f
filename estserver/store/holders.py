"""Holders: a presented certificate's row together with the registration behind it."""

from collections.abc import Sequence

from estserver.model import CertificateRecord, Invitation
from estserver.store import certificates, registrations
from estserver.store.engine import Transaction

Holder = tuple[CertificateRecord | None, Invitation | None]


def find(tx: Transaction, ders: Sequence[bytes]) -> list[Holder]:
    """Find exactly these certificates, DER; None: unknown, or not of a registration."""
    records = certificates.by_ders(tx, ders)
    numbers = [record.invitation or "" if record else "" for record in records]
    found = registrations.by_numbers(tx, numbers)
    return [(record, found.get(number)) for record, number in zip(records, numbers, strict=True)]
