"""invite and invitations: what is registered, printed, and never shown twice."""

import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from estserver.cli import listing
from tests.cli.desk import invite_device, invite_person
from tests.command_line import Shell
from tests.live import Live, Workshop

# -- invite ----------------------------------------------------------------------------------------


def test_an_invitation_as_json_has_a_member_for_each_open_door(shell: Shell) -> None:
    person = invite_person(shell)
    assert person.keys() == {"number", "expires", "profile", "web"}
    assert person["web"].keys() == {"url", "pin"}
    assert re.fullmatch(r"https://localhost:\d+/e/[A-Za-z0-9_-]{22}", person["web"]["url"])
    assert re.fullmatch(r"[0-9A-Z]{3}-[0-9A-Z]{3}-[0-9A-Z]{3}", person["web"]["pin"])
    device = invite_device(shell)
    assert device.keys() == {"number", "expires", "profile", "est", "acme"}
    assert device["acme"].keys() == {"directory", "kid", "hmac_key"}
    assert re.fullmatch(r"https://localhost:\d+/acme/directory", device["acme"]["directory"])
    assert device["acme"]["kid"] == device["number"]
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{127}", device["acme"]["hmac_key"])
    assert device["est"].keys() == {"url", "username", "password"}
    assert device["est"]["url"].endswith("/.well-known/est/device")
    assert device["est"]["username"] == device["number"]
    both = invite_person(shell, "--door", "web", "--door", "est")
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
    number = invite_person(shell, "--hold")["number"]
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
    invited = invite_person(shell)
    for arguments in (["list"], ["list", "--json"], ["show", invited["number"]]):
        printed = shell.run("invitations", *arguments).output
        assert invited["web"]["pin"] not in printed
        assert invited["web"]["url"] not in printed


def test_long_lists_come_in_pages_and_say_when_something_is_left_out(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_PAGE", 2)
    numbers = [invite_device(shell)["number"] for _ in range(5)]
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
