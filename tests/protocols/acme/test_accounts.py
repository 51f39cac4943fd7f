"""ACME accounts: made, bound, found again, changed, closed (RFC 8555 7.3)."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from estserver.external_binding import acme_binding
from estserver.model import Door
from estserver.protocols.acme import tables
from tests.live import ORIGIN, Live, Workshop, new_key
from tests.protocols.acme.pebble import Pebble
from tests.protocols.acme.wire import Client, Reply, Server, b64, eab, jwk_of, registered
from tests.protocols.est_wire import audit_rows

_NAME = "acct.example.org"
_ROWS = sa.select(sa.func.count()).select_from(tables.accounts)


def _accounts(server: Server) -> int:
    """Count the accounts that are stored; nobody can look into Pebble."""
    if isinstance(server, Pebble):
        return 0
    return int(server.core.store.read(lambda tx: tx.connection.execute(_ROWS).scalar_one()))


def _invite(server: Server, **fields: Any) -> Any:
    return server.invite("server", names=(f"dns:{_NAME}",), **fields)


@pytest.fixture(scope="module")
def open_live(template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    workshop = Workshop(template)
    yield workshop.make(
        tmp_path_factory.mktemp("open") / "instance", "[acme]\nrequire_eab = false\n"
    )
    workshop.close()


# -- newAccount -----------------------------------------------------------------------------------


@pytest.mark.row("ACME-060", "ACME-065", "ACME-077")
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_a_new_key_with_a_binding_gets_an_account(server: Server, alg: str) -> None:
    client = Client(server)
    binding = client.binding(*eab(server, _invite(server)), alg=alg)
    reply = client.register(
        externalAccountBinding=binding,
        contact=["mailto:admin@example.org"],
        status="revoked",
        id="mine",
        orders="https://evil.example/",
        color="red",
    )
    assert reply.status == 201
    body = reply.json
    assert body["status"] == "valid"
    assert body["contact"] == ["mailto:admin@example.org"]
    assert body["orders"].startswith(server.url("web"))
    assert body["externalAccountBinding"] == binding
    # Pebble shows the key as well, which RFC 8555 has left out.
    more = body.keys() - {"status", "contact", "orders", "externalAccountBinding"}
    assert more <= ({"key"} if client.oracle else set())
    assert client.get(reply.header("Location")).json["status"] == "valid"


@pytest.mark.row("ACME-061", "ACME-063", "ACME-087")
def test_the_same_key_finds_its_account_and_changes_nothing(shared: Live) -> None:
    client = registered(shared, _NAME)
    kid = client.kid
    other = eab(shared, shared.invite("server", names=("dns:other.example.org",)))
    forged = client.binding(other[0], b64(bytes(66)))
    asked: list[dict[str, Any]] = [
        {"onlyReturnExisting": True},
        {"contact": ["mailto:new@example.org"]},
        {"termsOfServiceAgreed": False},
        {"externalAccountBinding": client.binding(*other)},
        {"externalAccountBinding": forged},
    ]
    for payload in asked:
        reply = client.post("new-account", payload, jwk=True)
        assert reply.status == 200
        assert reply.header("Location") == kid
        assert reply.json["contact"] == []
    client.order("other.example.org").refused(400, "rejectedIdentifier")
    assert client.order(_NAME).status == 201


@pytest.mark.row("ACME-062")
def test_only_return_existing_makes_nothing(server: Server) -> None:
    before = _accounts(server)
    reply = Client(server).post("new-account", {"onlyReturnExisting": True}, jwk=True)
    reply.refused(400, "accountDoesNotExist")
    assert _accounts(server) == before


@pytest.mark.row("ACME-066", "ACME-073")
def test_terms_must_be_agreed_to_and_agreed_to_again_when_they_change(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live('[acme]\nterms_of_service = "https://example.org/tos/1"\n')
    handover = _invite(live)
    client = Client(live)
    for agreed in (None, False):
        fields = {} if agreed is None else {"termsOfServiceAgreed": agreed}
        binding = client.binding(*eab(live, handover))
        payload = {"externalAccountBinding": binding, **fields}
        reply = client.post("new-account", payload, jwk=True)
        reply.refused(403, "userActionRequired")
        assert reply.links("terms-of-service") == ["https://example.org/tos/1"]
    client.post("new-account", {"termsOfServiceAgreed": "true"}, jwk=True).refused(400, "malformed")
    assert _accounts(live) == 0
    assert client.register(handover).json["termsOfServiceAgreed"] is True
    assert client.order(_NAME).status == 201
    acme = live.settings.acme.model_copy(update={"terms_of_service": "https://example.org/tos/2"})
    live.settings = live.settings.model_copy(update={"acme": acme})
    live.restart()
    reply = client.order(_NAME)
    problem = reply.refused(403, "userActionRequired")
    assert reply.links("terms-of-service") == ["https://example.org/tos/2"]
    page = client.path(problem["instance"])
    assert b"https://example.org/tos/2" in client.ask("GET", page).answer.body
    client.order(_NAME).refused(403, "userActionRequired")
    # Not the last character, whose last bits may mean nothing.
    forged = page[:-9] + ("A" if page[-9] != "A" else "B") + page[-8:]
    client.ask("POST", forged).refused(404, "malformed")
    assert client.ask("POST", page).status == 200
    assert client.order(_NAME).status == 201


@pytest.mark.row("ACME-067", "ACME-068")
@pytest.mark.parametrize(
    ("contact", "kind"),
    [
        ("tel:+49123", "unsupportedContact"),
        ("https://example.org/", "unsupportedContact"),
        ("plain", "unsupportedContact"),
        ("mailto:a@example.org?subject=x", "invalidContact"),
        ("mailto:a@example.org,b@example.org", "invalidContact"),
        ("mailto:nobody", "invalidContact"),
        ("mailto:", "invalidContact"),
        ("mailto:a@münchen.example", "invalidContact"),
        ("mailto:a\r\n@example.org", "invalidContact"),
        ("mailto:a%0a@example.org", "invalidContact"),
    ],
)
def test_contacts_are_one_plain_mail_address_each(server: Server, contact: str, kind: str) -> None:
    problem = Client(server).register(_invite(server), contact=[contact]).refused(400, kind)
    if kind == "unsupportedContact" and isinstance(server, Live):
        assert "mailto:" in problem["detail"]


@pytest.mark.row("ACME-069", "ACME-071")
def test_no_contact_is_needed_and_an_empty_update_changes_nothing(server: Server) -> None:
    client = registered(server, _NAME)
    before = client.get(client.kid or "").json
    assert before.get("contact", []) == []
    reply = client.post(client.kid or "", {})
    assert (reply.status, reply.json) == (200, before)


@pytest.mark.row("ACME-070", "ACME-072", "ACME-065")
def test_an_update_changes_the_contacts_of_ones_own_account_only(server: Server) -> None:
    client, other = registered(server, _NAME), registered(server, "o.example.org")
    update = {
        "contact": ["mailto:new@example.org"],
        "orders": "https://evil.example/",
        "status": "valid",
        "termsOfServiceAgreed": True,
    }
    body = client.post(client.kid or "", update).json
    assert body["contact"] == ["mailto:new@example.org"]
    assert body["orders"].startswith(server.url("web"))
    other.post(client.kid or "", update).refused(403, "unauthorized")
    client.post(client.kid or "", {"contact": ["tel:1"]}).refused(400, "unsupportedContact")
    assert client.get(client.kid or "").json == body


@pytest.mark.row("ACME-074")
def test_twenty_at_once_with_one_key_make_one_account(open_live: Live) -> None:
    client = Client(open_live)
    before = _accounts(open_live)
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: client.post("new-account", {}, jwk=True), range(20)))
    assert sorted(reply.status for reply in replies) == [200] * 19 + [201]
    assert len({reply.header("Location") for reply in replies}) == 1
    assert _accounts(open_live) == before + 1


# -- external account binding ---------------------------------------------------------------------


def _bind(client: Client, binding: Any) -> Reply:
    payload = {"termsOfServiceAgreed": True, "externalAccountBinding": binding}
    return client.post("new-account", payload, jwk=True)


@pytest.mark.row("ACME-076")
def test_without_a_binding_there_is_no_account(server: Server) -> None:
    Client(server).register().refused(403, "externalAccountRequired")


Break = Callable[[Client, str, str], Any]
MALFORMED: dict[str, Break] = {
    "kid absent": lambda c, k, m: c.binding(k, m, kid=None),
    "kid a number": lambda c, k, m: c.binding(k, m, kid=7),
    "kid not ASCII": lambda c, k, m: c.binding(k, m, kid="é"),
    "kid empty": lambda c, k, m: c.binding(k, m, kid=""),
    "nonce": lambda c, k, m: c.binding(k, m, nonce="x"),
    "url absent": lambda c, k, m: c.binding(k, m, url=None),
    "url another": lambda c, k, m: c.binding(k, m, url=c.resource("new-order")),
    "another key": lambda c, k, m: c.binding(k, m, payload=jwk_of(new_key())),
    "not JSON": lambda c, k, m: c.binding(k, m, payload=b"x"),
    "empty payload": lambda c, k, m: c.binding(k, m, payload=b""),
    "header": lambda c, k, m: {**c.binding(k, m), "header": {}},
    "signatures": lambda c, k, m: {**c.binding(k, m), "signatures": []},
    "jwk": lambda c, k, m: c.binding(k, m, jwk=jwk_of(c.key)),
    "crit": lambda c, k, m: c.binding(k, m, crit=["exp"]),
    "padding": lambda c, k, m: {**c.binding(k, m), "signature": c.binding(k, m)["signature"] + "="},
    "a string": lambda *_: "x",
    "a list": lambda *_: [],
}


@pytest.mark.row("ACME-079", "ACME-080", "ACME-081", "ACME-082", "ACME-085")
@pytest.mark.parametrize("name", MALFORMED)
def test_a_binding_of_another_shape_is_malformed(server: Server, name: str) -> None:
    client = Client(server)
    before = _accounts(server)
    _bind(client, MALFORMED[name](client, *eab(server, _invite(server)))).refused(400, "malformed")
    assert _accounts(server) == before


@pytest.mark.row("ACME-082")
def test_a_binding_that_gives_the_private_key_away_is_refused(server: Server) -> None:
    client = Client(server)
    payload = {**jwk_of(client.key), "d": b64(bytes(32))}
    binding = client.binding(*eab(server, _invite(server)), payload=payload)
    _bind(client, binding).refused(400, "badPublicKey")


@pytest.mark.row("ACME-078")
@pytest.mark.parametrize("alg", ["none", "ES256", "RS256", "HS1", ""])
def test_a_binding_is_made_with_hmac_only(server: Server, alg: str) -> None:
    client = Client(server)
    kid, key = eab(server, _invite(server))
    _bind(client, client.binding(kid, key, alg)).refused(400, "badSignatureAlgorithm")
    binding = client.binding(kid, key, alg=None)
    _bind(client, binding).refused(400, "malformed")


@pytest.mark.row("ACME-083")
def test_the_bound_key_is_compared_by_its_thumbprint(server: Server) -> None:
    client = Client(server)
    jwk = dict(reversed(jwk_of(client.key).items())) | {"alg": "ES256", "use": "sig"}
    binding = client.binding(*eab(server, _invite(server)), payload=jwk)
    assert _bind(client, binding).status == 201


@pytest.mark.row("ACME-084", "A-17")
def test_all_bindings_that_are_not_accepted_are_refused_alike(live: Live) -> None:
    client = Client(live)
    cancelled, expired, used, est, held = (
        _invite(live),
        _invite(live, expires=timedelta(hours=1)),
        _invite(live),
        _invite(live, doors=frozenset({Door.EST})),
        _invite(live, hold=True),
    )
    live.core.invitations.cancel(cancelled.invitation.number, by="test", origin=ORIGIN)
    assert Client(live).register(used).status == 201
    live.clock.advance(timedelta(hours=2))
    fresh = _invite(live)
    bindings = [client.binding(*eab(live, one)) for one in (cancelled, expired, used, est, held)]
    kid, key = eab(live, fresh)
    bindings += [client.binding("1234567890", key), client.binding("nobody", key)]
    bindings += [client.binding(kid, b64(bytes(66)))]
    bindings += [client.binding(kid, fresh.pin.reveal().replace("-", ""))]
    details = {_bind(client, one).refused(403, "unauthorized")["detail"] for one in bindings}
    assert len(details) == 1
    assert _bind(client, client.binding(kid, key)).status == 201


@pytest.mark.row("ACME-084")
def test_a_new_pin_makes_the_old_key_useless(shared: Live) -> None:
    handover = _invite(shared)
    number = handover.invitation.number
    again = shared.core.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN)
    client = Client(shared)
    _bind(client, client.binding(*eab(shared, handover))).refused(403, "unauthorized")
    assert _bind(client, client.binding(*eab(shared, again))).status == 201


@pytest.mark.row("ACME-086")
def test_twenty_at_once_with_one_binding_make_one_account(shared: Live) -> None:
    handover = _invite(shared)
    clients = [Client(shared) for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda client: client.register(handover), clients))
    assert sorted(reply.status for reply in replies) == [201] + [403] * 19


@pytest.mark.row("ACME-088")
def test_a_binding_counts_where_none_is_needed(open_live: Live) -> None:
    client = Client(open_live)
    kid, key = eab(open_live, _invite(open_live))
    _bind(client, client.binding(kid, b64(bytes(66)))).refused(403, "unauthorized")
    assert "externalAccountBinding" in _bind(client, client.binding(kid, key)).json
    client.kid = client.post("new-account", {}, jwk=True).header("Location")
    assert client.order(_NAME).json["status"] == "ready"


def test_the_mac_key_suits_every_client(shared: Live) -> None:
    invitation = _invite(shared).invitation
    keys = set()
    for generation in range(300):
        kid, key = acme_binding(shared.core.keyring, replace(invitation, pin_generation=generation))
        text = key.reveal()
        assert kid.isdigit()
        assert text[0].isalnum()
        assert len(text) == 128
        assert "=" not in text
        keys.add(text)
    assert len(keys) == 300


@pytest.mark.row("ACME-089")
def test_a_cancelled_invitation_stops_its_account_at_the_next_request(live: Live) -> None:
    client = registered(live, _NAME)
    order = client.order(_NAME).json
    number = client.invitation
    live.core.invitations.cancel(number, by="test", origin=ORIGIN)
    client.get(client.kid or "").refused(401, "unauthorized")
    client.order(_NAME).refused(401, "unauthorized")
    client.finalize(order, b"").refused(401, "unauthorized")
    refused = [row for row in audit_rows(live) if row.event == "account.refused"]
    assert refused[0].object == f"invitation {number}"
    assert refused[0].detail["reason"] == "cancelled"


# -- deactivation ---------------------------------------------------------------------------------


@pytest.mark.row("ACME-098", "ACME-064", "ACME-099")
def test_a_deactivated_account_is_dead_and_its_certificates_live(shared: Live) -> None:
    client = registered(shared, _NAME, units=9)
    done = client.issue(_NAME)
    order = client.order(_NAME)
    client.post(client.kid or "", {"status": "revoked"})
    reply = client.post(client.kid or "", {"status": "deactivated"})
    assert (reply.status, reply.json["status"]) == (200, "deactivated")
    for url in (client.kid or "", order.header("Location"), done.order["certificate"]):
        client.get(url).refused(401, "unauthorized")
    client.order(_NAME).refused(401, "unauthorized")
    client.post("new-account", {}, jwk=True).refused(401, "unauthorized")
    client.register(_invite(shared)).refused(401, "unauthorized")
    record = shared.core.ra.find(done.leaf.serial_number)
    assert record.state.value == "valid"
    assert json.loads(reply.answer.body)["orders"]
