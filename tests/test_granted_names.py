"""Names asked for: what is left out is filled in, what is not granted is refused by its name."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from estserver.errors import IdentityMismatch, NamesNotAllowed
from tests.parts import Hierarchy, csr_of
from tests.plans import NOW, common_name, planned, profile, registered


@pytest.fixture
def issuing(ca: Hierarchy) -> x509.Certificate:
    return ca.issuing.certificate


def test_what_a_csr_leaves_out_is_filled_in(issuing: x509.Certificate) -> None:
    plan = planned(profile(issuing))
    assert plan.subject == common_name("printer-17")
    assert plan.names == (x509.DNSName("printer-17.example.ac.jp"),)


@pytest.mark.parametrize(
    "asked",
    [
        {"subject": "printer-17"},
        {"subject": "PRINTER-17"},
        {"subject": "printer-17.example.ac.jp"},
        {"names": (x509.DNSName("Printer-17.Example.ac.jp"),)},
    ],
)
def test_names_within_the_grant_may_be_asked_for_in_any_form(
    issuing: x509.Certificate, asked: dict[str, Any]
) -> None:
    plan = planned(profile(issuing), csr_of(**asked))
    # What goes in is the grant's form, never the CSR's.
    assert plan.subject == common_name("printer-17")
    assert plan.names == (x509.DNSName("printer-17.example.ac.jp"),)


@pytest.mark.row("EST-087", "INC-11", "A-8")
@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"subject": "printer-18"}, "CN=printer-18"),
        ({"subject": x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Evil")])}, "O=Evil"),
        ({"names": (x509.DNSName("other.example.ac.jp"),)}, "dns:other.example.ac.jp"),
        ({"names": (x509.RFC822Name("root@example.ac.jp"),)}, "email:root@example.ac.jp"),
        (
            {"names": (x509.UniformResourceIdentifier("https://x.example/"),)},
            "uri:https://x.example/",
        ),
        ({"names": (x509.DirectoryName(common_name("x")),)}, "dirname:CN=x"),
        ({"names": (x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),)}, "rid:1.2.3"),
    ],
)
def test_a_name_outside_the_grant_is_refused_by_its_name(
    issuing: x509.Certificate, asked: dict[str, Any], named: str
) -> None:
    with pytest.raises(NamesNotAllowed) as refused:
        planned(profile(issuing), csr_of(**asked))
    assert named in refused.value.detail
    assert refused.value.values == {"name": named}


def test_a_name_among_granted_ones_does_not_slip_through(issuing: x509.Certificate) -> None:
    names = (x509.DNSName("printer-17.example.ac.jp"), x509.DNSName("evil.example.ac.jp"))
    with pytest.raises(NamesNotAllowed, match="evil"):
        planned(profile(issuing), csr_of(names=names))


EXACT: dict[str, Any] = {
    "subject": common_name("printer-17"),
    "names": (x509.DNSName("a.example.ac.jp"), x509.DNSName("b.example.ac.jp")),
}


@pytest.mark.row("EST-129", "EST-130", "INC-5")
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"subject": "Printer-17"},
        {
            "subject": x509.Name(
                [
                    x509.NameAttribute(
                        NameOID.COMMON_NAME, "printer-17", _type=x509.name._ASN1Type.PrintableString
                    )
                ]
            )
        },
        {"names": tuple(reversed(EXACT["names"]))},
        {"names": (x509.DNSName("B.example.ac.jp"), x509.DNSName("a.EXAMPLE.ac.jp"))},
    ],
)
def test_an_exact_grant_takes_the_same_names_by_rfc5280(
    issuing: x509.Certificate, asked: dict[str, Any]
) -> None:
    rules = profile(issuing)
    names = ("dns:a.example.ac.jp", "dns:b.example.ac.jp")
    grant = replace(rules.grant(registered(names=names)), exact=True)
    plan = rules.plan(csr_of(**{**EXACT, **asked}), grant, NOW)
    assert plan.subject == grant.subject


@pytest.mark.row("EST-129", "INC-5")
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"subject": "printer-18"}, "CN=printer-18, it must be CN=printer-17"),
        ({"subject": x509.Name([])}, "subject is empty"),
        (
            {
                "subject": x509.Name(
                    [
                        x509.NameAttribute(NameOID.COMMON_NAME, "printer-17"),
                        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "x"),
                    ]
                )
            },
            "OU=x",
        ),
        ({"names": ()}, "lacks dns:a.example.ac.jp, dns:b.example.ac.jp"),
        ({"names": (x509.DNSName("a.example.ac.jp"),)}, "lacks dns:b.example.ac.jp"),
        ({"names": (*EXACT["names"], x509.DNSName("c.example.ac.jp"))}, "adds dns:c.example.ac.jp"),
        (
            {"names": (x509.DNSName("a.example.ac.jp"), x509.DNSName("c.example.ac.jp"))},
            "adds dns:c.example.ac.jp and lacks dns:b.example.ac.jp",
        ),
    ],
)
def test_an_exact_grant_refuses_any_difference_by_its_name(
    issuing: x509.Certificate, asked: dict[str, Any], said: str
) -> None:
    rules = profile(issuing)
    names = ("dns:a.example.ac.jp", "dns:b.example.ac.jp")
    grant = replace(rules.grant(registered(names=names)), exact=True)
    with pytest.raises(IdentityMismatch, match=said):
        rules.plan(csr_of(**{**EXACT, **asked}), grant, NOW)
