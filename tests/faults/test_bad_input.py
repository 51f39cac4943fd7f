"""Bad input at every door: refused in words, spending nothing, costing the others nothing."""

import base64
import gzip
import itertools
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from http.client import HTTPSConnection
from pathlib import Path

import cryptography_vectors
import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estserver.invitations import Handover
from estserver.store.tables import certificates, enrollments
from tests.faults.serving import Process
from tests.interop.wire import Connection, ask, parse
from tests.live import ORIGIN, Answer, Live, Workshop, basic, make_csr, new_key

VECTORS = Path(cryptography_vectors.__file__).parent / "x509"
EST = "/.well-known/est"
ENROLL = f"{EST}/simpleenroll"
BIDI = "\u202e"
HOSTILE_CLIENTS = 20
MOST_SECONDS = 30
"""Invariant I8: nothing takes longer, however slow the machine that runs the tests."""


def _harmless(answer: bytes) -> None:
    """Nothing of how we are made may stand in an answer."""
    for mark in (
        b"Traceback",
        b'File "',
        b".py",
        b"site-packages",
        b"sqlalchemy",
        b"hazmat",
    ):
        assert mark not in answer, answer


def _post(live: Live, body: bytes, handover: Handover, **headers: str) -> Answer:
    sent = {"Content-Type": "application/pkcs10", "Authorization": basic(handover)}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    answer = live.request("POST", ENROLL, body=body, headers=sent)
    _harmless(answer.body)
    return answer


def _refused(live: Live, body: bytes, handover: Handover) -> int:
    """Send a CSR that must be refused in one printable sentence and spend nothing."""
    answer = _post(live, body, handover)
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    sentence, reference, end = answer.body.decode().split("\n")
    assert sentence.isprintable(), sentence
    assert reference.startswith("Reference: ")
    assert end == ""
    assert live.core.invitations.get(handover.invitation.number).units_used == 0
    return answer.status


def _issued(live: Live) -> int:
    """Return how many certificates and requests for one the instance holds."""
    return live.core.store.read(
        lambda tx: sum(
            int(tx.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
            for table in (certificates, enrollments)
        )
    )


# -- CSRs -----------------------------------------------------------------------------------------


def _corpus() -> Iterator[tuple[str, bytes]]:
    """Every request of pyca's vectors in each spelling, and its odd certificates as they are."""
    for path in sorted(
        path for folder in ("requests", "custom") for path in VECTORS.glob(f"{folder}/*")
    ):
        if not path.is_file():
            continue
        octets = path.read_bytes()
        name = str(path.relative_to(VECTORS))
        yield name, octets
        if path.parent.name == "requests":
            yield f"{name}, base64", base64.encodebytes(octets)
            if armour := re.search(rb"-----BEGIN [^\n]+\n(.+?)-----END ", octets, re.DOTALL):
                yield f"{name}, without armour", armour[1]
                yield f"{name}, DER", base64.b64decode(armour[1])


@pytest.mark.row("EST-060", "EST-079", "EST-080", "EST-097", "INC-9", "INC-23", "INC-36")
def test_no_file_of_the_corpus_is_issued_or_breaks_anything(live: Live) -> None:
    handover = live.invite("device")
    statuses: dict[str, int] = {}
    for name, octets in _corpus():
        if len(octets) <= live.settings.limits.body_bytes:
            statuses[name] = _refused(live, octets, handover)
    requests = {name for name in statuses if name.startswith("requests/")}
    assert len(requests) > 60
    assert {name: status for name, status in statuses.items() if status not in {400, 403}} == {}
    # Well-formed ones are read and fail only for the names they ask for, or for their keys.
    assert 403 in {statuses[name] for name in requests}
    assert live.enroll(handover).certificate.subject.rfc4514_string() == "CN=printer-17"


def _named(subject: str = "", *names: x509.GeneralName) -> bytes:
    return base64.b64encode(make_csr(new_key(), subject=subject, names=names))


def _critical_unknown() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    signed = builder.add_extension(unknown, critical=True).sign(new_key(), hashes.SHA256())
    return base64.b64encode(signed.public_bytes(Encoding.DER))


@pytest.mark.parametrize(
    "body",
    [
        _named("printer-17\0.example.org"),
        _named("printer-17\r\nSet-Cookie: a=b"),
        _named("printer-17\n"),
        _named(f"printer-17{BIDI}"),
        _named("printer-17\x1b[2J"),
        _named("printer-17\u2028"),
        _named("printer-17\u200b"),
        _named("", x509.DNSName("a.example\0.example.org")),
        _named("", x509.DNSName("a.example\r\nX: y")),
        _named("", x509.DNSName("")),
        _named("", x509.DNSName("a" * 300)),
        # Newer Pythons refuse to make it.
        _named("", x509.RFC822Name._init_without_validation("a@example.org\r\nBcc: b@example.org")),
        _named("", x509.UniformResourceIdentifier("http://example.org/\0")),
        _named("", x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")),
        _named(
            "",
            x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, BIDI)])),
        ),
        _named("", *(x509.DNSName(f"h{number}") for number in range(1000))),
        _named("x" * 64, *(x509.DNSName(f"h{number}.example.org") for number in range(101))),
    ],
)
@pytest.mark.row("EST-092", "INC-36", "A-9", "A-22", "A-23")
def test_hostile_names_are_refused_without_an_echo_that_bites(shared: Live, body: bytes) -> None:
    assert _refused(shared, body, shared.invite("device")) in {400, 403}


