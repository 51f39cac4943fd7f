"""Certificates spliced into a template: the same bytes as CertificateBuilder would make."""

import random
import secrets
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from estserver import config
from estserver.ca.lint import lint
from estserver.ca.template import Template, kind_of
from estserver.errors import LintFailed
from estserver.model import KeyType, Plan
from estserver.names import parse_general_name
from estserver.profiles import Profile
from tests.live import Key, MovableClock, new_key
from tests.parts import Hierarchy, csr_of, make_ca
from tests.plans import issuer_of, registered

SHIPPED = tuple(config.SHIPPED_PROFILES)
HOSTS = ("a.example", "host-17.example.ac.jp", "x" * 60 + ".example")


@pytest.fixture(scope="module")
def keys() -> tuple[Key, ...]:
    return new_key(), ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)


def plans(ca: Hierarchy, profile: str, keys: tuple[Key, ...]) -> list[Plan]:
    """Plans of one profile that differ in all that may differ."""
    rules = Profile(profile, config.Settings().profiles[profile], ca.issuing.certificate)
    now, chance = MovableClock().now(), random.Random(profile)
    made = []
    for key in keys * 6:
        plan = rules.plan_again(key.public_key(), rules.grant(registered(profile)), now)
        san = x509.SubjectAlternativeName(
            [
                parse_general_name(f"dns:{host}")
                for host in chance.sample(HOSTS, chance.randint(1, len(HOSTS)))
            ]
        )
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, text)
                for text in chance.sample(("山田 太郎", "a", "Hanako"), chance.randint(0, 3))
            ]
        )
        extensions = tuple(
            x509.Extension(one.oid, not subject.rdns, san)
            if isinstance(one.value, x509.SubjectAlternativeName)
            else one
            for one in plan.extensions
        )
        begin = now + timedelta(days=chance.randint(-9000, 0), seconds=chance.randint(0, 86400))
        made.append(
            replace(
                plan,
                subject=subject,
                extensions=extensions,
                not_before=begin,
                not_after=begin + timedelta(days=chance.randint(1, 20000)),
            )
        )
    return made


@pytest.mark.row("EST-187", "EST-181")
@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.RSA_2048])
@pytest.mark.parametrize("profile", SHIPPED)
def test_a_template_gives_the_bytes_that_certificate_builder_makes(
    profile: str, key_type: KeyType, keys: tuple[Key, ...]
) -> None:
    ca = make_ca(key_type)
    issuer = issuer_of(ca)
    templates: dict[object, Template] = {}
    for plan in plans(ca, profile, keys):
        serial = secrets.randbits(159)
        specimen = issuer._specimen(plan, serial)
        template = templates.setdefault(kind_of(plan), Template(((plan, specimen),)))
        assert template.splice(plan, serial) == specimen.tbs_certificate_bytes


def test_the_full_lint_runs_once_for_each_kind(
    ca: Hierarchy, monkeypatch: pytest.MonkeyPatch, keys: tuple[Key, ...]
) -> None:
    linted: list[int] = []

    def count(draft: x509.Certificate, plan: Plan, by: x509.Certificate, serial: int) -> None:
        linted.append(serial)
        lint(draft, plan, by, serial)

    monkeypatch.setattr("estserver.ca.issuer.lint", count)
    issuer, now = issuer_of(ca), MovableClock().now()
    rules = Profile("device", config.Settings().profiles["device"], ca.issuing.certificate)
    for key in keys * 3:
        issuer.prepare(rules.plan(csr_of(key), rules.grant(registered()), now))
    # EC and RSA keys have other usages; the curve makes no difference.
    assert len(linted) == 2
    reloaded = Profile("device", config.Settings().profiles["device"], ca.issuing.certificate)
    issuer.prepare(reloaded.plan(csr_of(), reloaded.grant(registered()), now))
    assert len(linted) == 3


@pytest.mark.parametrize(
    ("finding", "days"), [("within the issuer", 20000), ("begins before it ends", -2)]
)
def test_what_is_spliced_is_still_linted_where_it_varies(
    ca: Hierarchy, finding: str, days: int
) -> None:
    issuer, now = issuer_of(ca), MovableClock().now()
    rules = Profile("device", config.Settings().profiles["device"], ca.issuing.certificate)
    plan = rules.plan(csr_of(), rules.grant(registered()), now)
    issuer.prepare(plan)
    with pytest.raises(LintFailed, match=finding):
        issuer.prepare(replace(plan, not_after=now + timedelta(days=days)))
    nobody = replace(plan, subject=x509.Name([]))
    with pytest.raises(LintFailed, match="a name"):
        issuer.prepare(nobody)


def test_a_template_that_does_not_give_the_same_bytes_is_not_used(ca: Hierarchy) -> None:
    issuer, now = issuer_of(ca), MovableClock().now()
    rules = Profile("device", config.Settings().profiles["device"], ca.issuing.certificate)
    plan = rules.plan(csr_of(), rules.grant(registered()), now)
    other = replace(plan, subject=x509.Name([]))
    with pytest.raises(LintFailed, match="template"):
        Template(((plan, issuer.specimen(other)),))
