"""Commands that look whether an instance and its records are sound."""

import sys
from dataclasses import asdict

import click

from estserver.cli.operator import Operator
from estserver.cli.output import print_json
from estserver.core import SystemClock
from estserver.doctor import Verdict, examine
from estserver.verification import Verification, record, verify
from estserver.wording import counted

_LINE_ANEW = "\r\x1b[K"
"""Makes a terminal forget the line that is being written."""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor_command(operator: Operator, *, as_json: bool) -> None:
    """Check configuration, keys, names, database, clock, CRLs, mail and disk."""
    marks = {Verdict.OK: "ok", Verdict.WARNING: "WARN", Verdict.BAD: "BAD", Verdict.SKIPPED: "-"}
    found = []
    for finding in examine(operator.settings, SystemClock()):
        found.append(finding)
        if not as_json:
            click.echo(f"{marks[finding.verdict]:<5} {finding.check:<24} {finding.detail}")
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.verdict is Verdict.BAD for finding in found):
        raise click.exceptions.Exit(1)


@click.command("verify")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def verify_command(operator: Operator, *, as_json: bool) -> None:
    """Re-check every stored certificate, the CRLs, and the audit trail with its anchor."""
    with operator.core() as core:
        result = verify(core, _show_progress)
        _end_progress()
        _print_verification(result, as_json=as_json)
        record(core, result, by=operator.by, origin=operator.origin)
    if result.problems:
        raise click.exceptions.Exit(1)


def _print_verification(result: Verification, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result))
    else:
        for problem in result.problems:
            click.echo(problem)
        click.echo(
            f"{counted(result.certificates, 'certificate')}, {counted(result.answers, 'CRL')} and "
            f"{counted(result.events, 'audit row')} with {counted(result.anchors, 'anchor')} "
            "re-checked: "
            + (counted(len(result.problems), "problem") if result.problems else "all fit")
        )


def _show_progress(what: str, done: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"{_LINE_ANEW}{done} {what} … ", nl=False, err=True)


def _end_progress() -> None:
    if sys.stderr.isatty():
        click.echo(_LINE_ANEW, nl=False, err=True)
