"""EST over HTTP: paths, methods, labels, kept connections, clients in the field."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from estserver import config
from estserver.errors import ConfigurationError
from tests.live import Holder, Live, basic, new_key
from tests.protocols.est_wire import (
    CERTS_ONLY,
    EST,
    PKCS10,
    Wire,
    csr,
    get,
    issued,
    post,
    profile,
    renewed,
)

OPERATIONS = ("cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs")


# -- A: paths and methods ------------------------------------------------------------------------


@pytest.mark.row("EST-001", "EST-002")
def test_every_operation_is_served_with_and_without_a_label(live: Live) -> None:
    for prefix in ("", "device/"):
        assert get(live, f"{prefix}cacerts").status == 200
        assert get(live, f"{prefix}csrattrs").status == 200
        handover = live.invite("device")
        answer = post(live, csr(), path=f"{prefix}simpleenroll", by=handover)
        assert answer.status == 200
        key = new_key()
        holder = Holder(key, live.enroll(live.invite("device"), key).certificate)
        assert renewed(live, holder, path=f"{prefix}simplereenroll").status == 200


@pytest.mark.row("EST-003", "EST-191")
@pytest.mark.parametrize("name", [*OPERATIONS, "renewal-info", "pal", "ucacerts", "usimpleenroll"])
def test_a_label_called_like_an_operation_is_a_configuration_error(
    template: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(template / "estserver.toml", tmp_path)
    path = tmp_path / "estserver.toml"
    path.write_text(path.read_text(encoding="utf-8") + profile(name), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=f"profiles.{name}"):
        config.load(path)


@pytest.mark.row("EST-004", "EST-010", "EST-190", "EST-191")
@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//cacerts",
        "/cacerts/",
        "/simpleenroll/",
        "/device/simpleenroll/",
        "/unknown/cacerts",
        "/unknown/simpleenroll",
        "/_tls/cacerts",
        "/device",
        "/device/",
        "/device//cacerts",
        "/device/unknown",
        "/device/more/cacerts",
        "/unknown",
        "/%2e%2e/cacerts",
        "/device%2Fcacerts",
        "/device%2fcacerts",
        "%2Fcacerts",
        "/cacerts%00",
        "/cacerts%0A",
        "/%ff/cacerts",
        "ablishment/cacerts",
        "/pal",
        "/eecerts",
        "/crls",
        "/symmetrickeys",
        "/firmware",
        "/tamp",
        "/serverkeygen/return",
        "/renewal-info",
        "/device/renewal-info",
        "/nolabel/renewal-info/AAAA.AAAA",
        "/ucacerts",
        "/usimpleenroll",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_not_there_is_the_same_404_and_never_a_redirect(
    shared: Live, method: str, path: str
) -> None:
    answer = shared.request(method, EST + path, body=b"" if method == "POST" else None)
    assert answer.status == 404
    assert answer.body == b"There is no such EST operation here.\n"
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.row("EST-005")
def test_a_label_may_use_every_allowed_character_plain_or_percent_encoded(
    make_live: Callable[[str], Live],
) -> None:
    label = "AZaz09-._~x"
    live = make_live(profile(label))
    encoded = "".join(f"%{ord(character):02x}" for character in label)
    plain = get(live, f"{label}/cacerts")
    assert plain.status == 200
    assert get(live, f"{encoded}/%63acerts").body == plain.body


@pytest.mark.row("EST-005")
@pytest.mark.parametrize("character", [*"!$&'()*+,;:=/ %é", ".", "-"])
def test_other_characters_in_a_label_are_refused_by_the_configuration(
    template: Path, tmp_path: Path, character: str
) -> None:
    shutil.copy(template / "estserver.toml", tmp_path)
    path = tmp_path / "estserver.toml"
    name = character if character in ".-" else f"a{character}b"
    path.write_text(path.read_text(encoding="utf-8") + profile(name), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="label"):
        config.load(path)


@pytest.mark.row("EST-006")
@pytest.mark.parametrize(
    ("method", "operation", "allowed"),
    [
        ("POST", "cacerts", "GET, HEAD"),
        ("POST", "csrattrs", "GET, HEAD"),
        ("GET", "simpleenroll", "POST"),
        ("HEAD", "simpleenroll", "POST"),
        ("PUT", "simpleenroll", "POST"),
        ("GET", "device/simplereenroll", "POST"),
        ("DELETE", "simplereenroll", "POST"),
        ("OPTIONS", "cacerts", "GET, HEAD"),
        ("PATCH", "device/cacerts", "GET, HEAD"),
    ],
)
def test_the_wrong_method_is_405_with_allow(
    shared: Live, method: str, operation: str, allowed: str
) -> None:
    answer = shared.request(method, f"{EST}/{operation}")
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)


@pytest.mark.row("EST-007")
@pytest.mark.parametrize("operation", ["cacerts", "device/csrattrs"])
def test_head_has_the_headers_of_get_and_no_body(shared: Live, operation: str) -> None:
    whole = shared.request("GET", f"{EST}/{operation}")
    head = shared.request("HEAD", f"{EST}/{operation}")
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Type", "Content-Length", "Content-Transfer-Encoding"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.row("EST-008", "EST-163", "EST-175")
@pytest.mark.parametrize("operation", ["fullcmc", "serverkeygen", "device/fullcmc"])
def test_operations_that_are_off_are_404_whatever_is_sent(shared: Live, operation: str) -> None:
    kinds = (PKCS10, "application/pkcs7-mime; smime-type=CMC-request", "text/plain")
    for kind in kinds:
        assert post(shared, csr(), path=operation, headers={"Content-Type": kind}).status == 404


@pytest.mark.row("EST-009", "EST-070")
def test_plain_http_gets_no_est_answer(shared: Live) -> None:
    for listener in ("status", "management"):
        assert shared.request("GET", f"{EST}/cacerts", listener=listener).status == 404
    with socket.create_connection(("127.0.0.1", shared.port("devices")), timeout=10) as plain:
        plain.sendall(f"GET {EST}/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        try:
            received = plain.recv(4096)
        except ConnectionResetError:
            received = b""
    assert b"HTTP/" not in received


@pytest.mark.row("EST-010")
def test_an_enrollment_is_never_redirected(shared: Live) -> None:
    for path in ("simpleenroll/", "device/simpleenroll/", "/simpleenroll", "SimpleEnroll"):
        assert post(shared, csr(), path=path).status == 404


@pytest.mark.row("EST-011")
@pytest.mark.parametrize(
    "lines",
    [
        (f"GET {EST}/cacerts HTTP/1.0",),
        (f"GET {EST}/cacerts HTTP/1.1", "Host: localhost", "Connection: close"),
    ],
)
def test_a_client_that_reads_to_the_end_gets_length_body_and_close_notify(
    shared: Live, lines: tuple[str, ...]
) -> None:
    with Wire(shared) as wire:
        wire.send(*lines)
        # recv returns nothing only after a close_notify; a bare end of file would raise.
        head, _, body = wire.rest().partition(b"\r\n\r\n")
    assert b" 200 OK" in head.splitlines()[0]
    assert b"Content-Length: %d" % len(body) in head.splitlines()


@pytest.mark.row("EST-012")
def test_a_kept_connection_carries_nothing_from_one_request_to_the_next(live: Live) -> None:
    first, second = live.invite("device"), live.invite("device", device_id="printer-18")
    with Wire(live) as wire:
        assert wire.ask("GET", "cacerts").status == 200
        assert wire.ask("POST", "simpleenroll", body=csr()).status == 401
        answer = wire.enroll(first, csr())
        assert [name.value for name in answer.certificates()[0].subject] == ["printer-17"]
        assert wire.ask("POST", "simpleenroll", body=csr()).status == 401
        answer = wire.enroll(second, csr())
        assert [name.value for name in answer.certificates()[0].subject] == ["printer-18"]


@pytest.mark.row("EST-013")
def test_expect_100_continue_is_answered(live: Live) -> None:
    handover, body = live.invite("device"), csr()
    with Wire(live) as wire:
        wire.send(
            f"POST {EST}/simpleenroll HTTP/1.1",
            "Host: localhost",
            "Expect: 100-continue",
            f"Content-Length: {len(body)}",
            f"Authorization: {basic(handover)}",
            f"Content-Type: {PKCS10}",
        )
        assert wire.sock.recv(4096).startswith(b"HTTP/1.1 100 Continue\r\n")
        wire.sock.sendall(body)
        assert wire.answer().status == 200


@pytest.mark.row("EST-014", "EST-193", "EST-194", "EST-200", "EST-201")
def test_answers_have_few_headers_spelt_for_narrow_clients(live: Live) -> None:
    handover = live.invite("device")
    answers = {
        "cacerts": get(live, "cacerts"),
        "csrattrs": get(live, "csrattrs"),
        "challenge": post(live, csr()),
        "wrong": post(live, csr(), headers={"Authorization": "Basic eDp5"}),
        "enroll": post(live, csr(), by=handover),
        "missing": get(live, "nothing"),
        "method": get(live, "simpleenroll"),
    }
    allowed = {
        "Content-Type",
        "Content-Length",
        "Content-Transfer-Encoding",
        "Cache-Control",
        "Date",
        "WWW-Authenticate",
        "Allow",
        "Connection",
    }
    for name, answer in answers.items():
        headers = answer.headers.items()
        assert {key for key, _ in headers} <= allowed, name
        assert len(headers) <= 16
        assert sum(len(key) + len(value) + 4 for key, value in headers) < 600
        assert answer.headers["Content-Length"] == str(len(answer.body))
        assert answer.headers["Cache-Control"] == "no-store"
    assert answers["enroll"].headers["Content-Type"] == CERTS_ONLY


@pytest.mark.row("EST-014")
def test_cookies_and_origins_mean_nothing_here(live: Live) -> None:
    headers = {"Cookie": "session=x", "Origin": "https://elsewhere.example"}
    answer = post(live, csr(), by=live.invite("device"), headers=headers)
    assert answer.status == 200
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.row("EST-015", "I8")
def test_a_body_that_does_not_arrive_is_refused_in_time_and_holds_nobody_up(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("\n[limits]\nrequest_seconds = 1\n")
    with Wire(live) as wire:
        wire.send(
            f"POST {EST}/simpleenroll HTTP/1.1", "Host: localhost", "Content-Length: 900", body=b"M"
        )
        assert get(live, "cacerts").status == 200
        answer = wire.answer()
        assert (answer.status, answer.headers["Connection"]) == (400, "close")
        assert b"did not arrive" in answer.body


@pytest.mark.row("EST-015")
def test_a_silent_client_is_cut_off(make_live: Callable[[str], Live]) -> None:
    live = make_live("\n[limits]\nheader_seconds = 1\n")
    with Wire(live) as wire:
        wire.sock.sendall(b"GET ")
        assert get(live, "cacerts").status == 200
        # Whether the TLS session is ended in order or not says nothing about the server.
        with suppress(ssl.SSLError, ConnectionResetError):
            assert wire.rest() == b""


@pytest.mark.row("EST-012", "EST-015")
def test_a_connection_that_has_spoken_is_kept(make_live: Callable[[str], Live]) -> None:
    live = make_live("\n[limits]\nheader_seconds = 1\n")
    with Wire(live) as wire:
        assert wire.ask("GET", "cacerts").status == 200
        wire.sock.settimeout(1.5)
        with pytest.raises(TimeoutError):
            wire.sock.recv(1)
        wire.sock.settimeout(30)
        assert wire.ask("GET", "cacerts").status == 200


@pytest.mark.row("EST-200")
@pytest.mark.parametrize(
    "lines",
    [
        ("CANARY",),
        (f"GET {EST}/cacerts HTTP/1.1", "Host: localhost", "X-CANARY: " + "a" * 20000),
        (f"GET {EST}/cacerts HTTP/1.1", "Host: localhost", "CANARY\x00: a"),
        (
            f"POST {EST}/simpleenroll HTTP/1.1",
            "Host: localhost",
            "Content-Length: 5",
            "Transfer-Encoding: chunked",
        ),
    ],
)
def test_what_is_not_http_is_refused_without_version_or_echo(
    shared: Live, lines: tuple[str, ...]
) -> None:
    with Wire(shared) as wire:
        wire.send(*lines)
        answer = wire.rest()
    assert b" 400 Bad Request\r\n" in answer
    for word in (b"aiohttp", b"Python", b"CANARY", b"aaaa", b"Transfer-Encoding"):
        assert word not in answer


# -- N: clients ----------------------------------------------------------------------------------


@pytest.mark.row("EST-197", "EST-198")
def test_the_documented_curl_and_openssl_lines_work(live: Live, tmp_path: Path) -> None:
    handover = live.invite("device")
    assert handover.pin is not None
    pin = f"{handover.invitation.number}:{handover.pin.reveal()}"
    url = f"https://localhost:{live.port('devices')}{EST}"
    script = f"""
