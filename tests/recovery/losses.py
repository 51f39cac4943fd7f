"""An instance that loses its disk, and what is told of it after."""

import base64
import shutil
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from click.testing import Result
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.invitations import Handover
from estserver.store import Store
from estserver.store.tables import blocked_keys
from tests.command_line import Shell
from tests.live import Answer, Holder, Key, Live, basic, make_csr, new_key


def run(directory: Path, *arguments: str, status: int = 0) -> Result:
    return Shell(directory).run(*arguments, status=status)


def revoke(live: Live, holder: Holder, reason: str = "superseded") -> None:
    run(
        live.directory,
        *("certificates", "revoke", f"{holder.certificate.serial_number:x}", "--reason", reason),
    )


def ask(live: Live, handover: Handover, key: Key | None = None) -> Answer:
    """Enroll with a PIN, whatever comes of it."""
    return live.request(
        "POST",
        "/.well-known/est/simpleenroll",
        body=base64.b64encode(make_csr(key or new_key())),
        headers={"Content-Type": "application/pkcs10", "Authorization": basic(handover)},
    )


def der(holder: Holder) -> bytes:
    return holder.certificate.public_bytes(Encoding.DER)


def lose_and_restore(live: Live, backup: Path) -> None:
    """Take the instance's disk away, and put the backup in its place."""
    live.stop()
    shutil.rmtree(live.directory)
    run(live.directory, "restore", str(backup))


def blocked(live: Live) -> list[bytes]:
    """List the SHA-256 of the keys that are blocked for ever."""
    with closing(Store(live.settings.database_url, live.clock)) as store:
        query = sa.select(blocked_keys.c.spki_sha256)
        return store.read(lambda tx: [bytes(one) for one in tx.connection.scalars(query)])
