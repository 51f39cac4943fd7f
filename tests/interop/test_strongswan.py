"""Debian's strongSwan 5.9.8: `pki --estca` and `pki --est`, a client with small buffers.

It reads base64 only in one line, headers only up to 1 KiB, answers no challenge, and shows in no
header who it is: neither User-Agent nor Accept.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from estserver.invitations import Handover
from estserver.model import Via
from tests.interop.commands import PATIENCE_SECONDS, Shell, environment
from tests.live import ORIGIN, Live

MAKE_KEY = "pki --gen --type ecdsa --size 256 --outform pem > $key"
MAKE_CSR = 'pki --req --type ecdsa --in $key --dn "CN=printer-17" $names --outform pem > device.csr'
ENROLL = (
    "pki --est --url $url --in device.csr --cacert root.crt --userpass $number:$pin "
    "--outform pem > device.crt"
)
RENEW = (
    "pki --est --url $url --in device.csr --cacert root.crt --cacert issuing.crt "
    "--cert device.crt --key device.key --outform pem > renewed.crt"
)


def _shell(live: Live, folder: Path, handover: Handover) -> Shell:
    assert handover.pin is not None
    (folder / "root.crt").write_bytes(live.root.read_bytes())
    (folder / "issuing.crt").write_bytes((live.directory / "ca/issuing.crt").read_bytes())
    return Shell(
        folder,
        {
            "url": live.url("devices"),
            "number": handover.invitation.number,
            "pin": handover.pin.reveal(),
            "key": "device.key",
            "names": "",
        },
    )


@pytest.fixture
def shell(shared: Live, tmp_path: Path) -> Shell:
    return _shell(shared, tmp_path, shared.invite("device"))


def _holds(folder: Path, certificate: str, key: str) -> x509.Certificate:
    """Return the certificate in a file, which must be that of the key in another."""
    found = x509.load_pem_x509_certificate((folder / certificate).read_bytes())
    private = load_pem_private_key((folder / key).read_bytes(), None)
    assert found.public_key() == private.public_key()
    return found


@pytest.mark.row("EST-001", "EST-037", "EST-048", "EST-194")
def test_estca_fetches_the_chain(shell: Shell, shared: Live) -> None:
    shell.run("pki --estca --url $url --cacert root.crt --caout ca.crt --outform pem --force")
    found = {
        x509.load_pem_x509_certificate(path.read_bytes()) for path in shell.folder.glob("ca*.crt")
    }
    assert found == set(shared.core.chains["issuing"])


@pytest.mark.row("EST-002", "EST-048", "EST-066", "EST-071", "EST-194")
def test_est_enrolls_with_the_pin_sent_unasked(shell: Shell) -> None:
    shell.run(MAKE_KEY)
    shell.run(MAKE_CSR)
    shell.run(ENROLL)
    certificate = _holds(shell.folder, "device.crt", "device.key")
    assert certificate.subject.rfc4514_string() == "CN=printer-17"


@pytest.mark.row("EST-071", "EST-092", "EST-194")
def test_est_enrolls_an_rsa_key_with_alternative_names(shared: Live, tmp_path: Path) -> None:
    names = ("dns:printer-17.example.ac.jp", "ip:192.0.2.17")
    shell = _shell(shared, tmp_path, shared.invite("device", names=names))
    shell.run("pki --gen --type rsa --size 2048 --outform pem > $key")
    shell.run(
        MAKE_CSR.replace("ecdsa", "rsa"), names="--san printer-17.example.ac.jp --san 192.0.2.17"
    )
    shell.run(ENROLL)
    san = (
        _holds(tmp_path, "device.crt", "device.key")
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    assert san.get_values_for_type(x509.DNSName) == ["printer-17.example.ac.jp"]
    assert [str(ip) for ip in san.get_values_for_type(x509.IPAddress)] == ["192.0.2.17"]


@pytest.mark.parametrize("key", ["device.key", "new.key"])
@pytest.mark.row("EST-055", "EST-127", "EST-128", "EST-194")
def test_est_renews_by_the_certificate_it_holds(shared: Live, shell: Shell, key: str) -> None:
    shell.run(MAKE_KEY)
    shell.run(MAKE_CSR)
    shell.run(ENROLL)
    old = _holds(shell.folder, "device.crt", "device.key")
    if key == "new.key":
        shell.run(MAKE_KEY, key=key)
    shell.run(MAKE_CSR, key=key)
    shell.run(RENEW)
    new = _holds(shell.folder, "renewed.crt", key)
    assert new.subject == old.subject
    assert new.serial_number != old.serial_number
    assert shared.core.ra.find(new.serial_number).via == Via.RENEWAL


@pytest.mark.row("EST-058", "EST-117", "EST-194")
def test_est_fails_on_a_wrong_pin_and_leaves_no_file_of_use(shell: Shell) -> None:
    shell.run(MAKE_KEY)
    shell.run(MAKE_CSR)
    outcome = shell.attempt(ENROLL, pin="00000-00000-0000")
    assert outcome.status != 0
    assert "401" in outcome.err
    assert (shell.folder / "device.crt").read_bytes() == b""


@pytest.mark.row("EST-112", "EST-120", "EST-121", "EST-122", "EST-194")
def test_est_polls_until_an_officer_has_approved(
    make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live('[est]\nretry_after = "1s"\n')
    handover = live.invite("device", approval=True)
    shell = _shell(live, tmp_path, handover)
    shell.run(MAKE_KEY)
    shell.run(MAKE_CSR)
    with subprocess.Popen(
        ["bash", "-c", ENROLL.replace("--est", "--est --interval 1 --maxpolltime 30")],
        cwd=tmp_path,
        env=environment(tmp_path, shell.variables),
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as client:
        assert client.stderr is not None
        said = ""
        while "polling" not in said:
            line = client.stderr.readline()
            assert line, said
            said += line
        ((pending, record),) = live.core.ra.of_invitation(handover.invitation.number)
        assert record is None
        live.core.ra.approve(pending.id, by="officer", origin=ORIGIN)
        assert client.wait(PATIENCE_SECONDS) == 0, client.stderr.read()
    certificate = _holds(tmp_path, "device.crt", "device.key")
    ((_, record),) = live.core.ra.of_invitation(handover.invitation.number)
    assert record is not None
    assert record.serial_hex == f"{certificate.serial_number:x}"
    assert live.core.invitations.get(handover.invitation.number).units_used == 1


@pytest.mark.row("EST-121", "EST-194")
def test_est_stops_polling_once_an_officer_has_said_no(
    make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live('[est]\nretry_after = "1s"\n')
    handover = live.invite("device", approval=True)
    shell = _shell(live, tmp_path, handover)
    shell.run(MAKE_KEY)
    shell.run(MAKE_CSR)
    gave_up = shell.attempt(ENROLL.replace("--est", "--est --interval 1 --maxpolltime 1"))
    assert gave_up.status != 0
    ((pending, _),) = live.core.ra.of_invitation(handover.invitation.number)
    live.core.ra.reject(pending.id, reason="not ours", by="officer", origin=ORIGIN)
    refused = shell.attempt(ENROLL)
    assert refused.status != 0
    assert "403" in refused.err
    assert live.core.invitations.get(handover.invitation.number).units_used == 0
