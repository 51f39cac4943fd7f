"""Behind Debian's HAProxy and nginx, set up by the examples in conf/."""

import base64
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from estserver.model import RevocationReason
from estserver.store.tables import audit_events
from tests.interop.fronts import PATIENCE_SECONDS, Front, make_fronted
from tests.live import ORIGIN, Answer, Holder, Live, Workshop, basic, make_csr, new_key

EST = "/.well-known/est"


@pytest.fixture(scope="module", params=["haproxy", "nginx"])
def fronted(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Live, Front]]:
    workshop = Workshop(template)
    live, front = make_fronted(
        workshop, tmp_path_factory.mktemp("fronted") / "instance", request.param
    )
    yield live, front
    front.stop()
    live.stop()
    shutil.rmtree(front.folder)


@pytest.fixture
def live(fronted: tuple[Live, Front]) -> Live:
    return fronted[0]


def post(
    live: Live,
    body: bytes,
    operation: str = "simpleenroll",
    *,
    holder: Holder | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    return live.request(
        "POST",
        f"{EST}/{operation}",
        body=base64.b64encode(body),
        headers={"Content-Type": "application/pkcs10", **(headers or {})},
        holder=holder,
    )


def foreign(*, expired: bool = False, issuer: Live | None = None) -> Holder:
    """Return a key with a certificate that nobody here signed, whatever issuer it claims."""
    key = new_key()
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stranger")])
    above = name if issuer is None else issuer.core.chains["issuing"][0].subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + timedelta(days=-1 if expired else 9))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    return Holder(key, builder.sign(key, hashes.SHA256()))


@pytest.mark.row("EST-199")
def test_an_enrollment_passes_with_length_and_header_names_intact(live: Live) -> None:
    handover = live.invite("device")
    key = new_key()
    answer = post(live, make_csr(key), headers={"Authorization": basic(handover)})
    assert answer.status == 200, answer.body
    assert answer.certificates()[0].public_key() == key.public_key()
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert "Content-Encoding" not in answer.headers
    assert {"Content-Type", "Content-Length", "Content-Transfer-Encoding"} <= set(
        answer.headers.keys()
    )


@pytest.mark.row("EST-199")
def test_a_refusal_passes_with_its_challenge_and_sentence(live: Live) -> None:
    answer = post(live, make_csr(new_key()))
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert "WWW-Authenticate" in answer.headers


@pytest.mark.row("EST-032")
def test_a_certificate_shown_to_the_proxy_renews(live: Live) -> None:
    holder = live.enroll(live.invite("device"))
    key = new_key()
    subject = holder.certificate.subject
    answer = post(live, make_csr(key, subject=subject), "simplereenroll", holder=holder)
    assert answer.status == 200, answer.body
    assert answer.certificates()[0].subject == subject


@pytest.mark.row("EST-032")
@pytest.mark.parametrize(
    "header", ["Client-Cert", "X-SSL-Client-Cert", "X_SSL_Client_Cert", "client_cert"]
)
def test_what_a_client_says_of_itself_does_not_reach_us(live: Live, header: str) -> None:
    holder = live.enroll(live.invite("device"))
    der = base64.b64encode(holder.certificate.public_bytes(Encoding.DER)).decode()
    pem = holder.certificate.public_bytes(Encoding.PEM).decode().replace("\n", "%0A")
    for value in (der, f":{der}:", pem.replace(" ", "%20").replace("+", "%2B")):
        answer = post(
            live,
            make_csr(new_key(), subject=holder.certificate.subject),
            "simplereenroll",
            headers={header: value},
        )
        assert answer.status in (401, 403), answer.body


@pytest.mark.row("EST-032")
@pytest.mark.parametrize("claims", [False, True], ids=["self-signed", "claims our issuer"])
def test_a_foreign_certificate_is_refused_in_words(live: Live, *, claims: bool) -> None:
    holder = foreign(issuer=live if claims else None)
    csr = make_csr(new_key(), subject=holder.certificate.subject)
    try:
        answer = post(live, csr, "simplereenroll", holder=holder)
    except OSError:
        # A signature that is not our issuer's may end in the handshake already.
        assert claims
        return
    assert answer.status in (400, 403)
    assert b"certificate" in answer.body


