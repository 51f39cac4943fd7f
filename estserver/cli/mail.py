"""Commands about the letters that the server sends."""

from collections.abc import Sequence

import click

from estserver.cli.listing import JSON, LIMIT, collect
from estserver.cli.operator import Operator, Topic
from estserver.cli.output import Columns, iso, print_rows
from estserver.errors import Conflict, NotFound
from estserver.mail import as_text
from estserver.model import Event
from estserver.store import Transaction, outbox
from estserver.store.outbox import Letter


@click.group(cls=Topic)
def mail() -> None:
    """List, read and send again what leaves by mail."""


@mail.command("list")
@click.option("--state", type=click.Choice(["queued", "sent", "failed"]))
@LIMIT
@JSON
@click.pass_obj
def list_mail(operator: Operator, *, state: str | None, limit: int | None, as_json: bool) -> None:
    """List letters, newest first."""
    with operator.core() as core:

        def page(last: Letter | None, size: int) -> Sequence[Letter]:
            return core.store.read(lambda tx: outbox.page(tx, state, before=last, limit=size))

        found = collect(page, limit, as_json=as_json)
    rows: list[dict[str, object]] = [
        {
            "id": letter.id,
            "letter": letter.template,
            "invitation": letter.invitation,
            "to": letter.recipient,
            "state": letter.state,
            "tries": letter.tries,
            "created": iso(letter.created_at),
            "error": letter.error,
        }
        for letter in found
    ]
    columns = Columns(
        {
            "ID": "id",
            "To": "to",
            "State": "state",
            "Tries": "tries",
            "Created": "created",
            "Error": "error",
        },
        "There are no such letters.",
    )
    print_rows(rows, columns, as_json=as_json)


@mail.command("show")
@click.argument("identifier", metavar="ID")
@click.pass_obj
def show_mail(operator: Operator, identifier: str) -> None:
    """Show a letter as its reader gets it."""
    with operator.core() as core:
        click.echo(as_text(core.post_office().read(identifier)))


@mail.command("resend")
@click.argument("identifier", metavar="ID")
@click.pass_obj
def resend_mail(operator: Operator, identifier: str) -> None:
    """Send a letter again that was sent or given up, as the same letter."""

    def unit(tx: Transaction) -> None:
        if outbox.get(tx, identifier) is None:
            raise NotFound(f"there is no letter {identifier}")
        if not outbox.send_again(tx, identifier):
            raise Conflict(f"letter {identifier} waits to be sent already")
        tx.audit(Event("mail.resent", operator.by, f"letter {identifier}"), operator.origin)

    with operator.core() as core:
        core.store.write(unit)
        sends = core.post_office().sends
    click.echo(
        f"Letter {identifier} is queued again."
        if sends
        else f"Letter {identifier} is queued again, but no mail server is configured: see "
        f"`estserver mail show {identifier}`."
    )
