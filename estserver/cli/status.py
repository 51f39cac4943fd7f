"""Commands about CRLs: what is published, and having it made anew."""

import click

from estserver.cli.listing import JSON
from estserver.cli.operator import Operator, Topic
from estserver.cli.output import Columns, iso, print_rows
from estserver.errors import NotFound
from estserver.model import Event
from estserver.store import Transaction, crls


@click.group(cls=Topic)
def crl() -> None:
    """List CRLs, or have them made anew."""


@crl.command("list")
@JSON
@click.pass_obj
def list_crls(operator: Operator, *, as_json: bool) -> None:
    """List what is published, by issuer; with a profile, the CRL of its certificates alone."""
    with operator.core() as core:
        found = core.store.read(crls.page)
    rows: list[dict[str, object]] = [
        {
            "issuer": one.issuer,
            "profile": one.scope or None,
            "number": one.number,
            "entries": one.entries_count,
            "this_update": iso(one.this_update),
            "next_update": iso(one.next_update),
        }
        for one in found
    ]
    columns = Columns(
        {
            "Issuer": "issuer",
            "Profile": "profile",
            "Number": "number",
            "Entries": "entries",
            "Made": "this_update",
            "Good until": "next_update",
        },
        "Nothing is published yet: `estserver serve` does that.",
    )
    print_rows(rows, columns, as_json=as_json)


@crl.command("renew")
@click.argument("issuer")
@click.pass_obj
def renew(operator: Operator, issuer: str) -> None:
    """Have the server make the CRLs of ISSUER anew within seconds, dated by the clock as it is.

    For when the server refuses to, because its clock was wrong and is right again.
    """
    event = Event("crl.dismissed", operator.by, f"issuer {issuer}")

    def dismiss(tx: Transaction) -> bool:
        found = crls.dismiss(tx, issuer)
        if found:
            tx.audit(event, operator.origin)
        return found

    with operator.core() as core:
        if not core.store.write(dismiss):
            raise NotFound(f"there is no CRL of {issuer}: `estserver crl list` shows what there is")
    click.echo(f"The server makes the CRLs of {issuer} anew within seconds.")
