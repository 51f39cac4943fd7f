"""`scripts/soak`: half load through every door for long, and whether memory or open files grow.

First it loads the server flat out, over more connections than later. Whatever is bounded by how
many come at once (threads, connections to the database and the pages and statements that each
keeps) or by a size of its own (caches, the collector's thresholds) grows to that bound there. What
grows after that grows with time or with every request: a leak.

Then the server has as much as it can take for a minute, and rests as long: that is half of what
this machine can do, whatever that is. What counts is the least it held during each rest: it gives
its free pages back once a minute and takes some again with whatever it does next, so that any other
moment says more about that minute than about growth.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, cycle
from pathlib import Path

from cryptography import x509

from scripts.benchmarks import doors, enrolling
from scripts.benchmarks.course import Course, Extent, Figures, Measurement
from scripts.benchmarks.dialogues import ask
from scripts.benchmarks.enrolling import Served
from scripts.benchmarks.generator import Load, LoadGenerator
from scripts.benchmarks.growth import status_request
from scripts.benchmarks.instances import make_instance
from scripts.benchmarks.machine import cpu_seconds, divide_cores, resident_megabytes, tree
from scripts.benchmarks.pki import make_pki

_LOAD_SECONDS = 1.0
"""Of each load, before the next door has its turn."""
_TURN_SECONDS = 65.0
_LEAST_REST_SECONDS = 65.0
"""More than the minute after which free pages are given back."""
_LOOK_SECONDS = 0.5
_MOST_MEGABYTES_AN_HOUR = 1.0
_MOST_DESCRIPTORS_MORE = 8
"""Connections to the database come and go."""
_ASKED_ABOUT = 512
_QUESTIONS = 10_000
_FLAT_OUT = ("est sqlite fresh 256", "est sqlite kept 256")
_LOADS = (
    "est sqlite fresh 16",
    "est sqlite kept 64",
    "est reenroll fresh 16",
    "web wizard 16",
    "acme order 16",
    "ocsp 16",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """How a server stood in a rest, all its processes together. `hours`: since the warm-up."""

    hours: float
    megabytes: float
    descriptors: int


@dataclass(frozen=True, slots=True)
class Trend:
    """By how many MB an hour memory grew; with 95 % certainty between `least` and `most`."""

    slope: float
    least: float
    most: float


def trend(samples: list[Sample]) -> Trend:
    """Estimate the growth by Theil and Sen: the median of the slopes between any two samples.

    A step that stays, or a sample that stands out, moves it little, unlike the line that fits best.
    The bounds are Sen's: as many slopes away from the median as Kendall's tau allows for by chance.
    """
    slopes = sorted(
        (later.megabytes - earlier.megabytes) / (later.hours - earlier.hours)
        for earlier, later in combinations(samples, 2)
    )
    count, pairs = len(samples), len(slopes)
    away = 1.96 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    first = max(0, int((pairs - away) / 2))
    return Trend(statistics.median(slopes), slopes[first], slopes[pairs - 1 - first])


# -- loads -----------------------------------------------------------------------------------------


def _measurements(course: Course, stack: ExitStack) -> dict[str, Measurement]:
    """Return the loads by name; all go to the server that `course.shared` has."""
    made = [
        *enrolling.est(course, stack),
        *enrolling.reenroll(course, stack),
        *doors.web(course, stack),
        *doors.acme(course, stack),
        Measurement("ocsp 16", partial(_ask_for_status, course)),
    ]
    return {measurement.name: measurement for measurement in made}


def _ask_for_status(course: Course) -> Figures:
    """Ask about certificates that were enrolled here, each about twenty times."""
    served: Served = course.shared["sqlite"]
    directory = served.instance.directory
    issuer = x509.load_pem_x509_certificate((directory / "ca/issuing.crt").read_bytes())
    serials = course.checker.serials(issuer.subject)[-_ASKED_ABOUT:]
    questions = [status_request(issuer, serial) for serial in serials]
    items = tuple(questions[number % len(questions)] for number in range(_QUESTIONS))
    load = Load(served.instance.target("status"), ask, items, 16, True, course.extent.seconds)
    _, figures = course.drive("ocsp 16", load, served.roots, served.cores)
    return figures


class _Soak:
    """A server under load, and how long it had to work."""

    def __init__(self, course: Course, measurements: dict[str, Measurement]) -> None:
        self._course = course
        self._measurements = measurements
        self._served: Served = course.shared["sqlite"]
        self._begun = time.monotonic()
        self.loaded = 0.0
        """Seconds under load since the warm-up."""

    def warm_up(self, minutes: float) -> None:
        """Load flat out: each load for a turn, again and again."""
        until = time.monotonic() + minutes * 60
        for name in cycle((*_FLAT_OUT, *_LOADS)):
            if time.monotonic() > until:
                return
            self._measurements[name].run()

    def soak(self, minutes: float) -> Iterator[Sample]:
        """Load and rest in turns; yield how the server stood in each of its rests."""
        self._begun = time.monotonic()
        names = cycle(_LOADS)
        while self.elapsed < minutes * 60:
            end = self.loaded + _TURN_SECONDS
            while self.loaded < end:
                self._measurements[next(names)].run()
                self.loaded += self._course.extent.seconds
            # Making what is sent takes time as well, and some of the server's: it counts as rest.
            yield self._rest(max(_LEAST_REST_SECONDS, 2 * self.loaded - self.elapsed))

    def _rest(self, seconds: float) -> Sample:
        """Leave the server alone; return the least memory it held, and what it has open after."""
        until = time.monotonic() + seconds
        samples = [self._sample()]
        while time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            samples.append(self._sample())
        least = min(samples, key=lambda sample: sample.megabytes)
        return replace(least, descriptors=samples[-1].descriptors)

    @property
    def elapsed(self) -> float:
        """Seconds since the warm-up."""
        return time.monotonic() - self._begun

    @property
    def cpu(self) -> float:
        """CPU seconds that the server has used."""
        return cpu_seconds(self._served.roots)

    def _sample(self) -> Sample:
        members = [member for root in self._served.roots for member in tree(root)]
        return Sample(
            self.elapsed / 3600,
            sum(map(resident_megabytes, members)),
            sum(len(list(Path(f"/proc/{member}/fd").iterdir())) for member in members),
        )


# -- the command -----------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Load a server by half for a long time and watch its memory and descriptors.",
    )
    parser.add_argument("minutes", type=float, nargs="?", default=30, help="[%(default)s]")
    parser.add_argument(
        "--warm-up",
        type=float,
        default=15,
        metavar="MINUTES",
        help="flat out, before them [%(default)s]",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="[%(default)s]")
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp"), help="where it is made [%(default)s]"
    )
    arguments = parser.parse_args()
    if arguments.minutes * 60 < 6 * _TURN_SECONDS:
        parser.error("MINUTES: at least 7, since three give one value")
    return arguments


def _run(
    arguments: argparse.Namespace, stack: ExitStack
) -> tuple[list[Sample], float, Mapping[str, Counter[str]]]:
    """Soak; return how the server stood, for what share of the time it worked, and what failed."""
    made = tempfile.TemporaryDirectory(prefix="estserver-soak-", dir=arguments.folder)
    folder = Path(stack.enter_context(made))
    cores = divide_cores()
    generator = LoadGenerator(cores.generator)
    stack.callback(generator.close)
    os.sched_setaffinity(0, cores.generator)
    extent = Extent(1, _LOAD_SECONDS, 0, 0)
    course = Course(folder, cores, generator, extent, make_pki(folder / "pki"))
    instance = make_instance(folder / "instance", journal=True)
    served = enrolling.serve(course, stack, instance, workers=arguments.workers)
    course.shared["sqlite"] = enrolling.warm_up(course, served)
    soak = _Soak(course, _measurements(course, stack))
    soak.warm_up(arguments.warm_up)
    print(
        f"warm after {arguments.warm_up:g} minutes, {course.checker.checked} certificates",
        flush=True,
    )
    samples: list[Sample] = []
    before, busy = soak.cpu, 0.0
    for sample in soak.soak(arguments.minutes):
        samples.append(sample)
        busy = (soak.cpu - before) / soak.elapsed
        print(
            f"{sample.hours * 60:5.1f} min  {sample.megabytes:7.2f} MB  {sample.descriptors} "
            f"descriptors  {course.checker.checked} certificates  "
            f"busy {busy:.0%}",
            flush=True,
        )
    return samples, busy, course.failures


def main() -> None:
    """Soak, print, and end with status 1 where memory or descriptors grew, or requests failed."""
    arguments = _arguments()
    with ExitStack() as stack:
        samples, busy, failures = _run(arguments, stack)
    for name, kinds in failures.items():
        print(f"{name}: failed: {dict(kinds)}")
    grown = trend(samples)
    middle = len(samples) // 2
    more = max(sample.descriptors for sample in samples[middle:]) - max(
        sample.descriptors for sample in samples[:middle]
    )
    flat = grown.slope < _MOST_MEGABYTES_AN_HOUR and more <= _MOST_DESCRIPTORS_MORE
    print(
        f"{arguments.minutes:g} minutes, busy {busy:.0%} of the time: {grown.slope:+.2f} MB/h "
        f"(95 %: {grown.least:+.2f} to {grown.most:+.2f}; below {_MOST_MEGABYTES_AN_HOUR:g}), "
        f"{more:+d} descriptors (at most {_MOST_DESCRIPTORS_MORE}): {'flat' if flat else 'GREW'}"
    )
    sys.exit(0 if flat and not failures else 1)


if __name__ == "__main__":
    main()
