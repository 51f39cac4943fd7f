"""CAA records: who may issue for a name (ACME-183; RFC 8659, RFC 8657)."""

from collections.abc import AsyncIterator

import dns.rcode
import pytest

from estserver.protocols.acme.caa import read_issue_value
from estserver.protocols.acme.challenge import ChallengeFailed
from tests.protocols.acme.neighbourhood import (
    ACCOUNT,
    DIGEST,
    Neighbourhood,
    Records,
    challenge,
    ok,
)

CA = "ca.example.test"
NAME = "www.example.test"


@pytest.fixture
async def around() -> AsyncIterator[Neighbourhood]:
    async with Neighbourhood() as neighbourhood:
        neighbourhood.name(NAME)
        await neighbourhood.web(ok())
        yield neighbourhood


async def judge(around: Neighbourhood, *, wildcard: bool = False) -> str:
    asked = challenge("dns-01" if wildcard else "http-01", NAME, wildcard=wildcard)
    return await around.problem(asked, caa=True, caa_identities=("Ca.Example.Test", "ca2.test"))


@pytest.mark.row("ACME-183")
@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([f'0 issue "{CA}"'], "valid"),
        (['0 issue "CA.Example.TEST"'], "valid"),
        (['0 issue "ca2.test"'], "valid"),
        ([f'128 issue "{CA}"'], "valid"),
        ([f'0 ISSUE "{CA}"'], "valid"),
        ([f'0 issue "  {CA} ; "'], "valid"),
        (['0 issue "other.test"', f'0 issue "{CA}"'], "valid"),
        (['0 iodef "mailto:a@example.test"'], "valid"),
        (['128 iodef "mailto:a@example.test"'], "valid"),
        (['0 unknown "x"'], "valid"),
        (['0 issuewild "other.test"'], "valid"),
        (['0 issue "other.test"'], "caa"),
        (['0 issue ";"'], "caa"),
        (['0 issue ""'], "caa"),
        ([f'0 issue "{CA} and more"'], "caa"),
        ([f'0 issue "{CA}; a"'], "caa"),
        ([f'0 issue "-{CA}"'], "caa"),
        ([f'0 issue "{CA}"', '128 unknown "x"'], "caa"),
        (['128 unknown "x"'], "caa"),
        (["\\# 4 0001 6102"], "valid"),
    ],
)
async def test_records_permit_or_forbid(
    around: Neighbourhood, records: list[str], expected: str
) -> None:
    around.dns.records[(NAME, "CAA")] = list(records)
    assert await judge(around) == expected


@pytest.mark.row("ACME-183")
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (f"accounturi={ACCOUNT}", "valid"),
        (f"AccountURI = {ACCOUNT}", "valid"),
        (f"accounturi={ACCOUNT}x", "caa"),
        (f"accounturi={ACCOUNT.upper()}", "caa"),
        ("accounturi=", "caa"),
        (f"accounturi={ACCOUNT}; accounturi={ACCOUNT}", "caa"),
        ("validationmethods=http-01", "valid"),
        ("validationmethods=dns-01,http-01", "valid"),
        ("validationmethods=dns-01,tls-alpn-01", "caa"),
        ("validationmethods=", "caa"),
        ("validationmethods=http-01; validationmethods=http-01", "caa"),
        (f"validationmethods=http-01; accounturi={ACCOUNT}; other=1", "valid"),
    ],
)
async def test_parameters_narrow_a_permission(
    around: Neighbourhood, parameters: str, expected: str
) -> None:
    around.dns.records[(NAME, "CAA")] = [f'0 issue "{CA}; {parameters}"']
    assert await judge(around) == expected


@pytest.mark.row("ACME-183")
async def test_the_closest_records_on_the_way_up_count(around: Neighbourhood) -> None:
    around.dns.records[("test", "CAA")] = ['0 issue "other.test"']
    assert await judge(around) == "caa"
    assert [name for name, kind in around.dns.questions if kind == "CAA"] == [
        NAME,
        "example.test",
        "test",
    ]
    around.dns.records[("example.test", "CAA")] = [f'0 issue "{CA}"']
    assert await judge(around) == "valid"
    around.dns.records[(NAME, "CAA")] = ['0 issue ";"']
    assert await judge(around) == "caa"


@pytest.mark.row("ACME-183")
@pytest.mark.parametrize("answer", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, None])
@pytest.mark.parametrize("where", [NAME, "example.test", "test"])
async def test_records_that_cannot_be_read_forbid(
    around: Neighbourhood, where: str, answer: Records
) -> None:
    around.dns.records[(where, "CAA")] = answer
    validator = around.validator(seconds=1, caa=True, caa_identities=(CA,))
    with pytest.raises(ChallengeFailed) as refusal:
        await validator.check_caa(challenge())
    assert refusal.value.problem == "caa"


@pytest.mark.row("ACME-183")
async def test_without_any_records_every_ca_may_issue(around: Neighbourhood) -> None:
    assert await judge(around) == "valid"
    around.dns.records[("example.test", "CAA")] = dns.rcode.NXDOMAIN
    assert await judge(around) == "valid"


@pytest.mark.row("ACME-183")
@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([f'0 issue "{CA}"'], "valid"),
        ([f'0 issue "{CA}"', '0 issuewild ";"'], "caa"),
        (['0 issue ";"', f'0 issuewild "{CA}"'], "valid"),
        (['0 issue ";"'], "caa"),
    ],
)
async def test_issuewild_takes_the_place_of_issue_for_wildcards(
    around: Neighbourhood, records: list[str], expected: str
) -> None:
    around.dns.records[(NAME, "CAA")] = list(records)
    around.dns.records[(f"_acme-challenge.{NAME}", "TXT")] = [f'"{DIGEST}"']
    assert await judge(around, wildcard=True) == expected


@pytest.mark.row("ACME-183")
async def test_caa_counts_only_where_the_settings_say_so(around: Neighbourhood) -> None:
    around.dns.records[(NAME, "CAA")] = ['0 issue ";"']
    assert await around.problem(challenge()) == "valid"
    assert not [kind for _, kind in around.dns.questions if kind == "CAA"]


@pytest.mark.row("ACME-183")
async def test_an_address_has_no_caa_records(around: Neighbourhood) -> None:
    asked = challenge(identifier="127.0.0.21", identifier_type="ip")
    assert await around.problem(asked, caa=True, caa_identities=(CA,)) == "valid"
    assert around.dns.questions == []


def test_issue_values_are_read_by_their_grammar() -> None:
    value = read_issue_value(b" Ca.Test ; a=1;\tB-c = x/y ;a=2")
    assert value is not None
    assert value.issuer == "ca.test"
    assert value.parameters == {"a": ("1", "2"), "b-c": ("x/y",)}
    for wrong in (b"ca.test; a b=1", b"ca..test", b"ca.test; =1", b"\xff", b"ca.test;;a=1", b"a b"):
        assert read_issue_value(wrong) is None
