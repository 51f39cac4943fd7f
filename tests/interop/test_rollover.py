"""A device lives through a change of root with curl and openssl, and with strongSwan.

It begins with the old root's certificate. From then on it trusts only what `/cacerts` has given it
over TLS that verified from what it trusted before: its explicit TA database (RFC 7030 §4.1.3).
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from estserver.invitations import Handover
from estserver.model import RevocationReason
from tests.interop.commands import Shell
from tests.live import ORIGIN, Live
from tests.rollover import Rollover, split, write_pem

VERIFY = "openssl verify -x509_strict -CAfile ta.pem -untrusted bag.pem"
_CURL = "curl --silent --show-error --fail --cacert ta.pem"
_UNPACK = "openssl base64 -d -A | openssl pkcs7 -inform DER -print_certs"
_SEND = f"openssl base64 -A | {_CURL} -H 'Content-Type: application/pkcs10' --data-binary @-"
_NEW_KEY = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out new.key"


@dataclass(frozen=True, slots=True)
class CurlDevice:
    """A folder with ta.pem (trusted roots), bag.pem (what else it was given), device.key, .crt."""

    shell: Shell

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.shell.folder

    @property
    def trusted(self) -> set[x509.Certificate]:
        """Its explicit TA database."""
        return set(x509.load_pem_x509_certificates((self.folder / "ta.pem").read_bytes()))

    def refresh(self) -> None:
        """Ask for the CA certificates; roots become trust anchors, the rest is kept beside."""
        self.shell.run(f"{_CURL} $est/cacerts | {_UNPACK} -out fetched.pem")
        roots, others = split(self.folder / "fetched.pem")
        write_pem(self.folder / "ta.pem", *roots)
        write_pem(self.folder / "bag.pem", *others)

    def enroll(self) -> x509.Certificate:
        """Enroll with the PIN."""
        return self._take(
            f"openssl req -new -key new.key -subj / -outform DER | {_SEND} "
            f"--user $number:$pin $est/simpleenroll | {_UNPACK} -out new.crt"
        )

    def renew(self) -> x509.Certificate:
        """Renew with the certificate and a new key."""
        return self._take(
            "openssl x509 -x509toreq -in device.crt -key new.key -copy_extensions copyall | "
            f"openssl req -outform DER | {_SEND} --cert device.crt --key device.key "
            f"$est/simplereenroll | {_UNPACK} -out new.crt"
        )

    def _take(self, line: str) -> x509.Certificate:
        self.shell.run(_NEW_KEY)
        self.shell.run(line)
        self.shell.run(f"{VERIFY} -purpose sslclient new.crt")
        for ending in ("key", "crt"):
            shutil.copy(self.folder / f"new.{ending}", self.folder / f"device.{ending}")
        return x509.load_pem_x509_certificate((self.folder / "device.crt").read_bytes())


@dataclass(frozen=True, slots=True)
class StrongSwanDevice:
    """The same with `pki`, which keeps each CA certificate in a file of its own: ca*.pem."""

    shell: Shell

    @property
    def trusted(self) -> set[x509.Certificate]:
        """Its explicit TA database: of what it was given, what is self-signed."""
        return {root for path in self._files() for root in split(path)[0]}

    def refresh(self) -> None:
        """Ask for the CA certificates."""
        trust = self._trust()
        fetched = self.shell.folder / "fetched"
        fetched.mkdir()
        self.shell.run(f"pki --estca --url $url {trust} --caout fetched/ca.pem --outform pem")
        for path in self._files():
            path.unlink()
        for path in fetched.iterdir():
            path.rename(self.shell.folder / path.name)
        fetched.rmdir()

    def enroll(self) -> x509.Certificate:
        """Enroll with the PIN."""
        return self._ask("--userpass $number:$pin")

    def renew(self) -> x509.Certificate:
        """Renew with the certificate and a new key."""
        return self._ask("--cert device.crt --key device.key")

    def _ask(self, proof: str) -> x509.Certificate:
        self.shell.run("pki --gen --type ecdsa --size 256 --outform pem > new.key")
        self.shell.run(
            'pki --req --type ecdsa --in new.key --dn "CN=printer-17" --outform pem > new.csr'
        )
        self.shell.run(
            f"pki --est --url $url --in new.csr {self._trust()} {proof} --outform pem > new.crt"
        )
        for ending in ("key", "crt"):
            path = self.shell.folder / f"new.{ending}"
            path.rename(self.shell.folder / f"device.{ending}")
        return x509.load_pem_x509_certificate((self.shell.folder / "device.crt").read_bytes())

    def _trust(self) -> str:
        return " ".join(f"--cacert {path.name}" for path in self._files())

    def _files(self) -> list[Path]:
        return sorted(self.shell.folder.glob("ca*.pem"))


def _shell(live: Live, folder: Path, handover: Handover) -> Shell:
    assert handover.pin is not None
    folder.mkdir()
    url = live.url("devices")
    return Shell(
        folder,
        {
            "url": url,
            "est": f"{url}/.well-known/est",
            "number": handover.invitation.number,
            "pin": handover.pin.reveal(),
        },
    )


def _curl(live: Live, folder: Path) -> CurlDevice:
    device = CurlDevice(_shell(live, folder, live.invite("device")))
    shutil.copy(live.root, folder / "ta.pem")
    return device


def _strongswan(live: Live, folder: Path) -> StrongSwanDevice:
    device = StrongSwanDevice(_shell(live, folder, live.invite("device")))
    shutil.copy(live.root, folder / "ca.pem")
    return device


@pytest.mark.row("EST-043", "EST-044", "EST-045", "EST-046", "EST-194", "EST-197")
@pytest.mark.parametrize("make_device", [_curl, _strongswan], ids=["curl", "strongswan"])
def test_a_device_lives_through_a_change_of_root(
    make_live: Callable[[str], Live],
    tmp_path: Path,
    make_device: Callable[[Live, Path], CurlDevice | StrongSwanDevice],
) -> None:
    live = make_live("")
    change = Rollover(live)
    device, asleep = make_device(live, tmp_path / "device"), make_device(live, tmp_path / "asleep")
    for one in (device, asleep):
        one.refresh()
        one.enroll().verify_directly_issued_by(live.core.chains["issuing"][0])
        assert one.trusted == {change.old}

    change.announce()
    device.refresh()
    assert device.trusted == {change.old, change.new}
    device.renew().verify_directly_issued_by(live.core.chains["issuing"][0])

    change.move_profiles()
    device.renew().verify_directly_issued_by(live.core.chains["next"][0])

    change.move_tls()
    # Who slept all the while knows the old root alone: NewWithOld is its way to the new one.
    assert asleep.trusted == {change.old}
    for one in (device, asleep):
        one.refresh()
        assert one.trusted == {change.old, change.new}
        one.renew().verify_directly_issued_by(live.core.chains["next"][0])

    change.retire()
    device.renew()

    change.finish()
    for one in (device, asleep):
        one.refresh()
        assert one.trusted == {change.new}
        one.renew().verify_directly_issued_by(live.core.chains["next"][0])


@pytest.mark.row("EST-043", "EST-044", "EST-045")
def test_openssl_verifies_all_four_and_every_leaf_from_either_root(
    make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live("")
    change = Rollover(live)
    device = _curl(live, tmp_path / "device")
    device.refresh()
    write_pem(device.folder / "old.crt", device.enroll())
    change.announce()
    change.move_profiles()
    device.refresh()
    write_pem(device.folder / "new.crt", device.renew())
    for name, certificate in {
        "OldWithOld": change.old,
        "NewWithNew": change.new,
        **change.cross,
    }.items():
        write_pem(device.folder / f"{name}.crt", certificate)
    newest = max((change.old, change.new), key=lambda root: root.not_valid_after_utc)
    assert newest == change.new
    for root, cross in ((change.old, "NewWithOld"), (change.new, "OldWithNew")):
        write_pem(device.folder / "ta.pem", root)
        own = "OldWithOld" if root == change.old else "NewWithNew"
        for file in (f"{own}.crt", f"{cross}.crt", "old.crt", "new.crt"):
            device.shell.run(f"{VERIFY} {file}")


def test_the_old_issuer_still_answers_for_what_it_issued(
    make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live("")
    change = Rollover(live)
    device = _curl(live, tmp_path / "device")
    device.refresh()
    first = device.enroll()
    write_pem(device.folder / "first.crt", first)
    change.announce()
    change.move_profiles()
    change.move_tls()
    change.retire()
    change.finish()
    write_pem(device.folder / "issuing.crt", live.core.chains["issuing"][0])
    write_pem(device.folder / "old.pem", change.old)
    access = first.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    urls = {one.access_method: str(one.access_location.value) for one in access}
    ask = (
        "openssl ocsp -issuer issuing.crt -cert first.crt -url $ocsp -CAfile old.pem -no_nonce 2>&1"
    )
    variables = {"ocsp": urls[AuthorityInformationAccessOID.OCSP]}
    assert "first.crt: good" in device.shell.run(ask, **variables)
    live.core.ra.revoke(
        live.core.ra.find(first.serial_number).enrollment,
        reason=RevocationReason.SUPERSEDED,
        comment=None,
        by="test",
        origin=ORIGIN,
    )
    assert "first.crt: revoked" in device.shell.run(ask, **variables)
    live.core.status.publish_due()
    points = first.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    names = points[0].full_name
    assert names is not None
    listed = device.shell.run(
        "curl --silent --fail $crl | openssl crl -inform DER -noout -text -CAfile issuing.crt 2>&1",
        crl=str(names[0].value),
    )
    assert "verify OK" in listed
    assert f"{first.serial_number:X}" in listed
    issuers = device.shell.run(
        "curl --silent --fail $issuer | openssl x509 -inform DER -noout -subject -nameopt RFC2253",
        issuer=urls[AuthorityInformationAccessOID.CA_ISSUERS],
    )
    assert live.core.chains["issuing"][0].subject.rfc4514_string() in issuers