@pytest.mark.row("EST-084", "INC-9", "A-9")
def test_ten_thousand_names_are_too_large_to_be_read(live: Live) -> None:
    handover = live.invite("device")
    names = (x509.DNSName(f"h{number}.example.org") for number in range(10_000))
    answer = _post(live, _named("", *names), handover)
    assert answer.status == 413
    assert live.core.invitations.get(handover.invitation.number).units_used == 0
    live.enroll(handover)


@pytest.mark.row("EST-091", "INC-37")
def test_an_unknown_critical_extension_is_dropped_and_never_certified(live: Live) -> None:
    answer = _post(live, _critical_unknown(), live.invite("device"))
    assert answer.status == 200
    oids = {extension.oid.dotted_string for extension in answer.certificates()[0].extensions}
    assert "1.2.3.4" not in oids


# -- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json", 415),
        ("application/pkcs7-mime; smime-type=CMC-request", 415),
        ("text/plain", 415),
        ("application/pkcs10x", 415),
        ("application/pkcs10, text/plain", 415),
        ("*/*", 415),
        (";", 200),
        ("APPLICATION/PKCS10", 200),
        ('application/pkcs10; x="', 200),
    ],
)
@pytest.mark.row("EST-072", "EST-073", "INC-8")
def test_content_type(shared: Live, content_type: str, status: int) -> None:
    handover = shared.invite("device")
    assert _post(shared, _named(), handover, Content_Type=content_type).status == status
    assert shared.core.invitations.get(handover.invitation.number).units_used == (status == 200)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"])
@pytest.mark.row("EST-085", "INC-22")
def test_a_compressed_body_is_never_unpacked(shared: Live, encoding: str) -> None:
    handover = shared.invite("device")
    bomb = gzip.compress(gzip.compress(bytes(10_000_000)))
    for body in (gzip.compress(_named()), bomb):
        answer = _post(shared, body, handover, Content_Encoding=encoding)
        assert answer.status == 415
        assert b"Content-Encoding" in answer.body
    assert shared.core.invitations.get(handover.invitation.number).units_used == 0


@pytest.fixture
def process(template: Path, tmp_path: Path) -> Iterator[Process]:
    server = Process(Workshop(template).make(tmp_path / "instance", start=False))
    server.start()
    yield server
    server.stop()


