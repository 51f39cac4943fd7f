"""Certificates handed out, revoked and renewed: RFC 8555 §7.4.2, §7.6, RFC 9773."""

import re
from datetime import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509 import ocsp

from estserver.model import CertificateState, RevocationReason
from estserver.renewal_information import read_certificate_id
from tests.live import Live, new_key
from tests.protocols.acme.wire import NAMES, Certified, Client, Server, b64, csr_for, registered


@pytest.fixture(scope="module")
def client(shared: Live) -> Client:
    return registered(shared, *NAMES, units=999)


@pytest.fixture(scope="module")
def either(server: Server) -> Client:
    return registered(server, *NAMES, units=999)


# -- fetching -------------------------------------------------------------------------------------


@pytest.mark.row("ACME-149", "ACME-147")
def test_a_certificate_comes_as_a_strict_pem_chain_leaf_first(
    server: Server, either: Client
) -> None:
    done = either.issue(*NAMES)
    reply = either.get(done.order["certificate"])
    media_type, _, parameters = reply.header("Content-Type").partition(";")
    assert media_type == "application/pem-certificate-chain"
    assert either.oracle or not parameters
    block = rb"-----BEGIN CERTIFICATE-----\n(?:[A-Za-z0-9+/=]{1,64}\n)+-----END CERTIFICATE-----\n"
    assert re.fullmatch(rb"(?:" + block + rb")+", reply.answer.body)
    leaf, *above = x509.load_pem_x509_certificates(reply.answer.body)
    assert leaf.public_key() == done.key.public_key()
    for lower, upper in zip((leaf, *above), above, strict=False):
        lower.verify_directly_issued_by(upper)
    if isinstance(server, Live):
        assert [c for c in server.core.chains["issuing"] if c.issuer != c.subject] == above
    assert either.get(done.order["certificate"]).answer.body == reply.answer.body


@pytest.mark.row("ACME-150")
def test_accept_is_honoured(client: Client) -> None:
    done = client.issue(*NAMES)
    pem, der, p7 = (
        "application/pem-certificate-chain",
        "application/pkix-cert",
        "application/pkcs7-mime",
    )
    for accept, expected in (
        ("", pem),
        ("*/*", pem),
        ("text/html", pem),
        (der, der),
        (p7, p7),
        (f"{der};q=0.5, {pem};q=0.9", pem),
        (f"{der};q=0.9, {pem};q=0.5", der),
        (f"{pem};q=0, {der}", der),
        (f"{der};q=x", pem),
    ):
        reply = client.get(done.order["certificate"], accept)
        assert reply.header("Content-Type") == expected, accept
        if expected == der:
            assert reply.answer.body == done.der
            assert reply.links("up")[0].endswith("/ca/issuing.cer")
        elif expected == p7:
            found = pkcs7.load_der_pkcs7_certificates(reply.answer.body)
            assert set(found) == set(done.chain)


# -- revoking -------------------------------------------------------------------------------------


def _revoke(client: Client, done: Certified, **fields: Any) -> Any:
    return client.post("revoke-cert", {"certificate": b64(done.der), **fields})


@pytest.mark.row("ACME-152", "ACME-156", "ACME-158")
def test_its_account_revokes_and_ocsp_knows_at_once(shared: Live, client: Client) -> None:
    for reason in ({}, {"reason": 0}):
        done = client.issue(*NAMES)
        assert shared.said_by_ocsp(done.leaf) is ocsp.OCSPCertStatus.GOOD
        reply = _revoke(client, done, **reason)
        assert (reply.status, reply.answer.body) == (200, b"")
        assert reply.header("Replay-Nonce")
        assert shared.said_by_ocsp(done.leaf) is ocsp.OCSPCertStatus.REVOKED
        assert shared.core.ra.find(done.leaf.serial_number).reason is RevocationReason.UNSPECIFIED
        _revoke(client, done).refused(400, "alreadyRevoked")
        shared.core.status.publish_due()
        answer = shared.request("GET", "/crl/issuing.crl", listener="status")
        crl = x509.load_der_x509_crl(answer.body)
        entry = crl.get_revoked_certificate_by_serial_number(done.leaf.serial_number)
        assert entry is not None
        assert not list(entry.extensions)


