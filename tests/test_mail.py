"""Mail: what the letters say, and how they leave through servers that misbehave."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
import sqlalchemy as sa
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from estserver import config
from estserver.core import Core, open_core
from estserver.errors import BadCredentials, BadInput, ConfigurationError, Unavailable
from estserver.invitations import DEAD_AT, Registration
from estserver.mail import LetterWriter, PostOffice, troubles
from estserver.model import Door, Invitation, Language, Origin, Secret
from estserver.settings import Branding, Mail
from estserver.store import Transaction, outbox
from estserver.store.outbox import Letter
from tests.live import Live, MovableClock, Workshop, free_ports
from tests.mailing import Sink, sink, smtp

__all__ = ["sink"]

ORIGIN = Origin("test", "cli")
TEMPLATES = Path(config.__file__).parent / "mail/templates"


@dataclass(slots=True)
class Office:
    """An instance's post office with the instance around it."""

    core: Core
    clock: MovableClock
    post: PostOffice

    def invite(self, **fields: Any) -> Invitation:
        """Register a person, which puts a letter into the outbox."""
        registration = Registration("person", "Taro Yamada", "taro@example.ac.jp")
        registration = replace(registration, **fields)
        return self.core.invitations.issue(registration, by="test", origin=ORIGIN).invitation

    def letters(self, invitation: Invitation) -> list[Letter]:
        """Return the letters about an invitation."""
        return list(self.core.store.read(lambda tx: outbox.of_invitation(tx, invitation.number)))

    def letter(self, invitation: Invitation) -> Letter:
        """Return the one letter about an invitation."""
        (letter,) = self.letters(invitation)
        return letter

    async def deliver(self) -> int:
        """Do one round."""
        return await self.post.deliver_due()

    def change(self, statement: sa.TextClause, **values: object) -> None:
        """Change the database behind the program's back."""
        self.core.store.write(lambda tx: tx.connection.execute(statement, values))


def _text(message: EmailMessage) -> str:
    content: str = message.get_content()
    return content.replace("\r\n", "\n")


MakeOffice = Callable[[str], Office]


@pytest.fixture
def make_office(template: Path, tmp_path: Path) -> Iterator[MakeOffice]:
    cores: list[Core] = []
    workshop = Workshop(template)

    def make(toml: str = "") -> Office:
        live: Live = workshop.make(tmp_path / f"instance{len(cores)}", toml, start=False)
        core = open_core(live.settings, live.clock, with_keys=False)
        cores.append(core)
        return Office(core, live.clock, core.post_office())

    yield make
    for core in cores:
        core.close()


@pytest.fixture
def office(make_office: MakeOffice, sink: Sink) -> Office:
    return make_office(smtp(sink.port))


# -- what letters say ------------------------------------------------------------------------------


@pytest.mark.row("SEED-04", "SEED-05", "SEED-06")
async def test_the_invitation_mail_carries_the_url_and_never_the_pin(
    office: Office, sink: Sink
) -> None:
    handover = office.core.invitations.issue(
        Registration("person", "Taro Yamada", "taro@example.ac.jp"), by="test", origin=ORIGIN
    )
    assert handover.pin is not None
    assert handover.token is not None
    assert await office.deliver() == 1
    ((recipients, content),) = sink.letters
    (message,) = sink.messages()
    text = _text(message)
    assert recipients == ["taro@example.ac.jp"]
    assert message["Subject"] == (
        "[Digital Certificate Issuance Service] client certificate issue acceptance notice"
    )
    url = f"{office.core.settings.listeners.web.url}/e/{handover.token.reveal()}"
    assert f"Certificate acquisition URL:\n   {url}\n" in text
    pin_at, url_at = text.index("1) Access PIN"), text.index("2) Certificate retrieval URL")
    assert 0 < pin_at < url_at < text.index(url) < len(text) - 200
    pin = handover.pin.reveal()
    assert pin.encode() not in content
    assert pin not in text
    assert pin.replace("-", "") not in text


