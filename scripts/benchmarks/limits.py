"""The machine's bare limits: what no server on it can beat, each measured by itself on one core.

The pipelines do what issuing a P-256 certificate cannot do without, in one loop with nothing around
it: no HTTP, no TLS, no rules. The one that splices a template is the pure pipeline of the table.
"""

import base64
import os
import secrets
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID

from scripts.benchmarks.pki import Pki

_BATCHES = 9


def fastest(
    run: Callable[[], object], seconds: float, clock: Callable[[], float] = time.thread_time
) -> float:
    """Return how often a second `run` can be called: the best of some batches.

    The best, not the mean: whatever else the machine does can only make a batch slower. `clock`:
    CPU time by default, which others do not use up; what waits for a disk needs the wall's.
    """
    run()
    begun = clock()
    run()
    one = clock() - begun
    count = max(1, int(seconds / _BATCHES / one))
    best = 0.0
    for _ in range(_BATCHES):
        begun = clock()
        for _ in range(count):
            run()
        best = max(best, count / (clock() - begun))
    return best


# -- signing ---------------------------------------------------------------------------------------


def signatures(kind: str, seconds: float) -> float:
    """Return signatures a second through the library that issues."""
    message = secrets.token_bytes(600)
    if kind.startswith("RSA"):
        rsa_key = rsa.generate_private_key(65537, int(kind.partition("-")[2]))
        return fastest(lambda: rsa_key.sign(message, padding.PKCS1v15(), hashes.SHA256()), seconds)
    curve, digest = {
        "P-256": (ec.SECP256R1(), hashes.SHA256()),
        "P-384": (ec.SECP384R1(), hashes.SHA384()),
    }[kind]
    key, how = ec.generate_private_key(curve), ec.ECDSA(digest)
    return fastest(lambda: key.sign(message, how), seconds)


# -- pipelines -------------------------------------------------------------------------------------


def _tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 128:
        return bytes((tag, size)) + content
    octets = (size.bit_length() + 7) // 8
    return bytes((tag, 0x80 | octets)) + size.to_bytes(octets) + content


_ECDSA_SHA256 = _tlv(0x30, bytes.fromhex("06082a8648ce3d040302"))
_DATA = bytes.fromhex("06092a864886f70d010701")
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")


def _certs_only(certificate: bytes) -> bytes:
    """Wrap one certificate in a PKCS#7 without signers. RFC 5652 §5."""
    signed = _tlv(
        0x30,
        b"\x02\x01\x01",
        _tlv(0x31),
        _tlv(0x30, _DATA),
        _tlv(0xA0, certificate),
        _tlv(0x31),
    )
    return _tlv(0x30, _SIGNED_DATA, _tlv(0xA0, signed))


@dataclass(frozen=True, slots=True)
class _Template:
    """A certificate's TBS around the two fields that differ: serial and public key."""

    before: bytes
    between: bytes
    after: bytes
    key: ec.EllipticCurvePrivateKey

    def issue(self, serial: bytes, spki: bytes) -> bytes:
        content = b"".join((self.before, serial, self.between, spki, self.after))
        tbs = _tlv(0x30, content)
        signature = self.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
        return _tlv(0x30, tbs, _ECDSA_SHA256, _tlv(0x03, b"\0", signature))


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _serial() -> int:
    return 1 << 126 | secrets.randbits(126)  # 16 octets, positive


