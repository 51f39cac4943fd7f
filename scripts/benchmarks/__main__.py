"""`scripts/bench`: read the arguments, say how long it takes, measure, print, write."""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.benchmarks import table
from scripts.benchmarks.against import Peer, drive_peer
from scripts.benchmarks.course import Course, Extent
from scripts.benchmarks.generator import LoadGenerator
from scripts.benchmarks.instances import REPOSITORY
from scripts.benchmarks.machine import describe, divide_cores
from scripts.benchmarks.pki import make_pki
from scripts.benchmarks.scenarios import SCENARIOS

_MARKS = ("<!-- bench -->\n", "<!-- /bench -->\n")
_BEGINNING_SECONDS = 5
_KINDS_SHOWN = 3


def _arguments() -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure this machine's limits and estserver against them in one run.",
        epilog="scenarios: " + "; ".join(f"{one.name} ({one.about})" for one in SCENARIOS),
    )
    parser.add_argument("--quick", action="store_true", help="one round, a tenth of the data")
    parser.add_argument(
        "--full", action="store_true", help="100 000 enrollments before memory is looked at"
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="these scenarios")
    parser.add_argument("--rounds", type=int, help="alternating rounds, whose medians count")
    parser.add_argument("--seconds", type=float, help="of each load in each round")
    parser.add_argument("--certificates", type=int, help="in the large database")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument(
        "--readme", type=Path, metavar="JSON", help="put the figures of JSON into README.md; no run"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/var/tmp"),
        help="where databases are made; on a disk, not on tmpfs [%(default)s]",
    )
    peer = parser.add_argument_group("another EST server, driven with the same load")
    peer.add_argument(
        "--against", metavar="URL", help="https://HOST:PORT[/.well-known/est[/LABEL]]"
    )
    peer.add_argument("--cacert", type=Path, help="PEM that its chain leads to")
    peer.add_argument("--user", metavar="NAME:PASSWORD", help="for HTTP Basic")
    peer.add_argument("--cert", type=Path, help="PEM with key and certificate to show")
    peer.add_argument("--subject", default="bench", help="CN of the CSRs [%(default)s]")
    peer.add_argument("--pid", type=int, help="of the server, for its CPU time, if it runs here")
    return parser.parse_args()


def _extent(arguments: argparse.Namespace) -> Extent:
    usual = Extent(3, 2.5, 1_000_000, 2_000)
    if arguments.quick:
        usual = Extent(1, 1.0, 100_000, 500)
    return Extent(
        arguments.rounds or usual.rounds,
        arguments.seconds or usual.seconds,
        arguments.certificates or usual.certificates,
        100_000 if arguments.full else usual.enrollments,
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked for and return everything about it."""
    extent, cores = _extent(arguments), divide_cores()
    wanted = [one for one in SCENARIOS if not arguments.only or one.name in arguments.only]
    expected = sum(one.seconds(extent) for one in wanted) + _BEGINNING_SECONDS
    if arguments.against is None:
        _tell(f"This takes about {max(1, round(expected / 60))} minute(s) on a quiet machine.")
    begun = time.monotonic()
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="estserver-bench-", dir=arguments.folder)
        folder = Path(stack.enter_context(made))
        # PostgreSQL and the fronts run as users of their own; what is secret is 0600 itself.
        folder.chmod(0o711)
        generator = LoadGenerator(cores.generator)
        stack.callback(generator.close)
        machine = describe(folder)
        # Preparing and checking must not get in the server's way either.
        os.sched_setaffinity(0, cores.generator)
        pki = make_pki(folder / "pki")
        course = Course(folder, cores, generator, extent, pki)
        if machine["file system"] == "tmpfs":
            _tell(f"{arguments.folder} is on tmpfs, where a durable commit costs nothing: --folder")
        if arguments.against is None:
            course.run(wanted, _tell)
        else:
            drive_peer(course, _peer(arguments), _tell)
    results = {"machine": {"cores_apart": float(cores.apart)}, **course.results}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_seconds": round(time.monotonic() - begun),
        "expected_seconds": round(expected),
        "machine": machine,
        "extent": asdict(extent),
        "results": results,
        "absent": course.absent,
        "broken": course.broken,
        "failures": {name: dict(kinds.most_common()) for name, kinds in course.failures.items()},
        "checked_certificates": course.checker.checked,
        "table": [asdict(line) for line in table.lines(results)],
    }


def _peer(arguments: argparse.Namespace) -> Peer:
    return Peer(
        url=arguments.against,
        root=arguments.cacert,
        user=arguments.user,
        holder=arguments.cert,
        subject=arguments.subject,
        pid=arguments.pid,
    )


def _show(report: dict[str, Any], *, with_table: bool) -> None:
    print("\n".join(f"{name}: {value}" for name, value in report["machine"].items()), end="\n\n")
    print("\n".join(table.text_results(report["results"])), end="\n\n")
    for name, kinds in report["failures"].items():
        for kind, count in list(kinds.items())[:_KINDS_SHOWN]:
            print(f"{name}: failed {count} times: {kind}")
    for name, reason in report["absent"].items():
        print(f"{name}: absent: {reason}")
    for name, reason in report["broken"].items():
        print(f"{name}: went wrong: {reason}")
    print(f"{report['checked_certificates']} certificates checked against their CSRs")
    if with_table:
        print(table.ceiling(report["results"]))
        print("\n" + "\n".join(table.text_table(table.lines(report["results"]))))
    print(f"\n{report['took_seconds']} seconds")


def with_figures(readme: str, report: dict[str, Any]) -> str:
    """Return the text of README.md with the figures of a run between its marks."""
    before, _, rest = readme.partition(_MARKS[0])
    _, _, after = rest.partition(_MARKS[1])
    machine = report["machine"]
    head = (
        f"Measured {report['at'][:10]}: {machine['processor']}, {machine['cores']} cores, "
        f"Python {machine['python']}, {machine['tls library']}, {machine['file system']}; "
        f"medians of {report['extent']['rounds']} round(s).\n\n"
    )
    results = report["results"]
    body = "\n".join([*table.markdown(table.lines(results), results), "", table.ceiling(results)])
    return f"{before}{_MARKS[0]}{head}{body}\n{_MARKS[1]}{after}"


def main() -> None:
    """Do what the command line says."""
    arguments = _arguments()
    if arguments.readme is not None:
        readme = REPOSITORY / "README.md"
        text = with_figures(
            readme.read_text(encoding="utf-8"), json.loads(arguments.readme.read_text())
        )
        readme.write_text(text, encoding="utf-8")
        return
    report = _measure(arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    _show(report, with_table=arguments.against is None)
    # Another server may refuse what it likes.
    ours_failed = arguments.against is None and report["failures"]
    sys.exit(1 if report["broken"] or ours_failed else 0)


if __name__ == "__main__":
    main()