@pytest.mark.row("SEED-05", "SEED-06")
async def test_the_invitation_mail_speaks_japanese_where_the_invitation_does(
    office: Office, sink: Sink
) -> None:
    invitation = office.invite(name="山田 太郎", language=Language.JA)
    await office.deliver()
    (message,) = sink.messages()
    assert message["Subject"] == "[電子証明書発行サービス] クライアント証明書発行受付通知"
    text = _text(message)
    assert text.startswith("山田 太郎 様\n")
    assert f"{invitation.expires_at:%Y年}" in text
    assert "1) アクセス PIN" in text
    assert "2) 証明書取得 URL" in text


async def test_headers_say_that_a_program_wrote_it_and_which_letter_it_is(
    office: Office, sink: Sink
) -> None:
    letter = office.letter(office.invite())
    await office.deliver()
    (message,) = sink.messages()
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"] == f"<{letter.id}@example.org>"
    assert message["Date"].datetime == letter.created_at
    assert message["From"].addresses[0].addr_spec == "pki@example.org"
    assert message.get_content_type() == "text/plain"
    assert all(octet < 128 for octet in sink.letters[0][1])


async def test_a_replacement_is_told_with_the_new_serial_as_firefox_shows_it(
    office: Office, sink: Sink
) -> None:
    invitation = office.invite(mail=False)

    def unit(tx: Transaction) -> None:
        outbox.post(
            tx,
            identifier="replaced-1",
            template="replaced",
            invitation=invitation,
            recipient="taro@example.ac.jp",
            values={"serial": "a1b2c3"},
        )
        outbox.post(
            tx,
            identifier="replaced-2",
            template="replaced",
            invitation=replace(invitation, language=Language.JA),
            recipient="taro@example.ac.jp",
            values={"serial": "1b2c3"},
        )

    office.core.store.write(unit)
    assert await office.deliver() == 2
    first, second = (_text(message) for message in sink.messages())
    assert "A1:B2:C3" in first
    assert "If it was not you" in first
    assert "01:B2:C3" in second
    assert "お心当たりのない場合" in second


@pytest.mark.row("A-22")
@pytest.mark.parametrize("field_name", ["name", "email"])
def test_line_breaks_in_a_registration_are_refused(office: Office, field_name: str) -> None:
    text = "a@example.org\r\nBcc: victim@example.org"
    with pytest.raises(BadInput):
        office.invite(**{field_name: text})


@pytest.mark.row("A-22")
async def test_a_recipient_with_a_line_break_is_never_sent_even_from_the_database(
    office: Office, sink: Sink
) -> None:
    invitation = office.invite()
    office.change(
        sa.text("UPDATE outbox SET recipient = :text"), text="a@example.org\r\nBcc: b@example.org"
    )
    assert await office.deliver() == 0
    assert not sink.letters
    assert office.letter(invitation).state == "failed"


@pytest.mark.row("A-22")
async def test_what_an_applicant_is_called_stands_in_no_header(office: Office, sink: Sink) -> None:
    office.invite(name="Subject: free money")
    await office.deliver()
    (message,) = sink.messages()
    assert all("free money" not in str(value) for value in message.values())
    assert "Subject: free money" in _text(message)


async def test_the_administrator_is_told_of_a_pin_that_guessing_killed(
    make_office: MakeOffice, sink: Sink
) -> None:
    office = make_office(smtp(sink.port) + 'administrator = "ra@example.org"\n')
    invitation = office.invite()
    assert await office.deliver() == 1
    wrong = Secret("000-000-000")
    for _ in range(DEAD_AT):
        with pytest.raises(BadCredentials):
            office.core.invitations.confirm(invitation, wrong, source="192.0.2.1")
        office.clock.advance(timedelta(minutes=2))
    assert await office.deliver() == 2
    guessed, dead = sink.messages()[-2:]
    assert guessed["To"] == dead["To"] == "ra@example.org"
    assert "typed 10 wrong access PINs" in _text(guessed)
    assert invitation.number in _text(dead)


