"""Drafts, lint and signatures: what stands between a plan and the CA key, judged by others too."""

import secrets
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pkilint import loader, validation
from pkilint.cabf import smime
from pkilint.pkix import certificate as pkix
from pkilint.pkix import extension as pkix_extension
from pkilint.pkix import name as pkix_name

from estserver import config
from estserver.ca.issuer import Issuer
from estserver.ca.keys import encrypt_key, generate_key, key_type_of, load_key
from estserver.ca.lint import lint
from estserver.errors import ConfigurationError, Fault, LintFailed
from estserver.files import write_private
from estserver.model import Draft, KeyType, Plan, Secret
from estserver.profiles import Profile
from tests.live import Key, MovableClock, new_key
from tests.parts import URLS, Hierarchy, csr_of, make_ca
from tests.test_profiles import registered

SHIPPED = tuple(config.SHIPPED_PROFILES)
CA_KEYS = (
    KeyType.EC_P256,
    KeyType.EC_P384,
    KeyType.EC_P521,
    KeyType.RSA_2048,
    KeyType.RSA_3072,
    KeyType.RSA_4096,
)


def issuer_of(ca: Hierarchy, **fields: Any) -> Issuer:
    return Issuer("issuing", ca.chain, ca.issuing.key, URLS, **fields)


def plan_of(ca: Hierarchy, profile: str = "device", key: Key | None = None, **fields: Any) -> Plan:
    rules = Profile(profile, config.Settings().profiles[profile], ca.issuing.certificate)
    grant = rules.grant(registered(profile, **fields))
    return rules.plan(csr_of(key), grant, MovableClock().now())


@pytest.fixture(scope="module")
def rsa_3072() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 3072)


# -- what is linted is what is signed ------------------------------------------------------------


@pytest.mark.row("EST-187", "EST-181")
@pytest.mark.parametrize("key_type", CA_KEYS)
def test_the_draft_is_byte_for_byte_what_is_signed(key_type: KeyType) -> None:
    ca = make_ca(key_type)
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    certificate = x509.load_der_x509_certificate(issuer.sign(draft))
    assert certificate.tbs_certificate_bytes == draft.tbs
    assert certificate.serial_number == draft.serial
    certificate.verify_directly_issued_by(ca.issuing.certificate)
    # RFC 5280 §4.1.1.2: the same algorithm inside and outside, octet for octet.
    algorithm = {
        "rsa": "300d06092a864886f70d01010b0500",
        "ec-p256": "300a06082a8648ce3d040302",
        "ec-p384": "300a06082a8648ce3d040303",
        "ec-p521": "300a06082a8648ce3d040304",
    }[key_type.value if key_type.rsa_bits is None else "rsa"]
    whole = certificate.public_bytes(Encoding.DER)
    assert whole.count(bytes.fromhex(algorithm)) == 2
    assert whole.endswith(certificate.signature)


def test_two_signatures_of_one_draft_differ_in_the_signature_alone(ca: Hierarchy) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    one, two = (x509.load_der_x509_certificate(issuer.sign(draft)) for _ in range(2))
    assert one.tbs_certificate_bytes == two.tbs_certificate_bytes
    assert one.signature != two.signature


def test_a_draft_of_another_issuer_is_not_signed(ca: Hierarchy) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    with pytest.raises(Fault, match="other"):
        issuer.sign(replace(draft, issuer="other"))


@pytest.mark.parametrize("damage", [b"", b"\x30\x00", b"\x30\x03\x02\x01\x01"])
def test_what_is_no_certificate_is_not_handed_out(ca: Hierarchy, damage: bytes) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    with pytest.raises((Fault, ValueError)):
        issuer.sign(replace(draft, tbs=damage))


def test_a_draft_that_names_another_issuer_inside_is_not_handed_out(ca: Hierarchy) -> None:
    draft = issuer_of(make_ca()).prepare(plan_of(ca))
    with pytest.raises(Fault, match="does not verify"):
        issuer_of(ca).sign(draft)


def test_a_draft_with_another_serial_than_its_record_is_not_handed_out(ca: Hierarchy) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    with pytest.raises(Fault, match="not the draft"):
        issuer.sign(replace(draft, serial=draft.serial + 1))


