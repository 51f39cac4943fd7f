"""A CA on loopback and the world that it validates: names, web roots and TLS hosts, fed by files.

Hooks of clients are a line of shell: what they write into these folders is served at once.
"""

import contextlib
import shutil
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import dns.message
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from estserver.model import CertificateRecord, CertificateState
from estserver.protocols.acme import authorization_records, records
from estserver.protocols.acme.records import Order
from estserver.store import Transaction, certificates
from tests.interop.commands import Shell
from tests.live import Live, Workshop, make_template
from tests.protocols.acme.neighbourhood import NameServer, Neighbourhood
from tests.protocols.acme.wire import b64
from tests.status_driver import question

HOOKED = "127.0.0.21"
"""Serves the web root and the challenge certificates out of the folders."""
STANDALONE = "127.0.0.22"
"""Nobody listens here: for clients that listen themselves."""
_EARLIER = timedelta(days=65)
"""More than two thirds of 90 days."""
_AT_ONCE_SECONDS = 10
"""The CRL is looked after every two seconds; the rest is for a busy machine."""
_FOLDERS = ("www", "txt", "alpn")
_TOML = """
[acme]
require_eab = false
http_port = {http}
tls_port = {tls}
resolvers = ["127.0.0.53:{dns}"]
allow_networks = ["{hooked}/32", "{standalone}/32"]
retry_after = "1s"
"""


@dataclass
class FolderNameServer(NameServer):
    """Its TXT records are the lines of the files in a folder, each named like its owner."""

    folder: Path = field(default_factory=Path)

    def answer(self, query: dns.message.Message) -> dns.message.Message | None:
        self.records = {key: value for key, value in self.records.items() if key[1] != "TXT"}
        for file in self.folder.iterdir():
            self.records[file.name, "TXT"] = [f'"{one}"' for one in file.read_text().split()]
        return super().answer(query)


@dataclass(slots=True)
class World:
    """The instance under test, open to accounts without an invitation too, and what it reaches."""

    live: Live
    outside: Neighbourhood
    folder: Path

    @property
    def directory(self) -> str:
        """The URL that clients are given."""
        return f"{self.live.url('web')}/acme/directory"

    def shell(self, folder: Path) -> Shell:
        """Return a shell whose variables say what a client must know; the folders are empty."""
        shutil.copy(self.live.root, folder / "ca.pem")
        for name in _FOLDERS:
            shutil.rmtree(self.folder / name)
            (self.folder / name).mkdir()
        return Shell(
            folder,
            {
                "CA": str(folder / "ca.pem"),
                "DIR": self.directory,
                "HTTP": str(self.outside.http_port),
                "TLS": str(self.outside.tls_port),
                "DNS": f"127.0.0.53:{self.outside.dns_port}",
                **{name.upper(): str(self.folder / name) for name in _FOLDERS},
            },
        )

    @contextlib.contextmanager
    def earlier(self) -> Iterator[None]:
        """Set the CA's clock back: what it issues meanwhile is due for renewal afterwards."""
        self.live.clock.advance(-_EARLIER)
        try:
            yield
        finally:
            self.live.clock.advance(_EARLIER)

    # -- what is known of a certificate ----------------------------------------------------------

    def certificate(self, path: Path, *names: str) -> x509.Certificate:
        """Return the first certificate of a PEM file: the one on record with just these names."""
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        record = self.record(certificate)
        assert record.sha256 == certificate.fingerprint(hashes.SHA256())
        assert set(record.names) == set(names)
        return certificate

    def granted(self, path: Path, *names: str) -> x509.Certificate:
        """Return the certificate, for which an invitation and no challenge must have spoken."""
        certificate = self.certificate(path, *names)
        assert self.record(certificate).invitation is not None
        assert self.shown_by(certificate) == set()
        return certificate

    def renewed(
        self, first: x509.Certificate, path: Path, *names: str, units: int = 1
    ) -> x509.Certificate:
        """Return what has taken the place of `first`; the invitation has given `units` by now."""
        second = self.granted(path, *names)
        assert second.serial_number != first.serial_number
        number = self.record(second).invitation
        assert number == self.record(first).invitation
        assert number is not None
        assert self.live.core.invitations.get(number).units_used == units
        return second

    def record(self, certificate: x509.Certificate) -> CertificateRecord:
        """Return the row of a certificate."""
        return self.live.core.ra.find(certificate.serial_number)

    def order(self, certificate: x509.Certificate) -> Order:
        """Return the order that led to a certificate."""

        def read(tx: Transaction) -> Order:
            enrollment = certificates.enrollment(tx, self.record(certificate).enrollment)
            assert enrollment is not None
            order = records.order(tx, enrollment.authority_key.removeprefix("order:"))
            assert order is not None
            return order

        return self.live.core.store.read(read)

    def shown_by(self, certificate: x509.Certificate) -> set[str]:
        """Return the challenges that were met for a certificate; none were for an invitation's."""
        order = self.order(certificate)
        found = self.live.core.store.read(
            lambda tx: authorization_records.authorizations_of(tx, order.authorizations)
        )
        return {
            challenge.type
            for authorization in found.values()
            if authorization.rule is None
            for challenge in authorization.challenges
            if challenge.validated_at is not None
        }

    def require_revoked(
        self, certificate: x509.Certificate, reason: x509.ReasonFlags | None = None
    ) -> None:
        """Assert that record, OCSP and CRL say so, now."""
        record = self.record(certificate)
        assert record.state is CertificateState.REVOKED
        issuer = self.live.core.chains[record.issuer][0]
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
        (responder,) = [
            one.access_location.value
            for one in access.value
            if one.access_method == AuthorityInformationAccessOID.OCSP
        ]
        answer = ocsp.load_der_ocsp_response(_fetch(responder, question(certificate, issuer)))
        assert answer.certificate_status is ocsp.OCSPCertStatus.REVOKED
        assert answer.revocation_reason is reason
        entry = _crl_entry(certificate)
        found = [
            one.value.reason for one in entry.extensions if isinstance(one.value, x509.CRLReason)
        ]
        assert found == ([] if reason is None else [reason])


