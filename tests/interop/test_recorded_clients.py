"""Clients that no package holds, by what they were seen to send and able to read.

libest (Cisco; C, TLS 1.2), GlobalSign's Go client and Azure's aziot-certd (Rust). Requests are
theirs octet by octet; each answer is read the way the client reads it.
"""

import base64
import email.message
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estserver.invitations import Handover
from tests.interop.commands import run
from tests.interop.wire import Connection, Reply, ask, parse
from tests.live import ORIGIN, Holder, Live, basic, make_csr, new_key

CHALLENGE_PASSWORD = x509.ObjectIdentifier("1.2.840.113549.1.9.7")
EST = "/.well-known/est"
# libest's table of headers has sixteen rows; strongSwan's buffer for all of them 1024 octets.
MAX_HEADERS = 16
MAX_HEAD_OCTETS = 1000


# -- libest estclient 3.2.0p ----------------------------------------------------------------------


def _libest_get(live: Live, operation: str, path: str = EST) -> bytes:
    return (
        f"GET {path}/{operation} HTTP/1.1\r\n"
        "User-Agent: libest 3.2.0p\r\n"
        "Connection: close\r\n"
        f"Host: localhost:{live.port('devices')}\r\n"
        "Accept: */*\r\n"
        "\r\n"
    ).encode()


def _libest_post(live: Live, operation: str, csr: bytes, pin: Handover | None) -> bytes:
    # OpenSSL's base64 filter: lines of 64, each with its LF.
    body = b"".join(
        base64.b64encode(csr[start : start + 48]) + b"\n" for start in range(0, len(csr), 48)
    )
    return (
        f"POST {EST}/{operation} HTTP/1.1\r\n"
        "User-Agent: libest 3.2.0p\r\n"
        "Connection: close\r\n"
        f"Host: localhost:{live.port('devices')}\r\n"
        "Accept: */*\r\n"
        "Content-Type: application/pkcs10\r\n"
        f"Content-Length: {len(body)}\r\n"
        + ("" if pin is None else f"Authorization: {basic(pin)}\r\n")
        + "\r\n"
    ).encode() + body


def _libest_context(live: Live, holder: Holder | None = None) -> ssl.SSLContext:
    context = live.tls(holder)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def _libest_ask(live: Live, request: bytes, holder: Holder | None = None) -> Reply:
    """Read as libest does: to the end, from at most two records, in a small table of headers."""
    with Connection(live, _libest_context(live, holder)) as connection:
        connection.send(request)
        reply = parse(connection.read_to_end())
        assert connection.version == "TLSv1.2"
        assert connection.data_records <= 2
    assert len(reply.headers) <= MAX_HEADERS
    assert len(reply.head) < MAX_HEAD_OCTETS
    return reply


def _libest_certificates(reply: Reply, content_type: str) -> list[x509.Certificate]:
    assert reply.status == 200, reply
    assert reply.value("Content-Type") == content_type
    lines = reply.body.split(b"\n")
    assert lines[-1] == b""
    assert max(map(len, lines)) == 64
    return pkcs7.load_der_pkcs7_certificates(base64.b64decode(reply.body))


@pytest.mark.row("EST-011", "EST-036", "EST-037", "EST-048", "EST-193")
def test_libest_reads_cacerts(shared: Live) -> None:
    reply = _libest_ask(shared, _libest_get(shared, "cacerts"))
    found = _libest_certificates(reply, "application/pkcs7-mime")
    assert set(found) == set(shared.core.chains["issuing"])


@pytest.mark.row("EST-145", "EST-146", "EST-193")
def test_libest_reads_csrattrs_at_a_label(shared: Live) -> None:
    reply = _libest_ask(shared, _libest_get(shared, "csrattrs", f"{EST}/device"))
    assert reply.status == 200
    assert reply.value("Content-Type") == "application/csrattrs"
    assert base64.b64decode(reply.body)[0] == 0x30


