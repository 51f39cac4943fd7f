"""certificates and enrollments: listed, found, exported, revoked, decided."""

from hashlib import sha256
from pathlib import Path

from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.authentication import PINCredential
from estserver.ca.issuer import Issuer, StatusURLs
from estserver.ca.keys import load_key, read_secret
from estserver.cli import main
from estserver.csr import read_csr
from estserver.model import RevocationReason, Via
from estserver.ra import EnrollmentRequest, RegistrationAuthority
from tests.cli.desk import enroll, invite_device
from tests.command_line import Shell
from tests.live import ORIGIN, Live, make_csr, new_key

# -- certificates ----------------------------------------------------------------------------------


def test_certificates_are_listed_with_the_keys_of_the_contract(live: Live) -> None:
    shell = Shell(live.directory)
    invited = invite_device(shell)
    holder = enroll(live, invited)
    assert holder is not None
    row = next(row for row in shell.json("certificates", "list") if row["via"] == "est")
    contract = {"serial", "subject", "names", "profile", "state", "not_before", "not_after"}
    assert contract | {"invitation", "via", "sha256"} <= row.keys()
    assert row["serial"] == f"{holder.certificate.serial_number:x}"
    assert row["subject"] == "CN=printer-17"
    assert (row["state"], row["invitation"]) == ("valid", invited["number"])
    der = holder.certificate.public_bytes(Encoding.DER)
    assert row["sha256"] == sha256(der).hexdigest()
    led_to = shell.json("invitations", "show", invited["number"])
    assert led_to["state"] == "used"
    assert led_to["enrollments"][0]["serial"] == row["serial"]
    enrollment = shell.json("enrollments", "show", row["enrollment"])
    assert (enrollment["state"], enrollment["serial"]) == ("issued", row["serial"])
    assert shell.json("certificates", "list", "--state", "revoked") == []
    assert shell.json("certificates", "list", "--expiring", "400d")
    assert row["serial"] in shell.run("certificates", "list").stdout


def test_a_serial_is_taken_in_every_form_people_have_it(live: Live) -> None:
    shell = Shell(live.directory)
    holder = enroll(live, invite_device(shell))
    assert holder is not None
    number = holder.certificate.serial_number
    text = f"{number:040x}"
    colons = ":".join(text[i : i + 2] for i in range(0, 40, 2)).upper()
    for serial in (f"{number:x}", text, text.upper(), colons, f"0x{number:x}", str(number)):
        assert shell.json("certificates", "show", serial)["serial"] == f"{number:x}"
    for junk in ("", "xyz", "12:3", "1" * 65):
        shell.run("certificates", "show", junk, status=2)
    assert "no certificate with serial ff" in shell.refused("certificates", "show", "ff")


def test_digits_that_mean_one_certificate_in_hex_and_another_in_decimal_are_refused(
    live: Live,
) -> None:
    shell = Shell(live.directory)
    digits = "1234567890123456789012345"
    serials = [int(digits, 16), int(digits, 10)]
    core, settings = live.core, live.settings
    key = load_key(
        settings.path(settings.issuers["issuing"].key),
        read_secret(settings.path(settings.secrets.passphrase)),
    )
    urls = StatusURLs("http://localhost/a", "http://localhost/b", "http://localhost/c")
    issuer = Issuer("issuing", core.chains["issuing"], key, urls, lambda _: serials.pop())
    ra = RegistrationAuthority(core.store, core.clock, core.profiles, {"issuing": issuer})
    for _ in range(2):
        handover = live.invite("device")
        assert handover.pin is not None
        credential = PINCredential(handover.invitation.number, handover.pin, "127.0.0.1")
        entitlement = core.authenticator.entitle(credential)
        csr = read_csr(make_csr(new_key()))
        ra.enroll(EnrollmentRequest(entitlement, csr, Via.EST, ORIGIN))
    sentence = shell.refused("certificates", "show", digits)
    assert f"0x{digits}" in sentence
    assert f"0x{int(digits):x}" in sentence
    assert shell.json("certificates", "show", f"0x{digits}")["serial"] == digits


