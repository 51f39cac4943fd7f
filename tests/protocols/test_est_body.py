"""EST simpleenroll: what a body may be, and what is no CSR."""

import base64
import gzip
import textwrap
from collections.abc import Callable

import pytest
from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from tests.live import Live, basic, make_csr, new_key
from tests.protocols.est_wire import (
    CERTS_ONLY,
    EST,
    PKCS10,
    Wire,
    csr,
    issued,
    post,
    raw_csr,
    units_used,
)

STRICT = "\n[est]\npem = false\n"


def wrapped(der: bytes, columns: int, end: str) -> bytes:
    return (end.join(textwrap.wrap(base64.b64encode(der).decode(), columns)) + end).encode()


def pem(der: bytes, label: str) -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (
        label.encode(),
        wrapped(der, 64, "\n"),
        label.encode(),
    )


# -- what may be sent ----------------------------------------------------------------------------


@pytest.mark.row("EST-071", "EST-113", "EST-114", "EST-115", "EST-116")
def test_base64_der_and_a_pin_give_200_and_exactly_the_issued_certificate(live: Live) -> None:
    handover, key = live.invite("device"), new_key()
    answer = post(live, csr(key=key), by=handover)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == CERTS_ONLY
    assert answer.headers["Content-Transfer-Encoding"] == "base64"
    info = cms.ContentInfo.load(base64.b64decode(answer.body), strict=True)
    signed = info["content"]
    assert signed["encap_content_info"]["content"].native is None
    assert (len(signed["signer_infos"]), len(signed["digest_algorithms"])) == (0, 0)
    (certificate,) = answer.certificates()
    assert certificate.public_key() == key.public_key()
    (stored,) = issued(live, handover)
    assert stored.sha256 == certificate.fingerprint(hashes.SHA256())
    certificate.verify_directly_issued_by(live.core.chains["issuing"][0])


@pytest.mark.row("EST-072", "EST-073")
@pytest.mark.parametrize(
    "content_type",
    [
        PKCS10,
        "Application/PKCS10",
        "application/pkcs10; charset=utf-8",
        "APPLICATION/pkcs10;name=x;smime-type=y",
        " application/pkcs10 ",
        "",
    ],
)
def test_content_types_are_read_kindly(live: Live, content_type: str) -> None:
    handover = live.invite("device")
    answer = post(live, csr(), by=handover, headers={"Content-Type": content_type})
    assert answer.status == 200


@pytest.mark.row("EST-073")
def test_a_missing_content_type_is_accepted_and_logged(live: Live) -> None:
    headers = {"Authorization": basic(live.invite("device"))}
    with capture_logs() as lines:
        answer = live.request("POST", f"{EST}/simpleenroll", body=csr(), headers=headers)
    assert answer.status == 200
    (line,) = [line for line in lines if line["event"] == "csr.tolerated"]
    assert (line["log_level"], line["error"]) == ("warning", "without Content-Type")


@pytest.mark.row("EST-073")
@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/pkcs7-mime", "pkcs10", "x"],
)
def test_a_wrong_content_type_is_415_naming_the_right_one(live: Live, content_type: str) -> None:
    handover = live.invite("device")
    answer = post(live, csr(), by=handover, headers={"Content-Type": content_type})
    assert answer.status == 415
    assert b"application/pkcs10" in answer.body
    assert units_used(live, handover) == 0


@pytest.mark.row("EST-074")
@pytest.mark.parametrize("encoding", ["base64", "BASE64", "binary", "7bit", "garbage"])
def test_content_transfer_encoding_is_ignored(live: Live, encoding: str) -> None:
    headers = {"Content-Transfer-Encoding": encoding}
    assert post(live, csr(), by=live.invite("device"), headers=headers).status == 200


@pytest.mark.row("EST-075")
def test_white_space_in_base64_means_nothing(live: Live) -> None:
    handover, der = live.invite("device"), make_csr(new_key())
    line = base64.b64encode(der)
    forms = [
        line,
        line + b"\n",
        wrapped(der, 64, "\n"),
        wrapped(der, 64, "\r\n"),
        wrapped(der, 76, "\r\n"),
        b"\r\n\r\n  " + wrapped(der, 76, " \t\n") + b"\n\n",
    ]
    bodies = {post(live, form, by=handover).body for form in forms}
    assert len(bodies) == 1
    assert len(issued(live, handover)) == 1


@pytest.mark.row("EST-076", "EST-077")
@pytest.mark.parametrize("form", ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST", "DER"])
def test_pem_and_der_are_tolerated_and_logged_or_refused_by_the_strict(
    make_live: Callable[[str], Live], form: str
) -> None:
    der = make_csr(new_key())
    body = der if form == "DER" else pem(der, form)
    live = make_live("")
    with capture_logs() as lines:
        assert post(live, body, by=live.invite("device")).status == 200
    assert "csr.tolerated" in {line["event"] for line in lines}
    strict = make_live(STRICT)
    handover = strict.invite("device")
    answer = post(strict, body, by=handover)
    assert answer.status == 400
    assert b"body is not base64" in answer.body
    assert post(strict, base64.b64encode(der), by=handover).status == 200


@pytest.mark.row("EST-085", "EST-196")
def test_chunked_bodies_are_read(live: Live) -> None:
    body, handover = csr(), live.invite("device")
    with Wire(live) as wire:
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:10], body[10:100], body[100:])
        )
        wire.send(
            f"POST {EST}/simpleenroll HTTP/1.1",
            "Host: localhost",
            f"Authorization: {basic(handover)}",
            f"Content-Type: {PKCS10}",
            "Transfer-Encoding: chunked",
            body=chunks + b"0\r\n\r\n",
        )
        assert wire.answer().status == 200


