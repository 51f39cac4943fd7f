"""Commands for the worst day and the day before: backup, restore, recover."""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from estserver import backup, config, recovery
from estserver.anchor import AnchorFile, Shortfall
from estserver.cli.operator import Operator
from estserver.cli.output import hint, iso, print_json, shown
from estserver.config import Settings
from estserver.core import SystemClock
from estserver.errors import ConfigurationError
from estserver.journal import Reading
from estserver.store import Store
from estserver.store.refilling import Lost
from estserver.wording import counted

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True)
_PROGRESS_EVERY = 1000


@click.command("backup")
@click.argument("directory", type=_FOLDER, metavar="DIR")
@click.option(
    "--secrets/--no-secrets",
    default=True,
    help="Without them the backup opens no CA key, and cannot be restored alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def backup_command(operator: Operator, *, directory: Path, secrets: bool, as_json: bool) -> None:
    """Write database, configuration, certificates, keys and secrets into the new folder DIR.

    The server may run meanwhile.
    """
    configuration = config.find(operator.configuration, os.environ)
    with operator.core() as core:
        made = backup.back_up(
            core,
            configuration,
            directory,
            with_secrets=secrets,
            by=operator.by,
            origin=operator.origin,
        )
    if as_json:
        print_json({"directory": str(directory), "files": len(made.files), "at": made.made_at})
    else:
        click.echo(f"{len(made.files)} files are in {directory}.")
    if made.secrets:
        hint(
            f"{directory} holds the secrets in the clear: whoever has it can sign certificates "
            "and test PINs. Keep it as safe as the CA keys, or use --no-secrets."
        )
    else:
        hint("The secrets are not in it: without them, kept elsewhere, it cannot be restored.")


@click.command("restore")
@click.argument("directory", type=_FOLDER, metavar="DIR")
@click.option(
    "--into",
    type=_FOLDER,
    metavar="PLACE",
    help="Folder of the instance [default: that of --config, else where it was].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def restore_command(
    operator: Operator, *, directory: Path, into: Path | None, as_json: bool
) -> None:
    """Make an instance anew from the backup in DIR; nothing that is there is overwritten.

    Where only the database is missing, it alone is put back.
    """
    if into is None and operator.configuration is not None:
        into = operator.configuration.resolve().parent
    restored = backup.restore(
        directory, into, SystemClock(), by=operator.by, origin=operator.origin
    )
    missing = [str(path) for path in restored.missing]
    made_at = restored.manifest.made_at
    moment = shown(datetime.fromisoformat(made_at))
    place = restored.configuration.parent
    absent = {str(place / file.place): str(directory / file.path) for file in restored.absent}
    changed = [str(place / file.place) for file in restored.changed]
    if as_json:
        told = {
            "configuration": str(restored.configuration),
            "at": made_at,
            "database_only": restored.database_only,
            "missing": missing,
            "absent": sorted(absent),
            "changed": changed,
        }
        print_json(told)
    elif restored.database_only:
        click.echo(f"The database of {place} is as it was at {moment}; nothing else was touched.")
    else:
        click.echo(f"{restored.configuration} is as it was at {moment}.")
    for path in changed:
        hint(f"{path} is another than in the backup, and stays as it is.")
    for path, copy in absent.items():
        hint(f"{path} is not there, and was not put back: if it is needed, copy {copy} there.")
    for path in missing:
        if path not in absent:
            hint(f"The backup was made without {path}: put it back before anything else.")
    hint(
        "What was issued and revoked since is not known yet. Before serving: estserver --config "
        f"{restored.configuration} recover --journal {_journal(restored.settings)} [--crl FILE]"
    )


def _journal(settings: Settings) -> str:
    """Return where the journal is, if it has outlived the database."""
    path = settings.journal.path and settings.path(settings.journal.path)
    return str(path) if path and path.exists() else "JOURNAL"


@click.command("recover")
@click.option(
    "--journal", type=_FILE, metavar="FILE", help="Journal that outlived: its folder or one file."
)
@click.option(
    "--crl", "crls", type=_FILE, multiple=True, metavar="FILE", help="Published CRL, DER or PEM."
)
@click.option("--dry-run", is_flag=True, help="Only show what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def recover_command(
    operator: Operator,
    *,
    journal: Path | None,
    crls: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put back what a restored database has forgotten, and show what that was.

    Runs again without harm. Exit status 1: something in the journal could not be used.
    """
    if journal is None and not crls:
        raise click.UsageError("recover needs --journal, --crl or both")
    with operator.core() as core:
        reading = None if journal is None else Reading(journal)
        difference = recovery.compare(core, reading, [path.read_bytes() for path in crls])
        anchor = core.settings.path(core.settings.audit.anchor)
        lost = _shortfalls(core.store, anchor, journal, difference.notes)
        if not dry_run:
            if not difference.empty:
                recovery.apply(
                    core, difference, by=operator.by, origin=operator.origin, progress=_progress
                )
            if lost and lost[0].path == anchor:
                why = f"{lost[0].rows} rows lost with the database"
                AnchorFile(anchor).begin_anew(core.clock.now(), why)
    if as_json:
        rows = max((one.rows for one in lost), default=0)
        print_json({**_row(difference), "audit_rows_lost": rows, "applied": not dry_run})
    else:
        _print_difference(difference, lost, dry_run=dry_run)
    if difference.problems:
        raise click.exceptions.Exit(1)


def _shortfalls(
    store: Store, anchor: Path, journal: Path | None, notes: list[str]
) -> list[Shortfall]:
    """Compare the audit trail with its own anchors, and with those that lie by the journal.

    One that cannot be read is told among `notes`: it must not keep anything from coming back.
    """
    places = [anchor]
    if journal is not None:
        beside = (journal if journal.is_dir() else journal.parent) / anchor.name
        if beside.resolve() != anchor.resolve():
            places.append(beside)
    found = []
    for path in places:
        try:
            found.append(AnchorFile(path).shortfall(store))
        except ConfigurationError as error:
            notes.append(f"{error.detail}: what the audit trail has lost cannot be told by it")
    return [shortfall for shortfall in found if shortfall is not None]


def _row(difference: recovery.Difference) -> dict[str, Any]:
    return {
        "invitations": sorted(difference.invitations),
        "cancelled": difference.cancelled,
        "dead_pins": sorted(difference.dead_pins),
        "certificates": [_serial(lost) for lost in difference.certificates],
        "intents": [_serial(lost) for lost in difference.intents],
        "revocations": [
            {
                "serial": f"{one.serial:x}",
                "issuer": one.issuer,
                "reason": one.reason.value,
                "revoked_at": iso(one.revoked_at),
                "known": one.enrollment is not None,
            }
            for one in difference.revocations
        ],
        "releases": [f"{serial:x}" for serial in difference.releases.values()],
        "crl_numbers": difference.crl_numbers,
        "units": difference.units,
        "notes": difference.notes,
        "problems": difference.problems,
    }


def _serial(lost: Lost) -> str:
    return f"{lost.certificate.serial_number:x}"


def _print_difference(
    difference: recovery.Difference, lost: list[Shortfall], *, dry_run: bool
) -> None:
    for sentence in _sentences(difference):
        click.echo(sentence)
    for one in lost:
        click.echo(
            f"audit trail: lost with the database: {counted(one.rows, 'row')} that the anchor of "
            f"{shown(one.at)} in {one.path} knew"
        )
    for sentence in (*difference.notes, *difference.problems):
        hint(sentence)
    if difference.empty:
        click.echo("Nothing is missing.")
    elif dry_run:
        click.echo("Nothing was changed: leave out --dry-run to put it back.")
    else:
        click.echo("All of it was put back: make a new backup now.")


def _sentences(difference: recovery.Difference) -> list[str]:
    """Say what is missing, one thing a line."""
    return [
        *(
            f"invitation {number}: was missing; a new PIN opens it again"
            for number in sorted(difference.invitations)
        ),
        *(f"invitation {number}: had been cancelled" for number in difference.cancelled),
        *(
            f"invitation {number}: its PIN had been replaced; give it a new one"
            for number in sorted(difference.dead_pins)
        ),
        *(f"certificate {_serial(lost)}: was missing" for lost in difference.certificates),
        *(
            f"certificate {_serial(lost)}: had been begun, and is given up"
            for lost in difference.intents
        ),
        *(
            f"certificate {one.serial:x}: had been revoked at {shown(one.revoked_at)} "
            f"({one.reason.value}){'' if one.enrollment else ', nothing else is known of it'}"
            for one in difference.revocations
        ),
        *(
            f"certificate {serial:x}: had been released from its hold"
            for serial in difference.releases.values()
        ),
        *(
            f"issuer {issuer}: CRL {number} had been published"
            for issuer, number in difference.crl_numbers.items()
        ),
        *(f"invitation {number}: more of it had been used" for number in difference.units),
    ]


def _progress(what: str, done: int) -> None:
    if sys.stderr.isatty() and done % _PROGRESS_EVERY == 0:
        hint(f"{done} {what} …")