@pytest.mark.row("EST-049", "EST-050", "EST-060", "EST-114", "EST-193")
def test_libest_is_challenged_and_then_enrolls_on_a_second_connection(shared: Live) -> None:
    handover = shared.invite("device")
    csr = make_csr(new_key())
    challenge = _libest_ask(shared, _libest_post(shared, "simpleenroll", csr, None))
    assert challenge.status == 401
    assert challenge.value("WWW-Authenticate").startswith('Basic realm="')
    assert challenge.body == b""
    answer = _libest_ask(shared, _libest_post(shared, "simpleenroll", csr, handover))
    kind = "application/pkcs7-mime; smime-type=certs-only"
    (certificate,) = _libest_certificates(answer, kind)
    assert certificate.subject.rfc4514_string() == "CN=printer-17"


@pytest.mark.row("EST-055", "EST-127", "EST-193")
def test_libest_renews_over_tls_1_2_with_its_certificate(shared: Live) -> None:
    holder = shared.enroll(shared.invite("device"))
    csr = make_csr(holder.key, subject=holder.certificate.subject)
    answer = _libest_ask(shared, _libest_post(shared, "simplereenroll", csr, None), holder)
    kind = "application/pkcs7-mime; smime-type=certs-only"
    (renewed,) = _libest_certificates(answer, kind)
    assert renewed.subject == holder.certificate.subject
    assert renewed.serial_number != holder.certificate.serial_number


@pytest.mark.row("EST-098", "EST-099", "EST-193")
def test_libest_links_each_request_to_its_own_connection(shared: Live) -> None:
    handover = shared.invite("device")
    key = new_key()
    stale = b""
    for expected in (401, 200):
        with Connection(shared, _libest_context(shared)) as connection:
            stale = stale or base64.b64encode(connection.tls_unique)
            unique = base64.b64encode(connection.tls_unique)
            csr = make_csr(key, attributes=((CHALLENGE_PASSWORD, unique),))
            pin = None if expected == 401 else handover
            connection.send(_libest_post(shared, "simpleenroll", csr, pin))
            assert parse(connection.read_to_end()).status == expected
    other = shared.invite("device")
    csr = make_csr(new_key(), attributes=((CHALLENGE_PASSWORD, stale),))
    refused = _libest_ask(shared, _libest_post(shared, "simpleenroll", csr, other))
    assert refused.status == 400
    assert b"linking of identity and POP" in refused.body
    assert shared.core.invitations.get(other.invitation.number).units_used == 0


@pytest.mark.row("EST-008", "EST-117", "EST-193")
def test_libest_knows_the_status_code_of_every_refusal(shared: Live) -> None:
    # The ten that its client tells apart.
    known = {200, 202, 204, 400, 401, 403, 404, 415, 423, 503}
    handover = shared.invite("device")
    csr = make_csr(new_key())
    asked = {
        "bad CSR": _libest_post(shared, "simpleenroll", csr[:-1], handover),
        "no certificate": _libest_post(shared, "simplereenroll", csr, None),
        "foreign name": _libest_post(
            shared, "simpleenroll", make_csr(new_key(), subject="printer-18"), handover
        ),
        "no such operation": _libest_get(shared, "fullcmc"),
        "no such label": _libest_get(shared, "cacerts", f"{EST}/nowhere"),
    }
    got = {name: _libest_ask(shared, request).status for name, request in asked.items()}
    assert got == {
        "bad CSR": 400,
        "no certificate": 403,
        "foreign name": 403,
        "no such operation": 404,
        "no such label": 404,
    }
    assert set(got.values()) <= known


@pytest.mark.row("EST-120", "EST-121", "EST-193")
def test_libest_is_told_to_come_back_in_whole_seconds(live: Live) -> None:
    handover = live.invite("device", approval=True)
    request = _libest_post(live, "simpleenroll", make_csr(new_key()), handover)
    for _ in range(2):
        waiting = _libest_ask(live, request)
        assert waiting.status == 202
        assert int(waiting.value("Retry-After")) == 60
        assert waiting.body == b""
    ((pending, _),) = live.core.ra.of_invitation(handover.invitation.number)
    live.core.ra.approve(pending.id, by="officer", origin=ORIGIN)
    _libest_certificates(
        _libest_ask(live, request), "application/pkcs7-mime; smime-type=certs-only"
    )


