"""Accounts: made, bound to an invitation, changed, given another key, closed (RFC 8555 §7.3)."""

import secrets
from typing import Any

from estserver.errors import BadInput
from estserver.external_binding import acme_binding, unbindable
from estserver.model import Event, Invitation, InvitationState
from estserver.names import parse_general_name
from estserver.protocols import Services
from estserver.protocols.acme import jws, records
from estserver.protocols.acme.answers import Answer, account_json
from estserver.protocols.acme.gate import Signed
from estserver.protocols.acme.keys import AccountKey, decode_base64url, read_jwk
from estserver.protocols.acme.limits import HourlyLimit
from estserver.protocols.acme.problems import Problem, malformed, unauthorized
from estserver.protocols.acme.records import Account
from estserver.protocols.acme.states import AccountStatus
from estserver.protocols.acme.urls import URLs
from estserver.store import Transaction, certificates, registrations, revocations
from estserver.throttling import source_key

_MAX_CONTACTS = 10
_TERMS = "terms-of-service"


class Accounts:
    """Handlers of the account resources. They block; the door runs them on the thread pool."""

    def __init__(self, services: Services, urls: URLs) -> None:
        self._services = services
        self._settings = services.settings.acme
        self._urls = urls
        self._limit = HourlyLimit(
            "new accounts from your network", self._settings.accounts_per_hour, services.clock
        )

    # -- newAccount ------------------------------------------------------------------------------

    def create(self, request: Signed) -> Answer:
        """Make an account, or find the one this key has (§7.3, §7.3.1)."""
        asked = request.object()
        store = self._services.store
        found = store.read(lambda tx: records.account_by_key(tx, request.key.thumbprint))
        if found is not None:
            return self._existing(found)
        if _flag(asked, "onlyReturnExisting"):
            raise Problem("accountDoesNotExist", "there is no account for this key")
        self._limit.spend(source_key(request.origin.source))
        terms = self._agreed_terms(asked)
        contacts = self._contacts(asked)
        invitation, binding = self._binding(asked, request)
        account = Account(
            id=secrets.token_urlsafe(16),
            key=request.key,
            status=AccountStatus.VALID,
            contacts=contacts or (),
            terms=terms,
            invitation=None if invitation is None else invitation.number,
            binding=binding,
            created_at=request.now,
        )
        stored = store.write(lambda tx: self._add(tx, account, invitation, request))
        if stored.id != account.id:
            return self._existing(stored)
        return Answer(
            account_json(stored, self._urls, created=True),
            status=201,
            location=self._urls.account(stored.id),
        )

    def _existing(self, found: Account) -> Answer:
        if found.status is not AccountStatus.VALID:
            raise unauthorized(f"the account of this key is {found.status}", 401)
        return Answer(account_json(found, self._urls), location=self._urls.account(found.id))

    def _add(
        self, tx: Transaction, account: Account, invitation: Invitation | None, request: Signed
    ) -> Account:
        """Insert an account; another one with the same key that came first is returned instead."""
        require_free(tx, account.key)
        if invitation is not None:
            present = registrations.get(tx, invitation.number, hold=True)
            if (
                present is None
                or present.state is not InvitationState.OPEN
                or present.expires_at <= tx.now
            ):
                raise unbindable("closed")
        if not records.add_account(tx, account):
            earlier = records.account_by_key(tx, account.key.thumbprint)
            if earlier is None:
                # The key is new, so it is the invitation that has its account already.
                raise unbindable("used")
            return earlier
        actor = "anybody" if invitation is None else f"invitation {invitation.number}"
        detail = {"thumbprint": account.key.thumbprint, "invitation": account.invitation}
        tx.audit(Event("account.created", actor, f"account {account.id}", detail), request.origin)
        return account

    def _agreed_terms(self, asked: dict[str, Any]) -> str | None:
        agreed = _flag(asked, "termsOfServiceAgreed")
        terms = self._settings.terms_of_service
        if terms is not None and not agreed:
            raise Problem(
                "userActionRequired",
                f"the terms of service at {terms} must be agreed to",
                status=403,
                links=((_TERMS, terms),),
            )
        return terms

    def _contacts(self, asked: dict[str, Any]) -> tuple[str, ...] | None:
        """Read `contact`, None where it is absent. Raises Problem. RFC 8555 §7.3, RFC 6068."""
        if "contact" not in asked:
            if self._settings.contact == "required":
                raise Problem("invalidContact", "this server wants a mailto: contact")
            return None
        value = asked["contact"]
        if not isinstance(value, list) or len(value) > _MAX_CONTACTS:
            raise malformed(f"contact must be a list of at most {_MAX_CONTACTS} URLs")
        if not value and self._settings.contact == "required":
            raise Problem("invalidContact", "this server wants a mailto: contact")
        return tuple(dict.fromkeys(_contact(each) for each in value))

    # -- external account binding ----------------------------------------------------------------

    def _binding(
        self, asked: dict[str, Any], request: Signed
    ) -> tuple[Invitation | None, dict[str, Any] | None]:
        """Verify the binding to an invitation (§7.3.4); it is verified even where none is needed.

        Raises Problem externalAccountRequired, malformed, badSignatureAlgorithm; BadCredentials.
        """
        value = asked.get("externalAccountBinding")
        if value is None:
            if self._settings.require_eab:
                raise Problem(
                    "externalAccountRequired",
                    "this server needs an external account binding: ask the administrator for an "
                    "invitation, and give its kid and hmac key to your client",
                    status=403,
                )
            return None, None
        binding = jws.read_binding(value)
        if binding.url != request.url:
            raise malformed("the binding's url is not that of the request")
        bound = read_jwk(jws.parse_object(binding.payload, "the binding's payload"))
        if bound.thumbprint != request.key.thumbprint:
            raise malformed("the binding is for another account key")
        return self._invitation(binding), value

    def _invitation(self, binding: jws.JWS) -> Invitation:
        """Return the open invitation whose key made the MAC. Raises BadCredentials."""
        number = binding.kid or ""
        store = self._services.store
        invitation = store.read(lambda tx: registrations.get(tx, number))
        # One MAC is computed in any case, so that time tells nothing.
        key = self._mac_key(invitation)
        if not jws.mac_verifies(binding, key) or invitation is None:
            raise unbindable("mac")
        self._services.authenticator.bind(number)
        if store.read(lambda tx: records.account_of_invitation(tx, number)) is not None:
            raise unbindable("used")
        return invitation

    def _mac_key(self, invitation: Invitation | None) -> bytes:
        if invitation is None:
            return self._services.keyring.derive("acme-eab", "nobody")
        _, key = acme_binding(self._services.keyring, invitation)
        # The client decodes the same text.
        return decode_base64url(key.reveal(), "the key")

    # -- one account -----------------------------------------------------------------------------

    def change(self, request: Signed, identifier: str) -> Answer:
        """Show, update or deactivate the account that signed (§7.3.2, §7.3.6)."""
        account = request.signer
        if account.id != identifier:
            raise unauthorized("this is another account than the one that signed")
        if request.fetches:
            return self._shown(account)
        asked = request.object()
        # Other values of status, and orders and termsOfServiceAgreed, MUST be ignored.
        if asked.get("status") == AccountStatus.DEACTIVATED:
            return self._deactivate(account, request)
        contacts = self._contacts(asked) if "contact" in asked else None
        if contacts is None:
            return self._shown(account)

        def unit(tx: Transaction) -> None:
            if not records.change_account(tx, account.id, contacts=contacts):
                raise unauthorized("this account is closed", 401)
            actor = f"account {account.id}"
            tx.audit(Event("account.changed", actor, actor), request.origin)

        self._services.store.write(unit)
        return self._shown(account)

    def _shown(self, account: Account) -> Answer:
        present = self._services.store.read(lambda tx: records.account(tx, account.id)) or account
        return Answer(account_json(present, self._urls), location=self._urls.account(account.id))

    def _deactivate(self, account: Account, request: Signed) -> Answer:
        def unit(tx: Transaction) -> None:
            if not records.close_account(tx, account.id, AccountStatus.DEACTIVATED):
                raise unauthorized("this account is closed", 401)
            actor = f"account {account.id}"
            tx.audit(Event("account.deactivated", actor, actor), request.origin)

        self._services.store.write(unit)
        return self._shown(account)

    # -- keyChange -------------------------------------------------------------------------------

    def change_key(self, request: Signed) -> Answer:
        """Give the account that signed another key (§7.3.5)."""
        account = request.signer
        inner = jws.read_key_change(request.payload)
        if inner.url != request.url:
            raise malformed("the inner url is not that of the request")
        key = read_jwk(inner.jwk)
        inner.require_signature(key)
        asked = jws.parse_object(inner.payload, "the inner payload")
        if asked.get("account") != self._urls.account(account.id):
            raise malformed("account in the inner payload is not the account that signed")
        if read_jwk(asked.get("oldKey")).thumbprint != account.key.thumbprint:
            raise malformed("oldKey is not the key of the account")
        changed = self._services.store.write(
            lambda tx: self._replace_key(tx, account, key, request)
        )
        return Answer(account_json(changed, self._urls), location=self._urls.account(account.id))

    def _replace_key(
        self, tx: Transaction, account: Account, key: AccountKey, request: Signed
    ) -> Account:
        holder = records.account_by_key(tx, key.thumbprint)
        if holder is not None:
            raise Problem(
                "malformed",
                "the new key has an account already",
                status=409,
                location=self._urls.account(holder.id),
            )
        require_free(tx, key)
        if not records.change_key(tx, account, key):
            raise unauthorized("the account or its key has changed meanwhile", 401)
        actor = f"account {account.id}"
        detail = {"thumbprint": key.thumbprint}
        tx.audit(Event("account.key-changed", actor, actor, detail), request.origin)
        return records.account(tx, account.id) or account


