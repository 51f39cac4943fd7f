"""The table: for each line floor, moonshot and what was measured, and whether it holds.

Where one core serves, a line is a ratio of rates by the clock. Where others were at work on that
core, or where the generator had no more to give, to us or to what we are compared with, it is the
same ratio by the server's CPU seconds, and the line says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from scripts.benchmarks.course import BUSY, Figures

Results = Mapping[str, Figures]
Verdict = Literal["moonshot", "floor", "below the floor", "printed only", "not measured"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line as measured.

    `value` None where it was not, `floor` and `moonshot` None where there is none, `note`: what to
    know of it.
    """

    what: str
    unit: str
    floor: float | None
    moonshot: float | None
    value: float | None
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a line is computed. `at_most`: less is better. `by`: value and note; KeyError: none."""

    what: str
    unit: str
    floor: float | None
    moonshot: float | None
    by: Callable[[Results], tuple[float, str]]
    at_most: bool = False
    gates: Callable[[Results], bool] = lambda _: True


def lines(results: Results) -> list[Line]:
    """Return the table."""
    return [_line(rule, results) for rule in _RULES]


def _line(rule: _Rule, results: Results) -> Line:
    try:
        value, note = rule.by(results)
    except KeyError:
        return Line(rule.what, rule.unit, rule.floor, rule.moonshot, None, "not measured")
    sign = -1 if rule.at_most else 1
    verdict: Verdict = "below the floor"
    if not rule.gates(results):
        verdict = "printed only"
    elif rule.moonshot is not None and value * sign >= rule.moonshot * sign:
        verdict = "moonshot"
    elif rule.floor is None:
        verdict = "printed only"
    elif value * sign >= rule.floor * sign:
        verdict = "floor"
    return Line(rule.what, rule.unit, rule.floor, rule.moonshot, value, verdict, note)


# -- ratios ----------------------------------------------------------------------------------------


_SPENT = 0.9
"""Share of its cores' time from which on the generator may be what holds a load up."""


def _note(*rows: Figures) -> str:
    """Say if one of these loads must be judged by CPU time."""
    return "by CPU" if any(map(_held_up, rows)) else ""


def _held_up(row: Figures) -> bool:
    return row["others"] > BUSY or row["generator_busy"] > _SPENT


def _rate(figures: Figures) -> float:
    """Answers a second of one core."""
    return 1e6 / figures["server_cpu_us"] if _held_up(figures) else figures["per_second"]


def _share(of: Figures, limit: float) -> tuple[float, str]:
    return _rate(of) / limit * 100, _note(of)


def _ratio(of: Figures, to: Figures) -> tuple[float, str]:
    """Compare two loads by the same clock: both by CPU as soon as one has to be."""
    if note := _note(of, to):
        return to["server_cpu_us"] / of["server_cpu_us"], note
    return of["per_second"] / to["per_second"], ""


def _bare_tls(results: Results) -> float:
    """Return bare TLS handshakes a second of one core.

    By nginx' CPU time, since nginx is quicker than the generator; without nginx by the handshake
    in memory, which knows no sockets and is therefore a stricter limit.
    """
    row = results.get("nginx fresh 16") or results["handshake TLS"]
    return 1e6 / row["server_cpu_us"]


def _fresh(results: Results) -> tuple[float, str]:
    """Compare by CPU seconds: by the clock, bare TLS is as quick as the generator lets it be."""
    mine, bare = results["est sqlite fresh 16"], _bare_tls(results)
    note = f"by CPU; our rate by the clock: {mine['per_second'] / bare * 100:.0f} %"
    return 1e8 / mine["server_cpu_us"] / bare, note


def _kept(results: Results) -> tuple[float, str]:
    best = max(
        (results[f"est sqlite kept {count}"] for count in (16, 64)),
        key=lambda row: row["per_second"],
    )
    return _share(best, results["pipeline template"]["per_second"])


def _reenroll(results: Results) -> tuple[float, str]:
    mine = results["est reenroll fresh 16"]["server_cpu_us"]
    return mine / results["handshake mTLS"]["server_cpu_us"], "by CPU"


