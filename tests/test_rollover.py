"""One CA takes over from another, and every client can follow."""

import shutil
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from estserver import config
from estserver.ca.ceremony import InstanceOptions, create_instance
from estserver.ca.hierarchy import Authority
from estserver.ca.keys import load_key, read_secret
from estserver.core import open_core
from estserver.doctor import examine
from estserver.specimens import pkix_linter
from tests.command_line import Shell
from tests.live import (
    Holder,
    Live,
    MovableClock,
    beside,
    free_ports,
    make_csr,
    new_key,
    on_ports,
)
from tests.rollover import PROFILES, Rollover, certify, opens, settings_of, write_pem
from tests.web.visitor import Visitor


def test_all_certificates_of_a_change_lint_clean(shell: Shell) -> None:
    folder = shell.directory / "stick"
    shell.run("ca", "new-root", "next", str(folder), "--succeeds", "issuing")
    judge = pkix_linter()
    for name in ("next.crt", "next-chain.crt", "next-cross.crt"):
        path = shell.directory / "ca" / name
        for certificate in x509.load_pem_x509_certificates(path.read_bytes()):
            assert judge(certificate) == (set(), set())
    assert settings_of(shell).issuers["next"].succeeds == ("issuing",)


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
    opens(shell)
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
    opens(shell)
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
    core = open_core(settings_of(shell), MovableClock(), with_keys=True)
    core.close()
    assert core.chains.family("fresh") == ("fresh",)
    assert core.chains.bag("fresh") == core.chains["fresh"]
    assert len(core.chains.bag("issuing")) == 2


def test_three_roots_in_a_row_reach_each_other(shell: Shell) -> None:
    sticks = [str(shell.directory / name) for name in ("one", "two")]
    shell.run("ca", "new-root", "second", sticks[0], "--succeeds", "issuing")
    shell.run("ca", "new-root", "third", sticks[1], "--succeeds", "second", "--old-root", sticks[0])
    core = open_core(settings_of(shell), MovableClock(), with_keys=True)
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
        found = {one.check: one for one in examine(lambda: settings_of(shell), clock)}
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
    return certify(request, root, public_key=key, begin=timedelta(days=-9), end=timedelta(days=-1))


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
