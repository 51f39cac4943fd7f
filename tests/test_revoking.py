"""Mass revocation: what is chosen, nothing else, once, also after a crash in the middle."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import ocsp

from estserver.cli import main
from estserver.errors import BadInput
from estserver.model import CertificateState, KeyType, RevocationReason
from estserver.revoking import Revocation, revoke_selected
from estserver.store import Transaction, revocations
from estserver.store.selection import MAX_SERIALS, Selection, count
from tests.live import ORIGIN, Holder, Live, Workshop

SUPERSEDED = Revocation(RevocationReason.SUPERSEDED, "campus-wide", "test")


def serial(holder: Holder) -> int:
    return holder.certificate.serial_number


def state(live: Live, holder: Holder) -> CertificateState:
    return live.core.ra.find(serial(holder)).state


def run(live: Live, *arguments: str) -> Result:
    configuration = str(live.directory / "estserver.toml")
    return CliRunner().invoke(main, ["--config", configuration, *arguments])


@pytest.fixture
def fleet(live: Live) -> dict[str, Holder]:
    """Two devices and a server, one of them with an RSA key."""
    handover = live.invite("device", units=2, email="ops@example.ac.jp")
    return {
        "printer": live.enroll(handover),
        "phone": live.enroll(handover, rsa.generate_private_key(65537, 2048)),
        "www": live.enroll(live.invite("server")),
    }


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(profile="device"), {"printer", "phone"}),
        (Selection(issuer="issuing"), {"printer", "phone", "www"}),
        (Selection(issuer="another"), set()),
        (Selection(key_type=KeyType.RSA_2048), {"phone"}),
        (Selection(key_type=KeyType.EC_P256, profile="device"), {"printer"}),
        (Selection(email="OPS@example.ac.jp"), {"printer", "phone"}),
    ],
    ids=lambda value: None if isinstance(value, set) else "selection",
)
def test_a_selection_is_what_fits_all_of_it(
    live: Live, fleet: dict[str, Holder], selection: Selection, chosen: set[str]
) -> None:
    assert live.core.store.read(lambda tx: count(tx, selection)) == len(chosen)
    assert revoke_selected(live.core.store, selection, SUPERSEDED, ORIGIN) == len(chosen)
    revoked = {name for name, one in fleet.items() if state(live, one) is CertificateState.REVOKED}
    assert revoked == chosen
    assert revoke_selected(live.core.store, selection, SUPERSEDED, ORIGIN) == 0


def test_an_address_that_stands_elsewhere_in_a_registration_does_not_select_it(live: Live) -> None:
    """A host may be called like somebody's address; revoking the somebody must not hit it."""
    address = "ops@example.ac.jp"
    live.enroll(live.invite("device", device_id=address))
    assert live.core.store.read(lambda tx: count(tx, Selection(email=address))) == 0


def test_the_time_of_issue_and_serials_select_too(live: Live, fleet: dict[str, Holder]) -> None:
    now = live.clock.now()
    store = live.core.store
    for selection, number in (
        (Selection(issued_after=now + timedelta(days=1)), 0),
        (Selection(profile="device", issued_before=now + timedelta(days=1)), 2),
        (Selection(serials=frozenset({serial(fleet["www"]), 1})), 1),
    ):
        assert store.read(partial(count, selection=selection)) == number


def test_a_selection_of_everything_or_of_too_much_is_refused() -> None:
    with pytest.raises(BadInput, match="say which"):
        Selection()
    with pytest.raises(BadInput, match="split the list"):
        Selection(serials=frozenset(range(MAX_SERIALS + 1)))


def test_our_own_certificates_are_never_selected(live: Live) -> None:
    selection = Selection(issuer="issuing")
    assert live.core.store.read(lambda tx: count(tx, selection)) == 0


