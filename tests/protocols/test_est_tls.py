"""EST over TLS: versions, suites, and client certificates of every kind."""

import base64
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from estserver.model import RevocationReason
from tests.live import ORIGIN, Holder, Live, new_key
from tests.protocols.est_wire import Wire, csr, issued, post, profile, renewed, s_client, tls12


@pytest.mark.row("EST-016")
@pytest.mark.parametrize("option", ["-tls1", "-tls1_1"])
def test_older_versions_of_tls_are_not_spoken(shared: Live, option: str) -> None:
    done = s_client(shared, option, "-cipher", "ALL:@SECLEVEL=0")
    assert b"Cipher is (NONE)" in done.stdout
    assert b"New, TLSv1" not in done.stdout


@pytest.mark.row("EST-016")
@pytest.mark.parametrize("option", ["-tls1_2", "-tls1_3"])
def test_tls_1_2_and_1_3_are_spoken(shared: Live, option: str) -> None:
    assert b"New, TLSv1." in s_client(shared, option).stdout


@pytest.mark.row("EST-017", "EST-031", "EST-165")
@pytest.mark.parametrize(
    "options",
    [
        ("-cipher", "eNULL:@SECLEVEL=0"),
        ("-cipher", "aNULL:@SECLEVEL=0"),
        ("-cipher", "AES128-SHA:CAMELLIA128-SHA:@SECLEVEL=0"),
        ("-psk", "0123456789abcdef", "-cipher", "PSK:@SECLEVEL=0"),
    ],
)
def test_suites_without_encryption_or_identity_are_refused(
    shared: Live, options: tuple[str, ...]
) -> None:
    done = s_client(shared, "-tls1_2", *options)
    assert b"New, TLSv1." not in done.stdout
    assert b"Cipher is (NONE)" in done.stdout


@pytest.mark.row("EST-018")
def test_the_server_sends_its_chain_so_that_the_root_is_enough(shared: Live) -> None:
    done = s_client(
        shared, "-CAfile", str(shared.root), "-verify_return_error", "-verify_hostname", "localhost"
    )
    assert b"Verify return code: 0 (ok)" in done.stdout


@pytest.mark.row("EST-020")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_is_asked_for_and_optional(
    live: Live, version: ssl.TLSVersion
) -> None:
    holder = live.enroll(live.invite("device"))
    for shown in (None, holder):
        context = live.tls(shown, minimum_version=version, maximum_version=version)
        with Wire(live, context=context) as wire:
            assert wire.ask("GET", "cacerts").status == 200
            answer = wire.ask("POST", "simpleenroll", body=csr())
            assert answer.status == (401 if shown is None else 200)


@pytest.mark.row("EST-020")
def test_the_certificate_request_is_seen_by_openssl(shared: Live) -> None:
    done = s_client(shared, "-tls1_2", "-msg")
    assert b"CertificateRequest" in done.stdout


def foreign() -> ssl.SSLContext:
    authority = trustme.CA()
    leaf = authority.issue_cert("printer-17", common_name="printer-17")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    leaf.configure_cert(context)
    return context


def self_signed(live: Live) -> ssl.SSLContext:
    key = new_key()
    name = live.core.chains["issuing"][0].subject
    now = live.clock.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return live.tls(Holder(key, certificate))


@pytest.mark.row("EST-021", "EST-023")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("kind", ["foreign", "self-signed"])
def test_a_certificate_of_nobody_we_know_authenticates_nothing(
    shared: Live, kind: str, version: ssl.TLSVersion
) -> None:
    context = foreign() if kind == "foreign" else self_signed(shared)
    context.maximum_version = version

    def ask() -> None:
        with Wire(shared, context=context) as wire:
            wire.ask("POST", "simpleenroll", body=csr())

    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask()


@pytest.mark.row("EST-021", "EST-096")
def test_a_certificate_of_our_issuer_that_no_row_knows_is_refused_in_words(shared: Live) -> None:
    """As a stolen CA key would make: identity is the row of exactly that certificate."""
    issuer = shared.core.issuers["issuing"]
    key, now = new_key(), shared.clock.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "printer-17")]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(4711)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH, x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")]
            ),
            critical=False,
        )
        .sign(issuer._key, hashes.SHA256())
    )
    answer = renewed(shared, Holder(key, certificate))
    assert answer.status == 403
    assert b"was not issued here" in answer.body