set -eu
cd {tmp_path}
curl -sS --fail --cacert {live.root} {url}/cacerts | openssl base64 -d -A \
    | openssl pkcs7 -inform DER -print_certs -out ca.pem
openssl ecparam -name prime256v1 -genkey -noout -out key.pem
openssl req -new -key key.pem -subj /CN=printer-17 -outform DER | openssl base64 -A > csr.b64
curl -sS --fail --cacert {live.root} -u "$PIN" -H "Content-Type: application/pkcs10" \
    --data-binary @csr.b64 {url}/simpleenroll | tee answer.b64 | openssl base64 -d -A \
    | openssl pkcs7 -inform DER -print_certs -out cert.pem
openssl verify -CAfile {live.root} -untrusted ca.pem cert.pem
"""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        capture_output=True,
        env={"PIN": pin, "PATH": "/usr/bin:/bin"},
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert b"cert.pem: OK" in done.stdout
    assert (tmp_path / "answer.b64").read_bytes().endswith(b"\n")
    stored = issued(live, handover)
    pem = x509.load_pem_x509_certificate((tmp_path / "cert.pem").read_bytes())
    assert stored[0].serial_hex == f"{pem.serial_number:x}"
    assert isinstance(pem.public_key(), ec.EllipticCurvePublicKey)


@pytest.mark.row("EST-202")
def test_metrics_count_by_operation_label_and_outcome_without_identities(live: Live) -> None:
    handover = live.invite("device")
    assert post(live, csr(), path="device/simpleenroll", by=handover).status == 200
    assert post(live, csr(), path="device/simpleenroll", by=handover).status == 401
    assert get(live, "made-up-label/cacerts").status == 404
    metrics = live.request("GET", "/metrics", listener="management").body.decode()
    for outcome in ("ok", "already-issued"):
        wanted = (
            'estserver_requests_total{label="device",operation="simpleenroll",'
            f'outcome="{outcome}",via="est"}}'
        )
        assert wanted in metrics
    assert handover.invitation.number not in metrics
    assert "made-up-label" not in metrics
