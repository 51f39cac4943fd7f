"""An offline root, a CA certified elsewhere, and a CA whose key was there before."""

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)

from estserver import config
from estserver.ca.ceremony import InstanceOptions, create_instance, create_subordinate
from estserver.ca.hierarchy import Authority, make_hierarchy
from estserver.core import open_core
from estserver.errors import ConfigurationError
from estserver.model import KeyType
from tests.command_line import Shell
from tests.live import MovableClock, new_key
from tests.rollover import certify, opens, present, write_pem

_PASSWORD = "open sesame"


def _corporate() -> Authority:
    """Return another organization's root."""
    return make_hierarchy("Example Corporation", KeyType.EC_P256, present())[0]


def _requested(shell: Shell, name: str = "corporate") -> x509.CertificateSigningRequest:
    path = Path(shell.run("ca", "request", name).stdout.strip())
    return x509.load_pem_x509_csr(path.read_bytes())


def _files(shell: Shell) -> dict[str, bytes]:
    paths = [shell.directory / "estserver.toml", *(shell.directory / "ca").iterdir()]
    return {str(path): path.read_bytes() for path in paths}


# -- a root that is carried away ------------------------------------------------------------------


def test_an_offline_root_leaves_no_key_and_no_passphrase_behind(tmp_path: Path) -> None:
    options = InstanceOptions(root_folder=tmp_path / "stick")
    instance = create_instance(tmp_path / "new", MovableClock(), options)
    assert not list((tmp_path / "new").rglob("root.key"))
    passphrase = (tmp_path / "new/secrets/passphrase").read_bytes()
    assert (tmp_path / "stick/passphrase").read_bytes() != passphrase
    for name in ("root.key", "passphrase"):
        assert (tmp_path / "stick" / name).stat().st_mode & 0o077 == 0
    # `serve` needs nothing of it.
    (tmp_path / "stick").rename(tmp_path / "away")
    open_core(config.load(instance.configuration), MovableClock(), with_keys=True).close()
    shell = Shell(tmp_path / "new")
    assert "is not there" in shell.refused("ca", "new-issuer", "second")
    shell.run("ca", "new-issuer", "second", "--root", str(tmp_path / "away"))
    opens(shell)


def test_a_ceremony_that_fails_leaves_nothing_of_the_root_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESTSERVER_DATABASE__URL", f"sqlite:///{tmp_path}/nowhere/at/all.db")
    options = InstanceOptions(root_folder=tmp_path / "stick")
    with pytest.raises(ConfigurationError):
        create_instance(tmp_path / "new", MovableClock(), options)
    assert not (tmp_path / "stick").exists()
    assert not (tmp_path / "new").exists()


# -- certified elsewhere --------------------------------------------------------------------------


def _sign_with_openssl(csr: Path, by: Authority, out: Path, *options: str) -> None:
    """Sign a request, with the extensions it asks for."""
    write_pem(out.with_suffix(".ca"), by.certificate)
    key = by.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    out.with_suffix(".key").write_bytes(key)
    files = [
        "-in",
        str(csr),
        "-CA",
        f"{out.stem}.ca",
        "-CAkey",
        f"{out.stem}.key",
        "-out",
        out.name,
    ]
    more = ["-copy_extensions", "copyall", "-days", "3000", *options]
    subprocess.run(
        ["openssl", "x509", "-req", *files, *more], cwd=out.parent, check=True, capture_output=True
    )