@pytest.mark.row("EST-029", "EST-102")
def test_libest_is_served_on_a_resumed_tls_1_2_session_too(shared: Live) -> None:
    context = _libest_context(shared)
    for _ in range(2):
        with Connection(shared, context) as connection:
            connection.send(_libest_get(shared, "cacerts"))
            assert parse(connection.read_to_end()).status == 200


# -- GlobalSign's estclient, Go -------------------------------------------------------------------


def _go_post(live: Live, operation: str, csr: bytes, pin: Handover | None) -> bytes:
    # Lines of 76 with CRLF; net/http does not know the length and sends one chunk.
    text = base64.b64encode(csr)
    body = b"\r\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + b"\r\n"
    return (
        (
            f"POST {EST}/{operation} HTTP/1.1\r\n"
            f"Host: localhost:{live.port('devices')}\r\n"
            "User-Agent: GlobalSign EST Client github.com/globalsign/est\r\n"
            "Transfer-Encoding: chunked\r\n"
            "Accept: application/pkcs7-mime\r\n"
            + ("" if pin is None else f"Authorization: {basic(pin)}\r\n")
            + "Content-Transfer-Encoding: base64\r\n"
            "Content-Type: application/pkcs10\r\n"
            "Accept-Encoding: gzip\r\n"
            # Go keeps connections; this ends the answer for the reader here.
            "Connection: close\r\n"
            f"\r\n{len(body):x}\r\n"
        ).encode()
        + body
        + b"\r\n0\r\n\r\n"
    )


def _go_certificate(reply: Reply) -> x509.Certificate:
    """Read as Go does: the media type without its parameters, base64 exactly, one certificate."""
    assert reply.status == 200, reply
    message = email.message.Message()
    message["Content-Type"] = reply.value("Content-Type")
    assert message.get_content_type() == "application/pkcs7-mime"
    assert reply.value("Content-Transfer-Encoding") == "base64"
    assert not reply.has("Content-Encoding")
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(reply.body))
    return certificate


@pytest.mark.row("EST-066", "EST-085", "EST-196")
def test_the_go_client_enrolls_in_chunks_and_renews(shared: Live) -> None:
    handover = shared.invite("device")
    key = new_key()
    request = _go_post(shared, "simpleenroll", make_csr(key), handover)
    holder = Holder(key, _go_certificate(ask(shared, request)))
    csr = make_csr(new_key(), subject=holder.certificate.subject)
    renewed = ask(shared, _go_post(shared, "simplereenroll", csr, None), shared.tls(holder))
    assert _go_certificate(renewed).subject == holder.certificate.subject


@pytest.mark.row("EST-120", "EST-196")
def test_the_go_client_reads_202_and_refusals(shared: Live) -> None:
    handover = shared.invite("device", approval=True)
    waiting = ask(shared, _go_post(shared, "simpleenroll", make_csr(new_key()), handover))
    assert waiting.status == 202
    assert int(waiting.value("Retry-After")) == 60
    refused = ask(shared, _go_post(shared, "simpleenroll", b"0", handover))
    assert refused.status == 400
    # Its error is the body, if that is text.
    assert refused.value("Content-Type").startswith("text/plain")
    assert refused.body.endswith(b"\n")


# -- Azure's aziot-certd, Rust --------------------------------------------------------------------


