"""Real ACME clients with an invitation: the commands that `invite` prints, then all they can do."""

import re
import shlex
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from estserver.cli_acme import print_acme
from estserver.invitations import Handover
from estserver.model import CertificateState, RevocationReason
from tests.interop.commands import Shell
from tests.live import Live
from tests.protocols.acme.wire import Client, eab

_UACME = "uacme (trusts what the system trusts: add the root there)"


@pytest.fixture
def shell(tmp_path: Path, shared: Live) -> Shell:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(shared.root.read_bytes())
    return Shell(tmp_path, {"CA": str(bundle), "DIR": f"{shared.url('web')}/acme/directory"})


@pytest.fixture
def handover(shared: Live) -> Handover:
    return shared.invite("server", names=("dns:one.example.org", "dns:two.example.org"))


@pytest.fixture
def printed(
    shared: Live, handover: Handover, capsys: pytest.CaptureFixture[str]
) -> dict[str, list[str]]:
    """Return the lines that `invite` prints for each client."""
    print_acme(shared.core, handover.invitation, shared.root)
    sections: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("    ") and sections:
            sections[list(sections)[-1]].append(line[4:])
        elif re.fullmatch(r"  [A-Za-z]\S.*", line):
            sections[line.strip()] = []
    return {client: lines for client, lines in sections.items() if lines}


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def _check(shared: Live, handover: Handover, path: Path) -> x509.Certificate:
    certificate = _certificate(path)
    record = shared.core.ra.find(certificate.serial_number)
    assert record.invitation == handover.invitation.number
    assert set(record.names) == {"dns:one.example.org", "dns:two.example.org"}
    return certificate


def _renewed(shared: Live, handover: Handover, times: int) -> None:
    """Assert that so many certificates took one unit."""
    assert len(shared.core.ra.of_invitation(handover.invitation.number)) == times
    assert shared.core.invitations.get(handover.invitation.number).units_used == 1


def _revoked(shared: Live, certificate: x509.Certificate) -> RevocationReason | None:
    record = shared.core.ra.find(certificate.serial_number)
    assert record.state is CertificateState.REVOKED
    return record.reason


@pytest.mark.row("ACME-015", "ACME-109")
def test_certbot(
    shared: Live, handover: Handover, shell: Shell, printed: dict[str, list[str]]
) -> None:
    own = "--config-dir c --work-dir w --logs-dir l"
    (command,) = printed["certbot"]
    shell.run(f"{command} {own}")
    path = shell.folder / "c/live/one.example.org/cert.pem"
    first = _check(shared, handover, path)
    trust = f"REQUESTS_CA_BUNDLE={shlex.quote(str(shared.root))}"
    shell.run(f"{trust} certbot renew -n --force-renewal --no-random-sleep-on-renew {own}")
    second = _check(shared, handover, path)
    assert second.serial_number != first.serial_number
    _renewed(shared, handover, 2)
    shell.run(
        f'{trust} certbot revoke -n --server "$DIR" --cert-path {path} --reason superseded '
        f"--no-delete-after-revoke {own}"
    )
    assert _revoked(shared, second) is RevocationReason.SUPERSEDED
    shell.run(f'{trust} certbot unregister -n --server "$DIR" {own}')


@pytest.mark.row("ACME-015", "ACME-109", "ACME-172")
def test_lego(
    shared: Live, handover: Handover, shell: Shell, printed: dict[str, list[str]]
) -> None:
    (command,) = printed["lego"]
    shell.run(command)
    path = shell.folder / ".lego/certificates/one.example.org.crt"
    first = _check(shared, handover, path)
    trust = f"LEGO_CA_CERTIFICATES={shlex.quote(str(shared.root))}"
    base = f'{trust} lego --server "$DIR" --email admin@localhost --http'
    names = "--domains one.example.org --domains two.example.org"
    kid, key = eab(shared, handover)
    binding = f"--eab --kid {kid} --hmac {key}"
    shell.run(f"{base} {binding} {names} renew --days 999 --no-random-sleep")
    second = _check(shared, handover, path)
    assert second.serial_number != first.serial_number
    _renewed(shared, handover, 2)
    shell.run(f"{base} {binding} --domains one.example.org revoke")
    _revoked(shared, second)


