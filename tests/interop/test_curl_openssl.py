"""EST, OCSP and CRL by curl and openssl, with the lines of shell that people are told to type."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.invitations import Handover
from estserver.model import RevocationReason
from tests.interop.commands import Shell
from tests.live import ORIGIN, Live

CURL = "curl --silent --show-error --fail --cacert $root"
MAKE_KEY_AND_CSR = (
    "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
    "-keyout device.key -subj / -out device.csr"
)
ENROLL = (
    "openssl req -in device.csr -outform DER | openssl base64 -A | "
    f"{CURL} --user $number:$pin -H 'Content-Type: application/pkcs10' --data-binary @- "
    "$est/simpleenroll | openssl base64 -d -A | "
    "openssl pkcs7 -inform DER -print_certs -out device.crt"
)
CERTIFICATES = (
    f"{CURL} $est/cacerts | openssl base64 -d -A | "
    "openssl pkcs7 -inform DER -print_certs -out cacerts.pem"
)
STATUS_ONLY = "curl --silent --output answer --write-out '%{http_code}' --cacert $root"


@pytest.fixture(params=["", "/device"], ids=["without label", "with label"])
def est(request: pytest.FixtureRequest, shared: Live) -> str:
    label: str = request.param
    return f"{shared.url('devices')}/.well-known/est{label}"


@pytest.fixture
def shell(shared: Live, tmp_path: Path) -> Shell:
    """Return a shell with the variables of a fresh device invitation."""
    return _shell(shared, tmp_path, shared.invite("device"))


def _shell(live: Live, folder: Path, handover: Handover) -> Shell:
    assert handover.pin is not None
    return Shell(
        folder,
        {
            "root": str(live.root),
            "est": f"{live.url('devices')}/.well-known/est",
            "number": handover.invitation.number,
            "pin": handover.pin.reveal(),
        },
    )


def _certificate(shell: Shell, name: str = "device.crt") -> x509.Certificate:
    (certificate,) = x509.load_pem_x509_certificates((shell.folder / name).read_bytes())
    return certificate


def _requests_of(certificate: x509.Certificate) -> tuple[str, str]:
    """Return the URLs of the OCSP responder and of the CRL that a certificate names."""
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
    (ocsp,) = [
        str(description.access_location.value)
        for description in access.value
        if description.access_method == x509.oid.AuthorityInformationAccessOID.OCSP
    ]
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    names = points.value[0].full_name
    assert names is not None
    return ocsp, str(names[0].value)


def _revoke(live: Live, certificate: x509.Certificate, reason: RevocationReason) -> None:
    record = live.core.ra.find(certificate.serial_number)
    live.core.ra.revoke(record.enrollment, reason=reason, comment="", by="test", origin=ORIGIN)


@pytest.mark.row("EST-001", "EST-002", "EST-018", "EST-034", "EST-197")
def test_curl_and_openssl_fetch_the_chain_without_credentials(shell: Shell, est: str) -> None:
    shell.run(CERTIFICATES, est=est)
    chain = x509.load_pem_x509_certificates((shell.folder / "cacerts.pem").read_bytes())
    root = x509.load_pem_x509_certificate(Path(shell.variables["root"]).read_bytes())
    assert root in chain
    shell.run("openssl verify -CAfile $root cacerts.pem")


@pytest.mark.row("EST-002", "EST-041", "EST-066", "EST-071", "EST-116", "EST-197")
def test_the_one_liner_enrolls_and_the_certificate_verifies_from_cacerts(
    shell: Shell, est: str
) -> None:
    shell.run(MAKE_KEY_AND_CSR)
    shell.run(ENROLL, est=est)
    shell.run(CERTIFICATES, est=est)
    shell.run("openssl verify -CAfile $root -untrusted cacerts.pem -purpose sslclient device.crt")
    assert shell.run("openssl x509 -in device.crt -noout -pubkey") == shell.run(
        "openssl pkey -in device.key -pubout"
    )
    assert _certificate(shell).subject.rfc4514_string() == "CN=printer-17"


@pytest.mark.row("EST-055", "EST-127", "EST-197")
def test_the_holder_renews_with_the_same_key(shared: Live, shell: Shell) -> None:
    shell.run(MAKE_KEY_AND_CSR)
    shell.run(ENROLL)
    first = _certificate(shell)
    shell.run(
        "openssl x509 -x509toreq -in device.crt -signkey device.key | "
        "openssl req -outform DER | openssl base64 -A | "
        f"{CURL} --cert device.crt --key device.key -H 'Content-Type: application/pkcs10' "
        "--data-binary @- $est/simplereenroll | openssl base64 -d -A | "
        "openssl pkcs7 -inform DER -print_certs -out renewed.crt"
    )
    renewed = _certificate(shell, "renewed.crt")
    assert renewed.subject == first.subject
    assert renewed.public_key() == first.public_key()
    assert renewed.serial_number != first.serial_number
    assert shared.core.ra.find(renewed.serial_number).via == "renewal"


@pytest.mark.row("EST-128", "EST-129", "EST-197")
def test_the_holder_renews_with_a_new_key_and_all_names(shared: Live, tmp_path: Path) -> None:
    handover = shared.invite("server", names=("dns:www.example.ac.jp", "ip:192.0.2.7"))
    shell = _shell(shared, tmp_path, handover)
    shell.run(MAKE_KEY_AND_CSR)
    shell.run(ENROLL)
    renew = (
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout new.key "
        "-subj /CN=www.example.ac.jp -addext subjectAltName=$names -outform DER | "
        "openssl base64 -A | "
        "curl --silent --show-error --fail-with-body --cacert $root "
        "--cert device.crt --key device.key -H 'Content-Type: application/pkcs10' "
        "--data-binary @- --output answer $est/simplereenroll"
    )
    refused = shell.attempt(renew, names="DNS:www.example.ac.jp")
    assert refused.status == 22
    assert "192.0.2.7" in (tmp_path / "answer").read_text()
    shell.run(renew, names="IP:192.0.2.7,DNS:www.example.ac.jp")
    shell.run(
        "openssl base64 -d -A -in answer | openssl pkcs7 -inform DER -print_certs -out new.crt"
    )
    old, new = _certificate(shell), _certificate(shell, "new.crt")
    san = x509.SubjectAlternativeName
    assert set(new.extensions.get_extension_for_class(san).value) == set(
        old.extensions.get_extension_for_class(san).value
    )
    assert new.public_key() != old.public_key()


@pytest.mark.row("EST-145", "EST-146", "EST-148", "EST-160")
def test_csrattrs_decode_and_a_csr_made_from_them_is_taken(shell: Shell, est: str) -> None:
    anonymous = shell.run(
        f"{CURL} $est/csrattrs | openssl base64 -d -A | openssl asn1parse -i -inform DER", est=est
    )
    assert "id-ecPublicKey" in anonymous
    assert "prime256v1" in anonymous
    mine = shell.run(
        f"{CURL} --user $number:$pin $est/csrattrs | openssl base64 -d -A | "
        "openssl asn1parse -inform DER",
        est=est,
    )
    assert "id-ecPublicKey" in mine
    shell.run(MAKE_KEY_AND_CSR)
    shell.run(ENROLL, est=est)


@pytest.mark.row("EST-060", "EST-073", "EST-118")
def test_curls_own_content_type_is_refused_with_a_sentence(shared: Live, shell: Shell) -> None:
    shell.run(MAKE_KEY_AND_CSR)
    status = shell.run(
        "openssl req -in device.csr -outform DER | openssl base64 -A | "
        f"{STATUS_ONLY} --user $number:$pin --data-binary @- $est/simpleenroll"
    )
    assert status == "415"
    assert "application/pkcs10" in (shell.folder / "answer").read_text()
    assert shared.core.invitations.get(shell.variables["number"]).units_used == 0


@pytest.mark.parametrize(
    "options",
    [
        "-H 'Transfer-Encoding: chunked'",
        "--http1.0",
        "-H 'Expect: 100-continue'",
        "--tlsv1.3",
        "--tls-max 1.2",
        "-H 'Content-Transfer-Encoding: base64'",
        "-H 'Connection: close'",
    ],
)
@pytest.mark.row("EST-011", "EST-013", "EST-016", "EST-074", "EST-085")
def test_enrollment_takes_a_request_sent_with(shell: Shell, options: str) -> None:
    shell.run(MAKE_KEY_AND_CSR)
    shell.run(ENROLL.replace("--user", f"{options} --user"))
    shell.run(CERTIFICATES)
    shell.run("openssl verify -CAfile $root -untrusted cacerts.pem device.crt")


@pytest.mark.row("EST-049")
def test_curl_asks_first_and_answers_the_challenge_on_one_connection(shell: Shell) -> None:
    shell.run(MAKE_KEY_AND_CSR)
    seen = shell.attempt(ENROLL.replace("--user", "--verbose --anyauth --user"))
    assert seen.status == 0, seen
    assert "< HTTP/1.1 401" in seen.err
    assert '< WWW-Authenticate: Basic realm="estserver", charset="UTF-8"' in seen.err
    assert "< HTTP/1.1 200" in seen.err


@pytest.mark.row("EST-052", "EST-058", "EST-117")
def test_curl_with_a_wrong_pin_reads_why(shell: Shell) -> None:
    shell.run(MAKE_KEY_AND_CSR)
    status = shell.run(
        "openssl req -in device.csr -outform DER | openssl base64 -A | "
        f"{STATUS_ONLY} --user $number:00000-00000-0000 -H 'Content-Type: application/pkcs10' "
        "--data-binary @- $est/simpleenroll"
    )
    assert status == "401"
    assert "PIN is wrong" in (shell.folder / "answer").read_text()


@pytest.mark.row("EST-185", "INC-27")
def test_openssl_finds_ocsp_and_crl_by_the_urls_in_the_certificate(
    live: Live, tmp_path: Path
) -> None:
    shell = _shell(live, tmp_path, live.invite("device"))
    shell.run(MAKE_KEY_AND_CSR)
    shell.run(ENROLL)
    shell.run(CERTIFICATES)
    certificate = _certificate(shell)
    issuer = live.core.chains["issuing"][0]
    (tmp_path / "issuer.crt").write_bytes(issuer.public_bytes(Encoding.PEM))
    responder, distribution = _requests_of(certificate)

    def ask() -> str:
        return shell.run(
            "openssl ocsp -issuer issuer.crt -cert device.crt -url $url -CAfile $root "
            "-verify_other issuer.crt 2>&1",
            url=responder,
        )

    def look_up() -> int:
        return shell.attempt(
            "curl --silent --fail $url | openssl crl -inform DER -out list.pem && "
            "openssl verify -crl_check -CAfile $root -untrusted cacerts.pem -CRLfile list.pem "
            "device.crt",
            url=distribution,
        ).status

    answer = ask()
    assert "Response verify OK" in answer
    assert "device.crt: good" in answer
    assert look_up() == 0
    _revoke(live, certificate, RevocationReason.KEY_COMPROMISE)
    live.core.status.publish("issuing")
    answer = ask()
    assert "device.crt: revoked" in answer
    assert "Reason: keyCompromise" in answer
    assert look_up() == 2


@pytest.mark.row("EST-026", "INC-1")
def test_a_revoked_certificate_does_not_renew(shared: Live, shell: Shell) -> None:
    shell.run(MAKE_KEY_AND_CSR)
    shell.run(ENROLL)
    certificate = _certificate(shell)
    _revoke(shared, certificate, RevocationReason.SUPERSEDED)
    status = shell.run(
        "openssl x509 -x509toreq -in device.crt -signkey device.key | "
        "openssl req -outform DER | openssl base64 -A | "
        f"{STATUS_ONLY} --cert device.crt --key device.key "
        "-H 'Content-Type: application/pkcs10' --data-binary @- $est/simplereenroll"
    )
    assert status == "403"
    assert "revoked" in (shell.folder / "answer").read_text()


@pytest.mark.row("EST-068", "EST-069")
def test_every_spelling_a_person_types_is_the_same_pin(
    make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live("")
    handover = live.invite("device", units=3)
    shell = _shell(live, tmp_path, handover)
    pin = shell.variables["pin"]
    for spelling in (pin.lower(), pin.replace("-", ""), f" {pin} ".replace("-", " ")):
        shell.run(MAKE_KEY_AND_CSR)
        shell.run(ENROLL.replace("$number:$pin", '"$number:$pin"'), pin=spelling)
    assert live.core.invitations.get(handover.invitation.number).units_used == 3
