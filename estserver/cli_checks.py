"""Commands that look whether an instance and its records are sound."""

from dataclasses import asdict

import click

from estserver.cli_operator import Operator
from estserver.cli_output import print_json
from estserver.core import SystemClock
from estserver.doctor import Verdict, examine
from estserver.verification import verify


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
            click.echo(f"{marks[finding.verdict]:<5} {finding.check:<20} {finding.detail}")
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.verdict is Verdict.BAD for finding in found):
        raise click.exceptions.Exit(1)


@click.command("verify")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def verify_command(operator: Operator, *, as_json: bool) -> None:
    """Re-check every stored certificate and the audit chain against the records."""
    with operator.core() as core:
        result = verify(core)
    if as_json:
        print_json(asdict(result))
    else:
        for problem in result.problems:
            click.echo(problem)
        click.echo(
            f"{result.certificates} certificates and {result.events} audit rows re-checked: "
            + (f"{len(result.problems)} problems" if result.problems else "all fit")
        )
    if result.problems:
        raise click.exceptions.Exit(1)
