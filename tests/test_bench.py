"""The bench runs, says what it found, and judges by the rules of its table."""

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.benchmarks import table
from scripts.benchmarks.__main__ import with_figures
from scripts.benchmarks.course import Figures
from scripts.benchmarks.generator import take_answer
from scripts.benchmarks.soak import Sample, trend

REPOSITORY = Path(__file__).parent.parent


def _load(per_second: float, cpu_us: float, *, others: float = 0.0, busy: float = 0.5) -> Figures:
    return {
        "per_second": per_second,
        "p50_ms": 1.0,
        "p99_ms": 1.2,
        "server_cpu_us": cpu_us,
        "generator_busy": busy,
        "others": others,
        "answers": 100.0,
        "failures": 0.0,
    }


def _line(results: dict[str, Figures], beginning: str) -> table.Line:
    (line,) = (one for one in table.lines(results) if one.what.startswith(beginning))
    return line


def test_the_bench_runs_a_scenario_and_checks_every_certificate(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = ("scripts/bench", "--quick", "--seconds", "0.3", "--only", "single-use")
    done = subprocess.run(
        [*command, "--json", report, "--folder", tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This takes about" in done.stderr
    figures = json.loads(report.read_text())
    rows = [figures["results"][f"est single-use {kind} 16"] for kind in ("fresh", "kept")]
    assert all(row["answers"] > 0 and row["failures"] == 0 for row in rows)
    assert all(row["server_cpu_us"] > 0 for row in rows)
    assert figures["checked_certificates"] >= sum(row["answers"] for row in rows)
    assert {line["verdict"] for line in figures["table"]} == {"not measured"}


def test_bare_tls_is_compared_with_by_cpu_as_the_generator_cannot_fill_it() -> None:
    bare = {"nginx fresh 16": _load(900, 400)}
    line = _line({**bare, "est sqlite fresh 16": _load(500, 1600)}, "fresh TLS")
    assert (line.value, line.verdict) == (25, "floor")
    assert line.note == "by CPU; our rate by the clock: 20 %"


def test_a_rate_is_judged_by_the_clock_and_by_cpu_where_the_clock_lies() -> None:
    pipeline = {"pipeline template": {"per_second": 5000.0}, "est sqlite kept 16": _load(1, 1)}
    quiet = _line({**pipeline, "est sqlite kept 64": _load(1000, 800)}, "keep-alive")
    assert (quiet.value, quiet.verdict, quiet.note) == (20, "below the floor", "")
    shared = _line({**pipeline, "est sqlite kept 64": _load(1000, 500, others=0.5)}, "keep-alive")
    assert (shared.value, shared.verdict, shared.note) == (40, "floor", "by CPU")
    limited = _line({**pipeline, "est sqlite kept 64": _load(1000, 800, busy=0.95)}, "keep-alive")
    assert (limited.value, limited.verdict) == (25, "below the floor")


def test_where_less_is_better_less_passes() -> None:
    assert _line({"start": {"seconds": 0.5}}, "exec").verdict == "moonshot"
    assert _line({"start": {"seconds": 1.5}}, "exec").verdict == "floor"
    assert _line({"start": {"seconds": 1.6}}, "exec").verdict == "below the floor"
    assert _line({"kill": {"missing": 1}}, "kill").verdict == "below the floor"


def test_two_workers_gate_only_on_cores_of_their_own() -> None:
    loads = {
        "est sqlite kept 64": _load(1000, 900),
        "est sqlite 2 workers kept 64": _load(900, 900),
    }
    few = {**loads, "machine": {"cores_apart": 0.0}}
    assert _line(few, "two workers").verdict == "printed only"
    enough = {**loads, "machine": {"cores_apart": 1.0}}
    assert _line(enough, "two workers").verdict == "below the floor"


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"hello",
        ),
        (b"HTTP/1.1 204 No Content\r\nReplay-Nonce: aB\r\n\r\n", b""),
    ],
    ids=["length", "chunked", "nothing"],
)
def test_an_answer_is_taken_once_it_is_whole(wire: bytes, body: bytes) -> None:
    received = bytearray()
    for octet in wire[:-1]:
        received.append(octet)
        assert take_answer(received) is None
    received += wire[-1:] + b"HTTP/1.1 next"
    answer = take_answer(received)
    assert answer is not None
    assert answer.body == body
    assert received == b"HTTP/1.1 next"


def test_the_readme_has_one_place_for_the_figures() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    results = {"start": {"seconds": 0.42}, "machine": {"cores_apart": 0.0}}
    report = {
        "at": "2026-12-01T00:00:00+00:00",
        "extent": {"rounds": 3},
        "machine": {
            "processor": "P",
            "cores": "4",
            "python": "3.14.0",
            "tls library": "T",
            "file system": "ext4",
        },
        "results": results,
    }
    written = with_figures(readme, report)
    assert "| exec to listening | 1.50 s | 0.60 s | 0.42 s |" in written
    assert with_figures(written, report) == written
    assert written.count("<!-- bench -->") == written.count("<!-- /bench -->") == 1


def _samples(megabytes: Callable[[float], float]) -> list[Sample]:
    """Return half an hour of samples, one each three minutes."""
    return [Sample(hours / 20, megabytes(hours / 20), 30) for hours in range(1, 11)]


@pytest.mark.parametrize("growth", [0.0, 5.0, -3.0])
def test_the_slope_of_a_soak_is_told_with_its_bounds(growth: float) -> None:
    noise = random.Random(1)
    found = trend(_samples(lambda hours: 110 + growth * hours + noise.uniform(-0.3, 0.3)))
    assert found.slope == pytest.approx(growth, abs=1)
    assert found.least < growth < found.most


def test_a_sample_that_stands_out_is_no_growth() -> None:
    found = trend(_samples(lambda hours: 150 if 0.1 < hours < 0.15 else 110))
    assert found.slope == pytest.approx(0)
