"""ACME finalize: the CSR must be of the order, and one certificate comes of it."""

from base64 import urlsafe_b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from estserver import failpoints
from tests.invariants import violations
from tests.live import Live, make_csr, new_key
from tests.protocols.acme.wire import NAMES, Client, Server, b64, csr_for, eab, registered


@pytest.fixture(scope="module")
def client(shared: Live) -> Client:
    return registered(shared, *NAMES, units=999)


@pytest.fixture(scope="module")
def either(server: Server) -> Client:
    return registered(server, *NAMES, units=999)


@pytest.mark.row("ACME-138", "ACME-146")
def test_a_finished_order_is_not_ready_again(either: Client) -> None:
    reply = either.ready(NAMES[0])
    done = either.finalize(reply.json, csr_for(NAMES[0]))
    assert done.status == 200
    assert done.json["status"] in {"valid", "processing"} if either.oracle else {"valid"}
    assert done.header("Location") == reply.header("Location")
    body = either.settled(reply.header("Location"))
    assert body["status"] == "valid"
    either.finalize(reply.json, csr_for(NAMES[0])).refused(403, "orderNotReady")
    assert either.get(done.header("Location")).json == body


def _subject(*pairs: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


_DNS = tuple(x509.DNSName(name) for name in NAMES)
_A_KEY = new_key()


_RSA_1024 = rsa.generate_private_key(65537, 1024)


def _sha1() -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName(_DNS), critical=False)
    der = builder.sign(_A_KEY, hashes.SHA256()).public_bytes(Encoding.DER)
    # ecdsa-with-SHA256 becomes ecdsa-with-SHA1 in a form that is as long.
    return der.replace(bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d040301"))


def _flipped(der: bytes) -> bytes:
    return der[:-1] + bytes([der[-1] ^ 1])


BAD_CSRS: dict[str, Callable[[], bytes]] = {
    "a name less": lambda: csr_for(NAMES[0]),
    "a name more": lambda: csr_for(*NAMES, "c.example.org"),
    "another name": lambda: csr_for(NAMES[0], "c.example.org"),
    "another CN": lambda: csr_for(*NAMES, subject="c.example.org"),
    "no names": lambda: make_csr(_A_KEY),
    "a mailbox": lambda: make_csr(_A_KEY, names=(*_DNS, x509.RFC822Name("a@example.org"))),
    "a URI": lambda: make_csr(
        _A_KEY, names=(*_DNS, x509.UniformResourceIdentifier("https://a.example.org/"))
    ),
    "an address": lambda: csr_for(*NAMES, "ip:192.0.2.1"),
    "a directory name": lambda: make_csr(
        _A_KEY, names=(*_DNS, x509.DirectoryName(_subject((NameOID.COMMON_NAME, "a"))))
    ),
    "a registered id": lambda: make_csr(
        _A_KEY, names=(*_DNS, x509.RegisteredID(x509.ObjectIdentifier("1.2.3")))
    ),
    "another name form": lambda: make_csr(
        _A_KEY,
        names=(
            *_DNS,
            x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x01a"),
        ),
    ),
    "a wildcard": lambda: csr_for(*NAMES, "*.w.example.org"),
    "RSA 1024": lambda: csr_for(*NAMES, key=_RSA_1024),
    "P-192": lambda: csr_for(*NAMES, key=ec.generate_private_key(ec.SECP256K1())),
    "SHA-1": _sha1,
    "a broken signature": lambda: _flipped(csr_for(*NAMES)),
    "trailing bytes": lambda: csr_for(*NAMES) + b"\0",
    "nonsense": lambda: b"\x30\x03\x02\x01\x00",
}


@pytest.mark.row("ACME-139", "ACME-141", "ACME-144")
def test_a_csr_that_is_not_of_the_order_leaves_it_ready(either: Client) -> None:
    reply = either.ready(*NAMES)
    for name, make in BAD_CSRS.items():
        problem = either.finalize(reply.json, make()).refused(400, "badCSR")
        assert problem["detail"], name
    assert either.get(reply.header("Location")).json["status"] == "ready"
    assert either.finished(reply, csr_for(*NAMES))["status"] == "valid"


@pytest.mark.row("ACME-144", "ACME-145")
def test_what_is_no_base64url_of_der_is_malformed(either: Client) -> None:
    reply = either.ready(NAMES[0])
    order = reply.json
    der = csr_for(NAMES[0])
    pem = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    for value in (pem.decode(), b64(pem), b64(der) + "=", 7, None, "", "!"):
        either.post(order["finalize"], {"csr": value}).refused(400, "malformed")
    either.post(order["finalize"], {}).refused(400, "malformed")
    big = make_csr(
        _A_KEY, names=_DNS, attributes=((x509.ObjectIdentifier("1.2.3"), b"x" * 20_000),)
    )
    either.finalize(order, big).refused(400, "badCSR")
    assert either.finished(reply, der)["status"] == "valid"


@pytest.mark.row("ACME-145")
def test_padding_of_a_csr_is_tolerated_where_the_settings_say_so(
    make_live: Callable[[str], Live],
) -> None:
    client = registered(make_live("[acme]\ntolerate_padding = true\n"), *NAMES)
    order = client.order(NAMES[0]).json
    csr = next(der for der in iter(lambda: csr_for(NAMES[0]), None) if len(der) % 3)
    client.post(order["finalize"], {"csr": b64(csr) + "!"}).refused(400, "malformed")
    padded = urlsafe_b64encode(csr).decode()
    assert padded.endswith("=")
    assert client.post(order["finalize"], {"csr": padded}).json["status"] == "valid"


@pytest.mark.row("ACME-140")
@pytest.mark.parametrize(
    "make",
    [
        lambda: csr_for(*NAMES),
        lambda: csr_for(*reversed(NAMES)),
        lambda: csr_for(*NAMES, subject=NAMES[1]),
        lambda: csr_for(*(name.upper() for name in NAMES), subject="A.Example.org"),
        lambda: csr_for(NAMES[1], subject=NAMES[0]),
    ],
    ids=["SAN", "turned round", "CN too", "mixed case", "one in the CN"],
)
def test_names_may_stand_in_the_cn_or_the_san_in_any_order(
    either: Client, make: Callable[[], bytes]
) -> None:
    done = either.finished(either.ready(*NAMES), make())
    leaf = x509.load_pem_x509_certificates(either.get(done["certificate"]).answer.body)[0]
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sorted(san.get_values_for_type(x509.DNSName)) == sorted(NAMES)


@pytest.mark.row("ACME-140")
def test_one_name_may_stand_in_the_cn_alone(either: Client) -> None:
    done = either.finished(either.ready(NAMES[0]), make_csr(_A_KEY, subject=NAMES[0]))
    leaf = x509.load_pem_x509_certificates(either.get(done["certificate"]).answer.body)[0]
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == [NAMES[0]]


@pytest.mark.row("ACME-142")
def test_nothing_but_the_key_of_a_csr_reaches_the_certificate(client: Client) -> None:
    subject = _subject(
        (NameOID.ORGANIZATION_NAME, "Evil"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "Evil"),
        (NameOID.COMMON_NAME, NAMES[0]),
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for value, critical in (
        (x509.SubjectAlternativeName([x509.DNSName(NAMES[0])]), False),
        (x509.BasicConstraints(ca=True, path_length=9), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), True),
        (x509.TLSFeature([x509.TLSFeatureType.status_request]), False),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
    ):
        builder = builder.add_extension(value, critical=critical)
    der = builder.sign(new_key(), hashes.SHA256()).public_bytes(Encoding.DER)
    done = client.finalize(client.order(NAMES[0]).json, der)
    leaf = x509.load_pem_x509_certificates(client.get(done.json["certificate"]).answer.body)[0]
    assert leaf.subject.rfc4514_string() == f"CN={NAMES[0]}"
    plain = client.issue(NAMES[0]).leaf
    assert {one.oid for one in leaf.extensions} == {one.oid for one in plain.extensions}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.row("ACME-143")
def test_the_key_of_an_account_is_never_certified(server: Server, either: Client) -> None:
    other = registered(server, "o.example.org")
    order = either.ready(NAMES[0]).json
    for key in (either.key, other.key):
        either.finalize(order, csr_for(NAMES[0], key=key)).refused(400, "badCSR")
    assert either.finalize(order, csr_for(NAMES[0])).status == 200


# -- one certificate ------------------------------------------------------------------------------


@pytest.mark.row("ACME-147")
def test_twenty_keys_at_once_get_one_certificate(shared: Live) -> None:
    client = registered(shared, *NAMES, units=5)
    reply = client.order(*NAMES)
    csrs = [csr_for(*NAMES) for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda csr: client.finalize(reply.json, csr), csrs))
    assert {one.status for one in replies} <= {200, 403}
    assert any(one.status == 200 for one in replies)
    assert client.get(reply.header("Location")).json["status"] == "valid"
    number = client.invitation
    assert len(shared.core.ra.of_invitation(number)) == 1
    assert shared.core.invitations.get(number).units_used == 1


