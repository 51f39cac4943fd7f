"""An ACME account is given another key (RFC 8555 7.3.5)."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.live import Live, new_key
from tests.protocols.acme.wire import (
    Client,
    Server,
    b64,
    csr_for,
    jwk_of,
    key_change,
    registered,
    sign,
)

_NAME = "acct.example.org"


def _invite(server: Server, **fields: Any) -> Any:
    return server.invite("server", names=(f"dns:{_NAME}",), **fields)


@pytest.mark.row("ACME-090", "ACME-097", "ACME-072")
def test_an_account_changes_its_key_and_goes_on_with_its_order(server: Server) -> None:
    client = registered(server, _NAME, units=9)
    order = client.ready(_NAME)
    keys: list[Any] = [rsa.generate_private_key(65537, 2048), new_key()]
    if isinstance(server, Live):
        keys.append(ed25519.Ed25519PrivateKey.generate())
    for key in keys:
        old = Client(server, client.key, client.kid)
        reply = client.post("key-change", key_change(client, key))
        assert reply.status == 200
        client.key = key
        assert (
            client.post("new-account", {"onlyReturnExisting": True}, jwk=True).header("Location")
            == client.kid
        )
        # The stored key is of another type now, or the signature fails.
        assert 400 <= old.get(client.kid or "").status < 500
    assert client.finished(order, csr_for(_NAME))["status"] == "valid"


@pytest.mark.row("ACME-091", "ACME-092", "ACME-093", "ACME-094", "ACME-096")
def test_a_key_change_that_is_not_right_changes_nothing(server: Server) -> None:
    client, key = registered(server, _NAME), new_key()
    other = registered(server, "o.example.org")
    forged = key_change(client, key)
    forged["signature"] = b64(
        sign(client.key, f"{forged['protected']}.{forged['payload']}".encode())
    )
    inner: list[tuple[Any, str]] = [
        ({"account": client.kid}, "malformed"),
        (b"x", "malformed"),
        (key_change(client, key, header={"jwk": None}), "malformed"),
        (key_change(client, key, header={"jwk": None, "kid": client.kid}), "malformed"),
        (key_change(client, key, header={"kid": client.kid}), "malformed"),
        (key_change(client, key, header={"nonce": client.nonce()}), "malformed"),
        (forged, "malformed"),
        (key_change(client, key, header={"url": client.resource("new-order")}), "malformed"),
        (key_change(client, key, header={"url": None}), "malformed"),
        (key_change(client, key, account=other.kid), "malformed"),
        (key_change(client, key, account=7), "malformed"),
        (key_change(client, key, oldKey=jwk_of(other.key)), "malformed"),
        (key_change(client, key, oldKey=None), "malformed"),
        (key_change(client, key, header={"alg": "HS256"}), "badSignatureAlgorithm"),
        (
            key_change(client, key, header={"jwk": {"kty": "RSA", "n": "AQ", "e": "AQ"}}),
            "badPublicKey",
        ),
        (key_change(client, key, header={"alg": "ES384"}), "badPublicKey"),
    ]
    for jws, kind in inner:
        client.post("key-change", jws).refused(400, kind)
    assert client.get(client.kid or "").status == 200


@pytest.mark.row("ACME-095")
def test_a_key_with_an_account_is_no_new_key(server: Server) -> None:
    client, other = registered(server, _NAME), registered(server, "o.example.org")
    for holder in (other, client):
        reply = client.post("key-change", key_change(client, holder.key))
        reply.refused(409, "malformed")
        assert reply.header("Location") == holder.kid


def test_a_certified_key_is_no_account_key(shared: Live) -> None:
    client = registered(shared, _NAME)
    key: ec.EllipticCurvePrivateKey = client.issue(_NAME).key
    client.post("key-change", key_change(client, key)).refused(400, "badPublicKey")
    Client(shared, key).register(_invite(shared)).refused(400, "badPublicKey")
