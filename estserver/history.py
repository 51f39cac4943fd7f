"""History: how the revocation of each certificate stood last, by what journals and CRLs tell.

A revocation for good is believed whenever it comes, even before a release: on two nodes their
lines may have changed places, and at worst somebody needs a new certificate. Of holds and releases
the last one counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from estserver.ca.chains import Chains
from estserver.errors import BadInput
from estserver.journal import Entry
from estserver.model import PublicKey, RevocationReason
from estserver.store import from_unix

_SERIALS = 1 << 160
"""RFC 5280 §4.1.2.2: no serial has more than 20 octets."""
Key = tuple[str, int]
"""Issuer and serial."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What was told last of one certificate; `reason` None: its hold was released, at `at`."""

    at: datetime
    reason: RevocationReason | None

    @property
    def final(self) -> bool:
        """Whether it is revoked for good."""
        return self.reason not in {None, RevocationReason.CERTIFICATE_HOLD}

    def is_news_to(self, present: "Standing | None") -> bool:
        """Tell whether a database that has `present` lacks this; None: it is not revoked there."""
        if present is None:
            return self.reason is not None
        if self.reason is None:
            return not present.final and present.at <= self.at
        return not present.final and (self.final or present.at < self.at)


class History:
    """Takes journals, line after line as they were written, and after them CRLs."""

    def __init__(self) -> None:
        self._told: dict[Key, Standing] = {}

    @property
    def told(self) -> Mapping[Key, Standing]:
        """How each certificate stood last of which anything was told."""
        return self._told

    def take(self, entry: Entry) -> None:
        """Take a `revocation` or `release` of the journal.

        Raises KeyError, TypeError, ValueError, OverflowError: it makes no sense.
        """
        fields = entry.fields
        serial = int(fields["serial"], 16)
        if not 0 < serial < _SERIALS:
            raise ValueError(serial)
        key = entry.text("issuer"), serial
        if entry.kind == "release":
            told = Standing(from_unix(fields["released_at"]), None)
        else:
            reason = RevocationReason(fields["reason"])
            told = Standing(from_unix(fields["revoked_at"]), reason)
        # Of one second, lines stand in the order in which they were written.
        self._remember(key, told, in_order=True)

    def take_crl(self, issuer: str, crl: x509.CertificateRevocationList) -> None:
        """Take a CRL of `issuer`. A hold on it counts unless the journal knows how it ended."""
        for entry in crl:
            if (told := _standing(entry)) is not None:
                self._remember((issuer, entry.serial_number), told, in_order=False)

    def _remember(self, key: Key, told: Standing, *, in_order: bool) -> None:
        known = self._told.get(key)
        if known is None:
            news = True
        elif told.final:
            news = not known.final or told.at < known.at
        else:
            later = known.at < told.at or (in_order and known.at == told.at)
            news = later and not known.final
        if news:
            self._told[key] = told


def _standing(entry: x509.RevokedCertificate) -> Standing | None:
    """Return what an entry says; a reason that we do not give is none."""
    at = entry.revocation_date_utc
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except (x509.ExtensionNotFound, ValueError):
        return Standing(at, RevocationReason.UNSPECIFIED)
    if reason is x509.ReasonFlags.remove_from_crl:
        return None
    known = reason.value in set(RevocationReason)
    return Standing(at, RevocationReason(reason.value) if known else RevocationReason.UNSPECIFIED)


def read_crl(octets: bytes, chains: Chains) -> tuple[str, x509.CertificateRevocationList]:
    """Read a CRL, DER or PEM, and tell which of our issuers signed it. Raises BadInput."""
    pem = octets.lstrip().startswith(b"-----BEGIN")
    try:
        crl = (x509.load_pem_x509_crl if pem else x509.load_der_x509_crl)(octets)
    except ValueError as error:
        raise BadInput("the file is not a CRL, DER or PEM") from error
    for name, chain in chains.items():
        key, named = chain[0].public_key(), crl.issuer == chain[0].subject
        if named and isinstance(key, PublicKey) and crl.is_signature_valid(key):
            return name, crl
    raise BadInput("the CRL is not signed by an issuer of this instance")
