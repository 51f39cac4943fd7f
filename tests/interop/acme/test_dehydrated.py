"""dehydrated."""

import pytest

from estserver.invitations import Handover
from tests.interop.acme.world import World
from tests.interop.commands import Shell
from tests.protocols.acme.wire import eab

_NAMES = ("dns:one.example.org", "dns:two.example.org")
_HOOK = """#!/bin/sh
case "$1" in
    deploy_challenge) echo "$4" >> "$TXT/_acme-challenge.$2" ;;
    clean_challenge) rm -f "$TXT/_acme-challenge.$2" ;;
esac
"""


@pytest.fixture
def dehydrated(shell: Shell) -> Shell:
    (shell.folder / "config").write_text(
        f'CA="{shell.variables["DIR"]}"\nCURL_OPTS="--cacert {shell.variables["CA"]}"\n'
        f'WELLKNOWN="{shell.variables["WWW"]}/.well-known/acme-challenge"\n'
        f'ALPNCERTDIR="{shell.variables["ALPN"]}"\nBASEDIR="{shell.folder}"\n'
        "CONTACT_EMAIL=admin@example.org\n"
    )
    hook = shell.folder / "hook"
    hook.write_text(_HOOK)
    hook.chmod(0o755)
    shell.run('mkdir -p "$WWW/.well-known/acme-challenge"')
    return shell


@pytest.mark.row("ACME-015", "ACME-071", "ACME-109")
def test_an_invitation_renews_when_it_is_due_and_revokes(
    world: World, handover: Handover, dehydrated: Shell
) -> None:
    kid, key = eab(world.live, handover)
    with (dehydrated.folder / "config").open("a") as config:
        config.write(f'EAB_KID="{kid}"\nEAB_HMAC_KEY="{key}"\n')
    (dehydrated.folder / "domains.txt").write_text("one.example.org two.example.org\n")
    with world.earlier():
        dehydrated.run("dehydrated -f config --register --accept-terms")
        dehydrated.run("dehydrated -f config -c")
    path = dehydrated.folder / "certs/one.example.org/cert.pem"
    first = world.granted(path, *_NAMES)
    dehydrated.run("dehydrated -f config -c")
    second = world.renewed(first, path, *_NAMES)
    dehydrated.run(f"dehydrated -f config -r {path}")
    world.require_revoked(second)


@pytest.mark.row("ACME-128", "ACME-136", "ACME-160")
@pytest.mark.parametrize(
    ("way", "names"),
    [
        pytest.param("http-01", ("one.example.org", "two.example.org"), marks=pytest.mark.full),
        pytest.param("dns-01", ("one.example.org", "*.one.example.org"), marks=pytest.mark.full),
        ("tls-alpn-01", ("one.example.org",)),
    ],
)
def test_names_are_shown_by(
    world: World, dehydrated: Shell, way: str, names: tuple[str, ...]
) -> None:
    asked = " ".join(f"-d '{name}'" for name in names)
    dehydrated.run("dehydrated -f config --register --accept-terms")
    dehydrated.run(f"dehydrated -f config -c -t {way} -k ./hook {asked}")
    certificate = world.certificate(
        dehydrated.folder / "certs/one.example.org/cert.pem", *(f"dns:{name}" for name in names)
    )
    assert world.shown_by(certificate) == {way}
