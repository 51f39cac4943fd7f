"""The command that erases what nobody may need any more."""

from dataclasses import asdict

import click

from estserver.cli.listing import JSON
from estserver.cli.operator import Operator
from estserver.cli.output import hint, print_json
from estserver.server import open_purge
from estserver.wording import counted


@click.command()
@click.option(
    "--invitation",
    metavar="N",
    help="Cancel and erase this registration now, and all it led to; see SECURITY.md.",
)
@JSON
@click.pass_obj
def purge(operator: Operator, *, invitation: str | None, as_json: bool) -> None:
    """Erase names and bytes that are older than [retention] keeps them; proofs stay."""
    with operator.core() as core:
        work = open_purge(core)
        if invitation is not None:
            done = work.erase(invitation, by=operator.by, origin=operator.origin)
        else:
            done = work.run(by=operator.by, origin=operator.origin, progress=_tell)
    if as_json:
        print_json(asdict(done))
        return
    click.echo(
        f"Erased: {counted(done.certificates, 'certificate')}, "
        f"{counted(done.registrations, 'registration')}, {counted(done.letters, 'letter')}, "
        f"what {counted(done.events, 'audit row')} said."
    )
    hint("Backups and journals are as they were: they have their own time to be deleted.")


def _tell(done: int) -> None:
    hint(f"{done} erased")
