"""Attacks on JWS, made systematically from a good one: what Wycheproof and the CVE lists know.

Each attack turns a good JWS, which is accepted as it is, into the bytes of one that must not be.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.protocols.acme.wire import AccountPrivateKey, b64, jwk_of, number64, sign

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P256_PRIME = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
_MEMBERS = ("protected", "payload", "signature")


@dataclass(frozen=True, slots=True)
class Good:
    """A JWS before it is put together; `sign` makes the signature that belongs to it.

    `key` is what it is signed with; None where a MAC secures it.
    """

    header: dict[str, Any]
    payload: bytes
    sign: Callable[[bytes], bytes]
    key: AccountPrivateKey | None = None

    def members(
        self,
        header: dict[str, Any] | bytes | None = None,
        payload: bytes | None = None,
        sign: Callable[[bytes], bytes] | None = None,
    ) -> dict[str, str]:
        """Put it together, with other parts where they are given, and sign what it then is."""
        chosen = self.header if header is None else header
        raw = chosen if isinstance(chosen, bytes) else json.dumps(chosen).encode()
        protected, body = b64(raw), b64(self.payload if payload is None else payload)
        signature = (sign or self.sign)(f"{protected}.{body}".encode())
        return {"protected": protected, "payload": body, "signature": b64(signature)}

    def raw(self, **parts: Any) -> bytes:
        """Return `members` as JSON."""
        return json.dumps(self.members(**parts)).encode()

    def with_header(self, **changes: Any) -> bytes:
        """Return it, rightly signed, with a changed header; a change to ... leaves a member out."""
        header = {**self.header, **changes}
        return self.raw(header={name: value for name, value in header.items() if value is not ...})


Fresh = Callable[[], Good]
"""Makes a good JWS whose nonce nobody has used."""
Named = Iterator[tuple[str, bytes]]


def attacks(fresh: Fresh) -> Named:
    """Yield name and bytes of every attack that makes sense against a JWS of this kind."""
    key = fresh().key
    yield from _containers(fresh)
    yield from _json(fresh)
    yield from _base64(fresh)
    yield from _headers(fresh)
    yield from _signatures(fresh)
    if key is not None:
        yield from _confusions(fresh, key)
    match key:
        case ec.EllipticCurvePrivateKey():
            yield from _ecdsa(fresh, key)
        case rsa.RSAPrivateKey():
            yield from _rsa(fresh, key)
        case ed25519.Ed25519PrivateKey():
            yield from _ed25519(fresh)


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _altered(good: Good, change: Callable[[bytes], bytes]) -> bytes:
    """Change the signature after it was made."""
    return good.raw(sign=lambda message: change(good.sign(message)))


def _containers(fresh: Fresh) -> Named:
    """Other serialisations, further members, members missing or of another type."""
    whole = fresh().members()
    compact = ".".join(whole[name] for name in _MEMBERS)
    yield "compact", compact.encode()
    yield "compact in a string", _dump(compact)
    one = {name: whole[name] for name in ("protected", "signature")}
    for count in (0, 1, 2):
        yield (
            f"{count} signatures",
            _dump({"payload": whole["payload"], "signatures": [one] * count}),
        )
    yield "both forms", _dump({**whole, "signatures": []})
    yield "in a list", _dump([whole])
    odd: tuple[Any, ...] = ({}, {"alg": "none"}, None)
    for name in ("header", "alg", "kid", "jwk", "recipients", "iv", "ciphertext", "tag", "", "b64"):
        for value in odd:
            yield f"a further member {name!r}: {value}", _dump({**fresh().members(), name: value})
    others: tuple[Any, ...] = (None, 0, True, 1.5, [], {}, [""])
    for name in _MEMBERS:
        members: dict[str, Any] = dict(fresh().members())
        present = members.pop(name)
        yield f"without {name}", _dump(members)
        yield f"{name} in capitals", _dump({**members, name.upper(): present})
        for value in others:
            yield f"{name} is {value}", _dump({**members, name: value})


def _twice(raw: bytes, name: str, value: str) -> bytes:
    """Put a member in front of an object, so that the last one wins with lenient parsers."""
    return raw.replace(b"{", b"{" + f"{json.dumps(name)}: {value}, ".encode(), 1)


def _json(fresh: Fresh) -> Named:
    """What is no JSON, or two things at once."""
    for name in _MEMBERS:
        raw = fresh().raw()
        yield f"{name} twice, another first", _twice(raw, name, '"AA"')
        yield f"{name} twice, another last", raw.replace(b"}", f', "{name}": "AA"}}'.encode())
        escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
        twice = _twice(raw, name, '"AA"').replace(name.encode(), escaped.encode(), 1)
        yield f"{name} twice, once escaped", twice
    for what, tail in (
        ("text", b"x"),
        ("an object", b"{}"),
        ("NUL", b"\0"),
        ("a comma", b","),
        ("a bracket", b"]"),
        ("a comment", b"//x"),
        ("a form feed", b"\x0c"),
    ):
        yield f"followed by {what}", fresh().raw() + tail
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        yield f"in {encoding}", fresh().raw().decode().encode(encoding)
    for what, text in (
        ("NaN", b"NaN"),
        ("infinite", b"-Infinity"),
        ("a huge number", b"9" * 20_000),
        ("deep lists", b"[" * 20_000 + b"]" * 20_000),
        ("deep objects", b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
        ("half a surrogate", b'"\\ud800"'),
        ("invalid UTF-8", b'"\xc0\xae"'),
        ("in single quotes", b"'x'"),
        ("hexadecimal", b"0x1"),
    ):
        good = fresh()
        yield f"a member that is {what}", good.raw()[:-1] + b', "x": ' + text + b"}"
        yield f"payload that is {what}", fresh().raw(payload=text)
        yield f"payload with a member that is {what}", fresh().raw(payload=b'{"x":' + text + b"}")
        yield f"header that is {what}", good.raw(header=text)
        header = _dump(good.header)[:-1] + b', "typ": ' + text + b"}"
        yield f"header with a member that is {what}", good.raw(header=header)
    for what, body in (
        ("nothing", b""),
        ("null", b"null"),
        ("a string", b'"x"'),
        ("a list", b"[]"),
        ("an empty object", b"{}"),
        ("NUL", b"\0" * 100),
    ):
        yield f"{what} instead", body


def _base64(fresh: Fresh) -> Named:
    """Text that careless decoders take for the same octets, or for any."""
    changes: dict[str, Callable[[str], str]] = {
        "padding": lambda text: text + "=",
        "more padding": lambda text: text + "==",
        "much padding": lambda text: text + "====",
        "escaped padding": lambda text: text + "%3D",
        "a line break": lambda text: text + "\n",
        "a space": lambda text: text + " ",
        "a leading space": lambda text: " " + text,
        "a line break within": lambda text: text[:2] + "\r\n" + text[2:],
        "a dot": lambda text: text + ".",
        "NUL": lambda text: text + "\0",
        "a letter too many": lambda text: text + "A" * ((1 - len(text)) % 4 or 4),
        "a foreign letter": lambda text: "\uff21" + text[1:],
        "the other alphabet": lambda text: "+/" + text[2:],
        "a mark": lambda text: text[:-1] + "!",
    }
    for name in _MEMBERS:
        for what, change in changes.items():
            members = fresh().members()
            yield f"{what} in {name}", _dump({**members, name: change(members[name])})


def _headers(fresh: Fresh) -> Named:
    """Headers that are rightly signed and must still not be believed."""
    for alg in (
        *("none", "None", "NONE", "nOnE", "", "es256", "ES256 ", " ES256", "ES256\0", "ES256K"),
        *("PS256", "RS1", "RS512", "HS1", "RSA-OAEP", "dir", "A128KW", "PBES2-HS256+A128KW"),
    ):
        good = fresh()
        yield f"alg {alg!r}", good.with_header(alg=alg)
        unsigned = good.raw(header={**good.header, "alg": alg}, sign=lambda _: b"")
        yield f"alg {alg!r} without signature", unsigned
    others: tuple[Any, ...] = (None, 0, ["ES256"], {"alg": "ES256"}, True, ...)
    for value in others:
        yield f"alg is {value}", fresh().with_header(alg=value)
        yield f"url is {value}", fresh().with_header(url=value)
    further: tuple[tuple[str, Any], ...] = (
        ("b64", False),
        ("b64", True),
        ("crit", []),
        ("crit", ["b64"]),
        ("crit", ["url"]),
        ("crit", "url"),
        ("jku", "https://evil.example/jwks"),
        ("x5u", "https://evil.example/chain"),
        ("x5c", ["MIIB"]),
        ("x5t#S256", "AAAA"),
        ("zip", "DEF"),
        ("p2c", 2**31),
        ("enc", "A128GCM"),
        ("epk", {}),
        ("cty", "JWT"),
        ("\u0430lg", "none"),
    )
    for name, value in further:
        yield f"header {name}: {value}", fresh().with_header(**{name: value})
    yield "b64 false with crit", fresh().with_header(b64=False, crit=["b64"])
    for name in fresh().header:
        good = fresh()
        yield f"header {name} twice", good.raw(header=_twice(_dump(good.header), name, '"x"'))
        yield f"header without {name}", fresh().with_header(**{name: ...})
    good = fresh()
    text = _dump(good.header)
    yield "no header", good.raw(header=b"")
    yield "header a list", good.raw(header=_dump([good.header]))
    yield "header a string", good.raw(header=_dump(text.decode()))
    yield "header with a mark", good.raw(header=b"\xef\xbb\xbf" + text)
    yield "header in UTF-16", good.raw(header=text.decode().encode("utf-16"))
    yield "header and more", good.raw(header=text + b"{}")
    yield "header deep", good.with_header(typ=json.loads("[" * 400 + "]" * 400))
    for url in ("https://evil.example/", "//", "", "/acme/new-account", "https://localhost"):
        yield f"url {url}", fresh().with_header(url=url)
    yield "url with a query", good.with_header(url=good.header["url"] + "?x")
    yield "url in capitals", good.with_header(url=good.header["url"].upper())


def _signatures(fresh: Fresh) -> Named:
    """Signatures that are none, or are of something else."""
    changes: dict[str, Callable[[bytes], bytes]] = {
        "cut off": lambda s: s[:-1],
        "cut off in front": lambda s: s[1:],
        "with a zero behind": lambda s: s + b"\0",
        "with a zero in front": lambda s: b"\0" + s,
        "twice": lambda s: s + s,
        "of nothing": lambda _: b"",
        "zero": lambda s: bytes(len(s)),
        "full": lambda s: b"\xff" * len(s),
        "with its first bit flipped": lambda s: bytes([s[0] ^ 0x80]) + s[1:],
        "with its last bit flipped": lambda s: s[:-1] + bytes([s[-1] ^ 1]),
        "turned round": lambda s: s[::-1],
        "huge": lambda s: s * 200,
    }
    for what, change in changes.items():
        yield f"signature {what}", _altered(fresh(), change)
    good = fresh()
    parts: dict[str, Callable[[bytes], bytes]] = {
        "the payload": lambda m: m.partition(b".")[2],
        "the header": lambda m: m.partition(b".")[0],
        "both without a dot": lambda m: m.replace(b".", b""),
        "both the other way round": lambda m: b".".join(reversed(m.split(b"."))),
        "more": lambda m: m + b".",
    }
    for what, part in parts.items():
        yield f"signature of {what}", good.raw(sign=_composed(good.sign, part))
    closing = b64(b'{"status": "deactivated"}')
    yield "payload of another request", _dump({**fresh().members(), "payload": closing})
    if good.payload:
        yield "payload left out", _dump({**fresh().members(), "payload": ""})


def _composed(
    sign: Callable[[bytes], bytes], part: Callable[[bytes], bytes]
) -> Callable[[bytes], bytes]:
    return lambda message: sign(part(message))


def _public_forms(key: AccountPrivateKey) -> dict[str, bytes]:
    """Return a public key in every form that was ever mistaken for a secret."""
    public = key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {
        "PEM": pem,
        "PEM without its last line break": pem.rstrip(b"\n"),
        "DER": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "JWK": _dump(jwk_of(key)),
        "sorted JWK": json.dumps(jwk_of(key), separators=(",", ":"), sort_keys=True).encode(),
        "nothing": b"",
    }


def _confusions(fresh: Fresh, key: AccountPrivateKey) -> Named:
    """The public key taken for a secret, secrets brought along, keys that belong to nobody here."""
    for form, secret in _public_forms(key).items():
        for bits in (256, 384, 512):
            good = fresh()
            yield (
                f"HS{bits} with the public key as {form}",
                good.raw(header={**good.header, "alg": f"HS{bits}"}, sign=_mac(secret, bits)),
            )
    secret = b"secret" * 6
    oct_key = {"kty": "oct", "k": b64(secret)}
    for alg in ("HS256", "ES256", "RS256", "EdDSA", "none"):
        good = fresh()
        header = _only(good.header, "jwk", oct_key) | {"alg": alg}
        yield f"a secret of one's own as {alg}", good.raw(header=header, sign=_mac(secret, 256))
    own = ec.generate_private_key(ec.SECP256R1())
    good = fresh()
    both = {"kid": "x", **good.header, "jwk": jwk_of(own)}
    yield "jwk and kid, signed by the jwk", _by(own, good, both)
    if "kid" in good.header:
        yield "a stranger's signature", _by(own, fresh(), good.header)
        yield "a stranger's jwk alone", _by(own, good, _only(good.header, "jwk", jwk_of(own)))
        yield "a stranger's jwk in kid", _by(own, good, {**good.header, "kid": jwk_of(own)})


def _mac(secret: bytes, bits: int) -> Callable[[bytes], bytes]:
    return lambda message: hmac.new(secret, message, f"sha{bits}").digest()


def _by(key: ec.EllipticCurvePrivateKey, good: Good, header: dict[str, Any]) -> bytes:
    """Sign with another key."""
    return good.raw(header={**header, "alg": "ES256"}, sign=lambda message: sign(key, message))


def _only(header: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return a header in which one of jwk and kid stands for the other."""
    return {k: v for k, v in header.items() if k not in {"jwk", "kid"}} | {name: value}


