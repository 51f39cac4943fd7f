"""What commands print: JSON for scripts, tables and hand-overs for people.

stdout carries the answer alone; hints and mail go to stderr, so that a pipe gets no prose.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
from cryptography import x509
from rich.console import Console
from rich.table import Table
from rich.text import Text

from estserver.ca.hierarchy import fingerprint
from estserver.cli.acme_handover import acme_row, print_acme
from estserver.config import Settings
from estserver.core import Core
from estserver.errors import ConfigurationError
from estserver.invitations import Handover
from estserver.model import (
    CertificateRecord,
    Door,
    Enrollment,
    Invitation,
    InvitationState,
    KeyType,
)
from estserver.names import display_name, format_general_name
from estserver.wording import counted, trouble

Row = Mapping[str, object]
_PLAIN_WIDTH = 200
"""Columns where stdout is no terminal: a pipe must not cut serials in two."""


def iso(moment: datetime | None) -> str | None:
    """Return a time as JSON carries it: ISO 8601, UTC, `Z`."""
    return None if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def shown(moment: datetime | None) -> str:
    """Return a time as tables show it."""
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def print_json(value: object) -> None:
    """Print one JSON value."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def hint(text: str) -> None:
    """Say something to the person, not to the pipe."""
    click.echo(text, err=True)


@dataclass(frozen=True, slots=True)
class Columns:
    """A table for people: heading -> key of the row, and what to say when there is nothing."""

    keys: Mapping[str, str]
    empty: str