@pytest.mark.row("EST-022")
def test_a_certificate_that_is_not_valid_yet_is_refused_in_words(live: Live) -> None:
    holder = live.enroll(live.invite("device"))
    live.clock.advance(timedelta(days=-2))
    for path in ("simplereenroll", "simpleenroll"):
        answer = renewed(live, holder, path=path)
        assert answer.status == 403
        assert b"not valid before" in answer.body


@pytest.mark.row("EST-024", "EST-136")
def test_a_truly_expired_certificate_reaches_the_application_and_gets_a_sentence(
    make_live: Callable[[str], Live],
) -> None:
    """Expired by the time that OpenSSL sees too, not only by the clock that a test can move."""
    live = make_live('\n[profiles.device]\nvalidity = "10m"\n')
    live.clock.advance(timedelta(minutes=-50))
    holder = live.enroll(live.invite("device"))
    live.clock.advance(timedelta(minutes=50))
    assert holder.certificate.not_valid_after_utc < datetime.now(UTC)
    for path in ("simplereenroll", "simpleenroll"):
        answer = renewed(live, holder, path=path)
        assert answer.status == 403
        expired = f"expired on {holder.certificate.not_valid_after_utc:%Y-%m-%d}"
        assert expired.encode() in answer.body
        assert b"ask the administrator for a new PIN" in answer.body


@pytest.mark.row("EST-025")
def test_a_certificate_without_client_auth_cannot_be_shown_in_tls(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live(profile("gateway", usage="serverAuth"))
    holder = live.enroll(live.invite("gateway", device_id="gw1"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        renewed(live, holder)


@pytest.mark.row("EST-026", "EST-135")
@pytest.mark.parametrize("path", ["simpleenroll", "simplereenroll"])
def test_a_revoked_certificate_gets_nothing(live: Live, path: str) -> None:
    handover = live.invite("device")
    holder = live.enroll(handover)
    record = issued(live, handover)[0]
    live.core.ra.revoke(
        record.enrollment,
        reason=RevocationReason.KEY_COMPROMISE,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    answer = renewed(live, holder, path=path)
    assert answer.status == 403
    assert b"is revoked" in answer.body
    assert len(issued(live, handover)) == 1


@pytest.mark.row("EST-027", "EST-028")
def test_a_resumed_session_keeps_its_identity_and_is_judged_anew(live: Live) -> None:
    handover = live.invite("device")
    holder = live.enroll(handover)
    context = tls12(live, holder)
    names = {"subject": holder.certificate.subject}
    with Wire(live, context=context) as wire:
        assert wire.ask("GET", "cacerts").status == 200
        session = wire.bye()
    with Wire(live, context=context, session=session) as wire:
        assert wire.sock.session_reused
        assert wire.ask("POST", "simplereenroll", body=csr(**names)).status == 200
        session = wire.bye()
    live.core.ra.revoke(
        issued(live, handover)[-1].enrollment,
        reason=RevocationReason.SUPERSEDED,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    with Wire(live, context=context, session=session) as wire:
        assert wire.sock.session_reused
        answer = wire.ask("POST", "simplereenroll", body=csr(**names))
        assert answer.status == 403
        assert b"is revoked" in answer.body


@pytest.mark.row("EST-029")
def test_a_client_cannot_renegotiate(shared: Live) -> None:
    done = s_client(shared, "-tls1_2", send=b"R\n")
    assert b"RENEGOTIATING" in done.stdout + done.stderr
    assert b"no renegotiation" in done.stderr


@pytest.mark.row("EST-030")
def test_trusted_ca_keys_does_not_break_the_handshake(shared: Live) -> None:
    for version in ("-tls1_2", "-tls1_3"):
        assert b"New, TLSv1." in s_client(shared, version, "-serverinfo", "3").stdout


@pytest.mark.row("EST-032")
@pytest.mark.parametrize(
    "header", ["Client-Cert", "X-SSL-Client-Cert", "X-Client-Cert", "SSL-Client-Cert"]
)
def test_a_certificate_in_a_header_means_nothing_on_the_direct_listener(
    live: Live, header: str
) -> None:
    holder = live.enroll(live.invite("device"))
    der = base64.b64encode(holder.certificate.public_bytes(Encoding.DER)).decode()
    for value in (f":{der}:", der):
        answer = post(live, csr(), headers={header: value})
        assert answer.status == 401
        answer = post(live, csr(), path="simplereenroll", headers={header: value})
        assert answer.status == 403
