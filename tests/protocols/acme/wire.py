"""An ACME client that can also misbehave: JWS built by hand, so that each part can be broken."""

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPSConnection
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver.external_binding import acme_binding
from estserver.invitations import Handover
from tests.live import Answer, Live, make_csr, new_key
from tests.protocols.acme import pebble
from tests.protocols.acme.pebble import Pebble

Server = Live | Pebble
NAMES = ("a.example.org", "b.example.org")
URN = "urn:ietf:params:acme:error:"
JOSE = "application/jose+json"
AccountPrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
_CURVES = {
    "secp256r1": ("P-256", 32, "ES256", hashes.SHA256()),
    "secp384r1": ("P-384", 48, "ES384", hashes.SHA384()),
    "secp521r1": ("P-521", 66, "ES512", hashes.SHA512()),
}


def b64(raw: bytes) -> str:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def number64(value: int, octets: int | None = None) -> str:
    """Encode a number as base64url, big-endian."""
    return b64(value.to_bytes(octets or (value.bit_length() + 7) // 8))


def jwk_of(key: AccountPrivateKey) -> dict[str, str]:
    """Return the public JWK of a key."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        return {"kty": "RSA", "n": number64(numbers.n), "e": number64(numbers.e)}
    if isinstance(key, ec.EllipticCurvePrivateKey):
        point = key.public_key().public_numbers()
        crv, octets, _, _ = _CURVES[key.curve.name]
        return {
            "kty": "EC",
            "crv": crv,
            "x": number64(point.x, octets),
            "y": number64(point.y, octets),
        }
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "x": b64(raw)}


def algorithm_of(key: AccountPrivateKey) -> str:
    """Return the algorithm that goes with a key."""
    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256"
    return _CURVES[key.curve.name][2] if isinstance(key, ec.EllipticCurvePrivateKey) else "EdDSA"


def sign(key: AccountPrivateKey, message: bytes) -> bytes:
    """Sign as JWS has it."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    _, octets, _, digest = _CURVES[key.curve.name]
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
    return r.to_bytes(octets) + s.to_bytes(octets)


def mac(key: str, alg: str | None = "HS256") -> Callable[[bytes], bytes]:
    """Return what makes the MAC of an algorithm; `key` is in base64url, as clients are given it."""
    digest = {"HS384": hashlib.sha384, "HS512": hashlib.sha512}.get(alg or "", hashlib.sha256)
    raw = base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))
    return lambda message: hmac.new(raw, message, digest).digest()


def flattened(header: Any, payload: Any, signer: Callable[[bytes], bytes]) -> dict[str, Any]:
    """Build a flattened JWS; `payload` None gives a POST-as-GET, bytes go as they are."""
    raw_header = header if isinstance(header, bytes) else json.dumps(header).encode()
    if payload is None:
        raw_payload = b""
    else:
        raw_payload = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    protected, body = b64(raw_header), b64(raw_payload)
    signature = signer(f"{protected}.{body}".encode())
    return {"protected": protected, "payload": body, "signature": b64(signature)}


_kept = threading.local()
_opened: list[HTTPSConnection] = []


def _connection(live: Server, *, fresh: bool) -> HTTPSConnection:
    connections: dict[int, HTTPSConnection] = _kept.__dict__.setdefault("connections", {})
    port = live.port("web")
    if fresh or port not in connections:
        if port in connections:
            connections[port].close()
        connections[port] = HTTPSConnection("localhost", port, timeout=30, context=live.tls())
        _opened.append(connections[port])
    return connections[port]


def hang_up() -> None:
    """Close every kept connection."""
    while _opened:
        _opened.pop().close()
    _kept.__dict__.clear()


@dataclass(slots=True)
class Reply:
    """An answer with its JSON; `oracle`: Pebble's, which chooses types and statuses of its own."""

    answer: Answer
    oracle: bool = False

    @property
    def status(self) -> int:
        """Status code."""
        return self.answer.status

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.answer.body)

    def header(self, name: str) -> str:
        """Return the value of a header that is there exactly once."""
        (value,) = self.answer.headers.get_all(name, [])
        return value

    def links(self, rel: str) -> list[str]:
        """Return the URLs linked to by a relation."""
        found = []
        for value in self.answer.headers.get_all("Link", []):
            match = re.fullmatch(r'<([^>]+)>; ?rel="([a-z-]+)"', value)
            assert match, value
            if match[2] == rel:
                found.append(match[1])
        return found

    def refused(self, status: int, kind: str) -> dict[str, Any]:
        """Assert that this is a whole problem document of that kind, and return it.

        Of Pebble's only that it refuses, and in such words as `pebble.SAYS`.
        """
        if self.oracle:
            said: dict[str, Any] = self.json
            kinds = {kind, *pebble.SAYS.get(kind, ())}
            assert 400 <= self.status < 500, said
            assert said["type"] in {URN + one for one in kinds}, said
            return said
        assert self.answer.headers["Content-Type"] == "application/problem+json", self.answer.body
        problem: dict[str, Any] = self.json
        assert (self.status, problem["type"]) == (status, URN + kind), problem
        assert problem["status"] == status
        assert problem["detail"]
        assert re.fullmatch(r"[A-Za-z0-9_-]{22,}", self.header("Replay-Nonce"))
        assert len(self.links("index")) == 1
        return problem


