"""StatusAuthority: what relying parties are told about certificates, by CRL and by OCSP.

Invariants:
- CRL numbers of an issuer strictly grow; of several publishers one wins and the rest take its CRL.
- Nothing is signed under a write lock, and nothing leaves whose signature was not verified.
- A certificate is `good` only once it is stored, and revoked from the moment its row says so; for
  seconds longer where another process revoked it.
"""

from collections.abc import Iterator, Mapping

from cryptography import x509

from estserver.ca.issuer import Issuer
from estserver.ca.keys import PrivateKey
from estserver.errors import Error, NotFound
from estserver.model import Clock
from estserver.profiles import Profile
from estserver.status.answers import OCSPAnswer, OCSPAnswers, ResponderLife
from estserver.status.crls import CRLPublisher, CRLRules
from estserver.status.shelf import CRL, CRLAge, Shelf
from estserver.store import Store, crls


class StatusAuthority:
    """Publishes CRLs and answers OCSP for `issuers`. Thread-safe.

    Every method may block except those that tell what is at hand. `rules`: by issuer name, how its
    CRLs are made. `profiles`: those whose certificates point to a CRL of their own get one.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        issuers: Mapping[str, Issuer],
        rules: Mapping[str, CRLRules],
        profiles: Mapping[str, Profile],
    ) -> None:
        self._store = store
        self._clock = clock
        self._issuers = issuers
        self._profiles = profiles
        self._shelf = Shelf(store, clock, issuers)
        self._crls = CRLPublisher(store, clock, issuers, rules, self._shelf)
        self._answers = OCSPAnswers(store, clock, issuers)
        self._published: dict[str, set[str]] = {}

    # -- CRLs ------------------------------------------------------------------------------------

    def publish(self, issuer: str, profile: str = "") -> CRL:
        """Return the newest CRL of `issuer`, or its shard for one profile, made now if one is due.

        Raises NotFound: no such issuer; Unavailable; Fault: the clock cannot be right, or what was
        signed does not verify.
        """
        self._require(issuer)
        return self._crls.publish(issuer, profile)

    def publish_due(self) -> list[CRL]:
        """Publish for every issuer what is due; return the newest CRLs, shards after the whole.

        Raises Unavailable, Fault: after the others had their turn.
        """
        newest: list[CRL] = []
        failures: list[Error] = []
        for issuer in self._alive():
            try:
                newest.extend(self._crls.publish(issuer, scope) for scope in self._scopes(issuer))
            except Error as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return newest

    def crl(self, issuer: str, profile: str = "") -> CRL:
        """Return the newest CRL of `issuer`, or its shard; the first one is published.

        Raises NotFound: no such issuer or shard; Unavailable: the database is, and none is at hand;
        Fault.
        """
        self._require(issuer)
        return self._crls.newest(issuer, profile)

    def crl_at_hand(self, issuer: str, profile: str = "") -> CRL | None:
        """Return what `crl` returned a moment ago; never blocks."""
        return self._shelf.at_hand((issuer, profile))

    def ages(self) -> list[CRLAge]:
        """Tell how old each CRL is. Raises Unavailable."""
        return [
            self._shelf.age((issuer, scope), self._shelf.look((issuer, scope)))
            for issuer in self._alive()
            for scope in self._scopes(issuer)
        ]

    def remembered_ages(self) -> list[CRLAge]:
        """Tell how old each CRL is as far as is known without the database; never blocks."""
        return [
            self._shelf.age((issuer, scope), self._shelf.remembered((issuer, scope)))
            for issuer in self._alive()
            for scope in sorted({"", *self._published.get(issuer, ())})
        ]

    def _alive(self) -> list[str]:
        """List the issuers about whose certificates anybody may still ask: none outlives them."""
        now = self._clock.now()
        return [
            name
            for name, issuer in self._issuers.items()
            if now <= issuer.certificate.not_valid_after_utc
        ]

    def _require(self, issuer: str) -> None:
        if issuer not in self._issuers:
            raise NotFound(f"there is no issuer {issuer}")

    def _scopes(self, issuer: str) -> list[str]:
        """List what CRLs of `issuer` there are: the whole, and the shards, those of old too.

        A certificate points to its shard for as long as it lives, whatever becomes of its profile.
        """
        if issuer not in self._published:
            self._published[issuer] = self._store.read(lambda tx: crls.scopes(tx, issuer))
        self._published[issuer] |= {"", *self._sharded(issuer)}
        return sorted(self._published[issuer])

    def _sharded(self, issuer: str) -> Iterator[str]:
        for name, profile in list(self._profiles.items()):
            if profile.settings.issuer == issuer and profile.settings.own_crl:
                yield name

    # -- OCSP ------------------------------------------------------------------------------------

    def use_responder(self, issuer: str, certificate: x509.Certificate, key: PrivateKey) -> None:
        """Sign OCSP answers for `issuer` with this key from now on.

        Raises NotFound: no such issuer; Fault: the key is not the certificate's, or the issuer has
        not authorised it to sign answers (RFC 6960 §4.2.2.2).
        """
        self._require(issuer)
        self._answers.use_responder(issuer, certificate, key)

    def responders(self) -> list[ResponderLife]:
        """Tell how long each issuer's OCSP responder certificate lasts; never blocks."""
        return self._answers.lives()

    def answer(self, request_der: bytes) -> OCSPAnswer:
        """Answer one OCSPRequest, DER, whatever it is: garbage gets malformedRequest.

        Raises Unavailable: the database is.
        RFC 6960 §2.3, §4.2.
        """
        return self._answers.answer(request_der)

    def answer_at_hand(self, request_der: bytes) -> OCSPAnswer | None:
        """Return the answer this very request got a moment ago, if it still holds; never blocks."""
        return self._answers.at_hand(request_der)