class Pipelines:
    """Parse, verify the proof of possession, sign: with a template and with the builder."""

    def __init__(self, csrs: list[bytes]) -> None:
        self._csrs = csrs
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bare")])
        self._now = datetime.now(UTC).replace(microsecond=0)
        self._next = 0
        self._template = self._make_template()

    def _csr(self) -> ec.EllipticCurvePublicKey:
        self._next = (self._next + 1) % len(self._csrs)
        csr = x509.load_der_x509_csr(base64.b64decode(self._csrs[self._next]))
        key = csr.public_key()
        if not csr.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise RuntimeError("our own CSR does not verify")
        return key

    def _build(self, key: ec.EllipticCurvePublicKey, serial: int) -> x509.Certificate:
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            x509.CertificateBuilder()
            .issuer_name(self._name)
            .subject_name(self._name)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(self._now)
            .not_valid_after(self._now + timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName("printer-17.example.org")]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )

    def _make_template(self) -> _Template:
        key, serial = ec.generate_private_key(ec.SECP256R1()).public_key(), 0x7A << 120
        tbs = self._build(key, serial).tbs_certificate_bytes
        content = tbs[tbs[1] - 0x80 + 2 :]
        before, between = content.split(serial.to_bytes(16), 1)
        between, after = between.split(_spki(key), 1)
        return _Template(before, between, after, self._key)

    def with_template(self) -> bytes:
        """Return one certs-only PKCS#7 in base64."""
        key = self._csr()
        der = self._template.issue(_serial().to_bytes(16), _spki(key))
        return base64.b64encode(_certs_only(der))

    def with_builder(self) -> bytes:
        """Return one certs-only PKCS#7 in base64."""
        certificate = self._build(self._csr(), _serial())
        return base64.b64encode(pkcs7.serialize_certificates([certificate], Encoding.DER))

    def check(self) -> None:
        """Raise unless what the template makes is a certificate with a good signature."""
        (made,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(self.with_template()))
        signature = made.signature
        self._key.public_key().verify(
            signature, made.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256())
        )


@contextmanager
def commits(folder: Path) -> Iterator[Callable[[bytes], None]]:
    """Give a function that makes a row durable in SQLite: WAL, synchronous=FULL, one commit."""
    path = folder / f"bare-{secrets.token_hex(4)}.db"
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, der BLOB)")

        def commit(row: bytes) -> None:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO bare (der) VALUES (?)", (row,))
            database.execute("COMMIT")

        yield commit
    finally:
        database.close()


def durable_pipeline(pipelines: Pipelines, folder: Path, count: int, seconds: float) -> float:
    """Return certificates a second with `count` durable commits each, one after the other."""
    with commits(folder) as commit:

        def one() -> None:
            made = pipelines.with_template()
            for _ in range(count):
                commit(made)

        return fastest(one, seconds, time.perf_counter)


def syncs(folder: Path, seconds: float) -> float:
    """Return how often a second 4 KiB can be appended and made durable."""
    path = folder / "sync"
    block = secrets.token_bytes(4096)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:

        def one() -> None:
            os.write(descriptor, block)
            os.fdatasync(descriptor)

        return fastest(one, seconds, time.perf_counter)
    finally:
        os.close(descriptor)
        path.unlink()


# -- handshakes ------------------------------------------------------------------------------------


def handshake_microseconds(pki: Pki, seconds: float, *, mutual: bool) -> float:
    """Return the CPU time of the server's side of one TLS handshake, both sides in memory.

    `mutual`: the client shows a P-256 certificate, which the server verifies. No tickets.
    """
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(pki.server)
    server_side.num_tickets = 0
    server_side.options |= ssl.OP_NO_TICKET
    client_side = ssl.create_default_context(cafile=str(pki.root))
    if mutual:
        server_side.verify_mode = ssl.CERT_REQUIRED
        server_side.load_verify_locations(pki.root)
        client_side.load_cert_chain(pki.client)
    spent: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        spent.append(_handshake(server_side, client_side))
    # Interruptions by others are not on this thread's clock, but cold caches are: the quicker half.
    spent.sort()
    quick = spent[: max(1, len(spent) // 2)]
    return sum(quick) / len(quick) * 1e6


def _handshake(server_side: ssl.SSLContext, client_side: ssl.SSLContext) -> float:
    """Shake hands once; return the seconds of CPU that the server's side took."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname="localhost")
    spent = -time.thread_time()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    spent += time.thread_time()
    waiting = [client, server]
    while waiting:
        for side in tuple(waiting):
            begun = time.thread_time()
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
            if side is server:
                spent += time.thread_time() - begun
    return spent
