"""A large database made quickly: one certificate that was really issued, many times over.

Every column that nobody knows here keeps the value the real one had, so that the schema may grow.
Indexes are dropped for the while and made again, as any bulk load does; what is unique counts up,
since indexes of constraints cannot be dropped. SQLite only.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from estserver.store.findable import terms_of

_DAY = 86400
_SPREAD = 400 * _DAY
_LIFE = 365 * _DAY
_FIRST_NAMES = ("aiko", "ben", "chiyo", "dan", "emi", "fumio", "george", "hana", "ichiro", "jun")


@dataclass(frozen=True, slots=True)
class Large:
    """What a large database holds: how many certificates, and what can be looked for."""

    count: int
    template: str
    """The enrollment that was really made."""

    def enrollment(self, number: int) -> str:
        """Return the id of a made-up enrollment."""
        return f"{number:022d}"

    def invitation(self, number: int) -> str:
        """Return the number of its invitation."""
        return f"{number:010d}"

    def serial(self, number: int) -> int:
        """Return its serial, of 20 octets."""
        return (1 << 157) + number

    def digest(self, number: int) -> bytes:
        """Return the 32 octets that stand for the SHA-256 of its DER."""
        return number.to_bytes(32)

    def key_digest(self, number: int) -> bytes:
        """Return the 32 octets that stand for the SHA-256 of its public key."""
        return number.to_bytes(32)

    def label(self, number: int) -> str:
        """Return the first part of its host name and its common name."""
        return f"{_FIRST_NAMES[number % 10]}{number:07d}"


def fill(database: Path, count: int, *, revoked_every: int) -> Large:
    """Put `count` certificates into an instance's database that holds one; nothing may run on it.

    Every n-th is revoked, as of yesterday. The oldest began 400 days ago and all live for a year,
    so that some are expired, and they lie where lists come to last.
    """
    with _bulk_loading(database) as connection:
        connection.row_factory = sqlite3.Row
        certificate = dict(
            connection.execute(
                "SELECT * FROM certificates WHERE invitation IS NOT NULL LIMIT 1"
            ).fetchone()
        )
        large = Large(count, certificate["enrollment"])
        enrollment = dict(
            connection.execute(
                "SELECT * FROM enrollments WHERE id = ?", (large.template,)
            ).fetchone()
        )
        invitation = dict(
            connection.execute(
                "SELECT * FROM invitations WHERE number = ?", (certificate["invitation"],)
            ).fetchone()
        )
        now = int(time.time())
        connection.execute("BEGIN")
        tables = ("invitations", "search_terms", "enrollments", "certificates")
        again = _drop_indexes(connection, tables)
        _insert(connection, "invitations", _invitations(large, invitation))
        _insert(connection, "search_terms", _search_terms(large))
        _insert(connection, "enrollments", _enrollments(large, enrollment))
        _insert(connection, "certificates", _certificates(large, certificate, now, revoked_every))
        for statement in again:
            connection.execute(statement)
        connection.execute("COMMIT")
    return large


def revoke_all(database: Path, large: Large) -> None:
    """Revoke all that was made up, over the last year; none is expired any more.

    Nothing may run on the database.
    """
    now = int(time.time())
    with _bulk_loading(database) as connection:
        connection.execute("BEGIN")
        again = _drop_indexes(connection, ("certificates",))
        connection.execute(
            "UPDATE certificates SET state = 'revoked', reason = 'superseded', "
            " revoked_at = ? - rowid % ?, not_after = ? WHERE enrollment < ?",
            (now - _DAY, _LIFE, now + _LIFE, large.enrollment(large.count)),
        )
        for statement in again:
            connection.execute(statement)
        connection.execute("COMMIT")


@contextmanager
def _bulk_loading(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for work that is begun anew if it is interrupted."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -500000"):
            connection.execute(f"PRAGMA {pragma}")
        yield connection
        connection.execute("PRAGMA journal_mode = WAL")


def _drop_indexes(connection: sqlite3.Connection, tables: Iterable[str]) -> list[str]:
    """Drop the tables' indexes but those of constraints; return what makes them again."""
    statements = []
    for table in tables:
        rows = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ?"
            " AND sql IS NOT NULL",
            (table,),
        ).fetchall()
        for row in rows:
            connection.execute(f"DROP INDEX {row[0]}")
            statements.append(row[1])
    return statements


def _insert(connection: sqlite3.Connection, table: str, rows: Iterator[dict[str, object]]) -> None:
    first = next(rows)
    columns = ", ".join(f'"{name}"' for name in first)
    marks = ", ".join("?" * len(first))
    statement = f"INSERT INTO {table} ({columns}) VALUES ({marks})"
    connection.execute(statement, tuple(first.values()))
    connection.executemany(statement, (tuple(row.values()) for row in rows))


def _invitations(large: Large, real: dict[str, object]) -> Iterator[dict[str, object]]:
    for number in range(large.count):
        label = large.label(number)
        yield real | {
            "number": large.invitation(number),
            "name": label,
            "email": f"{label}@example.org",
            "units": 1,
            "units_used": 1,
            "pin_hash": large.digest(number),
            "url_hash": large.key_digest(number),
        }


def _search_terms(large: Large) -> Iterator[dict[str, object]]:
    for number in range(large.count):
        label = large.label(number)
        for term in sorted(terms_of(label, f"{label}@example.org", None, ())):
            yield {"term": term, "number": large.invitation(number)}


def _enrollments(large: Large, real: dict[str, object]) -> Iterator[dict[str, object]]:
    for number in range(large.count):
        key = large.key_digest(number)
        yield real | {
            "id": large.enrollment(number),
            "invitation": large.invitation(number),
            "correlation": f"bulk:{number}",
            "authority_key": f"bulk:{number}",
            "spki_sha256": key,
        }


def _certificates(
    large: Large, real: dict[str, object], now: int, revoked_every: int
) -> Iterator[dict[str, object]]:
    for number in range(large.count):
        revoked = number % revoked_every == 0
        begun = now - (large.count - number) * _SPREAD // large.count
        label = large.label(number)
        yield real | {
            "enrollment": large.enrollment(number),
            "serial": f"{large.serial(number):040x}",
            "invitation": large.invitation(number),
            "subject": f"CN={label}",
            "names": f'["dns:{label}.example.org", "email:{label}@example.org"]',
            "state": "revoked" if revoked else "valid",
            "not_before": begun,
            "not_after": begun + _LIFE,
            "sha256": large.digest(number),
            "spki_sha256": large.key_digest(number),
            "created_at": begun,
            "revoked_at": now - _DAY if revoked else None,
            "reason": "superseded" if revoked else None,
        }
