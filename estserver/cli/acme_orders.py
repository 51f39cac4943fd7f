"""Commands about the ACME door: what is paused because it failed for days, and letting it go on."""

import click

from estserver.cli.operator import Operator, Topic
from estserver.cli.output import Columns, iso, print_rows
from estserver.protocols.acme import failure_records, failures


@click.group(cls=Topic)
def acme() -> None:
    """Look after ACME clients."""


@acme.command("paused")
@click.option("--all", "everything", is_flag=True, help="With what fails but is not paused yet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_paused(operator: Operator, *, everything: bool, as_json: bool) -> None:
    """List orders that are paused because they failed again and again, the longest first."""
    with operator.core() as core:
        found = core.store.read(lambda tx: failure_records.listing(tx, paused=not everything))
    rows = [
        {
            "account": one.account,
            "invitation": one.invitation,
            "identifiers": list(one.identifiers) if as_json else " ".join(one.identifiers),
            "failures": one.times,
            "since": iso(one.first_at),
            "last": iso(one.last_at),
            "paused": iso(one.paused_at),
            "reason": one.reason,
        }
        for one in found
    ]
    columns = Columns(
        {
            "Account": "account",
            "Invitation": "invitation",
            "For": "identifiers",
            "Since": "since",
            "Paused": "paused",
            "Because": "reason",
        },
        "Nothing is paused.",
    )
    print_rows(rows, columns, as_json=as_json)


# One account in 64 has a name that begins as an option does.
@acme.command(context_settings={"ignore_unknown_options": True})
@click.argument("account")
@click.pass_obj
def unpause(operator: Operator, account: str) -> None:
    """Let an account try again what was paused."""
    with operator.core() as core:
        found = core.store.write(
            lambda tx: failures.unpause(tx, account, by=operator.by, origin=operator.origin)
        )
    for one in found:
        click.echo(f"{' '.join(one.identifiers)} may be ordered again.")
