"""lego."""

import pytest

from estserver.invitations import Handover
from tests.interop.acme.conftest import PrintFor
from tests.interop.acme.world import STANDALONE, World
from tests.interop.commands import Shell
from tests.protocols.acme.wire import eab

_NAMES = ("dns:one.example.org", "dns:two.example.org")


@pytest.fixture
def lego(shell: Shell) -> Shell:
    """Return a shell in which `$LEGO` is lego and what each of its commands needs to be told."""
    line = f"lego --server {shell.variables['DIR']} --accept-tos --email admin@localhost"
    trust = {"LEGO_CA_CERTIFICATES": shell.variables["CA"], "LEGO": line}
    return Shell(shell.folder, shell.variables | trust)


@pytest.mark.row("ACME-015", "ACME-109", "ACME-172")
def test_an_invitation_renews_when_it_is_due_and_revokes(
    world: World, handover: Handover, lego: Shell, printed: dict[str, list[str]]
) -> None:
    (command,) = printed["lego"]
    with world.earlier():
        lego.run(command)
    path = lego.folder / ".lego/certificates/one.example.org.crt"
    first = world.granted(path, *_NAMES)
    kid, key = eab(world.live, handover)
    bound = f"$LEGO --eab --kid {kid} --hmac {key} --http --domains one.example.org"
    lego.run(f"{bound} --domains two.example.org renew --no-random-sleep")
    second = world.renewed(first, path, *_NAMES)
    lego.run(f"{bound} revoke")
    world.require_revoked(second)


def test_what_is_printed_for_a_wildcard(world: World, lego: Shell, print_for: PrintFor) -> None:
    names = ("dns:one.example.org", "dns:*.one.example.org")
    (command,) = print_for(world.live.invite("server", names=names))["lego"]
    lego.run(command)
    path = lego.folder / ".lego/certificates/one.example.org.crt"
    world.granted(path, *names)


@pytest.mark.row("ACME-128", "ACME-160")
@pytest.mark.parametrize("way", ["http", "tls"])
def test_a_name_is_shown_by(world: World, lego: Shell, way: str) -> None:
    port = lego.variables[way.upper()]
    lego.run(f"$LEGO --{way} --{way}.port {STANDALONE}:{port} -d alone.example.org run")
    path = lego.folder / ".lego/certificates/alone.example.org.crt"
    certificate = world.certificate(path, "dns:alone.example.org")
    assert world.shown_by(certificate) == {{"http": "http-01", "tls": "tls-alpn-01"}[way]}


@pytest.mark.row("ACME-136")
def test_a_wildcard_is_shown_by_dns_01(world: World, lego: Shell) -> None:
    hook = lego.folder / "hook"
    hook.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        '    present) echo "$3" >> "$TXT/${2%.}" ;;\n'
        '    cleanup) rm -f "$TXT/${2%.}" ;;\n'
        "esac\n"
    )
    hook.chmod(0o755)
    lego.run(
        "EXEC_PATH=./hook EXEC_POLLING_INTERVAL=1 $LEGO --dns exec --dns.disable-cp "
        '--dns.resolvers "$DNS" -d "*.one.example.org" run'
    )
    path = lego.folder / ".lego/certificates/_.one.example.org.crt"
    certificate = world.certificate(path, "dns:*.one.example.org")
    assert world.shown_by(certificate) == {"dns-01"}
