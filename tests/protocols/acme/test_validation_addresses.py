"""What a validation may reach: the SSRF table (ACME-131, 132; INC-13)."""

import ipaddress
from collections.abc import AsyncIterator

import pytest

from estserver.errors import ConfigurationError
from estserver.protocols.acme.addresses import AddressRules, OwnListener
from estserver.protocols.acme.challenge import ChallengeFailed
from estserver.protocols.acme.validation import Validator
from estserver.settings import Listener, Listeners
from tests.protocols.acme.neighbourhood import (
    HOST,
    Host,
    Neighbourhood,
    challenge,
    ok,
    redirect,
)

NAME = "www.example.test"
SHUT = (
    *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.0.0.21", "127.255.255.254", "169.254.169.254"),
    *("10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255"),
    *("192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:169.254.169.254"),
    *("64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1"),
    *("2002:7f00:1::1", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
    *("fe80::1", "fec0::1", "ff02::1", "4000::1"),
)
NO_NAMES = (
    *("127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001"),
    *("127.0.0.1", "0", "[::1]", "::1", "fe80::1%lo", "127.0.0.1.", "①②⑦.⓪.⓪.①"),
    *("www.example.test:22", "www.example.test/", "user@www.example.test", "", ".", "*.test"),
    *("127.0.0.1\x00.example.test", "www.example.test\r\nX: y", "a..b", "-a.test"),
)
INSIDE = (
    *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "0", "[::1]"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1%25lo]", "[fe80::1]", "169.254.169.254"),
    *("[64:ff9b::7f00:1]", "[::]", "localhost", "inside.example.test", "inside.example.test."),
    *("v6.example.test", "127.0.0.1.", "LOCALHOST", "%31%32%37.0.0.1", "127。0。0。1"),
)
REACHABLE = ("1.1.1.1", "9.255.255.255", "172.15.0.1", "172.32.0.1", "192.0.1.1", "100.63.0.1")
REACHABLE_V6 = ("2606:4700::1111", "2a00:1450::1", "2620:4f:8000::1", "2001:4860::8888")


@pytest.fixture
async def around() -> AsyncIterator[Neighbourhood]:
    async with Neighbourhood() as neighbourhood:
        yield neighbourhood


async def trap(around: Neighbourhood) -> list[Host]:
    """Listen on every address of this machine, IPv4 and IPv6, on both ports."""
    return [
        await around.web(ok(), address, port=port)
        for address in ("0.0.0.0", "::")
        for port in (around.http_port, around.tls_port)
    ]


def caught(hosts: list[Host]) -> int:
    return sum(host.connections for host in hosts)


@pytest.mark.row("ACME-132", "INC-13")
@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
async def test_a_name_with_a_special_address_is_not_dialled(
    around: Neighbourhood, kind: str
) -> None:
    hosts = await trap(around)
    for address in SHUT:
        around.dns.records.clear()
        around.name(NAME, address)
        problem = await around.problem(challenge(kind), allow_networks=())
        assert (address, problem, caught(hosts)) == (address, "connection", 0)


@pytest.mark.row("ACME-132", "INC-13")
@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
async def test_an_address_identifier_that_is_special_is_not_dialled(
    around: Neighbourhood, kind: str
) -> None:
    hosts = await trap(around)
    for address in SHUT:
        asked = challenge(kind, address, identifier_type="ip")
        problem = await around.problem(asked, allow_networks=())
        assert (address, problem, caught(hosts)) == (address, "connection", 0)


@pytest.mark.row("ACME-132", "INC-13")
async def test_what_is_no_host_name_is_neither_resolved_nor_dialled(around: Neighbourhood) -> None:
    hosts = await trap(around)
    for name in NO_NAMES:
        problem = await around.problem(challenge(identifier=name), allow_networks=())
        assert (name, problem, caught(hosts)) == (name, "connection", 0)
    assert around.dns.questions == []


@pytest.mark.row("ACME-132", "INC-13")
async def test_one_special_address_among_good_ones_shuts_the_name(around: Neighbourhood) -> None:
    good = await around.web(ok())
    hidden = await around.web(ok(), "127.0.0.22")
    around.name(NAME, HOST, "127.0.0.22")
    assert await around.problem(challenge()) == "connection"
    around.dns.records[(NAME, "A")] = [HOST]
    around.name(NAME, "fe80::1")
    assert await around.problem(challenge()) == "connection"
    around.dns.records.clear()
    around.name(NAME, "::1", "127.0.0.22")
    v6 = await around.web(ok(), "::1")
    assert await around.problem(challenge()) == "connection"
    assert caught([good, hidden, v6]) == 0


@pytest.mark.row("ACME-132", "INC-13")
async def test_a_name_that_changes_its_address_is_dialled_where_it_was_judged(
    around: Neighbourhood,
) -> None:
    good = await around.web(ok())
    bad = await around.web(ok(), "127.0.0.22")
    around.dns.scripts[(NAME, "A")] = [[HOST]]
    around.dns.records[(NAME, "A")] = ["127.0.0.22"]
    await around.validator().validate(challenge())
    assert (good.connections, bad.connections) == (1, 0)
    assert around.dns.questions.count((NAME, "A")) == 1


