"""What commands about records share: their options, pages read until enough, one found."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import click

from estserver.cli.operator import Serial
from estserver.cli.output import hint
from estserver.core import Core
from estserver.errors import Conflict, NotFound
from estserver.model import CertificateRecord
from estserver.store import certificates as certificate_rows

T = TypeVar("T")
_PAGE = 500
_SHOWN = 100
LIMIT = click.option(
    "--limit",
    type=click.IntRange(0),
    metavar="N",
    help=f"The newest N; 0 for all [default: {_SHOWN} in a table, all in JSON].",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
CLIENTS = click.option(
    "--clients", "every_client", is_flag=True, help="Print commands for every ACME client."
)


def collect(
    page: Callable[[T | None, int], Sequence[T]], limit: int | None, *, as_json: bool
) -> list[T]:
    """Read pages until `limit`; `page` takes the last item of the page before and a size.

    Says so when a table leaves something out.
    """
    wanted = (0 if as_json else _SHOWN) if limit is None else limit
    found: list[T] = []
    last: T | None = None
    while not wanted or len(found) <= wanted:
        part = page(last, _PAGE)
        found += part
        if len(part) < _PAGE:
            break
        last = part[-1]
    if wanted and len(found) > wanted:
        del found[wanted:]
        if not as_json:
            hint(f"The newest {wanted} only: --limit 0 shows all.")
    return found


def find_certificate(core: Core, serial: Serial) -> CertificateRecord:
    """Find the one certificate that was meant. Raises NotFound, Conflict."""
    found = core.store.read(
        lambda tx: [
            record for number in serial.numbers for record in certificate_rows.by_serial(tx, number)
        ]
    )
    if not found:
        raise NotFound(f"there is no certificate with serial {serial.text}")
    if len(found) > 1:
        meant = ", ".join(f"0x{record.serial_hex}" for record in found)
        raise Conflict(f"serial {serial.text} can mean several certificates: {meant}")
    return found[0]
