"""What owners are told of their certificates, never twice for any crash or second look."""

import re
from collections.abc import Callable
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from estserver.ca.keys import read_secret
from estserver.mail.letters import TEMPLATES, TEMPLATES_FOLDER
from estserver.model import Door, Language, RevocationReason
from estserver.notices import Reminders
from estserver.store import outbox
from tests.interop.commands import run
from tests.live import ORIGIN, Holder, Live, make_csr, new_key
from tests.mailing import Sink, sink, smtp

__all__ = ["sink"]

_DOORS = frozenset({Door.WEB, Door.EST})
MakeLive = Callable[[str], Live]


@pytest.fixture
def live(make_live: MakeLive, sink: Sink) -> Live:
    return make_live(smtp(sink.port))


def enroll(live: Live, **fields: object) -> Holder:
    """Enroll a person with an address."""
    return live.enroll(live.invite("person", doors=_DOORS, **fields))


def reminders(live: Live) -> Reminders:
    return Reminders(live.core.store, live.clock, live.core.profiles)


def told(live: Live, kind: str) -> list[outbox.Letter]:
    """Return the letters of one kind, oldest first."""
    found = live.core.store.read(lambda tx: outbox.page(tx, None, limit=1000))
    return [letter for letter in reversed(found) if letter.template == kind]


def deliver(live: Live, sink: Sink) -> list[EmailMessage]:
    """Send what waits; return what the server took, oldest first."""
    live.call(live.core.post_office().deliver_due())
    return sink.messages()


def text(message: EmailMessage) -> str:
    body = message.get_body(("plain",))
    assert body is not None
    content: str = body.get_content()
    return content.replace("\r\n", "\n")


def renew(live: Live, holder: Holder) -> Holder:
    key = new_key()
    answer = live.request(
        "POST",
        "/.well-known/est/simplereenroll",
        body=make_csr(key, subject=holder.certificate.subject, names=_names(holder)),
        headers={"Content-Type": "application/pkcs10"},
        holder=holder,
    )
    assert answer.status == 200, answer.body
    return Holder(key, answer.certificates()[0])


def _names(holder: Holder) -> tuple[x509.GeneralName, ...]:
    extension = holder.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return tuple(extension.value)


# -- the end comes near ----------------------------------------------------------------------------


def test_reminders_go_out_at_60_30_14_7_and_1_days_once_each(live: Live) -> None:
    enroll(live)
    days = 395
    seen = []
    for left in (100, 61, 60, 59, 31, 30, 14, 13, 7, 6, 2, 1):
        live.clock.advance(timedelta(days=days - left))
        days = left
        posted = reminders(live).post_due() + reminders(live).post_due()
        seen += [left] * posted
    assert seen == [60, 30, 14, 7, 1]
    assert [letter.id.rpartition("-")[0] for letter in told(live, "expiring")] == [
        "expiring-60", "expiring-30", "expiring-14", "expiring-7", "expiring-1",
    ]  # fmt: skip
    assert not told(live, "expired")
    live.clock.advance(timedelta(days=1))
    assert reminders(live).post_due() == 1
    assert reminders(live).post_due() == 0
    assert len(told(live, "expired")) == 1


def test_whoever_looks_late_sends_one_reminder_and_no_old_ones(live: Live) -> None:
    enroll(live)
    live.clock.advance(timedelta(days=395 - 5))
    assert reminders(live).post_due() == 1
    (letter,) = told(live, "expiring")
    assert letter.values["days"] == "5"


def test_what_was_renewed_is_not_reminded_of(live: Live) -> None:
    old = enroll(live)
    live.clock.advance(timedelta(days=395 - 40))
    renew(live, old)
    live.clock.advance(timedelta(days=11))
    assert reminders(live).post_due() == 0


def test_what_was_revoked_is_not_reminded_of(live: Live) -> None:
    holder = enroll(live)
    revoke(live, holder)
    live.clock.advance(timedelta(days=395 - 30))
    assert reminders(live).post_due() == 0


def test_short_lives_are_reminded_of_in_their_second_half_only(
    make_live: MakeLive, sink: Sink
) -> None:
    live = make_live(smtp(sink.port) + "\n[profiles.person]\nvalidity = '20d'\n")
    enroll(live)
    assert reminders(live).post_due() == 0
    live.clock.advance(timedelta(days=6))
    assert reminders(live).post_due() == 0
    live.clock.advance(timedelta(days=7))
    assert reminders(live).post_due() == 1


def test_without_an_address_nobody_is_reminded(live: Live) -> None:
    live.enroll(live.invite("device"))
    live.clock.advance(timedelta(days=365 - 30))
    assert reminders(live).post_due() == 0


def test_a_reminder_says_how_to_renew_and_brings_the_day_for_the_calendar(
    live: Live, sink: Sink
) -> None:
    holder = enroll(live, language=Language.EN, name="Taro Yamada")
    live.clock.advance(timedelta(days=395 - 30))
    reminders(live).post_due()
    message = deliver(live, sink)[-1]
    said = text(message)
    assert f"{live.url('devices')}/renew" in said
    assert "30 days from now" in said
    ends = holder.certificate.not_valid_after_utc
    (entry,) = [part for part in message.walk() if part.get_content_type() == "text/calendar"]
    assert entry.get_filename() == "expiry.ics"
    calendar = entry.get_content()
    assert f"DTSTART;VALUE=DATE:{ends:%Y%m%d}" in calendar
    assert "TRIGGER:-P30D" in calendar
    assert f"UID:expiry-{holder.certificate.serial_number:x}@" in calendar.replace("\r\n ", "")


