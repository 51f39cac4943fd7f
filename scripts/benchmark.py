"""EST enrollment under load, beside what the same machine can do at best in the same run.

The generator is a process of its own with pre-made CSRs; every certificate that came back is
compared with its CSR after the clock stops. The bare pipeline is one loop of parse, verify the
proof of possession, sign, and one durable SQLite commit: what is faster is not durable.
"""

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import resource
import socket
import sqlite3
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estserver import config
from estserver.ca.ceremony import InstanceOptions, Ports, create_instance
from estserver.core import SystemClock, open_core
from estserver.invitations import Registration
from estserver.model import Origin

PATH = "/.well-known/est/simpleenroll"
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Load:
    """What one generator process shall do."""

    port: int
    root: str
    authorization: str
    bodies: tuple[bytes, ...]
    connections: int
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What it did: seconds of wall clock, latencies in seconds, answers by CSR, own CPU seconds."""

    seconds: float
    latencies: tuple[float, ...]
    answers: tuple[tuple[bytes, bytes], ...]
    failures: int
    cpu: float


def make_csrs(count: int) -> tuple[bytes, ...]:
    """Make base64 CSRs with P-256 keys of their own."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    keys = (ec.generate_private_key(ec.SECP256R1()) for _ in range(count))
    return tuple(
        base64.b64encode(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
        for key in keys
    )


def generate(load: Load) -> Outcome:
    """Run one load to its end, in a process of its own."""
    return asyncio.run(_generate(load))


async def _generate(load: Load) -> Outcome:
    context = ssl.create_default_context(cafile=load.root)
    context.check_hostname = False
    todo = iter(load.bodies)
    latencies: list[float] = []
    answers: list[tuple[bytes, bytes]] = []
    failures = 0

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", load.port, ssl=context)

    async def work() -> None:
        nonlocal failures
        streams = await connect() if load.keep_alive else None
        for body in todo:
            started = time.perf_counter()
            reader, writer = streams or await connect()
            close = "" if load.keep_alive else "Connection: close\r\n"
            head = (
                f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\n{close}"
                f"Authorization: {load.authorization}\r\nContent-Type: application/pkcs10\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            header = await reader.readuntil(b"\r\n\r\n")
            length = int(header.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            if streams is None:
                writer.close()
            latencies.append(time.perf_counter() - started)
            if header.startswith(b"HTTP/1.1 200"):
                answers.append((body, answer))
            else:
                failures += 1
        if streams is not None:
            streams[1].close()

    cpu = time.process_time()
    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(load.connections)))
    seconds = time.perf_counter() - started
    return Outcome(seconds, tuple(latencies), tuple(answers), failures, time.process_time() - cpu)


def check(outcome: Outcome) -> None:
    """Raise unless every answer is a certificate for the public key of its CSR."""
    for body, answer in outcome.answers:
        csr = x509.load_der_x509_csr(base64.b64decode(body))
        certificate = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))[0]
        if certificate.public_key() != csr.public_key():
            raise AssertionError("a certificate came back for another key")


def bare_pipeline(folder: Path, csrs: tuple[bytes, ...], commits: int) -> float:
    """Return certificates a second of parse + verify + sign + `commits` durable commits each."""
    database = sqlite3.connect(folder / f"bare{commits}.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE bare (serial TEXT PRIMARY KEY, der BLOB)")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bare")])
    now = datetime.now(UTC)
    started = time.perf_counter()
    for body in csrs:
        csr = x509.load_der_x509_csr(base64.b64decode(body))
        if not csr.is_signature_valid:
            raise AssertionError("our own CSR does not verify")
        serial = x509.random_serial_number()
        certificate = (
            x509.CertificateBuilder()
            .issuer_name(name)
            .subject_name(name)
            .public_key(csr.public_key())
            .serial_number(serial)
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        for number in range(commits):
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                "INSERT INTO bare VALUES (?, ?)",
                (f"{number}:{serial:x}", certificate.public_bytes(Encoding.DER)),
            )
            database.execute("COMMIT")
    seconds = time.perf_counter() - started
    database.close()
    return len(csrs) / seconds