@dataclass(slots=True)
class Client:
    """One account key and what a client remembers."""

    live: Server
    key: AccountPrivateKey = field(default_factory=new_key)
    kid: str | None = None
    invitation: str = ""

    @property
    def base(self) -> str:
        """The base URL of the door."""
        return f"{self.live.url('web')}/acme"

    @property
    def oracle(self) -> bool:
        """Whether this is a client of Pebble."""
        return isinstance(self.live, Pebble)

    def resource(self, name: str) -> str:
        """Return the URL of a resource by the name it has at ours."""
        return self.live.resource(name) if isinstance(self.live, Pebble) else f"{self.base}/{name}"

    def path(self, url: str) -> str:
        """Return the path of one of the server's URLs."""
        assert url.startswith(self.live.url("web")), url
        return url.removeprefix(self.live.url("web"))

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send one request to the listener, on a connection that this thread keeps."""
        for fresh in (False, True):
            connection = _connection(self.live, fresh=fresh)
            try:
                connection.request(method, path, body=body, headers=headers or {})
                response = connection.getresponse()
                answer = Answer(response.status, response.headers, response.read())
                return Reply(answer, self.oracle)
            except (OSError, HTTPException):
                # The server may close a kept connection whenever it likes, but not a new one.
                if fresh:
                    raise
        raise AssertionError("not reached")

    def nonce(self) -> str:
        """Fetch a nonce."""
        return self.ask("HEAD", self.path(self.resource("new-nonce"))).header("Replay-Nonce")

    def header(self, url: str, *, jwk: bool = False, **changes: Any) -> dict[str, Any]:
        """Return a good protected header, then changed; a change to None leaves a member out."""
        header: dict[str, Any] = {
            "alg": algorithm_of(self.key),
            "nonce": changes["nonce"] if "nonce" in changes else self.nonce(),
            "url": url,
        }
        if jwk or self.kid is None:
            header["jwk"] = jwk_of(self.key)
        else:
            header["kid"] = self.kid
        header |= changes
        return {name: value for name, value in header.items() if value is not None}

    def jws(self, url: str, payload: Any, *, jwk: bool = False, **changes: Any) -> dict[str, Any]:
        """Return a good request."""
        header = self.header(url, jwk=jwk, **changes)
        return flattened(header, payload, lambda message: sign(self.key, message))

    def send(self, url: str, jws: Any, content_type: str | None = JOSE, accept: str = "") -> Reply:
        """Send a JWS, or any bytes, to one of the server's URLs."""
        headers = {} if content_type is None else {"Content-Type": content_type}
        if accept:
            headers["Accept"] = accept
        body = jws if isinstance(jws, bytes) else json.dumps(jws).encode()
        return self.ask("POST", self.path(url), body, headers)

    def post(
        self, url: str, payload: Any, *, jwk: bool = False, accept: str = "", **changes: Any
    ) -> Reply:
        """Sign and send; `url` without scheme is a resource of the door."""
        if "://" not in url:
            url = self.resource(url)
        return self.send(url, self.jws(url, payload, jwk=jwk, **changes), accept=accept)

    def get(self, url: str, accept: str = "") -> Reply:
        """POST-as-GET."""
        return self.post(url, None, accept=accept)

    def binding(
        self, number: str, mac_key: str, alg: str | None = "HS256", **changes: Any
    ) -> dict[str, Any]:
        """Return an External Account Binding; `payload` among the changes replaces the JWK."""
        url = self.resource("new-account")
        payload = changes.pop("payload", jwk_of(self.key))
        header = {"alg": alg, "kid": number, "url": url} | changes
        header = {name: value for name, value in header.items() if value is not None}
        return flattened(header, payload, mac(mac_key, alg))

    def register(self, handover: Handover | pebble.Invited | None = None, **fields: Any) -> Reply:
        """Make the account, bound to an invitation if one is given."""
        payload: dict[str, Any] = {"termsOfServiceAgreed": True, **fields}
        if handover is not None:
            self.invitation = handover.invitation.number
            payload.setdefault("externalAccountBinding", self.binding(*eab(self.live, handover)))
        reply = self.post("new-account", payload, jwk=True)
        if reply.status in {200, 201}:
            self.kid = reply.header("Location")
        return reply

    def order(self, *names: str, **fields: Any) -> Reply:
        """Order a certificate for names: host names, or `ip:` and an address."""
        return self.post("new-order", {"identifiers": [identifier(n) for n in names], **fields})

    def settled(self, url: str, seconds: float = 20) -> Any:
        """Poll a resource until it is neither pending nor processing; return its JSON."""
        deadline = time.monotonic() + seconds
        while (body := self.get(url).json)["status"] in {"pending", "processing"}:
            assert time.monotonic() < deadline, body
            threading.Event().wait(0.05)
        return body

    def ready(self, *names: str) -> Reply:
        """Order names and answer the challenges, if there are any; return the order as it is."""
        reply = self.order(*names)
        assert reply.status == 201, reply.answer.body
        if reply.json["status"] == "ready":
            return reply
        for url in reply.json["authorizations"]:
            authorization = self.get(url).json
            if authorization["status"] == "pending":
                answered = self.post(authorization["challenges"][0]["url"], {})
                assert answered.status == 200, answered.answer.body
            assert self.settled(url)["status"] == "valid"
        order = self.get(reply.header("Location"))
        order.answer.headers["Location"] = reply.header("Location")
        return order

    def finalize(self, order: dict[str, Any], csr: bytes) -> Reply:
        """Send a CSR to an order."""
        return self.post(order["finalize"], {"csr": b64(csr)})

    def finished(self, order: Reply, csr: bytes) -> Any:
        """Finalize an order that `ready` returned; return what becomes of it."""
        done = self.finalize(order.json, csr)
        assert done.status == 200, done.answer.body
        return self.settled(order.header("Location"))

    def issue(self, *names: str, key: ec.EllipticCurvePrivateKey | None = None) -> "Certified":
        """Go all the way; at ours the names must be authorized already."""
        reply = self.ready(*names)
        assert reply.json["status"] == "ready", reply.json
        key = key or new_key()
        order = self.finished(reply, csr_for(*names, key=key))
        assert order["status"] == "valid", order
        answer = self.get(order["certificate"])
        assert answer.status == 200
        chain = x509.load_pem_x509_certificates(answer.answer.body)
        return Certified(reply.header("Location"), order, key, tuple(chain))


