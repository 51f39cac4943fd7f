"""What every draft must pass before it is signed, and what pkilint and openssl find."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pkilint import loader, validation
from pkilint.cabf import smime
from pkilint.pkix import certificate as pkix
from pkilint.pkix import extension as pkix_extension
from pkilint.pkix import name as pkix_name

from estserver import config
from estserver.ca.lint import lint
from estserver.errors import LintFailed
from estserver.model import Plan
from tests.live import MovableClock, new_key
from tests.parts import Hierarchy
from tests.plans import issuer_of, plan_of

SHIPPED = tuple(config.SHIPPED_PROFILES)


@pytest.fixture(scope="module")
def rsa_3072() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 3072)


# -- lint ----------------------------------------------------------------------------------------


def build(
    ca: Hierarchy,
    plan: Plan,
    *,
    leave_out: tuple[type[x509.ExtensionType], ...] = (),
    put_in: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    **changed: Any,
) -> tuple[x509.Certificate, int]:
    """Make a draft that differs from what the issuer would make of `plan`."""
    specimen = issuer_of(ca).specimen(plan)
    values = {
        "issuer_name": specimen.issuer,
        "subject_name": specimen.subject,
        "public_key": specimen.public_key(),
        "serial_number": specimen.serial_number,
        "not_valid_before": specimen.not_valid_before_utc,
        "not_valid_after": specimen.not_valid_after_utc,
        **changed,
    }
    builder = x509.CertificateBuilder()
    for name, value in values.items():
        builder = getattr(builder, name)(value)
    replaced = (*leave_out, *(type(value) for value, _ in put_in))
    for extension in specimen.extensions:
        if not isinstance(extension.value, replaced):
            builder = builder.add_extension(extension.value, extension.critical)
    for value, critical in put_in:
        builder = builder.add_extension(value, critical)
    return builder.sign(new_key(), hashes.SHA256()), specimen.serial_number


def usage(**bits: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: bits.get(name, False) for name in names})


def test_an_unchanged_draft_passes(ca: Hierarchy) -> None:
    plan = plan_of(ca)
    draft, serial = build(ca, plan)
    lint(draft, plan, ca.issuing.certificate, serial)


OTHER_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")])
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
DEVIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "CA:TRUE": ("no CA", {"put_in": ((x509.BasicConstraints(ca=True, path_length=None), True),)}),
    "basicConstraints not critical": (
        "no CA",
        {"put_in": ((x509.BasicConstraints(ca=False, path_length=None), False),)},
    ),
    "no basicConstraints": ("ExtensionNotFound", {"leave_out": (x509.BasicConstraints,)}),
    "another subject": ("subject", {"subject_name": OTHER_NAME}),
    "another issuer": ("issuer", {"issuer_name": OTHER_NAME}),
    "another key": ("public key", {"public_key": new_key().public_key()}),
    "another serial": ("serial", {"serial_number": 1 << 100}),
    "begins later": ("notBefore", {"not_valid_before": MovableClock().now()}),
    "no extended key usage": ("ExtensionNotFound", {"leave_out": (x509.ExtendedKeyUsage,)}),
    "another purpose": (
        "extension values",
        {"put_in": ((x509.ExtendedKeyUsage([CLIENT, ExtendedKeyUsageOID.CODE_SIGNING]), False),)},
    ),
    "any purpose": ("a purpose", {"put_in": ((x509.ExtendedKeyUsage([CLIENT, ANY]), False),)}),
    "purpose made critical": (
        "extension values",
        {"put_in": ((x509.ExtendedKeyUsage([CLIENT]), True),)},
    ),
    "no key usage": ("ExtensionNotFound", {"leave_out": (x509.KeyUsage,)}),
    "keyCertSign": (
        "no signing of certificates",
        {"put_in": ((usage(digital_signature=True, key_cert_sign=True), True),)},
    ),
    "cRLSign": (
        "no signing of certificates",
        {"put_in": ((usage(digital_signature=True, crl_sign=True), True),)},
    ),
    "key usage not critical": (
        "no signing of certificates",
        {"put_in": ((usage(digital_signature=True), False),)},
    ),
    "no usage at all": ("a usage", {"put_in": ((usage(), True),)}),
    "another name": (
        "extension values",
        {"put_in": ((x509.SubjectAlternativeName([x509.DNSName("evil.example")]), False),)},
    ),
    "no names": ("extension set", {"leave_out": (x509.SubjectAlternativeName,)}),
    "no authority key": ("ExtensionNotFound", {"leave_out": (x509.AuthorityKeyIdentifier,)}),
    "another authority key": (
        "authority key",
        {"put_in": ((x509.AuthorityKeyIdentifier(b"x" * 20, None, None), False),)},
    ),
    "no subject key": ("ExtensionNotFound", {"leave_out": (x509.SubjectKeyIdentifier,)}),
    "another subject key": (
        "subject key",
        {"put_in": ((x509.SubjectKeyIdentifier(b"x" * 20), False),)},
    ),
    "no CRL": ("where its status is found", {"leave_out": (x509.CRLDistributionPoints,)}),
    "an extension of nobody's": (
        "extension set",
        {"put_in": ((x509.TLSFeature([x509.TLSFeatureType.status_request]), False),)},
    ),
}


@pytest.mark.row("EST-181", "EST-182", "EST-184", "INC-37")
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_lint_catches_a_deviation(ca: Hierarchy, deviation: str) -> None:
    finding, changed = DEVIATIONS[deviation]
    plan = plan_of(ca)
    draft, serial = build(ca, plan, **changed)
    with pytest.raises(LintFailed, match=finding):
        lint(draft, plan, ca.issuing.certificate, serial)


def test_lint_catches_what_outlives_the_issuer_even_if_planned(ca: Hierarchy) -> None:
    end = ca.issuing.certificate.not_valid_after_utc
    plan = replace(plan_of(ca), not_after=end + timedelta(seconds=1))
    with pytest.raises(LintFailed, match="within the issuer"):
        issuer_of(ca).prepare(plan)
    issuer_of(ca).prepare(replace(plan, not_after=end))


def test_lint_catches_a_certificate_that_names_nobody(ca: Hierarchy) -> None:
    plan = plan_of(ca)
    kept = tuple(e for e in plan.extensions if not isinstance(e.value, x509.SubjectAlternativeName))
    nobody = replace(plan, subject=x509.Name([]), extensions=kept)
    with pytest.raises(LintFailed, match="a name"):
        issuer_of(ca).prepare(nobody)


def test_lint_catches_a_plan_with_extensions_of_the_issuer(ca: Hierarchy) -> None:
    plan = plan_of(ca)
    own = x509.SubjectKeyIdentifier(b"x" * 20)
    planted = (*plan.extensions, x509.Extension(own.oid, False, own))
    with pytest.raises((LintFailed, ValueError)):
        issuer_of(ca).prepare(replace(plan, extensions=planted))


# -- judged by others ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(n, k) for n in SHIPPED for k in ("ec", "rsa")])
def issued(
    request: pytest.FixtureRequest,
    ca: Hierarchy,
    rsa_3072: rsa.RSAPrivateKey,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """Return a profile and the file of one of its certificates."""
    name, family = request.param
    issuer = issuer_of(ca)
    plan = plan_of(ca, name, rsa_3072 if family == "rsa" else new_key())
    path = tmp_path_factory.mktemp(name) / f"{family}.der"
    path.write_bytes(issuer.sign(issuer.prepare(plan)))
    return name, path


@cache
def pkix_rules() -> Any:
    """Return what `lint_pkix_cert` checks."""
    return pkix.create_pkix_certificate_validator_container(
        pkix.create_decoding_validators(
            pkix_name.ATTRIBUTE_TYPE_MAPPINGS, pkix_extension.EXTENSION_MAPPINGS
        ),
        [
            pkix.create_issuer_validator_container([]),
            pkix.create_validity_validator_container(),
            pkix.create_subject_validator_container([]),
            pkix.create_extensions_validator_container([]),
            pkix.create_spki_validator_container([]),
        ],
    )


def smime_rules(document: Any) -> Any:
    """Return what `lint_cabf_smime_cert --detect` checks."""
    level, generation = smime.determine_validation_level_and_generation(document)
    return pkix.create_pkix_certificate_validator_container(
        smime.create_decoding_validators(),
        smime.create_subscriber_validators(level, generation),
    )


def findings(path: Path, rules_for: Callable[[Any], Any] | None = None) -> set[str]:
    """Return the codes of everything that is worse than a notice."""
    document = loader.load_der_certificate(path.read_bytes(), str(path))
    rules = pkix_rules() if rules_for is None else rules_for(document)
    return {
        described.finding.code
        for result in rules.validate(document.root)
        for described in result.finding_descriptions
        if described.finding.severity <= validation.ValidationFindingSeverity.WARNING
    }


@pytest.mark.row("EST-179", "EST-180", "EST-183", "INC-31")
def test_pkilint_finds_nothing_in_a_certificate_of_a_shipped_profile(
    issued: tuple[str, Path],
) -> None:
    name, path = issued
    assert findings(path) == set()
    if name in {"person", "mail"}:
        # A person's CN is the name alone, which the S/MIME rules know only with givenName and
        # surname beside it (design §13.9).
        allowed = {"cabf.smime.common_name_value_unknown_source"} if name == "person" else set()
        assert findings(path, smime_rules) == allowed


def test_pkilint_would_find_something(ca: Hierarchy, tmp_path: Path) -> None:
    draft, _ = build(ca, plan_of(ca), leave_out=(x509.AuthorityKeyIdentifier,))
    (tmp_path / "x.der").write_bytes(draft.public_bytes(Encoding.DER))
    assert any("authority_key_identifier" in code for code in findings(tmp_path / "x.der"))


@pytest.mark.parametrize(
    "name",
    ["田中 花子", "Jürgen Müller", "O'Brien, Seán", "Ω≈ç√", "a" * 64, "Dr. X (2nd) + y=z;#"],
)
@pytest.mark.row("INC-31")
def test_names_of_any_script_are_well_encoded(ca: Hierarchy, tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.der"
    issuer = issuer_of(ca)
    path.write_bytes(issuer.sign(issuer.prepare(plan_of(ca, "person", name=name))))
    assert findings(path) == set()


PURPOSES = {
    "person": {"sslclient", "smimesign"},
    "mail": {"sslclient", "smimesign"},
    "device": {"sslclient"},
    "server": {"sslclient", "sslserver"},
    "officer": {"sslclient"},
}


@pytest.mark.row("EST-041", "EST-185")
def test_openssl_verifies_a_certificate_for_exactly_its_purposes(
    issued: tuple[str, Path], ca: Hierarchy, tmp_path: Path
) -> None:
    name, path = issued
    for which, certificate in zip(("issuing", "root"), ca.chain, strict=True):
        (tmp_path / which).write_bytes(certificate.public_bytes(Encoding.PEM))
    leaf = x509.load_der_x509_certificate(path.read_bytes())
    (tmp_path / "leaf").write_bytes(leaf.public_bytes(Encoding.PEM))
    verify = ("openssl", "verify", "-x509_strict", "-CAfile", "root", "-untrusted", "issuing")
    accepted = set()
    for purpose in ("sslclient", "sslserver", "smimesign", "crlsign"):
        run = subprocess.run(
            [*verify, "-purpose", purpose, "leaf"],
            cwd=tmp_path,
            check=False,
            capture_output=True,
        )
        if run.returncode == 0:
            accepted.add(purpose)
    assert accepted == PURPOSES[name]