def require_free(tx: Transaction, key: AccountKey) -> None:
    """Raise Problem badPublicKey if a key is blocked or certified: each use has its own key.

    RFC 8555 §11.1: "a given key pair … not used for both". RFC 8555 §6.2 for the block list.
    """
    if revocations.is_blocked(tx, key.spki_sha256):
        raise Problem("badPublicKey", "this key was reported as compromised: make a new one")
    if certificates.by_spki(tx, key.spki_sha256):
        raise Problem("badPublicKey", "this key is in a certificate: make one for the account")


def _flag(asked: dict[str, Any], name: str) -> bool:
    value = asked.get(name, False)
    if not isinstance(value, bool):
        raise malformed(f"{name} must be true or false")
    return value


def _contact(value: object) -> str:
    """Take `mailto:` with exactly one address and no header fields (RFC 8555 §7.3)."""
    if not isinstance(value, str):
        raise malformed("a contact must be a string")
    scheme, colon, rest = value.partition(":")
    if not colon or scheme.lower() != "mailto":
        raise Problem("unsupportedContact", "contacts are taken as mailto: URLs only")
    if any(mark in rest for mark in "?,%") or not rest.isascii():
        raise Problem(
            "invalidContact", "a mailto: contact is one plain address, without header fields"
        )
    try:
        name = parse_general_name(f"email:{rest}")
    except BadInput as error:
        raise Problem("invalidContact", error.detail) from error
    return f"mailto:{name.value}"
