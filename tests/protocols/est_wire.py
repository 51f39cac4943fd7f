"""EST as clients speak it: octets on the wire, CSRs piece by piece, and what the store says."""

import base64
import json
import socket
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, Self

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver.invitations import Handover
from estserver.model import CertificateRecord
from estserver.store import certificates
from estserver.store.tables import audit_events
from estserver.store.tables import certificates as certificate_rows
from tests.der import attribute, oid, tlv
from tests.live import Answer, Holder, Live, basic, make_csr, new_key

EST = "/.well-known/est"
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
PKCS10 = "application/pkcs10"

_PROFILE = """
[profiles."{name}"]
title = "Test"
title_ja = "Test"
doors = ["est"]
default_doors = ["est"]
subject = ["CN={{device_id}}"]
keys = ["ec-p256"]
validity = "{validity}"
extended_key_usage = ["{usage}"]
"""

CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
IDENTITY_LINKING = "1.2.840.113549.1.9.16.2.58"
CHANGE_SUBJECT_NAME = "1.3.6.1.5.5.7.7.36"


# -- asking --------------------------------------------------------------------------------------


def profile(name: str, validity: str = "30d", usage: str = "clientAuth") -> str:
    """Return the TOML of a profile for devices."""
    return _PROFILE.format(name=name, validity=validity, usage=usage)


def get(live: Live, path: str, **extra: Any) -> Answer:
    """GET an EST path such as `cacerts`."""
    return live.request("GET", f"{EST}/{path}", **extra)