@pytest.mark.row("EST-084", "INC-9", "INC-22")
def test_oversized_bodies_are_413_at_once_and_fill_no_memory(process: Process) -> None:
    live = process.live
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n"
    megabyte = b"100000\r\n" + b"A" * (1 << 20) + b"\r\n"
    warm = ask(live, f"GET {EST}/cacerts HTTP/1.0\r\n\r\n".encode())
    assert warm.status == 200
    before = process.resident_bytes
    for _ in range(3):
        with Connection(live, live.tls()) as connection:
            connection.send(f"{head}Content-Length: 10000000000\r\n\r\n".encode())
            # Not one octet of the body was sent.
            assert parse(connection.read_to_end()).status == 413
        with Connection(live, live.tls()) as connection:
            connection.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            with suppress(OSError):
                for _ in range(40):
                    connection.send(megabyte)
    assert process.resident_bytes - before < 40 << 20
    assert ask(live, f"GET {EST}/cacerts HTTP/1.0\r\n\r\n".encode()).status == 200


# -- slowness -------------------------------------------------------------------------------------


def _drip(connection: socket.socket, octets: bytes) -> float:
    """Send an octet every tenth of a second until the other side hangs up; return how long."""
    started = time.monotonic()
    with suppress(OSError):
        for octet in octets:
            connection.send(bytes([octet]))
            readable, _, _ = select.select([connection], [], [], 0.1)
            if readable and not connection.recv(65536):
                break
        else:
            pytest.fail("the server listened to the end")
    return time.monotonic() - started


@pytest.mark.row("EST-015", "I8")
def test_slow_clients_are_cut_off_and_the_others_are_served_meanwhile(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("[limits]\nheader_seconds = 1\nrequest_seconds = 2\n")
    head = f"POST {ENROLL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n"
    with ExitStack() as stack:

        def connect() -> socket.socket:
            address = ("127.0.0.1", live.port("devices"))
            return stack.enter_context(socket.create_connection(address, 30))

        def secure() -> ssl.SSLSocket:
            wrapped = live.tls().wrap_socket(connect(), server_hostname="localhost")
            return stack.enter_context(wrapped)

        stalled = [connect() for _ in range(HOSTILE_CLIENTS)]
        for number in range(HOSTILE_CLIENTS):
            # The beginning of a ClientHello, and nothing more.
            half = connect()
            half.send(b"\x16\x03\x01\x02\x00\x01"[: number % 6 + 1])
            stalled.append(half)
        silent = [secure() for _ in range(HOSTILE_CLIENTS)]
        bodies = [secure() for _ in range(HOSTILE_CLIENTS)]
        for body in bodies:
            body.send(f"{head}\r\nMII".encode())
        # All of them hold on while somebody else enrolls.
        live.enroll(live.invite("device"))
        assert _drip(secure(), head.encode() + b"X: " + b"A" * 600) < MOST_SECONDS
        slow_body = secure()
        slow_body.send(f"{head}\r\n".encode())
        assert _drip(slow_body, b"A" * 600) < MOST_SECONDS
        for connection in (*stalled, *silent):
            connection.settimeout(MOST_SECONDS)
            with suppress(OSError):
                assert connection.recv(1) == b""
        for body in bodies:
            answer = b""
            while b"\n\r\n" not in answer or not answer.endswith(b"\n"):
                answer += body.recv(65536)
            assert b" 400 " in answer.splitlines()[0]
            assert b"did not arrive" in answer
    live.enroll(live.invite("device"))


# -- nobody in particular -------------------------------------------------------------------------

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "FOO")
OPERATIONS = (
    "cacerts",
    "csrattrs",
    "simpleenroll",
    "simplereenroll",
    "serverkeygen",
    "fullcmc",
    "SIMPLEENROLL",
    "simpleenroll/",
    "simpleenroll%00",
    "simple%65nroll",
    "../simpleenroll",
    "_tls/simpleenroll",
    "device//simpleenroll",
    "device%2Fsimpleenroll",
    "usimpleenroll",
)
CONTENT_TYPES = (
    None,
    "application/pkcs10",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=b",
    "application/pkcs7-mime; smime-type=CMC-request",
)
PAGES = (
    ("web", "/e/AAAAAAAAAAAAAAAAAAAAAA"),
    ("web", "/e/AAAAAAAAAAAAAAAAAAAAAA/issue"),
    ("web", "/e/AAAAAAAAAAAAAAAAAAAAAA/certificate.p7c"),
    ("web", "/.well-known/est/simpleenroll"),
    ("devices", "/renew"),
    ("devices", "/renew/issue"),
    ("devices", "/renew/certificate.p7c"),
    ("devices", "/officer/"),
    ("devices", "/api/v1/invitations"),
    ("devices", "/acme/new-order"),
)
PKCS7_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")


