"""The outbox drained: lease a letter, send it, note what came of it.

At least once: a crash between sending and noting sends the letter again, under the same Message-ID,
which mail servers and readers take for one letter. Never in the way of issuance: a mail server that
is slow, gone or full only delays mail.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from email.message import EmailMessage
from typing import Self

import aiosmtplib
import structlog

from estserver.ca.keys import read_secret
from estserver.config import Settings
from estserver.errors import BadInput, Error, NotFound, Unavailable
from estserver.mail import troubles
from estserver.mail.letters import TEMPLATES_FOLDER, LetterWriter, as_text
from estserver.mail.signing import LetterSigner
from estserver.model import Invitation, InvitationState, Secret
from estserver.profiles import Profile
from estserver.settings import Mail
from estserver.store import Store, Transaction, outbox, registrations
from estserver.store.outbox import Letter

log = structlog.get_logger("estserver.mail")

FIRST_DELAY = timedelta(minutes=1)
LONGEST_DELAY = timedelta(hours=1)
TIMEOUT = timedelta(seconds=30)
_CONVERSATION = timedelta(minutes=3)
_LEASE = timedelta(minutes=5)
"""Longer than a whole conversation may take, so that no other node sends the same letter."""
_NEWS = timedelta(days=30)
"""What waited longer, such as for the first mail server there is, is not sent any more."""


class PostOffice:
    """Sends what lies in the outbox through the configured SMTP server, or hands it to a person."""

    def __init__(
        self,
        store: Store,
        writer: LetterWriter,
        mail: Mail,
        password: Secret | None = None,
        *,
        signer: LetterSigner | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        self._store = store
        self._writer = writer
        self._mail = mail
        self._password = password
        self._signer = signer
        self._timeout = timeout

    @classmethod
    def open(
        cls,
        settings: Settings,
        store: Store,
        profiles: Mapping[str, Profile],
        url_of: Callable[[Invitation], str | None],
    ) -> Self:
        """Make the post office of an instance; `url_of` gives an invitation's retrieval URL.

        Raises ConfigurationError: templates, sender or password file.
        """
        mail = settings.mail
        password = None
        if mail.password_file is not None:
            password = read_secret(settings.path(mail.password_file))
        devices = settings.listeners.devices
        writer = LetterWriter(
            settings.branding,
            mail,
            profiles,
            url_of,
            TEMPLATES_FOLDER if mail.templates is None else settings.path(mail.templates),
            renewal_url=f"{devices.url}/renew" if "renewal" in devices.serves else None,
        )
        return cls(store, writer, mail, password, signer=_signer(settings))

    @property
    def sends(self) -> bool:
        """True if there is a mail server; otherwise a person has to `take` the letters."""
        return self._mail.host is not None

    def take(self, number: str) -> list[str]:
        """Take the invitation out of the outbox, as text for a person to send.

        Raises BadInput: a letter cannot be written.
        """

        def queued(tx: Transaction) -> tuple[list[Letter], Invitation | None]:
            letters = [
                one
                for one in outbox.of_invitation(tx, number)
                if one.state == "queued" and one.template == "invitation"
            ]
            return letters, registrations.get(tx, number)

        letters, invitation = self._store.read(queued)
        texts = [as_text(self._write(letter, invitation)) for letter in letters]
        for letter in letters:
            self._note_sent(letter)
        return texts

    def read(self, identifier: str) -> EmailMessage:
        """Return a letter as its reader gets it, unsigned. Raises NotFound, BadInput."""

        def find(tx: Transaction) -> tuple[Letter | None, Invitation | None]:
            letter = outbox.get(tx, identifier)
            number = None if letter is None else letter.invitation
            return letter, registrations.get(tx, number or "")

        letter, invitation = self._store.read(find)
        if letter is None:
            raise NotFound(f"there is no letter {identifier}")
        return self._write(letter, invitation)

    async def check(self) -> None:
        """Connect, secure and log in as for sending. Raises Unavailable saying what failed."""
        smtp = self._client()
        try:
            async with asyncio.timeout(_CONVERSATION.total_seconds()):
                await smtp.connect()
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Unavailable(troubles.say(error, self._mail)) from error
        finally:
            await _hang_up(smtp)

    async def deliver_due(self) -> int:
        """Send every letter whose time has come; return how many the mail server took.

        A mail server that cannot be reached or hangs up ends the round: the letter it met waits,
        and the next round begins with the next one. Raises Unavailable: the database is busy.
        """
        if not self.sends:
            return 0
        sent = 0
        smtp = self._client()
        try:
            while letters := await asyncio.to_thread(self._store.read, outbox.due):
                for letter in letters:
                    wire = await asyncio.to_thread(self._lease, letter)
                    if wire is None:
                        continue
                    error = await self._send(smtp, wire, self._writer.recipient(letter))
                    if error is None:
                        await asyncio.to_thread(self._note_sent, letter)
                        sent += 1
                    else:
                        await asyncio.to_thread(self._note_failure, letter, error)
                        if not troubles.is_about_one_letter(error):
                            return sent
            return sent
        finally:
            await _hang_up(smtp)

    async def _send(self, smtp: aiosmtplib.SMTP, wire: bytes, recipient: str) -> Exception | None:
        """Send one letter, connecting first where needed; return what went wrong."""
        try:
            async with asyncio.timeout(_CONVERSATION.total_seconds()):
                if not smtp.is_connected:
                    await smtp.connect()
                await smtp.sendmail(self._mail.sender, [recipient], wire)
        except (aiosmtplib.SMTPException, OSError) as error:
            return error
        return None

    def _client(self) -> aiosmtplib.SMTP:
        return aiosmtplib.SMTP(
            hostname=self._mail.host,
            port=self._mail.port,
            username=self._mail.username,
            password=None if self._password is None else self._password.reveal(),
            use_tls=self._mail.security == "tls",
            # True demands STARTTLS; aiosmtplib's default would fall back to clear text.
            start_tls=self._mail.security == "starttls",
            timeout=self._timeout.total_seconds(),
        )

    def _lease(self, letter: Letter) -> bytes | None:
        """Take a letter for sending and write it as SMTP wants it.

        None if it is somebody else's or moot by now.
        """

        def unit(tx: Transaction) -> tuple[bool, timedelta, Invitation | None]:
            leased = outbox.lease(tx, letter, until=tx.now + _LEASE)
            invitation = registrations.get(tx, letter.invitation or "")
            return leased, tx.now - letter.created_at, invitation

        leased, age, invitation = self._store.write(unit)
        if not leased:
            return None
        if age > _NEWS:
            self._note_hopeless(letter, "it waited so long that it is no news any more")
            return None
        try:
            message = self._write(letter, invitation)
            return message.as_bytes() if self._signer is None else self._signer.sign(message)
        except Error as error:
            self._note_hopeless(letter, error.detail)
        except Exception as error:
            # A template or a name that cannot be written must not keep the other letters back.
            log.exception("mail.unwritable", letter=letter.id, template=letter.template)
            self._note_hopeless(letter, f"it cannot be written: {type(error).__name__}")
        return None

    def _write(self, letter: Letter, invitation: Invitation | None) -> EmailMessage:
        if invitation is None:
            raise BadInput("the letter belongs to no invitation")
        if letter.template == "invitation" and invitation.state is not InvitationState.OPEN:
            raise BadInput(f"invitation {invitation.number} is {invitation.state.value}")
        return self._writer.write(letter, invitation)

    def _note_sent(self, letter: Letter) -> None:
        self._store.write(lambda tx: outbox.sent(tx, letter.id))
        log.info("mail.sent", letter=letter.id, template=letter.template)

    def _note_hopeless(self, letter: Letter, why: str) -> None:
        self._store.write(lambda tx: outbox.delayed(tx, letter.id, error=why, again_at=None))
        log.warning("mail.failed", letter=letter.id, template=letter.template, error=why)

    def _note_failure(self, letter: Letter, error: Exception) -> None:
        """Put the letter off, doubling from a minute to an hour, or give it up."""
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(letter.tries, 10))
        said = troubles.say(error, self._mail)

        def unit(tx: Transaction) -> bool:
            late = tx.now - letter.created_at >= self._mail.give_up_after
            hopeless = late or troubles.is_final(error)
            again_at = None if hopeless else tx.now + delay
            outbox.delayed(tx, letter.id, error=said, again_at=again_at)
            return hopeless

        hopeless = self._store.write(unit)
        event = "mail.failed" if hopeless else "mail.delayed"
        log.warning(event, letter=letter.id, template=letter.template, error=said)


def _signer(settings: Settings) -> LetterSigner | None:
    certificate, key = settings.mail.signing_certificate, settings.mail.signing_key
    if certificate is None:
        return None
    passphrase = read_secret(settings.path(settings.secrets.passphrase))
    return LetterSigner(settings.path(certificate), settings.path(key or certificate), passphrase)


async def _hang_up(smtp: aiosmtplib.SMTP) -> None:
    if smtp.is_connected:
        with contextlib.suppress(aiosmtplib.SMTPException, OSError):
            await smtp.quit()
    smtp.close()