def test_an_existing_ca_signs_ours(tmp_path: Path) -> None:
    """With openssl, as somebody else's CA would."""
    csr = create_subordinate(tmp_path / "new", MovableClock())
    shell = Shell(tmp_path / "new")
    assert "ca install issuing" in shell.refused("invitations", "list")
    assert str(csr) == shell.run("ca", "request", "issuing").stdout.strip()
    corporate = _corporate()
    _sign_with_openssl(csr, corporate, tmp_path / "issuing.crt", "-sha256")
    write_pem(tmp_path / "corporate.crt", corporate.certificate)
    shell.run(
        *("ca", "install", "issuing", str(tmp_path / "issuing.crt")),
        *("--chain", str(tmp_path / "corporate.crt")),
    )
    opens(shell)
    (row,) = shell.json("ca", "list")
    assert row["root"] == corporate.certificate.subject.rfc4514_string().split(",")[0][3:]
    # A renewed certificate of the same key goes the same way, and needs no chain.
    write_pem(tmp_path / "renewed.crt", certify(_requested(shell, "issuing"), corporate))
    shell.run("ca", "install", "issuing", str(tmp_path / "renewed.crt"))
    opens(shell)
    # Another CA's is another issuer.
    other = _corporate()
    write_pem(
        tmp_path / "other.crt", certify(_requested(shell, "issuing"), other), other.certificate
    )
    assert "under another name" in shell.refused(
        "ca", "install", "issuing", str(tmp_path / "other.crt")
    )


_WRONG: dict[str, tuple[dict[str, object], str]] = {
    "expired": ({"end": timedelta(minutes=-1)}, "valid now"),
    "not begun": ({"begin": timedelta(days=1)}, "valid now"),
    "no CA": ({"ca": False}, "not a CA's"),
    "no usage": ({"usage": False}, "not fit for a CA"),
    "another key": ({"public_key": new_key().public_key()}, "another key"),
}


@pytest.mark.parametrize("wrong", _WRONG)
def test_a_wrong_certificate_is_refused_and_nothing_changes(
    shell: Shell, tmp_path: Path, wrong: str
) -> None:
    corporate = _corporate()
    csr = _requested(shell)
    before = _files(shell)
    given, said = _WRONG[wrong]
    certificate = certify(csr, corporate, **given)  # type: ignore[arg-type]  # arguments as tests name them
    write_pem(tmp_path / "wrong.crt", certificate, corporate.certificate)
    assert said in shell.refused("ca", "install", "corporate", str(tmp_path / "wrong.crt"))
    assert _files(shell) == before
    opens(shell)


def test_a_certificate_signed_with_sha1_is_refused(shell: Shell, tmp_path: Path) -> None:
    corporate = _corporate()
    _requested(shell)
    _sign_with_openssl(
        shell.directory / "ca/corporate.csr", corporate, tmp_path / "weak.crt", "-sha1"
    )
    write_pem(tmp_path / "root.crt", corporate.certificate)
    files = (str(tmp_path / "weak.crt"), "--chain", str(tmp_path / "root.crt"))
    assert "not signed with SHA-256" in shell.refused("ca", "install", "corporate", *files)


def test_a_wrong_chain_is_refused(shell: Shell, tmp_path: Path) -> None:
    corporate = _corporate()
    csr = _requested(shell)
    certificate = certify(csr, corporate)
    before = _files(shell)
    install = ("ca", "install", "corporate", str(tmp_path / "one.crt"))
    write_pem(tmp_path / "one.crt", certificate)
    assert "does not lead to a self-signed root" in shell.refused(*install)
    # A foreign root of the very same name signed nothing of ours.
    key = new_key()
    lookalike = certify(csr, Authority(corporate.certificate, key))
    write_pem(tmp_path / "one.crt", lookalike, corporate.certificate)
    assert "does not lead to a self-signed root" in shell.refused(*install)
    # A root whose path length leaves no room for a CA below a CA.
    narrow = Authority(_self_signed(corporate, path_length=0), corporate.key)
    middle_key = new_key()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name.from_rfc4514_string("CN=Middle"))
        .sign(middle_key, hashes.SHA256())
    )
    middle = Authority(certify(request, narrow, path_length=None), middle_key)
    write_pem(tmp_path / "one.crt", certify(csr, middle), middle.certificate, narrow.certificate)
    assert "allows 0 CAs below it" in shell.refused(*install)
    (tmp_path / "one.crt").write_text("no certificate")
    assert "cannot be read" in shell.refused(*install)
    assert _files(shell) == before