def bare_handshakes(pem: Path, passphrase: Callable[[], str], root: Path, count: int) -> float:
    """Return TLS handshakes a second of one core doing both sides in memory."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(pem, password=passphrase)
    server_side.num_tickets = 0
    client_side = ssl.create_default_context(cafile=str(root))
    started = time.perf_counter()
    for _ in range(count):
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_side.wrap_bio(to_client, to_server, server_hostname="localhost")
        server = server_side.wrap_bio(to_server, to_client, server_side=True)
        waiting = [client, server]
        while waiting:
            for side in tuple(waiting):
                try:
                    side.do_handshake()
                    waiting.remove(side)
                except ssl.SSLWantReadError:
                    pass
    return count / (time.perf_counter() - started)


@contextmanager
def running(configuration: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Run `estserver serve`; yield the process and the seconds from exec to listening."""
    started = time.perf_counter()
    with (configuration.parent / "serve.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "estserver", "--config", str(configuration), "serve"],
            stdout=log,
            stderr=log,
        )
    try:
        while True:
            if child.poll() is not None:
                raise RuntimeError((configuration.parent / "serve.log").read_text())
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.005)
        yield child, time.perf_counter() - started
    finally:
        child.terminate()
        child.wait(30)


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_megabytes(pid: int) -> float:
    """Resident memory of a process in MB, from /proc."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def percentile(values: tuple[float, ...], share: float) -> float:
    """The value below which `share` of the values lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def measure(requests: int, connections: int) -> dict[str, object]:
    """Run everything and return the figures."""
    csrs = make_csrs(requests * 2 * ROUNDS)
    with tempfile.TemporaryDirectory(prefix="estserver-bench-") as name:
        folder = Path(name)
        ports = Ports(*(port_number() for _ in range(4)))
        instance = create_instance(folder / "instance", SystemClock(), InstanceOptions(ports=ports))
        settings = config.load(instance.configuration)
        core = open_core(settings, SystemClock(), with_keys=False)
        registration = Registration("device", device_id="bench", units=len(csrs))
        handover = core.invitations.issue(registration, by="bench", origin=Origin("bench", "cli"))
        core.close()
        if handover.pin is None:
            raise RuntimeError("the device invitation has no PIN")
        pair = f"{handover.invitation.number}:{handover.pin.reveal()}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        bare = {
            f"bare pipeline, {commits} commit(s)": bare_pipeline(folder, csrs[:requests], commits)
            for commits in (1, 2)
        }
        with (
            running(instance.configuration, ports.devices) as (child, start_seconds),
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as generator,
        ):
            idle = rss_megabytes(child.pid)
            rows: dict[str, list[dict[str, float]]] = {"fresh TLS": [], "keep-alive": []}
            bodies = iter(csrs)
            for _ in range(ROUNDS):
                for kind, measured in rows.items():
                    load = Load(
                        ports.devices,
                        str(folder / "instance/ca/root.crt"),
                        authorization,
                        tuple(next(bodies) for _ in range(requests)),
                        connections,
                        kind == "keep-alive",
                    )
                    before = cpu_seconds(child.pid)
                    outcome = generator.submit(generate, load).result()
                    used = cpu_seconds(child.pid) - before
                    check(outcome)
                    measured.append(
                        {
                            "per_second": len(outcome.answers) / outcome.seconds,
                            "failures": outcome.failures,
                            "p50_ms": percentile(outcome.latencies, 0.5) * 1000,
                            "p99_ms": percentile(outcome.latencies, 0.99) * 1000,
                            "server_cpu_us": used / requests * 1e6,
                            "generator_busy": outcome.cpu / outcome.seconds,
                        }
                    )
            passphrase = (folder / "instance/secrets/passphrase").read_text().strip()
            bare["bare TLS handshakes, both sides"] = bare_handshakes(
                folder / "instance/keys/tls.pem",
                lambda: passphrase,
                folder / "instance/ca/root.crt",
                500,
            )
            figures = {
                kind: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
                for kind, rounds in rows.items()
            }
            return {
                "machine": bare,
                "enroll": figures,
                "start_seconds": start_seconds,
                "rss_idle_mb": idle,
                "rss_after_mb": rss_megabytes(child.pid),
                "requests": requests,
                "connections": connections,
            }


def port_number() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def show(figures: dict[str, object]) -> None:
    """Print the table; every rate also as a share of the bare pipeline."""
    machine, enroll = figures["machine"], figures["enroll"]
    if not isinstance(machine, dict) or not isinstance(enroll, dict):
        raise TypeError("not the figures that measure() returns")
    pure = machine["bare pipeline, 1 commit(s)"]
    print(f"{'':34}{'per s':>9}{'of bare':>9}{'p50 ms':>9}{'p99 ms':>9}{'CPU µs':>9}{'failed':>8}")
    for name, rate in machine.items():
        print(f"{name:34}{rate:9.0f}")
    for name, row in enroll.items():
        print(
            f"{'EST enroll, ' + name:34}{row['per_second']:9.0f}{row['per_second'] / pure:9.0%}"
            f"{row['p50_ms']:9.1f}{row['p99_ms']:9.1f}{row['server_cpu_us']:9.0f}"
            f"{row['failures']:8.0f}   generator {row['generator_busy']:.0%} busy"
        )
    print(
        f"start {figures['start_seconds']:.2f} s, RSS {figures['rss_idle_mb']:.0f} MB idle, "
        f"{figures['rss_after_mb']:.0f} MB after; {figures['requests']} requests a round, "
        f"{figures['connections']} connections, medians of {ROUNDS} rounds"
    )


def main() -> None:
    """Read the arguments, measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=16)
    arguments = parser.parse_args()
    figures = measure(arguments.requests, arguments.connections)
    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
