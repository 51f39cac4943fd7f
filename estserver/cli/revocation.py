"""Commands that revoke: one certificate, or all that have something in common."""

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import click
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver.ca.ocsp import issuer_hashes
from estserver.cli.listing import find_certificate
from estserver.cli.operator import DATE, SERIAL, AnyCase, Operator, Serial, confirm
from estserver.cli.output import hint
from estserver.core import Core
from estserver.errors import BadInput
from estserver.model import CertificateRecord, CertificateState, KeyType, RevocationReason
from estserver.revoking import Revocation, require_holds, revoke_selected
from estserver.status import FRESH_SECONDS
from estserver.store.selection import Selection, count, is_used, select
from estserver.wording import counted, trouble

_PATIENCE_SECONDS = 10
"""Within this time every node says what is so."""
_PAUSE_SECONDS = 0.25
_SHA1 = "1.3.14.3.2.26"
_reason = click.option(
    "--reason",
    required=True,
    type=AnyCase([reason.value for reason in RevocationReason]),
    help="RFC 5280 §5.3.1. keyCompromise blocks the key for ever; certificateHold can be taken "
    "back, where the configuration allows it.",
)
_comment = click.option("--comment", metavar="TEXT", help="For the audit trail.")


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which certificates are meant."""
    for option in reversed(
        (
            click.option("--issuer", metavar="NAME", help="Issued by this CA."),
            click.option("--profile", metavar="P", help="Of this profile."),
            click.option(
                "--key-type",
                type=click.Choice([kind.value for kind in KeyType]),
                help="With a key of this type.",
            ),
            click.option("--invitation", metavar="N", help="From this registration."),
            click.option("--email", metavar="ADDR", help="From registrations with this address."),
            click.option(
                "--issued-after", type=DATE, metavar="DATE", help="Issued after that day."
            ),
            click.option(
                "--issued-before", type=DATE, metavar="DATE", help="On that day or before."
            ),
            click.option(
                "--serials",
                type=click.Path(path_type=Path, exists=True, dir_okay=False),
                metavar="FILE",
                help="Named in this file, one serial in hex a line.",
            ),
        )
    ):
        command = option(command)
    return command


def selection_of(  # noqa: PLR0913 - one argument an option
    core: Core,
    *,
    issuer: str | None,
    profile: str | None,
    key_type: str | None,
    invitation: str | None,
    email: str | None,
    issued_after: datetime | None,
    issued_before: datetime | None,
    serials: Path | None,
) -> Selection:
    """Put the options of `selecting` together.

    Raises BadInput: none was given, no serial, or an issuer or a profile that never was.
    """
    _require_known(core, "issuer", issuer, core.chains)
    _require_known(core, "profile", profile, core.profiles)
    return Selection(
        issuer=issuer,
        profile=profile,
        key_type=None if key_type is None else KeyType(key_type),
        invitation=invitation,
        email=email,
        issued_after=issued_after,
        issued_before=issued_before,
        serials=frozenset() if serials is None else _read_serials(serials),
    )


def _require_known(
    core: Core, kind: Literal["issuer", "profile"], name: str | None, configured: Iterable[str]
) -> None:
    """Refuse a name that is a typing mistake: "none fit" would read as "nothing to do"."""
    known = sorted(one for one in configured if not one.startswith("_"))
    if name is None or name in known or core.store.read(lambda tx: is_used(tx, kind, name)):
        return
    raise BadInput(f"there is no {kind} {name}; there are {', '.join(known)}")


def _read_serials(path: Path) -> frozenset[int]:
    found = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip().replace(":", "")
        if text:
            try:
                found.add(int(text, 16))
            except ValueError:
                raise BadInput(f"{path}: line {number} is not a serial in hex") from None
    if not found:
        raise BadInput(f"{path}: holds no serial")
    return frozenset(found)


@click.command("revoke")
@click.argument("serial", type=SERIAL)
@_reason
@_comment
@click.pass_obj
def revoke(operator: Operator, serial: Serial, *, reason: str, comment: str | None) -> None:
    """Revoke a certificate at once, for good unless that is a hold; wait until our OCSP says so.

    That takes some seconds, for which nodes and workers may repeat answers they gave before.
    """
    _revoke(operator, serial, RevocationReason(reason), comment)


@click.command("hold")
@click.argument("serial", type=SERIAL)
@_comment
@click.pass_obj
def hold(operator: Operator, serial: Serial, *, comment: str | None) -> None:
    """Put a certificate on hold (certificateHold) until somebody releases or revokes it."""
    _revoke(operator, serial, RevocationReason.CERTIFICATE_HOLD, comment)


def _revoke(
    operator: Operator, serial: Serial, reason: RevocationReason, comment: str | None
) -> None:
    with operator.core() as core:
        record = core.ra.revoke(
            find_certificate(core, serial).enrollment,
            reason=reason,
            comment=comment,
            by=operator.by,
            origin=operator.origin,
        )
        said = "on hold" if record.on_hold else f"revoked ({reason})"
        told = _told(ocsp.OCSPCertStatus.REVOKED, core, record)
    click.echo(f"Certificate {record.serial_hex} is {said}. {told}")


@click.command("release")
@click.argument("serial", type=SERIAL)
@_comment
@click.pass_obj
def release_certificate(operator: Operator, serial: Serial, *, comment: str | None) -> None:
    """End the hold of a certificate; wait until our own OCSP says that it is good."""
    with operator.core() as core:
        record = core.ra.release(
            find_certificate(core, serial).enrollment,
            comment=comment,
            by=operator.by,
            origin=operator.origin,
        )
        state = record.state_at(core.clock.now())
        # What a recovery knows from a CRL alone was signed, but nobody has it.
        is_there = record.state is CertificateState.VALID
        status = ocsp.OCSPCertStatus.GOOD if is_there else ocsp.OCSPCertStatus.UNKNOWN
        told = _told(status, core, record)
    click.echo(f"Certificate {record.serial_hex} is on hold no more: {state}. {told}")


@click.command("revoke-selected")
@selecting
@_reason
@_comment
@click.option("--dry-run", is_flag=True, help="Only say which.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def revoke_many(
    operator: Operator,
    /,
    *,
    reason: str,
    comment: str | None,
    dry_run: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Revoke every valid certificate that fits all options; run again to go on after a crash."""
    revocation = Revocation(RevocationReason(reason), comment, operator.by)
    with operator.core() as core:
        if revocation.holds:
            require_holds(enabled=core.settings.revocation.hold)
        selection = revocation.among(selection_of(core, **options))
        number = core.store.read(lambda tx: count(tx, selection))
        if dry_run or not number:
            _preview(core, selection, number)
            return
        if not yes:
            for_good = "" if revocation.holds else " for good"
            confirm(f"Revoke {counted(number, 'certificate')}{for_good} ({reason})?")
        sample = core.store.read(lambda tx: select(tx, selection=selection, after=None, limit=1))
        done = revoke_selected(
            core.store,
            selection,
            revocation,
            operator.origin,
            progress=lambda done: hint(f"{done} of {number}"),
        )
        told = _told(ocsp.OCSPCertStatus.REVOKED, core, sample[0]) if sample else ""
    are = counted(done, "certificate is", "certificates are")
    click.echo(f"{are} revoked ({reason}). {told}".rstrip())


