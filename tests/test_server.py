"""The composition root: what SIGHUP takes, what runs by itself, which files TLS uses."""

import asyncio
import base64
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from estserver import config, server
from estserver.core import open_core
from estserver.duties import NODE, Duties, Duty, node_name
from estserver.errors import ConfigurationError, Fault, Unavailable
from estserver.model import CertificateState, EnrollmentState
from estserver.store import certificates, leases
from estserver.store.tables import audit_events
from tests.live import ORIGIN, Holder, Live, Workshop, basic, make_csr, new_key


def _append(live: Live, toml: str) -> None:
    path = live.directory / "estserver.toml"
    path.write_text(path.read_text(encoding="utf-8") + toml, encoding="utf-8")


def _reload(live: Live) -> None:
    live.call(live.server.reload(lambda: config.load(live.directory / "estserver.toml")))


def _state(live: Live, holder: Holder) -> CertificateState:
    record = live.core.ra.find(holder.certificate.serial_number)
    return record.state


def test_a_reload_takes_new_profiles_without_a_restart(live: Live) -> None:
    before = live.enroll(live.invite("device"))
    _append(live, '\n[profiles.device]\nvalidity = "7d"\n')
    with structlog.testing.capture_logs() as lines:
        _reload(live)
    assert [line["event"] for line in lines] == ["server.reloaded"]
    after = live.enroll(live.invite("device"))
    for holder, days in ((before, 365), (after, 7)):
        leaf = holder.certificate
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        assert life == timedelta(days=days) - timedelta(seconds=1)


def test_a_reload_of_a_broken_file_leaves_the_old_profiles_in_place(live: Live) -> None:
    _append(live, '\n[profiles.device]\nvalidty = "7d"\n')
    with structlog.testing.capture_logs() as lines:
        _reload(live)
    assert [line["event"] for line in lines] == ["profiles.reload-failed", "server.reload-failed"]
    assert lines[-1]["error"] == "the old ones stay: profiles"
    leaf = live.enroll(live.invite("device")).certificate
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert life == timedelta(days=365) - timedelta(seconds=1)


def test_a_reload_names_what_is_new_in_the_file_and_only_a_restart_takes(live: Live) -> None:
    path = live.directory / "estserver.toml"
    port = live.port("status")
    text = path.read_text(encoding="utf-8").replace(f"port = {port}\n", "port = 8081\n")
    path.write_text(f'{text}\n[profiles.device]\nvalidity = "7d"\n\n[acme]\ncaa = true\n')
    with structlog.testing.capture_logs() as lines:
        _reload(live)
    assert [line["event"] for line in lines] == ["restart.needed", "server.reloaded"]
    new = "acme.caa, listeners.status.port"
    assert lines[0]["error"] == f"only a restart takes the new {new}"


