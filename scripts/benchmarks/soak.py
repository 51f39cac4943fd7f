"""`scripts/soak`: half load through every door for long, and whether memory or open files grow."""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from scripts.benchmarks import doors, enrolling
from scripts.benchmarks.course import Course, Extent, Measurement
from scripts.benchmarks.enrolling import Served
from scripts.benchmarks.generator import LoadGenerator
from scripts.benchmarks.instances import make_instance
from scripts.benchmarks.machine import cpu_seconds, divide_cores, resident_megabytes, tree
from scripts.benchmarks.pki import make_pki

_TURN_SECONDS = 1.0
"""Of each load; the server rests as long before the next."""
_WARM_SHARE = 0.25
_TELL_SECONDS = 30
_MOST_MEGABYTES_AN_HOUR = 1.0
_MOST_DESCRIPTORS_MORE = 8
"""Connections to the database come and go."""
_LOADS = {
    "est sqlite fresh 16",
    "est sqlite kept 64",
    "est reenroll fresh 16",
    "web wizard 16",
    "acme order 16",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """How a server stood at rest, all its processes together. `hours`: since the beginning."""

    hours: float
    megabytes: float
    descriptors: int


def slope(samples: list[Sample]) -> float:
    """Return by how many MB an hour memory grew: the straight line that fits best."""
    hours = [sample.hours for sample in samples]
    return statistics.linear_regression(hours, [sample.megabytes for sample in samples]).slope


def _measurements(course: Course, stack: ExitStack) -> list[Measurement]:
    """Return the loads, which all go to the server that `course.shared` has."""
    made = [
        *enrolling.est(course, stack),
        *enrolling.reenroll(course, stack),
        *doors.web(course, stack),
        *doors.acme(course, stack),
    ]
    return [measurement for measurement in made if measurement.name in _LOADS]


def _soak(course: Course, measurements: list[Measurement], minutes: float) -> Iterator[Sample]:
    """Load and rest in turns; yield how the server stood after each of its rests."""
    served: Served = course.shared["sqlite"]
    begun = time.monotonic()
    for measurement in cycle(measurements):
        turn = time.monotonic()
        if turn - begun > minutes * 60:
            return
        measurement.run()
        time.sleep(max(0.0, turn + 2 * _TURN_SECONDS - time.monotonic()))
        members = [member for root in served.roots for member in tree(root)]
        yield Sample(
            (time.monotonic() - begun) / 3600,
            sum(map(resident_megabytes, members)),
            sum(len(list(Path(f"/proc/{member}/fd").iterdir())) for member in members),
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Load a server by half for a long time and watch its memory and descriptors.",
    )
    parser.add_argument("minutes", type=float, nargs="?", default=30, help="[%(default)s]")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="[%(default)s]")
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp"), help="where it is made [%(default)s]"
    )
    return parser.parse_args()


def _tell(sample: Sample, course: Course, busy: float) -> None:
    enrolled: int = course.checker.checked
    print(
        f"{sample.hours * 60:5.1f} min  {sample.megabytes:7.2f} MB  {sample.descriptors} "
        f"descriptors  {enrolled} certificates  busy {busy:.0%}",
        flush=True,
    )


def _run(arguments: argparse.Namespace, stack: ExitStack) -> list[Sample]:
    made = tempfile.TemporaryDirectory(prefix="estserver-soak-", dir=arguments.folder)
    folder = Path(stack.enter_context(made))
    cores = divide_cores()
    generator = LoadGenerator(cores.generator)
    stack.callback(generator.close)
    os.sched_setaffinity(0, cores.generator)
    extent = Extent(1, _TURN_SECONDS, 0, 0)
    course = Course(folder, cores, generator, extent, make_pki(folder / "pki"))
    instance = make_instance(folder / "instance", journal=True)
    served = enrolling.serve(course, stack, instance, workers=arguments.workers)
    course.shared["sqlite"] = enrolling.warm_up(course, served)
    measurements = _measurements(course, stack)
    samples: list[Sample] = []
    told, cpu = 0.0, cpu_seconds(served.roots)
    for sample in _soak(course, measurements, arguments.minutes):
        samples.append(sample)
        if (elapsed := (sample.hours - told) * 3600) > _TELL_SECONDS:
            used = cpu_seconds(served.roots)
            _tell(sample, course, (used - cpu) / elapsed)
            told, cpu = sample.hours, used
    for name, kinds in course.failures.items():
        print(f"{name}: failed: {dict(kinds)}")
    return samples


def main() -> None:
    """Soak, print, and end with status 1 where memory or descriptors grew."""
    arguments = _arguments()
    with ExitStack() as stack:
        samples = _run(arguments, stack)
    warm = [sample for sample in samples if sample.hours * 60 > arguments.minutes * _WARM_SHARE]
    growth = slope(warm)
    more = max(sample.descriptors for sample in warm[-len(warm) // 2 :]) - max(
        sample.descriptors for sample in warm[: len(warm) // 2]
    )
    print(
        f"after {arguments.minutes * _WARM_SHARE:g} of {arguments.minutes:g} minutes: "
        f"{growth:+.2f} MB/h (at most {_MOST_MEGABYTES_AN_HOUR}), {more:+d} descriptors"
    )
    grew = growth >= _MOST_MEGABYTES_AN_HOUR or more > _MOST_DESCRIPTORS_MORE
    sys.exit(1 if grew else 0)


if __name__ == "__main__":
    main()
