"""The words: complete in both languages, the same placeholders, none that no page says."""

import pkgutil
import re
from collections.abc import Iterator
from typing import get_args

import pytest
from babel.messages.pofile import read_po

import estserver.server
from estserver import errors
from estserver.errors import Error
from estserver.model import EnrollmentState, KeyType, Language
from estserver.web import catalogue, pages, renewal, revocation, trust, wizard
from estserver.web.catalogue import Catalogue, placeholders, read_catalogues
from estserver.web.platforms import KINDS

WORDS = read_catalogues()
LANGUAGES = list(Language)


def tree(kind: type[Error] = Error) -> Iterator[type[Error]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


def shipped(kind: type[Error]) -> bool:
    return kind.__module__.startswith("estserver.")


@pytest.mark.row("SEED-12")
def test_every_message_stands_in_every_language() -> None:
    assert WORDS[Language.JA].texts.keys() == WORDS[Language.EN].texts.keys()
    for language in LANGUAGES:
        assert all(text.strip() for text in WORDS[language].texts.values())


def test_a_message_has_the_same_placeholders_and_lines_in_every_language() -> None:
    for key, text in WORDS[Language.EN].texts.items():
        other = WORDS[Language.JA].texts[key]
        assert placeholders(text) == placeholders(other), key
        assert text.count("\n") == other.count("\n"), key


def test_the_japanese_is_japanese() -> None:
    allowed = {"language.en", "title.separator", "fact.uri", "key.ed25519"}
    for key, text in WORDS[Language.JA].texts.items():
        if key in allowed or key.endswith((".firefox.title", ".title")) or key.startswith("step"):
            continue
        assert re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", text), key


def test_no_message_is_given_twice() -> None:
    for language in LANGUAGES:
        path = catalogue.LOCALE / language.value / "LC_MESSAGES" / "estserver.po"
        ids = re.findall(r'^msgid "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(ids) == len(set(ids))
        with path.open("rb") as file:
            assert not [m.id for m in read_po(file) if m.fuzzy and m.id]


NAMED = re.compile(r"t(?:\.lines)?\(\s*'([a-z0-9_.-]+)'\s*[,)]")
CHOSEN = re.compile(r"t\('([a-z0-9_.]+)' if [^)]*? else '([a-z0-9_.]+)'")
SPOKEN = re.compile(r"(?:step|end|say|showProblem)\((?:[a-z.#]+, )*'([a-z-]+)'", re.IGNORECASE)
CODED = re.compile(r"this\.code = '([a-z-]+)'|BadPassword\('([a-z-]+)'\)")
# BadDER cannot be reached with certificates from our own server: it is said as "unexpected".
WORDLESS = {"js.bad-der"}


def said_by_templates_and_scripts() -> set[str]:
    """Find every message id that is named as a whole; those put together stand in BUILT."""
    found: set[str] = set()
    for path in (pages.WEB / "templates").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        found |= {*NAMED.findall(text), *(key for pair in CHOSEN.findall(text) for key in pair)}
    for path in (pages.WEB / "static").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        keys = [*SPOKEN.findall(text), *(key for pair in CODED.findall(text) for key in pair)]
        found |= {f"js.{key}" for key in keys if key}
    return {key for key in found if not key.endswith("_")} - WORDLESS


BUILT = {
    *(f"language.{language}" for language in Language),
    *(f"key.{kind}" for kind in KeyType),
    *(f"steps.{number}" for number in (1, 2, 3)),
    *(f"step2.{word}_{purpose}" for word in ("title", "issue") for purpose in ("replace", "renew")),
    *(f"fact.{kind}" for kind in ("dns", "ip", "email", "uri")),
    *(f"import.{kind}.{part}" for kind in KINDS for part in ("title", "steps")),
    *(f"trust.{kind}.{part}" for kind in (*KINDS, "thunderbird") for part in ("title", "steps")),
    *(f"trust.{kind}" for kind in get_args(trust.Kind)),
    *(f"reason.{reason}" for reason in revocation.REASONS),
    "step2.revoked",
    "step2.expired",
    "step2.on-hold",
    "js.unexpected",
}


def test_every_message_that_a_page_says_exists() -> None:
    assert said_by_templates_and_scripts() | BUILT <= WORDS[Language.EN].texts.keys()


def test_every_message_is_said_somewhere() -> None:
    said = said_by_templates_and_scripts() | BUILT
    assert not {key for key in WORDS[Language.EN].texts if not key.startswith("error.")} - said


@pytest.mark.row("SEED-23")
def test_every_refusal_has_words_and_a_status() -> None:
    for name in estserver.server.PROTOCOLS.values():
        assert pkgutil.resolve_name(name)  # every door is imported, so the tree is whole
    for kind in filter(shipped, tree()):
        assert 400 <= pages.status_of(kind.__new__(kind)) <= 503
        for language in LANGUAGES:
            # A class of another door's own may be said by its base; those of the core may not.
            own = kind.__module__ in {"estserver.errors", "estserver.http"}
            kinds = [kind] if own else [base for base in kind.__mro__ if issubclass(base, Error)]
            assert any(f"error.{base.code}" in WORDS[language].texts for base in kinds), kind
    assert wizard.RENDER is renewal.RENDER is pages.RENDER


def test_every_error_of_the_tree_can_be_said_without_values() -> None:
    for kind in filter(shipped, tree()):
        error = kind.__new__(kind)
        Error.__init__(error, "a detail")
        for language in LANGUAGES:
            assert WORDS[language].error(error, seconds="5")


def test_words_and_values_are_escaped_once() -> None:
    words = Catalogue(Language.EN, {"a": "1 < 2 & {name}"})
    assert words("a", name="<svg onload=x>") == "1 &lt; 2 &amp; &lt;svg onload=x&gt;"


def test_a_missing_message_is_a_fault_that_names_it() -> None:
    with pytest.raises(errors.Fault, match=r"nothing\.here"):
        WORDS[Language.EN]("nothing.here")


def test_every_state_of_waiting_is_known_to_the_script() -> None:
    script = (pages.WEB / "static" / "waiting.js").read_text(encoding="utf-8")
    assert EnrollmentState.APPROVED.value in script
    assert EnrollmentState.ISSUING.value in script