def test_a_crash_in_the_middle_loses_nothing_and_the_same_call_goes_on(
    make_live: Callable[[str], Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make_live("")
    handover = live.invite("device", units=7)
    holders = [live.enroll(handover) for _ in range(7)]
    monkeypatch.setattr("estserver.revoking._BATCH", 3)

    class PowerCut(Exception):
        pass

    def cut(done: int) -> None:
        if done >= 6:
            raise PowerCut

    selection = Selection(profile="device")
    with pytest.raises(PowerCut):
        revoke_selected(live.core.store, selection, SUPERSEDED, ORIGIN, cut)
    assert [state(live, one) for one in holders].count(CertificateState.REVOKED) == 6
    assert revoke_selected(live.core.store, selection, SUPERSEDED, ORIGIN) == 1


def test_a_compromised_key_is_blocked_by_mass_revocation_too(
    live: Live, fleet: dict[str, Holder]
) -> None:
    compromised = Revocation(RevocationReason.KEY_COMPROMISE, None, "test")
    revoke_selected(live.core.store, Selection(profile="server"), compromised, ORIGIN)
    record = live.core.ra.find(serial(fleet["www"]))

    def blocked(tx: Transaction) -> bool:
        return revocations.is_blocked(tx, record.spki_sha256)

    assert live.core.store.read(blocked)


def test_the_command_previews_asks_and_tells_what_ocsp_says(
    live: Live, fleet: dict[str, Holder]
) -> None:
    arguments = ("certificates", "revoke-selected", "--profile", "device", "--reason", "superseded")
    preview = run(live, *arguments, "--dry-run")
    assert preview.exit_code == 0
    assert "2 certificates fit. Nothing was revoked." in preview.stdout
    assert state(live, fleet["phone"]) is CertificateState.VALID
    refused = run(live, *arguments)
    assert refused.exit_code == 1
    assert state(live, fleet["phone"]) is CertificateState.VALID
    done = run(live, *arguments, "--yes")
    assert done.exit_code == 0, done.output
    assert "2 certificates are revoked (superseded). OCSP says so." in done.stdout
    assert "2 of 2" in done.stderr
    again = run(live, *arguments, "--yes")
    assert "0 certificates fit" in again.stdout
    nothing = run(live, "certificates", "revoke-selected", "--reason", "superseded")
    assert nothing.exit_code == 1
    assert "say which certificates" in nothing.stderr


@pytest.mark.parametrize("option", ["issuer", "profile"])
def test_a_typing_mistake_is_not_taken_for_nothing_to_do(
    live: Live, fleet: dict[str, Holder], option: str
) -> None:
    arguments = (f"--{option}", "issing", "--reason", "superseded", "--dry-run")
    refused = run(live, "certificates", "revoke-selected", *arguments)
    assert refused.exit_code == 1
    assert f"there is no {option} issing; there are" in refused.stderr
    assert state(live, fleet["www"]) is CertificateState.VALID


def test_serials_come_from_a_file_in_any_form(
    live: Live, fleet: dict[str, Holder], tmp_path: Path
) -> None:
    number = f"{serial(fleet['www']):x}"
    even = number.zfill(len(number) + len(number) % 2)
    colons = ":".join(even[i : i + 2] for i in range(0, len(even), 2)).upper()
    path = tmp_path / "serials"
    path.write_text(f"# lost in the fire\n\n{colons}  # www\n")
    arguments = ("--serials", str(path), "--reason", "keyCompromise", "--yes")
    done = run(live, "certificates", "revoke-selected", *arguments)
    assert "1 certificate is revoked" in done.stdout, done.output
    assert state(live, fleet["www"]) is CertificateState.REVOKED
    path.write_text("not a serial\n")
    spoilt = run(live, "certificates", "revoke-selected", *arguments)
    assert spoilt.exit_code == 1
    assert "line 1 is not a serial" in spoilt.stderr


def test_one_revocation_is_told_as_done_once_ocsp_says_so(
    live: Live, fleet: dict[str, Holder]
) -> None:
    arguments = ("certificates", "revoke", f"{serial(fleet['www']):x}", "--reason", "unspecified")
    done = run(live, *arguments)
    assert "is revoked (unspecified). OCSP says so." in done.stdout, done.output


def test_ocsp_says_so_to_every_client_once_the_command_says_that_it_does(
    live: Live, fleet: dict[str, Holder]
) -> None:
    algorithms = (hashes.SHA256(), hashes.SHA1())
    # From now on these answers are at hand.
    for algorithm in algorithms:
        assert live.said_by_ocsp(fleet["www"].certificate, algorithm) is ocsp.OCSPCertStatus.GOOD
    number = f"{serial(fleet['www']):x}"
    done = run(live, "certificates", "revoke", number, "--reason", "unspecified")
    assert "OCSP says so." in done.stdout, done.output
    for algorithm in algorithms:
        assert live.said_by_ocsp(fleet["www"].certificate, algorithm) is ocsp.OCSPCertStatus.REVOKED


def test_what_is_done_is_told_even_where_somebody_else_answers_for_ocsp(
    template: Path, tmp_path: Path
) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    live.start()
    number = f"{serial(live.enroll(live.invite('server'))):x}"
    live.stop()

    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>not found")

    with HTTPServer(("127.0.0.1", live.settings.listeners.status.port), Page) as server:
        Thread(target=server.handle_request).start()
        done = run(live, "certificates", "revoke", number, "--reason", "unspecified")
    assert done.exit_code == 0, done.output
    assert f"Certificate {number} is revoked" in done.stdout
    assert "gave this machine no OCSP answer: what came is something else" in done.stdout


def test_without_a_server_it_says_which_url_did_not_answer(template: Path, tmp_path: Path) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    live.start()
    number = f"{serial(live.enroll(live.invite('server'))):x}"
    live.stop()
    done = run(live, "certificates", "revoke", number, "--reason", "unspecified")
    assert done.exit_code == 0
    told = f"{live.url('status')}/ocsp (listeners.status.url) gave this machine no OCSP answer: "
    assert f"{told}connection refused. So nobody has looked" in done.stdout
    assert "says so within 4 seconds" in done.stdout
    assert '"state": "revoked"' in run(live, "certificates", "show", number, "--json").stdout