@pytest.mark.row("ACME-132", "INC-13")
async def test_a_name_that_changes_its_address_is_judged_anew_after_a_redirect(
    around: Neighbourhood,
) -> None:
    good = await around.web(redirect(f"http://{NAME}/again"))
    bad = await around.web(ok(), "127.0.0.22")
    around.dns.scripts[(NAME, "A")] = [[HOST]]
    around.dns.records[(NAME, "A")] = ["127.0.0.22"]
    assert await around.problem(challenge()) == "connection"
    assert (good.connections, bad.connections) == (1, 0)


@pytest.mark.row("ACME-131", "ACME-132", "INC-13")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_redirect_to_a_special_address_is_not_followed(
    around: Neighbourhood, scheme: str
) -> None:
    around.name(NAME)
    around.name("inside.example.test", "127.0.0.1")
    around.name("localhost", "127.0.0.1", "::1")
    around.name("v6.example.test", "::ffff:127.0.0.1")
    targets = iter(INSIDE)
    first = await around.web(lambda _: redirect(f"{scheme}://{next(targets)}/latest/meta-data/"))
    traps = [
        await around.web(ok(), address, port=port)
        for address in ("127.0.0.1", "::1")
        for port in (around.http_port, around.tls_port)
    ]
    for number, host in enumerate(INSIDE, 1):
        problem = await around.problem(challenge(), allow_networks=(f"{HOST}/32",))
        assert (host, problem, caught(traps)) == (host, "connection", 0)
        assert first.connections == number


@pytest.mark.row("ACME-132")
async def test_the_refusal_names_the_kind_of_address_and_not_the_address(
    around: Neighbourhood,
) -> None:
    around.name(NAME, "10.20.30.40")
    problem, detail = await around.failure(challenge())
    assert problem == "connection"
    assert "private use" in detail
    assert "10.20" not in detail


@pytest.mark.row("ACME-132")
async def test_an_open_network_is_reached(around: Neighbourhood) -> None:
    around.name()
    host = await around.web(ok())
    assert await around.problem(challenge(), allow_networks=()) == "connection"
    assert await around.problem(challenge(), allow_networks=("127.0.0.0/8",)) == "valid"
    assert host.connections == 1


@pytest.mark.row("ACME-132")
@pytest.mark.parametrize("listener", Listeners.model_fields)
async def test_our_own_listeners_are_shut_whatever_is_open(
    around: Neighbourhood, listener: str
) -> None:
    host = await around.web(ok(), "127.0.0.1")
    around.name(NAME, "127.0.0.1")
    for bind in ("127.0.0.1", "0.0.0.0", "::", "localhost"):
        ours = Listener(bind=bind, port=around.http_port, url="http://x", serves=())
        settings = around.settings({listener: ours}, allow_networks=("127.0.0.0/8",))
        with pytest.raises(ChallengeFailed) as refusal:
            await Validator(settings, around.clock).validate(challenge())
        assert refusal.value.problem == "connection"
    assert host.connections == 0
    elsewhere = Listener(bind="127.0.0.9", port=around.http_port, url="http://x", serves=())
    settings = around.settings({listener: elsewhere}, allow_networks=("127.0.0.0/8",))
    await Validator(settings, around.clock).validate(challenge())
    assert host.connections == 1


@pytest.mark.row("ACME-132")
@pytest.mark.parametrize("address", [*REACHABLE, *REACHABLE_V6])
def test_public_addresses_may_be_dialled(address: str) -> None:
    AddressRules((), ()).judge(ipaddress.ip_address(address), 80)


@pytest.mark.row("ACME-132")
def test_a_listener_on_all_addresses_is_ours_at_this_machines_only() -> None:
    rules = AddressRules(("127.0.0.0/8",), (OwnListener(None, 443),))
    rules.judge(ipaddress.ip_address("1.1.1.1"), 443)
    rules.judge(ipaddress.ip_address("127.0.0.1"), 80)
    with pytest.raises(ChallengeFailed):
        rules.judge(ipaddress.ip_address("127.0.0.77"), 443)


@pytest.mark.row("ACME-132")
@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.1.0.0/16", "10.1.2.3", "10.2.0.1"),
        ("169.254.169.254/32", "169.254.169.254", "169.254.169.253"),
        ("fd00::/8", "fd12::1", "fc12::1"),
        ("64:ff9b::/96", "64:ff9b::101:101", "64:ff9b::7f00:1"),
        ("2002::/16", "2002:101:101::1", "2002:a00:1::1"),
    ],
)
def test_an_entry_opens_what_it_names_and_no_more(network: str, inside: str, outside: str) -> None:
    rules = AddressRules((network,), ())
    rules.judge(ipaddress.ip_address(inside), 80)
    with pytest.raises(ChallengeFailed):
        rules.judge(ipaddress.ip_address(outside), 80)


@pytest.mark.row("ACME-132")
@pytest.mark.parametrize(
    "network",
    [
        *("0.0.0.0/0", "::/0", "10.0.0.0/7", "8.8.8.0/24", "0.0.0.0/8", "224.0.0.0/4"),
        *("::ffff:127.0.0.0/104", "ff00::/8", "10.0.0.1/8", "example.test", ""),
    ],
)
def test_an_entry_that_opens_too_much_or_nothing_is_a_mistake_in_the_settings(
    network: str,
) -> None:
    with pytest.raises(ConfigurationError, match=r"acme\.allow_networks"):
        AddressRules((network,), ())