def test_a_key_store_that_signs_wrongly_puts_nothing_into_the_world(
    ca: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    monkeypatch.setattr(issuer, "_key", new_key())
    with pytest.raises(Fault, match="does not verify"):
        issuer.sign(draft)


def test_an_issuer_needs_the_key_of_its_certificate(ca: Hierarchy) -> None:
    with pytest.raises(ConfigurationError, match="do not belong together"):
        Issuer("issuing", ca.chain, new_key(), URLS)


def test_an_issuer_needs_the_certificate_of_a_ca(ca: Hierarchy) -> None:
    key = new_key()
    issuer = issuer_of(ca)
    leaf = x509.load_der_x509_certificate(issuer.sign(issuer.prepare(plan_of(ca, key=key))))
    with pytest.raises(ConfigurationError, match="not a CA's"):
        Issuer("leaf", (leaf, *ca.chain), key, URLS)


# -- serials -------------------------------------------------------------------------------------


@pytest.mark.row("INC-24", "EST-178")
def test_serials_are_random_positive_and_at_most_twenty_octets(ca: Hierarchy) -> None:
    asked = []

    def randbits(count: int) -> int:
        asked.append(count)
        return secrets.randbits(count)

    issuer_of(ca, randbits=randbits).prepare(plan_of(ca))
    assert asked == [159]
    serials = [secrets.randbits(asked[0]) for _ in range(10_000)]
    assert len(set(serials)) == len(serials)
    assert all(0 < serial < 1 << 159 for serial in serials)
    # The sign bit stays free, so that the DER INTEGER never needs a twenty-first octet.
    assert max(serial.bit_length() // 8 + 1 for serial in serials) == 20
    top = Counter(serial >> 155 for serial in serials)
    assert set(top) == set(range(16))
    assert all(480 < count < 780 for count in top.values())


@pytest.mark.row("INC-24", "EST-178")
@pytest.mark.parametrize("serial", [1, (1 << 64) - 1, (1 << 159) - 1])
def test_a_serial_of_the_wrong_length_is_never_signed(ca: Hierarchy, serial: int) -> None:
    issuer = issuer_of(ca, randbits=lambda _: serial)
    if serial == (1 << 159) - 1:
        assert issuer.prepare(plan_of(ca)).serial == serial
        return
    with pytest.raises(LintFailed, match="serial length"):
        issuer.prepare(plan_of(ca))


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


# -- keys on disk --------------------------------------------------------------------------------


def test_a_key_comes_back_from_its_file_under_its_passphrase_only(tmp_path: Path) -> None:
    key, path = new_key(), tmp_path / "deep/ca.key"
    write_private(path, encrypt_key(key, Secret("right")))
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path, Secret("right")).private_numbers() == key.private_numbers()
    with pytest.raises(ConfigurationError, match=r"ca\.key") as refused:
        load_key(path, Secret("wrong-passphrase"))
    assert "wrong-passphrase" not in str(refused.value)


def unreadable(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,  # noqa: ARG005 - called with a path
        unreadable,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_bytes(
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"
        ),
    ],
)
def test_a_file_that_holds_no_key_is_a_configuration_error(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "ca.key")
    with pytest.raises(ConfigurationError, match=r"ca\.key"):
        load_key(tmp_path / "ca.key", Secret("x"))


def test_the_server_makes_and_knows_every_type_but_ed25519() -> None:
    for key_type in (KeyType.EC_P256, KeyType.EC_P384, KeyType.EC_P521, KeyType.RSA_2048):
        assert key_type_of(generate_key(key_type)) is key_type
    with pytest.raises(ConfigurationError):
        generate_key(KeyType.ED25519)
    with pytest.raises(ConfigurationError):
        key_type_of(ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(ConfigurationError):
        key_type_of(rsa.generate_private_key(65537, 1024))


def test_a_draft_says_what_its_certificate_will_say(ca: Hierarchy) -> None:
    plan = plan_of(ca)
    draft = issuer_of(ca).prepare(plan)
    assert draft == Draft("issuing", draft.serial, draft.tbs, plan.not_before, plan.not_after)