@pytest.mark.row("EST-085")
def test_compressed_bodies_are_415(live: Live) -> None:
    handover = live.invite("device")
    headers = {"Content-Encoding": "gzip"}
    answer = post(live, gzip.compress(csr()), by=handover, headers=headers)
    assert answer.status == 415
    assert units_used(live, handover) == 0


@pytest.mark.row("EST-084")
def test_a_body_over_the_limit_is_413_and_closes(live: Live) -> None:
    size = live.settings.limits.body_bytes
    with Wire(live) as wire:
        wire.send(
            f"POST {EST}/simpleenroll HTTP/1.1", "Host: localhost", f"Content-Length: {size + 1}"
        )
        answer = wire.answer()
        assert (answer.status, answer.headers["Connection"]) == (413, "close")
    with Wire(live) as wire:
        chunk = b"4000\r\n" + b"A" * 0x4000 + b"\r\n"
        wire.send(
            f"POST {EST}/simpleenroll HTTP/1.1",
            "Host: localhost",
            "Transfer-Encoding: chunked",
            body=chunk * (size // 0x4000 + 1),
        )
        answer = wire.answer()
        assert (answer.status, answer.headers["Connection"]) == (413, "close")


# -- what is no CSR ------------------------------------------------------------------------------


GOOD = make_csr(new_key())


@pytest.mark.row("EST-078", "EST-079", "EST-080", "EST-118")
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", b"is empty"),
        (b" \r\n ", b"is empty"),
        (b"MII!" + base64.b64encode(GOOD)[4:], b"not base64"),
        (base64.b64encode(GOOD)[:-3], b"padding is wrong"),
        (base64.urlsafe_b64encode(GOOD + b"\xff\xff\xff"), b"URL-safe"),
        (base64.b64encode(GOOD[:-7]), b"cut short"),
        (base64.b64encode(GOOD + b"\x00"), b"1 bytes follow"),
        (base64.b64encode(GOOD + GOOD), b"more than one request"),
        (base64.b64encode(b"\x30\x80" + GOOD[4:] + b"\0\0"), b"indefinite"),
        (base64.b64encode(GOOD.replace(b"\x02\x01\x00", b"\x02\x01\x01", 1)), b"version"),
        (base64.b64encode(GOOD[:-1] + bytes([GOOD[-1] ^ 1])), b"signature"),
    ],
)
def test_each_malformed_body_is_400_saying_what_is_wrong(
    shared: Live, body: bytes, says: bytes
) -> None:
    handover = shared.invite("device")
    answer = post(shared, body, by=handover)
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert says in answer.body
    assert answer.body.splitlines()[-1].startswith(b"Reference: ")
    assert answer.body.endswith(b"\n")
    assert units_used(shared, handover) == 0


@pytest.mark.row("EST-080")
def test_a_signature_by_another_key_is_refused(shared: Live) -> None:
    mine, other = new_key(), new_key()
    spki = [
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for key in (mine, other)
    ]
    body = base64.b64encode(make_csr(mine).replace(spki[0], spki[1]))
    answer = post(shared, body, by=shared.invite("device"))
    assert answer.status == 400
    assert b"signature" in answer.body
    assert b"does not verify" in answer.body


@pytest.mark.row("EST-081", "EST-083")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: make_csr(rsa.generate_private_key(65537, 1024)), b"2048"),
        (lambda: make_csr(rsa.generate_private_key(3, 2048)), b"exponent"),
        (lambda: make_csr(ec.generate_private_key(ec.SECP192R1())), b"P-192"),
        (lambda: make_csr(ec.generate_private_key(ec.SECP256K1())), b"secp256k1"),
    ],
)
def test_weak_keys_are_400_naming_what_is_allowed(
    shared: Live, make: Callable[[], bytes], says: bytes
) -> None:
    answer = post(shared, base64.b64encode(make()), by=shared.invite("device"))
    assert answer.status == 400
    assert says in answer.body
    assert b"P-256" in answer.body


@pytest.mark.row("EST-081")
def test_a_key_that_cannot_sign_is_refused_in_words(shared: Live) -> None:
    key = x25519.X25519PrivateKey.generate().public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    answer = post(shared, raw_csr(spki=spki), by=shared.invite("device"))
    assert answer.status == 400
    assert b"cannot sign" in answer.body


@pytest.mark.row("EST-083")
def test_a_key_that_the_profile_does_not_take_is_400_naming_those_it_takes(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live('\n[profiles.device]\nkeys = ["ec-p384", "ed25519"]\n')
    handover = live.invite("device")
    answer = post(live, csr(), by=handover)
    assert answer.status == 400
    assert b"ec-p384, ed25519" in answer.body
    key = ed25519.Ed25519PrivateKey.generate()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    body = base64.b64encode(request.public_bytes(Encoding.DER))
    assert post(live, body, by=handover).certificates()[0].public_key() == key.public_key()
