"""The command `estserver`: its commands are imported when they are called.

Most need little of what there is, and an operator waits for each.
"""

from pathlib import Path

import click

from estserver.cli.operator import Commands, Operator, log_to_stderr

COMMANDS = {
    "init": "estserver.cli.instance:init",
    "info": "estserver.cli.instance:info",
    "invite": "estserver.cli.instance:invite",
    "migrate": "estserver.cli.instance:migrate_command",
    "serve": "estserver.cli.serve:serve",
    "doctor": "estserver.cli.checks:doctor_command",
    "verify": "estserver.cli.checks:verify_command",
    "backup": "estserver.cli.recovery:backup_command",
    "restore": "estserver.cli.recovery:restore_command",
    "recover": "estserver.cli.recovery:recover_command",
    "audit": "estserver.cli.audit:audit",
    "invitations": "estserver.cli.records:invitations",
    "enrollments": "estserver.cli.records:enrollments",
    "certificates": "estserver.cli.records:certificates",
    "mail": "estserver.cli.mail:mail",
    "campaign": "estserver.cli.campaign:campaign",
    "purge": "estserver.cli.purge:purge",
    "ca": "estserver.cli.ca:ca",
    "crl": "estserver.cli.status:crl",
    "acme": "estserver.cli.acme_orders:acme",
}
"""Where each command is."""


@click.group(cls=Commands, places=COMMANDS)
@click.option(
    "--config",
    "configuration",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Configuration file; else $ESTSERVER_CONFIG, ./estserver.toml, "
    "/etc/estserver/estserver.toml.",
)
@click.option("--debug", is_flag=True, help="Log to stderr in full, with tracebacks.")
@click.version_option(package_name="estserver")
@click.pass_context
def main(ctx: click.Context, configuration: Path | None, *, debug: bool) -> None:
    """Certificate enrollment server: one invitation, three doors, one signing core."""
    log_to_stderr(debug=debug)
    ctx.obj = Operator(configuration, debug=debug)
