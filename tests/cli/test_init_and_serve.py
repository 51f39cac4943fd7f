"""init, serve, and the frame of every command."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from estserver.cli import main
from tests.cli.desk import enroll, invite_device, invite_person, sql
from tests.command_line import Shell
from tests.live import Workshop

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


# -- migrate, doctor, verify -----------------------------------------------------------------------


def test_migrate_makes_a_database_and_does_no_harm_twice(shell: Shell) -> None:
    invite_person(shell)
    for _ in range(2):
        assert "schema" in shell.run("migrate").stdout
    assert len(shell.json("invitations", "list")) == 1


def test_without_a_database_every_command_says_what_to_do(shell: Shell) -> None:
    (shell.directory / "estserver.db").unlink()
    for command in (("invitations", "list"), ("migrate",)):
        assert "restore it from a backup" in shell.refused(*command)
    assert not (shell.directory / "estserver.db").exists()


def test_migrate_begins_no_new_ca_beside_the_journal_of_the_old(
    template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    live.start()
    enroll(live, invite_device(Shell(live.directory)))
    live.stop()
    (live.directory / "empty.db").touch()
    path = live.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8").replace("estserver.db", "empty.db")
    path.write_text(text, encoding="utf-8")
    shell = Shell(live.directory)
    assert "--begin-anew" in shell.refused("migrate")
    assert "has schema" in shell.run("migrate", "--begin-anew").stdout


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
    invite_person(shell)
    sql(shell, "UPDATE invitations SET language = 'tlh'")
    sentence = shell.refused("invitations", "list")
    assert re.search(r"internal error [0-9a-f]{8}", sentence)
    configuration = str(shell.directory / "estserver.toml")
    result = CliRunner().invoke(main, ["--debug", "--config", configuration, "invitations", "list"])
    assert result.exit_code == 1
    assert "ValueError: 'tlh'" in result.stderr


def _start(shell: Shell, *arguments: str, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *options, "-m", "estserver", *arguments],
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


_NOBODY_NEEDS = {"aiosmtplib", "alembic", "dns", "icalendar", "pkcs11", "psycopg", "rich.console"}
_PAGES_AND_ACME_NEED = {"babel", "jinja2", "josepy"}


@pytest.mark.parametrize(
    ("served", "absent"),
    [("", _NOBODY_NEEDS), ("serves = []", _NOBODY_NEEDS | _PAGES_AND_ACME_NEED)],
    ids=["every door", "no web listener"],
)
def test_serve_imports_what_its_listeners_need(shell: Shell, served: str, absent: set[str]) -> None:
    configuration = shell.directory / "estserver.toml"
    text = configuration.read_text()
    if served:
        text = text.replace("[listeners.web]", f"[listeners.web]\n{served}")
        text = text.replace("[listeners.devices]", '[listeners.devices]\nserves = ["est"]')
    configuration.write_text(text)
    process = _start(shell, "serve", options=("-X", "importtime"))
    assert process.stderr is not None
    imported = set()
    for line in process.stderr:
        imported |= set(re.findall(r"^import time:.*\| +([A-Za-z0-9_.]+)", line))
        if "server.started" in line:
            break
    process.terminate()
    process.communicate(timeout=30)
    assert "aiohttp" in imported
    assert (imported & absent) == set()


_COUNT_ROOTS = """
import gc, os, ssl
from estserver.cli import serve
before = os.environ.copy()
serve._import_aiohttp()
assert os.environ == before
contexts = [one for one in gc.get_objects() if isinstance(one, ssl.SSLContext)]
print(sum(one.cert_store_stats()["x509"] for one in contexts))
"""


@pytest.mark.parametrize("roots", [{}, {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}])
def test_serve_reads_no_roots_of_the_system(roots: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
    counted = subprocess.run(
        [sys.executable, "-c", _COUNT_ROOTS],
        env={**environment, **roots},
        capture_output=True,
        text=True,
        check=True,
    )
    assert counted.stdout == "0\n"


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


def test_debug_shows_where_serve_was_refused_whatever_level_is_configured(shell: Shell) -> None:
    port = int(shell.json("info")["devices"].rpartition(":")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        process = _start(shell, "--debug", "serve")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in said


def test_what_ends_a_server_unforeseen_is_logged_in_full(shell: Shell) -> None:
    shell.run("verify")
    sql(shell, "UPDATE audit_events SET detail = '[]' WHERE event = 'instance.verified'")
    process = _start(shell, "serve")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    *logged, sentence = said.splitlines()
    told = re.fullmatch(r"Error: internal error ([0-9a-f]{8}) .*: the log says where", sentence)
    assert told is not None
    assert sum(f"request_id={told[1]}" in line for line in logged) == 1
    assert any("in newest_verification" in line for line in logged)


def test_failpoints_are_armed_in_test_mode_only(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESTSERVER_FAILPOINT", "nonsense")
    assert "ESTSERVER_FAILPOINT" in shell.refused("serve", "--test-mode")
