"""What is believed at the Unix socket of a listener behind a proxy, and whom."""

import asyncio
import base64
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID

from estserver import config
from estserver.errors import ConfigurationError
from estserver.front import Front, user_ids
from estserver.listeners import bind, close
from estserver.store.tables import audit_events
from tests.live import Holder, Live, Workshop, basic, make_csr, new_key

FORMS = ("rfc9440", "haproxy", "nginx")


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket, as the proxy speaks it."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@pytest.fixture(scope="module", params=FORMS)
def live(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """An instance whose devices listener is a socket; the test is the proxy."""
    workshop = Workshop(template)
    directory = tmp_path_factory.mktemp("front") / "instance"
    made = workshop.make(directory, start=False)
    path = directory / "estserver.toml"
    text = path.read_text(encoding="utf-8").replace(
        "[listeners.devices]\n",
        f'[listeners.devices]\nsocket = "devices.sock"\nfront = "{request.param}"\n',
    )
    path.write_text(text, encoding="utf-8")
    made.settings = config.load(path)
    made.start()
    yield made
    made.stop()


def ask(
    live: Live, headers: list[tuple[str, str]], body: bytes, operation: str = "simplereenroll"
) -> tuple[int, bytes]:
    connection = _UnixConnection(live.directory / "devices.sock")
    try:
        connection.putrequest("POST", f"/.well-known/est/{operation}")
        encoded = base64.b64encode(body)
        for name, value in [
            ("Content-Type", "application/pkcs10"),
            ("Content-Length", str(len(encoded))),
            *headers,
        ]:
            connection.putheader(name, value)
        connection.endheaders(encoded)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def header(live: Live) -> str:
    rfc9440 = live.settings.listeners.devices.front == "rfc9440"
    return "Client-Cert" if rfc9440 else "X-SSL-Client-Cert"


def told(live: Live, certificate: x509.Certificate) -> str:
    """The certificate in the form that this instance expects."""
    der = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
    pem = quote(certificate.public_bytes(Encoding.PEM).decode())
    return {"rfc9440": f":{der}:", "haproxy": der, "nginx": pem}[
        live.settings.listeners.devices.front
    ]


def enrolled(live: Live) -> Holder:
    handover = live.invite("device")
    key = new_key()
    status, body = ask(
        live, [("Authorization", basic(handover))], make_csr(key), operation="simpleenroll"
    )
    assert status == 200, body
    return Holder(key, pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))[0])


@pytest.mark.row("EST-032")
def test_the_agreed_form_of_a_certificate_renews(live: Live) -> None:
    holder = enrolled(live)
    csr = make_csr(new_key(), subject=holder.certificate.subject)
    status, body = ask(live, [(header(live), told(live, holder.certificate))], csr)
    assert status == 200, body


@pytest.mark.row("EST-032", "INC-12")
def test_two_headers_are_one_too_many(live: Live) -> None:
    holder = enrolled(live)
    value = told(live, holder.certificate)
    other = header(live).replace("-", "_")
    csr = make_csr(new_key(), subject=holder.certificate.subject)
    for second in (header(live), header(live).lower(), other):
        status, body = ask(live, [(header(live), value), (second, value)], csr)
        assert status == 400
        assert b"ore than one" in body


@pytest.mark.row("EST-032", "INC-12")
@pytest.mark.parametrize(
    "value",
    ["garbage", ":", "::", ":garbage:", "SUCCESS", "MIIB", ":TUlJQg==:", "%2D%2D%2D", "A" * 20000],
    ids=lambda value: value[:12],
)
def test_what_is_no_certificate_is_400_and_says_so(live: Live, value: str) -> None:
    status, body = ask(live, [(header(live), value)], make_csr(new_key()))
    assert status == 400
    assert header(live).encode() in body


@pytest.mark.row("EST-032", "INC-12")
def test_two_certificates_in_one_header_are_400(live: Live) -> None:
    certificate = enrolled(live).certificate
    pem = quote(certificate.public_bytes(Encoding.PEM).decode())
    der = certificate.public_bytes(Encoding.DER)
    twice = {
        "rfc9440": f":{base64.b64encode(der + der).decode()}:",
        "haproxy": base64.b64encode(der + der).decode(),
        "nginx": pem + pem,
    }[live.settings.listeners.devices.front]
    assert ask(live, [(header(live), twice)], make_csr(new_key()))[0] == 400


