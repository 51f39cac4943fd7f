"""From received bytes to a request that somebody stands for: signature, URL, nonce, account.

Order matters: nothing is remembered of a request before its signature verified, and the nonce is
used up before the account's standing is judged, so that no answer can be had twice.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any

from estserver.authentication import ACMEAccount
from estserver.errors import RegistrationClosed
from estserver.model import Event, Invitation, Origin
from estserver.protocols import Services
from estserver.protocols.acme import faults, records
from estserver.protocols.acme.jws import JWS, parse_object, read_request
from estserver.protocols.acme.keys import AccountKey, read_jwk
from estserver.protocols.acme.nonces import Nonces, bad_nonce
from estserver.protocols.acme.problems import Problem, malformed, unauthorized
from estserver.protocols.acme.records import Account
from estserver.protocols.acme.states import AccountStatus
from estserver.protocols.acme.urls import URLs


class Signer(Enum):
    """Who may sign a request: an account by `kid`, a bare key by `jwk`, or either."""

    ACCOUNT = auto()
    KEY = auto()
    EITHER = auto()


@dataclass(frozen=True, slots=True)
class Received:
    """A POST as it came; `url` is where it came to by our own base URL."""

    url: str
    body: bytes
    accept: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Signed:
    """A request whose signature, URL and nonce are good. `key` made the signature.

    `account` is None where a bare key signed; `registration` is what it is bound to, as it stands
    at this request. `payload` is raw; empty in a POST-as-GET.
    """

    url: str
    key: AccountKey
    account: Account | None
    registration: Invitation | None
    payload: bytes
    accept: str
    origin: Origin
    now: datetime

    @property
    def fetches(self) -> bool:
        """Whether this is a POST-as-GET (RFC 8555 §6.3)."""
        return not self.payload

    @property
    def signer(self) -> Account:
        """The account that signed. Raises Problem: a bare key did."""
        if self.account is None:
            raise malformed("this request must be signed by an account, named by kid")
        return self.account

    def object(self) -> dict[str, Any]:
        """Return the payload as a JSON object. Raises Problem malformed."""
        if self.fetches:
            raise malformed("this resource wants a JSON object, not an empty payload")
        return parse_object(self.payload)

    def require_fetch(self) -> None:
        """Raise Problem malformed unless this is a POST-as-GET."""
        if not self.fetches:
            raise malformed('to fetch this resource send the payload "" (RFC 8555 6.3)')


class Gate:
    """Lets requests in. Blocks; call it on the thread pool."""

    def __init__(self, services: Services, urls: URLs, nonces: Nonces) -> None:
        self._services = services
        self._urls = urls
        self._nonces = nonces

    def admit(self, received: Received, signer: Signer) -> Signed:
        """Verify a request.

        Raises Problem malformed, badSignatureAlgorithm, badPublicKey, accountDoesNotExist,
        unauthorized (URL, closed account), invalidProfile (withdrawn), badNonce;
        RegistrationClosed, NotReleased.
        """
        jws = read_request(received.body)
        account = self._account(jws, signer)
        key = read_jwk(jws.jwk) if account is None else account.key
        jws.require_signature(key)
        if jws.url != received.url:
            raise unauthorized(f"the protected header is for another url than {received.url}")
        now = self._services.clock.now()
        faults.armed.strike()
        self._redeem(jws.nonce, now)
        registration = None
        if account is not None:
            registration = self._require_standing(account, received.origin)
        return Signed(
            url=received.url,
            key=key,
            account=account,
            registration=registration,
            payload=jws.payload,
            accept=received.accept,
            origin=received.origin,
            now=now,
        )

    def _account(self, jws: JWS, signer: Signer) -> Account | None:
        if jws.kid is None:
            if signer is Signer.ACCOUNT:
                raise malformed("this resource wants kid, the URL of your account, and no jwk")
            return None
        if signer is Signer.KEY:
            raise malformed("this resource wants jwk and no kid")
        prefix = self._urls.account("")
        identifier = jws.kid.removeprefix(prefix)
        # Exactly the URL that newAccount gave out; nothing is normalised.
        found = None
        if jws.kid.startswith(prefix):
            found = self._services.store.read(lambda tx: records.account(tx, identifier))
        if found is None:
            raise Problem("accountDoesNotExist", "there is no account with this kid")
        return found

    def _redeem(self, nonce: str | None, now: datetime) -> None:
        if nonce is None:
            raise bad_nonce()
        expires = self._nonces.check(nonce, now)
        if not self._services.store.write(
            lambda tx: records.redeem_nonce(tx, nonce, expires_at=expires)
        ):
            raise bad_nonce()

    def _require_standing(self, account: Account, origin: Origin) -> Invitation | None:
        """Judge account and registration anew at each request (RFC 8555 §7.3.6)."""
        if account.status is not AccountStatus.VALID:
            raise unauthorized(f"this account is {account.status}", 401)
        try:
            return self._services.authenticator.registration(self.credential(account))
        except RegistrationClosed as error:
            event = Event(
                "account.refused",
                f"account {account.id}",
                f"invitation {account.invitation}",
                {"reason": error.values.get("reason", "door")},
            )
            self._services.store.write(lambda tx: tx.audit(event, origin))
            if error.values.get("reason") == "profile":
                # draft-ietf-acme-profiles §4: not willing to issue under it any more.
                raise Problem("invalidProfile", error.detail, status=403) from error
            raise

    def credential(self, account: Account) -> ACMEAccount:
        """Return an account as authentication knows it."""
        profile = self._services.settings.acme.open_profile
        return ACMEAccount(account.id, account.invitation, profile)
