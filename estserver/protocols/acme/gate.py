"""From received bytes to a request that somebody stands for: signature, URL, nonce, account.

Order matters: nothing is remembered of a request before its signature verified, and from there on
`redemption` sees to it that no answer can be had twice with one nonce.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from functools import partial
from typing import Any

from estserver.authentication import ACMEAccount
from estserver.errors import RegistrationClosed
from estserver.model import Event, Invitation, Origin
from estserver.protocols import Services
from estserver.protocols.acme import faults, records
from estserver.protocols.acme.answers import Answer
from estserver.protocols.acme.jws import JWS, parse_object, read_request
from estserver.protocols.acme.keys import AccountKey, read_jwk
from estserver.protocols.acme.nonces import Nonce, Nonces
from estserver.protocols.acme.problems import Problem, malformed, unauthorized
from estserver.protocols.acme.records import Account, Caller
from estserver.protocols.acme.redemption import redeeming
from estserver.protocols.acme.states import AccountStatus
from estserver.protocols.acme.urls import URLs
from estserver.steps import Steps, apart, change, read


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
    """A request whose signature and URL are good. `key` made the signature.

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


Handler = Callable[[Signed], Steps[Answer]]


class Gate:
    """Lets requests in."""

    def __init__(self, services: Services, urls: URLs, nonces: Nonces) -> None:
        self._services = services
        self._urls = urls
        self._nonces = nonces

    def answering(self, received: Received, signer: Signer, handle: Handler) -> Steps[Answer]:
        """Verify a request, and let `handle` answer it.

        The steps raise Problem malformed, badSignatureAlgorithm, badPublicKey, badNonce,
        accountDoesNotExist, unauthorized (URL, closed account), invalidProfile (withdrawn);
        RegistrationClosed, NotReleased, and what `handle` raises.
        """
        signed, nonce = yield from self._verifying(received, signer)
        return (yield from redeeming(nonce, self._judging(signed, handle)))

    def _verifying(self, received: Received, signer: Signer) -> Steps[tuple[Signed, Nonce]]:
        """Return a request whose signature, URL and nonce are good, unless that was used before."""
        jws = read_request(received.body)
        caller = yield from self._finding_caller(jws, signer)
        key = (
            (yield from apart(partial(read_jwk, jws.jwk))) if caller is None else caller.account.key
        )
        if key.verifies_quickly:
            jws.require_signature(key)
        else:
            yield from apart(partial(jws.require_signature, key))
        if jws.url != received.url:
            raise unauthorized(f"the protected header is for another url than {received.url}")
        now = self._services.clock.now()
        faults.armed.strike()
        nonce = self._nonces.check(jws.nonce, now)
        return Signed(
            url=received.url,
            key=key,
            account=None if caller is None else caller.account,
            registration=None if caller is None else caller.registration,
            payload=jws.payload,
            accept=received.accept,
            origin=received.origin,
            now=now,
        ), nonce

    def _finding_caller(self, jws: JWS, signer: Signer) -> Steps[Caller | None]:
        if jws.kid is None:
            if signer is Signer.ACCOUNT:
                raise malformed("this resource wants kid, the URL of your account, and no jwk")
            return None
        if signer is Signer.KEY:
            raise malformed("this resource wants jwk and no kid")
        prefix = self._urls.account("")
        # Exactly the URL that newAccount gave out; nothing is normalised.
        found = None
        if jws.kid.startswith(prefix):
            found = yield from read(records.callers, jws.kid.removeprefix(prefix))
        if found is None:
            raise Problem("accountDoesNotExist", "there is no account with this kid")
        return found

    def _judging(self, signed: Signed, handle: Handler) -> Steps[Answer]:
        """Judge account and registration anew at each request (RFC 8555 §7.3.6)."""
        account = signed.account
        if account is not None:
            if account.status is not AccountStatus.VALID:
                raise unauthorized(f"this account is {account.status}", 401)
            if signed.registration is not None:
                yield from self._requiring_open(account, signed.registration, signed.origin)
        return (yield from handle(signed))

    def _requiring_open(
        self, account: Account, registration: Invitation, origin: Origin
    ) -> Steps[None]:
        try:
            self._services.authenticator.require_registration(registration)
        except RegistrationClosed as error:
            event = Event(
                "account.refused",
                f"account {account.id}",
                f"invitation {account.invitation}",
                {"reason": error.values.get("reason", "door")},
            )
            yield from change(lambda tx: tx.audit(event, origin))
            if error.values.get("reason") == "profile":
                # draft-ietf-acme-profiles §4: not willing to issue under it any more.
                raise Problem("invalidProfile", error.detail, status=403) from error
            raise

    def credential(self, signed: Signed) -> ACMEAccount:
        """Return the account that signed as authentication knows it."""
        profile = self._services.settings.acme.open_profile
        return ACMEAccount(signed.signer.id, signed.registration, profile)
