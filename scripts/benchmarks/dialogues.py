"""What the connections of a load say: one enrollment, one order, one visit, one question each.

Each dialogue is a generator: it yields a request, is sent the answer, and returns what shall be
checked once the clock has stopped.
"""

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from scripts.benchmarks.generator import Answer, Dialogue, Unexpected

_SIMPLE_ENROLL = "/.well-known/est/simpleenroll"
_SIMPLE_REENROLL = "/.well-known/est/simplereenroll"
_NONCE = "nonce"
_COOKIES = "cookies"


def require(answer: Answer, *statuses: int) -> Answer:
    """Return the answer. Raises Unexpected: another status."""
    if answer.status not in statuses:
        sentence = answer.body[:160].decode(errors="replace").strip().replace("\n", " ")
        raise Unexpected(f"HTTP {answer.status}: {sentence}")
    return answer


def http_request(
    method: str, path: str, body: bytes = b"", *, host: str = "localhost", **headers: str
) -> bytes:
    """Make an HTTP/1.1 request; underscores in the names of `headers` stand for hyphens."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "User-Agent: bench"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


# -- one question, one answer ----------------------------------------------------------------------


def ask(request: bytes, _memory: dict[str, Any]) -> Dialogue:
    """Send a request as it is; the result is the body."""
    return require((yield request), 200).body


def enrollment(
    csr: bytes, credentials: str | None, *, host: str = "localhost", path: str = _SIMPLE_ENROLL
) -> bytes:
    """Make the request that enrolls; `csr` base64, `credentials` number:PIN."""
    return http_request(
        "POST",
        path,
        csr,
        host=host,
        Content_Type="application/pkcs10",
        Accept="*/*",
        **({} if credentials is None else {"Authorization": basic(credentials)}),
    )


def basic(credentials: str) -> str:
    """Return the value of an Authorization header; `credentials` name:password."""
    return "Basic " + base64.b64encode(credentials.encode()).decode()


def reenrollment(csr: bytes) -> bytes:
    """Make the request that renews the certificate which the TLS client shows."""
    return enrollment(csr, None, path=_SIMPLE_REENROLL)


# -- the wizard ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Visit:
    """A person with a link and a PIN; `csr` is PEM or base64."""

    path: str
    pin: str
    csr: bytes


def visit(item: Visit, memory: dict[str, Any]) -> Dialogue:
    """Open the link, enter the PIN, issue, take the certificate; the result is its PEM."""
    cookies = memory[_COOKIES] = {}
    yield from _followed(item.path, cookies)
    step = yield from _submitted(item.path, {"pin": item.pin}, cookies)
    token = re.search(rb'name="csrf" value="([^"]+)"', step.body)
    if token is None:
        raise Unexpected("the PIN led to no form that issues")
    fields = {"csrf": token[1].decode(), "csr": item.csr.decode(), "purpose": "new"}
    yield from _submitted(f"{item.path}/issue", fields, cookies)
    page = yield http_request("GET", f"{item.path}/certificate.pem", Cookie=_joined(cookies))
    return require(page, 200).body


def _followed(path: str, cookies: dict[str, str]) -> Any:
    answer = yield http_request("GET", path, Cookie=_joined(cookies))
    return require(answer, 200)


def _submitted(path: str, fields: dict[str, str], cookies: dict[str, str]) -> Any:
    """Send a form as browsers do from a page that says no-referrer, and follow its redirect."""
    answer = yield http_request(
        "POST",
        path,
        urlencode(fields).encode(),
        Content_Type="application/x-www-form-urlencoded",
        Origin="null",
        Sec_Fetch_Site="same-origin",
        Cookie=_joined(cookies),
    )
    require(answer, 303)
    name, _, rest = answer.header("set-cookie").partition("=")
    cookies[name] = rest.partition(";")[0]
    return (yield from _followed(answer.header("location"), cookies))


def _joined(cookies: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


# -- ACME ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Directory:
    """The URLs of an ACME server."""

    new_nonce: str
    new_account: str
    new_order: str


@dataclass(frozen=True, slots=True)
class Account:
    """An account: its P-256 key in PEM, and its URL once it is registered."""

    directory: Directory
    key: bytes
    url: str = ""
    binding: tuple[str, str] | None = None
    """kid and base64url MAC key of an External Account Binding."""


@dataclass(frozen=True, slots=True)
class Order:
    """A certificate to order; `csr` is DER and asks for exactly `name`."""

    account: Account
    name: str
    csr: bytes


def register(account: Account, memory: dict[str, Any]) -> Dialogue:
    """Make an account; the result is its URL."""
    payload: dict[str, Any] = {"termsOfServiceAgreed": True}
    if account.binding is not None:
        kid, mac_key = account.binding
        header = {"alg": "HS256", "kid": kid, "url": account.directory.new_account}
        secret = base64.urlsafe_b64decode(mac_key + "=" * (-len(mac_key) % 4))
        payload["externalAccountBinding"] = _jws(
            header, _jwk(account.key), lambda m: hmac.digest(secret, m, hashlib.sha256)
        )
    answer = yield from _post(account, account.directory.new_account, payload, memory)
    return require(answer, 200, 201).header("location").encode()


def order(item: Order, memory: dict[str, Any]) -> Dialogue:
    """Order, prove what the server wants proved, finalize, fetch; the result is the PEM chain.

    Against a server whose authorizations stand already that is newOrder, finalize, certificate.
    """
    account = item.account
    payload = {"identifiers": [{"type": "dns", "value": item.name}]}
    answer = yield from _post(account, account.directory.new_order, payload, memory)
    where = require(answer, 201).header("location")
    stand = json.loads(answer.body)
    if stand["status"] == "pending":
        for url in stand["authorizations"]:
            yield from _authorize(account, url, memory)
        stand = yield from _settled(account, where, memory, "ready")
    csr = {"csr": _b64(item.csr)}
    answer = yield from _post(account, stand["finalize"], csr, memory)
    stand = json.loads(require(answer, 200).body)
    if stand["status"] != "valid":
        stand = yield from _settled(account, where, memory, "valid")
    answer = yield from _post(account, stand["certificate"], None, memory)
    return require(answer, 200).body


def _authorize(account: Account, url: str, memory: dict[str, Any]) -> Any:
    answer = yield from _post(account, url, None, memory)
    authorization = json.loads(require(answer, 200).body)
    if authorization["status"] != "valid":
        challenge = authorization["challenges"][0]["url"]
        require((yield from _post(account, challenge, {}, memory)), 200)
        yield from _settled(account, url, memory, "valid")


def _settled(account: Account, url: str, memory: dict[str, Any], wanted: str) -> Any:
    """Poll until a resource has the status that is wanted."""
    while True:
        answer = yield from _post(account, url, None, memory)
        stand = json.loads(require(answer, 200).body)
        if stand["status"] == wanted:
            return stand
        if stand["status"] == "invalid":
            raise Unexpected(f"ACME: invalid instead of {wanted}")


def _post(account: Account, url: str, payload: Any, memory: dict[str, Any]) -> Any:
    """Sign and send a request with the nonce that the last answer gave."""
    if _NONCE not in memory:
        answer = yield http_request("GET", urlsplit(account.directory.new_nonce).path)
        memory[_NONCE] = answer.header("replay-nonce")
    header: dict[str, Any] = {"alg": "ES256", "nonce": memory.pop(_NONCE), "url": url}
    header |= {"kid": account.url} if account.url else {"jwk": _jwk(account.key)}
    target = urlsplit(url)
    answer = yield http_request(
        "POST",
        target.path,
        json.dumps(_jws(header, payload, lambda m: _sign(account.key, m))).encode(),
        host=target.netloc,
        Content_Type="application/jose+json",
    )
    if nonce := answer.header("replay-nonce"):
        memory[_NONCE] = nonce
    return answer


def _jws(header: dict[str, Any], payload: Any, sign: Any) -> dict[str, str]:
    protected = _b64(json.dumps(header).encode())
    body = "" if payload is None else _b64(json.dumps(payload).encode())
    return {
        "protected": protected,
        "payload": body,
        "signature": _b64(sign(f"{protected}.{body}".encode())),
    }


@lru_cache(maxsize=256)
def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("accounts have P-256 keys here")
    return key


def _jwk(pem: bytes) -> dict[str, str]:
    point = _key(pem).public_key().public_numbers()
    x, y = (_b64(number.to_bytes(32)) for number in (point.x, point.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}


def _sign(pem: bytes, message: bytes) -> bytes:
    r, s = decode_dss_signature(_key(pem).sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
