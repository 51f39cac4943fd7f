"""Renewal information and what replaces what: RFC 9773."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509

from estserver.errors import NotFound
from estserver.model import CertificateRecord, CertificateState
from estserver.protocols import Services
from estserver.protocols.acme import records
from estserver.protocols.acme.answers import Answer, rfc3339
from estserver.protocols.acme.keys import decode_base64url
from estserver.protocols.acme.problems import Identifier, malformed, unauthorized
from estserver.protocols.acme.records import Account
from estserver.store import Transaction, certificates

_ASK_AGAIN = timedelta(hours=6)
_MAX_ID = 128


@dataclass(frozen=True, slots=True)
class CertificateID:
    """What names a certificate: its authority key identifier and serial (RFC 9773 §4.1)."""

    key_identifier: bytes
    serial: int

    def __str__(self) -> str:
        """Return the text form; the serial keeps the octet that shows it is positive."""
        octets = self.serial.to_bytes(self.serial.bit_length() // 8 + 1)
        parts = (self.key_identifier, octets)
        return ".".join(base64.urlsafe_b64encode(one).decode().rstrip("=") for one in parts)


def read_certificate_id(text: object) -> CertificateID:
    """Read `base64url(AKI) "." base64url(serial)`. Raises Problem malformed."""
    if not isinstance(text, str) or len(text) > _MAX_ID or text.count(".") != 1:
        raise malformed("a certificate identifier is two parts of base64url with one dot")
    aki, serial = (decode_base64url(part, "the certificate identifier") for part in text.split("."))
    if not aki or not serial or serial[0] & 0x80:
        raise malformed("a certificate identifier needs a key identifier and a positive serial")
    found = CertificateID(aki, int.from_bytes(serial))
    if str(found) != text:
        raise malformed("the serial is not encoded as in the certificate")
    return found


class Predecessors:
    """Finds the certificate that an identifier means."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._issuers: Mapping[bytes, str] = {
            _subject_key_identifier(chain[0]): name for name, chain in services.chains.items()
        }

    def find(self, certificate_id: CertificateID) -> CertificateRecord:
        """Return the row of an issued certificate. Raises NotFound."""
        issuer = self._issuers.get(certificate_id.key_identifier)
        record = None
        if issuer is not None:
            record = self._services.store.read(
                lambda tx: certificates.by_issuer_serial(tx, issuer, certificate_id.serial)
            )
        if record is None or record.sha256 is None:
            raise NotFound("there is no such certificate")
        return record

    def require(self, text: object, account: Account, identifiers: Sequence[Identifier]) -> None:
        """Check that an order of `identifiers` may replace the certificate `text` names (§5).

        Raises Problem malformed, unauthorized; NotFound.
        """
        record = self.find(read_certificate_id(text))
        if self.account_of(record) != account.id:
            raise unauthorized("the certificate to be replaced is another account's")
        wanted = {f"{identifier.type}:{identifier.value}" for identifier in identifiers}
        if not wanted & set(record.names):
            raise malformed("the certificate to be replaced has none of these identifiers")

    def account_of(self, record: CertificateRecord) -> str | None:
        """Return the account whose order a certificate came from, None if it came otherwise."""

        def read(tx: Transaction) -> str | None:
            enrollment = certificates.enrollment(tx, record.enrollment)
            if enrollment is None or not enrollment.authority_key.startswith("order:"):
                return None
            order = records.order(tx, enrollment.authority_key.removeprefix("order:"))
            return None if order is None else order.account

        return self._services.store.read(read)

    def information(self, text: str) -> Answer:
        """Suggest when to renew a certificate: in the last third of its life (§4.2).

        At once where it is revoked.
        """
        record = self.find(read_certificate_id(text))
        life = record.not_after - record.not_before
        start = record.not_after - life / 3
        window = start, start + max(life / 24, timedelta(minutes=1))
        body: dict[str, object] = {}
        if record.state is CertificateState.REVOKED and record.revoked_at is not None:
            window = record.revoked_at - timedelta(hours=1), record.revoked_at
            if self._services.settings.acme.website is not None:
                body["explanationURL"] = self._services.settings.acme.website
        body["suggestedWindow"] = {"start": rfc3339(window[0]), "end": rfc3339(window[1])}
        return Answer(body, retry_after=int(_ASK_AGAIN.total_seconds()))


def _subject_key_identifier(certificate: x509.Certificate) -> bytes:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return extension.value.digest