@pytest.mark.row("ACME-015", "ACME-070", "ACME-090", "ACME-098", "ACME-109", "ACME-152")
def test_uacme(
    shared: Live, handover: Handover, shell: Shell, printed: dict[str, list[str]]
) -> None:
    # It takes no CA file: a mount of its own puts ours where it looks.
    bundle = "/etc/ssl/certs/ca-certificates.crt"

    def uacme(command: str) -> None:
        script = f"mount --bind {shlex.quote(str(shared.root))} {bundle} && {command}"
        shell.run(f"unshare -m bash -c {shlex.quote(script)}")

    own = "uacme -c . "
    for command in printed[_UACME]:
        uacme(command.replace("uacme ", own, 1))
    path = shell.folder / "one.example.org/cert.pem"
    first = _check(shared, handover, path)
    directory = shell.variables["DIR"]
    uacme(f"{own} -a {directory} -y update new@example.org")
    uacme(f"{own} -a {directory} newkey")
    uacme(f"{own} -a {directory} -f -h /bin/true issue one.example.org two.example.org")
    second = _check(shared, handover, path)
    assert second.serial_number != first.serial_number
    _renewed(shared, handover, 2)
    uacme(f"{own} -a {directory} revoke {path}")
    _revoked(shared, second)
    uacme(f"{own} -a {directory} deactivate")


@pytest.mark.row("ACME-015", "ACME-071", "ACME-109")
def test_dehydrated(shared: Live, handover: Handover, shell: Shell) -> None:
    kid, key = eab(shared, handover)
    (shell.folder / "www").mkdir()
    (shell.folder / "config").write_text(
        f'CA="{shell.variables["DIR"]}"\nEAB_KID="{kid}"\nEAB_HMAC_KEY="{key}"\n'
        f'CURL_OPTS="--cacert {shared.root}"\nWELLKNOWN="{shell.folder}/www"\n'
        f'BASEDIR="{shell.folder}"\nCONTACT_EMAIL=admin@example.org\n'
    )
    (shell.folder / "domains.txt").write_text("one.example.org two.example.org\n")
    shell.run("dehydrated -f config --register --accept-terms")
    shell.run("dehydrated -f config -c")
    path = shell.folder / "certs/one.example.org/cert.pem"
    first = _check(shared, handover, path)
    shell.run("dehydrated -f config -c -x")
    second = _check(shared, handover, path)
    assert second.serial_number != first.serial_number
    _renewed(shared, handover, 2)
    shell.run(f"dehydrated -f config -r {path}")
    _revoked(shared, second)


def test_each_client_is_told_of(printed: dict[str, list[str]], handover: Handover) -> None:
    names = " ".join(printed)
    for client in ("certbot", "lego", "acme.sh", "uacme", "Caddy", "cert-manager"):
        assert client in names
    assert all(handover.invitation.number in "".join(lines) for lines in printed.values())


@pytest.mark.row("ACME-017", "ACME-061", "ACME-069")
def test_acme_tiny_goes_on_with_an_account_that_was_bound_for_it(
    shared: Live, handover: Handover, shell: Shell
) -> None:
    # It knows no external account binding: another client binds its key.
    key = rsa.generate_private_key(65537, 2048)
    assert Client(shared, key).register(handover).status == 201
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (shell.folder / "account.key").write_bytes(pem)
    names = "subjectAltName=DNS:one.example.org,DNS:two.example.org"
    shell.run(
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout one.key "
        f'-subj / -addext "{names}" -out one.csr'
    )
    shell.run(
        'SSL_CERT_FILE="$CA" acme-tiny --quiet --account-key account.key --csr one.csr '
        '--acme-dir . --directory-url "$DIR" > one.crt'
    )
    _check(shared, handover, shell.folder / "one.crt")
