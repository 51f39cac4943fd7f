"""PINs as people meet them: what is made, what is forgiven, what is caught."""

# ruff: noqa: RUF001 - look-alikes are what this is about

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estserver import pin
from estserver.errors import BadCredentials, MistypedPIN

SYMBOLS = st.sampled_from(pin.ALPHABET)
LENGTHS = st.sampled_from([pin.SHORT, pin.LONG])


@st.composite
def pins(draw: st.DrawFn) -> str:
    """Draw a PIN's symbols without groups."""
    symbols = draw(st.lists(SYMBOLS, min_size=pin.LONG, max_size=pin.LONG))
    chosen = iter(symbols)
    made = pin.generate(draw(LENGTHS), choose=lambda _: next(chosen))
    return made.reveal().replace("-", "")


def test_the_alphabet_has_no_symbols_that_look_alike() -> None:
    assert len(pin.ALPHABET) == 32
    assert not set("ILOU") & set(pin.ALPHABET)


@pytest.mark.parametrize(("symbols", "groups"), [(pin.SHORT, [3, 3, 3]), (pin.LONG, [5, 5, 4])])
def test_a_pin_comes_in_groups_with_its_check_symbol(symbols: int, groups: list[int]) -> None:
    made = pin.generate(symbols).reveal()
    assert [len(group) for group in made.split("-")] == groups
    assert set(made) <= {*pin.ALPHABET, "-"}


def test_pins_are_drawn_from_the_whole_alphabet() -> None:
    seen = {symbol for _ in range(300) for symbol in pin.generate(pin.SHORT).reveal()}
    assert seen == {*pin.ALPHABET, "-"}


def test_a_pin_does_not_show_itself() -> None:
    made = pin.generate(pin.LONG)
    assert f"{made} {made!r}" == "*** ***"


@pytest.mark.parametrize(
    "typed",
    [
        "KZ1-0A7-9QX",
        "kz1-0a7-9qx",
        "kz1 0a7 9qx",
        "  KZ10A79QX\t\n",
        "KZI-OA7-9QX",
        "KZl-oA7-9qx",
        "ＫＺ１－０Ａ７－９ＱＸ",
        "ｋｚｉ　ｏａ７　９ｑｘ",
        "KZ1ー0A7ー9QX",
        "KZ1ｰ0A7ｰ9QX",
        "KZ1–0A7—9QX",
        "KZ1−0A7‐9QX",
        "K-Z-1-0-A-7-9-Q-X",
    ],
)
def test_the_ways_people_type_a_pin_are_forgiven(typed: str) -> None:
    assert pin.normalize(typed).reveal() == "KZ10A79QX"


@given(pins(), st.randoms(use_true_random=False))
def test_width_case_blanks_and_hyphens_change_nothing(symbols: str, chance: random.Random) -> None:
    typed = ""
    for symbol in symbols:
        forms = [symbol, symbol.lower(), chr(ord(symbol) + 0xFEE0)]
        forms += {"0": ["O", "o"], "1": ["I", "l", "L"]}.get(symbol, [])
        typed += chance.choice(forms) + chance.choice(["", "", " ", "-", "　", "ー"])
    assert pin.normalize(typed).reveal() == symbols


@given(pins(), st.data())
def test_every_single_wrong_symbol_is_a_typing_mistake(symbols: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(symbols) - 1))
    wrong = data.draw(SYMBOLS.filter(lambda symbol: symbol != symbols[place]))
    with pytest.raises(MistypedPIN):
        pin.normalize(symbols[:place] + wrong + symbols[place + 1 :])


def test_swapped_neighbours_are_caught_but_for_one_pair_of_symbols() -> None:
    chance = random.Random(2)
    missed, swaps = set(), 0
    for _ in range(5000):
        body = chance.choices(pin.ALPHABET, k=pin.SHORT)
        chosen = iter(body)
        whole = pin.generate(pin.SHORT, choose=lambda _, c=chosen: next(c)).reveal()  # type: ignore[misc]  # defaults bind the loop variable
        whole = whole.replace("-", "")
        for place in range(pin.SHORT):
            first, second = whole[place], whole[place + 1]
            if first == second:
                continue
            swaps += 1
            try:
                pin.normalize(whole[:place] + second + first + whole[place + 2 :])
            except MistypedPIN:
                continue
            missed.add(frozenset({first, second}))
    # Luhn's sum misses the pair of the first and the last symbol: 2 of 992 ordered pairs.
    assert swaps > 30_000
    assert missed == {frozenset({"0", "Z"})}


def test_a_random_pin_passes_the_check_one_time_in_thirty_two() -> None:
    chance = random.Random(1)
    passed = 0
    for _ in range(3200):
        try:
            pin.normalize("".join(chance.choices(pin.ALPHABET, k=pin.SHORT + 1)))
        except MistypedPIN:
            continue
        passed += 1
    assert 60 < passed < 150


@pytest.mark.parametrize(
    "typed",
    [
        "",
        " ",
        "KZ1",
        "KZ10A79QHX",
        "KZ1-0A7-9U$",
        "山田太郎山田太郎山",
        "A" * 129,
        "\x00" * 9,
        "ᴷ" * 500,
    ],
)
def test_what_is_no_pin_is_refused_without_being_called_mistyped(typed: str) -> None:
    with pytest.raises(BadCredentials) as refused:
        pin.normalize(typed)
    assert not isinstance(refused.value, MistypedPIN)
    assert refused.value.reason == "malformed"


@given(st.text(max_size=200))
def test_any_text_is_a_pin_or_refused(typed: str) -> None:
    try:
        symbols = pin.normalize(typed).reveal()
    except BadCredentials:
        return
    assert unicodedata.normalize("NFKC", symbols) == symbols
    assert len(symbols) in {pin.SHORT + 1, pin.LONG + 1}