def test_who_may_not_renew_is_told_to_ask_the_administrator(live: Live, sink: Sink) -> None:
    holder = enroll(live, language=Language.EN)
    number = live.core.ra.find(holder.certificate.serial_number).invitation
    assert number is not None
    live.core.invitations.cancel(number, by="test", origin=ORIGIN)
    live.clock.advance(timedelta(days=395 - 14))
    reminders(live).post_due()
    said = text(deliver(live, sink)[-1])
    assert "/renew" not in said
    assert "cannot be renewed any more" in said


# -- what happened ---------------------------------------------------------------------------------


def revoke(live: Live, holder: Holder) -> None:
    record = live.core.ra.find(holder.certificate.serial_number)
    live.core.ra.revoke(
        record.enrollment,
        reason=RevocationReason.AFFILIATION_CHANGED,
        comment="left",
        by="test",
        origin=ORIGIN,
    )


def test_the_owner_is_told_of_issue_renewal_and_revocation_with_serials_and_reason(
    live: Live, sink: Sink
) -> None:
    old = enroll(live, language=Language.EN)
    live.clock.advance(timedelta(days=1))
    new = renew(live, old)
    live.clock.advance(timedelta(days=1))
    revoke(live, new)
    live.clock.advance(timedelta(minutes=1))
    letters = {m["Subject"].partition("] ")[2]: text(m) for m in deliver(live, sink)}
    assert _colons(old) in letters["your certificate was issued"]
    renewed = letters["your certificate was renewed"]
    assert renewed.index(_colons(new)) < renewed.index(_colons(old))
    revoked = letters["your certificate was revoked"]
    assert _colons(new) in revoked
    assert "Reason: change of affiliation" in revoked
    assert "left" not in revoked.partition("Reason:")[0]


def test_devices_are_not_mailed_about_each_certificate(live: Live) -> None:
    live.enroll(live.invite("device", email="ops@example.ac.jp"))
    assert not told(live, "issued")


def _colons(holder: Holder) -> str:
    hexadecimal = f"{holder.certificate.serial_number:X}"
    even = hexadecimal.zfill(len(hexadecimal) + len(hexadecimal) % 2)
    return ":".join(re.findall("..", even))


# -- how letters look ------------------------------------------------------------------------------


def test_every_letter_fits_its_lines_and_says_who_sends_it() -> None:
    for name in TEMPLATES:
        for language in Language:
            content = (TEMPLATES_FOLDER / f"{name}.{language}.txt").read_text(encoding="utf-8")
            assert max(map(len, content.splitlines())) <= 90
            assert "{{ organization }}" in content


def test_both_languages_in_one_letter_the_readers_own_first(
    make_live: MakeLive, sink: Sink
) -> None:
    live = make_live(smtp(sink.port) + "both_languages = true\n")
    enroll(live, language=Language.JA)
    live.clock.advance(timedelta(days=395 - 7))
    reminders(live).post_due()
    message = deliver(live, sink)[-1]
    said = text(message)
    assert message["Content-Language"] == "ja, en"
    assert 0 < said.index("有効期限") < said.index("This is")


def test_a_folder_of_ones_own_templates_is_checked_like_the_shipped_one(
    make_live: MakeLive, sink: Sink, tmp_path: Path
) -> None:
    for source in TEMPLATES_FOLDER.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    own = tmp_path / "expired.en.txt"
    own.write_text("Subject: [{{ service }}] over\n\n{{ serial }} is over.\n", encoding="utf-8")
    live = make_live(smtp(sink.port) + f'templates = "{tmp_path}"\n')
    enroll(live, language=Language.EN)
    live.clock.advance(timedelta(days=396))
    reminders(live).post_due()
    assert text(deliver(live, sink)[-1]).endswith("is over.\n")


def test_signed_letters_verify_with_openssl_and_say_the_same(
    make_live: MakeLive, sink: Sink, tmp_path: Path
) -> None:
    first = make_live("")
    signer = live_signer(first, tmp_path)
    live = make_live(smtp(sink.port) + f'signing_certificate = "{signer}"\n')
    # The instances are copies of one hierarchy, but each has a passphrase of its own.
    enroll(live, language=Language.JA)
    live.clock.advance(timedelta(days=395 - 7))
    reminders(live).post_due()
    message = deliver(live, sink)[-1]
    assert message.get_content_type() == "multipart/signed"
    wire = tmp_path / "letter.eml"
    wire.write_bytes(sink.letters[-1][1])
    done = run(
        ["openssl", "cms", "-verify", "-in", str(wire), "-CAfile", str(live.root), "-out", "x"],
        tmp_path,
    )
    assert done.status == 0, done
    inner = (tmp_path / "x").read_bytes()
    assert b"text/calendar" in inner
    wire.write_bytes(sink.letters[-1][1].replace(b"expiry.ics", b"expirx.ics"))
    spoilt = run(
        ["openssl", "cms", "-verify", "-in", str(wire), "-CAfile", str(live.root), "-out", "x"],
        tmp_path,
    )
    assert spoilt.status != 0


def live_signer(live: Live, folder: Path) -> Path:
    """Enroll a mailbox for the service itself; return its key and chain in one file."""
    holder = live.enroll(live.invite("person", doors=_DOORS, email="pki@example.org"))
    passphrase = read_secret(live.settings.path(live.settings.secrets.passphrase))
    encryption = BestAvailableEncryption(passphrase.reveal().encode())
    path = folder / "signing.pem"
    path.write_bytes(
        holder.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        + holder.certificate.public_bytes(Encoding.PEM)
        + (live.directory / "ca/issuing.crt").read_bytes()
    )
    return path
