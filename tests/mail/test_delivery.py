"""How letters leave: delayed, refused, repeated, given up, encrypted."""

import asyncio
import socket
import ssl
from datetime import timedelta
from pathlib import Path

import aiosmtplib
import pytest
import sqlalchemy as sa
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from estserver.errors import Unavailable
from estserver.mail import LetterWriter, PostOffice, troubles
from estserver.settings import Branding, Mail
from tests.live import ORIGIN, free_ports
from tests.mail.offices import MakeOffice, Office
from tests.mailing import Sink, smtp


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