def _rust(
    live: Live, method: str, operation: str, pin: Handover, *, body: bytes = b"", close: bool = True
) -> bytes:
    """Return a request as hyper writes it: lower-case names, neither User-Agent nor Accept."""
    lines = [f"{method} {EST}/{operation} HTTP/1.1"]
    if method == "POST":
        lines += ["content-type: application/pkcs10", "content-transfer-encoding: base64"]
    lines += [f"authorization: {basic(pin)}", f"host: localhost:{live.port('devices')}"]
    if method == "POST":
        lines.append(f"content-length: {len(body)}")
    if close:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _glue(reply: Reply, folder: Path) -> list[x509.Certificate]:
    """Read as aziot-certd does: put PEM lines around the body and let OpenSSL open it."""
    assert reply.status == 200, reply
    content_type = reply.value("Content-Type")
    assert content_type == "application/pkcs7-mime" or content_type.startswith(
        "application/pkcs7-mime;"
    )
    path = folder / "answer.pem"
    path.write_bytes(b"-----BEGIN PKCS7-----\n" + reply.body + b"-----END PKCS7-----\n")
    outcome = run(["openssl", "pkcs7", "-in", str(path), "-print_certs"], folder)
    assert outcome.status == 0, outcome
    return x509.load_pem_x509_certificates(outcome.out.encode())


@pytest.mark.row("EST-065", "EST-198")
def test_aziot_sends_the_pin_with_cacerts_too_and_both_at_once(
    shared: Live, tmp_path: Path
) -> None:
    handover = shared.invite("device")
    csr = base64.b64encode(make_csr(new_key()))
    requests = [
        _rust(shared, "GET", "cacerts", handover),
        _rust(shared, "POST", "simpleenroll", handover, body=csr),
    ]
    with (
        Connection(shared, shared.tls()) as first,
        Connection(shared, shared.tls()) as second,
    ):
        first.send(requests[0])
        second.send(requests[1])
        chain = _glue(parse(first.read_to_end()), tmp_path)
        (certificate,) = _glue(parse(second.read_to_end()), tmp_path)
    assert set(chain) == set(shared.core.chains["issuing"])
    certificate.verify_directly_issued_by(shared.core.chains["issuing"][0])
    assert shared.core.invitations.get(handover.invitation.number).units_used == 1


@pytest.mark.row("EST-076", "EST-198")
def test_an_old_aziot_sends_pem(shared: Live, tmp_path: Path) -> None:
    handover = shared.invite("device")
    csr = x509.load_der_x509_csr(make_csr(new_key())).public_bytes(Encoding.PEM)
    request = _rust(shared, "POST", "simpleenroll", handover, body=csr)
    assert len(_glue(ask(shared, request), tmp_path)) == 1


@pytest.mark.row("EST-144")
def test_aziot_renews_by_simpleenroll_with_the_certificate_it_has(
    make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live("")
    handover = live.invite("device")
    holder = live.enroll(handover)
    csr = base64.b64encode(make_csr(new_key(), subject="printer-17"))
    request = _rust(live, "POST", "simpleenroll", handover, body=csr)
    anonymous = request.replace(f"authorization: {basic(handover)}\r\n".encode(), b"")
    (certificate,) = _glue(ask(live, anonymous, live.tls(holder)), tmp_path)
    assert certificate.subject == holder.certificate.subject
    assert live.core.invitations.get(handover.invitation.number).units_used == 1


# -- what holds for all of them -------------------------------------------------------------------


@pytest.mark.row("EST-011")
def test_http_1_0_gets_a_complete_answer_and_the_end(shared: Live) -> None:
    reply = ask(shared, f"GET {EST}/cacerts HTTP/1.0\r\n\r\n".encode())
    assert reply.status == 200


@pytest.mark.row("EST-194", "EST-200", "EST-201")
def test_no_answer_has_more_headers_than_a_small_client_holds(shared: Live) -> None:
    handover = shared.invite("device")
    requests = [
        _libest_get(shared, "cacerts"),
        _libest_get(shared, "csrattrs"),
        _libest_get(shared, "simpleenroll"),
        _libest_get(shared, "nothing"),
        _libest_post(shared, "simpleenroll", make_csr(new_key()), None),
        _libest_post(shared, "simpleenroll", b"", handover),
        _libest_post(shared, "simpleenroll", make_csr(new_key()), handover),
    ]
    for request in requests:
        reply = _libest_ask(shared, request)
        for name in ("Server", "Set-Cookie", "Content-Security-Policy", "X-Powered-By"):
            assert not reply.has(name)