def _two_workers(results: Results) -> tuple[float, str]:
    two, one = results["est sqlite 2 workers kept 64"], results["est sqlite kept 64"]
    more = two["server_cpu_us"] / one["server_cpu_us"] - 1
    apart = "" if _cores_apart(results) else ", generator on the same cores"
    return two["per_second"] / one["per_second"], f"CPU/request {more:+.0%}{apart}"


def _cores_apart(results: Results) -> bool:
    return bool(results["machine"]["cores_apart"])


def _front(results: Results) -> tuple[float, str]:
    mine = results["est sqlite fresh 16"]
    fronts = {
        name: _ratio(results[row], mine)
        for name in ("haproxy", "nginx")
        if (row := f"est behind {name} fresh 16") in results
    }
    if not fronts:
        raise KeyError
    best = max(fronts, key=lambda name: fronts[name][0])
    return fronts[best][0], f"{best} {fronts[best][1]}".strip()


def _many_rate(results: Results) -> tuple[float, str]:
    return _ratio(results["est sqlite fresh 256"], results["est sqlite fresh 16"])


def _many_tail(results: Results) -> tuple[float, str]:
    row = results["est sqlite fresh 256"]
    return row["p99_ms"] / row["p50_ms"], ""


def _postgresql(results: Results) -> tuple[float, str]:
    return _ratio(results["est postgresql kept 64"], results["est sqlite kept 64"])


def _plain(row: str, figure: str, note: str = "") -> Callable[[Results], tuple[float, str]]:
    return lambda results: (results[row][figure], note)


def _after(results: Results) -> tuple[float, str]:
    row = results["memory"]
    return row["rss_mb"], f"EST only, after {row['enrollments']:,.0f} enrollments"


def _ocsp(results: Results) -> tuple[float, str]:
    row = results["ocsp cached"]
    return _rate(row), _note(row)


def _crl(figure: str) -> Callable[[Results], tuple[float, str]]:
    def value(results: Results) -> tuple[float, str]:
        entries = max(int(name.split()[1]) for name in results if name.startswith("crl "))
        return results[f"crl {entries}"][figure], f"{entries:,} entries"

    def guarded(results: Results) -> tuple[float, str]:
        if not any(name.startswith("crl ") for name in results):
            raise KeyError
        return value(results)

    return guarded


def _slowest_list(results: Results) -> tuple[float, str]:
    rows = {name: row for name, row in results.items() if name.startswith("list ")}
    if not rows:
        raise KeyError
    slowest = max(rows, key=lambda name: rows[name]["p50_ms"])
    count = rows[slowest]["certificates"]
    return rows[slowest]["p50_ms"], f"{slowest.removeprefix('list ')}, {count:,.0f} certificates"


_RULES = (
    _Rule("fresh TLS + PIN, 16 connections: share of bare TLS", "%", 25, 40, _fresh),
    _Rule("keep-alive, 16-64 connections: share of the pure pipeline", "%", 30, 60, _kept),
    _Rule("mTLS re-enroll: CPU / bare mTLS handshake", "x", 4, 2.5, _reenroll, at_most=True),
    _Rule("two workers / one, keep-alive", "x", 1.35, 1.7, _two_workers, gates=_cores_apart),
    _Rule("behind HAProxy or nginx / TLS in process, fresh", "x", 0.8, 1.3, _front),
    _Rule(
        "256 fresh connections: errors",
        "",
        0,
        None,
        _plain("est sqlite fresh 256", "failures"),
        at_most=True,
    ),
    _Rule("256 fresh connections: rate / rate at 16", "x", 0.9, None, _many_rate),
    _Rule("256 fresh connections: p99 / p50", "x", None, 1.3, _many_tail, at_most=True),
    _Rule("PostgreSQL / SQLite, keep-alive", "x", 0.6, 1.0, _postgresql),
    _Rule("memory of a worker", "MB", 110, 65, _after, at_most=True),
    _Rule(
        "memory of an idle TLS connection",
        "KB",
        32,
        20,
        _plain("memory", "connection_kb"),
        at_most=True,
    ),
    _Rule("exec to listening", "s", 1.5, 0.6, _plain("start", "seconds"), at_most=True),
    _Rule("CRL, cold", "s", 8, 4, _crl("cold_s"), at_most=True),
    _Rule("CRL, again after one revocation", "s", 0.5, 0.2, _crl("again_s"), at_most=True),
    _Rule("OCSP from the cache, keep-alive, answers/s of a core", "", 5000, 25000, _ocsp),
    _Rule("slowest list page, lookup, prefix search", "ms", 5, 1, _slowest_list, at_most=True),
    _Rule(
        "kill -9 under load: answered certificates missing",
        "",
        0,
        0,
        _plain("kill", "missing"),
        at_most=True,
    ),
)


