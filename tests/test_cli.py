"""The commands: what scripts and people get from them, and what they are told when it fails."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.authentication import PINCredential
from estserver.ca.ceremony import InstanceOptions, create_instance
from estserver.ca.issuer import Issuer, StatusURLs
from estserver.ca.keys import load_key, read_secret
from estserver.cli import listing, main
from estserver.core import open_core
from estserver.csr import read_csr
from estserver.model import Origin, RevocationReason, Via
from estserver.ra import EnrollmentRequest, RegistrationAuthority
from tests.command_line import Shell
from tests.live import Holder, Live, MovableClock, Workshop, free_ports, make_csr, new_key
from tests.parts import unguard_audit

ORIGIN = Origin("test", "cli")


@pytest.fixture
def shell(template: Path, tmp_path: Path) -> Shell:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    return Shell(live.directory)


def _person(shell: Shell, *more: str) -> Any:
    options = ["--profile", "person", "--name", "Taro Yamada", "--email", "taro@example.ac.jp"]
    return shell.json("invite", *options, "--no-mail", *more)


def _device(shell: Shell, *more: str) -> Any:
    return shell.json("invite", "--profile", "device", "--device-id", "printer-17", *more)


def _enroll(live: Live, invited: Any, status: int = 200) -> Holder | None:
    """Enroll over EST with what `invite --json` printed."""
    key = new_key()
    pair = f"{invited['est']['username']}:{invited['est']['password']}"
    answer = live.request(
        "POST",
        f"/.well-known/est/{invited['profile']}/simpleenroll",
        body=base64.b64encode(make_csr(key)),
        headers={
            "Content-Type": "application/pkcs10",
            "Authorization": "Basic " + base64.b64encode(pair.encode()).decode(),
        },
    )
    assert answer.status == status, answer.body
    return Holder(key, answer.certificates()[0]) if status == 200 else None


# -- init ------------------------------------------------------------------------------------------


@pytest.mark.row("EST-047")
def test_init_prints_the_roots_fingerprint_and_the_urls(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    result = CliRunner().invoke(
        main,
        ["init", str(directory), "--host", "pki.example.org", "--devices-host", "est.example.org"],
    )
    assert result.exit_code == 0, result.output
    info = Shell(directory).json("info")
    assert info["root_sha256"] in result.stdout
    openssl = subprocess.run(
        [
            "openssl",
            "x509",
            "-in",
            str(directory / "ca/root.crt"),
            "-noout",
            "-fingerprint",
            "-sha256",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert openssl.stdout.partition("=")[2].strip() == info["root_sha256"]
    assert info["web"] == "https://pki.example.org:8443"
    assert info["devices"] == "https://est.example.org:9443"


def test_init_refuses_a_folder_with_something_in_it(shell: Shell) -> None:
    assert "is not empty" in shell.refused("init", str(shell.directory))


def test_init_takes_only_the_key_types_of_the_contract(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["init", str(tmp_path / "new"), "--key-type", "ed25519"])
    assert result.exit_code == 2
    assert all(kind in result.stderr for kind in ("ec-p256", "ec-p384", "rsa-3072", "rsa-4096"))


# -- finding the configuration ---------------------------------------------------------------------


def test_the_configuration_is_found_by_option_environment_and_folder(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(shell.directory)
    assert CliRunner().invoke(main, ["info"]).exit_code == 0
    monkeypatch.chdir(tmp_path)
    nowhere = CliRunner().invoke(main, ["info"])
    assert nowhere.exit_code == 1
    assert "estserver init DIR" in nowhere.stderr
    monkeypatch.setenv("ESTSERVER_CONFIG", str(shell.directory / "estserver.toml"))
    assert CliRunner().invoke(main, ["info"]).exit_code == 0


def test_a_configuration_that_is_wrong_is_named_by_its_key(shell: Shell) -> None:
    path = shell.directory / "estserver.toml"
    path.write_text(path.read_text(encoding="utf-8") + "\n[mial]\nhost = 1\n", encoding="utf-8")
    assert "mial: unknown key" in shell.refused("invitations", "list")


# -- invite ----------------------------------------------------------------------------------------


def test_an_invitation_as_json_has_a_member_for_each_open_door(shell: Shell) -> None:
    person = _person(shell)
    assert person.keys() == {"number", "expires", "profile", "web"}
    assert person["web"].keys() == {"url", "pin"}
    assert re.fullmatch(r"https://localhost:\d+/e/[A-Za-z0-9_-]{22}", person["web"]["url"])
    assert re.fullmatch(r"[0-9A-Z]{3}-[0-9A-Z]{3}-[0-9A-Z]{3}", person["web"]["pin"])
    device = _device(shell)
    assert device.keys() == {"number", "expires", "profile", "est", "acme"}
    assert device["acme"].keys() == {"directory", "kid", "hmac_key"}
    assert re.fullmatch(r"https://localhost:\d+/acme/directory", device["acme"]["directory"])
    assert device["acme"]["kid"] == device["number"]
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{127}", device["acme"]["hmac_key"])
    assert device["est"].keys() == {"url", "username", "password"}
    assert device["est"]["url"].endswith("/.well-known/est/device")
    assert device["est"]["username"] == device["number"]
    both = _person(shell, "--door", "web", "--door", "est")
    assert both["web"]["pin"] == both["est"]["password"]
    assert datetime.fromisoformat(both["expires"]) > datetime.now(UTC) + timedelta(days=29)
    assert both["expires"].endswith("Z")


def test_every_option_of_invite_reaches_the_registration(shell: Shell) -> None:
    invited = shell.json(
        *("invite", "--profile", "server", "--name", "Web", "--dns", "WWW.example.org"),
        *("--dns", "example.org", "--ip", "192.0.2.7", "--door", "est", "--max", "3"),
        *("--expires", "12h", "--renew-until", "2099-03-31", "--lang", "ja"),
        *("--approval", "--hold", "--no-mail"),
    )
    shown = shell.json("invitations", "show", invited["number"])
    assert shown["names"] == ["dns:www.example.org", "dns:example.org", "ip:192.0.2.7"]
    assert (shown["max"], shown["used"], shown["language"]) == (3, 0, "ja")
    assert shown["renew_until"] == "2099-03-31T23:59:59Z"
    assert (shown["state"], shown["approval"], shown["doors"]) == ("held", True, ["est"])
    assert datetime.fromisoformat(shown["expires"]) < datetime.now(UTC) + timedelta(hours=13)


def test_for_people_invite_prints_commands_that_can_be_pasted(shell: Shell) -> None:
    printed = shell.run("invite", "--profile", "device", "--device-id", "printer-17").stdout
    assert "openssl base64 -A" in printed
    assert "openssl base64 -d -A" in printed
    assert str(shell.directory / "ca/root.crt") in printed


def test_invite_prints_one_command_for_a_door_and_the_others_when_asked(shell: Shell) -> None:
    server = ("invite", "--profile", "server", "--dns", "www.example.org", "--door", "acme")
    brief = shell.run(*server).stdout
    assert brief.count("\n    ") == 1
    assert "certbot certonly" in brief
    assert "--clients" in brief
    for client in ("lego", "acme.sh", "uacme", "Caddy", "cert-manager"):
        assert f"\n  {client}" not in brief
        assert f"\n  {client}" in shell.run(*server, "--clients").stdout


def test_acme_is_not_explained_to_those_who_have_no_name_to_ask_for(shell: Shell) -> None:
    device = ("invite", "--profile", "device", "--device-id", "printer-17")
    printed = shell.run(*device).stdout
    assert "Not over ACME" in printed
    assert "HMAC key" not in printed
    assert shell.json(*device)["acme"]["hmac_key"]


@pytest.mark.row("EST-197")
def test_the_printed_commands_enroll(live: Live, tmp_path: Path) -> None:
    shell = Shell(live.directory)
    printed = shell.run("invite", "--profile", "device", "--device-id", "printer-17").stdout
    commands = "".join(line[4:] + "\n" for line in printed.splitlines() if line[:4] == "    ")
    assert len(commands.splitlines()) == 3
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, check=True, capture_output=True
    )
    certificate = x509.load_pem_x509_certificates((tmp_path / "device.crt").read_bytes())[0]
    assert certificate.subject.rfc4514_string() == "CN=printer-17"


@pytest.mark.row("SEED-04", "SEED-05", "SEED-06")
def test_without_a_mail_server_the_mail_comes_on_stderr_and_stdout_stays_json(
    shell: Shell,
) -> None:
    options = ["--profile", "person", "--name", "Taro", "--email", "taro@example.ac.jp"]
    result = shell.run("invite", *options, "--json")
    invited = json.loads(result.stdout)
    assert "To: taro@example.ac.jp" in result.stderr
    assert invited["web"]["url"] in result.stderr
    assert invited["web"]["pin"] not in result.stderr
    again = shell.run("invitations", "resend", invited["number"])
    assert invited["web"]["url"] in again.stderr
    mail = shell.json("invitations", "show", invited["number"])["mail"]
    assert [letter["state"] for letter in mail] == ["sent", "sent"]


def test_with_a_mail_server_the_mail_waits_for_the_server(template: Path, tmp_path: Path) -> None:
    toml = '\n[mail]\nhost = "192.0.2.1"\nsender = "pki@example.org"\n'
    live = Workshop(template).make(tmp_path / "instance", toml, start=False)
    shell = Shell(live.directory)
    options = ["--profile", "person", "--name", "Taro", "--email", "taro@example.ac.jp"]
    result = shell.run("invite", *options, "--json")
    assert "To:" not in result.stderr
    assert "sends the URL to taro@example.ac.jp" in result.stderr
    number = json.loads(result.stdout)["number"]
    assert shell.json("invitations", "show", number)["mail"][0]["state"] == "queued"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--profile", "nobody"],
            "there is no profile nobody; there are device, mail, officer, person, server",
        ),
        (["--profile", "_tls", "--dns", "a.example"], "there is no profile _tls"),
        (["--profile", "person"], "profile person needs: name, email"),
        (["--profile", "server"], "profile server needs: names (of hosts, or addresses)"),
        (["--profile", "device"], "needs a name to certify"),
        (
            ["--profile", "device", "--device-id", "x", "--door", "web"],
            "does not open the door web, only: est, acme",
        ),
        (["--profile", "server", "--dns", "not a host"], "is not a host name"),
        (["--profile", "device", "--dns", "*.example.org"], "does not certify wildcards"),
        (["--profile", "device", "--device-id", "a\nb"], "device id"),
        (["--profile", "device", "--device-id", "x", "--renew-until", "2001-01-01"], "the past"),
        (["--profile", "device", "--device-id", "x", "--expires", "0d"], "in the future"),
        (["--profile", "device", "--device-id", "x", "--expires", "999999w"], "expires"),
    ],
)
def test_a_registration_that_cannot_be_is_refused_in_a_sentence(
    shell: Shell, options: list[str], sentence: str
) -> None:
    assert sentence in shell.refused("invite", *options)
    assert shell.json("invitations", "list") == []


@pytest.mark.parametrize(
    "options",
    [
        ["--expires", "30"],
        ["--expires", "-1d"],
        ["--expires", "1y"],
        ["--renew-until", "31.3.2099"],
        ["--renew-until", "2099-3-31"],
        ["--renew-until", "2099-02-30"],
        ["--max", "0"],
        ["--max", "1000001"],
        ["--door", "window"],
        ["--lang", "fr"],
        ["--unknown"],
        [],
    ],
)
def test_what_cannot_be_parsed_is_a_usage_error(shell: Shell, options: list[str]) -> None:
    device = ["--profile", "device", "--device-id", "x"] if options else []
    shell.run("invite", *device, *options, status=2)


# -- invitations -----------------------------------------------------------------------------------


def test_invitations_go_through_their_life(shell: Shell) -> None:
    number = _person(shell, "--hold")["number"]
    assert shell.json("invitations", "show", number)["state"] == "held"
    released = shell.run("invitations", "release", number)
    assert "To: taro@example.ac.jp" in released.stderr
    assert "is not held back" in shell.refused("invitations", "release", number)
    first = shell.json("invitations", "new-pin", number)["web"]["pin"]
    second = shell.json("invitations", "new-pin", number, "--expires", "90d")["web"]["pin"]
    assert first != second
    shell.run("invitations", "cancel", number)
    assert shell.json("invitations", "list")[0]["state"] == "cancelled"
    for command in ("cancel", "new-pin", "resend"):
        assert "cancelled" in shell.refused("invitations", command, number)
    assert "there is no invitation 1" in shell.refused("invitations", "show", "1")


def test_no_secret_is_shown_twice(shell: Shell) -> None:
    invited = _person(shell)
    for arguments in (["list"], ["list", "--json"], ["show", invited["number"]]):
        printed = shell.run("invitations", *arguments).output
        assert invited["web"]["pin"] not in printed
        assert invited["web"]["url"] not in printed


def test_long_lists_come_in_pages_and_say_when_something_is_left_out(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_PAGE", 2)
    numbers = [_device(shell)["number"] for _ in range(5)]
    listed = [row["number"] for row in shell.json("invitations", "list")]
    assert sorted(listed) == sorted(numbers)
    assert len(shell.json("invitations", "list", "--limit", "4")) == 4
    table = shell.run("invitations", "list", "--limit", "3")
    assert sum(number in table.stdout for number in numbers) == 3
    assert "The newest 3 only" in table.stderr
    everything = shell.run("invitations", "list", "--limit", "5")
    assert "newest" not in everything.stderr


@pytest.mark.parametrize(
    ("listing", "hint"),
    [
        (["invitations", "list"], "estserver invite"),
        (["enrollments", "list"], "Nobody has enrolled yet"),
        (["enrollments", "list", "--state", "pending"], "no such enrollments"),
        (["certificates", "list"], "estserver invite"),
        (["certificates", "list", "--expiring", "30d"], "no such certificates"),
    ],
)
def test_an_empty_list_says_so_to_people_and_is_empty_for_scripts(
    shell: Shell, listing: list[str], hint: str
) -> None:
    result = shell.run(*listing)
    assert hint in result.stderr
    assert not result.stdout
    assert shell.json(*listing) == []


def test_a_name_that_looks_like_markup_is_a_name(shell: Shell) -> None:
    shell.run("invite", "--profile", "device", "--name", "[red]x[/red]", "--device-id", "a")
    assert "[red]x[/red]" in shell.run("invitations", "list").stdout


# -- certificates ----------------------------------------------------------------------------------


def test_certificates_are_listed_with_the_keys_of_the_contract(live: Live) -> None:
    shell = Shell(live.directory)
    invited = _device(shell)
    holder = _enroll(live, invited)
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
    holder = _enroll(live, _device(shell))
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
    holder = _enroll(live, _device(shell))
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
    holder = _enroll(live, _device(shell))
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
    assert _enroll(live, _device(shell)) is not None
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
        _enroll(live, _device(shell, "--approval"), status=202)
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


# -- migrate, doctor, verify -----------------------------------------------------------------------


def test_migrate_makes_a_database_and_does_no_harm_twice(shell: Shell) -> None:
    _person(shell)
    for _ in range(2):
        assert "schema" in shell.run("migrate").stdout
    assert len(shell.json("invitations", "list")) == 1


def test_without_a_database_every_command_says_what_to_do(shell: Shell) -> None:
    (shell.directory / "estserver.db").unlink()
    for command in (("invitations", "list"), ("migrate",)):
        assert "restore it from a backup" in shell.refused(*command)
    assert not (shell.directory / "estserver.db").exists()


def _verdicts(shell: Shell, status: int = 0) -> dict[str, tuple[str, str]]:
    found = json.loads(shell.run("doctor", "--json", status=status).stdout)
    return {one["check"]: (one["verdict"], one["detail"]) for one in found}


def test_doctor_finds_a_served_instance_healthy(live: Live) -> None:
    shell = Shell(live.directory)
    root_key = live.directory / "ca/root.key"
    assert _verdicts(shell)["root key"] == (
        "warning",
        f"{root_key}: no daily work needs it, carry it away",
    )
    root_key.unlink()
    verdicts = _verdicts(shell)
    assert {verdict for verdict, _ in verdicts.values()} == {"ok"}
    expected = {"configuration", "secrets", "database", "clock", "mail", "disk", "CRL issuing"}
    expected |= {"issuer issuing", "listener web", "listener devices", "profile person"}
    assert expected <= verdicts.keys()
    lines = shell.run("doctor").stdout.splitlines()
    assert len(lines) == len(verdicts)


def _edit(shell: Shell, old: str, new: str) -> None:
    path = shell.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_doctor_makes_no_database_in_place_of_one_that_is_gone(shell: Shell) -> None:
    database = shell.directory / "estserver.db"
    database.unlink()
    verdict, detail = _verdicts(shell, status=1)["database"]
    assert verdict == "bad"
    assert "restore it from a backup" in detail
    assert not database.exists()


@pytest.mark.row("EST-019")
def test_doctor_fails_loudly_when_no_certificate_can_name_the_url(shell: Shell) -> None:
    _edit(shell, 'hosts = ["localhost", "127.0.0.1"]', 'hosts = ["other.example.org"]')
    verdicts = _verdicts(shell, status=1)
    for listener in ("web", "devices"):
        verdict, detail = verdicts[f"listener {listener}"]
        assert verdict == "bad"
        assert "CLIENTS WILL REFUSE" in detail


@pytest.mark.row("EST-019")
def test_doctor_reads_the_names_of_a_certificate_that_was_brought(
    live: Live, tmp_path: Path
) -> None:
    shell = Shell(live.directory)
    holder = _enroll(live, _device(shell, "--dns", "localhost"))
    assert holder is not None
    brought = tmp_path / "brought.pem"
    brought.write_bytes(holder.pem)
    _edit(shell, "[listeners.devices]", f'[listeners.devices]\ncertificate = "{brought}"')
    assert _verdicts(shell)["listener devices"][0] == "ok"
    _edit(shell, 'url = "https://localhost', 'url = "https://elsewhere.example.org')
    _edit(shell, 'hosts = ["localhost"', 'hosts = ["elsewhere.example.org", "localhost"')
    verdicts = _verdicts(shell, status=1)
    assert verdicts["listener web"][0] == "ok"
    assert "does not name elsewhere.example.org" in verdicts["listener devices"][1]


def _loosen_a_key(shell: Shell) -> None:
    (shell.directory / "ca/issuing.key").chmod(0o644)


def _change_the_passphrase(shell: Shell) -> None:
    (shell.directory / "secrets/passphrase").write_text("another\n")


def _lose_the_master(shell: Shell) -> None:
    (shell.directory / "secrets/master.key").unlink()


def _mix_up_the_chain(shell: Shell) -> None:
    other = shell.directory.parent / "other"
    create_instance(other, MovableClock(), InstanceOptions())
    shutil.copy(other / "ca/root.crt", shell.directory / "ca/root.crt")


def _forget_the_schema(shell: Shell) -> None:
    (shell.directory / "estserver.db").unlink()


def _spoil_the_database(shell: Shell) -> None:
    path = shell.directory / "estserver.db"
    content = bytearray(path.read_bytes())
    content[4096 * 8 :] = os.urandom(len(content) - 4096 * 8)
    path.write_bytes(content)


def _set_the_clock_back(shell: Shell) -> None:
    _sql(shell, "UPDATE audit_events SET at = at + 86400")


def _name_a_dead_mail_server(shell: Shell) -> None:
    port = free_ports().web
    with (shell.directory / "estserver.toml").open("a") as file:
        file.write(f'\n[mail]\nhost = "127.0.0.1"\nport = {port}\nsender = "pki@example.org"\n')


def _take_a_ca_certificate_away(shell: Shell) -> None:
    (shell.directory / "ca/issuing.crt").unlink()


def _certify_what_nobody_has(shell: Shell) -> None:
    with (shell.directory / "estserver.toml").open("a") as file:
        file.write('\n[profiles.device]\nsubject = ["C={organization}"]\n')


def _sql(shell: Shell, statement: str) -> None:
    engine = sa.create_engine(f"sqlite:///{shell.directory}/estserver.db")
    with engine.begin() as connection:
        if "audit_events" in statement:
            unguard_audit(connection)
        connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.mark.parametrize(
    ("spoil", "check", "said"),
    [
        (_loosen_a_key, "secrets", "has mode 0644, must be 0600"),
        (_change_the_passphrase, "instance", "not a key encrypted under the passphrase"),
        (_lose_the_master, "secrets", "secrets/master.key: no such file or directory"),
        (_mix_up_the_chain, "instance", "chain"),
        (_take_a_ca_certificate_away, "instance", "if it was there, restore it from a backup"),
        (_forget_the_schema, "database", "restore it from a backup"),
        (_spoil_the_database, "database", ""),
        (_set_the_clock_back, "clock", "behind the newest audit row"),
        (_name_a_dead_mail_server, "mail", "nothing listens there: start it, or correct mail.host"),
        (_certify_what_nobody_has, "profile device", "cannot make a subject"),
    ],
)
def test_doctor_names_what_is_ill(
    shell: Shell, spoil: Callable[[Shell], None], check: str, said: str
) -> None:
    _person(shell)
    spoil(shell)
    verdict, detail = _verdicts(shell, status=1)[check]
    assert verdict == "bad"
    assert said in detail, detail


def test_a_database_that_does_not_answer_is_told_in_one_line_without_its_password(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_ports().web
    url = f"postgresql+psycopg://pki:CANARY@127.0.0.1:{port}/pki"
    monkeypatch.setenv("ESTSERVER_DATABASE__URL", url)
    said = shell.refused("invitations", "list")
    assert "the database (database.url) cannot be used" in said
    assert f"port {port}" in said
    assert "CANARY" not in said


def test_doctor_sees_a_crl_that_nobody_renews(live: Live) -> None:
    _sql(
        Shell(live.directory),
        "UPDATE crls SET this_update = this_update - 518400, next_update = next_update - 518400",
    )
    verdict, detail = _verdicts(Shell(live.directory), status=1)["CRL issuing"]
    assert verdict == "bad"
    assert "14% of its life left" in detail


def test_migrate_begins_no_new_ca_beside_the_journal_of_the_old(
    template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    live.start()
    _enroll(live, _device(Shell(live.directory)))
    live.stop()
    (live.directory / "empty.db").touch()
    path = live.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8").replace("estserver.db", "empty.db")
    path.write_text(text, encoding="utf-8")
    shell = Shell(live.directory)
    assert "--begin-anew" in shell.refused("migrate")
    assert "has schema" in shell.run("migrate", "--begin-anew").stdout


def test_doctor_sees_a_crl_whose_bytes_are_damaged(live: Live) -> None:
    _sql(Shell(live.directory), "UPDATE crls SET head = zeroblob(40)")
    found = _verdicts(Shell(live.directory), status=1)
    assert any(verdict == "bad" and "CRL" in detail for verdict, detail in found.values())


def test_verify_finds_everything_in_order(live: Live) -> None:
    shell = Shell(live.directory)
    holder = _enroll(live, _device(shell))
    assert holder is not None
    serial = f"{holder.certificate.serial_number:x}"
    shell.run("certificates", "revoke", serial, "--reason", "superseded")
    assert "all fit" in shell.run("verify").stdout
    result = shell.json("verify")
    assert result["certificates"] == 3  # TLS, OCSP responder, device
    assert result["events"] > 5
    assert result["problems"] == []


def test_verify_expects_nothing_new_of_a_crl_that_is_to_be_made_anew(live: Live) -> None:
    shell = Shell(live.directory)
    holder = _enroll(live, _device(shell))
    assert holder is not None
    live.core.status.publish_due()
    serial = f"{holder.certificate.serial_number:x}"
    shell.run("certificates", "revoke", serial, "--reason", "superseded")
    # An hour later the CRL is dismissed, by `recover` or `crl renew`, and nobody serves yet.
    _sql(shell, "UPDATE crls SET this_update = this_update + 3600, next_update = this_update")
    assert "all fit" in shell.run("verify").stdout


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE certificate_bytes SET der = substr(der, 1, 200)", "no certificate"),
        ("UPDATE certificates SET sha256 = zeroblob(32) WHERE via = 'est'", "SHA-256"),
        ("UPDATE certificates SET serial = replace(serial, '7', '8')", "serial differs"),
        ("UPDATE certificates SET not_after = not_after + 86400", "notAfter differs"),
        ("UPDATE certificates SET subject = 'CN=somebody else'", "subject differs"),
        ("UPDATE certificates SET issuer = 'other'", "not configured"),
        ("UPDATE certificates SET state = 'issuing'", "is issuing but its bytes are stored"),
        ("UPDATE certificate_bytes SET der = NULL", "bytes are not stored"),
        ("UPDATE audit_events SET actor = 'nobody' WHERE id = 2", "content does not match"),
        ("DELETE FROM audit_events WHERE id = 2", "audit row"),
    ],
)
def test_verify_finds_what_was_tampered_with(live: Live, statement: str, problem: str) -> None:
    shell = Shell(live.directory)
    _enroll(live, _device(shell))
    live.core.close()
    _sql(shell, statement)
    result = shell.run("verify", status=1)
    assert problem in result.stdout
    live.core = open_core(live.settings, live.clock, with_keys=True)


def test_verify_finds_a_signature_that_is_not_the_issuers(
    live: Live, template: Path, tmp_path: Path
) -> None:
    del template
    shell = Shell(live.directory)
    _enroll(live, _device(shell))
    other = create_instance(tmp_path / "other", MovableClock(), InstanceOptions())
    shutil.copy(other.configuration.parent / "ca/issuing.crt", live.directory / "ca/issuing.crt")
    shutil.copy(other.configuration.parent / "ca/root.crt", live.directory / "ca/root.crt")
    assert "signature is not that of issuer issuing" in shell.run("verify", status=1).stdout


# -- help ------------------------------------------------------------------------------------------


def test_help_says_whole_sentences(shell: Shell) -> None:
    for arguments in ((), ("certificates",), ("ca",)):
        text = shell.run(*arguments, "--help").stdout
        assert "..." not in text.partition("Commands:")[2], text
    words = " ".join(shell.run("certificates", "--help").stdout.split())
    assert "Revoke every valid certificate that fits all options" in words


def test_reasons_are_written_as_rfc_5280_has_them(shell: Shell) -> None:
    said = shell.run("certificates", "revoke", "1234", "--reason", "lost", status=2).stderr
    assert "'keyCompromise'" in said
    assert "'cessationOfOperation'" in said


# -- the frame -------------------------------------------------------------------------------------


def test_a_failure_of_ours_gives_a_reference_and_the_traceback_only_on_request(
    shell: Shell,
) -> None:
    _person(shell)
    _sql(shell, "UPDATE invitations SET language = 'tlh'")
    sentence = shell.refused("invitations", "list")
    assert re.search(r"internal error [0-9a-f]{8}", sentence)
    configuration = str(shell.directory / "estserver.toml")
    result = CliRunner().invoke(main, ["--debug", "--config", configuration, "invitations", "list"])
    assert result.exit_code == 1
    assert "ValueError: 'tlh'" in result.stderr


def _start(shell: Shell, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "estserver", *arguments],
        env={**os.environ, "ESTSERVER_CONFIG": str(shell.directory / "estserver.toml")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_listens_until_it_is_told_to_stop(shell: Shell, number: signal.Signals) -> None:
    process = _start(shell, "serve")
    assert process.stderr is not None
    for line in process.stderr:
        if "server.started" in line:
            break
    process.send_signal(number)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest


def test_serve_says_in_a_sentence_which_port_is_taken(shell: Shell) -> None:
    port = int(shell.json("info")["devices"].rpartition(":")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        process = _start(shell, "serve")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert str(port) in said.splitlines()[-1]
    assert "in use: stop what listens there, or set listeners.devices.port" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_failpoints_are_armed_in_test_mode_only(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESTSERVER_FAILPOINT", "nonsense")
    assert "ESTSERVER_FAILPOINT" in shell.refused("serve", "--test-mode")
