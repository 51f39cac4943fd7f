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
from estserver.mail.calendar import expiry_entry
from estserver.model import Invitation, InvitationState, Language, RevocationReason
from estserver.names import parse_general_name
from estserver.profiles import Profile
from estserver.settings import Branding, Mail
from estserver.store.outbox import ADMINISTRATOR, Letter

TEMPLATES_FOLDER = Path(__file__).parent / "templates"
_BRANDING = frozenset({"organization", "service"})
_OWNERS = _BRANDING | {"support", "name", "profile", "number", "serial", "not_after"}
_ADMINISTRATORS = _BRANDING | {"support", "name", "profile", "number"}
_PLACEHOLDERS = {
    "invitation": _ADMINISTRATORS | {"url", "pin", "expires"},
    "issued": _OWNERS,
    "renewed": _OWNERS | {"old_serial"},
    "replaced": _OWNERS - {"not_after"},
    "expiring": _OWNERS | {"days", "renewal_url"},
    "expired": _OWNERS,
    "renew-early": _OWNERS | {"renew_by", "explanation", "renewal_url"},
    "revoked": (_OWNERS - {"not_after"}) | {"reason"},
    "held": _OWNERS,
    "released": _OWNERS,
    "pin-guessed": _ADMINISTRATORS | {"failures"},
    "pin-dead": _ADMINISTRATORS,
    "replaced-told": _ADMINISTRATORS | {"serial"},
}
TEMPLATES = tuple(_PLACEHOLDERS)
_NEEDED = {"invitation": "url", "pin-guessed": "number", "pin-dead": "number"}
"""What a letter is pointless without; the others: the serial number."""
_FOR_CALENDARS = frozenset({"issued", "renewed", "expiring"})
_EXPIRY_TITLE = {
    Language.EN: "The certificate of {name} ends",
    Language.JA: "証明書の有効期限: {name}",
}
_REASONS = {
    RevocationReason.UNSPECIFIED: ("unspecified", "指定なし"),
    RevocationReason.KEY_COMPROMISE: ("the private key may be known to others", "秘密鍵の漏えい"),
    RevocationReason.CA_COMPROMISE: ("the certification authority", "認証局の危殆化"),
    RevocationReason.AFFILIATION_CHANGED: ("change of affiliation", "所属等の変更"),
    RevocationReason.SUPERSEDED: ("replaced by another certificate", "別の証明書への置き換え"),
    RevocationReason.CESSATION_OF_OPERATION: ("no longer used", "利用の終了"),
    RevocationReason.PRIVILEGE_WITHDRAWN: ("the right to it was withdrawn", "利用資格の取り消し"),
}
_BETWEEN_LANGUAGES = "\n\n" + "=" * 72 + "\n\n"
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
        mail: Mail,
        profiles: Mapping[str, Profile],
        url_of: Callable[[Invitation], str | None],
        folder: Path = TEMPLATES_FOLDER,
        *,
        renewal_url: str | None = None,
    ) -> None:
        self._renewal_url = renewal_url
        self._both_languages = mail.both_languages
        self._branding = branding
        self._profiles = profiles
        self._url_of = url_of
        self._sender = _sender(mail.sender)
        self._domain = self._sender.rpartition("@")[2]
        self._administrator = mail.administrator or self._sender
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
        if letter.template not in TEMPLATES:
            raise BadInput(f"there is no letter {letter.template}")
        languages = [letter.language]
        if self._both_languages:
            languages += [other for other in Language if other is not letter.language]
        parts = [self._render(letter, invitation, language) for language in languages]
        branding = self._branded(letter.language)
        message = EmailMessage(policy=_POLICY)
        message["Subject"] = parts[0][0]
        message["From"] = Address(branding["service"], addr_spec=self._sender)
        recipient = self.recipient(letter)
        message["To"] = Address(addr_spec=recipient)
        message["Date"] = letter.created_at
        message["Message-ID"] = f"<{letter.id}@{self._domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(_BETWEEN_LANGUAGES.join(text for _, text in parts) + "\n")
        if letter.template in _FOR_CALENDARS:
            self._attach_expiry(message, letter, invitation)
        # Last, because attaching moves what describes content into the first part.
        message["Content-Language"] = ", ".join(languages)
        return message

    def _render(
        self, letter: Letter, invitation: Invitation, language: Language
    ) -> tuple[str, str]:
        """Return subject and text of a letter in one language."""
        subject, body = self._templates[letter.template, language]
        branding = self._branded(language)
        text = body.render(
            **branding,
            name=invitation.label,
            profile=self._title(invitation.profile, language),
            number=invitation.number,
            support=self._branding.support_ja if language == "ja" else self._branding.support,
            expires=_moment(invitation.expires_at, language),
            **self._values(letter, invitation, language),
        )
        return subject.render(**branding), text.strip()

    def _attach_expiry(self, message: EmailMessage, letter: Letter, invitation: Invitation) -> None:
        serial = letter.values["serial"]
        entry = expiry_entry(
            f"expiry-{serial}@{self._domain}",
            ends=_parsed(letter.values["not_after"]),
            made=letter.created_at,
            title=_EXPIRY_TITLE[letter.language].format(name=invitation.label),
            text=f"{self._branded(letter.language)['service']}: {_with_colons(serial)}",
        )
        message.add_attachment(
            entry,
            "text",
            "calendar",
            filename="expiry.ics",
            params={"method": "PUBLISH", "charset": "utf-8"},
        )

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

    def _values(self, letter: Letter, invitation: Invitation, language: Language) -> dict[str, str]:
        """Say the values of a row the way the reader's language does."""
        said = dict(letter.values)
        for key in ("serial", "old_serial"):
            if key in said:
                said[key] = _with_colons(said[key])
        for key in ("not_after", "renew_by"):
            if key in said:
                said[key] = _moment(_parsed(said[key]), language)
        if "reason" in said:
            english, japanese = _REASONS[RevocationReason(said["reason"])]
            said["reason"] = japanese if language is Language.JA else english
        if "renewal_url" in _PLACEHOLDERS[letter.template]:
            ends = invitation.renew_until
            shut = invitation.state is InvitationState.CANCELLED or (
                ends is not None and ends <= letter.created_at
            )
            said["renewal_url"] = "" if shut else self._renewal_url or ""
        if letter.template == "invitation":
            url = self._url_of(invitation)
            if url is None:
                raise BadInput(f"invitation {invitation.number} has no web door")
            said["url"] = url
        return said


def as_text(message: EmailMessage) -> str:
    """Show a letter to the operator who has to send it: address, subject, text."""
    body = message.get_body(("plain",)) or message
    text = body.get_content().replace("\r\n", "\n")
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
    needed = _NEEDED.get(name, "serial")
    if needed not in used:
        raise ConfigurationError(f"{path}: lacks {{{{ {needed} }}}}")
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


def _parsed(seconds: str) -> datetime:
    """Read a time as the values of a letter hold it: seconds since 1970 UTC."""
    return datetime.fromtimestamp(int(seconds), UTC)


def _moment(moment: datetime, language: Language) -> str:
    """Say a time the way the reader's language does, in UTC and saying so."""
    return format_datetime(moment, "long", tzinfo=UTC, locale=language.value)


def _with_colons(serial_hex: str) -> str:
    """Write a serial the way Firefox's certificate manager does."""
    even = serial_hex.upper().zfill(len(serial_hex) + len(serial_hex) % 2)
    return ":".join(even[i : i + 2] for i in range(0, len(even), 2))
