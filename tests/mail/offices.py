"""A post office driven by hand."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from estserver.core import Core
from estserver.invitations import Registration
from estserver.mail import PostOffice
from estserver.model import Invitation
from estserver.store import outbox
from estserver.store.outbox import Letter
from tests.live import ORIGIN, MovableClock


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


MakeOffice = Callable[[str], Office]
