"""Commands about what is in the database: invitations, enrollments, certificates."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import IO, TypeVar

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.cli.listing import CLIENTS, JSON, LIMIT, collect, find_certificate
from estserver.cli.operator import DURATION, SERIAL, Operator, Serial, Topic
from estserver.cli.output import (
    Columns,
    certificate_row,
    enrollment_row,
    handover_row,
    hint,
    invitation_row,
    iso,
    print_fields,
    print_handover,
    print_json,
    print_rows,
)
from estserver.cli.revocation import hold, release_certificate, revoke, revoke_many
from estserver.core import Core
from estserver.errors import NotFound
from estserver.model import (
    CertificateState,
    EnrollmentState,
    Invitation,
)
from estserver.store import certificates as certificate_rows
from estserver.store import outbox, search

# -- mail ------------------------------------------------------------------------------------------


def mail_out(core: Core, invitation: Invitation) -> None:
    """Say what becomes of the mail just queued: the server sends it, or the person does."""
    office = core.post_office()
    waiting = core.store.read(
        lambda tx: [
            letter
            for letter in outbox.of_invitation(tx, invitation.number)
            if letter.state == "queued"
        ]
    )
    if office.sends:
        if waiting:
            hint(f"\nThe server sends the URL to {invitation.email}.")
        return
    for text in office.take(invitation.number):
        hint("\nNo mail server is configured. Send this yourself:\n")
        hint(text)


# -- invitations -----------------------------------------------------------------------------------


T = TypeVar("T")
_MOST_FOUND = 1000
_search = click.option(
    "--search",
    "search_for",
    metavar="TEXT",
    help="Those whose name, a word of it, address, device id or host name begins so.",
)


def _searched(core: Core, find: Callable[..., list[T]], prefix: str, limit: int | None) -> list[T]:
    return core.store.read(lambda tx: find(tx, prefix, limit=limit or _MOST_FOUND))


@click.group(cls=Topic)
def invitations() -> None:
    """List, show, change and end registrations."""


@invitations.command("list")
@_search
@LIMIT
@JSON
@click.pass_obj
def list_invitations(
    operator: Operator, *, search_for: str | None, limit: int | None, as_json: bool
) -> None:
    """List invitations, newest first."""
    with operator.core() as core:

        def page(last: Invitation | None, size: int) -> Sequence[Invitation]:
            return core.invitations.page(None if last is None else last.number, size)

        if search_for is None:
            found = collect(page, limit, as_json=as_json)
        else:
            found = _searched(core, search.registrations_like, search_for, limit)
        now = core.clock.now()
    rows = [{**invitation_row(one, now), "label": one.label} for one in found]
    columns = Columns(
        {
            "Number": "number",
            "For": "label",
            "Profile": "profile",
            "Doors": "doors",
            "State": "state",
            "Used": "used",
            "Max": "max",
            "Expires": "expires",
        },
        f"Nothing begins with {search_for}."
        if search_for
        else "There are no invitations yet: make one with `estserver invite`.",
    )
    print_rows(rows, columns, as_json=as_json)


@invitations.command("show")
@click.argument("number")
@JSON
@click.pass_obj
def show_invitation(operator: Operator, number: str, *, as_json: bool) -> None:
    """Show an invitation, what it led to, and its mail."""
    with operator.core() as core:
        invitation = core.invitations.get(number)
        now = core.clock.now()
        led_to = [
            {
                "enrollment": enrollment.id,
                "state": enrollment.state.value if record is None else record.state_at(now).value,
                "serial": None if record is None else record.serial_hex,
                "via": enrollment.via.value,
                "created": iso(enrollment.created_at),
            }
            for enrollment, record in core.ra.of_invitation(number)
        ]
        mail = [
            {
                "letter": letter.template,
                "state": letter.state,
                "to": letter.recipient,
                "tries": letter.tries,
                "created": iso(letter.created_at),
                "error": letter.error,
            }
            for letter in core.store.read(lambda tx: outbox.of_invitation(tx, number))
        ]
    row = {**invitation_row(invitation, now), "enrollments": led_to, "mail": mail}
    print_fields(row, as_json=as_json)


@invitations.command("cancel")
@click.argument("number")
@click.pass_obj
def cancel_invitation(operator: Operator, number: str) -> None:
    """End a registration: no enrollment and no renewal any more. Revokes nothing."""
    with operator.core() as core:
        core.invitations.cancel(number, by=operator.by, origin=operator.origin)
    click.echo(f"Invitation {number} is cancelled. Its certificates are as valid as before.")


@invitations.command("new-pin")
@click.argument("number")
@click.option("--expires", type=DURATION, help="How long PIN and URL can be used [default: 30d].")
@CLIENTS
@JSON
@click.pass_obj
def new_pin(
    operator: Operator,
    number: str,
    *,
    expires: timedelta | None,
    every_client: bool,
    as_json: bool,
) -> None:
    """Replace the PIN; where all is used up, the new one renews once."""
    with operator.core() as core:
        handover = core.invitations.new_pin(
            number, expires=expires, by=operator.by, origin=operator.origin
        )
        if as_json:
            print_json(handover_row(core, handover))
        else:
            print_handover(core, handover, every_client=every_client)


@invitations.command("resend")
@click.argument("number")
@click.pass_obj
def resend(operator: Operator, number: str) -> None:
    """Mail the retrieval URL again."""
    with operator.core() as core:
        invitation = core.invitations.resend(number, by=operator.by, origin=operator.origin)
        mail_out(core, invitation)


@invitations.command("release")
@click.argument("number")
@click.pass_obj
def release(operator: Operator, number: str) -> None:
    """Open an invitation that was held back, and mail its URL."""
    with operator.core() as core:
        invitation = core.invitations.release(number, by=operator.by, origin=operator.origin)
        click.echo(f"Invitation {number} is open.")
        mail_out(core, invitation)


# -- enrollments -----------------------------------------------------------------------------------


@click.group(cls=Topic)
def enrollments() -> None:
    """List, show and decide enrollments."""


@enrollments.command("list")
@click.option("--state", type=click.Choice([state.value for state in EnrollmentState]))
@LIMIT
@JSON
@click.pass_obj
def list_enrollments(
    operator: Operator, *, state: str | None, limit: int | None, as_json: bool
) -> None:
    """List enrollments, newest first."""
    wanted = None if state is None else EnrollmentState(state)
    with operator.core() as core:
        found = collect(
            lambda last, size: core.store.read(
                lambda tx: certificate_rows.enrollments_in(
                    tx, wanted, before=None if last is None else last.id, limit=size
                )
            ),
            limit,
            as_json=as_json,
        )
    columns = Columns(
        {
            "ID": "id",
            "State": "state",
            "Profile": "profile",
            "Subject": "subject",
            "Invitation": "invitation",
            "Via": "via",
            "Created": "created",
        },
        "There are no such enrollments." if state else "Nobody has enrolled yet.",
    )
    print_rows([enrollment_row(one) for one in found], columns, as_json=as_json)


@enrollments.command("show")
@click.argument("identifier", metavar="ID")
@JSON
@click.pass_obj
def show_enrollment(operator: Operator, identifier: str, *, as_json: bool) -> None:
    """Show an enrollment and its certificate's serial."""
    with operator.core() as core:
        row = enrollment_row(core.ra.enrollment(identifier))
        record = core.store.read(lambda tx: certificate_rows.certificate(tx, identifier))
    row["serial"] = None if record is None else record.serial_hex
    print_fields(row, as_json=as_json)