def _self_signed(authority: Authority, *, path_length: int) -> x509.Certificate:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(authority.certificate.subject)
        .sign(authority.key, hashes.SHA256())
    )
    return certify(request, authority, path_length=path_length)


def test_names_are_taken_once_and_files_are_never_overwritten(shell: Shell) -> None:
    assert "at most 32" in shell.refused("ca", "request", "a/b")
    assert "there is an issuer issuing already" in shell.refused("ca", "new-issuer", "issuing")
    (shell.directory / "ca/second.crt").write_text("mine")
    assert "is there already" in shell.refused("ca", "new-issuer", "second")
    assert (shell.directory / "ca/second.crt").read_text() == "mine"
    assert not (shell.directory / "ca/second.key").exists()


# -- an existing key ------------------------------------------------------------------------------


def _encryption(*, encrypted: bool) -> KeySerializationEncryption:
    return BestAvailableEncryption(_PASSWORD.encode()) if encrypted else NoEncryption()


@pytest.mark.parametrize("form", ["pkcs8", "pkcs8-der", "traditional", "pkcs12"])
@pytest.mark.parametrize("encrypted", [True, False])
def test_a_ca_is_imported_in_every_form_of_key(
    shell: Shell, tmp_path: Path, form: str, *, encrypted: bool
) -> None:
    key_type = KeyType.RSA_3072 if form == "traditional" else KeyType.EC_P256
    root, issuing = make_hierarchy("Example Corporation", key_type, present())
    write_pem(tmp_path / "chain.pem", root.certificate)
    write_pem(tmp_path / "ca.pem", issuing.certificate)
    protection = _encryption(encrypted=encrypted)
    more = ["--certificate", str(tmp_path / "ca.pem"), "--chain", str(tmp_path / "chain.pem")]
    match form:
        case "pkcs12":
            content = pkcs12.serialize_key_and_certificates(
                b"ca", issuing.key, issuing.certificate, [root.certificate], protection
            )
            more = []
        case "pkcs8-der":
            content = issuing.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, protection)
        case "pkcs8":
            content = issuing.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
        case _:
            traditional = PrivateFormat.TraditionalOpenSSL
            content = issuing.key.private_bytes(Encoding.PEM, traditional, protection)
    (tmp_path / "ca.key").write_bytes(content)
    command = ["ca", "import", "corporate", "--key", str(tmp_path / "ca.key"), *more]
    if encrypted:
        assert "passphrase" in shell.refused(*command)
        (tmp_path / "secret").write_text(f"{_PASSWORD}\n")
        command += ["--passphrase-file", str(tmp_path / "secret")]
    shell.run(*command)
    kept = shell.directory / "ca/corporate.key"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    opens(shell)


def test_wrong_keys_are_not_imported(shell: Shell, tmp_path: Path) -> None:
    root, issuing = make_hierarchy("Example Corporation", KeyType.EC_P256, present())
    write_pem(tmp_path / "ca.pem", issuing.certificate, root.certificate)
    before = _files(shell)

    def refused(content: bytes) -> str:
        (tmp_path / "ca.key").write_bytes(content)
        files = ("--key", str(tmp_path / "ca.key"), "--certificate", str(tmp_path / "ca.pem"))
        return shell.refused("ca", "import", "corporate", *files)

    def pem(
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
    ) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    assert "another key" in refused(pem(new_key()))
    assert "RSA or EC" in refused(pem(ed25519.Ed25519PrivateKey.generate()))
    assert "not allowed" in refused(pem(ec.generate_private_key(ec.SECP256K1())))
    assert "no private key" in refused(b"nothing")
    assert "no private key" in refused(issuing.certificate.public_bytes(Encoding.DER))
    assert _files(shell) == before
