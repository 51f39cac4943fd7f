"""CONFORMANCE.md, the rows it is made from, and the marks that tie tests to rows."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

from estserver import pin
from estserver.invitations import DEAD_AT, FREE_TRIES, MAX_DELAY_SECONDS
from estserver.settings import Limits

ROOT = Path(__file__).parent.parent


def _load() -> ModuleType:
    """Import the script, whose file name has no suffix."""
    loader = SourceFileLoader("conformance", str(ROOT / "scripts/conformance"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


conformance = _load()
SHEETS = conformance.read_sheets(ROOT / "tests/rows")
PROOFS = conformance.find_tests(ROOT / "tests")


def test_conformance_md_is_what_the_script_writes() -> None:
    written = (ROOT / "CONFORMANCE.md").read_text(encoding="utf-8")
    assert written == conformance.render(SHEETS, PROOFS), "run scripts/conformance"


def test_every_row_that_must_be_kept_has_a_test_or_a_reason() -> None:
    assert conformance.unproven_rows(SHEETS, PROOFS) == []


def test_no_test_names_a_row_that_does_not_exist() -> None:
    assert conformance.unknown_rows(SHEETS, PROOFS) == []


def test_no_row_is_called_not_done_while_a_test_proves_it() -> None:
    assert conformance.contradicted_rows(SHEETS, PROOFS) == []


def test_the_sheets_are_complete() -> None:
    ids = {row.id for sheet in SHEETS for row in sheet.rows}
    assert {f"EST-{number:03}" for number in range(1, 204)} <= ids
    assert {f"SEED-{number:02}" for number in range(1, 24)} <= ids
    assert {f"INC-{number}" for number in range(1, 38)} <= ids


def _marks(tmp_path: Path, source: str) -> dict[str, list[str]]:
    (tmp_path / "test_sample.py").write_text(dedent(source))
    proofs = conformance.find_tests(tmp_path, tmp_path)
    return {row: [test.name for test in tests] for row, tests in proofs.items()}


def test_marks_are_read_from_module_class_function_and_parameter(tmp_path: Path) -> None:
    source = """
        pytestmark = [pytest.mark.row("A-1")]
        CASES = [pytest.param(1, marks=pytest.mark.row("A-4")), 2]

        @pytest.mark.row("A-2")
        class TestThings:
            @pytest.mark.row("A-3", "A-5")
            async def test_one(self): ...

        @pytest.mark.parametrize("case", CASES)
        def test_two(case): ...

        def not_a_test(): ...
    """
    assert _marks(tmp_path, source) == {
        "A-1": ["test_one", "test_two"],
        "A-2": ["test_one"],
        "A-3": ["test_one"],
        "A-5": ["test_one"],
        "A-4": ["test_two"],
    }


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.row(f'EST-{1}')\ndef test_x(): ...",
        "@pytest.mark.row(*ROWS)\ndef test_x(): ...",
        "@pytest.mark.row()\ndef test_x(): ...",
        "@pytest.mark.row(id='EST-001')\ndef test_x(): ...",
        "@pytest.mark.row('EST-001')\ndef helps(): ...",
        "row = pytest.mark.row\n@row('EST-001')\ndef test_x(): ...",
    ],
)
def test_a_mark_that_cannot_be_read_is_an_error_naming_the_place(
    source: str, tmp_path: Path
) -> None:
    with pytest.raises(conformance.Unreadable, match=r"^test_sample\.py:\d+: "):
        _marks(tmp_path, source)


def test_a_row_is_done_or_not_but_not_both(tmp_path: Path) -> None:
    for sheet in conformance.SHEETS:
        (tmp_path / f"{sheet}.toml").write_text(
            'title = "T"\n[[section]]\ntitle = "S"\n[[section.row]]\n'
            f'id = "{sheet}"\nsource = "x"\nsays = "x"\nnot = "x"\ndiffers = "x"\n'
        )
    with pytest.raises(conformance.Unreadable, match="either `not` or `differs`"):
        conformance.read_sheets(tmp_path)


@pytest.mark.row("EST-069", "A-2")
def test_security_md_states_the_guessing_bounds_that_follow_from_the_code() -> None:
    text = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    open_pins, days = 1000, 30
    per_network = Limits().guesses_per_source
    guesses = 10_000 * per_network * 24 * days
    uncounted = 5000 * 3600 * 24 * days
    # Five free tries, then 1 s doubling to a minute: no faster than this to the last try.
    waits = [min(MAX_DELAY_SECONDS, 2**n) for n in range(DEAD_AT - FREE_TRIES)]
    facts = [
        f"{pin.LONG * 5} bits",
        f"{pin.SHORT * 5} bits",
        f"{per_network} wrong PINs an hour",
        f"{_spaced(guesses)} guesses",
        f"1 in {_spaced(32**pin.LONG / (guesses * open_pins))}",
        f"{_spaced(uncounted)} guesses",
        f"1 in {_spaced(32**pin.LONG / (uncounted * open_pins))}",
        f"1 in {_spaced(32**pin.SHORT / DEAD_AT)}",
        f"{sum(waits) // 60} minutes",
    ]
    assert [fact for fact in facts if fact not in text] == []


def _spaced(number: float) -> str:
    """Write a number with a blank between thousands."""
    return f"{number:,.0f}".replace(",", " ")