def print_rows(rows: Sequence[Row], columns: Columns, *, as_json: bool) -> None:
    """Print a listing: a JSON list of whole rows, or a table of some of their columns."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        hint(columns.empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns.keys:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # Text, not str: a name such as [red] is a name, not markup.
        table.add_row(*(Text(_cell(row[key])) for key in columns.keys.values()))
    _console().print(table)


def print_fields(row: Row, *, as_json: bool) -> None:
    """Print one thing: as a JSON object, or one line a field."""
    if as_json:
        print_json(row)
        return
    width = max(len(key) for key in row)
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            click.echo(f"{key}:")
            for item in value:
                click.echo("  " + "  ".join(_cell(part) for part in item.values() if part))
        elif text := _cell(value):
            click.echo(f"{key.replace('_', ' '):<{width}}  {text}")


def _console() -> Console:
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    text = "" if value is None else str(value)
    if len(text) == len("2026-01-01T00:00:00Z") and text.endswith("Z") and text[10] == "T":
        return shown(datetime.fromisoformat(text))
    return text


def print_instance(configuration: Path, settings: Settings, *, as_json: bool) -> None:
    """Print what people need to reach an instance and to trust it.

    Raises ConfigurationError: the root certificate cannot be read.
    """
    root = root_file(settings)
    listeners = settings.listeners
    row = {
        "configuration": str(configuration),
        "root_certificate": str(root),
        "root_sha256": _root_fingerprint(root),
        "web": listeners.web.url,
        "devices": listeners.devices.url,
        "status": listeners.status.url,
        "management": listeners.management.url,
    }
    print_fields(row, as_json=as_json)


def _root_fingerprint(path: Path) -> str:
    try:
        return fingerprint(x509.load_pem_x509_certificates(path.read_bytes())[-1])
    except OSError as error:
        raise ConfigurationError(trouble(error)) from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: not a PEM certificate") from error


# -- things as JSON objects -----------------------------------------------------------------------


def invitation_row(invitation: Invitation, now: datetime) -> dict[str, object]:
    """Describe an invitation without its secrets."""
    return {
        "number": invitation.number,
        "state": _state(invitation, now),
        "profile": invitation.profile,
        "name": invitation.name,
        "email": invitation.email,
        "device_id": invitation.device_id,
        "names": [format_general_name(name) for name in invitation.names],
        "language": invitation.language.value,
        "doors": sorted(door.value for door in invitation.doors),
        "max": invitation.units,
        "used": invitation.units_used,
        "approval": invitation.approval,
        "created": iso(invitation.created_at),
        "expires": iso(invitation.expires_at),
        "renew_until": iso(invitation.renew_until),
        "pin_dead": invitation.pin_dead,
        "renewal_pin": invitation.renewal_pin,
        "replaced": invitation.replaced,
    }


def _state(invitation: Invitation, now: datetime) -> str:
    """Say what the invitation is still good for: held, open, used, expired, ended, cancelled."""
    if invitation.state is not InvitationState.OPEN:
        return invitation.state.value
    if invitation.renew_until is not None and invitation.renew_until <= now:
        return "ended"
    if invitation.units_used >= invitation.units:
        return "used"
    return "expired" if invitation.expires_at <= now else "open"


def enrollment_row(enrollment: Enrollment) -> dict[str, object]:
    """Describe an enrollment."""
    return {
        "id": enrollment.id,
        "state": enrollment.state.value,
        "profile": enrollment.profile,
        "subject": display_name(enrollment.subject),
        "names": [format_general_name(name) for name in enrollment.names],
        "applicant": enrollment.applicant,
        "invitation": enrollment.invitation,
        "via": enrollment.via.value,
        "renews": enrollment.renews,
        "proof": enrollment.proof,
        "spki_sha256": enrollment.spki_sha256.hex(),
        "created": iso(enrollment.created_at),
        "decided_by": enrollment.decided_by,
        "reason": enrollment.reason,
        "taken": iso(enrollment.taken_at),
    }


def certificate_row(record: CertificateRecord, now: datetime) -> dict[str, object]:
    """Describe a certificate; `state` as of `now`."""
    return {
        "serial": record.serial_hex,
        "subject": record.subject,
        "names": list(record.names),
        "profile": record.profile,
        "state": record.state_at(now).value,
        "not_before": iso(record.not_before),
        "not_after": iso(record.not_after),
        "invitation": record.invitation,
        "via": record.via.value,
        "sha256": None if record.sha256 is None else record.sha256.hex(),
        "enrollment": record.enrollment,
        "issuer": record.issuer,
        "renews": record.renews,
        "revoked_at": iso(record.revoked_at),
        "reason": None if record.reason is None else record.reason.value,
    }


# -- handing over ---------------------------------------------------------------------------------


def handover_row(core: Core, handover: Handover) -> dict[str, object]:
    """Describe what is shown once, with a member for each open door that this release serves."""
    invitation = handover.invitation
    row: dict[str, object] = {
        "number": invitation.number,
        "expires": iso(invitation.expires_at),
        "profile": invitation.profile,
    }
    access = None if handover.pin is None else handover.pin.reveal()
    url = core.retrieval_url(invitation)
    if url is not None:
        row["web"] = {"url": url, "pin": access}
    if Door.EST in invitation.doors:
        row["est"] = {
            "url": _est_url(core.settings, invitation),
            "username": invitation.number,
            "password": access,
        }
    if (acme := acme_row(core, invitation)) is not None:
        row["acme"] = acme
    return row


def _est_url(settings: Settings, invitation: Invitation) -> str:
    return f"{settings.listeners.devices.url}/.well-known/est/{invitation.profile}"


def print_handover(core: Core, handover: Handover, *, every_client: bool) -> None:
    """Print for a person what is shown once, with commands that can be pasted.

    `every_client`: for each client there is, not only for one at each door.
    """
    invitation = handover.invitation
    access = "" if handover.pin is None else handover.pin.reveal()
    click.echo(f"Invitation {invitation.number}: {invitation.profile} for {invitation.label}")
    good_for = counted(invitation.units, "certificate")
    if invitation.renewal_pin:
        good_for = "renewing its newest certificate once"
    click.echo(f"  good until {shown(invitation.expires_at)}, for {good_for}")
    if invitation.state is InvitationState.HELD:
        click.echo(
            "  held back: opens with `estserver invitations release "
            f"{invitation.number}` once the PIN is handed over"
        )
    url = core.retrieval_url(invitation)
    if url is not None:
        click.echo("\nIn the browser")
        click.echo(f"  URL        {url}")
        click.echo(f"  PIN        {access}")
        click.echo("  Hand over the PIN yourself: whoever has only one of the two gets nothing.")
    if Door.EST in invitation.doors:
        click.echo("\nOver EST")
        click.echo(f"  URL        {_est_url(core.settings, invitation)}")
        click.echo(f"  user name  {invitation.number}")
        click.echo(f"  password   {access}")
        click.echo("\n  Make a key and a CSR, enroll, unpack the certificate:\n")
        for command in _est_commands(core.settings, invitation, access):
            click.echo(f"    {command}")
    print_acme(core, invitation, root_file(core.settings), every_client=every_client)


def _est_commands(settings: Settings, invitation: Invitation, access: str) -> list[str]:
    """Return shell commands for curl and OpenSSL; each is one line."""
    key_type = settings.profiles[invitation.profile].keys[0]
    url = shlex.quote(f"{_est_url(settings, invitation)}/simpleenroll")
    root = shlex.quote(str(root_file(settings)))
    user = shlex.quote(f"{invitation.number}:{access}")
    stem = invitation.profile
    # `-A`: openssl base64 reads nothing from one long line without it, and to curl the server
    # answers in one line (EST-197).
    request = (
        f"openssl req -new -newkey {_newkey(key_type)} -nodes -keyout {stem}.key "
        f"-subj / -outform DER | openssl base64 -A > {stem}.csr"
    )
    enroll = (
        f"curl -sS --fail-with-body --cacert {root} -u {user} "
        f"-H 'Content-Type: application/pkcs10' --data-binary @{stem}.csr -o {stem}.p7 {url}"
    )
    unpack = (
        f"openssl base64 -d -A -in {stem}.p7 | "
        f"openssl pkcs7 -inform DER -print_certs -out {stem}.crt"
    )
    return [request, enroll, unpack]


def root_file(settings: Settings) -> Path:
    """Return the file of the root that the server's own TLS certificates lead to."""
    issuer = settings.issuers[settings.own_issuer]
    return settings.path((issuer.certificate, *issuer.chain)[-1])


def _newkey(key_type: KeyType) -> str:
    if key_type.rsa_bits is not None:
        return f"rsa:{key_type.rsa_bits}"
    if key_type is KeyType.ED25519:
        return "ed25519"
    return f"ec -pkeyopt ec_paramgen_curve:P-{key_type.value.removeprefix('ec-p')}"
