"""StatusAuthority: what relying parties are told about certificates, by CRL and by OCSP.

The only caller of `Issuer.sign_crl` and the only maker of OCSP answers.

Invariants:
- CRL numbers of an issuer strictly grow; of several publishers one wins and the rest take its CRL.
- Nothing is signed under a write lock, and nothing leaves whose signature was not verified.
- A certificate is `good` only once it is stored, and revoked from the moment its row says so.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from estserver.ca import ocsp
from estserver.ca.issuer import Issuer
from estserver.ca.keys import PrivateKey
from estserver.errors import BadInput, Error, Fault, NotFound, Unavailable
from estserver.model import (
    CertificateState,
    Clock,
    Event,
    Origin,
    PublicKey,
    RevocationReason,
)
from estserver.store import Store, Transaction, revocations

RED = 0.25
"""Share of a CRL's life that is left when somebody must be told (INC-28)."""
OCSP_LIFETIME = timedelta(minutes=5)
"""From thisUpdate to nextUpdate: how long an answer may be replayed after a revocation."""
_RENEW = 0.5
"""Share of a CRL's life that is left when the next one is made."""
_SETTLING = timedelta(minutes=10)
"""How much earlier than it can be seen a revocation may be dated: commits wait, clocks differ."""
_ATTEMPTS = 5
_ORIGIN = Origin("status", "server")
_REASONS: dict[RevocationReason, list[x509.Extension[x509.ExtensionType]]] = {
    reason: [
        x509.Extension(
            x509.CRLReason.oid, critical=False, value=x509.CRLReason(x509.ReasonFlags(reason.value))
        )
    ]
    for reason in RevocationReason
    # RFC 5280 §5.3.1: "SHOULD be absent instead of using the unspecified (0) reasonCode value".
    if reason is not RevocationReason.UNSPECIFIED
}


@dataclass(frozen=True, slots=True)
class CRL:
    """One published CRL; `der` is complete and signed."""

    issuer: str
    number: int
    this_update: datetime
    next_update: datetime
    der: bytes

    def life_left(self, now: datetime) -> float:
        """Return the share of its life that is left: 1 when new, 0 once nextUpdate has come."""
        left = (self.next_update - now) / (self.next_update - self.this_update)
        return min(1.0, max(0.0, left))


@dataclass(frozen=True, slots=True)
class CRLAge:
    """How old an issuer's newest CRL is. Without a CRL `age` is None and nothing is left."""

    issuer: str
    age: timedelta | None
    life_left: float

    @property
    def red(self) -> bool:
        """Tell whether it is so old that publication must have failed twice."""
        return self.life_left <= RED


@dataclass(frozen=True, slots=True)
class OCSPAnswer:
    """One OCSPResponse, DER. Times are None where it tells no certificate's status.

    `cacheable`: the same question may get the same octets again (no nonce, nothing unknown).
    """

    der: bytes
    this_update: datetime | None
    next_update: datetime | None
    cacheable: bool


