"""CAs requested, installed, imported and replaced: what is taken, what is refused and why."""

import shutil
import socket
import ssl
import subprocess
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import structlog
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
from estserver.ca.keys import load_key, read_secret
from estserver.core import open_core
from estserver.doctor import examine
from estserver.errors import ConfigurationError
from estserver.model import KeyType
from estserver.specimens import pkix_linter
from tests.command_line import Shell
from tests.live import (
    Holder,
    Live,
    MovableClock,
    Workshop,
    beside,
    free_ports,
    make_csr,
    new_key,
    on_ports,
)
from tests.rollover import PROFILES, Rollover, write_pem
from tests.web.visitor import Visitor

_PASSWORD = "open sesame"


@pytest.fixture
def shell(template: Path, tmp_path: Path) -> Shell:
    return Shell(Workshop(template).make(tmp_path / "instance", start=False).directory)


def _now() -> datetime:
    return MovableClock().now()


def _corporate() -> Authority:
    """Return another organization's root."""
    return make_hierarchy("Example Corporation", KeyType.EC_P256, _now())[0]


def _certify(
    csr: x509.CertificateSigningRequest,
    by: Authority,
    *,
    public_key: ec.EllipticCurvePublicKey | None = None,
    ca: bool = True,
    path_length: int | None = 0,
    usage: bool = True,
    begin: timedelta = timedelta(hours=-1),
    end: timedelta = timedelta(days=3000),
) -> x509.Certificate:
    """Sign as a corporate CA might: right unless told otherwise."""
    key = public_key or csr.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(by.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() + begin)
        .not_valid_after(_now() + end)
        .add_extension(
            x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    for extension in by.certificate.extensions:
        if usage and isinstance(extension.value, x509.KeyUsage):
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(by.key, hashes.SHA256())


def _requested(shell: Shell, name: str = "corporate") -> x509.CertificateSigningRequest:
    path = Path(shell.run("ca", "request", name).stdout.strip())
    return x509.load_pem_x509_csr(path.read_bytes())


def _settings(shell: Shell) -> config.Settings:
    return config.load(shell.directory / "estserver.toml")


def _opens(shell: Shell) -> None:
    """The instance must open with all of its keys, as `serve` opens it."""
    open_core(_settings(shell), MovableClock(), with_keys=True).close()


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
    _opens(shell)


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
    _opens(shell)
    (row,) = shell.json("ca", "list")
    assert row["root"] == corporate.certificate.subject.rfc4514_string().split(",")[0][3:]
    # A renewed certificate of the same key goes the same way, and needs no chain.
    write_pem(tmp_path / "renewed.crt", _certify(_requested(shell, "issuing"), corporate))
    shell.run("ca", "install", "issuing", str(tmp_path / "renewed.crt"))
    _opens(shell)
    # Another CA's is another issuer.
    other = _corporate()
    write_pem(
        tmp_path / "other.crt", _certify(_requested(shell, "issuing"), other), other.certificate
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
    certificate = _certify(csr, corporate, **given)  # type: ignore[arg-type]  # arguments as tests name them
    write_pem(tmp_path / "wrong.crt", certificate, corporate.certificate)
    assert said in shell.refused("ca", "install", "corporate", str(tmp_path / "wrong.crt"))
    assert _files(shell) == before
    _opens(shell)


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
    certificate = _certify(csr, corporate)
    before = _files(shell)
    install = ("ca", "install", "corporate", str(tmp_path / "one.crt"))
    write_pem(tmp_path / "one.crt", certificate)
    assert "does not lead to a self-signed root" in shell.refused(*install)
    # A foreign root of the very same name signed nothing of ours.
    key = new_key()
    lookalike = _certify(csr, Authority(corporate.certificate, key))
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
    middle = Authority(_certify(request, narrow, path_length=None), middle_key)
    write_pem(tmp_path / "one.crt", _certify(csr, middle), middle.certificate, narrow.certificate)
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
    return _certify(request, authority, path_length=path_length)


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
    root, issuing = make_hierarchy("Example Corporation", key_type, _now())
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
    _opens(shell)


def test_wrong_keys_are_not_imported(shell: Shell, tmp_path: Path) -> None:
    root, issuing = make_hierarchy("Example Corporation", KeyType.EC_P256, _now())
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


# -- one takes over from another ------------------------------------------------------------------


def test_all_certificates_of_a_change_lint_clean(shell: Shell) -> None:
    folder = shell.directory / "stick"
    shell.run("ca", "new-root", "next", str(folder), "--succeeds", "issuing")
    judge = pkix_linter()
    for name in ("next.crt", "next-chain.crt", "next-cross.crt"):
        path = shell.directory / "ca" / name
        for certificate in x509.load_pem_x509_certificates(path.read_bytes()):
            assert judge(certificate) == (set(), set())
    assert _settings(shell).issuers["next"].succeeds == ("issuing",)


def test_a_new_root_needs_the_key_of_the_one_it_follows_or_a_plain_word(
    shell: Shell, tmp_path: Path
) -> None:
    create_instance(
        tmp_path / "other", MovableClock(), InstanceOptions(root_folder=tmp_path / "foreign")
    )
    command = ("ca", "new-root", "next", str(tmp_path / "stick"), "--succeeds", "issuing")
    assert "is below" in shell.refused(*command, "--old-root", str(tmp_path / "foreign"))
    assert not (tmp_path / "stick").exists()
    (shell.directory / "ca/root.key").unlink()
    assert "root.key is not there" in shell.refused(*command)
    shell.run(*command, "--without-old-root")
    (cross,) = x509.load_pem_x509_certificates((shell.directory / "ca/next-cross.crt").read_bytes())
    root = x509.load_pem_x509_certificate((tmp_path / "stick/root.crt").read_bytes())
    cross.verify_directly_issued_by(root)
    _opens(shell)
    assert "no issuer nobody" in shell.refused(
        *("ca", "new-root", "third", str(tmp_path / "third")),
        *("--succeeds", "nobody", "--without-old-root"),
    )


def test_the_offline_way_ends_where_the_short_one_does(shell: Shell, tmp_path: Path) -> None:
    csr = shell.run("ca", "request", "second").stdout.strip()
    # The root's machine has no instance, only the folder.
    stick = tmp_path / "stick"
    stick.mkdir()
    shutil.move(shell.directory / "ca/root.key", stick)
    for name in ("ca/root.crt", "secrets/passphrase"):
        shutil.copy(shell.directory / name, stick)
    shell.run("ca", "sign", csr, "--root", str(stick), "--out", str(tmp_path / "second.crt"))
    shell.run("ca", "install", "second", str(tmp_path / "second.crt"), "--succeeds", "issuing")
    _opens(shell)
    rows = {row["name"]: row for row in shell.json("ca", "list")}
    assert rows["second"]["root_sha256"] == rows["issuing"]["root_sha256"]
    assert rows["second"]["succeeds"] == ["issuing"]


def test_a_retired_issuer_that_a_profile_names_is_an_error(shell: Shell) -> None:
    path = shell.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8")
    retired = text.replace("[issuers.issuing]\n", "[issuers.issuing]\nretired = true\n")
    path.write_text(retired, encoding="utf-8")
    said = shell.refused("ca", "list")
    for name in PROFILES:
        assert f"profiles.{name}.issuer" in said


def test_sighup_takes_no_other_cas_and_says_so(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("")
    change = Rollover(live)
    Shell(live.directory).run("ca", "new-issuer", "next", "--succeeds", "issuing")
    with structlog.testing.capture_logs() as heard:
        change.move_profiles("device")
    assert "a restart is needed for next" in str(heard)
    live.enroll(live.invite("device")).certificate.verify_directly_issued_by(
        live.core.chains["issuing"][0]
    )
    change.restart()
    holder = live.enroll(live.invite("device"))
    holder.certificate.verify_directly_issued_by(live.core.chains["next"][0])


def test_the_trust_page_shows_both_roots_and_says_what_is_happening(
    make_live: Callable[[str], Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make_live("")
    change = Rollover(live)
    assert "changing" not in Visitor(live).get("/trust?lang=en").seen
    change.announce()
    page = Visitor(live).get("/trust?lang=en")
    shown = page.text.replace("<wbr>", "")
    for root in (change.old, change.new):
        assert root.fingerprint(hashes.SHA256()).hex(":").upper() in shown
    for cross in change.cross.values():
        assert cross.fingerprint(hashes.SHA256()).hex(":").upper() not in shown
    assert "The root certificate of this service is changing" in page.seen
    assert "New root certificate" in page.seen
    assert "Old root certificate, still in use" in page.seen
    assert "切り替えています" in Visitor(live).get("/trust?lang=ja").seen
    change.move_profiles()
    change.move_tls()
    change.retire()
    change.finish()
    shown_root = Shell(live.directory).run("info").stdout.replace(":", "").upper()
    assert change.new.fingerprint(hashes.SHA256()).hex().upper() in shown_root
    # From now on whoever looks must have installed the new root.
    monkeypatch.setattr(Live, "root", live.directory / "ca/next-chain.crt")
    page = Visitor(live).get("/trust?lang=en")
    assert change.old.fingerprint(hashes.SHA256()).hex(":").upper() not in page.text.replace(
        "<wbr>", ""
    )
    assert "changing" not in page.seen


def test_a_root_that_follows_none_is_linked_with_none(shell: Shell) -> None:
    (shell.directory / "ca/root.key").unlink()
    shell.run("ca", "new-root", "fresh", str(shell.directory / "stick"))
    core = open_core(_settings(shell), MovableClock(), with_keys=True)
    core.close()
    assert core.chains.family("fresh") == ("fresh",)
    assert core.chains.bag("fresh") == core.chains["fresh"]
    assert len(core.chains.bag("issuing")) == 2


def test_three_roots_in_a_row_reach_each_other(shell: Shell) -> None:
    sticks = [str(shell.directory / name) for name in ("one", "two")]
    shell.run("ca", "new-root", "second", sticks[0], "--succeeds", "issuing")
    shell.run("ca", "new-root", "third", sticks[1], "--succeeds", "second", "--old-root", sticks[0])
    core = open_core(_settings(shell), MovableClock(), with_keys=True)
    core.close()
    roots = [core.chains[name][-1] for name in ("issuing", "second", "third")]
    for name in core.chains:
        assert set(core.chains.bag(name)) >= {*roots}
        ways = core.chains.ways(name)
        assert {way.root for way in ways} == {*roots}
        for way in ways:
            for lower, upper in zip(
                way.certificates, (*way.certificates[1:], way.root), strict=True
            ):
                lower.verify_directly_issued_by(upper)
    assert sorted(root.not_valid_after_utc for root in roots) == [
        root.not_valid_after_utc for root in roots
    ]


@pytest.mark.parametrize("which", ["announced", "moved"])
def test_tls_verifies_from_either_root_alone(
    make_live: Callable[[str], Live], tmp_path: Path, which: str
) -> None:
    live = make_live("")
    change = Rollover(live)
    change.announce()
    if which == "moved":
        change.move_tls()
    shown = []
    for root in (change.old, change.new):
        write_pem(tmp_path / "root.pem", root)
        context = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
        address = ("localhost", live.port("web"))
        with (
            socket.create_connection(address) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            shown.append(connection.getpeercert(binary_form=True))
    assert shown[0] is not None
    assert shown[0] == shown[1]
    issuer = "next" if which == "moved" else "issuing"
    leaf = x509.load_der_x509_certificate(shown[0])
    leaf.verify_directly_issued_by(live.core.chains[issuer][0])


def test_an_older_certificate_keeps_its_own_chain_in_files_for_people(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("")
    change = Rollover(live)
    holder = live.enroll(live.invite("device"))
    change.announce()
    change.move_profiles()
    renewed = _renewed(live, holder).certificate
    page = live.request("GET", "/renew", holder=holder)
    assert page.status == 200
    enrollment = live.core.ra.find(renewed.serial_number).enrollment
    # The rollover goes on: this profile has another issuer by now than its certificates.
    change.edit('[profiles.device]\nissuer = "next"', '[profiles.device]\nissuer = "issuing"')
    change.reload()
    file = live.request("GET", f"/renew/certificate.pem?certificate={enrollment}", holder=holder)
    leaf, *above = x509.load_pem_x509_certificates(file.body)
    assert leaf == renewed
    for lower, upper in zip((leaf, *above), above, strict=False):
        if lower.issuer == upper.subject:
            lower.verify_directly_issued_by(upper)
    assert above[0] == live.core.chains["next"][0]
    assert above[-1] == change.new


def test_doctor_warns_in_time_that_a_ca_needs_a_successor(shell: Shell) -> None:
    def finding(days: int) -> tuple[str, str]:
        clock = MovableClock()
        clock.advance(timedelta(days=days))
        found = {one.check: one for one in examine(lambda: _settings(shell), clock)}
        return found["issuer issuing"].verdict.value, found["issuer issuing"].detail

    assert finding(0)[0] == "ok"
    verdict, said = finding(3650 - 400)
    assert verdict == "warning"
    assert "begin its successor" in said
    assert finding(3660)[0] == "bad"


def test_an_expired_retired_issuer_hinders_nobody(make_live: Callable[[str], Live]) -> None:
    live = make_live("")
    change = Rollover(live)
    change.announce()
    change.move_profiles()
    change.move_tls()
    change.retire()
    end = live.core.chains["issuing"][0].not_valid_after_utc
    short = min(way.root.not_valid_after_utc for way in live.core.chains.ways("next"))
    assert end < short
    # A CA of the same name and key that has ended, as a long-lived instance keeps one.
    root = live.directory / "ca/root.key"
    key = load_key(root, read_secret(live.directory / "secrets/passphrase"))
    past = _past(live.core.chains["issuing"][0], Authority(change.old, key))
    write_pem(live.directory / "ca/issuing.crt", past)
    change.restart()
    assert live.request("GET", "/readyz", listener="management").status == 200
    live.enroll(live.invite("device"))


def _past(certificate: x509.Certificate, root: Authority) -> x509.Certificate:
    """Return a CA certificate as it would be had it ended yesterday."""
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(certificate.subject)
        .sign(root.key, hashes.SHA256())
    )
    return _certify(request, root, public_key=key, begin=timedelta(days=-9), end=timedelta(days=-1))


def test_two_nodes_change_their_root_one_after_the_other(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("")
    change = Rollover(live)
    other = beside(live)
    other.start()
    try:
        holder = other.enroll(other.invite("device"))
        # One node has been told of the new root, the other is not restarted yet.
        change.announce()
        holder = _renewed(live, holder)
        holder = _renewed(other, holder)
        other.settings = on_ports(config.load(live.directory / "estserver.toml"), free_ports())
        other.restart()
        # One node issues from the new root, the other has had no SIGHUP yet.
        change.move_profiles()
        moved = _renewed(live, holder)
        moved.certificate.verify_directly_issued_by(live.core.chains["next"][0])
        back = _renewed(other, moved)
        back.certificate.verify_directly_issued_by(live.core.chains["issuing"][0])
        _renewed(live, back)
    finally:
        other.stop()


def _renewed(live: Live, holder: Holder) -> Holder:
    """Renew over EST with a new key."""
    key = new_key()
    answer = live.request(
        "POST",
        "/.well-known/est/simplereenroll",
        body=b64encode(make_csr(key, subject=holder.certificate.subject)),
        headers={"Content-Type": "application/pkcs10"},
        holder=holder,
    )
    assert answer.status == 200, answer.body
    return Holder(key, answer.certificates()[0])
