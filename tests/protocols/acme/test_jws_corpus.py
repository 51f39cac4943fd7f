"""Every attack of the corpus on every place a JWS is taken: none accepted, no fault, no trace."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estserver.store.tables import metadata
from tests.live import Live, new_key
from tests.protocols.acme.jws_corpus import SMALL_ORDER, Good, attacks, bad_keys
from tests.protocols.acme.wire import (
    AccountPrivateKey,
    Client,
    algorithm_of,
    b64,
    eab,
    flattened,
    jwk_of,
    mac,
    registered,
    sign,
)

_NAME = "corpus.example.org"


def _everything(live: Live) -> dict[str, list[Any]]:
    """Return all that is stored, nonces aside: one that was used up is no harm."""
    with live.core.store.engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table))))
            for table in metadata.sorted_tables
            if table.name not in {"acme_nonces", "leases"}
        }


@dataclass(slots=True)
class Place:
    """Somewhere a JWS is taken: `fresh` makes a good one, `send` sends what was made of it."""

    client: Client
    url: str
    fresh: Callable[[], Good]
    wrap: Callable[[bytes], bytes] = bytes

    def send(self, raw: bytes) -> Any:
        """Send a JWS to where it is taken."""
        return self.client.send(self.url, self.wrap(raw))


def _outer(client: Client, resource: str, payload: bytes, *, jwk: bool) -> Place:
    url = resource if "://" in resource else client.resource(resource)

    def fresh() -> Good:
        header = client.header(url, jwk=jwk)
        return Good(header, payload, lambda m: sign(client.key, m), client.key)

    return Place(client, url, fresh)


def by_account(live: Live, key: AccountPrivateKey) -> Place:
    """An update of an account, signed by kid."""
    client = registered(live, _NAME, key=key)
    return _outer(client, client.kid or "", b"{}", jwk=False)


def by_key(live: Live, key: AccountPrivateKey) -> Place:
    """A newAccount, signed by jwk; the account is there already, so that a good one adds none."""
    client = registered(live, _NAME, key=key)
    return _outer(client, "new-account", b'{"onlyReturnExisting": true}', jwk=True)


def binding(live: Live, key: AccountPrivateKey) -> Place:
    """An External Account Binding inside a good newAccount."""
    client = Client(live, key)
    kid, secret = eab(live, live.invite("server", names=(f"dns:{_NAME}",)))
    url = client.resource("new-account")

    def fresh() -> Good:
        header = {"alg": "HS256", "kid": kid, "url": url}
        return Good(header, json.dumps(jwk_of(key)).encode(), mac(secret))

    def wrap(raw: bytes) -> bytes:
        # Not only the value: what follows it could end the member and begin another.
        payload = b'{"termsOfServiceAgreed": true, "externalAccountBinding": ' + raw + b"}"
        return json.dumps(client.jws(url, payload, jwk=True)).encode()

    return Place(client, url, fresh, wrap)


def key_change(live: Live, key: AccountPrivateKey) -> Place:
    """The inner JWS of a keyChange, signed by the new key."""
    client = registered(live, _NAME)
    url = client.resource("key-change")

    def fresh() -> Good:
        header = {"alg": algorithm_of(key), "jwk": jwk_of(key), "url": url}
        payload = json.dumps({"account": client.kid, "oldKey": jwk_of(client.key)}).encode()
        return Good(header, payload, lambda m: sign(key, m), key)

    return Place(client, url, fresh, lambda raw: json.dumps(client.jws(url, raw)).encode())


PLACES: dict[str, tuple[Callable[[Live, AccountPrivateKey], Place], int]] = {
    "account": (by_account, 200),
    "key": (by_key, 200),
    "binding": (binding, 201),
    "key change": (key_change, 200),
}
KEYS: dict[str, Callable[[], AccountPrivateKey]] = {
    "P-256": new_key,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


_DEFAULT = {*(("P-256", where) for where in PLACES), ("RSA", "key"), ("Ed25519", "key")}


@pytest.mark.row(
    "ACME-002",
    "ACME-003",
    "ACME-004",
    "ACME-005",
    "ACME-006",
    "ACME-007",
    "ACME-008",
    "ACME-009",
    "ACME-010",
    "ACME-011",
    "ACME-012",
    "ACME-013",
    "ACME-014",
    "ACME-018",
    "ACME-023",
    "ACME-027",
    "ACME-038",
    "ACME-078",
    "ACME-085",
    "ACME-091",
    "ACME-092",
    "INC-21",
    "A-18",
)
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", KEYS)
def test_no_attack_is_accepted_and_none_makes_a_fault(
    shared: Live, where: str, kind: str, request: pytest.FixtureRequest
) -> None:
    if (kind, where) not in _DEFAULT and not request.config.getoption("--full"):
        pytest.skip("much the same as another: with --full")
    make, good_status = PLACES[where]
    place = make(shared, KEYS[kind]())
    before = _everything(shared)
    accepted, faults, count = [], [], 0
    for name, raw in attacks(place.fresh):
        reply = place.send(raw)
        count += 1
        if reply.status >= 500:
            faults.append((name, reply.status))
        elif reply.status < 400:
            accepted.append(name)
        else:
            assert reply.json["type"].startswith("urn:ietf:params:acme:error:"), name
    assert (accepted, faults) == ([], [])
    assert count > 150
    assert _everything(shared) == before
    # What all of them were made from is good, so each was refused for what makes it an attack.
    assert place.send(place.fresh().raw()).status == good_status


@pytest.mark.row("ACME-018", "ACME-019", "ACME-020", "ACME-096")
def test_no_bad_key_becomes_an_accounts(shared: Live) -> None:
    before = _everything(shared)
    for name, (alg, jwk) in bad_keys().items():
        client = Client(shared)
        for url, payload in (
            (client.resource("new-account"), {"onlyReturnExisting": True}),
            (client.resource("revoke-cert"), {"certificate": "AAAA"}),
        ):
            header = {"alg": alg, "jwk": jwk, "url": url, "nonce": client.nonce()}
            # R is the neutral element and S is 0: what a key of small order verifies.
            jws = flattened(header, payload, lambda _: b"\x01" + bytes(63))
            reply = client.send(url, jws)
            assert reply.status == 400, (name, reply.answer.body)
            assert reply.json["type"].endswith(":badPublicKey"), (name, reply.json)
    assert _everything(shared) == before


@pytest.mark.parametrize("x", SMALL_ORDER)
def test_a_key_of_small_order_changes_no_account(shared: Live, x: str) -> None:
    client = registered(shared, _NAME)
    url = client.resource("key-change")
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes.fromhex(x))}
    inner = flattened(
        {"alg": "EdDSA", "jwk": jwk, "url": url},
        {"account": client.kid, "oldKey": jwk_of(client.key)},
        lambda _: b"\x01" + bytes(63),
    )
    client.post(url, inner).refused(400, "badPublicKey")
    assert client.get(client.kid or "").status == 200


_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "drop", "double", "insert", "swap"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def _edited(raw: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    octets = bytearray(raw)
    for kind, where, value in edits:
        at = int(where * len(octets))
        if kind == "flip":
            octets[at] ^= value or 1
        elif kind == "drop":
            del octets[at : at + 1 + value % 8]
        elif kind == "double":
            octets[at:at] = octets[at : at + 1 + value]
        elif kind == "insert":
            octets.insert(at, value)
        else:
            octets[at:] = octets[at + 1 :] + octets[at : at + 1]
        if not octets:
            break
    return bytes(octets)


@pytest.mark.row("ACME-004", "ACME-027")
def test_what_chance_makes_of_a_request_is_refused_or_means_the_same(
    shared: Live, request: pytest.FixtureRequest
) -> None:
    place = by_account(shared, new_key())
    before = _everything(shared)

    @settings(
        max_examples=3000 if request.config.getoption("--full") else 120,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
    @given(edits=_EDITS, part=st.sampled_from(["body", "header", "payload"]))
    def mutate(edits: list[tuple[str, float, int]], part: str) -> None:
        good = place.fresh()
        header = json.dumps(good.header).encode()
        if part == "body":
            raw = _edited(good.raw(), edits)
        elif part == "header":
            raw = good.raw(header=_edited(header, edits))
        else:
            raw = good.raw(payload=_edited(good.payload, edits))
        reply = place.send(raw)
        assert reply.status < 500, raw
        if reply.status >= 400:
            return
        if part == "body":
            # White space and escapes: JSON that says the same.
            assert json.loads(raw).keys() == good.members().keys()
        elif part == "header":
            kept = json.loads(_edited(header, edits))
            assert {**kept, "typ": 0} == {**good.header, "typ": 0}
        else:
            assert _edited(good.payload, edits).strip() in {b"", b"{}"}

    mutate()
    assert _everything(shared) == before