def _raw_ecdsa(
    key: ec.EllipticCurvePrivateKey, digest: hashes.HashAlgorithm
) -> Callable[[bytes], bytes]:
    def signature(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
        return r.to_bytes(32) + s.to_bytes(32)

    return signature


def _ecdsa(fresh: Fresh, key: ec.EllipticCurvePrivateKey) -> Named:
    """Project Wycheproof's ECDSA cases, for P-256."""
    n = P256_ORDER
    odd = {"0": 0, "1": 1, "n-1": n - 1, "n": n, "n+1": n + 1, "p": P256_PRIME, "max": 2**256 - 1}
    for (r_name, r), (s_name, s) in product(odd.items(), repeat=2):
        pair = r.to_bytes(32) + s.to_bytes(32)
        yield f"r={r_name} s={s_name}", _altered(fresh(), partial(_instead, pair))
    good = fresh()
    yield "DER", good.raw(sign=lambda m: key.sign(m, ec.ECDSA(hashes.SHA256())))
    changes: dict[str, Callable[[bytes], bytes]] = {
        "r and s exchanged": lambda s: s[32:] + s[:32],
        "r+n": lambda s: (int.from_bytes(s[:32]) + n).to_bytes(33) + s[32:],
        "s+n": lambda s: s[:32] + (int.from_bytes(s[32:]) + n).to_bytes(33),
        "65 octets, as of secp256k1": lambda s: b"\x1b" + s,
        "66 octets, each number padded": lambda s: b"\0" + s[:32] + b"\0" + s[32:],
    }
    for what, change in changes.items():
        yield f"signature with {what}", _altered(fresh(), change)
    for digest in (hashes.SHA1(), hashes.SHA384(), hashes.SHA512(), hashes.SHA3_256()):
        yield f"ECDSA over {digest.name}", fresh().raw(sign=_raw_ecdsa(key, digest))
    for alg in ("ES384", "ES512", "RS256", "EdDSA"):
        yield f"P-256 as {alg}", fresh().with_header(alg=alg)


def _instead(octets: bytes, _signature: bytes) -> bytes:
    return octets


def _rsa(fresh: Fresh, key: rsa.RSAPrivateKey) -> Named:
    """Other paddings, other hashes, and numbers that are the same modulo n."""
    n = key.public_key().public_numbers().n
    size = (n.bit_length() + 7) // 8
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    yield "PSS", fresh().raw(sign=lambda m: key.sign(m, pss, hashes.SHA256()))
    signers: dict[str, Callable[[bytes], bytes]] = {
        "SHA-1": lambda m: key.sign(m, padding.PKCS1v15(), hashes.SHA1()),
        "SHA-384": lambda m: key.sign(m, padding.PKCS1v15(), hashes.SHA384()),
        "SHA-512": lambda m: key.sign(m, padding.PKCS1v15(), hashes.SHA512()),
        "a digest of the digest": lambda m: key.sign(
            hashlib.sha256(m).digest(), padding.PKCS1v15(), hashes.SHA256()
        ),
    }
    for what, signer in signers.items():
        yield f"RSA over {what}", fresh().raw(sign=signer)
    for what, number in (("0", 0), ("1", 1), ("n-1", n - 1), ("n", n)):
        yield f"RSA {what}", _altered(fresh(), partial(_instead, number.to_bytes(size)))
    yield "RSA s+n", _altered(fresh(), lambda s: (int.from_bytes(s) + n).to_bytes(size + 1))
    for alg in ("ES256", "PS256", "RS384", "RS512", "EdDSA"):
        yield f"RSA as {alg}", fresh().with_header(alg=alg)


def _ed25519(fresh: Fresh) -> Named:
    """Signatures that lenient verifiers take for one another."""

    def more(signature: bytes) -> bytes:
        s = int.from_bytes(signature[32:], "little") + ED25519_ORDER
        return signature[:32] + s.to_bytes(32, "little")

    yield "S+L", _altered(fresh(), more)
    yield "R=1 S=0", _altered(fresh(), partial(_instead, b"\x01" + bytes(63)))
    yield "without R", _altered(fresh(), lambda s: bytes(32) + s[32:])
    for alg in ("ES256", "Ed448", "Ed25519ph", "RS256"):
        yield f"Ed25519 as {alg}", fresh().with_header(alg=alg)


def bad_keys() -> dict[str, tuple[str, dict[str, str]]]:
    """Return algorithm and JWK of keys that no account may have."""
    good = jwk_of(ec.generate_private_key(ec.SECP256R1()))
    n = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n
    octets = {"0": bytes(32), "p": P256_PRIME.to_bytes(32), "max": b"\xff" * 32}
    found: dict[str, tuple[str, dict[str, str]]] = {
        f"P-256 with x={x} y={y}": ("ES256", {**good, "x": b64(octets[x]), "y": b64(octets[y])})
        for x in octets
        for y in octets
    }
    found |= {
        "a compressed point": ("ES256", {**good, "x": b64(b"\x02" + bytes(32)), "y": ""}),
        "a whole point in x": ("ES256", {**good, "x": b64(b"\x04" + bytes(64))}),
        "x with a zero in front": ("ES256", {**good, "x": b64(b"\0" + bytes(32))}),
    }
    for crv in ("p-256", "P256", "secp256k1", "P-192", "brainpoolP256r1", "P-384", "P-521", ""):
        found[f"a point of P-256 as {crv!r}"] = ("ES256", {**good, "crv": crv})
    for name, modulus in (
        ("0", 0),
        ("1", 1),
        ("of 512 bits", 2**511 + 1),
        ("of 2047 bits", 2**2046 + 1),
        ("of 4097 bits", 2**4096 + 1),
        ("of 16384 bits", 2**16383 + 1),
        ("that is even", n - 1),
        ("that is a square", (2**1024 - 105) ** 2),
        ("of threes", 3**1292),
    ):
        jwk = {"kty": "RSA", "n": number64(modulus, max(1, (modulus.bit_length() + 7) // 8))}
        found[f"an RSA modulus {name}"] = ("RS256", {**jwk, "e": "AQAB"})
    for exponent in (0, 1, 2, 3, 17, 65536, 65538, 2**32 + 1, 2**64 + 1, n - 1, n + 2):
        encoded = number64(exponent, max(1, (exponent.bit_length() + 7) // 8))
        jwk = {"kty": "RSA", "n": number64(n), "e": encoded}
        found[f"an RSA exponent of {exponent.bit_length()} bits, {exponent % 100}"] = ("RS256", jwk)
    # The eight points of small order: with one of them anybody signs anything.
    for number, x in enumerate(SMALL_ORDER):
        found[f"point {number} of small order"] = (
            "EdDSA",
            {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes.fromhex(x))},
        )
    return found


SMALL_ORDER = (
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
)