class StatusAuthority:
    """Publishes CRLs and answers OCSP for `issuers`. Thread-safe; every method may block.

    `lifetimes`: by issuer name, from thisUpdate to nextUpdate of its CRLs.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        issuers: Mapping[str, Issuer],
        lifetimes: Mapping[str, timedelta],
    ) -> None:
        self._store = store
        self._clock = clock
        self._issuers = issuers
        self._lifetimes = lifetimes
        self._publishing = {name: threading.Lock() for name in issuers}
        self._newest: dict[str, CRL] = {}
        self._newest_lock = threading.Lock()
        self._listed: dict[str, tuple[int, frozenset[int]]] = {}
        self._responders: dict[str, ocsp.Responder] = {}
        self._by_hashes = {
            hashes: name
            for name, issuer in issuers.items()
            for hashes in ocsp.issuer_hashes(issuer.certificate)
        }

    # -- CRLs ------------------------------------------------------------------------------------

    def publish(self, issuer: str) -> CRL:
        """Return the newest CRL of `issuer`, made now if one is due.

        One is due when there is none, half of its life is over, or something was revoked that it
        does not list.
        Raises NotFound: no such issuer; Unavailable; Fault: what was signed does not verify.
        """
        self._require(issuer)
        with self._publishing[issuer]:
            for _ in range(_ATTEMPTS):
                newest = self._stored(issuer)
                if newest is not None and not self._is_due(newest):
                    return newest
                made = self._make(issuer, 0 if newest is None else newest.number)
                if made is not None:
                    return self._remember(made)
        raise Unavailable(
            f"other publishers keep overtaking the CRL of {issuer}",
            retry_after=timedelta(seconds=5),
        )

    def publish_due(self) -> list[CRL]:
        """Publish for every issuer what is due; return the newest CRLs.

        Raises Unavailable, Fault: after the other issuers had their turn.
        """
        newest: list[CRL] = []
        failures: list[Error] = []
        for issuer in self._issuers:
            try:
                newest.append(self.publish(issuer))
            except Error as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return newest

    def crl(self, issuer: str) -> CRL:
        """Return the newest CRL of `issuer`, after publishing the first one if there is none.

        Raises NotFound: no such issuer; Unavailable: the database is, and none is at hand.
        """
        self._require(issuer)
        try:
            newest = self._stored(issuer)
        except Unavailable:
            # A CRL holds until its nextUpdate: relying parties need not suffer with the database.
            newest = self._newest.get(issuer)
            if newest is None:
                raise
        return newest or self.publish(issuer)

    def ages(self) -> list[CRLAge]:
        """Tell how old each issuer's CRL is. Raises Unavailable."""
        now = self._clock.now()
        return [
            CRLAge(issuer, None, 0.0)
            if (newest := self._stored(issuer)) is None
            else CRLAge(issuer, now - newest.this_update, newest.life_left(now))
            for issuer in self._issuers
        ]

    def _require(self, issuer: str) -> None:
        if issuer not in self._issuers:
            raise NotFound(f"there is no issuer {issuer}")

    def _stored(self, issuer: str) -> CRL | None:
        """Return the newest CRL in the database; read again only if it is another one."""
        known = self._newest.get(issuer)
        above = 0 if known is None else known.number
        row = self._store.read(lambda tx: revocations.newest_crl(tx, issuer, above=above))
        return known if row is None else self._remember(CRL(issuer, *row))

    def _remember(self, crl: CRL) -> CRL:
        """Keep `crl` at hand unless a newer one is; return the newer."""
        with self._newest_lock:
            known = self._newest.get(crl.issuer)
            if known is None or known.number < crl.number:
                self._newest[crl.issuer] = known = crl
            return known

    def _is_due(self, newest: CRL) -> bool:
        now = self._clock.now()
        if newest.this_update > now or newest.life_left(now) <= _RENEW:
            return True
        # A revocation is dated when its transaction begins and seen when it commits, which may be
        # after a CRL was made and dated: times alone would overlook it, so entries are compared.
        since = newest.this_update - _SETTLING
        recent = self._store.read(lambda tx: revocations.revoked(tx, newest.issuer, since=since))
        return bool(recent) and not {serial for serial, _, _ in recent} <= self._listing(newest)

    def _listing(self, crl: CRL) -> frozenset[int]:
        """Return what `crl` lists of the time around its making, as the signed CRL itself says."""
        known = self._listed.get(crl.issuer)
        if known is None or known[0] != crl.number:
            since = crl.this_update - _SETTLING
            serials = frozenset(
                entry.serial_number
                for entry in x509.load_der_x509_crl(crl.der)
                if entry.revocation_date_utc >= since
            )
            known = self._listed[crl.issuer] = (crl.number, serials)
        return known[1]

    def _make(self, issuer: str, above: int) -> CRL | None:
        """Build, sign, check and store the next CRL; None if another publisher was faster."""

        def snapshot(
            tx: Transaction,
        ) -> tuple[datetime, int, list[tuple[int, datetime, RevocationReason]]]:
            number = revocations.newest_crl_number(tx, issuer)
            return tx.now, number, revocations.revoked(tx, issuer)

        def unit(tx: Transaction) -> bool:
            if not revocations.put_crl(tx, issuer, crl.number, parsed, crl.der):
                return False
            tx.audit(
                Event(
                    "crl.signed",
                    "server",
                    f"issuer {issuer}",
                    {"number": crl.number, "entries": len(revoked)},
                ),
                _ORIGIN,
            )
            return True

        now, stored, revoked = self._store.read(snapshot)
        number = max(stored, above) + 1
        next_update = now + self._lifetimes[issuer]
        signer = self._issuers[issuer]
        der = signer.sign_crl(_builder(signer.certificate, number, now, next_update, revoked))
        parsed = x509.load_der_x509_crl(der)
        if not _verifies(parsed, signer.certificate):
            raise Fault(f"issuer {issuer}: the CRL just signed does not verify")
        crl = CRL(issuer, number, now, next_update, der)
        return crl if self._store.write(unit) else None

    # -- OCSP ------------------------------------------------------------------------------------

    def use_responder(self, issuer: str, certificate: x509.Certificate, key: PrivateKey) -> None:
        """Sign OCSP answers for `issuer` with this key from now on.

        Raises NotFound: no such issuer; Fault: the key is not the certificate's, or the issuer has
        not authorised it to sign answers (RFC 6960 §4.2.2.2).
        """
        self._require(issuer)
        current = self._responders.get(issuer)
        if current is not None and current.certificate == certificate:
            return
        if key.public_key() != certificate.public_key():
            raise Fault(f"OCSP responder of {issuer}: key and certificate do not belong together")
        if not _is_delegated(certificate, self._issuers[issuer].certificate):
            raise Fault(f"OCSP responder of {issuer}: the issuer has not authorised it")
        self._responders[issuer] = ocsp.Responder(certificate, key)

    def answer(self, request_der: bytes) -> OCSPAnswer:
        """Answer one OCSPRequest, DER, whatever it is: garbage gets malformedRequest.

        Asked about another CA's certificate: unauthorized. No responder certificate in force:
        tryLater. All certificates of one request must be of one issuer, since one delegated
        responder speaks for one CA.
        Raises Unavailable: the database is.
        RFC 6960 §2.3, §4.2.
        """
        try:
            request = ocsp.read_request(request_der)
        except BadInput:
            return _refusal(ocsp.ResponseStatus.MALFORMED_REQUEST)
        named = {self._by_hashes.get(ocsp.named_issuer(cert_id)) for cert_id in request.ids}
        issuer = named.pop()
        if issuer is None or named:
            return _refusal(ocsp.ResponseStatus.UNAUTHORIZED)
        responder = self._responders.get(issuer)
        if responder is None:
            return _refusal(ocsp.ResponseStatus.TRY_LATER)
        serials = [cert_id.serial for cert_id in request.ids]
        now, rows = self._store.read(lambda tx: (tx.now, revocations.statuses(tx, issuer, serials)))
        vouches_until = responder.certificate.not_valid_after_utc
        if not responder.certificate.not_valid_before_utc <= now < vouches_until:
            return _refusal(ocsp.ResponseStatus.TRY_LATER)
        verdicts = [
            ocsp.Verdict(cert_id, _status(rows.get(cert_id.serial))) for cert_id in request.ids
        ]
        next_update = min(now + OCSP_LIFETIME, vouches_until)
        der = responder.sign(
            verdicts, nonce=request.nonce, this_update=now, next_update=next_update
        )
        # What is unknown now may be a certificate in the next second.
        settled = all(verdict.status != "unknown" for verdict in verdicts)
        return OCSPAnswer(der, now, next_update, cacheable=settled and request.nonce is None)