def _preview(core: Core, selection: Selection, number: int) -> None:
    first = core.store.read(lambda tx: select(tx, selection=selection, after=None, limit=20))
    for record in first:
        click.echo(f"{record.serial_hex}  {record.profile}  {record.subject}")
    if number > len(first):
        click.echo(f"... and {number - len(first)} more")
    fit = counted(number, "certificate fits", "certificates fit")
    click.echo(f"{fit}. Nothing was revoked.")


def _told(status: ocsp.OCSPCertStatus, core: Core, record: CertificateRecord) -> str:
    """Wait until no worker of any node says other than `status`; return a sentence about OCSP.

    To be called once the change is committed. Any of them may answer, and repeat for seconds what
    it said before; who is asked here is only one of them.
    """
    settled = time.monotonic() + FRESH_SECONDS
    deadline = time.monotonic() + _PATIENCE_SECONDS
    request = _question(core, record)
    hint(f"It is done; asking {request.full_url} until no older answer is repeated.")
    heard = False
    while True:
        try:
            left = max(_PAUSE_SECONDS, deadline - time.monotonic())
            with urlopen(request, timeout=left) as answer:  # noqa: S310 - see _question
                response = ocsp.load_der_ocsp_response(answer.read())
        except (OSError, HTTPException, ValueError) as error:
            # Who has answered once may be one of many, another of which starts just now.
            if not heard:
                return _unheard(request, _why(error))
            says = False
        else:
            heard = True
            says = (
                response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
                and response.certificate_status is status
            )
        now = time.monotonic()
        if says and now >= settled:
            return "OCSP says so."
        if now > deadline:
            return "OCSP DOES NOT SAY SO YET: look at `estserver doctor`."
        time.sleep(_PAUSE_SECONDS)


def _question(core: Core, record: CertificateRecord) -> Request:
    """Ask as clients do: with SHA-1 (RFC 5019 §2.1.1), and without a nonce."""
    hashed = {oid: (name, key) for oid, name, key in issuer_hashes(core.chains[record.issuer][0])}
    serial, sha1 = int(record.serial_hex, 16), hashes.SHA1()  # noqa: S303 - names the issuer
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(*hashed[_SHA1], serial, sha1)
    return Request(  # noqa: S310 - the URL is configuration
        f"{core.settings.listeners.status.url}/ocsp",
        builder.build().public_bytes(Encoding.DER),
        {"Content-Type": "application/ocsp-request"},
    )


def _unheard(request: Request, why: str) -> str:
    return (
        f"{request.full_url} (listeners.status.url) gave this machine no OCSP answer: {why}. So "
        f"nobody has looked: a server that runs says so within {FRESH_SECONDS} seconds, another "
        "once it starts. If only clients reach that URL (a balancer, NAT, another node), ask from "
        "there."
    )


def _why(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP status {error.code}"
    if not isinstance(error, OSError):
        return "what came is something else"
    reason = error.reason if isinstance(error, URLError) else error
    return trouble(reason) if isinstance(reason, OSError) else str(reason)