@dataclass(frozen=True, slots=True)
class Certified:
    """What an order led to."""

    url: str
    order: dict[str, Any]
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate itself."""
        return self.chain[0]

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.leaf.public_bytes(Encoding.DER)


def identifier(name: str) -> dict[str, str]:
    """Return an identifier object."""
    if name.startswith("ip:"):
        return {"type": "ip", "value": name.removeprefix("ip:")}
    return {"type": "dns", "value": name}


def csr_for(
    *names: str, key: Any = None, subject: x509.Name | str = "", extra: tuple[Any, ...] = ()
) -> bytes:
    """Make a CSR with these names in its subjectAltName."""
    general: tuple[x509.GeneralName, ...] = tuple(
        x509.IPAddress(ipaddress.ip_address(name.removeprefix("ip:")))
        if name.startswith("ip:")
        else x509.DNSName(name)
        for name in names
    )
    return make_csr(key or new_key(), subject=subject, names=(*general, *extra))


def eab(live: Server, handover: Handover | pebble.Invited) -> tuple[str, str]:
    """Return kid and MAC key of an invitation, as `invite` prints them."""
    if isinstance(live, Pebble) or isinstance(handover, pebble.Invited):
        return pebble.KID, pebble.MAC_KEY
    kid, key = acme_binding(live.core.keyring, handover.invitation)
    return kid, key.reveal()


def registered(live: Server, *names: str, key: Any = None, **fields: Any) -> Client:
    """Invite a server with these names and register an account for it."""
    handover = live.invite("server", names=tuple(_text(name) for name in names), **fields)
    client = Client(live) if key is None else Client(live, key)
    reply = client.register(handover)
    assert reply.status == 201, reply.answer.body
    return client


def _text(name: str) -> str:
    return name if name.startswith("ip:") else f"dns:{name}"


def key_change(client: Client, key: Any, **changes: Any) -> dict[str, Any]:
    """Return the inner JWS of RFC 8555 7.3.5; a header of None is left out."""
    url = client.resource("key-change")
    header = {"alg": algorithm_of(key), "jwk": jwk_of(key), "url": url}
    header = {k: v for k, v in (header | changes.pop("header", {})).items() if v is not None}
    payload = {"account": client.kid, "oldKey": jwk_of(client.key)} | changes
    return flattened(header, payload, lambda m: sign(key, m))
