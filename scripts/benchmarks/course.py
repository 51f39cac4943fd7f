"""A run: what it measures, in which order, with what it shares; medians of alternating rounds."""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.benchmarks.generator import Load, LoadGenerator, Outcome
from scripts.benchmarks.instances import Checker, make_csrs
from scripts.benchmarks.machine import Cores, Meter
from scripts.benchmarks.peers import Absent
from scripts.benchmarks.pki import Pki

Figures = dict[str, float]
BUSY = 0.1
"""Share of the server's cores that others may use before rates by the clock mean nothing."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a run measures."""

    rounds: int
    seconds: float
    """Of each load."""
    certificates: int
    """In the large database."""
    enrollments: int
    """Made before the memory of a worker is looked at."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing to measure, once a round."""

    name: str
    run: Callable[[], Figures]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Measurements that need the same things.

    `prepare` sets those up, on the stack it is given, and may raise Absent. `alternates`: it takes
    turns with others in every round, so that what drifts drifts for all; the others run once.
    `seconds`: about how long it takes, by the extent of the run.
    """

    name: str
    about: str
    prepare: Callable[["Course", ExitStack], list[Measurement]]
    seconds: Callable[[Extent], float]
    alternates: bool = True


@dataclass(slots=True)
class Supply:
    """CSRs made before they are needed; each is sent once in a run."""

    _unused: list[bytes] = field(default_factory=list)

    def take(self, count: int) -> list[bytes]:
        """Return `count` base64 CSRs with keys of their own and nothing else in them."""
        if (missing := count - len(self._unused)) > 0:
            self._unused += make_csrs(missing)
        taken, self._unused = self._unused[:count], self._unused[count:]
        return taken

    def give_back(self, csrs: list[bytes]) -> None:
        """Take back what was not sent."""
        self._unused += csrs


@dataclass(slots=True)
class Course:
    """What the scenarios of a run share."""

    folder: Path
    cores: Cores
    generator: LoadGenerator
    extent: Extent
    pki: Pki
    checker: Checker = field(default_factory=Checker)
    supply: Supply = field(default_factory=Supply)
    results: dict[str, Figures] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    failures: dict[str, Counter[str]] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    """What is made once and used by several scenarios."""

    def drive(
        self, name: str, load: Load, roots: tuple[int, ...], cores: tuple[int, ...]
    ) -> tuple[Outcome, Figures]:
        """Run a load on the processes under `roots`; return what came of it and its figures."""
        meter = Meter(roots, cores)
        outcome = self.generator.run(load)
        cpu, others = meter.cpu(), meter.others()
        if set(cores) & set(self.cores.generator):
            others = max(0.0, others - outcome.busy / outcome.seconds / len(cores))
        count = len(outcome.latencies)
        if outcome.failures:
            self.failures.setdefault(name, Counter()).update(outcome.failures)
        if not count:
            raise RuntimeError(f"{name}: nothing succeeded: {dict(outcome.failures)}")
        latencies = sorted(outcome.latencies)
        return outcome, {
            "per_second": count / outcome.seconds,
            "p50_ms": percentile(latencies, 0.5) * 1e3,
            "p99_ms": percentile(latencies, 0.99) * 1e3,
            "server_cpu_us": cpu / count * 1e6,
            "generator_cpu_us": outcome.busy / count * 1e6,
            "generator_busy": outcome.busy / outcome.seconds / self.generator.processes,
            "others": others,
            "answers": count,
            "failures": sum(outcome.failures.values()),
        }

    def run(self, scenarios: list[Scenario], tell: Callable[[str], None]) -> None:
        """Measure; `tell` is called with what is being done."""
        rows: dict[str, list[Figures]] = {}
        with ExitStack() as stack:
            measurements = [
                measurement
                for scenario in scenarios
                if scenario.alternates
                for measurement in self._prepared(scenario, stack, tell)
            ]
            for number in range(self.extent.rounds if measurements else 0):
                tell(f"round {number + 1} of {self.extent.rounds}")
                for measurement in measurements:
                    self._measure(measurement, rows, tell)
            for scenario in scenarios:
                if scenario.alternates:
                    continue
                with ExitStack() as own:
                    for measurement in self._prepared(scenario, own, tell):
                        self._measure(measurement, rows, tell)
        self.keep(rows)

    def keep(self, rows: dict[str, list[Figures]]) -> None:
        """Keep the medians of what each round gave."""
        self.results |= {name: _medians(rounds) for name, rounds in rows.items()}

    def _measure(
        self,
        measurement: Measurement,
        rows: dict[str, list[Figures]],
        tell: Callable[[str], None],
    ) -> None:
        """Measure once more, unless it went wrong before: one that does spoils no other."""
        if measurement.name in self.broken:
            return
        try:
            rows.setdefault(measurement.name, []).append(measurement.run())
        except Exception as error:  # noqa: BLE001 - told, and the run ends with status 1
            self.broken[measurement.name] = f"{type(error).__name__}: {error}"
            rows.pop(measurement.name, None)
            tell(f"  {measurement.name} went wrong: {self.broken[measurement.name]}")

    def _prepared(
        self, scenario: Scenario, stack: ExitStack, tell: Callable[[str], None]
    ) -> list[Measurement]:
        tell(scenario.about)
        try:
            return scenario.prepare(self, stack)
        except Absent as reason:
            self.absent[scenario.name] = str(reason)
            tell(f"  absent: {reason}")
        except Exception as error:  # noqa: BLE001 - as in `_measure`
            self.broken[scenario.name] = f"{type(error).__name__}: {error}"
            tell(f"  went wrong: {self.broken[scenario.name]}")
        return []


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which `share` of the values lie; they come in order."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _medians(rounds: list[Figures]) -> Figures:
    """Return the median of each figure; failures add up."""
    figures = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    if "failures" in figures:
        figures["failures"] = sum(one["failures"] for one in rounds)
    return figures


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that `run` takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
