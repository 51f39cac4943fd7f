"""The gate: every broken, ambiguous or forged JWS is refused, and none of them with a fault."""

import base64
import gc
import hashlib
import hmac
import json
import string
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver.protocols.acme import tables
from estserver.protocols.acme.keys import AccountKey, read_jwk, stored_key
from estserver.protocols.acme.problems import Problem
from tests.live import Live, new_key
from tests.protocols.acme.pebble import Pebble
from tests.protocols.acme.wire import (
    URN,
    Client,
    Server,
    b64,
    flattened,
    jwk_of,
    number64,
    registered,
    sign,
)

Change = Callable[[dict[str, Any], Client], Any]


def _accounts(server: Server) -> int:
    """Count the accounts that are stored; nobody can look into Pebble."""
    if isinstance(server, Pebble):
        return 0
    query = sa.select(sa.func.count()).select_from(tables.accounts)
    return int(server.core.store.read(lambda tx: tx.connection.execute(query).scalar_one()))


def _with(jws: dict[str, Any], **members: Any) -> dict[str, Any]:
    changed = {**jws, **members}
    return {name: value for name, value in changed.items() if value is not ...}


def _duplicated(jws: dict[str, Any], name: str) -> bytes:
    text = json.dumps(jws)
    return text.replace("{", "{" + f"{json.dumps(name)}: {json.dumps(jws[name])}, ", 1).encode()


