"""The strict gate: bytes from anybody in, a flattened JWS of known shape out (RFC 8555 §6.2).

Invariants:
- Exactly `protected`, `payload` and `signature`; no unprotected header, no list of signatures, no
  compact form. No member anywhere stands twice.
- Only `alg`, `jwk`, `kid`, `nonce`, `url` (and a meaningless `typ`) in the header; so `crit` and
  `b64` never get past.
- Signatures are verified over the bytes received, never over a re-encoding.
- `HS256` and its kin exist only inside an External Account Binding.
"""

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Any

from estserver.protocols.acme.keys import ALGORITHMS, AccountKey, decode_base64url
from estserver.protocols.acme.problems import Problem, malformed

_MEMBERS = {"protected", "payload", "signature"}
_HEADER = frozenset({"alg", "jwk", "kid", "nonce", "url", "typ"})
_MAX_DEPTH = 32
_KID = re.compile(r"[!-~]{1,512}")
_HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}


@dataclass(frozen=True, slots=True)
class JWS:
    """One flattened JWS whose shape is right; whose signature it bears is not known yet.

    `signing_input` is made of the very characters received. `payload` is decoded.
    """

    alg: str
    url: str
    kid: str | None
    jwk: dict[str, Any] | None
    nonce: str | None
    payload: bytes
    signing_input: bytes
    signature: bytes

    def require_signature(self, key: AccountKey) -> None:
        """Raise Problem unless `key` made the signature with the one algorithm it goes with."""
        if self.alg != key.algorithm:
            kind = "badPublicKey" if self.jwk is not None else "badSignatureAlgorithm"
            raise Problem(
                kind,
                f"this key signs with {key.algorithm}, not with {self.alg}",
                members={"algorithms": [key.algorithm]} if self.jwk is None else {},
            )
        if not key.verifies(self.signing_input, self.signature):
            raise malformed("the JWS signature does not verify")


def read_request(body: bytes) -> JWS:
    """Read the JWS of a request: signed, with a nonce, and exactly one of `jwk` and `kid`.

    Raises Problem malformed, badSignatureAlgorithm, badNonce (there is none).
    """
    jws = _read(parse_json(body, "the request body"))
    if jws.alg not in ALGORITHMS:
        raise _bad_algorithm(jws.alg, ALGORITHMS)
    if (jws.jwk is None) == (jws.kid is None):
        raise malformed("the protected header needs exactly one of jwk and kid")
    return jws


def read_binding(value: object) -> JWS:
    """Read an External Account Binding: MAC, `kid`, no `nonce`, no `jwk` (RFC 8555 §7.3.4).

    Raises Problem malformed, badSignatureAlgorithm.
    """
    jws = _read(value)
    if jws.alg not in _HASHES:
        raise _bad_algorithm(jws.alg, tuple(_HASHES))
    if jws.kid is None or jws.jwk is not None or jws.nonce is not None:
        raise malformed("the binding's header needs kid, and neither jwk nor nonce")
    return jws


def read_key_change(payload: bytes) -> JWS:
    """Read the inner JWS of a key change: signed by the new `jwk`, no `nonce` (§7.3.5).

    Raises Problem malformed, badSignatureAlgorithm.
    """
    jws = _read(parse_json(payload, "the payload"))
    if jws.alg not in ALGORITHMS:
        raise _bad_algorithm(jws.alg, ALGORITHMS)
    if jws.jwk is None or jws.kid is not None or jws.nonce is not None:
        raise malformed("the inner JWS needs jwk, and neither kid nor nonce")
    return jws


def mac_verifies(binding: JWS, key: bytes) -> bool:
    """Tell whether a binding's MAC was made with `key`."""
    mac = hmac.new(key, binding.signing_input, _HASHES[binding.alg]).digest()
    return hmac.compare_digest(mac, binding.signature)


def parse_json(raw: bytes, what: str) -> Any:
    """Parse JSON by RFC 8259 and no more: UTF-8, no NaN, no member twice, no surrogates alone.

    Raises Problem malformed.
    """
    try:
        text = raw.decode("utf-8")
        value = _DECODER.decode(text)
        # What opens nothing deep and escapes nothing needs no walk through all of it.
        if "\\u" in text or text.count("[") + text.count("{") >= _MAX_DEPTH:
            _check_depth(value, _MAX_DEPTH)
    except RecursionError as error:
        raise malformed(f"{what} is nested too deep") from error
    except ValueError as error:  # JSON, UTF-8, numbers of thousands of digits
        raise malformed(f"{what} is not JSON as RFC 8259 has it") from error
    return value


def parse_object(raw: bytes, what: str = "the payload") -> dict[str, Any]:
    """Parse a JSON object. Raises Problem malformed."""
    value = parse_json(raw, what)
    if not isinstance(value, dict):
        raise malformed(f"{what} must be a JSON object")
    return value


def _read(value: object) -> JWS:
    if not isinstance(value, dict) or value.keys() != _MEMBERS:
        raise malformed(
            "a request must be a flattened JWS: an object of protected, payload and signature"
        )
    protected = decode_base64url(value["protected"], "protected")
    payload = decode_base64url(value["payload"], "payload")
    signature = decode_base64url(value["signature"], "signature")
    header = parse_object(protected, "the protected header")
    if unknown := header.keys() - _HEADER:
        raise malformed(
            f"the protected header may not hold {', '.join(sorted(map(ascii, unknown)))}"
        )
    alg, url, nonce = header.get("alg"), header.get("url"), header.get("nonce")
    kid, jwk = header.get("kid"), header.get("jwk")
    if not isinstance(alg, str):
        raise malformed("the protected header needs alg, a string")
    if not isinstance(url, str):
        raise malformed("the protected header needs url, a string")
    if "nonce" in header and not isinstance(nonce, str):
        raise malformed("nonce must be a string")
    if "kid" in header and not (isinstance(kid, str) and _KID.fullmatch(kid)):
        raise malformed("kid must be a string of printable ASCII")
    if "jwk" in header and not isinstance(jwk, dict):
        raise malformed("jwk must be an object")
    return JWS(
        alg=alg,
        url=url,
        kid=kid,
        jwk=jwk,
        nonce=nonce,
        payload=payload,
        signing_input=f"{value['protected']}.{value['payload']}".encode("ascii"),
        signature=signature,
    )


def _bad_algorithm(alg: str, allowed: tuple[str, ...]) -> Problem:
    # RFC 8555 §6.2: the problem document MUST include an "algorithms" field.
    return Problem(
        "badSignatureAlgorithm",
        f"the signature algorithm {alg[:32]!a} is not taken: use {', '.join(allowed)}",
        members={"algorithms": list(allowed)},
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a member stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _check_depth(value: Any, left: int) -> None:
    """Bound the nesting, and refuse text that no UTF-8 can carry on."""
    if left == 0:
        raise ValueError("nested too deep")
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        for name, member in value.items():
            name.encode("utf-8")
            _check_depth(member, left - 1)
    elif isinstance(value, list):
        for member in value:
            _check_depth(member, left - 1)