@pytest.mark.row("EST-140")
def test_a_renewed_certificate_is_revoked_after_its_overlap_where_the_profile_says_so(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("\n[profiles.device.renewal]\nrevoke_superseded = true\noverlap = '14d'\n")
    old = live.enroll(live.invite("device"))
    credential_der = old.certificate.public_bytes(Encoding.DER)
    answer = live.request(
        "POST",
        "/.well-known/est/simplereenroll",
        body=make_csr(new_key(), subject="printer-17"),
        headers={"Content-Type": "application/pkcs10"},
        holder=old,
    )
    new = Holder(new_key(), answer.certificates()[0])
    assert credential_der != new.certificate.public_bytes(Encoding.DER)
    live.clock.advance(timedelta(days=13))
    assert live.core.ra.revoke_superseded(ORIGIN) == 0
    live.clock.advance(timedelta(days=2))
    assert live.core.ra.revoke_superseded(ORIGIN) == 1
    assert _state(live, old) is CertificateState.REVOKED
    assert _state(live, new) is CertificateState.VALID
    assert live.core.ra.revoke_superseded(ORIGIN) == 0


def test_a_renewed_certificate_stays_valid_where_the_profile_says_nothing(live: Live) -> None:
    old = live.enroll(live.invite("device"))
    answer = live.request(
        "POST",
        "/.well-known/est/simplereenroll",
        body=make_csr(new_key(), subject="printer-17"),
        headers={"Content-Type": "application/pkcs10"},
        holder=old,
    )
    assert answer.status == 200
    live.clock.advance(timedelta(days=100))
    assert live.core.ra.revoke_superseded(ORIGIN) == 0


@pytest.mark.parametrize("together", [True, False], ids=["one file", "two files"])
def test_a_listener_serves_with_a_certificate_of_the_operators(
    template: Path, tmp_path: Path, *, together: bool
) -> None:
    workshop = Workshop(template)
    live = workshop.make(tmp_path / "instance", start=False)
    live.start()
    holder = live.enroll(live.invite("server", names=("dns:localhost", "ip:127.0.0.1")))
    live.stop()
    chain = (
        holder.certificate.public_bytes(Encoding.PEM)
        + (live.directory / "ca/issuing.crt").read_bytes()
    )
    key = holder.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (live.directory / "own.crt").write_bytes((key if together else b"") + chain)
    (live.directory / "own.key").write_bytes(key)
    text = (live.directory / "estserver.toml").read_text(encoding="utf-8")
    lines = 'certificate = "own.crt"\n' + ("" if together else 'key = "own.key"\n')
    (live.directory / "estserver.toml").write_text(
        text.replace("[listeners.web]\n", f"[listeners.web]\n{lines}"), encoding="utf-8"
    )
    live.settings = config.load(live.directory / "estserver.toml")
    live.start()
    try:
        pem = ssl.get_server_certificate(
            ("localhost", live.port("web")), ca_certs=str(live.root), timeout=10
        )
    finally:
        live.stop()
    assert x509.load_pem_x509_certificate(pem.encode()) == holder.certificate


def test_a_listener_file_that_is_no_certificate_stops_the_start(
    template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    (live.directory / "own.crt").write_text("nothing", encoding="utf-8")
    path = live.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("[listeners.web]\n", '[listeners.web]\ncertificate = "own.crt"\n'),
        encoding="utf-8",
    )
    live.settings = config.load(path)
    with pytest.raises(ConfigurationError, match=r"own\.crt: cannot be used for TLS"):
        live.start()


def test_our_own_tls_certificate_renews_itself_at_half_life(live: Live) -> None:
    port = live.port("web")
    first = ssl.get_server_certificate(("localhost", port), timeout=10)
    live.clock.advance(timedelta(days=46))
    live.call(live.server._renew_tls())
    second = ssl.get_server_certificate(("localhost", port), timeout=10)
    assert first != second
    leaf = x509.load_pem_x509_certificate(second.encode())
    record = live.core.ra.find(leaf.serial_number)
    assert record.profile == "_tls"
    assert live.core.store.read(lambda tx: certificates.der(tx, record.enrollment))


@pytest.mark.row("EST-203")
def test_the_refusal_of_an_identified_applicant_is_in_the_audit_trail(live: Live) -> None:
    handover = live.invite("device")
    answer = live.request(
        "POST",
        "/.well-known/est/simpleenroll",
        body=make_csr(new_key(), subject="somebody-else"),
        headers={"Content-Type": "application/pkcs10", "Authorization": basic(handover)},
    )
    assert answer.status == 403
    row = live.core.store.read(
        lambda tx: tx.connection.execute(
            sa.select(audit_events).where(audit_events.c.event == "enrollment.refused")
        ).one()
    )
    assert row.object == f"invitation {handover.invitation.number}"
    assert "somebody-else" in row.detail
    assert row.request_id in answer.body.decode()


@pytest.mark.row("EST-203")
def test_a_strangers_refusal_writes_no_audit_row(live: Live) -> None:
    answer = live.request("POST", "/.well-known/est/simpleenroll", body=make_csr(new_key()))
    assert answer.status == 401
    count = live.core.store.read(
        lambda tx: tx.connection.execute(
            sa.select(sa.func.count())
            .select_from(audit_events)
            .where(audit_events.c.event == "enrollment.refused")
        ).scalar_one()
    )
    assert count == 0


def test_a_client_that_hangs_up_before_its_certificate_comes_is_no_fault(live: Live) -> None:
    handover = live.invite("device")
    body = base64.b64encode(make_csr(new_key()))
    head = (
        "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/pkcs10\r\nAuthorization: {basic(handover)}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    database = live.settings.database_file
    assert database is not None
    address = ("127.0.0.1", live.port("devices"))
    with (
        structlog.testing.capture_logs() as lines,
        closing(sqlite3.connect(database, isolation_level=None)) as blocker,
    ):
        # While the database is taken, nothing can be issued: the client is gone before.
        blocker.execute("BEGIN IMMEDIATE")
        with live.tls().wrap_socket(
            socket.create_connection(address), server_hostname="localhost"
        ) as client:
            client.sendall(head.encode() + body)
            _until(lambda: live.call(_requests(live)) == 1)
        _until(lambda: not live.call(live._connections()))
        blocker.execute("ROLLBACK")
        _until(lambda: [one for one in lines if one["event"] == "request.answered"])
    assert [line["event"] for line in lines] == ["request.answered"]
    assert lines[0]["outcome"] == "client-gone"
    (_, record) = live.core.ra.of_invitation(handover.invitation.number)[0]
    assert record is not None
    assert record.state is CertificateState.VALID


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


async def _requests(live: Live) -> int:
    servers = [runner.server for runner in live.server._runners]
    return sum(server.requests_count for server in servers if server is not None)


def test_an_enrollment_that_cannot_be_finished_keeps_nobody_else_out(
    make_live: Callable[[str], Live],
) -> None:
    profile = (
        "\n[profiles.guest]\ntitle = 'Guest'\ntitle_ja = 'Guest'\ndoors = ['est']\n"
        "default_doors = ['est']\nsubject = ['CN={device_id}']\nkeys = ['ec-p256']\n"
        "validity = '7d'\nextended_key_usage = ['clientAuth']\napproval = true\n"
    )
    live = make_live(profile)
    answer = live.request(
        "POST",
        "/.well-known/est/simpleenroll",
        body=make_csr(new_key()),
        headers={
            "Content-Type": "application/pkcs10",
            "Authorization": basic(live.invite("guest", device_id="visitor-1")),
        },
    )
    assert answer.status == 202
    (waiting,) = live.core.store.read(
        lambda tx: certificates.enrollments_in(tx, EnrollmentState.PENDING)
    )
    live.core.ra.approve(waiting.id, by="officer", origin=ORIGIN)
    path = live.directory / "estserver.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(profile, ""), encoding="utf-8")
    live.settings = config.load(path)
    live.restart()
    assert live.enroll(live.invite("device")).certificate
    with pytest.raises(Fault, match="guest is not configured"):
        live.core.ra.finish(ORIGIN)


@pytest.mark.parametrize("alone", [True, False], ids=["under a lease", "everywhere"])
def test_a_duty_that_fails_is_done_again_and_a_task_that_dies_is_told_of(
    live: Live, *, alone: bool
) -> None:
    done: list[str] = []

    async def duty() -> None:
        done.append("tried")
        if len(done) == 1:
            raise UnicodeError("no error of ours")
        if len(done) == 2:
            raise Unavailable("the database cannot take this now")
        raise asyncio.CancelledError

    async def work() -> None:
        duties = Duties(live.core.store, live.clock, "test", live.server._executor)
        await asyncio.gather(
            duties.perform(Duty("mail", 0, duty, alone=alone)), return_exceptions=True
        )
        task = asyncio.create_task(_die(), name="acme")
        task.add_done_callback(server._tell_of_death)
        await asyncio.wait([task])

    async def _die() -> None:
        raise Fault("broken")

    with structlog.testing.capture_logs() as lines:
        asyncio.run(work())
    assert len(done) == 3
    assert [(line["event"], line["operation"]) for line in lines] == [
        ("background.failed", "mail"),
        ("background.delayed", "mail"),
        ("background.died", "acme"),
    ]


def test_a_node_is_listed_as_soon_as_it_listens(live: Live) -> None:
    (node,) = live.core.store.read(lambda tx: leases.held(tx, NODE))
    assert node.name == node_name(live.directory)


def test_what_many_duties_wait_for_is_told_once_and_so_is_that_they_wait_no_more(
    live: Live,
) -> None:
    away, there = Unavailable("the database is gone"), threading.Event()
    turns = {"crls": 0, "mail": 0}

    async def work(name: str) -> None:
        turns[name] += 1
        if turns[name] == 9:
            there.set()
        if turns[name] == 12:
            raise asyncio.CancelledError
        if not there.is_set():
            raise away

    async def perform() -> None:
        duties = Duties(live.core.store, live.clock, "test", live.server._executor)
        both = [Duty(name, 0, partial(work, name), alone=False) for name in turns]
        await asyncio.gather(*map(duties.perform, both), return_exceptions=True)

    with structlog.testing.capture_logs() as lines:
        asyncio.run(perform())
    assert [(line["event"], line.get("error")) for line in lines] == [
        ("background.delayed", "the database is gone"),
        ("background.resumed", None),
    ]


def test_a_server_without_its_database_is_alive_and_not_ready(live: Live) -> None:
    assert live.request("GET", "/readyz", listener="management").status == 200
    live.core.store.engine.dispose()
    gone = live.directory.with_name("gone")
    live.directory.rename(gone)
    try:
        answer = live.request("GET", "/readyz", listener="management")
        assert answer.status == 503
        assert b"cannot be written now: try again (unable to open database file)" in answer.body
        assert live.request("GET", "/healthz", listener="management").status == 200
    finally:
        gone.rename(live.directory)
    assert live.request("GET", "/readyz", listener="management").status == 200


def test_that_the_database_is_gone_and_why_is_logged_once_and_so_is_its_return(live: Live) -> None:
    gone = live.directory.with_name("gone")
    with structlog.testing.capture_logs() as lines:

        def turns() -> list[str]:
            return [line["event"] for line in lines if line["event"].startswith("background.")]

        def ask_until_told(number: int) -> None:
            deadline = time.monotonic() + 30
            while len(turns()) < number:
                live.request("GET", "/healthz", listener="management")
                assert time.monotonic() < deadline

        live.core.store.engine.dispose()
        live.directory.rename(gone)
        try:
            ask_until_told(1)
        finally:
            gone.rename(live.directory)
        ask_until_told(2)
    assert turns() == ["background.delayed", "background.resumed"]
    (told,) = (line["error"] for line in lines if line["event"] == "background.delayed")
    assert told.endswith("try again (unable to open database file)")


def test_a_lost_database_file_stops_the_start_and_is_not_made_anew(
    template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    path = live.settings.database_file
    assert path is not None
    path.unlink()
    with pytest.raises(ConfigurationError, match="does not exist: restore it from a backup"):
        open_core(live.settings, live.clock, with_keys=False)
    assert not path.exists()


def test_a_port_that_is_taken_stops_the_start_and_names_the_listener(
    template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", live.settings.listeners.status.port))
        taken.listen()
        with pytest.raises(ConfigurationError, match=r"listeners\.status: cannot listen on"):
            live.start()
