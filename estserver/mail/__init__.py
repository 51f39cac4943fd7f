"""Mail: letters rendered from templates, and the outbox drained."""

from estserver.mail.letters import LetterWriter, as_text
from estserver.mail.post import PostOffice

__all__ = ["LetterWriter", "PostOffice", "as_text"]
