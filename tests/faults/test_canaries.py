"""Secrets go in at every place where people put them, and come out nowhere.

One story is lived through by a server in a process of its own; then everything it wrote, stored,
sent or shows is searched for every spelling of every secret (INC-20, EST-068).
"""

import base64
import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

from estserver import pin
from tests.faults.serving import PATIENCE_SECONDS, Process
from tests.interop.wire import Connection
from tests.live import Holder, Workshop, free_ports, make_csr, new_key
from tests.web.visitor import Page, Visitor

ENROLL = "/.well-known/est/simpleenroll"
CHALLENGE_PASSWORD = x509.ObjectIdentifier("1.2.840.113549.1.9.7")


class Mailbox:
    """An SMTP server that keeps one message."""

    def __init__(self) -> None:
        self.message = b""
        self.came = threading.Event()

    async def handle_DATA(  # noqa: N802 - aiosmtpd's interface
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        del server, session
        assert isinstance(envelope.content, bytes)
        self.message = envelope.content
        self.came.set()
        return "250 kept"


@dataclass
class Story:
    """What is secret, and where it may not be found; names are for the reader."""

    process: Process
    secrets: dict[str, set[bytes]] = field(default_factory=dict)
    places: dict[str, bytes] = field(default_factory=dict)
    errors: list[bytes] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    mail: bytes = b""
    url: bytes = b""

    def hide(self, name: str, *spellings: bytes | str) -> None:
        """Add a secret in some spellings."""
        octets = {s.encode() if isinstance(s, str) else s for s in spellings}
        self.secrets.setdefault(name, set()).update(octets)

    def hide_pin(self, name: str, number: str, access: str) -> None:
        """Add a PIN as it is printed, typed, and sent."""
        plain = access.replace("-", "")
        spellings = {access, plain, access.replace("-", " "), access.replace("-", "%2D")}
        for spelling in spellings | {spelling.lower() for spelling in spellings}:
            self.hide(name, spelling)
            for pair in (f"{number}:{spelling}", f":{spelling}", f"{spelling}:{number}", spelling):
                self.hide(name, base64.b64encode(pair.encode()).rstrip(b"="))

    def keep(self, page: Page) -> Page:
        """Look at a page: what refuses is searched, cookies are secrets."""
        if page.status >= 400:
            self.errors.append(page.body)
        for line in page.headers.get_all("Set-Cookie") or []:
            self.hide("session cookie", line.partition("=")[2].partition(";")[0])
        return page

    def enroll(
        self,
        authorization: str,
        body: bytes | None = None,
        holder: Holder | None = None,
        **more: str,
    ) -> int:
        """POST to the EST door; return the status."""
        headers = {
            "Content-Type": "application/pkcs10",
            "Authorization": authorization,
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        body = base64.b64encode(make_csr(new_key())) if body is None else body
        answer = self.process.live.request(
            "POST", ENROLL, body=body, headers=headers, holder=holder
        )
        if answer.status >= 400:
            self.errors.append(answer.body)
        return answer.status


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _instance_secrets(story: Story) -> None:
    directory = story.process.live.directory
    for name in ("master.key", "passphrase"):
        text = (directory / "secrets" / name).read_text().strip()
        story.hide(name, text)
        with suppress(ValueError):
            story.hide(name, base64.urlsafe_b64decode(text + "=="))
        with suppress(ValueError):
            story.hide(name, bytes.fromhex(text))


def _invite(story: Story, profile: str, *arguments: str) -> dict[str, dict[str, str]]:
    done = story.process.command("invite", "--profile", profile, "--json", *arguments)
    story.places["commands"] = story.places.get("commands", b"") + done.stderr.encode()
    registered: dict[str, dict[str, str]] = json.loads(done.stdout)
    story.numbers.append(str(registered["number"]))
    return registered


def _live_through_est(story: Story) -> None:
    est = _invite(story, "device", "--device-id", "printer-17", "--max", "3")["est"]
    number, access = est["username"], est["password"]
    story.hide_pin("EST PIN", number, access)
    wrong = pin.generate(pin.LONG).reveal()
    story.hide_pin("wrong EST PIN", number, wrong)
    typo = access[:-1] + ("0" if access[-1] != "0" else "1")
    story.hide_pin("mistyped EST PIN", number, typo)
    right = _basic(number, access)
    bearer = "canary-0d9f2b7e4c61"
    story.hide("bearer token", bearer)

    assert story.enroll(right) == 200
    for authorization in (
        _basic(number, wrong),
        _basic(number, typo),
        _basic(access, number),
        f"Bearer {bearer}",
        f"Basic {bearer}",
        "Basic " + base64.b64encode(bearer.encode()).decode(),
    ):
        assert story.enroll(authorization) == 401
    # The right PIN beside all that can be wrong with a request.
    assert story.enroll(right, b"not a CSR") == 400
    assert story.enroll(right, base64.b64encode(make_csr(new_key(), subject="other"))) == 403
    assert story.enroll(right, Content_Type="text/plain") == 415
    assert story.enroll(right, Content_Encoding="gzip") == 415
    assert story.enroll(right, b"A" * 70_000) == 413
    attribute = ((CHALLENGE_PASSWORD, access.encode()),)
    assert story.enroll(right, base64.b64encode(make_csr(new_key(), attributes=attribute))) == 400
    # This one fails half-way, with the request's secrets on the stack.
    assert story.enroll(right) == 500
    for path in (f"{ENROLL}?pin={access}", f"/.well-known/est/cacerts?pin={access}"):
        answer = story.process.live.request("GET", path, headers={"Authorization": right})
        if answer.status >= 400:
            story.errors.append(answer.body)
    for line in (f"GET / HTTP/1.1\r\nAuthorization: {right}\r\nX\0: a", f"{access} / HTTP/1.1"):
        with Connection(story.process.live, story.process.live.tls()) as connection:
            connection.send(f"{line}\r\n\r\n".encode())
            story.errors.append(connection.read_to_end())


def _live_through_web(story: Story) -> None:
    person = ("--name", "Taro Yamada", "--email", "taro@example.ac.jp", "--max", "2")
    web = _invite(story, "person", *person)["web"]
    url, access = web["url"], web["pin"]
    story.url = url.encode()
    path = "/e/" + url.rpartition("/")[2]
    story.hide("URL token", url.rpartition("/")[2])
    number = story.numbers[-1]
    story.hide_pin("web PIN", number, access)
    wrong = pin.generate(pin.SHORT).reveal()
    story.hide_pin("wrong web PIN", number, wrong)

    visitor = Visitor(story.process.live)
    page = story.keep(visitor.get(path))
    story.keep(visitor.submit(page, "pin-form", pin=wrong))
    story.keep(visitor.submit(page, "pin-form", pin=access[:-1] + "?"))
    story.keep(visitor.request("POST", path, f"pin={access}".encode()))
    story.keep(visitor.post(path, {"pin": access}, Origin="https://example.org"))
    story.keep(visitor.request("GET", f"{path}/nothing?pin={access}"))
    story.keep(visitor.request("POST", f"{path}/taken", b"pin=" + access.encode() * 9000))
    page = story.keep(visitor.enter(path, access))
    story.hide("session cookie", *visitor.cookies.values())
    password = re.search(r'id="server-password">([^<]+)<', page.text)
    assert password is not None
    story.hide("PKCS#12 password", password[1], password[1].replace("-", ""))
    csr = x509.load_der_x509_csr(make_csr(new_key())).public_bytes(Encoding.PEM)
    story.keep(visitor.submit(page, "issue-form", method="csr", csr=csr[:-40]))
    file = visitor.submit(
        page, "issue-form", method="server", key_type="ec-p256", format="compatible"
    )
    held = pkcs12.load_pkcs12(file.body, password[1].encode())
    assert isinstance(held.key, ec.EllipticCurvePrivateKey)
    private = held.key.private_numbers().private_value.to_bytes(32, "big")
    story.hide("server-made key", private, base64.b64encode(private)[:-2], private.hex())
    story.keep(visitor.submit(page, "issue-form", method="server", key_type="ec-p256"))
    story.keep(visitor.get(path))
    story.hide("session cookie", *visitor.cookies.values())


def _columns(database: Path) -> bytes:
    """Return all texts and blobs of all tables; a value may lie on two pages of the file."""
    values: list[bytes] = []
    with closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                values += [
                    value.encode() if isinstance(value, str) else value
                    for value in row
                    if isinstance(value, str | bytes)
                ]
    return b"\n".join(values)


def _search(story: Story) -> None:
    directory = story.process.live.directory
    metrics = story.process.live.request("GET", "/metrics", listener="management")
    assert metrics.status == 200
    story.places["metrics"] = metrics.body
    story.places["command line"] = story.process.proc("cmdline")
    story.places["environment"] = story.process.proc("environ")
    for arguments in (("invitations", "list", "--json"), ("verify",)):
        done = story.process.command(*arguments)
        story.places["commands"] += done.stdout.encode() + done.stderr.encode()
    story.places["error bodies"] = b"\n".join(story.errors)
    story.places["log"] = story.process.log.read_bytes()
    story.places["database columns"] = _columns(directory / "estserver.db")
    story.places["database file"] = b"".join(
        path.read_bytes() for path in directory.glob("estserver.db*")
    )
    story.places["other files"] = b"".join(
        path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.parent.name != "secrets" and path.suffix != ".pem"
    )


@pytest.fixture
def story(template: Path, tmp_path: Path) -> Iterator[Story]:
    mailbox = Mailbox()
    port = free_ports().web
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    toml = (
        "[profiles.person]\nserver_key = true\n[est]\nserverkeygen = true\n"
        f'[mail]\nhost = "127.0.0.1"\nport = {port}\nsecurity = "none"\n'
    )
    live = Workshop(template).make(tmp_path / "instance", toml, start=False)
    text = (live.directory / "estserver.toml").read_text(encoding="utf-8")
    quiet, count = re.subn(r'format = "console"', 'format = "json"\nlevel = "debug"', text)
    assert count == 1
    (live.directory / "estserver.toml").write_text(quiet, encoding="utf-8")
    # Plans: the OCSP responder's, the server's own, a good one, and the one that shall fail.
    process = Process(live, ("--test-mode",), {"ESTSERVER_FAILPOINT": "planned:4:raise"})
    lived = Story(process)
    try:
        process.start()
        _instance_secrets(lived)
        _live_through_est(lived)
        _live_through_web(lived)
        assert mailbox.came.wait(PATIENCE_SECONDS)
        lived.mail = mailbox.message
        _search(lived)
        yield lived
    finally:
        process.stop()
        controller.stop()


def _found(story: Story, heap: bytes) -> set[str]:
    heap = heap.lower()
    return {
        name
        for name, spellings in story.secrets.items()
        if any(spelling.lower() in heap for spelling in spellings)
    }


def _prove_the_search(story: Story) -> None:
    """Every kind of secret was there, and what is no secret is found in each place."""
    assert story.secrets.keys() == {
        "master.key",
        "passphrase",
        "EST PIN",
        "wrong EST PIN",
        "mistyped EST PIN",
        "bearer token",
        "URL token",
        "web PIN",
        "wrong web PIN",
        "session cookie",
        "PKCS#12 password",
        "server-made key",
    }
    # None is so short that chance would find it.
    assert min(len(spelling) for found in story.secrets.values() for spelling in found) >= 9
    device, person = (number.encode() for number in story.numbers)
    for place in ("log", "commands", "database file", "database columns"):
        assert device in story.places[place]
        assert person in story.places[place]
    assert b"estserver" in story.places["command line"]
    assert b"ESTSERVER_FAILPOINT=planned" in story.places["environment"]
    assert b"estserver_requests_total" in story.places["metrics"]
    assert b"Reference: " in story.places["error bodies"]
    assert b"BEGIN CERTIFICATE" in story.places["other files"]


# One test, because each worker would live through the story again.
@pytest.mark.timeout(300)
@pytest.mark.row("EST-068", "EST-126", "INC-20", "A-4", "A-24", "A-25", "A-26", "A-31")
def test_no_secret_comes_out_anywhere(story: Story) -> None:
    _prove_the_search(story)
    found = {place: _found(story, heap) for place, heap in story.places.items()}
    # The pages behind a link name it: whoever reads them has it already.
    found["error bodies"].discard("URL token")
    assert {place: names for place, names in found.items() if names} == {}
    # The mail carries the link, and one of the two secrets opens nothing.
    mail = story.mail.replace(b"=\r\n", b"")
    assert story.url in mail
    assert _found(story, mail) == {"URL token"}
    # What failed inside is told in full, without local variables; what was not HTTP in a line.
    lines = [json.loads(line) for line in story.places["log"].splitlines()]
    traced = [json.dumps(line) for line in lines if "Traceback" in json.dumps(line)]
    assert len(traced) == 1
    assert "failpoint planned" in traced[0]
