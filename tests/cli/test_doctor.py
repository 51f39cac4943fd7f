"""doctor and verify name what is ill, and nothing else."""

import grp
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from estserver.ca.ceremony import InstanceOptions, create_instance
from estserver.core import open_core
from tests.cli.desk import edit, enroll, invite_device, invite_person, sql
from tests.command_line import Shell
from tests.live import Live, MovableClock, free_ports


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


def test_doctor_makes_no_database_in_place_of_one_that_is_gone(shell: Shell) -> None:
    database = shell.directory / "estserver.db"
    database.unlink()
    verdict, detail = _verdicts(shell, status=1)["database"]
    assert verdict == "bad"
    assert "restore it from a backup" in detail
    assert not database.exists()


@pytest.mark.row("EST-019")
def test_doctor_fails_loudly_when_no_certificate_can_name_the_url(shell: Shell) -> None:
    edit(shell, 'hosts = ["localhost", "127.0.0.1"]', 'hosts = ["other.example.org"]')
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
    holder = enroll(live, invite_device(shell, "--dns", "localhost"))
    assert holder is not None
    brought = tmp_path / "brought.pem"
    brought.write_bytes(holder.pem)
    edit(shell, "[listeners.devices]", f'[listeners.devices]\ncertificate = "{brought}"')
    assert _verdicts(shell)["listener devices"][0] == "ok"
    edit(shell, 'url = "https://localhost', 'url = "https://elsewhere.example.org')
    edit(shell, 'hosts = ["localhost"', 'hosts = ["elsewhere.example.org", "localhost"')
    verdicts = _verdicts(shell, status=1)
    assert verdicts["listener web"][0] == "ok"
    assert "does not name elsewhere.example.org" in verdicts["listener devices"][1]


def _bring_a_front(shell: Shell, socket: Path, group: str, user: str) -> None:
    edit(
        shell,
        "[listeners.web]",
        f'[listeners.web]\nsocket = "{socket}"\nsocket_group = "{group}"\nfront_users = ["{user}"]',
    )


@pytest.mark.parametrize(
    ("group", "user", "said"),
    [
        ("no-such-group", "root", "there is no group no-such-group"),
        ("root", "no-such-user", "there is no user no-such-user"),
        ("root", "nobody", "nobody may not enter"),
    ],
)
def test_doctor_sees_that_a_front_cannot_come_to_its_socket(
    shell: Shell, group: str, user: str, said: str
) -> None:
    _bring_a_front(shell, Path("run/web.sock"), group, user)
    shell.directory.chmod(0o700)
    assert "make the folder" in _verdicts(shell, status=1)["listener web"][1]
    (shell.directory / "run").mkdir()
    verdict, detail = _verdicts(shell, status=1)["listener web"]
    assert verdict == "bad"
    assert said in detail
    assert _verdicts(shell, status=1)["listener devices"][0] == "ok"


def test_doctor_expects_no_folder_of_systemds_while_the_service_is_stopped(shell: Shell) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    _bring_a_front(shell, Path("/run/estserver-of-no-unit/web.sock"), group, "root")
    verdict, detail = _verdicts(shell)["listener web"]
    assert verdict == "warning"
    assert "RuntimeDirectory=" in detail
    edit(shell, "[listeners.devices]", '[listeners.devices]\nsocket = "devices.sock"')
    verdict, detail = _verdicts(shell)["listener devices"]
    assert verdict == "ok"
    assert f"which comes by {shell.directory}/devices.sock" in detail


def test_without_the_driver_of_postgresql_its_name_is_told_and_doctor_goes_on(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESTSERVER_DATABASE__URL", "postgresql+psycopg://pki@127.0.0.1/pki")
    # How Python is told that a module is not there.
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for command in ("migrate", "serve"):
        assert "pip install 'estserver[postgres]'" in shell.refused(command)
    verdicts = _verdicts(shell, status=1)
    assert verdicts["database"][0] == "bad"
    assert "whose driver is not installed" in verdicts["database"][1]
    assert verdicts["disk"][0] == "ok"


@pytest.mark.parametrize(
    "url",
    ["postgres://pki:CANARY@db/pki", "mysql://pki:CANARY@db/pki", "CANARY", "postgresql://:CANARY"],
)
def test_a_url_of_no_database_of_ours_is_told_without_its_password(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("ESTSERVER_DATABASE__URL", url)
    said = shell.refused("migrate")
    assert "must be sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME" in said
    assert "CANARY" not in said


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
    sql(shell, "UPDATE audit_events SET at = at + 86400")


def _name_a_dead_mail_server(shell: Shell) -> None:
    port = free_ports().web
    with (shell.directory / "estserver.toml").open("a") as file:
        file.write(f'\n[mail]\nhost = "127.0.0.1"\nport = {port}\nsender = "pki@example.org"\n')


def _take_a_ca_certificate_away(shell: Shell) -> None:
    (shell.directory / "ca/issuing.crt").unlink()


def _certify_what_nobody_has(shell: Shell) -> None:
    with (shell.directory / "estserver.toml").open("a") as file:
        file.write('\n[profiles.device]\nsubject = ["C={organization}"]\n')


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
    invite_person(shell)
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
    sql(
        Shell(live.directory),
        "UPDATE crls SET this_update = this_update - 518400, next_update = next_update - 518400",
    )
    verdict, detail = _verdicts(Shell(live.directory), status=1)["CRL issuing"]
    assert verdict == "bad"
    assert "14% of its life left: `serve` makes the next" in detail


def test_doctor_sees_a_crl_whose_bytes_are_damaged(live: Live) -> None:
    sql(Shell(live.directory), "UPDATE crls SET head = zeroblob(40)")
    found = _verdicts(Shell(live.directory), status=1)
    assert any(verdict == "bad" and "CRL" in detail for verdict, detail in found.values())


def test_verify_finds_everything_in_order(live: Live) -> None:
    shell = Shell(live.directory)
    holder = enroll(live, invite_device(shell))
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
    holder = enroll(live, invite_device(shell))
    assert holder is not None
    live.core.status.publish_due()
    serial = f"{holder.certificate.serial_number:x}"
    shell.run("certificates", "revoke", serial, "--reason", "superseded")
    # An hour later the CRL is dismissed, by `recover` or `crl renew`, and nobody serves yet.
    sql(shell, "UPDATE crls SET this_update = this_update + 3600, next_update = this_update")
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
    enroll(live, invite_device(shell))
    live.core.close()
    sql(shell, statement)
    result = shell.run("verify", status=1)
    assert problem in result.stdout
    live.core = open_core(live.settings, live.clock, with_keys=True)


def test_verify_finds_a_signature_that_is_not_the_issuers(
    live: Live, template: Path, tmp_path: Path
) -> None:
    del template
    shell = Shell(live.directory)
    enroll(live, invite_device(shell))
    other = create_instance(tmp_path / "other", MovableClock(), InstanceOptions())
    shutil.copy(other.configuration.parent / "ca/issuing.crt", live.directory / "ca/issuing.crt")
    shutil.copy(other.configuration.parent / "ca/root.crt", live.directory / "ca/root.crt")
    assert "signature is not that of issuer issuing" in shell.run("verify", status=1).stdout