def test_a_certificate_is_exported_as_pem_der_and_with_its_chain(
    live: Live, tmp_path: Path
) -> None:
    shell = Shell(live.directory)
    holder = enroll(live, invite_device(shell))
    assert holder is not None
    serial = f"{holder.certificate.serial_number:x}"
    pem = shell.run("certificates", "export", serial).stdout
    assert x509.load_pem_x509_certificate(pem.encode()) == holder.certificate
    chain = shell.run("certificates", "export", serial, "--chain").stdout
    assert x509.load_pem_x509_certificates(chain.encode()) == [
        holder.certificate,
        *live.core.chains["issuing"],
    ]
    out = tmp_path / "certificate.der"
    shell.run("certificates", "export", serial, "--der", "--out", str(out))
    assert out.read_bytes() == holder.certificate.public_bytes(Encoding.DER)
    shell.run("certificates", "export", serial, "--der", "--chain", status=2)


def test_revocation_takes_effect_once_and_with_its_reason(live: Live) -> None:
    shell = Shell(live.directory)
    holder = enroll(live, invite_device(shell))
    assert holder is not None
    serial = f"{holder.certificate.serial_number:x}"
    shell.run("certificates", "revoke", serial, status=2)
    assert "put on hold" in shell.refused(
        "certificates", "revoke", serial, "--reason", "certificateHold"
    )
    shell.run("certificates", "revoke", serial, "--reason", "keycompromise", "--comment", "lost")
    row = shell.json("certificates", "show", serial)
    assert (row["state"], row["reason"]) == ("revoked", RevocationReason.KEY_COMPROMISE.value)
    assert row["revoked_at"]
    assert "revoked already" in shell.refused(
        "certificates", "revoke", serial, "--reason", "superseded"
    )
    assert [r["serial"] for r in shell.json("certificates", "list", "--state", "revoked")] == [
        serial
    ]


def test_whoever_is_not_there_to_be_asked_learns_how_to_go_on(live: Live) -> None:
    shell = Shell(live.directory)
    assert enroll(live, invite_device(shell)) is not None
    command = ("certificates", "revoke-selected", "--profile", "device", "--reason", "superseded")
    unanswered = shell.run(*command, status=1).stderr
    assert "Revoke 1 certificate for good (superseded)?" in unanswered
    assert "say --yes" in unanswered
    configuration = str(shell.directory / "estserver.toml")
    refused = CliRunner().invoke(main, ["--config", configuration, *command], input="n\n")
    assert refused.exit_code == 1
    assert "Error: nothing was done" in refused.stderr
    assert shell.json("certificates", "list", "--state", "revoked") == []
    agreed = CliRunner().invoke(main, ["--config", configuration, *command], input="y\n")
    assert "1 certificate is revoked" in agreed.stdout


# -- enrollments -----------------------------------------------------------------------------------


def test_pending_enrollments_are_decided_once(live: Live) -> None:
    shell = Shell(live.directory)
    for _ in range(2):
        enroll(live, invite_device(shell, "--approval"), status=202)
    second, first = (row["id"] for row in shell.json("enrollments", "list", "--state", "pending"))
    shell.run("enrollments", "approve", first)
    shell.run("enrollments", "reject", second, status=2)
    shell.run("enrollments", "reject", second, "--reason", "not ours")
    assert shell.json("enrollments", "show", second)["reason"] == "not ours"
    assert shell.json("enrollments", "show", first)["decided_by"].startswith("operator ")
    for identifier in (first, second):
        sentence = shell.refused("enrollments", "approve", identifier)
        assert "does not wait for a decision" in sentence
    assert "there is no enrollment x" in shell.refused("enrollments", "show", "x")