def ceiling(results: Results) -> str:
    """Say what the generator alone can do: nginx answers it at once."""
    try:
        fresh, kept = results["nginx fresh 16"], results["nginx kept 16"]
    except KeyError:
        return "The generator's ceiling was not measured (scenario limits, with nginx)."
    new, old = (1e6 / row["generator_cpu_us"] for row in (fresh, kept))
    return (
        f"A core of the generator's manages {new:,.0f} new TLS connections a second, "
        f"or {old:,.0f} requests over kept ones."
    )


# -- showing ---------------------------------------------------------------------------------------


def number(value: float | None, unit: str) -> str:
    """Show a number with as many digits as mean something."""
    if value is None:
        return "-"
    digits = 0 if value == int(value) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{' ' if unit not in ('', '%') else ''}{unit}"


def text_table(table: list[Line]) -> list[str]:
    """Lay the table out for a terminal."""
    heads = ("", "floor", "moonshot", "measured")
    rows = [f"{heads[0]:58}{heads[1]:>9}{heads[2]:>10}{heads[3]:>11}  verdict"]
    for line in table:
        floor, moonshot = number(line.floor, line.unit), number(line.moonshot, line.unit)
        note = f" ({line.note})" if line.note else ""
        measured = number(line.value, line.unit)
        rows.append(f"{line.what:58}{floor:>9}{moonshot:>10}{measured:>11}  {line.verdict}{note}")
    return rows


def _per_core(row: Figures) -> str:
    """Show what one core could answer in a second; nothing where the server's time is unknown."""
    spent = row["server_cpu_us"]
    return f"{1e6 / spent:.0f}" if spent else "-"


def text_results(results: Results) -> list[str]:
    """Lay out all figures: loads with their latencies and costs, then the rest."""
    loads = {name: row for name, row in results.items() if "p99_ms" in row and "answers" in row}
    heads = ("per s", "p50 ms", "p99 ms", "CPU µs", "per core", "failed", "generator", "others")
    rows = [f"{'':34}" + "".join(f"{head:>10}" for head in heads)]
    rows += [
        f"{name:34}{row['per_second']:10.0f}{row['p50_ms']:10.1f}{row['p99_ms']:10.1f}"
        f"{row['server_cpu_us']:10.0f}{_per_core(row):>10}"
        f"{row['failures']:10.0f}{row['generator_busy']:10.0%}{row['others']:10.0%}"
        for name, row in loads.items()
    ]
    rows.append("")
    for name, row in results.items():
        if name not in loads:
            cells = ", ".join(f"{key} {value:,.6g}" for key, value in row.items())
            rows.append(f"{name:34}{cells}")
    return rows


def markdown(table: list[Line], results: Results) -> list[str]:
    """Lay out the table, and the rates behind it, for README.md."""
    rows = ["| what | floor | moonshot | measured |", "|---|---:|---:|---:|"]
    for line in table:
        cells = [number(value, line.unit) for value in (line.floor, line.moonshot, line.value)]
        note = f" ({line.note})" if line.note and line.value is not None else ""
        rows.append(f"| {line.what}{note} | {' | '.join(cells)} |")
    rows += ["", "| load | per second | p50 ms | p99 ms | CPU µs |", "|---|---:|---:|---:|---:|"]
    rows += [
        f"| {name} | {row['per_second']:,.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} "
        f"| {row['server_cpu_us']:,.0f} |"
        for name, row in results.items()
        if "p99_ms" in row and "answers" in row
    ]
    return rows
