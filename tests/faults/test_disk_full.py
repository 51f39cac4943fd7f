"""A disk that is full: nothing is promised, what was promised is still told, and it heals alone."""

import base64
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPSConnection
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver.invitations import Handover
from tests.invariants import violations
from tests.live import Live, Workshop, basic, make_csr, new_key

CLIENTS = 8
HEALS_SECONDS = 5


@contextmanager
def small_disk(path: Path) -> Iterator[bool]:
    """Mount a small tmpfs at `path`; False where nobody may mount."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(path)], check=True)


def fill_disk(path: Path) -> Callable[[], None]:
    """Take all that is left of the disk; return what gives it back."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    return filler.unlink


def fill_database(live: Live) -> Callable[[], None]:
    """Let SQLite find its file full, as on a full disk; return what gives it room again."""
    engine = live.core.store.engine
    pages = [0]

    def limit(connection: sa.Connection) -> None:
        pages[0] = pages[0] or connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages[0]}")

    sa.event.listen(engine, "begin", limit)

    def free() -> None:
        pages[0] = 1 << 30

    return free


class Device:
    """One device that asks again and again over one connection."""

    def __init__(self, live: Live, handover: Handover) -> None:
        port = live.port("devices")
        self._connection = HTTPSConnection("localhost", port, timeout=30, context=live.tls())
        self._body = base64.b64encode(make_csr(new_key()))
        self._headers = {
            "Content-Type": "application/pkcs10",
            "Authorization": basic(handover),
        }

    def ask(self) -> tuple[int, str | None]:
        """Return status and Retry-After."""
        path = "/.well-known/est/simpleenroll"
        self._connection.request("POST", path, self._body, self._headers)
        response = self._connection.getresponse()
        response.read()
        return response.status, response.headers["Retry-After"]

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def status_of(live: Live, path: str, body: bytes | None = None) -> int:
    headers = {"Content-Type": "application/ocsp-request"} if body else None
    method = "POST" if body else "GET"
    return live.request(method, path, listener="status", body=body, headers=headers).status


@pytest.mark.timeout(300)
@pytest.mark.row("I1", "I2", "I3", "I8")
def test_a_full_disk_refuses_all_serves_status_and_heals_by_itself(
    template: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    requests = 1000 if request.config.getoption("--full") else 200
    with small_disk(tmp_path / "disk") as mounted:
        live = Workshop(template).make(tmp_path / "disk/instance", start=False)
        live.start()
        try:
            with ExitStack() as connections:
                _drill(live, tmp_path / "disk", requests, connections, mounted=mounted)
        finally:
            live.stop()


def _drill(live: Live, disk: Path, requests: int, connections: ExitStack, *, mounted: bool) -> None:
    holder = live.enroll(live.invite("device", device_id="first"))
    issuer = live.core.chains["issuing"][0]
    asked = ocsp.OCSPRequestBuilder().add_certificate(holder.certificate, issuer, hashes.SHA1())
    question = asked.build().public_bytes(Encoding.DER)

    def device(name: str) -> Device:
        made = Device(live, live.invite("device", device_id=name))
        connections.callback(made.close)
        return made

    devices = [device(f"device-{n}") for n in range(CLIENTS)]
    spare = [device(f"spare-{n}") for n in range(50)]
    free = fill_disk(disk) if mounted else fill_database(live)
    # What still fits into pages that are half full may be issued; then nothing more.
    refused = 0
    while refused < CLIENTS:
        refused = 0 if spare.pop().ask()[0] == 200 else refused + 1
    heard: list[tuple[int, str | None]] = []
    lock = threading.Lock()

    def insist(one: Device) -> None:
        for _ in range(requests // CLIENTS):
            answer = one.ask()
            with lock:
                heard.append(answer)

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(insist, one) for one in devices]
        while not all(one.done() for one in asking):
            assert status_of(live, "/crl/issuing.crl") == 200
            assert status_of(live, "/ocsp", question) == 200
        for asked_all in asking:
            asked_all.result()
        ready = live.request("GET", "/readyz", listener="management")
        assert (ready.status == 503) == mounted, ready.body
    assert len(heard) == requests
    assert {status for status, _ in heard} == {503}
    assert all(again is not None and int(again) > 0 for _, again in heard)
    free()
    begun = time.monotonic()
    waiting = devices
    while waiting:
        assert time.monotonic() - begun < HEALS_SECONDS
        waiting = [one for one in waiting if one.ask()[0] != 200]
    assert violations(live.core, []) == []
