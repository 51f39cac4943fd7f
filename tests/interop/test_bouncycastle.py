"""Debian's Bouncy Castle 1.72: its EST client, driven as its documentation shows it.

It sends the PIN only after a challenge, reads no body of a 401 it answers or of a 202, needs
Content-Transfer-Encoding, and with its own TLS can put tls-unique into the CSR (RFC 7030 §3.5).
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from estserver.invitations import Handover
from estserver.model import Secret, Via
from estserver.store.tables import attempts
from tests.interop.commands import Outcome, environment, run
from tests.live import ORIGIN, Live

SOURCE = Path(__file__).parent / "EnrollmentDriver.java"
CLASS_PATH = ":".join(
    f"/usr/share/java/{name}.jar" for name in ("bcpkix", "bcprov", "bcutil", "bctls")
)
# A short-lived program: optimizing it costs more than it saves.
JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
EC_PUBLIC_KEY = "1.2.840.10045.2.1"
CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    command = ["javac", "-Xlint:all,-path", "-Werror", "-cp", CLASS_PATH, "-d", ".", str(SOURCE)]
    outcome = run(command, folder)
    assert outcome.status == 0, outcome
    return folder


@dataclass(frozen=True, slots=True)
class Driver:
    """Runs EnrollmentDriver against one instance, its files in one folder."""

    classes: Path
    live: Live
    folder: Path

    def command(self, operation: str, **given: str) -> list[str]:
        fields = {
            "server": f"localhost:{self.live.port('devices')}",
            "root": str(self.live.root),
            "tls": "TLSv1.3",
            "key": "device.key",
            "out": "device.crt",
            **given,
        }
        pairs = [f"{name.replace('_', '-')}={value}" for name, value in fields.items()]
        class_path = f"{self.classes}:{CLASS_PATH}"
        return [*JAVA, "-cp", class_path, "EnrollmentDriver", operation, *pairs]

    def run(self, operation: str, *, handover: Handover | None = None, **given: str) -> Outcome:
        if handover is None:
            return run(self.command(operation, **given), self.folder)
        assert handover.pin is not None
        command = self.command(operation, user=handover.invitation.number, **given)
        return run(command, self.folder, text=f"{handover.pin.reveal()}\n")

    def expect(self, operation: str, *, handover: Handover | None = None, **given: str) -> set[str]:
        """Run an operation that must succeed; return its facts, such as `tls TLSv1.3`."""
        outcome = self.run(operation, handover=handover, **given)
        assert outcome.status == 0, outcome
        assert outcome.err == ""
        return set(outcome.out.splitlines())

    def refused(self, operation: str, *, handover: Handover | None = None, **given: str) -> str:
        """Run an operation that must be refused; return status and reason."""
        outcome = self.run(operation, handover=handover, **given)
        assert outcome.status == 0, outcome
        assert outcome.out.startswith("refused "), outcome
        return outcome.out.removeprefix("refused ")

    def hold(self, name: str = "device.crt", key: str = "device.key") -> x509.Certificate:
        """Put the key behind its certificate, as one file to present; return the certificate."""
        path = self.folder / name
        private = (self.folder / key).read_bytes()
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        assert certificate.public_key() == load_pem_private_key(private, None).public_key()
        path.write_bytes(path.read_bytes() + private)
        return certificate


@pytest.fixture
def driver(classes: Path, shared: Live, tmp_path: Path) -> Driver:
    return Driver(classes, shared, tmp_path)


def _wrong_pins(live: Live) -> int:
    """Return how many wrong PINs the instance has counted."""
    query = sa.select(sa.func.coalesce(sa.func.sum(attempts.c.failures), 0))
    return int(live.core.store.read(lambda tx: tx.connection.execute(query).scalar_one()))


@pytest.mark.parametrize("tls", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.row("EST-016", "EST-034", "EST-037", "EST-195")
def test_cacerts_over(driver: Driver, tls: str) -> None:
    assert driver.expect("cacerts", tls=tls) == {f"tls {tls}", "trusted true", "certificates 2"}
    chain = x509.load_pem_x509_certificates((driver.folder / "device.crt").read_bytes())
    assert set(chain) == set(driver.live.core.chains["issuing"])


@pytest.mark.row("EST-002", "EST-145", "EST-146", "EST-151", "EST-195")
def test_csrattrs_are_read_from_the_label(driver: Driver) -> None:
    facts = driver.expect("csrattrs", label="device")
    assert {"attributes true", f"requires {EC_PUBLIC_KEY}"} <= facts


@pytest.mark.parametrize("tls", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.row("EST-049", "EST-050", "EST-071", "EST-114", "EST-115", "EST-195")
def test_enroll_answers_the_challenge_with_the_pin_over(driver: Driver, tls: str) -> None:
    handover = driver.live.invite("device")
    before = _wrong_pins(driver.live)
    facts = driver.expect("enroll", handover=handover, tls=tls, realm="estserver")
    assert facts == {f"tls {tls}", "certificates 1"}
    assert driver.hold().subject.rfc4514_string() == "CN=printer-17"
    # The first request had no credentials: it was a question, not a wrong PIN.
    assert _wrong_pins(driver.live) == before


@pytest.mark.parametrize("tls", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("key", ["device.key", "new.key"])
@pytest.mark.row("EST-020", "EST-055", "EST-127", "EST-128", "EST-195")
def test_reenroll_by_the_certificate_in_the_handshake(driver: Driver, tls: str, key: str) -> None:
    handover = driver.live.invite("server", names=("dns:www.example.ac.jp", "ip:192.0.2.7"))
    driver.expect("enroll", handover=handover)
    old = driver.hold()
    facts = driver.expect(
        "reenroll", tls=tls, key=key, certificate="device.crt", names_from="device.crt", out="new"
    )
    assert facts == {f"tls {tls}", "certificates 1"}
    new = driver.hold("new", key)
    assert new.subject == old.subject
    assert new.serial_number != old.serial_number
    assert driver.live.core.ra.find(new.serial_number).via == Via.RENEWAL


@pytest.mark.row("EST-117", "EST-118", "EST-195")
def test_a_wrong_pin_and_a_foreign_name_are_read_as_sentences(driver: Driver) -> None:
    handover = driver.live.invite("device")
    foreign = driver.refused("enroll", handover=handover, subject="CN=printer-18")
    assert foreign.startswith("403")
    assert "printer-18" in foreign
    assert driver.live.core.invitations.get(handover.invitation.number).units_used == 0
    before = _wrong_pins(driver.live)
    wrong = replace(handover, pin=Secret("00000-00000-0000"))
    assert driver.refused("enroll", handover=wrong).startswith("401")
    assert _wrong_pins(driver.live) == before + 1


@pytest.mark.row("EST-112", "EST-120", "EST-121", "EST-195")
def test_enroll_polls_an_empty_202_until_an_officer_has_approved(
    classes: Path, make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live('[est]\nretry_after = "7s"\n')
    driver = Driver(classes, live, tmp_path)
    handover = live.invite("device", approval=True)
    number, pin = handover.invitation.number, handover.pin
    assert pin is not None
    with subprocess.Popen(
        driver.command("enroll", user=number),
        cwd=tmp_path,
        env=environment(tmp_path, {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(f"{pin.reveal()}\n")
        client.stdin.flush()
        assert client.stdout.readline() == "pending 7\n"
        client.stdin.write("again\n")
        client.stdin.flush()
        assert client.stdout.readline() == "pending 7\n"
        ((waiting, record),) = live.core.ra.of_invitation(number)
        assert record is None
        live.core.ra.approve(waiting.id, by="officer", origin=ORIGIN)
        rest, _ = client.communicate("again\n", timeout=60)
    assert rest.splitlines() == ["tls TLSv1.3", "certificates 1"]
    driver.hold()


@pytest.mark.row("EST-098", "EST-106", "EST-111", "EST-195")
def test_enroll_and_reenroll_linked_to_the_tls_1_2_connection(driver: Driver) -> None:
    handover = driver.live.invite("device")
    facts = driver.expect("enroll-linked", handover=handover, tls="TLSv1.2", provider="BCJSSE")
    assert facts == {"tls TLSv1.2", "certificates 1"}
    driver.hold()
    driver.expect(
        "reenroll-linked",
        certificate="device.crt",
        names_from="device.crt",
        key="new.key",
        out="new",
        tls="TLSv1.2",
        provider="BCJSSE",
    )
    new = driver.hold("new", "new.key")
    record = driver.live.core.ra.find(new.serial_number)
    assert driver.live.core.ra.enrollment(record.enrollment).proof == "tls-unique"
    ((first, _),) = [
        pair
        for pair in driver.live.core.ra.of_invitation(handover.invitation.number)
        if pair[0].via == Via.EST
    ]
    assert first.proof == "tls-unique"


@pytest.mark.row("EST-100", "EST-108", "EST-195")
def test_a_profile_that_requires_linking_says_so_and_takes_only_linked_requests(
    classes: Path, make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live('[profiles.device]\npop_linking = "required"\n')
    driver = Driver(classes, live, tmp_path)
    handover = live.invite("device")
    assert f"requires {CHALLENGE_PASSWORD}" in driver.expect("csrattrs")
    reason = driver.refused("enroll", handover=handover)
    assert reason.startswith("400")
    assert "linking" in reason
    driver.expect("enroll-linked", handover=handover, tls="TLSv1.2", provider="BCJSSE")
    driver.hold()


@pytest.mark.row("EST-167", "EST-174")
def test_a_key_made_by_the_server_is_read_beside_its_certificate(
    classes: Path, make_live: Callable[[str], Live], tmp_path: Path
) -> None:
    live = make_live("[est]\nserverkeygen = true\n")
    driver = Driver(classes, live, tmp_path)
    facts = driver.expect("serverkeygen", handover=live.invite("device"), made_key="made.key")
    assert facts == {"tls TLSv1.3", f"key {EC_PUBLIC_KEY}", "certificates 1"}
    driver.hold(key="made.key")
