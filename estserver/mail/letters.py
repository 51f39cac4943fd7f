"""Letters: a row of the outbox becomes one plain-text message in the reader's language.

The URL travels by mail, the PIN by hand (SEED-04): a template that has room for both is refused
when the program starts, and no PIN is known here at all.

Message-ID and Date come from the row, so that a letter sent again after a crash is the same letter.
Nothing that an applicant can influence stands in a header but the address, which has to pass the
grammar of names once more, because `cryptography` takes line breaks in rfc822Names.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import jinja2
from babel.dates import format_datetime
from cryptography import x509
from jinja2 import meta

from estserver.errors import BadInput, ConfigurationError
from estserver.model import Invitation, Language
from estserver.names import parse_general_name
from estserver.profiles import Profile
from estserver.settings import Branding
from estserver.store.outbox import ADMINISTRATOR, Letter

TEMPLATES = ("invitation", "replaced", "pin-dead", "replaced-told")
_FOLDER = Path(__file__).parent / "templates"
_BRANDING = frozenset({"organization", "service"})
_PLACEHOLDERS = {
    "invitation": _BRANDING | {"support", "name", "profile", "number", "url", "pin", "expires"},
    "replaced": _BRANDING | {"support", "name", "profile", "number", "serial"},
    "pin-dead": _BRANDING | {"support", "name", "profile", "number"},
    "replaced-told": _BRANDING | {"support", "name", "profile", "number", "serial"},
}
_NEEDED = {
    "invitation": "url",
    "replaced": "serial",
    "pin-dead": "number",
    "replaced-told": "serial",
}
# 7 bit: quoted-printable or base64 by what is shorter, so that no relay can refuse 8BITMIME.
_POLICY = SMTP.clone(cte_type="7bit")


class LetterWriter:
    """Renders letters. Built once at start; checks every template in every language.

    Raises ConfigurationError: a template is missing, malformed, has room for both URL and PIN, or
    for something unknown; a subject that names the applicant; a sender that is no address.
    """

    def __init__(
        self,
        branding: Branding,
        sender: str,
        profiles: Mapping[str, Profile],
        url_of: Callable[[Invitation], str | None],
        folder: Path = _FOLDER,
        *,
        administrator: str | None = None,
    ) -> None:
        self._branding = branding
        self._profiles = profiles
        self._url_of = url_of
        self._sender = _sender(sender)
        self._administrator = administrator or self._sender
        environment = jinja2.Environment(  # noqa: S701 - plain text: names must stay as they are
            undefined=jinja2.StrictUndefined, keep_trailing_newline=False, trim_blocks=True
        )
        self._templates = {
            (name, language): _load(environment, folder / f"{name}.{language}.txt", name)
            for name in TEMPLATES
            for language in Language
        }

    def write(self, letter: Letter, invitation: Invitation) -> EmailMessage:
        """Render one letter.

        Raises BadInput: the recipient is no plain address, the invitation has no web door, or the
        template is unknown.
        """
        language = letter.language
        found = self._templates.get((letter.template, language))
        if found is None:
            raise BadInput(f"there is no letter {letter.template}")
        subject, body = found
        branding = self._branded(language)
        text = body.render(
            **branding,
            name=invitation.label,
            profile=self._title(invitation.profile, language),
            number=invitation.number,
            support=self._branding.support_ja if language == "ja" else self._branding.support,
            expires=_moment(invitation.expires_at, language),
            **self._values(letter, invitation),
        )
        message = EmailMessage(policy=_POLICY)
        message["Subject"] = subject.render(**branding)
        message["From"] = Address(branding["service"], addr_spec=self._sender)
        recipient = self.recipient(letter)
        message["To"] = Address(addr_spec=recipient)
        message["Date"] = letter.created_at
        message["Message-ID"] = f"<{letter.id}@{self._sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message["Content-Language"] = language.value
        message.set_content(text.strip() + "\n")
        return message

    def recipient(self, letter: Letter) -> str:
        """Return the address a letter goes to. Raises BadInput: it is no plain address.

        Rows for the administrator name the role: whoever holds it when the mail leaves gets it.
        """
        if letter.recipient == ADMINISTRATOR:
            return self._administrator
        return _address(letter.recipient)

    def _branded(self, language: Language) -> dict[str, str]:
        branding = self._branding
        if language is Language.JA:
            return {"organization": branding.organization_ja, "service": branding.service_ja}
        return {"organization": branding.organization, "service": branding.service}

    def _title(self, profile: str, language: Language) -> str:
        known = self._profiles.get(profile)
        return profile if known is None else known.title(language.value)

    def _values(self, letter: Letter, invitation: Invitation) -> dict[str, str]:
        if letter.template in {"replaced", "replaced-told"}:
            return {"serial": _with_colons(letter.values["serial"])}
        if letter.template == "pin-dead":
            return {}
        url = self._url_of(invitation)
        if url is None:
            raise BadInput(f"invitation {invitation.number} has no web door")
        return {"url": url}


def as_text(message: EmailMessage) -> str:
    """Show a letter to the operator who has to send it: address, subject, text."""
    text = message.get_content().replace("\r\n", "\n")
    return f"To: {message['To']}\nSubject: {message['Subject']}\n\n{text}"


def _load(
    environment: jinja2.Environment, path: Path, name: str
) -> tuple[jinja2.Template, jinja2.Template]:
    """Read subject (the first line) and body of a template, and check what they have room for."""
    try:
        first, _, body = path.read_text(encoding="utf-8").partition("\n")
        used = meta.find_undeclared_variables(environment.parse(f"{first}\n{body}"))
        in_subject = meta.find_undeclared_variables(environment.parse(first))
        subject = environment.from_string(first.removeprefix("Subject: "))
        rest = environment.from_string(body)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read") from error
    except jinja2.TemplateSyntaxError as error:
        raise ConfigurationError(f"{path}: line {error.lineno}: {error.message}") from error
    if not first.startswith("Subject: "):
        raise ConfigurationError(f"{path}: the first line is not `Subject: ...`")
    if {"url", "pin"} <= used:
        raise ConfigurationError(
            f"{path}: carries both URL and PIN: whoever reads the mail would have everything"
        )
    if unknown := used - (_PLACEHOLDERS[name] - {"pin"}):
        raise ConfigurationError(f"{path}: unknown placeholder {', '.join(sorted(unknown))}")
    if foreign := in_subject - _BRANDING:
        raise ConfigurationError(f"{path}: {', '.join(sorted(foreign))} may not be in the subject")
    if _NEEDED[name] not in used:
        raise ConfigurationError(f"{path}: lacks {{{{ {_NEEDED[name]} }}}}")
    return subject, rest


def _address(text: str) -> str:
    """Return a mail address that is nothing but one. Raises BadInput."""
    name = parse_general_name(f"email:{text}")
    assert isinstance(name, x509.RFC822Name)  # noqa: S101 - narrows for mypy
    return name.value


def _sender(text: str) -> str:
    try:
        return Address(addr_spec=_address(text)).addr_spec
    except (BadInput, ValueError, HeaderParseError) as error:
        raise ConfigurationError("mail.sender: is not a mail address") from error


def _moment(moment: datetime, language: Language) -> str:
    """Say a time the way the reader's language does, in UTC and saying so."""
    return format_datetime(moment, "long", tzinfo=UTC, locale=language.value)


def _with_colons(serial_hex: str) -> str:
    """Write a serial the way Firefox's certificate manager does."""
    even = serial_hex.upper().zfill(len(serial_hex) + len(serial_hex) % 2)
    return ":".join(even[i : i + 2] for i in range(0, len(even), 2))
