"""Letters: what they say, in which language, and from which templates."""

from dataclasses import replace
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest
import sqlalchemy as sa

from estserver import config
from estserver.errors import BadCredentials, BadInput, ConfigurationError
from estserver.invitations import DEAD_AT, Registration
from estserver.mail import LetterWriter
from estserver.model import Door, Language, Secret
from estserver.settings import Branding, Mail
from estserver.store import Transaction, outbox
from tests.live import ORIGIN
from tests.mail.offices import MakeOffice, Office
from tests.mailing import Sink, smtp

TEMPLATES = Path(config.__file__).parent / "mail/templates"


def _text(message: EmailMessage) -> str:
    content: str = message.get_content()
    return content.replace("\r\n", "\n")


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
