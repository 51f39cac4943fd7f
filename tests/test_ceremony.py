"""The ceremony: a hierarchy by RFC 5280, an instance whole or not at all, secrets kept."""

import stat
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtensionOID, NameOID

from estserver import config
from estserver.ca.ceremony import (
    Instance,
    InstanceOptions,
    Ports,
    create_instance,
)
from estserver.ca.hierarchy import make_hierarchy
from estserver.core import open_core
from estserver.errors import BadInput, ConfigurationError
from estserver.model import KeyType
from estserver.specimens import pkix_linter
from tests.live import MovableClock


def _create(directory: Path, **options: object) -> Instance:
    return create_instance(directory, MovableClock(), InstanceOptions(**options))  # type: ignore[arg-type]  # options as tests name them


def _text(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    return str(certificate.subject.get_attributes_for_oid(oid)[0].value)


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_3072])
def test_both_ca_certificates_lint_clean_and_say_what_rfc5280_wants(key_type: KeyType) -> None:
    now = MovableClock().now()
    root, issuing = make_hierarchy("Test Institute", key_type, now)
    judge = pkix_linter()
    for authority in (root, issuing):
        assert judge(authority.certificate) == (set(), set())
        extensions = authority.certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert constraints.value.ca
        assert usage.critical
        assert usage.value.key_cert_sign
        assert usage.value.crl_sign
        assert not usage.value.digital_signature
    root.certificate.verify_directly_issued_by(root.certificate)
    issuing.certificate.verify_directly_issued_by(root.certificate)
    path_length = issuing.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert path_length.value.path_length == 0
    assert issuing.certificate.not_valid_after_utc < root.certificate.not_valid_after_utc


def test_the_issuing_ca_points_to_no_list_that_nobody_publishes() -> None:
    _, issuing = make_hierarchy("Test Institute", KeyType.EC_P256, MovableClock().now())
    present = {extension.oid for extension in issuing.certificate.extensions}
    assert ExtensionOID.CRL_DISTRIBUTION_POINTS not in present
    assert ExtensionOID.AUTHORITY_INFORMATION_ACCESS not in present


@pytest.mark.row("INC-25")
def test_two_instances_of_one_organization_have_different_ca_names() -> None:
    now = MovableClock().now()
    made = [make_hierarchy("Test Institute", KeyType.EC_P256, now) for _ in range(2)]
    names = {authority.certificate.subject for pair in made for authority in pair}
    assert len(names) == 4


@pytest.mark.row("SEED-17")
@pytest.mark.parametrize("organization", ["国立テスト研究所", "N" * 64])
def test_the_issuer_has_an_organization_and_a_common_name_within_bounds(organization: str) -> None:
    root, issuing = make_hierarchy(organization, KeyType.EC_P256, MovableClock().now())
    for authority, role in ((root, "Root CA"), (issuing, "Issuing CA")):
        assert _text(authority.certificate, NameOID.ORGANIZATION_NAME) == organization
        common_name = _text(authority.certificate, NameOID.COMMON_NAME)
        assert role in common_name
        assert len(common_name) <= 64


def test_a_new_instance_is_complete_and_opens(tmp_path: Path) -> None:
    instance = _create(tmp_path / "new", organization="Test Institute")
    settings = config.load(instance.configuration)
    core = open_core(settings, MovableClock(), with_keys=True)
    try:
        assert core.chains["issuing"] == (instance.issuing, instance.root)
    finally:
        core.close()
    assert settings.branding.organization == "Test Institute"
    assert settings.branding.organization_ja == "Test Institute"
    pem = (tmp_path / "new/ca/root.crt").read_bytes()
    assert x509.load_pem_x509_certificate(pem) == instance.root


def test_secrets_and_keys_are_for_their_owner_only_and_keys_are_encrypted(tmp_path: Path) -> None:
    _create(tmp_path / "new")
    secret = ["secrets/passphrase", "secrets/master.key", "ca/root.key", "ca/issuing.key"]
    for name in [*secret, "estserver.db"]:
        assert stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) == 0o600
    for name in ("root", "issuing"):
        pem = (tmp_path / f"new/ca/{name}.key").read_bytes()
        with pytest.raises(TypeError, match="encrypted"):
            load_pem_private_key(pem, None)
        passphrase = (tmp_path / "new/secrets/passphrase").read_bytes().strip()
        load_pem_private_key(pem, passphrase)


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        _create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert _create(tmp_path).configuration == tmp_path / "estserver.toml"


@pytest.mark.parametrize("existed", [True, False])
def test_a_ceremony_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, existed: bool
) -> None:
    directory = tmp_path / "new"
    if existed:
        directory.mkdir()
    monkeypatch.setenv("ESTSERVER_DATABASE__URL", f"sqlite:///{tmp_path}/nowhere/at/all.db")
    with pytest.raises(ConfigurationError):
        _create(directory)
    assert directory.exists() == existed
    assert not existed or not list(directory.iterdir())


def test_urls_and_names_come_from_the_hosts(tmp_path: Path) -> None:
    instance = _create(
        tmp_path / "new",
        hosts=("PKI.example.org", "192.0.2.7"),
        devices_host="est.example.org",
        ports=Ports(443, 8444, 80, 9180),
    )
    settings = config.load(instance.configuration)
    assert settings.hosts == ("pki.example.org", "192.0.2.7", "est.example.org")
    assert settings.listeners.web.url == "https://pki.example.org:443"
    assert settings.listeners.devices.url == "https://est.example.org:8444"
    assert settings.listeners.status.url == "http://pki.example.org:80"
    assert settings.listeners.web.bind == "0.0.0.0"
    assert settings.listeners.management.bind == "127.0.0.1"


def test_an_ipv6_host_stands_in_brackets_and_loopback_stays_on_loopback(tmp_path: Path) -> None:
    settings = config.load(_create(tmp_path / "new", hosts=("0:0:0:0:0:0:0:1",)).configuration)
    assert settings.listeners.web.url == "https://[::1]:8443"
    assert settings.listeners.web.bind == "127.0.0.1"


def test_texts_are_quoted_for_toml(tmp_path: Path) -> None:
    name = 'The "Best" \\ Institute #1'
    settings = config.load(_create(tmp_path / "new", organization=name).configuration)
    assert settings.branding.organization == name


@pytest.mark.parametrize(
    "options",
    [
        {"hosts": ("*.example.org",)},
        {"hosts": ("not a host",)},
        {"hosts": ()},
        {"devices_host": "-x-"},
        {"organization": "N" * 65},
        {"organization": "line\nbreak"},
        {"key_type": KeyType.ED25519},
        {"ports": Ports(1, 1, 2, 3)},
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, object]
) -> None:
    with pytest.raises(BadInput):
        _create(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_the_fingerprint_is_the_roots_sha256(tmp_path: Path) -> None:
    instance = _create(tmp_path / "new")
    digest = sha256(instance.root.public_bytes(Encoding.DER)).hexdigest()
    assert instance.fingerprint.replace(":", "").lower() == digest
    assert instance.fingerprint.count(":") == 31
