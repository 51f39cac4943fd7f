"""ACME orders: what may be ordered, by whom, until when, and what it costs (RFC 8555 7.4)."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from itertools import product
from typing import Any

import pytest
from cryptography import x509

from estserver.model import CertificateState, EnrollmentState
from estserver.protocols.acme import states
from estserver.protocols.acme.states import (
    AuthorizationStatus,
    ChallengeStatus,
    OrderFacts,
    OrderStatus,
    authorization_status,
    order_status,
)
from tests.live import ORIGIN, Live, MovableClock, make_csr, new_key
from tests.protocols.acme.wire import NAMES, Client, Server, b64, csr_for, registered
from tests.protocols.est_wire import audit_rows


@pytest.fixture(scope="module")
def client(shared: Live) -> Client:
    return registered(
        shared, *NAMES, "*.w.example.org", "ip:192.0.2.1", "ip:2001:db8::1", units=999
    )


@pytest.fixture(scope="module")
def either(server: Server) -> Client:
    return registered(
        server, *NAMES, "*.w.example.org", "ip:192.0.2.1", "ip:2001:db8::1", units=999
    )


# -- states ---------------------------------------------------------------------------------------


@pytest.mark.row("ACME-111", "ACME-112", "ACME-113", "ACME-125")
def test_derived_states_only_ever_move_as_the_tables_say() -> None:
    now = MovableClock().now()
    later, past = now + timedelta(hours=1), now - timedelta(hours=1)
    statuses = list(product(ChallengeStatus, repeat=2))
    for before, after in product(statuses, statuses):
        legal = all(
            b == a or a in states.CHALLENGE_MOVES[b] for b, a in zip(before, after, strict=True)
        )
        if not legal:
            continue
        for was_given_up, given_up, was_over, over in product((False, True), repeat=4):
            if was_given_up > given_up or was_over > over:
                continue
            first = authorization_status(
                before, deactivated=was_given_up, expires=past if was_over else later, now=now
            )
            second = authorization_status(
                after, deactivated=given_up, expires=past if over else later, now=now
            )
            if first in {AuthorizationStatus.PENDING, AuthorizationStatus.VALID}:
                reachable = states.AUTHORIZATION_MOVES[first]
                beyond = {end for one in reachable for end in states.AUTHORIZATION_MOVES[one]}
                assert second == first or second in reachable | beyond
    for authorizations in product(AuthorizationStatus, repeat=2):
        status = order_status(OrderFacts(authorizations, None, expires=later), now)
        if set(authorizations) == {AuthorizationStatus.VALID}:
            assert status is OrderStatus.READY
        elif set(authorizations) <= {AuthorizationStatus.VALID, AuthorizationStatus.PENDING}:
            assert status is OrderStatus.PENDING
        else:
            assert status is OrderStatus.INVALID
        for state in EnrollmentState:
            decided = order_status(OrderFacts(authorizations, state, expires=past), now)
            assert decided in {OrderStatus.PROCESSING, OrderStatus.VALID, OrderStatus.INVALID}
    valid = (AuthorizationStatus.VALID,)
    assert order_status(OrderFacts(valid, None, expires=now), now) == "invalid"


# -- newOrder -------------------------------------------------------------------------------------


@pytest.mark.row("ACME-100", "ACME-109", "ACME-110", "ACME-116", "ACME-181", "ACME-111")
def test_an_order_of_the_invitations_names_is_born_ready(shared: Live, client: Client) -> None:
    reply = client.order(*NAMES)
    assert reply.status == 201
    order = reply.json
    assert order["status"] == "ready"
    assert order["expires"].endswith("Z")
    assert order["identifiers"] == [{"type": "dns", "value": name} for name in NAMES]
    assert order["finalize"].startswith(reply.header("Location"))
    assert order["profile"] == "server"
    for url, name in zip(order["authorizations"], NAMES, strict=True):
        authorization = client.get(url).json
        assert authorization["status"] == "valid"
        assert authorization["identifier"] == {"type": "dns", "value": name}
        assert authorization["expires"].endswith("Z")
        assert "wildcard" not in authorization
        (challenge,) = authorization["challenges"]
        assert challenge["status"] == "valid"
        assert challenge["validated"].endswith("Z")
    for _ in range(3):
        assert client.get(reply.header("Location")).json == order
    row = next(row for row in reversed(audit_rows(shared)) if row.event == "order.created")
    assert row.detail["rule"].startswith("invitation ")


@pytest.mark.row("ACME-101")
@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"identifiers": []},
        {"identifiers": {}},
        {"identifiers": "a.example.org"},
        {"identifiers": ["a.example.org"]},
        {"identifiers": [{"type": "dns"}]},
        {"identifiers": [{"value": "a.example.org"}]},
        {"identifiers": [{"type": "dns", "value": 7}]},
        {"identifiers": [{"type": 7, "value": "a.example.org"}]},
        {"identifiers": [{"type": "dns", "value": ""}]},
        {"identifiers": [{"type": "dns", "value": f"n{i}.example.org"} for i in range(101)]},
    ],
)
def test_an_order_needs_identifiers(either: Client, payload: dict[str, Any]) -> None:
    either.post("new-order", payload).refused(400, "malformed")


@pytest.mark.row("ACME-102", "ACME-103", "ACME-165")
@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        ("foo", "a.example.org", "unsupportedIdentifier"),
        ("email", "a@example.org", "unsupportedIdentifier"),
        *(
            ("dns", value, "malformed")
            for value in (
                *("_x.example.org", "a..b", f"{'l' * 64}.example.org", "-a.example.org"),
                *("a.example.org.", "a b.example.org", "*.*.a.example.org", "a.*.example.org"),
                *("xn--.example.org", "xn--zzzzzzz999.example.org", "bücher.example.org"),
                *("192.0.2.1", f"{'a.' * 127}org", "*", "a\x00.example.org", "0x7f000001", "a:80"),
            )
        ),
        *(
            ("ip", value, "malformed")
            for value in (
                *("2001:DB8:0::1", "010.0.0.1", "1.2.3", "[::1]", "10.0.0.0/8", "fe80::1%eth0"),
                *("::ffff:1.2.3.4", "2001:db8:0:0:0:0:0:1", "a.example.org", "0x7f.1"),
            )
        ),
    ],
)
def test_what_is_no_identifier_is_refused(
    either: Client, kind: str, value: str, problem: str
) -> None:
    payload = {"identifiers": [{"type": kind, "value": value}]}
    either.post("new-order", payload).refused(400, problem)


@pytest.mark.row("ACME-052", "ACME-108")
def test_each_bad_name_has_a_subproblem_and_nothing_is_made(client: Client) -> None:
    before = client.get(f"{client.kid}/orders").json
    reply = client.order("a.example.org", "x.example.org", "y.example.org")
    problem = reply.refused(400, "rejectedIdentifier")
    assert "identifier" not in problem
    shown = [one["identifier"]["value"] for one in problem["subproblems"]]
    assert shown == ["x.example.org", "y.example.org"]
    mixed = client.post(
        "new-order",
        {"identifiers": [{"type": "dns", "value": "_"}, {"type": "foo", "value": "x"}]},
    ).refused(400, "compound")
    assert [one["type"].rpartition(":")[2] for one in mixed["subproblems"]] == [
        "malformed",
        "unsupportedIdentifier",
    ]
    assert client.get(f"{client.kid}/orders").json == before


@pytest.mark.row("ACME-104", "ACME-106")
def test_names_are_lower_case_and_stand_once(client: Client) -> None:
    order = client.order("A.Example.ORG", "a.example.org").json
    assert order["identifiers"] == [{"type": "dns", "value": "a.example.org"}]
    assert len(order["authorizations"]) == 1
    done = client.finalize(order, csr_for("A.EXAMPLE.org")).json
    chain = client.get(done["certificate"]).answer.body
    names = x509.load_pem_x509_certificates(chain)[0].extensions
    san = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["a.example.org"]


@pytest.mark.row("ACME-105", "ACME-106")
def test_a_wildcard_is_authorized_by_its_base(client: Client) -> None:
    order = client.order("*.w.example.org", "x.w.example.org").json
    assert order["status"] == "ready"
    wildcard, host = (client.get(url).json for url in order["authorizations"])
    assert wildcard["identifier"]["value"] == "w.example.org"
    assert wildcard["wildcard"] is True
    assert {one["type"] for one in wildcard["challenges"]} == {"dns-01"}
    assert "wildcard" not in host
    # The wildcard covers one label; neither its own base nor what is deeper.
    for name in ("w.example.org", "a.x.w.example.org", "*.x.w.example.org", "*.example.org"):
        client.order(name).refused(400, "rejectedIdentifier")


@pytest.mark.row("ACME-164", "ACME-166", "ACME-168")
def test_addresses_are_ordered_and_certified(client: Client) -> None:
    names = ("ip:192.0.2.1", "ip:2001:db8::1")
    order = client.order(*names).json
    for url in order["authorizations"]:
        assert {c["type"] for c in client.get(url).json["challenges"]} == {"http-01"}
    as_dns = make_csr(new_key(), names=(x509.DNSName("192.0.2.1"), x509.DNSName("2001:db8::1")))
    client.finalize(order, as_dns).refused(400, "badCSR")
    assert client.finalize(order, csr_for(*names)).json["status"] == "valid"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.row("ACME-107")
def test_a_validity_within_the_profiles_is_issued_exactly_so(shared: Live, client: Client) -> None:
    now = shared.clock.now()
    end = now + timedelta(days=20)
    for asked, begin in (
        ({"notAfter": _time(end)}, None),
        ({"notBefore": _time(now), "notAfter": _time(end)}, now),
        ({"notBefore": _time(now)}, now),
        # The same moment in another zone.
        ({"notAfter": (end.astimezone(timezone(timedelta(hours=9)))).isoformat()}, None),
    ):
        reply = client.order(NAMES[0], **asked)
        assert reply.status == 201, reply.answer.body
        shown = {name: reply.json.get(name) for name in ("notBefore", "notAfter")}
        wanted = {"notBefore": None if begin is None else _time(begin)}
        wanted["notAfter"] = _time(end) if "notAfter" in asked else None
        assert shown == wanted
        done = client.finalize(reply.json, csr_for(NAMES[0]))
        leaf = x509.load_pem_x509_certificates(client.get(done.json["certificate"]).answer.body)[0]
        if begin is not None:
            assert leaf.not_valid_before_utc == begin
        if "notAfter" in asked:
            assert leaf.not_valid_after_utc == end


@pytest.mark.row("ACME-107")
@pytest.mark.parametrize(
    "asked",
    [
        *({"notAfter": bad} for bad in ("tomorrow", "2027-01-01", 7, None, "2027-W01-1T00:00:00Z")),
        *({"notAfter": bad} for bad in ("2027-01-01T00:00:00", "20270101T000000Z", "")),
        *({"notAfter": bad} for bad in ("2027-02-30T00:00:00Z", "2027-01-01T00:00:00.5Z")),
        {"notAfter": "9999-12-31T23:59:59-23:59"},
        {"notAfter": "2026-01-01T00:00:00Z"},
        {"notAfter": "2126-01-01T00:00:00Z"},
        {"notBefore": "2026-01-01T00:00:00Z"},
        {"notBefore": "2126-01-01T00:00:00Z"},
        {"notBefore": "2027-01-02T00:00:00Z", "notAfter": "2027-01-01T00:00:00Z"},
    ],
)
def test_another_validity_is_refused(client: Client, asked: dict[str, Any]) -> None:
    client.order(NAMES[0], **asked).refused(400, "malformed")


@pytest.mark.row("ACME-107", "ACME-112")
def test_an_order_ends_with_the_validity_it_asks_for(live: Live) -> None:
    client = registered(live, *NAMES)
    end = live.clock.now() + timedelta(hours=1)
    reply = client.order(NAMES[0], notAfter=_time(end))
    assert reply.json["expires"] == _time(end)
    live.clock.advance(timedelta(hours=2))
    client.finalize(reply.json, csr_for(NAMES[0])).refused(403, "orderNotReady")


@pytest.mark.row("ACME-107")
def test_a_shorter_profile_is_not_talked_round_by_an_older_order(live: Live) -> None:
    client = registered(live, *NAMES)
    end = live.clock.now() + timedelta(days=60)
    reply = client.order(NAMES[0], notAfter=_time(end))
    rules = live.settings.profiles["server"].model_copy(update={"validity": timedelta(days=30)})
    profiles = {**live.settings.profiles, "server": rules}
    live.core.take_profiles(live.settings.model_copy(update={"profiles": profiles}))
    client.finalize(reply.json, csr_for(NAMES[0])).refused(403, "unauthorized")
    assert client.get(reply.header("Location")).json["status"] == "ready"


@pytest.mark.row("ACME-107")
def test_what_an_officer_decides_later_has_no_validity_now(shared: Live) -> None:
    client = registered(shared, *NAMES, approval=True)
    end = shared.clock.now() + timedelta(days=20)
    client.order(NAMES[0], notAfter=_time(end)).refused(400, "malformed")
    assert client.order(NAMES[0]).status == 201


@pytest.mark.row("ACME-181", "ACME-182")
def test_only_the_profile_of_the_invitation_is_to_be_had(client: Client) -> None:
    assert client.order(NAMES[0], profile="server").json["profile"] == "server"
    for other in ("device", "person", "nothing", "", "_tls"):
        client.order(NAMES[0], profile=other).refused(400, "invalidProfile")
    client.order(NAMES[0], profile=7).refused(400, "malformed")


@pytest.mark.row("ACME-182")
def test_a_profile_that_certifies_no_such_names_is_invalid(live: Live) -> None:
    client = registered(live, *NAMES, "ip:192.0.2.1")
    only_dns = live.settings.profiles["server"].model_copy(update={"names": ("dns",)})
    profiles = {**live.settings.profiles, "server": only_dns}
    live.core.take_profiles(live.settings.model_copy(update={"profiles": profiles}))
    client.order("ip:192.0.2.1", profile="server").refused(400, "invalidProfile")
    client.order("ip:192.0.2.1").refused(400, "rejectedIdentifier")


@pytest.mark.row("ACME-182")
def test_a_profile_that_was_withdrawn_is_invalid_at_finalize(live: Live) -> None:
    client = registered(live, *NAMES)
    order = client.order(*NAMES).json
    left = {name: one for name, one in live.settings.profiles.items() if name != "server"}
    live.core.take_profiles(live.settings.model_copy(update={"profiles": left}))
    client.finalize(order, csr_for(*NAMES)).refused(403, "invalidProfile")
    client.order(*NAMES).refused(403, "invalidProfile")
    live.core.take_profiles(live.settings)
    assert client.finalize(order, csr_for(*NAMES)).json["status"] == "valid"


@pytest.mark.row("ACME-114", "ACME-075")
def test_fifty_orders_at_once_are_all_listed_page_by_page(shared: Live) -> None:
    client = registered(shared, *NAMES, units=99)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: client.order(NAMES[0]), range(55)))
    assert {reply.status for reply in replies} == {201}
    made = {reply.header("Location") for reply in replies}
    assert len(made) == 55
    gone = client.get(replies[0].json["authorizations"][0])
    client.post(replies[0].json["authorizations"][0], {"status": "deactivated"})
    assert gone.status == 200
    listed: list[str] = []
    url: str | None = f"{client.kid}/orders"
    pages = 0
    while url is not None:
        reply = client.get(url)
        assert reply.status == 200
        listed += reply.json["orders"]
        url = next(iter(reply.links("next")), None)
        pages += 1
    assert pages == 2
    assert sorted(listed) == sorted(made - {replies[0].header("Location")})


# -- authorizations -------------------------------------------------------------------------------


@pytest.mark.row("ACME-115")
def test_a_name_can_be_authorized_before_any_order(client: Client) -> None:
    reply = client.post("new-authz", {"identifier": {"type": "dns", "value": NAMES[0]}})
    assert reply.status == 201
    assert client.get(reply.header("Location")).json == reply.json
    for value, status, kind in (
        ("*.w.example.org", 400, "malformed"),
        ("x.example.org", 403, "rejectedIdentifier"),
        ("_", 400, "malformed"),
    ):
        payload = {"identifier": {"type": "dns", "value": value}}
        client.post("new-authz", payload).refused(status, kind)
    client.post("new-authz", {}).refused(400, "malformed")


@pytest.mark.row("ACME-112", "ACME-126", "ACME-138")
def test_an_authorization_that_was_given_up_ends_its_order(shared: Live, client: Client) -> None:
    reply = client.order(NAMES[0])
    url = reply.json["authorizations"][0]
    stranger = registered(shared, "s.example.org")
    stranger.post(url, {"status": "deactivated"}).refused(403, "unauthorized")
    client.post(url, {"status": "valid"}).refused(400, "malformed")
    gone = client.post(url, {"status": "deactivated"})
    assert (gone.status, gone.json["status"]) == (200, "deactivated")
    client.post(url, {"status": "deactivated"}).refused(400, "malformed")
    assert client.get(reply.header("Location")).json["status"] == "invalid"
    client.finalize(reply.json, csr_for(NAMES[0])).refused(403, "orderNotReady")
    assert client.order(NAMES[0]).json["authorizations"] != reply.json["authorizations"]


@pytest.mark.row("ACME-112")
def test_an_order_past_its_expiry_is_invalid(live: Live) -> None:
    client = registered(live, *NAMES)
    reply = client.order(NAMES[0])
    live.clock.advance(timedelta(days=8))
    assert client.get(reply.header("Location")).json["status"] == "invalid"
    assert client.get(reply.json["authorizations"][0]).json["status"] == "expired"
    client.finalize(reply.json, csr_for(NAMES[0])).refused(403, "orderNotReady")


# -- units ----------------------------------------------------------------------------------------


def test_the_same_names_again_take_no_unit_and_other_names_do(live: Live) -> None:
    client = registered(live, *NAMES)
    for _ in range(3):
        client.issue(*NAMES)
    client.order(NAMES[0]).refused(403, "unauthorized")
    live.clock.advance(timedelta(days=100))
    # Just expired, and past the invitation's own expiry: still a renewal.
    client.issue(*NAMES)
    live.clock.advance(timedelta(days=90 + 31))
    client.order(*NAMES).refused(403, "unauthorized")


def test_a_revoked_certificate_is_not_renewed_for_nothing(live: Live) -> None:
    client = registered(live, *NAMES, units=2)
    first = client.issue(*NAMES)
    assert client.post("revoke-cert", {"certificate": b64(first.der)}).status == 200
    client.issue(*NAMES)
    number = client.invitation
    assert live.core.invitations.get(number).units_used == 2


def test_the_end_of_renewals_ends_the_account(live: Live) -> None:
    client = registered(live, *NAMES, renew_until=live.clock.now() + timedelta(days=10))
    client.issue(*NAMES)
    live.clock.advance(timedelta(days=11))
    client.order(*NAMES).refused(401, "unauthorized")


@pytest.mark.row("ACME-138", "ACME-146")
def test_an_officers_decision_is_awaited(live: Live) -> None:
    client = registered(live, *NAMES, approval=True)
    reply = client.order(*NAMES)
    done = client.finalize(reply.json, csr_for(*NAMES))
    assert (done.status, done.json["status"]) == (200, "processing")
    assert int(done.header("Retry-After")) > 0
    client.finalize(reply.json, csr_for(*NAMES)).refused(403, "orderNotReady")
    number = client.invitation
    (enrollment, _), *_ = live.core.ra.of_invitation(number)
    live.core.ra.approve(enrollment.id, by="officer", origin=ORIGIN)
    live.core.ra.finish(ORIGIN)
    assert client.get(reply.header("Location")).json["status"] == "valid"
    record = live.core.ra.certificate_of(enrollment.id)
    assert record is not None
    assert record[0].state is CertificateState.VALID
