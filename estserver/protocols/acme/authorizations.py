"""Authorizations and challenges: who may have which name, and how it was shown (RFC 8555 §7.5).

A name that the account's registration covers is authorized when it is asked for; the row says by
which rule. Any other name of an account without registration needs a challenge.
"""

import secrets
from datetime import datetime, timedelta

from estserver.errors import BadInput, NotFound
from estserver.granted_names import covers
from estserver.model import Event
from estserver.protocols import Services
from estserver.protocols.acme import authorization_records, faults
from estserver.protocols.acme.answers import Answer, authorization_json, challenge_json
from estserver.protocols.acme.authorization_records import Authorization, Challenge
from estserver.protocols.acme.gate import Signed
from estserver.protocols.acme.identifiers import general_name, read_identifier
from estserver.protocols.acme.limits import OrderLimits
from estserver.protocols.acme.problems import Identifier, Problem, malformed, unauthorized
from estserver.protocols.acme.records import Account
from estserver.protocols.acme.states import AuthorizationStatus, ChallengeStatus
from estserver.protocols.acme.urls import URLs
from estserver.steps import Steps, change, look
from estserver.store import Transaction

_WILDCARD = "*."
HASTE = timedelta(seconds=15)
"""A client that asks again makes an attempt due at once that would come within this time (§8.2)."""