@pytest.mark.row("EST-032")
def test_an_empty_header_is_no_certificate(live: Live) -> None:
    status, _body = ask(live, [(header(live), "")], make_csr(new_key()), "simpleenroll")
    assert status == 401


@pytest.mark.row("EST-032", "INC-12")
def test_a_certificate_for_servers_alone_is_refused(live: Live) -> None:
    key = new_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "www")])
    now = live.clock.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    status, body = ask(live, [(header(live), told(live, certificate))], make_csr(key))
    assert status == 403
    assert b"not meant for clients" in body


@pytest.mark.row("INC-12")
@pytest.mark.parametrize(
    ("said", "source"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("203.0.113.9, nonsense", "front"),
        (None, "front"),
    ],
)
def test_the_source_is_the_last_address_the_proxy_added(
    live: Live, said: str | None, source: str
) -> None:
    handover = live.invite("device")
    headers = [("Authorization", basic(handover))]
    if said is not None:
        headers.append(("X-Forwarded-For", said))
    assert ask(live, headers, make_csr(new_key()), "simpleenroll")[0] == 200
    events = sa.select(audit_events.c.source).where(
        audit_events.c.event == "certificate.intended",
        audit_events.c.actor.contains(handover.invitation.number),
    )
    found = set(live.core.store.read(lambda tx: tx.connection.scalars(events).all()))
    assert found == {source}


def test_the_socket_is_its_owners_alone(live: Live) -> None:
    assert stat.S_IMODE((live.directory / "devices.sock").stat().st_mode) == 0o600


async def test_a_process_of_another_user_is_not_believed(tmp_path: Path) -> None:
    mine = Front("web", "rfc9440", user_ids(()))
    strange = Front("web", "rfc9440", frozenset({os.getuid() + 1}))
    verdicts: asyncio.Queue[tuple[bool, bool]] = asyncio.Queue()

    async def judge(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verdicts.put_nowait((mine.trusts(writer.transport), strange.trusts(writer.transport)))
        writer.close()
        await writer.wait_closed()

    path = tmp_path / "judge.sock"
    async with await asyncio.start_unix_server(judge, path):
        _reader, writer = await asyncio.open_unix_connection(path)
        assert await verdicts.get() == (True, False)
        writer.close()
        await writer.wait_closed()


def test_a_connection_of_another_user_is_closed_unheard(template: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    workshop = Workshop(template)
    made = workshop.make(tmp_path / "instance", start=False)
    folder = Path(tempfile.mkdtemp(prefix="estserver-front-"))
    folder.chmod(0o755)
    path = made.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8").replace(
        "[listeners.devices]\n",
        f'[listeners.devices]\nsocket = "{folder}/devices.sock"\nsocket_group = "nogroup"\n',
    )
    path.write_text(text, encoding="utf-8")
    made.settings = config.load(path)
    with structlog.testing.capture_logs() as started:
        made.start()
    try:
        script = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
            "s.sendall(b'GET /.well-known/est/cacerts HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); "
            "print(len(s.recv(100)))"
        )
        command = ["/usr/bin/python3", "-c", script, str(folder / "devices.sock")]
        with structlog.testing.capture_logs() as lines:
            own = subprocess.run(command, capture_output=True, text=True, check=False)
            other = subprocess.run(
                command, capture_output=True, text=True, check=False, user="nobody", group="nogroup"
            )
    finally:
        made.stop()
        shutil.rmtree(folder)
    assert own.stdout.strip() == "100", own.stderr
    # Closed before it could say anything, or before it heard anything.
    assert other.stdout.strip() in {"", "0"}, other
    (refused,) = (line for line in lines if line["event"] == "front.refused")
    assert refused["error"].startswith("nobody is not in listeners.devices.front_users: add ")
    (told,) = (line for line in started if line["event"] == "server.started")
    assert told["sockets"] == {"devices": f"{folder}/devices.sock"}


def test_a_worker_that_starts_does_not_let_the_others_wait_in_accept(
    template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    path = live.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("[listeners.web]\n", '[listeners.web]\nsocket = "web.sock"\n'))
    listeners = config.load(path).listeners
    held = bind(listeners, live.directory)
    shared = {"web": held.pop("web")}
    close(held)
    close(bind(listeners, live.directory, beside=shared))
    # A flag of the open socket, which all of them share.
    waits = os.get_blocking(shared["web"][0].fileno())
    close(shared)
    assert not waits


def test_users_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"front_users.*no-such-user"):
        user_ids(("no-such-user",))