def certificate_id(certificate: x509.Certificate) -> str:
    """Return the identifier of RFC 9773 §4.1."""
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert authority.value.key_identifier is not None
    octets = certificate.serial_number.to_bytes(certificate.serial_number.bit_length() // 8 + 1)
    return f"{b64(authority.value.key_identifier)}.{b64(octets)}"


def _crl_entry(certificate: x509.Certificate) -> x509.RevokedCertificate:
    """Return what the CRL says of a certificate as soon as it says something: within seconds."""
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    (place,) = points.value[0].full_name or [None]
    assert place is not None
    deadline = time.monotonic() + _AT_ONCE_SECONDS
    while True:
        crl = x509.load_der_x509_crl(_fetch(place.value))
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is not None:
            return entry
        assert time.monotonic() < deadline
        threading.Event().wait(0.1)


def _fetch(url: str, body: bytes | None = None) -> bytes:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = HTTPConnection(parts.hostname, parts.port, timeout=30)
    with contextlib.closing(connection):
        headers = {} if body is None else {"Content-Type": "application/ocsp-request"}
        connection.request("GET" if body is None else "POST", parts.path, body, headers)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()


# -- making it ------------------------------------------------------------------------------------


def old_template(folder: Path) -> Path:
    """Make an instance that was there at the `earlier` time."""
    return make_template(folder, age=_EARLIER + timedelta(hours=1))


@contextlib.contextmanager
def make_world(template: Path, folder: Path) -> Iterator[World]:
    """Start a copy of an instance of `old_template` and what it validates, and stop both."""
    for name in _FOLDERS:
        (folder / name).mkdir()
    outside = Neighbourhood()
    outside.dns = FolderNameServer(folder=folder / "txt")
    for name in ("one.example.org", "two.example.org"):
        outside.name(name, HOOKED)
    outside.name("alone.example.org", STANDALONE)
    toml = _TOML.format(
        http=outside.http_port,
        tls=outside.tls_port,
        dns=outside.dns_port,
        hooked=HOOKED,
        standalone=STANDALONE,
    )
    workshop = Workshop(template)
    live = workshop.make(folder / "instance", toml)
    try:
        live.call(_open(outside, folder))
        yield World(live, outside, folder)
        live.call(outside.__aexit__(None, None, None))
    finally:
        workshop.close()


async def _open(outside: Neighbourhood, folder: Path) -> None:
    await outside.__aenter__()
    await outside.web(lambda path: _file(folder / "www", path), HOOKED)
    await outside.tls(_challenge_certificates(folder / "alpn"), HOOKED)


def _file(root: Path, path: str) -> bytes:
    file = (root / path.lstrip("/")).resolve()
    if not file.is_relative_to(root.resolve()) or not file.is_file():
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    body = file.read_bytes()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _challenge_certificates(folder: Path) -> ssl.SSLContext:
    """Answer `acme-tls/1` with the files that dehydrated writes: NAME.crt.pem and NAME.key.pem."""

    def choose(
        connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
    ) -> None:
        chosen = _alpn_context()
        chosen.load_cert_chain(folder / f"{name}.crt.pem", folder / f"{name}.key.pem")
        connection.context = chosen

    context = _alpn_context()
    context.sni_callback = choose
    return context


def _alpn_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["acme-tls/1"])
    return context
