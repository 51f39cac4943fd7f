"""Commands about renewal campaigns."""

from datetime import datetime
from typing import Any

import click

from estserver.campaigns import Campaigns
from estserver.cli.listing import JSON
from estserver.cli.operator import DATE, Operator, Topic
from estserver.cli.output import Columns, hint, iso, print_fields, print_rows, shown
from estserver.cli.revocation import selecting, selection_of
from estserver.core import Core
from estserver.store.campaigns import Campaign, Progress
from estserver.store.selection import count
from estserver.wording import counted


@click.group(cls=Topic)
def campaign() -> None:
    """Have many certificates renewed early."""


def _row(one: Campaign, progress: Progress) -> dict[str, object]:
    return {
        "name": one.name,
        "begun": iso(one.begins_at),
        "renew_by": iso(one.renew_by),
        "ended": iso(one.ended_at),
        "explanation": one.explanation,
        "by": one.created_by,
        "certificates": progress.members,
        "renewed": progress.renewed,
        "gone": progress.gone,
        "waiting": progress.waiting,
    }


@campaign.command("start")
@click.argument("name")
@selecting
@click.option(
    "--renew-by", required=True, type=DATE, metavar="DATE", help="Last day to renew, UTC."
)
@click.option("--explanation", metavar="URL", help="A page that says why.")
@click.option("--mail/--no-mail", default=True, help="Write to the owners.")
@click.option("--dry-run", is_flag=True, help="Only say how many.")
@click.pass_obj
def start(
    operator: Operator,
    /,
    *,
    name: str,
    renew_by: datetime,
    explanation: str | None,
    mail: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Mark every valid certificate that fits all options; run again to go on or to add."""
    with operator.core() as core:
        selection = selection_of(core, **options)
        number = core.store.read(lambda tx: count(tx, selection))
        if dry_run or not number:
            click.echo(
                f"{counted(number, 'certificate fits', 'certificates fit')}. Nothing was marked."
            )
            return
        marked = _campaigns(core).start(
            Campaign(name, core.clock.now(), renew_by, explanation, operator.by, None),
            selection,
            mail=mail,
            origin=operator.origin,
            progress=lambda marked: hint(f"{marked} of {number}"),
        )
    click.echo(
        f"{counted(marked, 'certificate is', 'certificates are')} marked for campaign {name}: "
        f"ACME and EST clients that ask for renewal information renew by {shown(renew_by)}."
    )


@campaign.command("list")
@JSON
@click.pass_obj
def list_campaigns(operator: Operator, *, as_json: bool) -> None:
    """List campaigns, newest first."""
    with operator.core() as core:
        rows = [_row(one, progress) for one, progress in _campaigns(core).all()]
    columns = Columns(
        {
            "Name": "name",
            "Renew by": "renew_by",
            "Certificates": "certificates",
            "Renewed": "renewed",
            "Waiting": "waiting",
            "Gone": "gone",
            "Ended": "ended",
        },
        "There are no campaigns: start one with `estserver campaign start`.",
    )
    print_rows(rows, columns, as_json=as_json)


@campaign.command("show")
@click.argument("name")
@JSON
@click.pass_obj
def show(operator: Operator, name: str, *, as_json: bool) -> None:
    """Show a campaign and how far it has come."""
    with operator.core() as core:
        print_fields(_row(*_campaigns(core).get(name)), as_json=as_json)


@campaign.command("end")
@click.argument("name")
@click.pass_obj
def end(operator: Operator, name: str) -> None:
    """End a campaign: what it marked is renewed when it would have been anyway."""
    with operator.core() as core:
        _campaigns(core).end(name, by=operator.by, origin=operator.origin)
    click.echo(f"Campaign {name} has ended.")


def _campaigns(core: Core) -> Campaigns:
    return Campaigns(core.store, core.clock)
