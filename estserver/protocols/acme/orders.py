"""Orders: made, listed, finalized (RFC 8555 §7.4). What became of one is derived, never stored."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from estserver.csr import holds_quick_key, read_csr
from estserver.errors import BadInput, NamesNotAllowed, NotFound, Refused
from estserver.granted_names import covers
from estserver.model import ACMEOrder, EnrollmentState, Event, Issued, Via
from estserver.protocols import Services
from estserver.protocols.acme import authorization_records, faults, records
from estserver.protocols.acme.answers import Answer, OrderView, order_json, problem_json
from estserver.protocols.acme.authorization_records import Authorization
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
from estserver.steps import Steps, apart, change, look, read, write
from estserver.store import Transaction, ordered

_TERMS = "terms-of-service"


def view_orders(tx: Transaction, orders: Sequence[Order], now: datetime) -> list[OrderView]:
    """Derive the status of orders from what is stored about them."""
    enrolled = ordered.enrollment_states(tx, [order.authority_key for order in orders])
    # Of an order with an enrollment that alone decides.
    wanted = [
        one
        for order in orders
        if order.authority_key not in enrolled
        for one in order.authorizations
    ]
    found = authorization_records.authorizations_of(tx, wanted)
    views = []
    for order in orders:
        error: Mapping[str, Any] | None
        identifier, state, reason = enrolled.get(order.authority_key, (None, None, None))
        facts = OrderFacts(
            authorizations=tuple(
                found[one].status(now) for one in order.authorizations if state is None
            ),
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


def own_views(tx: Transaction, asked: Sequence[tuple[Signed, str]]) -> list[OrderView | Refused]:
    """Derive the status of orders given by their ids, for the accounts that signed."""
    found = records.orders_by_id(tx, {identifier for _, identifier in asked})
    views = {view.order.id: view for view in view_orders(tx, list(found.values()), tx.now)}

    def answer(request: Signed, identifier: str) -> OrderView | Refused:
        if identifier not in views:
            return NotFound("there is no such order")
        view = views[identifier]
        if view.order.account != request.signer.id:
            return unauthorized("this order is another account's")
        return view

    return [answer(request, identifier) for request, identifier in asked]


@dataclass(frozen=True, slots=True)
class _Asked:
    """An order to be added, whose authorizations are not known yet, and who asks for it."""

    request: Signed
    order: Order


class Orders:
    """Handlers of the order resources."""

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

    def create(self, request: Signed) -> Steps[Answer]:
        """Make an order; names that the registration covers are authorized at once (§7.4)."""
        account = request.signer
        asked = request.object()
        self._require_terms(account)
        identifiers = read_identifiers(asked.get("identifiers"))
        try:
            order = yield from self._ordering(request, asked, identifiers)
            new = _Asked(request, order)
            if order.replaces is None:
                view = yield from write(self._add, new)
            else:
                view = yield from change(lambda tx: self._add_replacing(tx, new))
        except Refused as error:
            yield from self._failures.counting(account, identifiers, error, request.origin)
            raise
        return self._answer(view, status=201)

    def _ordering(
        self, request: Signed, asked: dict[str, Any], identifiers: tuple[Identifier, ...]
    ) -> Steps[Order]:
        """Return the order that was asked for, if it may be made; nothing is written yet."""
        account = request.signer
        not_before, not_after = read_validity(asked)
        profile = self._profile(request, asked.get("profile"))
        self._require_certifiable(request, profile, identifiers, named="profile" in asked)
        replaces = asked.get("replaces")
        if replaces is not None:
            yield from self._predecessors.requiring(replaces, account, identifiers)
        order_id = secrets.token_urlsafe(16)
        # Refuses early what finalize would: no unit left, a registration that has ended.
        entitlement = yield from self._services.authenticator.ordering(
            self._gate.credential(request), order_id, general_names(identifiers)
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
            yield from self._failures.requiring_unpaused(account, identifiers)
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

    def _add_replacing(self, tx: Transaction, new: _Asked) -> OrderView:
        """Add an order that replaces a certificate. Raises Problem alreadyReplaced."""
        if new.order.replaces is not None:
            self._require_not_replaced(tx, new.order.replaces, new.request.now)
        return self._add(tx, [new])[0]

    def _add(self, tx: Transaction, asked: Sequence[_Asked]) -> list[OrderView]:
        """Add orders, and the authorizations that they need and do not have."""
        views = []
        authorizations: list[Authorization] = []
        for new in asked:
            request, order = new.request, new.order
            granted = [
                self._authorizations.grant(tx, request, identifier, order.expires_at)
                for identifier in order.identifiers
            ]
            authorizations += [one for one, fresh in granted if fresh]
            order = replace(
                order,
                authorizations=tuple(one.id for one, _ in granted),
                expires_at=min([order.expires_at, *(one.expires_at for one, _ in granted)]),
            )
            tx.audit(
                _created(order, {one.rule or "challenge" for one, _ in granted}), request.origin
            )
            facts = OrderFacts(
                authorizations=tuple(one.status(request.now) for one, _ in granted),
                enrollment=None,
                expires=order.expires_at,
            )
            views.append(OrderView(order, order_status(facts, request.now), None, None))
        authorization_records.add_authorizations(tx, authorizations)
        records.add_orders(tx, [view.order for view in views])
        return views

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

    def show(self, request: Signed, identifier: str) -> Steps[Answer]:
        """Show an order (§7.1.3)."""
        request.require_fetch()
        return self._answer((yield from read(own_views, (request, identifier))))

    def listing(self, request: Signed, account: str, cursor: str | None) -> Steps[Answer]:
        """List the orders that are not invalid, newest first, page by page (§7.1.2.1)."""
        request.require_fetch()
        if request.signer.id != account:
            raise unauthorized("this is the list of another account")
        size = faults.armed.page

        def page(tx: Transaction) -> list[OrderView]:
            after = None
            if cursor is not None:
                (last,) = own_views(tx, [(request, cursor)])
                if isinstance(last, Refused):
                    raise last
                after = last.order
            found = records.orders_page(tx, account, after=after, limit=size)
            return view_orders(tx, found, request.now)

        views = yield from look(page)
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

    def finalize(self, request: Signed, identifier: str) -> Steps[Answer]:
        """Issue what was ordered, for the key in the CSR (§7.4)."""
        if request.fetches:
            return (yield from self.show(request, identifier))
        asked = request.object()
        view = yield from read(own_views, (request, identifier))
        if view.status is not OrderStatus.READY:
            raise Problem("orderNotReady", f"this order is {view.status}", status=403)
        try:
            return (yield from self._enrolling(request, view.order, asked.get("csr")))
        except Refused as error:
            yield from self._failures.counting(
                request.signer, view.order.identifiers, error, request.origin
            )
            raise

    def _enrolling(self, request: Signed, order: Order, csr_text: object) -> Steps[Answer]:
        """Give a ready order the certificate for the key in the CSR."""
        if self._settings.tolerate_padding and isinstance(csr_text, str):
            csr_text = csr_text.rstrip("=")
        der = decode_base64url(csr_text, "csr")
        if not der.startswith(b"\x30"):
            raise malformed("csr must be base64url of a PKCS#10 in DER, not of PEM")
        if holds_quick_key(der):
            csr = read_csr(der)
        else:
            csr = yield from apart(partial(read_csr, der))
        if (yield from read(records.account_keys, account_key(csr.public_key).thumbprint)):
            # RFC 8555 §11.1: a CSR MUST NOT hold the public key of any known account.
            raise Problem("badCSR", "the CSR's key is that of an account: make another one")
        if order.profile != self._profile(request, None):
            raise Problem(
                "invalidProfile", f"the profile {order.profile} is not to be had any more"
            )
        try:
            entitlement = yield from self._services.authenticator.ordering(
                self._gate.credential(request), order.id, general_names(order.identifiers)
            )
        except NamesNotAllowed as error:
            raise Problem("rejectedIdentifier", error.detail, status=403) from error
        grant = replace(entitlement.grant, not_before=order.not_before, not_after=order.not_after)
        entitlement = replace(entitlement, grant=grant)
        outcome = yield from self._services.ra.enrolling(
            EnrollmentRequest(entitlement, csr, Via.ACME, request.origin)
        )
        if isinstance(outcome, Issued):
            return self._answer(OrderView(order, OrderStatus.VALID, outcome.enrollment, None))
        answer = self._answer((yield from read(own_views, (request, order.id))))
        # An officer must decide: the client polls the order (§7.4).
        return Answer(
            answer.body,
            location=answer.location,
            retry_after=max(1, int(outcome.retry_after / timedelta(seconds=1))),
            enrollment=outcome.enrollment,
        )


def _created(order: Order, rules: Collection[str]) -> Event:
    return Event(
        "order.created",
        f"account {order.account}",
        f"order {order.id}",
        {
            "identifiers": " ".join(f"{one.type}:{one.value}" for one in order.identifiers),
            "profile": order.profile,
            "rule": ", ".join(sorted(rules)),
            "replaces": order.replaces,
        },
    )
