"""Names that a constrained issuing CA may not certify are refused before anything is planned."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from estserver.config import Settings
from estserver.csr import read_csr
from estserver.errors import NamesNotAllowed
from estserver.model import Grant
from estserver.name_constraints import constraints_of, forbidden
from estserver.profiles import Profile
from tests.live import make_csr, new_key

NOW = datetime(2026, 11, 23, tzinfo=UTC)
DNS, MAIL, URI, IP = (
    x509.DNSName,
    x509.RFC822Name,
    x509.UniformResourceIdentifier,
    x509.IPAddress,
)


def _name(common_name: str, organization: str = "Org") -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name),
        ]
    )


def _issuer(
    permitted: list[x509.GeneralName] | None = None, excluded: list[x509.GeneralName] | None = None
) -> x509.Certificate:
    key = new_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name("CA"))
        .issuer_name(_name("CA"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=3000))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if permitted or excluded:
        builder = builder.add_extension(x509.NameConstraints(permitted, excluded), critical=True)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.row("EST-186")
@pytest.mark.parametrize(
    ("tree", "inside", "outside"),
    [
        (DNS("example.ac.jp"), DNS("www.example.ac.jp"), DNS("www.example.jp")),
        (DNS("example.ac.jp"), DNS("EXAMPLE.ac.jp"), DNS("badexample.ac.jp")),
        (DNS("example.ac.jp"), DNS("*.example.ac.jp"), DNS("*.ac.jp")),
        (MAIL("example.ac.jp"), MAIL("a@example.ac.jp"), MAIL("a@sub.example.ac.jp")),
        (MAIL(".example.ac.jp"), MAIL("a@sub.example.ac.jp"), MAIL("a@example.ac.jp")),
        (MAIL("a@example.ac.jp"), MAIL("a@example.ac.jp"), MAIL("b@example.ac.jp")),
        (URI("example.ac.jp"), URI("https://example.ac.jp/x"), URI("https://x.example.ac.jp/")),
        (
            IP(ip_network("192.0.2.0/24")),
            IP(ip_address("192.0.2.9")),
            IP(ip_address("192.0.3.9")),
        ),
        (
            IP(ip_network("2001:db8::/32")),
            IP(ip_address("2001:db8::1")),
            IP(ip_address("2001:db9::1")),
        ),
    ],
)
def test_a_name_is_judged_by_permitted_and_excluded_subtrees(
    tree: x509.GeneralName, inside: x509.GeneralName, outside: x509.GeneralName
) -> None:
    empty = x509.Name([])
    assert forbidden(constraints_of(_issuer(permitted=[tree])), empty, [inside, outside]) == [
        outside
    ]
    assert forbidden(constraints_of(_issuer(excluded=[tree])), empty, [inside, outside]) == [inside]
    assert forbidden(constraints_of(_issuer()), empty, [inside, outside]) == []


@pytest.mark.row("EST-186")
def test_a_subject_must_begin_with_a_permitted_directory_name() -> None:
    tree = x509.DirectoryName(
        x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Org")])
    )
    issuer = _issuer(permitted=[tree])
    assert forbidden(constraints_of(issuer), _name("leaf"), []) == []
    assert len(forbidden(constraints_of(issuer), _name("leaf", "Other"), [])) == 1


@pytest.mark.row("EST-186")
def test_a_profile_of_a_constrained_issuer_refuses_the_name_and_says_which() -> None:
    issuer = _issuer(permitted=[DNS("example.ac.jp")])
    profile = Profile("server", Settings().profiles["server"], issuer)
    csr = read_csr(make_csr(new_key()))
    good = Grant(x509.Name([]), frozenset({DNS("www.example.ac.jp")}))
    bad = Grant(x509.Name([]), frozenset({DNS("www.example.ac.jp"), DNS("www.example.jp")}))
    assert profile.plan(csr, good, NOW).names == (DNS("www.example.ac.jp"),)
    with pytest.raises(NamesNotAllowed, match=r"dns:www\.example\.jp"):
        profile.plan(csr, bad, NOW)
