"""When a certificate should be renewed: what ACME (RFC 9773) and EST say alike."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from estserver.campaigns import Campaigns, RenewalWindow
from estserver.errors import BadInput, NotFound
from estserver.model import CertificateRecord, Clock
from estserver.steps import Steps, look, walk
from estserver.store import Store, certificates

ASK_AGAIN_SECONDS = 6 * 3600
_MAX_ID = 128


@dataclass(frozen=True, slots=True)
class CertificateID:
    """What names a certificate: its authority key identifier and serial."""

    key_identifier: bytes
    serial: int

    def __str__(self) -> str:
        """Return the text form; the serial keeps the octet that shows it is positive."""
        octets = self.serial.to_bytes(self.serial.bit_length() // 8 + 1)
        parts = (self.key_identifier, octets)
        return ".".join(base64.urlsafe_b64encode(one).decode().rstrip("=") for one in parts)


def read_certificate_id(text: object) -> CertificateID:
    """Read `base64url(AKI) "." base64url(serial)`. Raises BadInput."""
    if not isinstance(text, str) or len(text) > _MAX_ID or text.count(".") != 1:
        raise BadInput("a certificate identifier is two parts of base64url with one dot")
    try:
        aki, serial = (
            base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True)
            for part in text.split(".")
        )
    except (ValueError, binascii.Error):
        raise BadInput("a certificate identifier is base64url without padding") from None
    if not aki or not serial or serial[0] & 0x80:
        raise BadInput("a certificate identifier needs a key identifier and a positive serial")
    found = CertificateID(aki, int.from_bytes(serial))
    # Which is also the check that there is one spelling only: no padding, no stray bits.
    if str(found) != text:
        raise BadInput("the certificate identifier is not encoded as in the certificate")
    return found


class RenewalInformation:
    """Finds the certificate that an identifier means, and says when to renew it."""

    def __init__(
        self, store: Store, clock: Clock, chains: Mapping[str, Sequence[x509.Certificate]]
    ) -> None:
        self._store = store
        self._campaigns = Campaigns(store, clock)
        self._issuers = {_subject_key_identifier(chain[0]): name for name, chain in chains.items()}

    def find(self, text: object) -> CertificateRecord:
        """Return the row of an issued certificate. Raises BadInput, NotFound."""
        return walk(self.finding(text), self._store)

    def finding(self, text: object) -> Steps[CertificateRecord]:
        """Return the steps of `find`."""
        certificate_id = read_certificate_id(text)
        issuer = self._issuers.get(certificate_id.key_identifier)
        record = None
        if issuer is not None:
            serial = certificate_id.serial
            record = yield from look(lambda tx: certificates.by_issuer_serial(tx, issuer, serial))
        if record is None or record.sha256 is None:
            raise NotFound("there is no such certificate")
        return record

    def window_of(self, record: CertificateRecord) -> RenewalWindow:
        """Say when to renew a certificate."""
        return self._campaigns.window(record)


def as_json(window: RenewalWindow, explanation: str | None = None) -> dict[str, object]:
    """Return the renewal information of RFC 9773 §4.2, which the EST draft takes over.

    `explanation`: the URL given where the window has none of its own.
    """
    body: dict[str, object] = {
        "suggestedWindow": {"start": _rfc3339(window.start), "end": _rfc3339(window.end)}
    }
    if url := window.explanation or explanation:
        body["explanationURL"] = url
    return body


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _subject_key_identifier(certificate: x509.Certificate) -> bytes:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return extension.value.digest