@pytest.mark.row("ACME-153")
def test_the_key_of_a_certificate_revokes_it(shared: Live) -> None:
    client = registered(shared, *NAMES)
    done = client.issue(*NAMES)
    client.post(client.kid or "", {"status": "deactivated"})
    owner = Client(shared, done.key)
    assert owner.post("revoke-cert", {"certificate": b64(done.der), "reason": 4}).status == 200
    assert shared.core.ra.find(done.leaf.serial_number).reason is RevocationReason.SUPERSEDED
    holder = shared.enroll(shared.invite("device"))
    der = holder.certificate.public_bytes(Encoding.DER)
    owner = Client(shared, holder.key)
    assert owner.post("revoke-cert", {"certificate": b64(der)}).status == 200


@pytest.mark.row("ACME-154", "ACME-155")
def test_an_account_with_all_the_names_revokes_and_one_without_does_not(
    shared: Live, client: Client
) -> None:
    done = client.issue(*NAMES)
    same = registered(shared, *NAMES, units=9)
    less = registered(shared, NAMES[0], units=9)
    stranger = registered(shared, "x.example.org")
    for other in (same, less, stranger):
        _revoke(other, done).refused(403, "unauthorized")
    less.order(NAMES[0])
    _revoke(less, done).refused(403, "unauthorized")
    Client(shared).post("revoke-cert", {"certificate": b64(done.der)}).refused(403, "unauthorized")
    assert shared.core.ra.find(done.leaf.serial_number).state is CertificateState.VALID
    same.order(*NAMES)
    assert _revoke(same, done).status == 200


@pytest.mark.row("ACME-157")
@pytest.mark.parametrize("reason", [7, 11, -1, "1", 2, 6, 8, 10, True, None, 1.5])
def test_other_reasons_are_refused_with_the_list_of_good_ones(
    server: Server, either: Client, reason: Any
) -> None:
    done = either.issue(*NAMES)
    problem = _revoke(either, done, reason=reason).refused(400, "badRevocationReason")
    assert either.oracle or "keyCompromise" in problem["detail"]
    if isinstance(server, Live):
        assert server.core.ra.find(done.leaf.serial_number).state is CertificateState.VALID


@pytest.mark.row("ACME-159")
def test_what_was_not_issued_here_is_not_revoked(server: Server, either: Client) -> None:
    done = either.issue(*NAMES)
    altered = done.der[:-1] + bytes([done.der[-1] ^ 1])
    for der in (altered, done.chain[-1].public_bytes(Encoding.DER) + b"\0", b"", b"\x30\x00"):
        either.post("revoke-cert", {"certificate": b64(der)}).refused(404, "malformed")
    pem = done.leaf.public_bytes(Encoding.PEM).decode()
    for value in (pem, b64(done.der) + "=", 7, None):
        either.post("revoke-cert", {"certificate": value}).refused(400, "malformed")
    either.post("revoke-cert", {}).refused(400, "malformed")
    if isinstance(server, Live):
        assert server.core.ra.find(done.leaf.serial_number).state is CertificateState.VALID


# -- renewal information --------------------------------------------------------------------------


