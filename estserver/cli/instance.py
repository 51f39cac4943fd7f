"""Commands that make an instance, bring its database up to date, and register applicants."""

import os
from datetime import datetime, timedelta
from pathlib import Path

import click

from estserver import config
from estserver.ca import ceremony
from estserver.ca.hierarchy import KEY_TYPES
from estserver.cli.listing import CLIENTS
from estserver.cli.operator import DATE, DURATION, Operator
from estserver.cli.output import (
    handover_row,
    hint,
    print_handover,
    print_instance,
    print_json,
)
from estserver.cli.records import mail_out
from estserver.config import Settings
from estserver.core import SystemClock, require_database_file
from estserver.errors import BadInput, ConfigurationError
from estserver.invitations import Registration
from estserver.model import Door, KeyType, Language
from estserver.store import Store, migrate
from estserver.store.migrate import is_empty

_PORT = click.IntRange(1, 65535)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Host name or address of this server; the first stands in URLs. "
    "[default: localhost 127.0.0.1]",
)
@click.option("--devices-host", metavar="NAME", help="Second host name, for EST and renewal.")
@click.option("--organization", metavar="O", help="Organization in CA names and on pages.")
@click.option("--organization-ja", metavar="O", help="The same in Japanese, for pages and mail.")
@click.option(
    "--key-type",
    type=click.Choice([kind.value for kind in KEY_TYPES]),
    default=KeyType.EC_P256.value,
    show_default=True,
    help="Of the two CA keys.",
)
@click.option(
    "--bind", metavar="ADDRESS", help="Where to listen [default: loopback for localhost, else all]."
)
@click.option(
    "--offline-root",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Put the root's key there, to be carried away, under a passphrase of its own.",
)
@click.option(
    "--subordinate", is_flag=True, help="Make no root: an existing CA is to sign the issuing CA."
)
@click.option("--web-port", type=_PORT, default=8443, show_default=True)
@click.option("--devices-port", type=_PORT, default=9443, show_default=True)
@click.option("--status-port", type=_PORT, default=8080, show_default=True)
@click.option("--management-port", type=_PORT, default=9180, show_default=True)
@click.pass_obj
def init(  # noqa: PLR0913 - one argument an option
    operator: Operator,
    *,
    directory: Path,
    hosts: tuple[str, ...],
    devices_host: str | None,
    organization: str | None,
    organization_ja: str | None,
    key_type: str,
    bind: str | None,
    offline_root: Path | None,
    subordinate: bool,
    web_port: int,
    devices_port: int,
    status_port: int,
    management_port: int,
) -> None:
    """Make a new instance in DIR: configuration, root and issuing CA, secrets, database."""
    defaults = ceremony.InstanceOptions()
    options = ceremony.InstanceOptions(
        hosts=hosts or defaults.hosts,
        devices_host=devices_host,
        organization=organization or defaults.organization,
        organization_ja=organization_ja,
        key_type=KeyType(key_type),
        ports=ceremony.Ports(web_port, devices_port, status_port, management_port),
        bind=bind,
        root_folder=offline_root,
    )
    if subordinate:
        if offline_root is not None:
            raise click.UsageError("--subordinate makes no root: leave out --offline-root")
        csr = ceremony.create_subordinate(directory, SystemClock(), options, by=operator.by)
        click.echo(csr)
        hint("\nHave this CSR signed as a CA, with pathLen 0 or more. Then:")
        hint(f"estserver --config {csr.parent.parent / 'estserver.toml'} ca install issuing FILE")
        return
    instance = ceremony.create_instance(directory, SystemClock(), options, by=operator.by)
    print_instance(instance.configuration, config.load(instance.configuration), as_json=False)
    if offline_root is None:
        hint(f"\nKeep {directory / 'ca/root.key'} off this machine: no daily work needs it.")
    else:
        hint(f"\nCarry {offline_root} away, its passphrase apart from its key.")
    hint(f"Next: estserver --config {instance.configuration} serve")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def info(operator: Operator, *, as_json: bool) -> None:
    """Show where the instance is, its root's fingerprint and its URLs."""
    configuration = config.find(operator.configuration, os.environ)
    print_instance(configuration, config.load(configuration), as_json=as_json)


