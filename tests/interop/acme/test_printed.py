"""What `invite` prints for each client; that it works is shown where the client is run."""

import pytest

from estserver.cli.acme_handover import print_acme
from estserver.invitations import Handover
from tests.interop.acme.world import World


def test_each_client_is_told_of(printed: dict[str, list[str]], handover: Handover) -> None:
    assert list(printed) == ["certbot", "lego", "acme.sh", "uacme", "Caddy", "cert-manager"]
    assert all(handover.invitation.number in "".join(lines) for lines in printed.values())


def test_the_limits_of_clients_are_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("dns:one.example.org", "ip:192.0.2.1")
    invitation = world.live.invite("server", names=names).invitation
    print_acme(world.live.core, invitation, world.live.root, every_client=True)
    said = capsys.readouterr().out
    assert "  certbot (5.3 or later: older ones know no addresses)\n" in said
    assert "  lego (a recent one: 4.9 knows no addresses)\n" in said
    assert "  Caddy (Caddyfile), one certificate for each name: invite with --max 2\n" in said