def post(
    live: Live,
    body: bytes,
    *,
    path: str = "simpleenroll",
    by: Handover | None = None,
    holder: Holder | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """POST `body` as a CSR; `by` sends the PIN, `holder` shows a certificate."""
    sent = {"Content-Type": PKCS10}
    if by is not None:
        sent["Authorization"] = basic(by)
    sent |= headers or {}
    return live.request("POST", f"{EST}/{path}", body=body, headers=sent, holder=holder)


def csr(**names: Any) -> bytes:
    """Make a base64 CSR with a new key."""
    return base64.b64encode(make_csr(names.pop("key", None) or new_key(), **names))


def credentials(user: str | bytes, secret: str | bytes) -> str:
    """Return a Basic credential of any octets."""
    parts = [part if isinstance(part, bytes) else part.encode() for part in (user, secret)]
    return "Basic " + base64.b64encode(b":".join(parts)).decode()


def renewed(live: Live, holder: Holder, **fields: Any) -> Answer:
    """Re-enroll with the names of the certificate shown, a new key unless `key` is given."""
    subject = fields.pop("subject", holder.certificate.subject)
    names = fields.pop("names", names_of(holder.certificate))
    body = csr(key=fields.pop("key", None), subject=subject, names=names)
    return post(live, body, path=fields.pop("path", "simplereenroll"), holder=holder, **fields)


class Wire:
    """One TLS connection to the devices listener, driven octet by octet."""

    def __init__(
        self,
        live: Live,
        *,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        plain = socket.create_connection(("127.0.0.1", live.port("devices")), timeout=30)
        self.sock = (context or live.tls()).wrap_socket(
            plain, server_hostname="localhost", session=session
        )

    @property
    def unique(self) -> bytes:
        """The connection's tls-unique value as this end sees it."""
        value = self.sock.get_channel_binding("tls-unique")
        assert value is not None
        return value

    def send(self, *lines: str, body: bytes = b"") -> None:
        """Send header lines and a body just as given."""
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def ask(
        self, method: str, path: str, *, body: bytes | None = None, headers: Sequence[str] = ()
    ) -> Answer:
        """Make one HTTP/1.1 request and read its answer."""
        length = [] if body is None else [f"Content-Length: {len(body)}"]
        self.send(
            f"{method} {EST}/{path} HTTP/1.1",
            "Host: localhost",
            *length,
            *headers,
            body=body or b"",
        )
        return self.answer(method)

    def enroll(self, by: Handover, body: bytes, *, path: str = "simpleenroll") -> Answer:
        """POST a CSR with the PIN."""
        headers = [f"Content-Type: {PKCS10}", f"Authorization: {basic(by)}"]
        return self.ask("POST", path, body=body, headers=headers)

    def answer(self, method: str = "GET") -> Answer:
        """Read one answer."""
        response = HTTPResponse(self.sock, method=method)
        response.begin()
        with response:
            return Answer(response.status, response.headers, response.read())

    def rest(self) -> bytes:
        """Read until the server closes the connection."""
        parts = []
        while part := self.sock.recv(65536):
            parts.append(part)
        return b"".join(parts)

    def bye(self) -> ssl.SSLSession:
        """Close cleanly, without which OpenSSL forgets the session, and return the session."""
        session = self.sock.session
        assert session is not None
        self.sock.unwrap()
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.sock.close()


def tls12(live: Live, holder: Holder | None = None) -> ssl.SSLContext:
    """Return a client context for TLS 1.2 only."""
    return live.tls(holder, maximum_version=ssl.TLSVersion.TLSv1_2)


def s_client(live: Live, *options: str, send: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `openssl s_client` against the devices listener."""
    return subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{live.port('devices')}", *options],
        input=send,
        capture_output=True,
        timeout=30,
        check=False,
    )


# -- CSRs piece by piece -------------------------------------------------------------------------


def extension_request(
    *extensions: tuple[str, bytes], attribute_oid: str = EXTENSION_REQUEST
) -> bytes:
    """Encode an extensionRequest of (OID, DER value) pairs."""
    encoded = [tlv(0x30, oid(extension), tlv(0x04, value)) for extension, value in extensions]
    return attribute(attribute_oid, tlv(0x30, *encoded))


def san(*names: x509.GeneralName) -> bytes:
    """Encode GeneralNames."""
    return x509.SubjectAlternativeName(names).public_bytes()


def change_subject(subject: x509.Name | None, *names: x509.GeneralName) -> bytes:
    """Encode a ChangeSubjectName attribute; None and no names leave the fields out."""
    fields = [b"" if subject is None else subject.public_bytes(), san(*names) if names else b""]
    return attribute(CHANGE_SUBJECT_NAME, tlv(0x30, *fields))


def text(value: str | bytes, tag: int = 0x0C) -> bytes:
    """Encode a string, UTF8String unless `tag` says otherwise."""
    return tlv(tag, value if isinstance(value, bytes) else value.encode())


def raw_csr(
    *attributes: bytes,
    subject: x509.Name | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
    spki: bytes | None = None,
    subject_der: bytes | None = None,
) -> bytes:
    """Build and sign a PKCS#10 of any attributes, subject and public key; base64."""
    key = key or new_key()
    own = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    info = tlv(
        0x30,
        b"\x02\x01\x00",
        subject_der or (subject or x509.Name([])).public_bytes(),
        spki or own,
        tlv(0xA0, *sorted(attributes, key=lambda der: der.ljust(70000, b"\0"))),
    )
    algorithm = tlv(0x30, oid("1.2.840.10045.4.3.2"))
    signature = tlv(0x03, b"\0", key.sign(info, ec.ECDSA(hashes.SHA256())))
    return base64.b64encode(tlv(0x30, info, algorithm, signature))


def common_name(value: str) -> x509.Name:
    """Return a subject of one CN."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, value)])


def names_of(certificate: x509.Certificate) -> tuple[x509.GeneralName, ...]:
    """Return a certificate's subjectAltName, empty where it has none."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(found.value)


# -- what the store says -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One audit event."""

    event: str
    actor: str
    object: str
    detail: dict[str, Any]


def issued(live: Live, handover: Handover) -> list[CertificateRecord]:
    """Return every certificate of an invitation, signed or only intended."""
    number = handover.invitation.number
    return live.core.store.read(lambda tx: certificates.invitation_certificates(tx, number))


def units_used(live: Live, handover: Handover) -> int:
    """Return how many units of an invitation are spent."""
    return live.core.invitations.get(handover.invitation.number).units_used


def audit_rows(live: Live) -> list[AuditRow]:
    """Return the audit trail, oldest first."""
    columns = (audit_events.c.event, audit_events.c.actor, audit_events.c.object)
    query = sa.select(*columns, audit_events.c.detail)
    rows = live.core.store.read(lambda tx: tx.connection.execute(query).all())
    return [AuditRow(row[0], row[1], row[2], json.loads(row[3])) for row in rows]


def certificate_count(live: Live) -> int:
    """Return how many certificates there are, signed or only intended."""
    query = sa.select(sa.func.count()).select_from(certificate_rows)
    number: int = live.core.store.read(lambda tx: tx.connection.execute(query).scalar_one())
    return number