@click.command()
@click.option(
    "--profile", required=True, metavar="P", help="Kind of certificate: person, device, ..."
)
@click.option("--name", default="", metavar="TEXT", help="Name of a person or thing.")
@click.option("--email", metavar="ADDR", help="Mail address; the retrieval URL goes there.")
@click.option("--dns", "dns", multiple=True, metavar="NAME", help="Host name to certify.")
@click.option("--ip", "ip", multiple=True, metavar="ADDRESS", help="IP address to certify.")
@click.option("--uri", "uri", multiple=True, metavar="URI", help="URI to certify.")
@click.option("--device-id", metavar="ID", help="Name of a device.")
@click.option(
    "--door",
    "doors",
    multiple=True,
    type=click.Choice([door.value for door in Door]),
    help="Instead of the profile's doors.",
)
@click.option(
    "--max",
    "units",
    type=click.IntRange(1, 1_000_000),
    default=1,
    show_default=True,
    help="How many new certificates it is good for.",
)
@click.option(
    "--expires",
    type=DURATION,
    default="30d",
    show_default=True,
    help="How long PIN and URL can be used.",
)
@click.option("--renew-until", type=DATE, metavar="DATE", help="Last day of renewals, UTC.")
@click.option(
    "--lang",
    type=click.Choice([language.value for language in Language]),
    help="Language of mail and pages. [default: web.language]",
)
@click.option("--approval/--no-approval", default=None, help="Instead of the profile's rule.")
@click.option("--hold", is_flag=True, help="Keep it shut until `invitations release`.")
@click.option("--mail/--no-mail", default=True, help="Mail the retrieval URL to --email.")
@CLIENTS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def invite(  # noqa: PLR0913 - one argument an option
    operator: Operator,
    *,
    profile: str,
    name: str,
    email: str | None,
    dns: tuple[str, ...],
    ip: tuple[str, ...],
    uri: tuple[str, ...],
    device_id: str | None,
    doors: tuple[str, ...],
    units: int,
    expires: timedelta,
    renew_until: datetime | None,
    lang: str | None,
    approval: bool | None,
    hold: bool,
    mail: bool,
    every_client: bool,
    as_json: bool,
) -> None:
    """Register somebody or something; print once what is shown only once."""
    with operator.core() as core:
        if renew_until is not None and renew_until <= core.clock.now():
            raise BadInput("--renew-until lies in the past")
        names = (
            *(f"dns:{text}" for text in dns),
            *(f"ip:{text}" for text in ip),
            *(f"uri:{text}" for text in uri),
        )
        registration = Registration(
            profile=profile,
            name=name,
            email=email,
            device_id=device_id,
            names=names,
            doors=frozenset(Door(door) for door in doors) or None,
            units=units,
            expires=expires,
            renew_until=renew_until,
            language=Language(lang) if lang else core.settings.web.language,
            approval=approval,
            hold=hold,
            mail=mail,
        )
        handover = core.invitations.issue(registration, by=operator.by, origin=operator.origin)
        if as_json:
            print_json(handover_row(core, handover))
        else:
            print_handover(core, handover, every_client=every_client)
        mail_out(core, handover.invitation)


@click.command("migrate")
@click.option("--begin-anew", is_flag=True, help="Though what was issued before is in a journal.")
@click.pass_obj
def migrate_command(operator: Operator, *, begin_anew: bool) -> None:
    """Bring the database to the newest schema."""
    settings = operator.settings()
    require_database_file(settings)
    store = Store(settings.database_url, SystemClock())
    try:
        if not begin_anew and is_empty(store) and (traces := _traces(settings)):
            raise ConfigurationError(
                f"the database is empty, and {traces} tells of what was issued: restore a backup "
                "and `estserver recover`; to begin a new CA all the same, say --begin-anew"
            )
        click.echo(f"The database has schema {migrate(store)}.")
    finally:
        store.close()


def _traces(settings: Settings) -> Path | None:
    """Return a file outside the database that tells of certificates, or None."""
    anchor = settings.path(settings.audit.anchor)
    journal = settings.journal.path
    places = [anchor] if journal is None else [anchor, *settings.path(journal).glob("*")]
    return next((path for path in places if path.is_file() and path.stat().st_size), None)
