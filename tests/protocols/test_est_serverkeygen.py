"""EST /serverkeygen: off by default; the key goes out once and is kept nowhere (sheet J and K)."""

import base64
from collections.abc import Callable
from email import message_from_bytes
from email.message import Message

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    pkcs7,
)

from tests.der import attribute, tlv
from tests.live import Answer, Live, make_csr, new_key
from tests.protocols.est_wire import (
    CERTS_ONLY,
    CHALLENGE_PASSWORD,
    Wire,
    change_subject,
    common_name,
    csr,
    issued,
    names_of,
    post,
    raw_csr,
    text,
    tls12,
    units_used,
)

ON = "\n[est]\nserverkeygen = true\n"
PATH = "serverkeygen"


def parts_of(answer: Answer) -> tuple[Message, Message]:
    """Take the multipart apart as MIME has it."""
    assert answer.status == 200, answer.body
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    message = message_from_bytes(head + answer.body)
    assert not message.defects
    parts = message.get_payload()
    assert isinstance(parts, list)
    first, second = parts
    assert isinstance(first, Message)
    assert isinstance(second, Message)
    return first, second


def content_of(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


def key_and_certificate(
    answer: Answer,
) -> tuple[ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, x509.Certificate]:
    first, second = parts_of(answer)
    key = load_der_private_key(content_of(first), None)
    (certificate,) = pkcs7.load_der_pkcs7_certificates(content_of(second))
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    assert key.public_key() == certificate.public_key()
    return key, certificate


@pytest.mark.row("EST-167", "EST-174")
def test_the_answer_is_two_parts_key_and_certificate_as_clients_read_them(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live(ON)
    handover = live.invite("device", names=("dns:p17.example.ac.jp",))
    answer = post(live, csr(subject="printer-17"), by=handover, path=PATH)
    kind, _, boundary = answer.headers["Content-Type"].partition("; boundary=")
    assert kind == "multipart/mixed"
    assert boundary.isalnum()
    assert "Content-Transfer-Encoding" not in answer.headers
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert answer.body.startswith(f"--{boundary}\r\n".encode())
    # Bouncy Castle fails on anything after the one CRLF.
    assert answer.body.endswith(f"\r\n--{boundary}--\r\n".encode())
    assert answer.body.count(b"\n") == answer.body.count(b"\r\n")
    first, second = parts_of(answer)
    assert first.items() == [
        ("Content-Type", "application/pkcs8"),
        ("Content-Transfer-Encoding", "base64"),
    ]
    assert second.items() == [
        ("Content-Type", CERTS_ONLY),
        ("Content-Transfer-Encoding", "base64"),
    ]
    key, certificate = key_and_certificate(answer)
    assert isinstance(key.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.subject == common_name("printer-17")
    assert names_of(certificate) == (x509.DNSName("p17.example.ac.jp"),)
    (stored,) = issued(live, handover)
    assert stored.serial_hex == f"{certificate.serial_number:x}"


@pytest.mark.row("EST-166")
def test_key_and_signature_of_the_request_are_ignored(make_live: Callable[[str], Live]) -> None:
    live = make_live(ON)
    theirs = new_key()
    der = make_csr(theirs, subject="printer-17")
    bad_signature = base64.b64encode(der[:-1] + bytes([der[-1] ^ 0xFF]))
    bad_key = raw_csr(spki=tlv(0x30, tlv(0x30, b"\x06\x01\x2a"), tlv(0x03, b"\0garbage")))
    for body in (bad_signature, bad_key):
        handover = live.invite("device")
        _, certificate = key_and_certificate(post(live, body, by=handover, path=PATH))
        assert certificate.public_key() != theirs.public_key()
        assert certificate.subject == common_name("printer-17")


@pytest.mark.row("EST-164", "EST-166")
def test_the_same_checks_as_enroll(make_live: Callable[[str], Live]) -> None:
    live = make_live(ON)
    answer = post(live, csr(), path=PATH)
    assert (answer.status, answer.body) == (401, b"")
    handover = live.invite("device")
    assert post(live, csr(), by=handover, path=f"server/{PATH}").status == 403
    assert post(live, csr(subject="printer-99"), by=handover, path=PATH).status == 403
    assert post(live, b"!!!", by=handover, path=PATH).status == 400
    wrong = {"Content-Type": "text/plain"}
    assert post(live, csr(), by=handover, path=PATH, headers=wrong).status == 415
    assert units_used(live, handover) == 0
    holder = live.enroll(handover)
    key_and_certificate(post(live, csr(), holder=holder, path=PATH))


@pytest.mark.row("EST-168", "EST-169", "EST-172", "EST-170", "EST-171")
@pytest.mark.parametrize("oid", ["1.2.840.113549.1.9.16.2.37", "1.2.840.113549.1.9.16.2.54"])
def test_a_key_to_encrypt_with_is_unknown_here_and_nothing_is_issued(
    make_live: Callable[[str], Live], oid: str
) -> None:
    live = make_live(ON)
    handover = live.invite("device")
    answer = post(live, raw_csr(attribute(oid, tlv(0x04, b"key 1"))), by=handover, path=PATH)
    assert answer.status == 400
    assert b"DecryptKeyIdentifier" in answer.body
    assert units_used(live, handover) == 0


@pytest.mark.row("EST-173")
def test_a_lost_answer_cannot_be_had_again_and_the_key_is_nowhere(
    make_live: Callable[[str], Live], capfd: pytest.CaptureFixture[str]
) -> None:
    live = make_live(ON)
    handover, body = live.invite("device"), csr()
    key, _ = key_and_certificate(post(live, body, by=handover, path=PATH))
    again = post(live, body, by=handover, path=PATH)
    assert again.status == 401
    assert len(issued(live, handover)) == 1
    numbers = key.private_numbers()
    assert isinstance(numbers, ec.EllipticCurvePrivateNumbers)
    raw = numbers.private_value.to_bytes(32)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    stored = b"".join(path.read_bytes() for path in live.directory.rglob("*") if path.is_file())
    assert raw not in stored
    live.restart()
    output = capfd.readouterr().err
    for secret in (raw.hex(), base64.b64encode(raw).decode(), pem.decode().splitlines()[1]):
        assert secret not in output
        assert secret.encode() not in stored


@pytest.mark.row("EST-167")
def test_the_key_is_of_the_first_type_of_the_profile(make_live: Callable[[str], Live]) -> None:
    live = make_live('\n[profiles.device]\nkeys = ["rsa-2048", "ec-p256"]\n' + ON)
    key, _ = key_and_certificate(post(live, csr(), by=live.invite("device"), path=PATH))
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 2048


@pytest.mark.row("EST-164")
def test_what_a_server_made_key_cannot_do_is_refused_in_words(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live(ON)
    waiting = live.invite("device", approval=True)
    answer = post(live, csr(), by=waiting, path=PATH)
    assert answer.status == 403
    assert b"simpleenroll" in answer.body
    assert live.core.ra.of_invitation(waiting.invitation.number) == []
    changing = raw_csr(change_subject(common_name("printer-17")))
    assert post(live, changing, by=live.invite("device"), path=PATH).status == 400


@pytest.mark.row("EST-099", "EST-166")
def test_a_challenge_password_that_is_there_must_be_right(make_live: Callable[[str], Live]) -> None:
    live = make_live(ON)
    handover = live.invite("device")
    with Wire(live, context=tls12(live)) as wire:
        for value, status in ((b"wrong", 400), (base64.b64encode(wire.unique), 200)):
            body = raw_csr(attribute(CHALLENGE_PASSWORD, text(value)))
            assert wire.enroll(handover, body, path=PATH).status == status


@pytest.mark.row("EST-173")
def test_a_key_type_that_the_server_cannot_make_is_no_certificate(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live('\n[profiles.device]\nkeys = ["ed25519"]\n' + ON)
    handover = live.invite("device")
    assert post(live, csr(), by=handover, path=PATH).status == 500
    assert units_used(live, handover) == 0
