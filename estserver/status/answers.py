"""OCSP answers: signed from what the database says now, and for seconds from memory.

An answer at hand saves thread, database and signature. It is given for so short a time that a
revocation on another node shows within ten seconds, caches on the way included, and not at all
once this process has committed a revocation after it was made.
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
from estserver.errors import BadInput, Fault
from estserver.model import CertificateState, Clock, RevocationReason
from estserver.store import Store, revocations

OCSP_LIFETIME = timedelta(minutes=5)
"""From thisUpdate to nextUpdate: how long an answer may be replayed after a revocation."""
FRESH_SECONDS = 4
"""How long an answer is given again; with the 5 s of HTTP caches less than the 10 s promised."""
_AT_HAND = 4096
"""At 2 KB each; about as many as one process can sign while the first of them is fresh."""
_SMALL = 256
"""Longest request that is remembered, bytes: nobody fills the memory with odd ones."""
_RED = 0.25


@dataclass(frozen=True, slots=True)
class OCSPAnswer:
    """One OCSPResponse, DER. Times are None where it tells no certificate's status.

    `cacheable`: the same question may get the same octets again (no nonce, nothing unknown).
    """

    der: bytes
    this_update: datetime | None
    next_update: datetime | None
    cacheable: bool


@dataclass(frozen=True, slots=True)
class ResponderLife:
    """How long an issuer's OCSP responder certificate lasts; `left` is None without one."""

    issuer: str
    left: timedelta | None
    life_left: float

    @property
    def red(self) -> bool:
        """Tell whether its renewal, due at half of its life, must have failed for long."""
        return self.life_left <= _RED


@dataclass(frozen=True, slots=True)
class _AtHand:
    answer: OCSPAnswer
    until: datetime
    revocations: int


class OCSPAnswers:
    """Answers OCSP for `issuers`. Thread-safe; every method may block but `at_hand`."""

    def __init__(self, store: Store, clock: Clock, issuers: Mapping[str, Issuer]) -> None:
        self._store = store
        self._clock = clock
        self._issuers = issuers
        self._responders: dict[str, ocsp.Responder] = {}
        self._by_hashes = {
            hashes: name
            for name, issuer in issuers.items()
            for hashes in ocsp.issuer_hashes(issuer.certificate)
        }
        self._at_hand: dict[bytes, _AtHand] = {}
        self._remembering = threading.Lock()

    def use_responder(self, issuer: str, certificate: x509.Certificate, key: PrivateKey) -> None:
        """Sign answers for `issuer` with this key from now on.

        Raises Fault: the key is not the certificate's, or the issuer has not authorised it to sign
        answers (RFC 6960 §4.2.2.2).
        """
        current = self._responders.get(issuer)
        if current is not None and current.certificate == certificate:
            return
        if key.public_key() != certificate.public_key():
            raise Fault(f"OCSP responder of {issuer}: key and certificate do not belong together")
        if not _is_delegated(certificate, self._issuers[issuer].certificate):
            raise Fault(f"OCSP responder of {issuer}: the issuer has not authorised it")
        self._responders[issuer] = ocsp.Responder(certificate, key)
        with self._remembering:
            self._at_hand.clear()

    def lives(self) -> list[ResponderLife]:
        """Tell how long each issuer's responder certificate lasts."""
        now = self._clock.now()
        lives = []
        for issuer in self._issuers:
            responder = self._responders.get(issuer)
            if responder is None:
                lives.append(ResponderLife(issuer, None, 0.0))
                continue
            certificate = responder.certificate
            left = certificate.not_valid_after_utc - now
            share = left / (certificate.not_valid_after_utc - certificate.not_valid_before_utc)
            lives.append(ResponderLife(issuer, left, min(1.0, max(0.0, share))))
        return lives

    def at_hand(self, request_der: bytes) -> OCSPAnswer | None:
        """Return the answer this very request got a moment ago, if it still holds; never blocks."""
        found = self._at_hand.get(request_der)
        if found is None or found.revocations != self._store.commits("revocations"):
            return None
        now, made = self._clock.now(), found.answer.this_update
        return found.answer if made is not None and made <= now < found.until else None

    def answer(self, request_der: bytes) -> OCSPAnswer:
        """Answer one OCSPRequest, DER, whatever it is: garbage gets malformedRequest.

        Asked about another CA's certificate: unauthorized. No responder certificate in force:
        tryLater. All certificates of one request must be of one issuer, since one delegated
        responder speaks for one CA.
        Raises Unavailable: the database is.
        RFC 6960 §2.3, §4.2.
        """
        if (found := self.at_hand(request_der)) is not None:
            return found
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
        # Counted before the look: what is committed meanwhile makes the answer an old one.
        committed = self._store.commits("revocations")
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
        answer = OCSPAnswer(der, now, next_update, cacheable=settled and request.nonce is None)
        if answer.cacheable and len(request_der) <= _SMALL:
            until = min(now + timedelta(seconds=FRESH_SECONDS), vouches_until)
            self._remember(request_der, _AtHand(answer, until, committed))
        return answer

    def _remember(self, request_der: bytes, answer: _AtHand) -> None:
        now = self._clock.now()
        with self._remembering:
            self._at_hand.pop(request_der, None)
            # A dictionary keeps the order in which its keys came: those that are over come first.
            while self._at_hand:
                oldest, kept = next(iter(self._at_hand.items()))
                if len(self._at_hand) < _AT_HAND and now < kept.until:
                    break
                del self._at_hand[oldest]
            self._at_hand[request_der] = answer


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


def _is_delegated(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tell whether `issuer` itself issued `certificate` for signing OCSP answers."""
    try:
        certificate.verify_directly_issued_by(issuer)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return ExtendedKeyUsageOID.OCSP_SIGNING in usage
