"""mod_md of Apache httpd: a server that gets and renews its certificates by itself."""

import contextlib
import json
from pathlib import Path

import pytest

from tests.interop.acme.world import STANDALONE, World, certificate_id
from tests.interop.commands import Shell
from tests.protocols.acme.wire import eab

_MODULES = ("mpm_event", "authz_core", "socache_shmcb", "ssl", "md")
_PROGRAM = "/usr/sbin/apache2 -X -d . -f httpd.conf"


def _configure(world: World, shell: Shell, *directives: str) -> None:
    listen = [f"{STANDALONE}:{shell.variables[name]}" for name in ("HTTP", "TLS")]
    lines = [
        *(f"LoadModule {one}_module /usr/lib/apache2/modules/mod_{one}.so" for one in _MODULES),
        "ServerName one.example.org",
        f"DefaultRuntimeDir {shell.folder}",
        f"PidFile {shell.folder}/pid",
        "ErrorLog /dev/stderr",
        "LogLevel warn md:debug",
        *(f"Listen {address}" for address in listen),
        "Protocols http/1.1 acme-tls/1",
        "MDStoreDir md",
        f"MDCertificateAuthority {world.directory}",
        f"MDCACertificateFile {world.live.root}",
        "MDCertificateAgreement accepted",
        "MDContactEmail admin@example.org",
        f"MDPortMap 80:{shell.variables['HTTP']} 443:{shell.variables['TLS']}",
        "MDRetryDelay 1s",
        *directives,
        f"<VirtualHost {listen[1]}>",
        "    SSLEngine on",
        "    ServerName alone.example.org",
        "</VirtualHost>",
    ]
    (shell.folder / "httpd.conf").write_text("\n".join(lines) + "\n")
    (shell.folder / "md").mkdir(exist_ok=True)


def _obtain(shell: Shell) -> Path:
    """Run until a new certificate lies ready for the next start; return where."""
    folder = shell.folder / "md/staging/alone.example.org"
    job, path = folder / "job.json", folder / "pubcert.pem"
    before = path.read_bytes() if path.exists() else None

    def is_ready() -> bool:
        # A start takes away what the last run has left there.
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes() != before and "finished" in json.loads(job.read_text())
        return False

    with shell.serving(_PROGRAM) as apache:
        apache.until(is_ready)
    return path


@pytest.mark.row("ACME-109", "ACME-172", "ACME-176")
def test_an_invitation_renews_and_says_what_it_replaces(world: World, shell: Shell) -> None:
    handover = world.live.invite("server", names=("dns:alone.example.org",))
    kid, key = eab(world.live, handover)
    _configure(world, shell, f"MDExternalAccountBinding {kid} {key}", "MDomain alone.example.org")
    with world.earlier():
        first = world.granted(_obtain(shell), "dns:alone.example.org")
    second = world.renewed(first, _obtain(shell), "dns:alone.example.org")
    assert world.order(second).replaces == certificate_id(first)


@pytest.mark.row("ACME-128", "ACME-160")
@pytest.mark.parametrize("way", ["http-01", "tls-alpn-01"])
def test_a_name_is_shown_by(world: World, shell: Shell, way: str) -> None:
    _configure(world, shell, f"MDCAChallenges {way}", "MDomain alone.example.org")
    certificate = world.certificate(_obtain(shell), "dns:alone.example.org")
    assert world.shown_by(certificate) == {way}
