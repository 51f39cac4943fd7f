"""Incidents of others, here: nothing fails open, nothing issues by accident, forgeries are seen."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPResponse
from pathlib import Path
from typing import Self

import aiohttp.http_parser
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.name import _ASN1Type

from estserver.authentication import ConfirmedPIN
from estserver.cli import main
from estserver.core import open_core
from estserver.csr import read_csr
from estserver.errors import ConfigurationError
from estserver.model import Door, Via
from estserver.ra import EnrollmentRequest
from estserver.store.tables import invitations
from tests.live import ORIGIN, Holder, Key, Live, Workshop, new_key
from tests.protocols.est_wire import (
    Wire,
    certificate_count,
    common_name,
    credentials,
    csr,
    issued,
    names_of,
    post,
    tls12,
    units_used,
)

OPERATIONS = ("simpleenroll", "simplereenroll", "serverkeygen", "fullcmc", "device/simpleenroll")


# -- nothing fails open ----------------------------------------------------------------------------


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _make_unreadable(path: Path) -> None:
    # A folder, because mode 0 stops no test that runs as root.
    path.unlink()
    path.mkdir()


def _spoil(path: Path) -> None:
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


@pytest.mark.row("INC-2")
@pytest.mark.parametrize("damage", [_remove, _empty, _make_unreadable, _spoil])
@pytest.mark.parametrize(
    "file",
    [
        "ca/issuing.crt",
        "ca/root.crt",
        "ca/issuing.key",
        "secrets/master.key",
        "secrets/passphrase",
    ],
)
def test_without_a_file_of_trust_the_server_does_not_start(
    file: str, damage: Callable[[Path], None], template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    damage(live.directory / file)
    with pytest.raises(ConfigurationError):
        open_core(live.settings, live.clock, with_keys=True)


@pytest.mark.row("INC-2")
def test_an_instance_with_another_root_of_the_same_name_does_not_start(
    template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    ours = x509.load_pem_x509_certificate(live.root.read_bytes())
    live.root.write_bytes(Forger.lookalike(ours).certificate.public_bytes(Encoding.PEM))
    with pytest.raises(ConfigurationError, match="does not lead to a self-signed root"):
        open_core(live.settings, live.clock, with_keys=True)


# -- nothing issues by accident --------------------------------------------------------------------


@pytest.mark.row("INC-8")
def test_no_method_path_or_content_type_issues_without_credentials(shared: Live) -> None:
    before = certificate_count(shared)
    body = csr(subject="printer-17")
    types = ("application/pkcs10", "application/json", "application/x-www-form-urlencoded", "")
    for operation in OPERATIONS:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PKIOPERATION"):
            for content_type in types:
                answer = shared.request(
                    method,
                    f"/.well-known/est/{operation}",
                    body=body,
                    headers={"Content-Type": content_type} if content_type else {},
                )
                assert 400 <= answer.status < 500, (method, operation, content_type)
                assert "pkcs7" not in answer.headers.get("Content-Type", "")
    assert certificate_count(shared) == before


SPELLINGS = (
    "//.well-known/est/simpleenroll",
    "/.well-known//est/simpleenroll",
    "/.well-known/est//simpleenroll",
    "/.well-known/est/simpleenroll/",
    "/.well-known/est/simpleenroll/.",
    "/.well-known/est/device/../simpleenroll",
    "/.WELL-KNOWN/EST/SIMPLEENROLL",
    "/.well-known/est/SimpleEnroll",
    "/.well-known/est/%73impleenroll",
    "/.well-known/est/device%2Fsimpleenroll",
    "/.well-known/est/simpleenroll;jsessionid=1",
    "/.well-known/est/simpleenroll?x=/trust",
    "/trust/../.well-known/est/simpleenroll",
    "/.well-known/est/_tls/simpleenroll",
    "/.well-known/est/%5Ftls/simpleenroll",
    "/.well-known/est/_ocsp-issuing/simpleenroll",
)


@pytest.mark.row("INC-14")
@pytest.mark.parametrize("listener", ["web", "devices", "status", "management"])
def test_no_spelling_of_a_path_reaches_issuance_unasked(listener: str, shared: Live) -> None:
    before = certificate_count(shared)
    for path in SPELLINGS:
        answer = shared.request("POST", path, listener=listener, body=csr())
        assert 400 <= answer.status < 500, path
    assert certificate_count(shared) == before


@pytest.mark.row("INC-12")
@pytest.mark.parametrize(
    "text",
    [
        "' OR 1=1--",
        '" OR ""="',
        "*)(uid=*",
        "1; DROP TABLE invitations",
        "%",
        "_",
        "\x00",
        "{{7*7}}",
        "${jndi:ldap://127.0.0.1/}",
    ],
)
def test_what_strangers_write_is_never_part_of_a_query(text: str, shared: Live) -> None:
    handover = shared.invite("device", device_id="victim")
    before = certificate_count(shared)
    quoted = "".join(f"%{octet:02x}" for octet in text.encode())
    answers = [
        post(shared, csr(), headers={"Authorization": credentials(text, text)}),
        post(shared, csr(), headers={"Authorization": credentials("", text)}),
        post(shared, csr(), path=f"{quoted}/simpleenroll", by=handover),
        shared.request("GET", f"/e/{quoted}", listener="web"),
        shared.request("GET", f"/crl/{quoted}.crl", listener="status"),
        shared.request("GET", f"/ca/{quoted}", listener="status"),
    ]
    assert [answer.status for answer in answers if not 400 <= answer.status < 500] == []
    assert certificate_count(shared) == before
    query = sa.select(sa.func.count()).select_from(invitations)
    assert shared.core.store.read(lambda tx: tx.connection.execute(query).scalar_one()) > 0


@pytest.mark.row("INC-5", "INC-11", "INC-32", "A-8")
@pytest.mark.parametrize(
    "asked",
    [
        {"subject": "somebody-else"},
        {"subject": "taro@example.ac.jp"},
        {"names": (x509.DNSName("example.ac.jp"),)},
        {"names": (x509.DNSName("*.example.ac.jp"),)},
        {"names": (x509.RFC822Name("hanako@example.ac.jp"),)},
        {"names": (x509.RFC822Name("taro@example.ac.jp"), x509.DNSName("www.example.ac.jp"))},
        {"names": (x509.UniformResourceIdentifier("https://example.ac.jp/taro"),)},
        {"names": (x509.DirectoryName(common_name("山田 太郎")),)},
    ],
)
def test_nobody_gets_a_name_beyond_the_registration(asked: dict[str, object], shared: Live) -> None:
    handover = shared.invite("person", doors=frozenset({Door.EST}))
    answer = post(shared, csr(**asked), by=handover)
    assert answer.status == 403
    assert b"does not grant" in answer.body
    assert (issued(shared, handover), units_used(shared, handover)) == ([], 0)


@pytest.mark.row("INC-31", "EST-180")
def test_names_are_utf8_whatever_their_script_and_wherever_they_came_from(shared: Live) -> None:
    for name in ("山田 太郎", "Jörg Müller", "Zoe\u0308 O'Neil"):
        handover = shared.invite("person", name=name, doors=frozenset({Door.EST}))
        certificate = shared.enroll(handover).certificate
        (attribute,) = certificate.subject
        assert attribute._type is _ASN1Type.UTF8String
        assert attribute.oid == x509.NameOID.COMMON_NAME
        assert attribute.value == name.replace("e\u0308", "ë")


# -- forged certificates ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forger:
    """Somebody with a key and a certificate who plays CA with them."""

    key: Key
    certificate: x509.Certificate

    @classmethod
    def lookalike(cls, original: x509.Certificate) -> Self:
        """Return a forger whose own certificate has the names and serial of `original`."""
        key = new_key()
        return cls(key, _sign(original, original.subject, key, key))

    def copy(self, certificate: x509.Certificate) -> Holder:
        """Return `certificate` as this forger would issue it."""
        key = new_key()
        return Holder(key, _sign(certificate, self.certificate.subject, key, self.key))


def _sign(like: x509.Certificate, issuer: x509.Name, key: Key, by: Key) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(like.subject)
        .public_key(key.public_key())
        .serial_number(like.serial_number)
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(like.not_valid_after_utc)
    )
    copied = (x509.BasicConstraints, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)
    for extension in like.extensions:
        if isinstance(extension.value, copied):
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(by, hashes.SHA256())


def _renews(live: Live, holder: Holder) -> bool:
    """Try to renew with `holder`; an alert in the handshake is a refusal as well."""
    body = csr(subject=holder.certificate.subject, names=names_of(holder.certificate))
    try:
        with Wire(live, context=tls12(live, holder)) as wire:
            answer = wire.ask(
                "POST",
                "simplereenroll",
                body=body,
                headers=["Content-Type: application/pkcs10"],
            )
    except OSError:
        return False
    return answer.status == 200


@pytest.mark.row("INC-15", "INC-4", "A-7", "A-13")
def test_a_forged_chain_authenticates_nobody(live: Live) -> None:
    genuine = live.enroll(live.invite("device"))
    namesake = Forger.lookalike(live.core.chains["issuing"][0])
    holder_as_ca = Forger(genuine.key, genuine.certificate)
    before = certificate_count(live)
    assert not _renews(live, namesake.copy(genuine.certificate))
    assert not _renews(live, Holder(namesake.key, namesake.certificate))
    assert not _renews(live, holder_as_ca.copy(genuine.certificate))
    assert certificate_count(live) == before
    assert _renews(live, genuine)


# -- ambiguous HTTP --------------------------------------------------------------------------------


def _exchange(live: Live, raw: bytes) -> int:
    """Send octets to the status listener and return the status of the answer."""
    with socket.create_connection(("127.0.0.1", live.port("status")), timeout=30) as plain:
        plain.sendall(raw)
        response = HTTPResponse(plain)
        response.begin()
        return response.status


@pytest.mark.row("INC-22", "A-14")
@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Content-Length: 4", "Content-Length: 5"],
        ["Content-Length: +4"],
        ["Content-Length: 4 4"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: xchunked"],
        ["X-Null: a\0b"],
        ["X-Space : a"],
        ["X-Folded: a", " b"],
        ["X-Long: " + "a" * 9000],
        ["Host: localhost"],
    ],
)
def test_a_request_that_can_be_read_two_ways_is_refused(lines: list[str], shared: Live) -> None:
    head = "\r\n".join(["POST /ocsp HTTP/1.1", "Host: localhost", *lines, "", ""])
    assert _exchange(shared, head.encode("latin-1") + b"0\r\n\r\n") == 400


@pytest.mark.row("INC-22")
def test_the_strict_parser_in_c_is_the_one_that_runs() -> None:
    # The one in Python is where nearly all of aiohttp's smuggling bugs were.
    assert aiohttp.http_parser.HttpRequestParser is not aiohttp.http_parser.HttpRequestParserPy


# -- registrations end -----------------------------------------------------------------------------


@pytest.mark.row("INC-3")
def test_a_certificate_does_not_renew_past_the_end_of_its_registration(live: Live) -> None:
    until = live.clock.now() + timedelta(days=2)
    holder = live.enroll(live.invite("device", renew_until=until))
    assert _renews(live, holder)
    live.clock.advance(timedelta(days=3))
    before = certificate_count(live)
    assert not any(_renews(live, holder) for _ in range(5))
    assert certificate_count(live) == before


# -- revocation hits what it names -----------------------------------------------------------------


@pytest.mark.row("INC-10")
def test_a_replacement_revokes_the_owners_certificate_and_no_other(live: Live) -> None:
    mine, others = live.invite("device", device_id="mine"), live.invite("device", device_id="other")
    live.enroll(mine)
    live.enroll(others)
    invitation = live.core.invitations.get(mine.invitation.number)
    credential = ConfirmedPIN(invitation.number, invitation.pin_generation)
    entitlement = live.core.authenticator.replacement(credential)
    live.core.ra.enroll(EnrollmentRequest(entitlement, read_csr(csr()), Via.WEB, ORIGIN))
    assert [record.state for record in issued(live, mine)] == ["valid", "revoked"]
    assert [record.state for record in issued(live, others)] == ["valid"]


@pytest.mark.row("INC-33", "INC-30")
def test_revocation_says_which_certificate_it_hit_and_crl_and_ocsp_agree(live: Live) -> None:
    one = live.enroll(live.invite("device", device_id="one"), subject="one").certificate
    two = live.enroll(live.invite("device", device_id="two"), subject="two").certificate
    command = ["--config", str(live.directory / "estserver.toml"), "certificates", "revoke"]
    serial = f"{one.serial_number:x}"
    hold = CliRunner().invoke(main, [*command, serial, "--reason", "certificateHold"])
    assert (hold.exit_code, "`hold = true` under [revocation]" in hold.output) == (1, True)
    done = CliRunner().invoke(main, [*command, serial, "--reason", "superseded"])
    assert (done.exit_code, serial in done.output) == (0, True)
    live.core.status.publish_due()
    crl = x509.load_der_x509_crl(live.core.status.crl("issuing").der)
    assert [entry.serial_number for entry in crl] == [one.serial_number]
    states = []
    for certificate in (one, two):
        issuer = live.core.chains["issuing"][0]
        asked = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA1())
        question = asked.build().public_bytes(Encoding.DER)
        answer = ocsp.load_der_ocsp_response(live.core.status.answer(question).der)
        states.append(answer.certificate_status)
    assert states == [ocsp.OCSPCertStatus.REVOKED, ocsp.OCSPCertStatus.GOOD]


# -- whoever cannot be judged gets nothing ---------------------------------------------------------


@pytest.mark.row("INC-7")
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("names", ["no kind of name"]),
        ("names", {"dns": 1}),
        ("doors", "sideways"),
        ("language", "tlh"),
        ("created_at", 10**18),
    ],
)
def test_an_authorizer_that_fails_issues_nothing(column: str, value: object, live: Live) -> None:
    handover = live.invite("device", units=9)
    holder = live.enroll(handover)
    before = certificate_count(live)
    broken = sa.update(invitations).values({column: value})
    live.core.store.write(lambda tx: tx.change(broken))
    assert post(live, csr(), by=handover).status >= 400
    assert not _renews(live, holder)
    assert certificate_count(live) == before
