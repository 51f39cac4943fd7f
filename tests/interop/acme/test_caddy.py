"""Caddy, as PyPI packs it: a server that gets and renews its certificates by itself."""

import sys
from pathlib import Path

import pytest

from tests.interop.acme.conftest import PrintFor
from tests.interop.acme.world import STANDALONE, World
from tests.interop.commands import Shell

_PROGRAM = Path(sys.executable).parent / "caddyserver"
_GLOBAL = """{{
    admin off
    default_bind {address}
    http_port {http}
    https_port {tls}
    skip_install_trust
    storage file_system {folder}/storage
}}
"""


def _write(world: World, shell: Shell, *site: str) -> None:
    settings = _GLOBAL.format(
        address=STANDALONE,
        http=world.outside.http_port,
        tls=world.outside.tls_port,
        folder=shell.folder,
    )
    (shell.folder / "Caddyfile").write_text(settings + "\n".join(site) + "\n")


def _certificates(shell: Shell) -> dict[str, Path]:
    return {path.stem: path for path in shell.folder.glob("storage/certificates/*/*/*.crt")}


@pytest.mark.row("ACME-069", "ACME-109", "ACME-164", "ACME-172")
def test_an_invitation_renews_when_renewal_information_says_so(
    world: World, shell: Shell, print_for: PrintFor
) -> None:
    names = ("dns:one.example.org", "dns:*.one.example.org", "ip:192.0.2.1")
    # It gets one certificate for each name.
    _write(world, shell, *print_for(world.live.invite("server", names=names, units=3))["Caddy"])
    run = f"{_PROGRAM} run --config Caddyfile"
    with world.earlier(), shell.serving(run) as caddy:
        caddy.until(lambda: len(_certificates(shell)) == 3)
    paths = _certificates(shell)
    first = world.granted(paths["one.example.org"], "dns:one.example.org")
    before = paths["one.example.org"].read_bytes()
    with shell.serving(run) as caddy:
        caddy.until(lambda: paths["one.example.org"].read_bytes() != before)
    world.renewed(first, paths["one.example.org"], "dns:one.example.org", units=3)
    assert "certificate needs renewal based on ARI window" in caddy.log.read_text()


@pytest.mark.row("ACME-128", "ACME-160", "ACME-164", "ACME-167")
@pytest.mark.parametrize("way", ["http-01", "tls-alpn-01"])
def test_a_name_and_an_address_are_shown_by(world: World, shell: Shell, way: str) -> None:
    other = {"http-01": "tlsalpn", "tls-alpn-01": "http"}[way]
    _write(
        world,
        shell,
        f"alone.example.org, {STANDALONE} {{",
        "    tls {",
        f"        issuer acme {world.directory} {{",
        f"            trusted_roots {world.live.root}",
        f"            disable_{other}_challenge",
        "        }",
        "    }",
        "}",
    )
    with shell.serving(f"{_PROGRAM} run --config Caddyfile") as caddy:
        caddy.until(lambda: len(_certificates(shell)) == 2)
    paths = _certificates(shell)
    name = world.certificate(paths["alone.example.org"], "dns:alone.example.org")
    address = world.certificate(paths[STANDALONE], f"ip:{STANDALONE}")
    assert world.shown_by(name) == world.shown_by(address) == {way}