def _status(
    row: tuple[CertificateState, datetime | None, RevocationReason | None] | None,
) -> ocsp.Revoked | Literal["good", "unknown"]:
    """Tell a row's status; an expired certificate keeps its last one. RFC 6960 §2.2."""
    if row is None:
        return "unknown"
    state, revoked_at, reason = row
    if revoked_at is not None:
        return ocsp.Revoked(revoked_at, reason or RevocationReason.UNSPECIFIED)
    return "good" if state is CertificateState.VALID else "unknown"


def _refusal(status: ocsp.ResponseStatus) -> OCSPAnswer:
    return OCSPAnswer(ocsp.refusal(status), None, None, cacheable=False)


def _builder(
    issuer: x509.Certificate,
    number: int,
    this_update: datetime,
    next_update: datetime,
    revoked: list[tuple[int, datetime, RevocationReason]],
) -> x509.CertificateRevocationListBuilder:
    """Lay out a full CRL. RFC 5280 §5."""
    own_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_key.value)
    # The list goes in whole: add_revoked_certificate copies it each time.
    return (
        x509.CertificateRevocationListBuilder(
            revoked_certificates=[_entry(*revocation) for revocation in revoked]
        )
        .last_update(this_update)
        .next_update(next_update)
        .add_extension(authority, critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )


def _entry(serial: int, time: datetime, reason: RevocationReason) -> x509.RevokedCertificate:
    # The constructor, not the chain of setters, which copy the builder each time: 4 µs an entry
    # instead of 7 (measured). It wants UTC without a zone.
    return x509.RevokedCertificateBuilder(
        serial, time.replace(tzinfo=None), _REASONS.get(reason, [])
    ).build()


def _verifies(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    return isinstance(key, PublicKey) and crl.is_signature_valid(key)


def _is_delegated(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tell whether `issuer` itself issued `certificate` for signing OCSP answers."""
    try:
        certificate.verify_directly_issued_by(issuer)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return ExtendedKeyUsageOID.OCSP_SIGNING in usage
