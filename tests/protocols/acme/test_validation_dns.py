"""dns-01 and dns-persist-01, and how DNS is asked (ACME-135 to 137, 166, 184)."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import dns.rcode
import pytest

from estserver.errors import ConfigurationError
from tests.protocols.acme.neighbourhood import (
    ACCOUNT,
    DIGEST,
    KEY_AUTHORIZATION,
    Neighbourhood,
    challenge,
)

WHERE = "_acme-challenge.www.example.test"
PERSIST = "_validation-persist.www.example.test"
CA = "ca.example.test"


@pytest.fixture
async def around() -> AsyncIterator[Neighbourhood]:
    async with Neighbourhood() as neighbourhood:
        yield neighbourhood


@pytest.mark.row("ACME-136")
@pytest.mark.parametrize(
    "values",
    [
        [f'"{DIGEST}"'],
        ['"v=spf1 -all"', f'"{DIGEST}"', '"another"'],
        [f'"{DIGEST[:10]}" "{DIGEST[10:]}"'],
        [f'"{DIGEST}"', *(f'"{"x" * 200}{number}"' for number in range(40))],
    ],
    ids=["alone", "among others", "in several strings", "in an answer too long for UDP"],
)
async def test_one_right_txt_record_is_enough(around: Neighbourhood, values: list[str]) -> None:
    around.dns.records[(WHERE, "TXT")] = values
    await around.validator().validate(challenge("dns-01"))
    assert around.dns.over_tcp == (1 if len(values) > 40 else 0)


@pytest.mark.row("ACME-136")
async def test_an_alias_is_followed(around: Neighbourhood) -> None:
    around.dns.records[(WHERE, "CNAME")] = ["proofs.elsewhere.test."]
    around.dns.records[("proofs.elsewhere.test", "TXT")] = [f'"{DIGEST}"']
    await around.validator().validate(challenge("dns-01"))


@pytest.mark.row("ACME-136")
async def test_a_wildcard_is_proven_at_the_name_beneath_which_it_stands(
    around: Neighbourhood,
) -> None:
    around.dns.records[(WHERE, "TXT")] = [f'"{DIGEST}"']
    await around.validator().validate(challenge("dns-01", wildcard=True))
    assert around.dns.questions == [(WHERE, "TXT")]


@pytest.mark.row("ACME-137")
async def test_no_other_or_misplaced_txt_records_prove_nothing(around: Neighbourhood) -> None:
    around.dns.records[("www.example.test", "TXT")] = [f'"{DIGEST}"']
    assert await around.problem(challenge("dns-01")) == "dns"  # there is no such name
    around.dns.records[(WHERE, "A")] = ["192.0.2.1"]
    assert await around.problem(challenge("dns-01")) == "unauthorized"
    for wrong in (DIGEST[:-1], DIGEST + "=", DIGEST.swapcase(), KEY_AUTHORIZATION, " " + DIGEST):
        around.dns.records[(WHERE, "TXT")] = [f'"{wrong}"']
        assert await around.problem(challenge("dns-01")) == "incorrectResponse"


@pytest.mark.row("ACME-137")
async def test_what_dns_says_never_reaches_the_client(around: Neighbourhood) -> None:
    around.dns.records[(WHERE, "TXT")] = ['"internal-secret-4711"']
    _, detail = await around.failure(challenge("dns-01"))
    assert "4711" not in detail


@pytest.mark.row("ACME-135")
@pytest.mark.parametrize("code", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NXDOMAIN])
async def test_a_name_server_that_cannot_answer_is_a_dns_problem(
    around: Neighbourhood, code: dns.rcode.Rcode
) -> None:
    around.dns.records[(WHERE, "TXT")] = code
    assert await around.problem(challenge("dns-01")) == "dns"


@pytest.mark.row("ACME-135")
async def test_a_silent_or_absent_name_server_is_a_dns_problem(around: Neighbourhood) -> None:
    around.dns.records[(WHERE, "TXT")] = None
    assert await around.problem(challenge("dns-01"), seconds=2) == "dns"
    nobody = (f"127.0.0.54:{around.dns_port}",)
    assert await around.problem(challenge("dns-01"), resolvers=nobody, seconds=2) == "dns"


async def test_a_second_name_server_stands_in_for_the_first(around: Neighbourhood) -> None:
    around.dns.records[(WHERE, "TXT")] = [f'"{DIGEST}"']
    servers = (f"127.0.0.54:{around.dns_port}", f"127.0.0.53:{around.dns_port}")
    assert await around.problem(challenge("dns-01"), resolvers=servers) == "valid"


@pytest.mark.row("ACME-135")
async def test_a_name_too_long_for_dns_is_a_dns_problem(around: Neighbourhood) -> None:
    long = ".".join(["a" * 60] * 4)
    assert await around.problem(challenge("dns-01", f"{long}.test")) == "dns"


@pytest.mark.row("ACME-166")
@pytest.mark.parametrize("kind", ["dns-01", "dns-persist-01"])
async def test_dns_proves_no_address(around: Neighbourhood, kind: str) -> None:
    asked = challenge(kind, "192.0.2.1", identifier_type="ip")
    assert await around.problem(asked) == "unauthorized"
    assert around.dns.questions == []


@pytest.mark.parametrize("text", ["dns.example", "127.0.0.1:0", "127.0.0.1:99999", "[::1", "::1:x"])
async def test_a_resolver_that_is_no_address_is_a_mistake_in_the_settings(
    around: Neighbourhood, text: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"acme\.resolvers"):
        around.validator(resolvers=(text,))


async def test_resolvers_may_be_ipv6_addresses(around: Neighbourhood) -> None:
    around.validator(resolvers=("::1", "[::1]", "[::1]:5353", "192.0.2.53"))


UNTIL = int(datetime(2040, 1, 1, tzinfo=UTC).timestamp())


@pytest.mark.row("ACME-184")
@pytest.mark.parametrize(
    ("value", "wildcard", "expected"),
    [
        (f"{CA}; accounturi={ACCOUNT}", False, "valid"),
        (f"{CA.upper()};AccountURI={ACCOUNT}", False, "valid"),
        (f"{CA}; accounturi={ACCOUNT}; persistUntil={UNTIL}", False, "valid"),
        (f"{CA}; accounturi={ACCOUNT}; future=thing", False, "valid"),
        (f"{CA}; accounturi={ACCOUNT}; policy=wildcard", False, "valid"),
        (f"{CA}; accounturi={ACCOUNT}; policy=WildCard", True, "valid"),
        (f"{CA}; accounturi={ACCOUNT}", True, "unauthorized"),
        (f"{CA}; accounturi={ACCOUNT}; policy=all", True, "unauthorized"),
        (f"{CA}; accounturi={ACCOUNT}-two", False, "unauthorized"),
        (f"{CA}; accounturi={ACCOUNT.upper()}", False, "unauthorized"),
        (f"{CA}", False, "unauthorized"),
        (f"other.test; accounturi={ACCOUNT}", False, "unauthorized"),
        (f"; accounturi={ACCOUNT}", False, "unauthorized"),
        (f"{CA}; accounturi={ACCOUNT}; persistUntil=1000000000", False, "unauthorized"),
        (f"{CA}; accounturi={ACCOUNT}; persistUntil=soon", False, "unauthorized"),
        (f"{CA}; accounturi={ACCOUNT}; persistUntil=", False, "unauthorized"),
        (f"{CA}; accounturi={ACCOUNT}; accounturi={ACCOUNT}", False, "unauthorized"),
        (f"{CA}; accounturi={ACCOUNT}; broken", False, "unauthorized"),
        (f"{CA} {ACCOUNT}", False, "unauthorized"),
    ],
)
async def test_a_standing_record_permits_what_it_says(
    around: Neighbourhood,
    value: str,
    wildcard: bool,  # noqa: FBT001 - a parameter of the table
    expected: str,
) -> None:
    around.dns.records[(PERSIST, "TXT")] = ['"unrelated"', f'"{value.replace(";", chr(92) + ";")}"']
    asked = challenge("dns-persist-01", wildcard=wildcard)
    assert await around.problem(asked, caa_identities=("old.example.test", CA)) == expected


@pytest.mark.row("ACME-184")
async def test_a_standing_record_ends_when_it_says(around: Neighbourhood) -> None:
    until = int((around.clock.now() + timedelta(days=1)).timestamp())
    around.dns.records[(PERSIST, "TXT")] = [
        f'"{CA}\\; accounturi={ACCOUNT}\\; persistUntil={until}"'
    ]
    asked = challenge("dns-persist-01")
    assert await around.problem(asked, caa_identities=(CA,)) == "valid"
    around.clock.advance(timedelta(days=2))
    assert await around.problem(asked, caa_identities=(CA,)) == "unauthorized"


@pytest.mark.row("ACME-184")
async def test_without_identities_no_standing_record_permits_anything(
    around: Neighbourhood,
) -> None:
    around.dns.records[(PERSIST, "TXT")] = [f'"\\; accounturi={ACCOUNT}"']
    assert await around.problem(challenge("dns-persist-01")) == "unauthorized"
