"""While one root takes over from another, each certificate has a chain to either (§7.4.2)."""

import re
from collections.abc import Callable

import pytest
from cryptography import x509

from tests.live import Live
from tests.protocols.acme.wire import Client, registered
from tests.rollover import Rollover

_NAME = "a.example.org"


def _chains(client: Client, url: str) -> dict[str, list[x509.Certificate]]:
    """Fetch a certificate and its alternates; every answer must link exactly the others."""
    found: dict[str, list[x509.Certificate]] = {}
    links: dict[str, set[str]] = {}
    open_urls = [url]
    while open_urls:
        one = open_urls.pop()
        reply = client.get(one)
        assert reply.status == 200
        found[one] = x509.load_pem_x509_certificates(reply.answer.body)
        header = ", ".join(reply.answer.headers.get_all("Link") or [])
        links[one] = set(re.findall(r'<([^>]+)>;rel="alternate"', header))
        open_urls += links[one] - found.keys()
    assert links == {one: found.keys() - {one} for one in found}
    return found


@pytest.mark.row("ACME-151")
def test_a_certificate_has_an_alternate_chain_to_each_other_root(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("")
    change = Rollover(live)
    change.announce()
    roots = [change.old, change.new]
    for issuer, moves in (("issuing", ()), ("next", ("server",))):
        if moves:
            change.move_profiles(*moves)
        client = registered(live, _NAME)
        url = client.issue(_NAME).order["certificate"]
        chains = _chains(client, url)
        assert len(chains) == 2
        (leaf,) = {chain[0] for chain in chains.values()}
        leaf.verify_directly_issued_by(live.core.chains[issuer][0])
        for chain, root in zip((chains.pop(url), *chains.values()), roots, strict=True):
            # The root itself is left out: who does not have it cannot trust it.
            for lower, upper in zip(chain, [*chain[1:], root], strict=True):
                lower.verify_directly_issued_by(upper)
        assert client.get(f"{url}/2").status == 404
        assert client.get(f"{url}/0").status == 404


def test_with_one_root_there_is_no_alternate(shared: Live) -> None:
    client = registered(shared, _NAME)
    url = client.issue(_NAME).order["certificate"]
    assert list(_chains(client, url)) == [url]
    assert client.get(f"{url}/1").status == 404
