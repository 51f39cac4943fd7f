"""The command `estserver`: its commands are imported when they are called.

Most need little of what there is, and an operator waits for each.
"""

from pathlib import Path

import click

from estserver.cli_operator import Commands, Operator, log_to_stderr

COMMANDS = {
    "init": "estserver.cli_instance:init",
    "info": "estserver.cli_instance:info",
    "invite": "estserver.cli_instance:invite",
    "migrate": "estserver.cli_instance:migrate_command",
    "serve": "estserver.cli_serve:serve",
    "doctor": "estserver.cli_checks:doctor_command",
    "verify": "estserver.cli_checks:verify_command",
    "backup": "estserver.cli_recovery:backup_command",
    "restore": "estserver.cli_recovery:restore_command",
    "recover": "estserver.cli_recovery:recover_command",
    "audit": "estserver.cli_audit:audit",
    "invitations": "estserver.cli_records:invitations",
    "enrollments": "estserver.cli_records:enrollments",
    "certificates": "estserver.cli_records:certificates",
    "mail": "estserver.cli_mail:mail",
    "campaign": "estserver.cli_campaign:campaign",
    "purge": "estserver.cli_purge:purge",
    "ca": "estserver.cli_ca:ca",
    "crl": "estserver.cli_status:crl",
    "acme": "estserver.cli_paused:acme",
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
    ctx.obj = Operator(configuration)
