"""What EST issues, certificate by certificate, against RFC 5280 (sheet L)."""

import base64
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from tests.live import Key, Live, new_key
from tests.protocols.est_wire import csr, post


def issue(live: Live, profile: str = "device", **fields: object) -> x509.Certificate:
    (certificate,) = post(live, csr(), by=live.invite(profile, **fields)).certificates()
    return certificate


@pytest.fixture(scope="module")
def device(shared: Live) -> x509.Certificate:
    return issue(shared, names=("dns:p17.example.ac.jp", "ip:192.0.2.17", "ip:2001:db8::17"))


@pytest.mark.row("EST-178")
def test_serials_are_positive_long_and_unique(live: Live) -> None:
    handover = live.invite("device", units=40)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(live, csr(), by=handover), range(40)))
    serials = {answer.certificates()[0].serial_number for answer in answers}
    assert len(serials) == 40
    assert all(0 < serial.bit_length() <= 159 for serial in serials)
    assert max(serial.bit_length() for serial in serials) > 150


@pytest.mark.row("EST-179")
def test_validity_is_in_the_right_time_types_and_within_the_issuers(live: Live) -> None:
    issuer = live.core.chains["issuing"][0]
    certificate = issue(live)
    now = live.clock.now()
    assert timedelta(0) <= now - certificate.not_valid_before_utc < timedelta(minutes=6)
    length = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert length == timedelta(days=365) - timedelta(seconds=1)
    # Near the issuer's end its certificates end with it.
    live.clock.advance(issuer.not_valid_after_utc - now - timedelta(days=30))
    assert issue(live, device_id="late").not_valid_after_utc == issuer.not_valid_after_utc


@pytest.mark.row("EST-179")
def test_nothing_outlives_its_issuer_and_times_are_typed_by_their_year(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live('\n[profiles.device]\nvalidity = "36500d"\n')
    limit = live.core.chains["issuing"][0].not_valid_after_utc
    certificate = issue(live)
    assert certificate.not_valid_after_utc == limit
    parsed = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
    validity = parsed["tbs_certificate"]["validity"]
    turn = datetime(2050, 1, 1, tzinfo=UTC)
    for name, moment in (
        ("not_before", certificate.not_valid_before_utc),
        ("not_after", certificate.not_valid_after_utc),
    ):
        expected = "general_time" if moment >= turn else "utc_time"
        assert validity[name].name == expected
        assert validity[name].chosen.contents.endswith(b"Z")


@pytest.mark.row("EST-180", "EST-181", "EST-184")
def test_issuer_subject_and_key_identifiers(shared: Live, device: x509.Certificate) -> None:
    issuer = shared.core.chains["issuing"][0]
    assert device.issuer.public_bytes() == issuer.subject.public_bytes()
    parsed = asn1_x509.Certificate.load(device.public_bytes(Encoding.DER))
    for rdn in parsed["tbs_certificate"]["subject"].chosen:
        for pair in rdn:
            assert pair["value"].name in {"utf8_string", "printable_string"}
    authority = device.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert authority.value.key_identifier == key_id
    assert not authority.critical
    own = device.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert own.value == x509.SubjectKeyIdentifier.from_public_key(device.public_key())
    constraints = device.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not constraints.value.ca


@pytest.mark.row("EST-182")
def test_key_usage_fits_the_key(make_live: Callable[[str], Live]) -> None:
    live = make_live('\n[profiles.device]\nkeys = ["ec-p256", "rsa-2048", "ed25519"]\n')
    keys: dict[str, Key | ed25519.Ed25519PrivateKey] = {
        "ec": new_key(),
        "rsa": rsa.generate_private_key(65537, 2048),
        "ed": ed25519.Ed25519PrivateKey.generate(),
    }
    for name, key in keys.items():
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        signed = request.sign(key, None if name == "ed" else hashes.SHA256())
        body = base64.b64encode(signed.public_bytes(Encoding.DER))
        (certificate,) = post(live, body, by=live.invite("device")).certificates()
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.digital_signature
        assert usage.value.key_encipherment == (name == "rsa")
        assert not usage.value.key_cert_sign
        assert not usage.value.crl_sign


@pytest.mark.row("EST-183")
def test_alternative_names_are_encoded_by_the_rules(device: x509.Certificate) -> None:
    parsed = asn1_x509.Certificate.load(device.public_bytes(Encoding.DER))
    names = {(name.name, name.chosen.contents) for name in parsed.subject_alt_name_value}
    assert names == {
        ("dns_name", b"p17.example.ac.jp"),
        ("ip_address", bytes([192, 0, 2, 17])),
        ("ip_address", bytes.fromhex("20010db8" + "00" * 11 + "17")),
    }


@pytest.mark.row("EST-183", "EST-092")
def test_a_host_name_in_japanese_is_certified_as_its_a_label(live: Live) -> None:
    certificate = issue(live, "server", names=("dns:大学.example.jp",))
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["xn--pss25c.example.jp"]


@pytest.mark.row("EST-185")
def test_purposes_are_the_profiles_and_status_urls_answer(
    shared: Live, device: x509.Certificate
) -> None:
    purposes = device.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    base = shared.url("status")
    access = device.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    urls = {one.access_method: one.access_location.value for one in access}
    authority = urls[AuthorityInformationAccessOID.CA_ISSUERS].removeprefix(base)
    answer = shared.request("GET", authority, listener="status")
    issuer = shared.core.chains["issuing"][0]
    assert issuer.public_bytes(Encoding.DER) in answer.body
    points = device.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert points[0].full_name is not None
    path = points[0].full_name[0].value.removeprefix(base)
    crl = x509.load_der_x509_crl(shared.request("GET", path, listener="status").body)
    assert crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # ours is one that signs
    assert urls[AuthorityInformationAccessOID.OCSP].startswith(base)


@pytest.mark.row("EST-185")
def test_ocsp_says_good_as_soon_as_the_client_has_the_certificate(live: Live) -> None:
    certificate = issue(live)
    assert live.said_by_ocsp(certificate) is ocsp.OCSPCertStatus.GOOD


@pytest.mark.row("EST-187")
def test_inner_and_outer_algorithm_are_the_same(device: x509.Certificate) -> None:
    parsed = asn1_x509.Certificate.load(device.public_bytes(Encoding.DER))
    inner, outer = parsed["tbs_certificate"]["signature"], parsed["signature_algorithm"]
    assert inner.dump() == outer.dump()
    if outer.signature_algo == "ecdsa":
        assert outer["parameters"].native is None
        assert len(outer.contents) == 2 + 8
    assert isinstance(device.public_key(), ec.EllipticCurvePublicKey)


@pytest.mark.row("EST-178", "EST-179", "EST-180", "EST-181", "EST-182", "EST-183", "EST-184")
@pytest.mark.parametrize("profile", ["device", "server"])
def test_pkilint_finds_nothing(
    make_live: Callable[[str], Live], tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The URLs of a test instance are on localhost, which pkilint does not take for a host name.
    monkeypatch.setenv("ESTSERVER_LISTENERS__STATUS__URL", "http://pki.example.ac.jp")
    path = tmp_path / "certificate.pem"
    path.write_bytes(issue(make_live(""), profile).public_bytes(Encoding.PEM))
    done = subprocess.run(
        [sys.executable, "-m", "pkilint.bin.lint_pkix_cert", "lint", "-s", "NOTICE", str(path)],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
