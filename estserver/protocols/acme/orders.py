"""Orders: made, listed, finalized (RFC 8555 §7.4). What became of one is derived, never stored."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from estserver.csr import read_csr
from estserver.errors import BadInput, NamesNotAllowed, NotFound, Refused
from estserver.model import ACMEOrder, EnrollmentState, Event, Issued, Via
from estserver.profiles import covers
from estserver.protocols import Services
from estserver.protocols.acme import authorization_records, faults, records
from estserver.protocols.acme.answers import Answer, OrderView, order_json, problem_json
from estserver.protocols.acme.authorizations import Authorizations
from estserver.protocols.acme.failures import Failures
from estserver.protocols.acme.gate import Gate, Signed
from estserver.protocols.acme.identifiers import general_name, general_names, read_identifiers
from estserver.protocols.acme.keys import account_key, decode_base64url
from estserver.protocols.acme.limits import OrderLimits
from estserver.protocols.acme.problems import (
    Identifier,
    Problem,
    Subproblem,
    about_identifiers,
    malformed,
    unauthorized,
)
from estserver.protocols.acme.records import Account, Order
from estserver.protocols.acme.renewals import Predecessors
from estserver.protocols.acme.states import (
    ChallengeStatus,
    OrderFacts,
    OrderStatus,
    order_status,
)
from estserver.protocols.acme.terms import Terms
from estserver.protocols.acme.urls import URLs
from estserver.protocols.acme.validity import read_validity
from estserver.ra import EnrollmentRequest
from estserver.store import Transaction, certificates

_TERMS = "terms-of-service"


def view_orders(tx: Transaction, orders: Sequence[Order], now: datetime) -> list[OrderView]:
    """Derive the status of orders from what is stored about them."""
    wanted = [one for order in orders for one in order.authorizations]
    found = authorization_records.authorizations_of(tx, wanted)
    enrolled = certificates.enrollment_states(tx, [order.authority_key for order in orders])
    views = []
    for order in orders:
        error: Mapping[str, Any] | None
        identifier, state, reason = enrolled.get(order.authority_key, (None, None, None))
        facts = OrderFacts(
            authorizations=tuple(found[one].status(now) for one in order.authorizations),
            enrollment=state,
            expires=order.expires_at,
        )
        error = None
        if state is EnrollmentState.REJECTED:
            error = problem_json("unauthorized", f"an officer rejected this request: {reason}")
        elif state is EnrollmentState.ABANDONED:
            error = problem_json("serverInternal", "the certificate could not be signed", 500)
        elif state is None:
            shown = (each for one in order.authorizations for each in found[one].challenges)
            failed = (each.error for each in shown if each.status is ChallengeStatus.INVALID)
            error = next(failed, None)
        views.append(OrderView(order, order_status(facts, now), identifier, error))
    return views


class Orders:
    """Handlers of the order resources. They block; the door runs them on the thread pool."""

    def __init__(  # noqa: PLR0913 - the parts of the door that an order touches
        self,
        services: Services,
        urls: URLs,
        gate: Gate,
        authorizations: Authorizations,
        terms: Terms,
        *,
        limits: OrderLimits,
        failures: Failures,
    ) -> None:
        self._services = services
        self._settings = services.settings.acme
        self._urls = urls
        self._gate = gate
        self._authorizations = authorizations
        self._terms = terms
        self._limits = limits
        self._failures = failures
        self._predecessors = Predecessors(services)

    # -- newOrder --------------------------------------------------------------------------------

    def create(self, request: Signed) -> Answer:
        """Make an order; names that the registration covers are authorized at once (§7.4)."""
        account = request.signer
        asked = request.object()
        self._require_terms(account)
        identifiers = read_identifiers(asked.get("identifiers"))
        try:
            order = self._ordered(request, asked, identifiers)
            view = self._services.store.write(lambda tx: self._add(tx, request, order))
        except Refused as error:
            self._failures.count(account, identifiers, error, request.origin)
            raise
        return self._answer(view, status=201)

    def _ordered(
        self, request: Signed, asked: dict[str, Any], identifiers: tuple[Identifier, ...]
    ) -> Order:
        """Return the order that was asked for, if it may be made; nothing is written yet."""
        account = request.signer
        not_before, not_after = read_validity(asked)
        profile = self._profile(request, asked.get("profile"))
        self._require_certifiable(request, profile, identifiers, named="profile" in asked)
        replaces = asked.get("replaces")
        if replaces is not None:
            self._predecessors.require(replaces, account, identifiers)
        order_id = secrets.token_urlsafe(16)
        # Refuses early what finalize would: no unit left, a registration that has ended.
        entitlement = self._services.authenticator.order(
            self._gate.credential(account), order_id, general_names(identifiers)
        )
        if not_before is not None or not_after is not None:
            if not entitlement.approved:
                raise malformed(
                    "an officer decides on each of these certificates, and when cannot be known: "
                    "leave notBefore and notAfter out"
                )
            self._services.profiles[profile].check_validity(not_before, not_after, request.now)
        authority = entitlement.authority
        if not isinstance(authority, ACMEOrder) or authority.renews is None:
            self._failures.require_unpaused(account, identifiers)
            self._limits.spend(account, request.origin.source)
        expires = request.now + self._settings.order_lifetime
        return Order(
            id=order_id,
            account=account.id,
            identifiers=identifiers,
            profile=profile,
            authorizations=(),
            replaces=replaces,
            not_before=not_before,
            not_after=not_after,
            expires_at=expires if not_after is None else min(expires, not_after),
            created_at=request.now,
        )

    def _add(self, tx: Transaction, request: Signed, order: Order) -> OrderView:
        account = request.signer
        if order.replaces is not None:
            self._require_not_replaced(tx, order.replaces, request.now)
        authorizations = [
            self._authorizations.grant(tx, account, identifier, order.expires_at)
            for identifier in order.identifiers
        ]
        order = replace(
            order,
            authorizations=tuple(one.id for one in authorizations),
            expires_at=min([order.expires_at, *(one.expires_at for one in authorizations)]),
        )
        records.add_order(tx, order)
        tx.audit(
            Event(
                "order.created",
                f"account {account.id}",
                f"order {order.id}",
                {
                    "identifiers": " ".join(f"{one.type}:{one.value}" for one in order.identifiers),
                    "profile": order.profile,
                    "rule": ", ".join(sorted({one.rule or "challenge" for one in authorizations})),
                    "replaces": order.replaces,
                },
            ),
            request.origin,
        )
        facts = OrderFacts(
            authorizations=tuple(one.status(request.now) for one in authorizations),
            enrollment=None,
            expires=order.expires_at,
        )
        return OrderView(order, order_status(facts, request.now), None, None)

    def _require_terms(self, account: Account) -> None:
        """RFC 8555 §7.3.3: new terms must be agreed to before anything else is done."""
        terms = self._settings.terms_of_service
        if terms is not None and account.terms != terms:
            raise Problem(
                "userActionRequired",
                f"the terms of service have changed: agree to them at {terms}",
                status=403,
                members={"instance": self._terms.instance(account, terms)},
                links=((_TERMS, terms),),
            )

    def _profile(self, request: Signed, asked: object) -> str:
        """Return the profile of an order (draft-ietf-acme-profiles §4). Raises invalidProfile."""
        registration = request.registration
        own = self._settings.open_profile if registration is None else registration.profile
        if asked is None or asked == own:
            return own
        if not isinstance(asked, str):
            raise malformed("profile must be a string")
        raise Problem("invalidProfile", f"this account orders certificates of the profile {own}")

    def _require_certifiable(
        self, request: Signed, profile: str, identifiers: Sequence[Identifier], *, named: bool
    ) -> None:
        """Raise Problem rejectedIdentifier with one subproblem for each name that cannot be had.

        invalidProfile instead where the order named a profile that certifies no such names
        (draft-ietf-acme-profiles §4).
        """
        registration = request.registration
        rules = self._services.profiles[profile]
        wrong = []
        for identifier in identifiers:
            name = general_name(identifier)
            try:
                rules.check_names([name])
            except BadInput as error:
                if named:
                    raise Problem("invalidProfile", error.detail) from error
                wrong.append(Subproblem("rejectedIdentifier", error.detail, identifier))
                continue
            if registration is not None and not covers(registration, name):
                detail = "the registration of this account does not grant this name"
                wrong.append(Subproblem("rejectedIdentifier", detail, identifier))
        if wrong:
            raise about_identifiers(wrong)

    def _require_not_replaced(self, tx: Transaction, certificate_id: str, now: datetime) -> None:
        """RFC 9773 §5: one certificate is replaced by one order that is not invalid."""
        earlier = records.orders_replacing(tx, certificate_id)
        for view in view_orders(tx, earlier, now):
            if view.status is not OrderStatus.INVALID:
                raise Problem(
                    "alreadyReplaced",
                    "another order replaces this certificate already",
                    status=409,
                    location=self._urls.order(view.order.id),
                )

    # -- looking ---------------------------------------------------------------------------------

    def show(self, request: Signed, identifier: str) -> Answer:
        """Show an order (§7.1.3)."""
        request.require_fetch()
        return self._answer(self.view(request, identifier))

    def listing(self, request: Signed, account: str, cursor: str | None) -> Answer:
        """List the orders that are not invalid, newest first, page by page (§7.1.2.1)."""
        request.require_fetch()
        if request.signer.id != account:
            raise unauthorized("this is the list of another account")
        size = faults.armed.page

        def read(tx: Transaction) -> list[OrderView]:
            after = None if cursor is None else _own(tx, request, cursor)
            page = records.orders_page(tx, account, after=after, limit=size)
            return view_orders(tx, page, request.now)

        views = self._services.store.read(read)
        links: tuple[tuple[str, str], ...] = ()
        if len(views) == size:
            last = views[-1].order.id
            links = (("next", f"{self._urls.orders(account)}?cursor={last}"),)
        shown = [
            self._urls.order(view.order.id)
            for view in views
            if view.status is not OrderStatus.INVALID
        ]
        return Answer({"orders": shown}, links=links)

    def view(self, request: Signed, identifier: str) -> OrderView:
        """Return an order of the account that signed, with what was derived."""

        def read(tx: Transaction) -> OrderView:
            return view_orders(tx, [_own(tx, request, identifier)], request.now)[0]

        return self._services.store.read(read)

    def _answer(self, view: OrderView, *, status: int = 200) -> Answer:
        waits = view.status in {OrderStatus.PENDING, OrderStatus.PROCESSING}
        return Answer(
            order_json(view, self._urls),
            status=status,
            location=self._urls.order(view.order.id),
            retry_after=int(self._settings.retry_after.total_seconds()) if waits else None,
            enrollment=view.enrollment,
        )

    # -- finalize --------------------------------------------------------------------------------

    def finalize(self, request: Signed, identifier: str) -> Answer:
        """Issue what was ordered, for the key in the CSR (§7.4)."""
        if request.fetches:
            return self.show(request, identifier)
        asked = request.object()
        view = self.view(request, identifier)
        if view.status is not OrderStatus.READY:
            raise Problem("orderNotReady", f"this order is {view.status}", status=403)
        try:
            return self._enroll(request, view.order, asked.get("csr"))
        except Refused as error:
            self._failures.count(request.signer, view.order.identifiers, error, request.origin)
            raise

    def _enroll(self, request: Signed, order: Order, csr_text: object) -> Answer:
        """Give a ready order the certificate for the key in the CSR."""
        if self._settings.tolerate_padding and isinstance(csr_text, str):
            csr_text = csr_text.rstrip("=")
        der = decode_base64url(csr_text, "csr")
        if not der.startswith(b"\x30"):
            raise malformed("csr must be base64url of a PKCS#10 in DER, not of PEM")
        csr = read_csr(der)
        self._require_own_key(account_key(csr.public_key).thumbprint)
        account = request.signer
        if order.profile != self._profile(request, None):
            raise Problem(
                "invalidProfile", f"the profile {order.profile} is not to be had any more"
            )
        try:
            entitlement = self._services.authenticator.order(
                self._gate.credential(account), order.id, general_names(order.identifiers)
            )
        except NamesNotAllowed as error:
            raise Problem("rejectedIdentifier", error.detail, status=403) from error
        grant = replace(entitlement.grant, not_before=order.not_before, not_after=order.not_after)
        entitlement = replace(entitlement, grant=grant)
        outcome = self._services.ra.enroll(
            EnrollmentRequest(entitlement, csr, Via.ACME, request.origin)
        )
        if isinstance(outcome, Issued):
            return self._answer(OrderView(order, OrderStatus.VALID, outcome.enrollment, None))
        answer = self._answer(self.view(request, order.id))
        # An officer must decide: the client polls the order (§7.4).
        return Answer(
            answer.body,
            location=answer.location,
            retry_after=max(1, int(outcome.retry_after / timedelta(seconds=1))),
            enrollment=outcome.enrollment,
        )

    def _require_own_key(self, thumbprint: str) -> None:
        """RFC 8555 §11.1: a CSR MUST NOT hold the public key of any known account."""
        found = self._services.store.read(lambda tx: records.account_by_key(tx, thumbprint))
        if found is not None:
            raise Problem("badCSR", "the CSR's key is that of an account: make another one")


def _own(tx: Transaction, request: Signed, identifier: str) -> Order:
    """Return an order of the account that signed. Raises NotFound, Problem unauthorized."""
    order = records.order(tx, identifier)
    if order is None:
        raise NotFound("there is no such order")
    if order.account != request.signer.id:
        raise unauthorized("this order is another account's")
    return order
