"""certbot: Debian's and PyPI's."""

import os
import sys
from pathlib import Path

import pytest
from cryptography import x509

from tests.interop.acme.conftest import PrintFor
from tests.interop.acme.world import STANDALONE, World
from tests.interop.commands import Shell

_OWN = "--config-dir c --work-dir w --logs-dir l"
_NAMES = ("dns:one.example.org", "dns:two.example.org")
_NEW = "certonly -n --agree-tos --register-unsafely-without-email"
_PATHS = {"debian": "/usr/bin", "pypi": str(Path(sys.executable).parent)}


@pytest.fixture
def certbot(request: pytest.FixtureRequest, shell: Shell) -> Shell:
    """Return a shell in which `certbot` is the one or the other."""
    path = f"{_PATHS[request.param]}:{os.environ['PATH']}"
    trust = {"REQUESTS_CA_BUNDLE": shell.variables["CA"], "PATH": path}
    return Shell(shell.folder, shell.variables | trust)


def _path(shell: Shell, name: str = "one.example.org") -> Path:
    return shell.folder / f"c/live/{name}/cert.pem"


@pytest.mark.row("ACME-015", "ACME-109")
@pytest.mark.parametrize("certbot", _PATHS, indirect=True)
def test_an_invitation_renews_when_it_is_due_and_revokes(
    world: World, certbot: Shell, printed: dict[str, list[str]]
) -> None:
    (command,) = printed["certbot"]
    with world.earlier():
        certbot.run(f"{command} {_OWN}")
    first = world.granted(_path(certbot), *_NAMES)
    certbot.run(f"certbot renew -n --no-random-sleep-on-renew {_OWN}")
    second = world.renewed(first, _path(certbot), *_NAMES)
    certbot.run(
        f'certbot revoke -n --server "$DIR" --cert-path {_path(certbot)} --reason superseded '
        f"--no-delete-after-revoke {_OWN}"
    )
    world.require_revoked(second, x509.ReasonFlags.superseded)
    certbot.run(f'certbot unregister -n --server "$DIR" {_OWN}')


@pytest.mark.row("ACME-128", "ACME-153")
@pytest.mark.parametrize(
    "certbot", [pytest.param("debian", marks=pytest.mark.full), "pypi"], indirect=True
)
def test_http_01_standalone_and_revocation_by_the_certificates_key(
    world: World, certbot: Shell
) -> None:
    certbot.run(
        f'certbot {_NEW} --server "$DIR" --standalone --http-01-port $HTTP '
        f"--http-01-address {STANDALONE} -d alone.example.org {_OWN}"
    )
    path = _path(certbot, "alone.example.org")
    certificate = world.certificate(path, "dns:alone.example.org")
    assert world.shown_by(certificate) == {"http-01"}
    certbot.run(
        f'certbot revoke -n --server "$DIR" --cert-path {path} --key-path '
        f"{path.with_name('privkey.pem')} --reason keycompromise --no-delete-after-revoke {_OWN}"
    )
    world.require_revoked(certificate, x509.ReasonFlags.key_compromise)


@pytest.mark.row("ACME-136")
@pytest.mark.parametrize(
    "certbot", ["debian", pytest.param("pypi", marks=pytest.mark.full)], indirect=True
)
def test_dns_01_for_a_wildcard_and_its_parent(world: World, certbot: Shell) -> None:
    certbot.run(
        f'certbot {_NEW} --server "$DIR" --manual --preferred-challenges dns '
        "--manual-auth-hook 'echo $CERTBOT_VALIDATION >> $TXT/_acme-challenge.$CERTBOT_DOMAIN' "
        "--manual-cleanup-hook 'rm -f $TXT/_acme-challenge.$CERTBOT_DOMAIN' "
        f'-d one.example.org -d "*.one.example.org" {_OWN}'
    )
    certificate = world.certificate(_path(certbot), "dns:one.example.org", "dns:*.one.example.org")
    assert world.shown_by(certificate) == {"dns-01"}


@pytest.mark.row("ACME-164")
@pytest.mark.parametrize("certbot", ["pypi"], indirect=True)
def test_what_is_printed_for_a_wildcard_and_an_address(
    world: World, certbot: Shell, print_for: PrintFor
) -> None:
    names = ("dns:one.example.org", "dns:*.one.example.org", "ip:192.0.2.1")
    (command,) = print_for(world.live.invite("server", names=names))["certbot"]
    certbot.run(f"{command} {_OWN}")
    world.granted(_path(certbot), *names)


@pytest.mark.row("ACME-164", "ACME-167")
@pytest.mark.full
@pytest.mark.parametrize("certbot", ["pypi"], indirect=True)
def test_an_address(world: World, certbot: Shell) -> None:
    certbot.run(
        f'certbot {_NEW} --server "$DIR" --standalone --http-01-port $HTTP '
        f"--http-01-address {STANDALONE} --ip-address {STANDALONE} --cert-name address {_OWN}"
    )
    certificate = world.certificate(_path(certbot, "address"), f"ip:{STANDALONE}")
    assert world.shown_by(certificate) == {"http-01"}