@pytest.mark.row("ACME-147", "ACME-148", "ACME-185")
@pytest.mark.parametrize("name", ["parsed", "planned", "intent-committed", "signed", "stored"])
def test_a_break_at_any_point_of_an_issuance_leaves_one_certificate(live: Live, name: str) -> None:
    client = registered(live, *NAMES)
    reply = client.order(*NAMES)
    key = new_key()
    failpoints.arm(f"{name}:1:raise")
    try:
        broken = client.finalize(reply.json, csr_for(*NAMES, key=key))
    finally:
        failpoints.disarm()
    assert broken.refused(500, "serverInternal")
    live.restart()
    order = client.get(reply.header("Location")).json
    if order["status"] == "ready":
        order = client.finalize(order, csr_for(*NAMES, key=key)).json
    assert order["status"] == "valid"
    body = client.get(order["certificate"]).answer.body
    assert x509.load_pem_x509_certificates(body)[0].public_key() == key.public_key()
    leaf = x509.load_pem_x509_certificates(body)[0].public_bytes(Encoding.DER)
    assert violations(live.core, [leaf]) == []
    number = client.invitation
    issued = live.core.ra.of_invitation(number)
    assert len([record for _, record in issued if record is not None]) == 1
    assert live.core.invitations.get(number).units_used == 1


@pytest.mark.row("ACME-185")
def test_a_restart_between_any_two_steps_is_not_noticed(live: Live) -> None:
    client = Client(live)
    handover = live.invite("server", names=tuple(f"dns:{name}" for name in NAMES))
    binding = client.binding(*eab(live, handover))
    live.restart()
    assert client.register(externalAccountBinding=binding).status == 201
    live.restart()
    order = client.order(*NAMES).json
    live.restart()
    done = client.finalize(order, csr_for(*NAMES)).json
    live.restart()
    assert client.get(done["certificate"]).status == 200
