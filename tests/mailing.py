"""A mail server of the tests' own: the outside that letters leave to."""

import asyncio
import email
import email.policy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.live import free_ports


@dataclass
class Sink:
    """A mail server that takes everything, or answers as told."""

    rcpt: deque[str] = field(default_factory=deque)
    data: deque[str] = field(default_factory=deque)
    letters: list[tuple[list[str], bytes]] = field(default_factory=list)
    secured: list[bool] = field(default_factory=list)
    """Of each letter taken: whether it came over TLS."""
    hangs: bool = False
    port: int = 0

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's interface
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: object
    ) -> str:
        answer = self.rcpt.popleft() if self.rcpt else "250 ok"
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(  # noqa: N802 - aiosmtpd's interface
        self, _server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        if self.hangs:
            await asyncio.Event().wait()
        answer = self.data.popleft() if self.data else "250 ok"
        if answer.startswith("250"):
            assert isinstance(envelope.content, bytes)
            self.letters.append((list(envelope.rcpt_tos), envelope.content))
            self.secured.append(session.ssl is not None)
        return answer

    def messages(self) -> list[EmailMessage]:
        """Return what was taken, parsed."""
        return [
            email.message_from_bytes(content, policy=email.policy.default)
            for _, content in self.letters
        ]


@pytest.fixture
def sink() -> Iterator[Sink]:
    handler = Sink(port=free_ports().web)
    controller = Controller(handler, hostname="127.0.0.1", port=handler.port)
    controller.start()
    yield handler
    controller.stop()


def smtp(port: int, extra: str = 'security = "none"') -> str:
    """Return the TOML that sends mail to the server on `port`."""
    return f'\n[mail]\nhost = "127.0.0.1"\nport = {port}\nsender = "pki@example.org"\n{extra}\n'
