"""tls-alpn-01 by real handshakes (ACME-160 to 163, 167; RFC 8737, RFC 8738)."""

import hashlib
import ipaddress
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from estserver.protocols.acme.challenge import ChallengeFailed
from estserver.protocols.acme.tlsalpn01 import check_certificate
from tests.protocols.acme.neighbourhood import (
    HOST,
    KEY_AUTHORIZATION,
    Neighbourhood,
    challenge,
)

NAME = "www.example.test"
DIGEST = hashlib.sha256(KEY_AUTHORIZATION.encode()).digest()
ACME_IDENTIFIER = "1.3.6.1.5.5.7.1.31"


class Context(ssl.SSLContext):
    """A server's context that remembers which names were asked for."""

    names: list[str | None]


def note_name(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
    del connection
    assert isinstance(context, Context)
    context.names.append(name)


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate to be shown; the defaults are what RFC 8737 §3 wants."""

    names: tuple[x509.GeneralName, ...] | None = (x509.DNSName(NAME),)
    value: bytes | None = b"\x04\x20" + DIGEST
    critical: bool = True
    oid: str = ACME_IDENTIFIER
    common_name: str = "ACME"
    issuer: str | None = None
    foreign_key: bool = False
    extra: x509.ExtensionType | None = None

    def context(self, folder: Path, *, protocols: tuple[str, ...] = ("acme-tls/1",)) -> Context:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = self.sign(key).public_bytes(Encoding.PEM) + key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        path = folder / "challenge.pem"
        path.write_bytes(pem)
        context = Context(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        context.names = []
        context.sni_callback = note_name
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    def sign(self, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(distinguished(self.common_name))
            .issuer_name(distinguished(self.issuer or self.common_name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )
        if self.names is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(self.names), critical=False)
        if self.value is not None:
            proof = x509.UnrecognizedExtension(x509.ObjectIdentifier(self.oid), self.value)
            builder = builder.add_extension(proof, critical=self.critical)
        if self.extra is not None:
            builder = builder.add_extension(self.extra, critical=False)
        signer = ec.generate_private_key(ec.SECP256R1()) if self.foreign_key else key
        return builder.sign(signer, hashes.SHA256())


def distinguished(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@pytest.fixture
async def around() -> AsyncIterator[Neighbourhood]:
    async with Neighbourhood() as neighbourhood:
        neighbourhood.name()
        yield neighbourhood


async def show(around: Neighbourhood, folder: Path, shown: Shown) -> str:
    await around.tls(shown.context(folder))
    return await around.problem(challenge("tls-alpn-01"))


@pytest.mark.row("ACME-160")
async def test_the_probe_offers_one_protocol_asks_for_the_name_and_leaves(
    around: Neighbourhood, tmp_path: Path
) -> None:
    context = Shown().context(tmp_path)
    host = await around.tls(context)
    await around.validator().validate(challenge("tls-alpn-01"))
    assert context.names == [NAME]
    await host.ended.wait()
    assert host.after_handshake == [b""]
    [connection] = host.tls
    assert connection.selected_alpn_protocol() == "acme-tls/1"
    assert connection.version() in {"TLSv1.2", "TLSv1.3"}


@pytest.mark.row("ACME-160")
async def test_the_client_hello_carries_exactly_one_protocol(around: Neighbourhood) -> None:
    hello = await around.first_octets(around.tls_port)
    assert await around.problem(challenge("tls-alpn-01")) in {"tls", "connection"}
    octets = await hello
    # ALPN: extension 16, its length, the list's length, one name of 10 octets (RFC 7301 §3.1).
    assert b"\x00\x10\x00\x0d\x00\x0b\x0aacme-tls/1" in octets
    assert b"http/1.1" not in octets
    assert NAME.encode() in octets


@pytest.mark.row("ACME-160")
async def test_tls_1_2_is_spoken(around: Neighbourhood, tmp_path: Path) -> None:
    context = Shown().context(tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    await around.tls(context)
    assert await around.problem(challenge("tls-alpn-01")) == "valid"


@pytest.mark.row("ACME-160")
async def test_less_than_tls_1_2_is_not_spoken(around: Neighbourhood, tmp_path: Path) -> None:
    context = Shown().context(tmp_path)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    await around.tls(context)
    assert await around.problem(challenge("tls-alpn-01")) == "tls"


@pytest.mark.row("ACME-161")
@pytest.mark.parametrize("protocols", [(), ("h2", "http/1.1")])
async def test_a_host_that_does_not_choose_the_protocol_proves_nothing(
    around: Neighbourhood, tmp_path: Path, protocols: tuple[str, ...]
) -> None:
    await around.tls(Shown().context(tmp_path, protocols=protocols))
    assert await around.problem(challenge("tls-alpn-01")) == "tls"


@pytest.mark.row("ACME-161")
@pytest.mark.parametrize(
    "shown",
    [
        Shown(names=(x509.DNSName(NAME), x509.DNSName("other.test"))),
        Shown(names=(x509.DNSName(NAME), x509.RFC822Name("a@example.test"))),
        Shown(names=(x509.DNSName(NAME), x509.DNSName(NAME))),
        Shown(names=(x509.DNSName("other.test"),)),
        Shown(names=(x509.DNSName("*.example.test"),)),
        Shown(names=(x509.UniformResourceIdentifier(f"https://{NAME}"),)),
        Shown(names=()),
        Shown(names=None, common_name=NAME),
    ],
)
async def test_a_certificate_with_other_names_proves_nothing(
    around: Neighbourhood, tmp_path: Path, shown: Shown
) -> None:
    assert await show(around, tmp_path, shown) == "incorrectResponse"


@pytest.mark.row("ACME-161")
async def test_names_compare_without_regard_to_case(around: Neighbourhood, tmp_path: Path) -> None:
    assert await show(around, tmp_path, Shown(names=(x509.DNSName(NAME.upper()),))) == "valid"


@pytest.mark.row("ACME-162")
@pytest.mark.parametrize(
    "shown",
    [
        Shown(critical=False),
        Shown(value=None),
        Shown(oid="1.3.6.1.5.5.7.1.30.1"),
        Shown(value=b"\x04\x20" + hashlib.sha256(b"other").digest()),
        Shown(value=DIGEST),
        Shown(value=b"\x04\x1f" + DIGEST[:-1]),
        Shown(value=b"\x04\x21" + DIGEST + b"\x00"),
        Shown(value=b"\x04\x20" + DIGEST + b"\x00"),
        Shown(value=b"\x04\x81\x20" + DIGEST),
        Shown(value=b"\x24\x22\x04\x20" + DIGEST),
        Shown(value=b"\x0c\x20" + DIGEST),
        Shown(value=b""),
    ],
)
async def test_a_certificate_with_another_proof_proves_nothing(
    around: Neighbourhood, tmp_path: Path, shown: Shown
) -> None:
    assert await show(around, tmp_path, shown) == "incorrectResponse"


@pytest.mark.row("ACME-162")
async def test_further_extensions_do_not_matter(around: Neighbourhood, tmp_path: Path) -> None:
    shown = Shown(extra=x509.BasicConstraints(ca=False, path_length=None))
    assert await show(around, tmp_path, shown) == "valid"


@pytest.mark.row("ACME-163")
@pytest.mark.parametrize("shown", [Shown(foreign_key=True), Shown(issuer="Some CA")])
async def test_a_certificate_that_is_not_self_signed_proves_nothing(
    around: Neighbourhood, tmp_path: Path, shown: Shown
) -> None:
    assert await show(around, tmp_path, shown) == "incorrectResponse"


@pytest.mark.row("ACME-162")
def test_a_certificate_with_the_proof_twice_proves_nothing() -> None:
    # The builder refuses to write an extension twice: so one of the same length is renamed in the
    # DER, which is then signed again.
    key = ec.generate_private_key(ec.SECP256R1())
    twin = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.99"), b"\x05\x00")
    once = Shown(extra=twin).sign(key).tbs_certificate_bytes
    twice = once.replace(
        bytes.fromhex("06082b06010505070163"), bytes.fromhex("06082b0601050507011f")
    )
    assert twice != once
    check_certificate(
        signed(key, Shown().sign(key).tbs_certificate_bytes), challenge("tls-alpn-01")
    )
    with pytest.raises(ChallengeFailed) as refusal:
        check_certificate(signed(key, twice), challenge("tls-alpn-01"))
    assert refusal.value.problem == "incorrectResponse"


def signed(key: ec.EllipticCurvePrivateKey, tbs: bytes) -> bytes:
    """Put a signature (ecdsa-with-SHA256) to a TBSCertificate."""
    signature = b"\x00" + key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    inner = tbs + bytes.fromhex("300a06082a8648ce3d040302")
    inner += bytes([0x03, len(signature)]) + signature
    return b"\x30\x82" + len(inner).to_bytes(2, "big") + inner


@pytest.mark.row("ACME-167")
@pytest.mark.parametrize(
    ("address", "reverse"),
    [(HOST, "21.0.0.127.in-addr.arpa"), ("::1", "1." + "0." * 31 + "ip6.arpa")],
)
async def test_an_address_is_asked_for_by_its_reverse_name(
    around: Neighbourhood, tmp_path: Path, address: str, reverse: str
) -> None:
    names = (x509.IPAddress(ipaddress.ip_address(address)),)
    context = Shown(names=names).context(tmp_path)
    await around.tls(context, address)
    await around.validator().validate(challenge("tls-alpn-01", address, identifier_type="ip"))
    assert context.names == [reverse]
    assert around.dns.questions == []


@pytest.mark.row("ACME-167")
@pytest.mark.parametrize(
    "names",
    [
        (x509.DNSName(HOST),),
        (x509.DNSName("21.0.0.127.in-addr.arpa"),),
        (x509.IPAddress(ipaddress.ip_address("127.0.0.22")),),
        (x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName(NAME)),
    ],
)
async def test_an_address_is_proven_by_its_ip_address_name_alone(
    around: Neighbourhood, tmp_path: Path, names: tuple[x509.GeneralName, ...]
) -> None:
    await around.tls(Shown(names=names).context(tmp_path))
    asked = challenge("tls-alpn-01", HOST, identifier_type="ip")
    assert await around.problem(asked) == "incorrectResponse"


@pytest.mark.row("ACME-134")
async def test_a_dead_ipv6_address_falls_back_to_ipv4(
    around: Neighbourhood, tmp_path: Path
) -> None:
    around.name(NAME, "::1")
    assert await show(around, tmp_path, Shown()) == "valid"


@pytest.mark.row("ACME-135")
async def test_failures_below_the_certificate_have_their_types(around: Neighbourhood) -> None:
    assert await around.problem(challenge("tls-alpn-01", "nowhere.test")) == "dns"
    assert await around.problem(challenge("tls-alpn-01")) == "connection"
    await around.tls(None)
    assert await around.problem(challenge("tls-alpn-01")) == "tls"


@pytest.mark.row("ACME-135")
async def test_a_handshake_that_never_ends_runs_into_the_deadline(around: Neighbourhood) -> None:
    await around.stubborn(HOST, port=around.tls_port)
    asked = challenge("tls-alpn-01", HOST, identifier_type="ip")
    assert await around.problem(asked, seconds=1) == "connection"


async def test_tls_alpn_01_proves_no_wildcard(around: Neighbourhood, tmp_path: Path) -> None:
    host = await around.tls(Shown().context(tmp_path))
    assert await around.problem(challenge("tls-alpn-01", wildcard=True)) == "unauthorized"
    assert host.connections == 0
