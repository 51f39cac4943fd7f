"""npm's acme-client."""

from pathlib import Path

import pytest
from cryptography import x509

from estserver.invitations import Handover
from tests.interop.acme.world import HOOKED, World, certificate_id
from tests.interop.commands import Shell
from tests.protocols.acme.wire import eab

_NAMES = ("dns:one.example.org", "dns:two.example.org")


@pytest.fixture
def node(shell: Shell) -> Shell:
    """Return a shell in which `$CLIENT` is the program around the library."""
    program = Path(__file__).parent / "node/client.mjs"
    line = {"CLIENT": f"node {program}", "NODE_EXTRA_CA_CERTS": shell.variables["CA"]}
    return Shell(shell.folder, shell.variables | line)


@pytest.mark.row("ACME-070", "ACME-090", "ACME-098", "ACME-109", "ACME-152", "ACME-176")
def test_an_invitation_from_account_to_deactivation(
    world: World, handover: Handover, node: Shell
) -> None:
    kid, key = eab(world.live, handover)
    path = node.folder / "cert.pem"
    with world.earlier():
        node.run("$CLIENT account mailto:admin@example.org", EAB_KID=kid, EAB_KEY=key)
        node.run("$CLIENT issue http-01 one.example.org two.example.org")
    first = world.granted(path, *_NAMES)
    node.run("$CLIENT update mailto:new@example.org && $CLIENT rekey")
    replaced = certificate_id(first)
    node.run("$CLIENT issue http-01 one.example.org two.example.org", REPLACES=replaced)
    second = world.renewed(first, path, *_NAMES)
    assert world.order(second).replaces == replaced
    node.run("$CLIENT revoke 4")
    world.require_revoked(second, x509.ReasonFlags.superseded)
    node.run("$CLIENT deactivate")


@pytest.mark.row("ACME-128", "ACME-136", "ACME-160", "ACME-164", "ACME-167")
@pytest.mark.parametrize(
    ("way", "names"),
    [
        ("http-01", ("dns:one.example.org", f"ip:{HOOKED}")),
        ("dns-01", ("dns:one.example.org", "dns:*.one.example.org")),
        ("tls-alpn-01", ("dns:one.example.org", "dns:two.example.org")),
    ],
)
def test_names_are_shown_by(world: World, node: Shell, way: str, names: tuple[str, str]) -> None:
    asked = " ".join(f"'{name.partition(':')[2]}'" for name in names)
    node.run(f"$CLIENT account && $CLIENT issue {way} {asked}")
    certificate = world.certificate(node.folder / "cert.pem", *names)
    assert world.shown_by(certificate) == {way}


@pytest.mark.full
def test_its_own_way_from_account_to_certificate(world: World, node: Shell) -> None:
    node.run("$CLIENT auto http-01 one.example.org two.example.org")
    certificate = world.certificate(node.folder / "cert.pem", *_NAMES)
    assert world.shown_by(certificate) == {"http-01"}