@enrollments.command("approve")
@click.argument("identifier", metavar="ID")
@click.pass_obj
def approve(operator: Operator, identifier: str) -> None:
    """Let a pending enrollment be issued; the running server signs it."""
    with operator.core() as core:
        core.ra.approve(identifier, by=operator.by, origin=operator.origin)
    click.echo(f"Enrollment {identifier} is approved: the running server signs it.")


@enrollments.command("reject")
@click.argument("identifier", metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="The applicant reads this.")
@click.pass_obj
def reject(operator: Operator, identifier: str, *, reason: str) -> None:
    """Refuse a pending enrollment for good."""
    with operator.core() as core:
        core.ra.reject(identifier, reason=reason, by=operator.by, origin=operator.origin)
    click.echo(f"Enrollment {identifier} is rejected.")


# -- certificates ----------------------------------------------------------------------------------


@click.group(cls=Topic)
def certificates() -> None:
    """List, show, export and revoke certificates, or put them on hold."""


@certificates.command("list")
@click.option("--state", type=click.Choice([state.value for state in CertificateState]))
@click.option("--expiring", type=DURATION, help="Valid now, but no longer after this time.")
@_search
@LIMIT
@JSON
@click.pass_obj
def list_certificates(
    operator: Operator,
    *,
    state: str | None,
    expiring: timedelta | None,
    search_for: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List certificates, newest first."""
    wanted = None if state is None else CertificateState(state)
    if search_for is not None and (state or expiring):
        raise click.UsageError("--search stands by itself: without --state and --expiring")
    with operator.core() as core:
        now = core.clock.now()
        if search_for is not None:
            found = _searched(core, search.certificates_like, search_for, limit)
        else:
            found = collect(
                lambda last, size: core.store.read(
                    lambda tx: certificate_rows.page(
                        tx,
                        state=wanted,
                        expiring_before=None if expiring is None else now + expiring,
                        before=None if last is None else last.enrollment,
                        limit=size,
                    )
                ),
                limit,
                as_json=as_json,
            )
    columns = Columns(
        {
            "Serial": "serial",
            "Subject": "subject",
            "Names": "names",
            "Profile": "profile",
            "State": "state",
            "Until": "not_after",
        },
        "There are no such certificates."
        if state or expiring or search_for
        else "There are no certificates yet: invite somebody with `estserver invite`.",
    )
    rows = [certificate_row(one, now) for one in found]
    if not as_json:
        rows = [
            row | ({"state": "on hold"} if one.on_hold else {})
            for one, row in zip(found, rows, strict=True)
        ]
    print_rows(rows, columns, as_json=as_json)


@certificates.command("show")
@click.argument("serial", type=SERIAL)
@JSON
@click.pass_obj
def show_certificate(operator: Operator, serial: Serial, *, as_json: bool) -> None:
    """Show a certificate's row."""
    with operator.core() as core:
        row = certificate_row(find_certificate(core, serial), core.clock.now())
    print_fields(row, as_json=as_json)


@certificates.command("export")
@click.argument("serial", type=SERIAL)
@click.option("--der", is_flag=True, help="DER instead of PEM.")
@click.option("--chain", is_flag=True, help="With the CA certificates above it, root last.")
@click.option(
    "--out", type=click.File("wb", lazy=True), default="-", help="A file instead of stdout."
)
@click.pass_obj
def export(operator: Operator, serial: Serial, *, der: bool, chain: bool, out: IO[bytes]) -> None:
    """Write a certificate as PEM or DER."""
    if der and chain:
        raise click.UsageError("--der writes one certificate: it goes without --chain")
    with operator.core() as core:
        record = find_certificate(core, serial)
        stored = core.ra.certificate_of(record.enrollment)
        if stored is None:
            raise NotFound(f"certificate {record.serial_hex} was never signed")
        content = stored[1]
        above = core.chains.get(record.issuer, ()) if chain else ()
    if not der:
        whole = (x509.load_der_x509_certificate(content), *above)
        content = b"".join(one.public_bytes(Encoding.PEM) for one in whole)
    out.write(content)


certificates.add_command(revoke)
certificates.add_command(revoke_many)
certificates.add_command(hold)
certificates.add_command(release_certificate)