def _everything() -> Iterator[tuple[str, str]]:
    for label, operation in itertools.product(("", "device/"), OPERATIONS):
        yield "devices", f"{EST}/{label}{operation}"
    yield from PAGES


def _signed_data(answer: bytes) -> bool:
    """Tell whether an answer holds a PKCS#7, plain or in base64."""
    with suppress(ValueError):
        if PKCS7_SIGNED_DATA in base64.b64decode(answer):
            return True
    return PKCS7_SIGNED_DATA in answer or b"BEGIN CERTIFICATE" in answer or b"BEGIN PKCS7" in answer


@pytest.mark.timeout(240)
@pytest.mark.row("INC-8", "INC-14", "EST-006", "EST-086")
def test_no_method_at_no_path_with_no_content_type_issues_to_a_stranger(live: Live) -> None:
    before = _issued(live)
    csr = base64.b64encode(make_csr(new_key()))
    connections = {
        name: HTTPSConnection("localhost", live.port(name), timeout=30, context=live.tls())
        for name in ("web", "devices")
    }
    seen = set()
    for (listener, path), method, kind in itertools.product(_everything(), METHODS, CONTENT_TYPES):
        connection = connections[listener]
        headers = {"Sec-Fetch-Site": "same-origin", "Origin": live.url(listener)}
        headers |= {} if kind is None else {"Content-Type": kind}
        connection.request(method, path, body=csr, headers=headers)
        with connection.getresponse() as response:
            answer = response.read()
        _harmless(answer)
        assert response.status < 500, (method, path, kind)
        if _signed_data(answer):
            seen.add((method, path.rsplit("/", 1)[1]))
    for connection in connections.values():
        connection.close()
    # What everybody may have: the chain.
    assert seen == {("GET", "cacerts")}
    assert _issued(live) == before


# -- PINs that are no good ------------------------------------------------------------------------


@pytest.mark.row("EST-058", "EST-117")
@pytest.mark.parametrize("fault", ["wrong", "unknown", "expired", "used", "cancelled", "replaced"])
def test_a_pin_that_is_no_good_issues_nothing(live: Live, fault: str) -> None:
    handover = live.invite("device")
    number = handover.invitation.number
    shown = handover
    match fault:
        case "wrong":
            shown = replace(handover, pin=live.invite("device").pin)
        case "unknown":
            shown = replace(handover, invitation=replace(handover.invitation, number="1000000000"))
        case "expired":
            live.clock.advance(handover.invitation.expires_at - live.clock.now())
        case "used":
            live.enroll(handover)
        case "cancelled":
            live.core.invitations.cancel(number, by="test", origin=ORIGIN)
        case "replaced":
            live.core.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN)
    before = _issued(live)
    answer = _post(live, _named(), shown)
    # A cancelled registration says so to whoever has its PIN; all others look alike.
    assert answer.status == (403 if fault == "cancelled" else 401)
    assert _issued(live) == before