@pytest.mark.row("EST-032")
def test_an_expired_certificate_is_refused_in_words(live: Live) -> None:
    holder = foreign(expired=True)
    csr = make_csr(new_key(), subject=holder.certificate.subject)
    answer = post(live, csr, "simplereenroll", holder=holder)
    assert answer.status == 403
    assert b"certificate" in answer.body


@pytest.mark.row("EST-032", "EST-063")
def test_a_revoked_certificate_is_refused_in_words(live: Live) -> None:
    holder = live.enroll(live.invite("device"))
    record = live.core.ra.find(holder.certificate.serial_number)
    live.core.ra.revoke(
        record.enrollment,
        reason=RevocationReason.SUPERSEDED,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    csr = make_csr(new_key(), subject=holder.certificate.subject)
    answer = post(live, csr, "simplereenroll", holder=holder)
    assert answer.status == 403
    assert b"is revoked" in answer.body


def test_a_channel_binding_is_refused_because_nobody_here_can_check_it(live: Live) -> None:
    password = x509.ObjectIdentifier("1.2.840.113549.1.9.7")
    csr = make_csr(new_key(), attributes=((password, base64.b64encode(bytes(12))),))
    answer = post(live, csr, headers={"Authorization": basic(live.invite("device"))})
    assert answer.status in (400, 403)
    assert b"cannot be checked behind a proxy" in answer.body


@pytest.mark.row("INC-12")
def test_the_address_in_the_audit_is_the_clients_as_the_proxy_saw_it(live: Live) -> None:
    handover = live.invite("device")
    answer = post(
        live,
        make_csr(new_key()),
        headers={"Authorization": basic(handover), "X-Forwarded-For": "203.0.113.9"},
    )
    assert answer.status == 200
    events = sa.select(audit_events.c.source).where(
        audit_events.c.event == "certificate.intended",
        audit_events.c.actor.contains(handover.invitation.number),
    )
    sources = set(live.core.store.read(lambda tx: tx.connection.scalars(events).all()))
    assert sources == {"127.0.0.1"}


def test_pages_arrive_through_the_proxy(live: Live) -> None:
    handover = live.invite("person")
    url = live.core.retrieval_url(handover.invitation)
    assert url is not None
    path = "/e/" + url.rpartition("/")[2]
    answer = live.request("GET", path, listener="web")
    assert answer.status == 200
    assert "Content-Security-Policy" in answer.headers
    page = live.request("GET", "/renew", headers={"Accept-Language": "en"})
    assert page.status in (200, 403)
    assert b"certificate" in page.body
    # Each visit gets a handshake of its own, in which the browser asks for the certificate again.
    assert page.headers["Connection"] == "close"


def test_only_its_owner_and_its_group_may_open_the_socket(fronted: tuple[Live, Front]) -> None:
    live, front = fronted
    group = live.settings.listeners.devices.socket_group
    mode = stat.S_IMODE((front.folder / "devices.sock").stat().st_mode)
    assert mode == (0o600 if group is None else 0o660)


def test_while_the_server_is_away_clients_hear_when_to_come_again(live: Live) -> None:
    live.stop()
    try:
        for listener in ("devices", "web"):
            answer = live.request("GET", f"{EST}/cacerts", listener=listener)
            assert answer.status == 503
            says_when_to_come_again(answer)
    finally:
        live.start()
    assert live.request("GET", f"{EST}/cacerts").status == 200


def test_clients_of_a_server_that_ends_before_its_answer_hear_the_same(
    fronted: tuple[Live, Front],
) -> None:
    live, front = fronted
    live.stop()
    path = front.folder / "devices.sock"
    path.unlink(missing_ok=True)
    try:
        with socket.socket(socket.AF_UNIX) as dying:
            dying.settimeout(PATIENCE_SECONDS)
            dying.bind(str(path))
            path.chmod(0o666)
            dying.listen()
            ending = threading.Thread(target=end_in_the_middle, args=(dying,))
            ending.start()
            answer = live.request("GET", f"{EST}/cacerts")
            ending.join()
    finally:
        live.start()
    assert answer.status in (502, 503)
    says_when_to_come_again(answer)


def end_in_the_middle(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        assert connection.recv(65536).startswith(b"GET ")


def says_when_to_come_again(answer: Answer) -> None:
    assert answer.headers["Retry-After"] == "10"
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.body == b"the server cannot answer now: try again in 10 seconds\n"