def _id(certificate: x509.Certificate) -> str:
    extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    serial = certificate.serial_number
    octets = serial.to_bytes(serial.bit_length() // 8 + 1)
    return f"{b64(extension.value.key_identifier or b'')}.{b64(octets)}"


@pytest.mark.row("ACME-173")
def test_the_identifier_of_the_rfc_is_read() -> None:
    found = read_certificate_id("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")
    assert found.key_identifier.hex() == "69885b6b87464041e1b37b847ba0ae2cde01c8d4"
    assert found.serial == 0x0087654321
    assert str(found) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


@pytest.mark.row("ACME-172")
def test_renewal_is_suggested_for_the_last_third_of_a_life(client: Client) -> None:
    done = client.issue(*NAMES)
    reply = client.ask("GET", f"/acme/renewal-info/{_id(done.leaf)}")
    assert reply.status == 200
    window = reply.json["suggestedWindow"]
    start, end = (datetime.fromisoformat(window[name]) for name in ("start", "end"))
    life = done.leaf.not_valid_after_utc - done.leaf.not_valid_before_utc
    assert done.leaf.not_valid_after_utc - life / 2 < start < end < done.leaf.not_valid_after_utc
    assert int(reply.header("Retry-After")) >= 60
    assert "Replay-Nonce" not in reply.answer.headers


@pytest.mark.row("ACME-174")
def test_an_identifier_of_nothing_is_refused(client: Client) -> None:
    good = _id(client.issue(*NAMES).leaf)
    aki, serial = good.split(".")
    for bad in (f"{good}=", aki, f"{good}.x", f"{aki}.!", f".{serial}", f"{aki}.", f"{aki}.gA"):
        client.ask("GET", f"/acme/renewal-info/{bad}").refused(400, "malformed")
    for unknown in (f"{aki}.AQ", f"{b64(bytes(20))}.{serial}"):
        client.ask("GET", f"/acme/renewal-info/{unknown}").refused(404, "malformed")
    reply = client.post(f"renewal-info/{good}", None)
    reply.refused(405, "malformed")
    assert "GET" in reply.header("Allow")


@pytest.mark.row("ACME-175")
def test_a_revoked_certificate_is_to_be_renewed_at_once(make_live: Any) -> None:
    live = make_live('[acme]\nwebsite = "https://example.org/"\n')
    client = registered(live, *NAMES)
    done = client.issue(*NAMES)
    _revoke(client, done)
    body = client.ask("GET", f"/acme/renewal-info/{_id(done.leaf)}").json
    assert datetime.fromisoformat(body["suggestedWindow"]["end"]) <= live.clock.now()
    assert body["explanationURL"] == "https://example.org/"


@pytest.mark.row("ACME-176", "ACME-177")
def test_one_order_replaces_a_certificate(client: Client) -> None:
    replaced = _id(client.issue(*NAMES).leaf)
    reply = client.order(*NAMES, replaces=replaced)
    assert (reply.status, reply.json["replaces"]) == (201, replaced)
    assert client.get(reply.header("Location")).json["replaces"] == replaced
    again = client.order(*NAMES, replaces=replaced)
    again.refused(409, "alreadyReplaced")
    assert again.header("Location") == reply.header("Location")
    client.post(reply.json["authorizations"][0], {"status": "deactivated"})
    third = client.order(*NAMES, replaces=replaced)
    assert third.status == 201
    done = client.finalize(third.json, csr_for(*NAMES, key=new_key()))
    assert done.json["replaces"] == replaced
    client.order(*NAMES, replaces=replaced).refused(409, "alreadyReplaced")


@pytest.mark.row("ACME-178")
def test_only_ones_own_certificate_with_a_common_name_is_replaced(
    shared: Live, client: Client
) -> None:
    mine = _id(client.issue(NAMES[0]).leaf)
    stranger = registered(shared, *NAMES)
    stranger.order(*NAMES, replaces=mine).refused(403, "unauthorized")
    client.order(NAMES[1], replaces=mine).refused(400, "malformed")
    for bad in ("x", 7, "a.b.c", ""):
        client.order(*NAMES, replaces=bad).refused(400, "malformed")
    aki = mine.partition(".")[0]
    client.order(*NAMES, replaces=f"{aki}.AQ").refused(404, "malformed")