def _stray(text: str) -> str:
    """Change the last bit of base64url of 64 octets, which stands for nothing."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


BROKEN: dict[str, tuple[str, Change]] = {
    "padding in protected": ("002", lambda j, _: _with(j, protected=j["protected"] + "=")),
    "padding in payload": ("002", lambda j, _: _with(j, payload=j["payload"] + "==")),
    "padding in signature": ("002", lambda j, _: _with(j, signature=j["signature"] + "=")),
    "junk in signature": ("003", lambda j, _: _with(j, signature=j["signature"][:-1] + "!")),
    "plus in signature": ("003", lambda j, _: _with(j, signature="+" + j["signature"][1:])),
    "slash in payload": ("003", lambda j, _: _with(j, payload="/" + j["payload"][1:])),
    "newline": ("003", lambda j, _: _with(j, signature=j["signature"] + "\n")),
    "stray bits": ("003", lambda j, _: _with(j, signature=_stray(j["signature"]))),
    "not JSON": ("004", lambda *_: b"{"),
    "a list": ("004", lambda *_: b"[]"),
    "a string": ("004", lambda *_: b'"x"'),
    "a number": ("004", lambda *_: b"1"),
    "invalid UTF-8": ("004", lambda *_: b'{"protected": "\xff"}'),
    "NaN": ("004", lambda *_: b'{"protected": NaN}'),
    "nested deep": ("004", lambda *_: b"[" * 10_000 + b"]" * 10_000),
    "nested objects": ("004", lambda *_: b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    "huge number": ("004", lambda *_: b'{"protected": ' + b"9" * 20_000 + b"}"),
    "compact": (
        "005",
        lambda j, _: f"{j['protected']}.{j['payload']}.{j['signature']}".encode(),
    ),
    "compact as string": (
        "005",
        lambda j, _: json.dumps(f"{j['protected']}.{j['payload']}.{j['signature']}").encode(),
    ),
    "no signatures": ("006", lambda j, _: {"payload": j["payload"], "signatures": []}),
    "one of signatures": (
        "006",
        lambda j, _: {
            "payload": j["payload"],
            "signatures": [{"protected": j["protected"], "signature": j["signature"]}],
        },
    ),
    "two signatures": (
        "006",
        lambda j, _: {
            "payload": j["payload"],
            "signatures": [{"protected": j["protected"], "signature": j["signature"]}] * 2,
        },
    ),
    "signature and signatures": ("006", lambda j, _: _with(j, signatures=[])),
    "empty unprotected header": ("007", lambda j, _: _with(j, header={})),
    "unprotected alg": ("007", lambda j, _: _with(j, header={"alg": "none"})),
    "unprotected jwk": ("007", lambda j, c: _with(j, header={"jwk": jwk_of(c.key)})),
    "unprotected kid": ("007", lambda j, c: _with(j, header={"kid": c.kid})),
    "unprotected nonce": ("007", lambda j, _: _with(j, header={"nonce": "x"})),
    "unprotected url": ("007", lambda j, _: _with(j, header={"url": "x"})),
    "no payload": ("008", lambda j, _: _with(j, payload=...)),
    "null payload": ("008", lambda j, _: _with(j, payload=None)),
    "payload a number": ("008", lambda j, _: _with(j, payload=1)),
    "no protected": ("008", lambda j, _: _with(j, protected=...)),
    "protected a number": ("008", lambda j, _: _with(j, protected=1)),
    "empty protected": ("008", lambda j, _: _with(j, protected="")),
    "signature twice": ("011", lambda j, _: _duplicated(j, "signature")),
    "payload twice": ("011", lambda j, _: _duplicated(j, "payload")),
    "lone surrogate": ("004", lambda j, _: json.dumps(j)[:-1].encode() + b',"x":"\\ud800"}'),
}


@pytest.mark.row(
    "ACME-002", "ACME-003", "ACME-004", "ACME-005", "ACME-006", "ACME-007", "ACME-008", "ACME-011"
)
@pytest.mark.parametrize("name", BROKEN)
def test_a_request_of_another_shape_is_malformed(server: Server, name: str) -> None:
    client = _client(server)
    _, change = BROKEN[name]
    url = client.resource("new-order")
    jws = client.jws(url, {"identifiers": [{"type": "dns", "value": "gate.example.org"}]})
    client.send(url, change(jws, client)).refused(400, "malformed")


_clients: dict[int, Client] = {}


def _client(server: Server) -> Client:
    if id(server) not in _clients:
        _clients[id(server)] = registered(server, "gate.example.org", units=9)
    return _clients[id(server)]


HEADERS: dict[str, dict[str, Any]] = {
    "b64": {"b64": False},
    "b64 with crit": {"b64": False, "crit": ["b64"]},
    "crit": {"crit": ["exp"]},
    "empty crit": {"crit": []},
    "x5c": {"x5c": ["MII"]},
    "alg missing": {"alg": None},
    "alg a number": {"alg": 1},
    "jwk and kid": {"jwk": {"kty": "EC"}},
    "neither jwk nor kid": {"kid": None},
    "kid a number": {"kid": 7},
    "url missing": {"url": None},
    "url a number": {"url": 5},
    "nonce a number": {"nonce": 5},
}


@pytest.mark.row("ACME-009", "ACME-010", "ACME-012", "ACME-023", "ACME-038", "ACME-042")
@pytest.mark.parametrize("name", HEADERS)
def test_a_protected_header_of_another_shape_is_malformed(server: Server, name: str) -> None:
    client = _client(server)
    changes = dict(HEADERS[name])
    url = client.resource("new-order")
    header = client.header(url)
    header = {k: v for k, v in {**header, **changes}.items() if v is not None}
    jws = flattened(header, {}, lambda message: sign(client.key, message))
    client.send(url, jws).refused(400, "malformed")


@pytest.mark.row("ACME-011")
def test_a_member_twice_in_header_or_payload_is_malformed(server: Server) -> None:
    client = _client(server)
    url = client.resource("new-order")
    raw = json.dumps(client.header(url)).encode()
    twice = raw.replace(b"{", b'{"alg": "none", ', 1)
    client.send(url, flattened(twice, {}, lambda m: sign(client.key, m))).refused(400, "malformed")
    payload = b'{"identifiers": [], "identifiers": []}'
    client.post(url, payload).refused(400, "malformed")


@pytest.mark.row("ACME-013")
@pytest.mark.parametrize(
    "alg", ["none", "HS256", "HS384", "HS512", "RS1", "foo", "PS256", "RS512", "", "ES256K"]
)
def test_other_algorithms_are_refused_with_the_list_of_good_ones(server: Server, alg: str) -> None:
    client = _client(server)
    problem = client.post("new-order", {}, alg=alg).refused(400, "badSignatureAlgorithm")
    # Pebble forgets the field.
    assert client.oracle or {"ES256", "EdDSA", "RS256"} <= set(problem["algorithms"])


@pytest.mark.row("ACME-014", "INC-21", "A-18")
def test_a_symmetric_key_in_the_header_makes_no_account(server: Server) -> None:
    client = Client(server)
    before = _accounts(server)
    secret = b"k" * 32
    url = client.resource("new-account")
    header = {
        "alg": "HS256",
        "nonce": client.nonce(),
        "url": url,
        "jwk": {"kty": "oct", "k": b64(secret)},
    }
    jws = flattened(header, {}, lambda m: hmac.new(secret, m, hashlib.sha256).digest())
    client.send(url, jws).refused(400, "badSignatureAlgorithm")
    # And the public key taken for a MAC key.
    public = client.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = {**header, "nonce": client.nonce(), "jwk": jwk_of(client.key)}
    jws = flattened(header, {}, lambda m: hmac.new(public, m, hashlib.sha256).digest())
    client.send(url, jws).refused(400, "badSignatureAlgorithm")
    header = {**header, "nonce": client.nonce(), "alg": "ES256", "jwk": {"kty": "oct", "k": "aa"}}
    client.send(url, flattened(header, {}, lambda _: b"x" * 64)).refused(400, "badPublicKey")
    assert _accounts(server) == before


def _jwk(**members: str) -> dict[str, str]:
    return members


_P256 = jwk_of(ec.generate_private_key(ec.SECP256R1()))
_P384 = jwk_of(ec.generate_private_key(ec.SECP384R1()))
_RSA = rsa.generate_private_key(65537, 2048)
_N = _RSA.public_key().public_numbers().n
_ED448 = ed448.Ed448PrivateKey.generate().public_key()
_ED448_RAW = b64(_ED448.public_bytes(Encoding.Raw, PublicFormat.Raw))
_OFF_CURVE = {
    **_P256,
    "y": number64(int.from_bytes(base64.urlsafe_b64decode(_P256["y"] + "=")) ^ 1, 32),
}
BAD_KEYS: dict[str, tuple[str, dict[str, str]]] = {
    "ES256 with P-384": ("ES256", _P384),
    "EdDSA with Ed448": ("EdDSA", _jwk(kty="OKP", crv="Ed448", x=_ED448_RAW)),
    "EdDSA with X25519": ("EdDSA", _jwk(kty="OKP", crv="X25519", x=b64(bytes(32)))),
    "EdDSA cut off": ("EdDSA", _jwk(kty="OKP", crv="Ed25519", x=b64(bytes(31)))),
    "RS256 with EC": ("RS256", _P256),
    "ES256 with RSA": ("ES256", jwk_of(_RSA)),
    "RSA 512": ("RS256", _jwk(kty="RSA", n=number64((1 << 511) | 1), e="AQAB")),
    "RSA 1024": ("RS256", _jwk(kty="RSA", n=number64((1 << 1023) | 1), e="AQAB")),
    "RSA 16384": ("RS256", _jwk(kty="RSA", n=number64((1 << 16383) | 1), e="AQAB")),
    "RSA 32768": ("RS256", _jwk(kty="RSA", n=number64((1 << 32767) | 1), e="AQAB")),
    "RSA e=1": ("RS256", _jwk(kty="RSA", n=number64(_N), e=number64(1))),
    "RSA e=2": ("RS256", _jwk(kty="RSA", n=number64(_N), e=number64(2))),
    "RSA e=3": ("RS256", _jwk(kty="RSA", n=number64(_N), e=number64(3))),
    "RSA even n": ("RS256", _jwk(kty="RSA", n=number64(_N - 1), e="AQAB")),
    "RSA with a small factor": (
        "RS256",
        _jwk(kty="RSA", n=number64(3 * ((1 << 2047) // 3 + 1 | 1)), e="AQAB"),
    ),
    "EC off its curve": ("ES256", _OFF_CURVE),
    "EC without y": ("ES256", {k: v for k, v in _P256.items() if k != "y"}),
    "EC without crv": ("ES256", {k: v for k, v in _P256.items() if k != "crv"}),
    "EC with short x": ("ES256", {**_P256, "x": b64(bytes(31))}),
    "EC with padding": ("ES256", {**_P256, "x": _P256["x"] + "="}),
    "EC with secret d": ("ES256", {**_P256, "d": b64(bytes(32))}),
    "RSA with secret p": ("RS256", {**jwk_of(_RSA), "p": "AQ"}),
    "oct": ("ES256", _jwk(kty="oct", k="AAAA")),
    "no kty": ("ES256", _jwk(crv="P-256")),
    "empty": ("ES256", {}),
}


@pytest.mark.row("ACME-018", "ACME-019", "ACME-020", "ACME-021")
@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_bad_key_is_refused_fast_and_with_a_reason(server: Server, name: str) -> None:
    client = Client(server)
    before = _accounts(server)
    alg, jwk = BAD_KEYS[name]
    url = client.resource("new-account")
    header = {"alg": alg, "nonce": client.nonce(), "url": url, "jwk": jwk}
    reply = client.send(url, flattened(header, {}, lambda _: b"s" * 64))
    reply.refused(400, "badPublicKey")
    assert _accounts(server) == before


@pytest.mark.row("ACME-019")
def test_a_huge_rsa_key_costs_no_time() -> None:
    for name in ("RSA 16384", "RSA e=3", "RSA even n"):
        started = time.perf_counter()
        with pytest.raises(Problem):
            read_jwk(BAD_KEYS[name][1])
        assert time.perf_counter() - started < 0.05


@pytest.mark.row("ACME-022")
def test_a_compromised_key_makes_no_account(shared: Live) -> None:
    client = _client(shared)
    done = client.issue("gate.example.org")
    reply = client.post("revoke-cert", {"certificate": b64(done.der), "reason": 1})
    assert reply.status == 200
    reply = Client(shared, done.key).register(shared.invite("server", names=("dns:x.example",)))
    assert "compromised" in reply.refused(400, "badPublicKey")["detail"]


@pytest.mark.row("ACME-024")
def test_jwk_and_kid_are_taken_only_where_they_belong(server: Server) -> None:
    client = _client(server)
    client.post("new-account", {}).refused(400, "malformed")
    early = () if client.oracle else ("new-authz",)
    for resource in ("new-order", *early, "key-change", client.kid or ""):
        client.post(resource, {}, jwk=True).refused(400, "malformed")


@pytest.mark.row("ACME-025", "ACME-026")
@pytest.mark.parametrize(
    "change",
    [
        lambda kid: kid + "x",
        lambda kid: kid + "?a=b",
        lambda kid: kid + "#",
        lambda kid: kid + "/",
        lambda kid: kid + "/../" + kid.rpartition("/")[2],
        lambda kid: kid.replace("localhost", "LOCALHOST"),
        lambda kid: kid.replace("https://", "http://"),
        lambda kid: "/other/".join(kid.rsplit("/", 1)),
        lambda kid: kid.rpartition("/")[2],
        lambda kid: "/%2e/".join(kid.rsplit("/", 1)),
        lambda _: "1",
    ],
)
def test_only_the_very_account_url_is_a_kid(server: Server, change: Callable[[str], str]) -> None:
    client = _client(server)
    reply = client.post("new-order", {}, kid=change(client.kid or ""))
    reply.refused(400, "accountDoesNotExist")


@pytest.mark.row("ACME-027")
def test_a_signature_of_another_key_or_with_a_flipped_bit_changes_nothing(server: Server) -> None:
    client, other = _client(server), new_key()
    url = client.resource("new-order")
    payload = {"identifiers": [{"type": "dns", "value": "gate.example.org"}]}
    listed = client.get(client.kid or "").json["orders"]
    before = client.get(listed).json

    def flip(at: int) -> Callable[[bytes], bytes]:
        def broken(message: bytes) -> bytes:
            signature = bytearray(sign(client.key, message))
            signature[at] ^= 1
            return bytes(signature)

        return broken

    signers: list[Callable[[bytes], bytes]] = [
        lambda m: sign(other, m),
        flip(0),
        flip(-1),
        lambda m: sign(client.key, m)[:-1],
        lambda m: sign(client.key, m) + b"\0",
        lambda _: b"",
        lambda _: bytes(64),
        lambda m: sign(client.key, m + b" "),
    ]
    for signer in signers:
        jws = flattened(client.header(url), payload, signer)
        client.send(url, jws).refused(400, "malformed")
    assert client.get(listed).json == before


@pytest.mark.row("ACME-016", "ACME-017")
@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        _RSA,
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
    ],
    ids=["EdDSA", "RS256", "ES384", "ES512"],
)
def test_each_algorithm_goes_all_the_way(server: Server, key: Any) -> None:
    client = registered(server, "alg.example.org", key=key)
    assert client.issue("alg.example.org").leaf


def test_a_fleets_account_keys_are_not_all_kept() -> None:
    for _ in range(1000):
        stored_key(jwk_of(ec.generate_private_key(ec.SECP256R1())))
    assert sum(isinstance(one, AccountKey) for one in gc.get_objects()) < 600


@pytest.mark.row("ACME-028")
def test_thumbprints_are_those_of_the_rfcs() -> None:
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_"
        "BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0"
        "_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWh"
        "AI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    key = stored_key({"kty": "RSA", "n": n, "e": "AQAB"})
    assert key.thumbprint == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    key = stored_key({"kty": "OKP", "crv": "Ed25519", "x": x})
    assert key.thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_every_refusal_here_is_a_registered_type(shared: Live) -> None:
    client = _client(shared)
    problem = client.send(f"{client.base}/new-order", b"{}").json
    assert problem["type"].startswith(URN)
