"""The words of the pages: one gettext catalogue for each language, keyed by message id.

The .po files are read as they are, at start: a fresh clone needs no compile step. A placeholder is
`{name}`. Words and values go into HTML escaped; only a value that is Markup stays as it is.
"""

import string
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from babel.dates import format_date
from babel.messages.pofile import read_po
from markupsafe import Markup, escape

from estserver.errors import Error, Fault
from estserver.model import Language

LOCALE = Path(__file__).parent / "locale"


class Catalogue:
    """The words of one language. Calling it with a message id gives the text, safe for HTML."""

    def __init__(self, language: Language, texts: Mapping[str, str]) -> None:
        self.language = language
        self.texts = texts

    def __call__(self, key: str, /, **values: object) -> Markup:
        """Return the message with its placeholders filled.

        Raises Fault: no such message, or a placeholder without a value.
        """
        try:
            return Markup(escape(self.texts[key])).format(**values)  # noqa: S704 - escaped here
        except KeyError as error:
            raise Fault(f"catalogue {self.language}: {key} lacks {error}") from error

    def lines(self, key: str, /, **values: object) -> list[Markup]:
        """Return a message of several lines, such as the steps of an instruction, as a list."""
        return [Markup(line) for line in self(key, **values).split("\n")]  # noqa: S704 - escaped

    def scripts(self) -> Mapping[str, str]:
        """Return what the scripts say, by id without `js.`; they fill in the values."""
        return {key[3:]: text for key, text in self.texts.items() if key.startswith("js.")}

    def date(self, moment: datetime) -> str:
        """Return the day of `moment` (UTC) as people of this language write it."""
        return format_date(moment, format="long", locale=self.language.value)

    def time(self, moment: datetime) -> Markup:
        """Return a `time` element: the day in UTC, which a script makes the reader's local time."""
        text = f"{moment:%Y-%m-%dT%H:%M:%SZ}"
        return Markup('<time datetime="{}">{}</time>').format(text, self.date(moment))

    def error(self, error: Error, **values: object) -> Markup:
        """Say an error in words: the sentence for its code and reason, else the one for its code.

        A sentence is only chosen if the error has a value for each of its placeholders.
        """
        known = {**error.values, **values}
        keys = [f"error.{kind.code}" for kind in type(error).__mro__ if issubclass(kind, Error)]
        reason = getattr(error, "reason", None) or error.values.get("reason")
        for key in [f"{keys[0]}.{reason}", *keys]:
            text = self.texts.get(key)
            if text is not None and placeholders(text) <= known.keys():
                return self(key, **known)
        raise Fault(f"catalogue {self.language}: no words for {error.code}")


def placeholders(text: str) -> frozenset[str]:
    """Return the names of the placeholders in a message."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(text) if name)


def read_catalogues() -> Mapping[Language, Catalogue]:
    """Read the catalogue of every language. Raises Fault: a file that is not a catalogue."""
    return {language: Catalogue(language, _read(language)) for language in Language}


def _read(language: Language) -> Mapping[str, str]:
    path = LOCALE / language.value / "LC_MESSAGES" / "estserver.po"
    with path.open("rb") as file:
        catalogue = read_po(file, locale=language.value, abort_invalid=True)
    return {
        message.id: message.string
        for message in catalogue
        if isinstance(message.id, str) and isinstance(message.string, str) and message.id
    }