class Authorizations:
    """Handlers of authorizations and challenges."""

    def __init__(self, services: Services, urls: URLs, limits: OrderLimits) -> None:
        self._services = services
        self._settings = services.settings.acme
        self._urls = urls
        self._limits = limits

    # -- making ----------------------------------------------------------------------------------

    def grant(
        self,
        tx: Transaction,
        request: Signed,
        identifier: Identifier,
        order_expires: datetime | None,
    ) -> tuple[Authorization, bool]:
        """Return an authorization for a name: by rule, an earlier one, or a pending one.

        And whether it is new and to be added. `order_expires` None: there is no order yet.
        """
        account = request.signer
        wildcard = identifier.value.startswith(_WILDCARD)
        bare = Identifier(identifier.type, identifier.value.removeprefix(_WILDCARD))
        rule = None
        invitation = request.registration
        if invitation is not None and covers(invitation, general_name(identifier)):
            rule = f"invitation {invitation.number}"
        if rule is None:
            earlier = authorization_records.live_authorizations(tx, account.id, [bare.value])
            for one in earlier if faults.armed.reuses() else ():
                usable = one.status(tx.now) is AuthorizationStatus.VALID and one.rule is None
                if usable and one.identifier == bare and one.wildcard == wildcard:
                    return one, False
        authorization_id = secrets.token_urlsafe(16)
        authorization = Authorization(
            id=authorization_id,
            account=account.id,
            identifier=bare,
            wildcard=wildcard,
            rule=rule,
            deactivated=False,
            early=order_expires is None,
            expires_at=tx.now + self._settings.authorization_lifetime
            if rule is None or order_expires is None
            else order_expires,
            challenges=tuple(
                self._challenge(authorization_id, kind, tx.now if rule is not None else None)
                for kind in self._kinds(bare, wildcard=wildcard, by_rule=rule is not None)
            ),
        )
        return authorization, True

    def _kinds(self, identifier: Identifier, *, wildcard: bool, by_rule: bool) -> tuple[str, ...]:
        """List the challenge types for a name (RFC 8555 §7.1.3, RFC 8738 §7)."""
        if by_rule:
            # §7.1.4 wants the challenge that was validated. There was none, but clients look one up
            # by type even where the authorization is valid: so the one that every name can have.
            return ("dns-01",) if identifier.type == "dns" else ("http-01",)
        if wildcard:
            return tuple(kind for kind in self._settings.challenges if kind == "dns-01")
        if identifier.type == "ip":
            return tuple(kind for kind in self._settings.challenges if kind != "dns-01")
        return self._settings.challenges

    def _challenge(self, authorization: str, kind: str, valid_at: datetime | None) -> Challenge:
        return Challenge(
            id=secrets.token_urlsafe(16),
            authorization=authorization,
            type=kind,
            token=secrets.token_urlsafe(32),
            status=ChallengeStatus.PENDING if valid_at is None else ChallengeStatus.VALID,
            thumbprint=None,
            attempts=0,
            due_at=None,
            validated_at=valid_at,
            error=None,
        )

    def create(self, request: Signed) -> Steps[Answer]:
        """Authorize a name before any order (§7.4.1)."""
        account = request.signer
        identifier = read_identifier(request.object().get("identifier"))
        if identifier.value.startswith(_WILDCARD):
            raise malformed("a wildcard cannot be authorized in advance (RFC 8555 7.4.1)")
        registration = request.registration
        profile = self._settings.open_profile if registration is None else registration.profile
        name = general_name(identifier)
        try:
            self._services.profiles[profile].check_names([name])
        except BadInput as error:
            raise Problem("rejectedIdentifier", error.detail, status=403) from error
        if registration is not None and not covers(registration, name):
            raise Problem(
                "rejectedIdentifier",
                "the registration of this account does not grant this name",
                status=403,
            )
        self._limits.spend(account, request.origin.source)

        def unit(tx: Transaction) -> Authorization:
            made, new = self.grant(tx, request, identifier, None)
            if new:
                authorization_records.add_authorizations(tx, [made])
            tx.audit(
                Event(
                    "authorization.created",
                    f"account {account.id}",
                    f"authorization {made.id}",
                    {"identifier": identifier.value, "rule": made.rule or "challenge"},
                ),
                request.origin,
            )
            return made

        made = yield from change(unit)
        return Answer(
            authorization_json(made, self._urls, request.now),
            status=201,
            location=self._urls.authorization(made.id),
        )

    # -- authorizations --------------------------------------------------------------------------

    def change(self, request: Signed, identifier: str) -> Steps[Answer]:
        """Show an authorization, or give it up (§7.5, §7.5.2)."""
        authorization = yield from self._finding_own(request, identifier)
        if not request.fetches:
            if request.object().get("status") != AuthorizationStatus.DEACTIVATED:
                raise malformed('an authorization takes no change but {"status": "deactivated"}')
            authorization = yield from self._deactivating(request, authorization)
        processing = any(
            one.status is ChallengeStatus.PROCESSING for one in authorization.challenges
        )
        return Answer(
            authorization_json(authorization, self._urls, request.now),
            location=self._urls.authorization(authorization.id),
            retry_after=self._retry_after if processing else None,
        )

    def _deactivating(self, request: Signed, authorization: Authorization) -> Steps[Authorization]:
        live = {AuthorizationStatus.PENDING, AuthorizationStatus.VALID}

        def unit(tx: Transaction) -> Authorization:
            present = authorization_records.authorization(tx, authorization.id) or authorization
            if present.status(tx.now) not in live:
                raise malformed(f"this authorization is {present.status(tx.now)} already")
            authorization_records.deactivate_authorization(tx, present.id)
            tx.audit(
                Event(
                    "authorization.deactivated",
                    f"account {request.signer.id}",
                    f"authorization {present.id}",
                    {"identifier": present.identifier.value},
                ),
                request.origin,
            )
            return authorization_records.authorization(tx, present.id) or present

        return (yield from change(unit))

    def _finding_own(self, request: Signed, identifier: str) -> Steps[Authorization]:
        found = yield from look(lambda tx: authorization_records.authorization(tx, identifier))
        if found is None:
            raise NotFound("there is no such authorization")
        if found.account != request.signer.id:
            raise unauthorized("this authorization is another account's")
        return found

    @property
    def _retry_after(self) -> int:
        return max(1, int(self._settings.retry_after.total_seconds()))

    # -- challenges ------------------------------------------------------------------------------

    def respond(self, request: Signed, identifier: str) -> Steps[Answer]:
        """Show a challenge, or take the client's word that it is ready to be tried (§7.5.1)."""
        found = yield from look(lambda tx: authorization_records.challenge(tx, identifier))
        if found is None:
            raise NotFound("there is no such challenge")
        authorization = yield from self._finding_own(request, found.authorization)
        if not request.fetches:
            # Members are ignored: old clients send keyAuthorization, which the server knows.
            request.object()
            found = yield from self._beginning(request, authorization, found)
        processing = found.status is ChallengeStatus.PROCESSING
        return Answer(
            challenge_json(found, self._urls),
            location=self._urls.challenge(found.id),
            links=(("up", self._urls.authorization(authorization.id)),),
            retry_after=self._retry_after if processing else None,
        )

    def _beginning(
        self, request: Signed, authorization: Authorization, challenge: Challenge
    ) -> Steps[Challenge]:
        thumbprint = request.key.thumbprint

        def unit(tx: Transaction) -> Challenge:
            present = authorization_records.authorization(tx, authorization.id) or authorization
            status = present.status(tx.now)
            if challenge.status is ChallengeStatus.PENDING:
                if status is not AuthorizationStatus.PENDING:
                    raise malformed(f"the authorization of this challenge is {status}")
                authorization_records.begin_challenge(tx, challenge.id, thumbprint=thumbprint)
            elif challenge.status is ChallengeStatus.PROCESSING:
                authorization_records.hasten_challenge(tx, challenge.id, due_before=tx.now + HASTE)
            return authorization_records.challenge(tx, challenge.id) or challenge

        return (yield from change(unit))

    def holds_all(self, tx: Transaction, account: Account, names: frozenset[Identifier]) -> bool:
        """Tell whether an account holds valid authorizations for all of these names (§7.6)."""
        values = sorted({name.value.removeprefix(_WILDCARD) for name in names})
        live = authorization_records.live_authorizations(tx, account.id, values)
        held = {
            Identifier(one.identifier.type, _WILDCARD * one.wildcard + one.identifier.value)
            for one in live
            if one.status(tx.now) is AuthorizationStatus.VALID
        }
        return bool(names) and names <= held
