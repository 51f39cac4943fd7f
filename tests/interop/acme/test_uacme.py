"""uacme, and the tls-alpn-01 responder that comes with it."""

import shlex
from collections.abc import Callable

import pytest

from tests.interop.acme.conftest import PrintFor
from tests.interop.acme.world import HOOKED, STANDALONE, World
from tests.interop.commands import Shell

UACME = Callable[[str], str]
_NAMES = ("dns:one.example.org", "dns:two.example.org")
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_HOOK = """#!/bin/sh
[ "$2" = "$WAY" ] || exit 1
case "$1 $2" in
    "begin http-01") mkdir -p "$WWW/.well-known/acme-challenge"
                     printf %s "$5" > "$WWW/.well-known/acme-challenge/$4" ;;
    "done http-01") rm "$WWW/.well-known/acme-challenge/$4" ;;
    "begin dns-01") echo "$5" >> "$TXT/_acme-challenge.$3" ;;
    "done dns-01") rm -f "$TXT/_acme-challenge.$3" ;;
    "begin tls-alpn-01") echo "auth $3 $5" | ualpn -s ./socket | grep -q ^OK ;;
    "done tls-alpn-01") echo "unauth $3" | ualpn -s ./socket | grep -q ^OK ;;
esac
"""


@pytest.fixture
def uacme(shell: Shell) -> UACME:
    """Return what runs a line of uacme: with our root where it looks, in a folder of its own."""
    hook = shell.folder / "hook"
    hook.write_text(_HOOK)
    hook.chmod(0o755)

    def run(line: str) -> str:
        # It takes no CA file: a mount of its own puts ours in the system's place.
        command = line.replace("uacme ", f"uacme -c . -a {shell.variables['DIR']} ", 1)
        script = f"mount --bind {shlex.quote(shell.variables['CA'])} {_BUNDLE} && {command}"
        return shell.run(f"unshare -m bash -c {shlex.quote(script)}")

    return run


@pytest.mark.row("ACME-015", "ACME-070", "ACME-090", "ACME-098", "ACME-109", "ACME-152")
def test_an_invitation_from_account_to_deactivation(
    world: World, shell: Shell, uacme: UACME, printed: dict[str, list[str]]
) -> None:
    with world.earlier():
        for command in printed["uacme"]:
            uacme(command)
    path = shell.folder / "one.example.org/cert.pem"
    first = world.granted(path, *_NAMES)
    uacme("uacme -y update new@example.org")
    uacme("uacme newkey")
    uacme("uacme -h /bin/true issue one.example.org two.example.org")
    second = world.renewed(first, path, *_NAMES)
    uacme(f"uacme revoke {path}")
    world.require_revoked(second)
    uacme("uacme deactivate")


@pytest.mark.row("ACME-164")
def test_what_is_printed_for_a_wildcard_and_an_address(
    world: World, shell: Shell, uacme: UACME, print_for: PrintFor
) -> None:
    names = ("dns:one.example.org", "dns:*.one.example.org", "ip:192.0.2.1")
    for command in print_for(world.live.invite("server", names=names))["uacme"]:
        uacme(command)
    world.granted(shell.folder / "one.example.org/cert.pem", *names)


@pytest.mark.row("ACME-128", "ACME-136", "ACME-153", "ACME-160", "ACME-164", "ACME-167")
@pytest.mark.parametrize(
    ("way", "names"),
    [
        ("http-01", ("dns:one.example.org", f"ip:{HOOKED}")),
        ("dns-01", ("dns:one.example.org", "dns:*.one.example.org")),
        ("tls-alpn-01", ("dns:alone.example.org", f"ip:{STANDALONE}")),
    ],
)
def test_names_and_addresses_are_shown_by(
    world: World, shell: Shell, uacme: UACME, way: str, names: tuple[str, str]
) -> None:
    asked = [name.partition(":")[2] for name in names]
    responder = f"ualpn -b {STANDALONE}@$TLS -c {STANDALONE}@1 -s ./socket -p ./pid"
    uacme("uacme -y new")
    with shell.serving(responder) as ualpn:
        ualpn.until((shell.folder / "socket").exists)
        uacme(f"WAY={way} uacme -h ./hook issue {shlex.join(asked)}")
    path = shell.folder / asked[0] / "cert.pem"
    certificate = world.certificate(path, *names)
    assert world.shown_by(certificate) == {way}
    uacme(f"uacme revoke {path} private/{asked[0]}/key.pem")
    world.require_revoked(certificate)