# -- templates -------------------------------------------------------------------------------------


def _writer(folder: Path, sender: str = "pki@example.org") -> LetterWriter:
    mail = Mail(sender=sender)
    return LetterWriter(Branding(), mail, {}, lambda _: "https://localhost/e/x", folder)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("{{ number }}", "{{ pin }}", "carries both URL and PIN"),
        ("{{ url }}", "{{ pin }}", "unknown placeholder pin"),
        ("{{ number }}", "{{ password }}", "unknown placeholder password"),
        ("[{{ service }}]", "{{ name }}", "name may not be in the subject"),
        ("{{ url }}", "", "lacks {{ url }}"),
        ("Subject: ", "", "first line is not"),
        ("{{ number }}", "{{ number", "line "),
    ],
)
@pytest.mark.row("SEED-04")
def test_a_template_that_breaks_a_rule_is_refused_at_start(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    for source in TEMPLATES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    _writer(tmp_path)
    spoilt = tmp_path / "invitation.ja.txt"
    spoilt.write_text(spoilt.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigurationError) as raised:
        _writer(tmp_path)
    assert complaint in raised.value.detail
    assert "invitation.ja.txt" in raised.value.detail


def test_a_missing_template_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        _writer(tmp_path)


def test_a_sender_that_is_no_address_is_refused_at_start() -> None:
    with pytest.raises(ConfigurationError, match=r"mail\.sender"):
        _writer(TEMPLATES, "not an address")


# -- how letters leave -----------------------------------------------------------------------------


async def test_a_temporary_refusal_delays_and_doubles_then_the_letter_goes_once(
    office: Office, sink: Sink
) -> None:
    invitation = office.invite()
    sink.rcpt.extend(["451 4.7.1 greylisted", "451 4.7.1 greylisted"])
    assert await office.deliver() == 0
    waiting = office.letter(invitation)
    assert (waiting.state, waiting.tries, waiting.error) == (
        "queued",
        1,
        "451 4.7.1 greylisted",
    )
    office.clock.advance(timedelta(seconds=58))
    assert await office.deliver() == 0
    assert office.letter(invitation).tries == 1
    office.clock.advance(timedelta(seconds=3))
    assert await office.deliver() == 0
    assert office.letter(invitation).tries == 2
    office.clock.advance(timedelta(seconds=118))
    assert await office.deliver() == 0
    assert office.letter(invitation).tries == 2
    office.clock.advance(timedelta(seconds=3))
    assert await office.deliver() == 1
    assert office.letter(invitation).state == "sent"
    office.clock.advance(timedelta(days=3))
    assert await office.deliver() == 0
    assert len(sink.letters) == 1


async def test_one_refused_letter_does_not_hold_up_the_next(office: Office, sink: Sink) -> None:
    refused, fine = office.invite(), office.invite(email="hanako@example.ac.jp")
    sink.data.append("451 try later")
    assert await office.deliver() == 1
    states = {office.letter(one).state for one in (refused, fine)}
    assert states == {"queued", "sent"}


@pytest.mark.parametrize("step", ["rcpt", "data"])
async def test_a_final_refusal_is_final(office: Office, sink: Sink, step: str) -> None:
    invitation = office.invite()
    getattr(sink, step).append("550 5.1.1 no such user")
    assert await office.deliver() == 0
    letter = office.letter(invitation)
    assert (letter.state, letter.error) == ("failed", "550 5.1.1 no such user")
    office.clock.advance(timedelta(days=1))
    assert await office.deliver() == 0
    assert not sink.letters


async def test_a_dead_port_delays_one_letter_a_round(make_office: MakeOffice) -> None:
    office = make_office(smtp(free_ports().web))
    invited = [office.invite(), office.invite(email="hanako@example.ac.jp")]
    for rounds in (1, 2):
        assert await office.deliver() == 0
        assert sum(office.letter(one).tries for one in invited) == rounds
    assert {office.letter(one).state for one in invited} == {"queued"}


async def test_a_server_that_hangs_costs_its_time_out_and_no_letter(
    office: Office, sink: Sink
) -> None:
    invitation = office.invite()
    sink.hangs = True
    impatient = PostOffice(
        office.core.store,
        LetterWriter(
            Branding(),
            Mail(sender="pki@example.org"),
            office.core.profiles,
            lambda _: "https://localhost/e/x",
        ),
        office.core.settings.mail,
        timeout=timedelta(milliseconds=200),
    )
    assert await impatient.deliver_due() == 0
    assert office.letter(invitation).state == "queued"
    sink.hangs = False
    office.clock.advance(timedelta(minutes=2))
    assert await office.deliver() == 1


async def test_a_letter_is_given_up_after_two_days(office: Office, sink: Sink) -> None:
    invitation = office.invite()
    sink.rcpt.extend(["451 later"] * 100)
    tries = 0
    while office.letter(invitation).state == "queued":
        await office.deliver()
        office.clock.advance(timedelta(hours=1, seconds=1))
        tries += 1
    assert 48 <= tries <= 60
    assert office.letter(invitation).state == "failed"


async def test_a_crash_between_sending_and_noting_repeats_the_same_letter(
    office: Office, sink: Sink
) -> None:
    invitation = office.invite()
    office.change(
        sa.text(
            "CREATE TRIGGER crash BEFORE UPDATE OF state ON outbox WHEN NEW.state = 'sent' "
            "BEGIN SELECT RAISE(ABORT, 'power cut'); END"
        )
    )
    with pytest.raises(sa.exc.IntegrityError, match="power cut"):
        await office.deliver()
    office.change(sa.text("DROP TRIGGER crash"))
    assert await office.deliver() == 0  # leased: nobody else sends it meanwhile
    office.clock.advance(timedelta(minutes=6))
    assert await office.deliver() == 1
    assert office.letter(invitation).state == "sent"
    first, second = (content for _, content in sink.letters)
    assert first == second


async def test_two_nodes_send_a_letter_once(office: Office, sink: Sink) -> None:
    for number in range(5):
        office.invite(email=f"user{number}@example.ac.jp")
    other = office.core.post_office()
    sent = await asyncio.gather(office.deliver(), other.deliver_due())
    assert sum(sent) == 5
    assert len({recipients[0] for recipients, _ in sink.letters}) == len(sink.letters) == 5


async def test_an_invitation_cancelled_meanwhile_is_not_mailed(office: Office, sink: Sink) -> None:
    invitation = office.invite()
    office.core.invitations.cancel(invitation.number, by="test", origin=ORIGIN)
    assert await office.deliver() == 0
    assert not sink.letters
    assert office.letter(invitation).error == f"invitation {invitation.number} is cancelled"


async def test_starttls_is_demanded_and_clear_text_never_the_fallback(
    make_office: MakeOffice, sink: Sink
) -> None:
    office = make_office(smtp(sink.port, 'security = "starttls"'))
    invitation = office.invite()
    assert await office.deliver() == 0
    assert not sink.letters
    assert office.letter(invitation).state == "queued"


async def test_a_mail_server_that_cannot_be_used_is_told_in_words(make_office: MakeOffice) -> None:
    port = free_ports().web
    gone = f"mail server 127.0.0.1 port {port}: nothing listens there"
    with pytest.raises(Unavailable, match=gone):
        await make_office(smtp(port)).post.check()
    handler = Sink(port=port)
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        with pytest.raises(Unavailable, match=r"no TLS there: mail\.security"):
            await make_office(smtp(port, 'security = "tls"')).post.check()
        await make_office(smtp(port, 'security = "none"')).post.check()
    finally:
        controller.stop()
    # What a name server says comes from outside.
    unknown = aiosmtplib.SMTPConnectError("Error connecting")
    unknown.__cause__ = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    mail = Mail(host="mail.example.org")
    said = "mail server mail.example.org port 25: there is no host of that name: correct mail.host"
    assert troubles.say(unknown, mail) == said


class _Secured(Controller):
    """A server that takes letters over TLS only."""

    def __init__(self, handler: Sink, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(handler, hostname="127.0.0.1", port=handler.port)

    def factory(self) -> SMTP:
        return SMTP(self.handler, tls_context=self._context, require_starttls=True)


async def test_starttls_is_taken_up_where_the_servers_certificate_is_trusted(
    make_office: MakeOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    handler = Sink(port=free_ports().web)
    controller = _Secured(handler, context)
    controller.start()
    try:
        office = make_office(smtp(handler.port, 'security = "starttls"'))
        invitation = office.invite()
        assert await office.deliver() == 0  # a stranger's certificate
        assert "TLS certificate is refused" in (office.letter(invitation).error or "")
        with authority.cert_pem.tempfile() as bundle:
            monkeypatch.setenv("SSL_CERT_FILE", bundle)
            office.clock.advance(timedelta(minutes=2))
            assert await office.deliver() == 1
        assert handler.secured == [True]
    finally:
        controller.stop()


class _Guarded(Controller):
    """A server that wants a log-in."""

    def factory(self) -> SMTP:
        return SMTP(
            self.handler,
            authenticator=self._log_in,
            auth_require_tls=False,
        )

    @staticmethod
    def _log_in(
        _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: object
    ) -> AuthResult:
        right = LoginPassword(b"pki", b"hunter2")
        return AuthResult(success=data == right, handled=False)


@pytest.mark.parametrize(("password", "sent"), [("hunter2", 1), ("wrong", 0)])
async def test_the_password_comes_from_its_file(
    make_office: MakeOffice, tmp_path: Path, password: str, sent: int
) -> None:
    handler = Sink(port=free_ports().web)
    controller = _Guarded(handler, hostname="127.0.0.1", port=handler.port)
    controller.start()
    try:
        file = tmp_path / "smtp-password"
        file.write_text(f"{password}\n")
        office = make_office(
            smtp(
                handler.port,
                f'security = "none"\nusername = "pki"\npassword_file = "{file}"',
            )
        )
        invitation = office.invite()
        assert await office.deliver() == sent
        letter = office.letter(invitation)
        # A wrong password is ours to mend: the letter waits.
        assert letter.state == ("sent" if sent else "queued")
        assert password not in (letter.error or "")
        assert sent or "correct mail.username and mail.password_file" in (letter.error or "")
    finally:
        controller.stop()


# -- without a mail server ------------------------------------------------------------------------


async def test_without_a_server_a_person_takes_the_letters(make_office: MakeOffice) -> None:
    office = make_office("")
    invitation = office.invite()
    assert not office.post.sends
    assert await office.deliver() == 0
    (text,) = office.post.take(invitation.number)
    assert text.startswith("To: taro@example.ac.jp\nSubject: [Digital")
    assert f"{office.core.settings.listeners.web.url}/e/" in text
    assert office.letter(invitation).state == "sent"
    assert office.post.take(invitation.number) == []


def test_no_letter_is_posted_for_a_held_invitation_until_its_release(
    make_office: MakeOffice,
) -> None:
    office = make_office("")
    invitation = office.invite(hold=True)
    assert not office.letters(invitation)
    office.core.invitations.release(invitation.number, by="test", origin=ORIGIN)
    assert office.letter(invitation).state == "queued"


def test_no_letter_is_posted_where_the_web_door_is_shut(make_office: MakeOffice) -> None:
    office = make_office("")
    assert not office.letters(office.invite(doors=frozenset({Door.EST})))
