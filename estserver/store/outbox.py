"""Outgoing mail: rows of the outbox in, frozen values out."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from estserver.model import CertificateState, Invitation, Language
from estserver.store.engine import Transaction, from_unix, to_unix
from estserver.store.tables import certificates, invitations
from estserver.store.tables import outbox as rows

ADMINISTRATOR = "administrator"
"""Recipient of letters to whoever administers the service when they leave."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail in the outbox: rendered when it is sent, so that no secret lies here."""

    id: str
    template: str
    invitation: str | None
    recipient: str
    language: Language
    values: dict[str, str]
    state: str
    tries: int
    created_at: datetime
    error: str | None


def _letter(row: sa.Row[Any]) -> Letter:
    return Letter(
        id=row.id,
        template=row.template,
        invitation=row.invitation,
        recipient=row.recipient,
        language=Language(row.language),
        values=row._mapping["values"],  # noqa: SLF001 - Row.values is a method
        state=row.state,
        tries=row.tries,
        created_at=from_unix(row.created_at),
        error=row.error,
    )


def post(
    tx: Transaction,
    *,
    identifier: str,
    template: str,
    invitation: Invitation,
    recipient: str,
    values: dict[str, str],
) -> bool:
    """Put a mail into the outbox; False if `identifier` lies there already."""
    return tx.insert_new(
        rows,
        id=identifier,
        template=template,
        invitation=invitation.number,
        recipient=recipient,
        language=invitation.language.value,
        values=values,
        state="queued",
        tries=0,
        created_at=tx.at,
        due_at=tx.at,
    )


def tell_administrator(
    tx: Transaction, template: str, invitation: Invitation, once: str, values: dict[str, str]
) -> None:
    """Put a letter to the administrator into the outbox, one for each `once`."""
    post(
        tx,
        identifier=f"{template}-{once}",
        template=template,
        invitation=invitation,
        recipient=ADMINISTRATOR,
        values=values,
    )


def due(tx: Transaction, *, limit: int = 20) -> Sequence[Letter]:
    """List queued mail whose time has come, oldest first."""
    query = (
        sa.select(rows)
        .where(rows.c.state == "queued", rows.c.due_at <= tx.at)
        .order_by(rows.c.due_at, rows.c.id)
        .limit(limit)
    )
    return [_letter(row) for row in tx.connection.execute(query)]


def of_invitation(tx: Transaction, number: str) -> Sequence[Letter]:
    """List all mail about an invitation, oldest first."""
    query = sa.select(rows).where(rows.c.invitation == number).order_by(rows.c.id)
    return [_letter(row) for row in tx.connection.execute(query)]


def lease(tx: Transaction, letter: Letter, *, until: datetime) -> bool:
    """Take a letter for sending: nobody else will before `until`. False if somebody has."""
    changed = tx.change(
        sa.update(rows)
        .where(
            rows.c.id == letter.id,
            rows.c.state == "queued",
            rows.c.due_at <= tx.at,
            rows.c.tries == letter.tries,
        )
        .values(due_at=to_unix(until), tries=letter.tries + 1)
    )
    return changed == 1


def sent(tx: Transaction, identifier: str) -> None:
    """Note that the mail server has taken the letter."""
    tx.change(
        sa.update(rows)
        .where(rows.c.id == identifier)
        .values(state="sent", sent_at=tx.at, error=None)
    )


def delayed(tx: Transaction, identifier: str, *, error: str, again_at: datetime | None) -> None:
    """Note a failed try; `again_at` None gives up."""
    values: dict[str, object] = {"error": error}
    if again_at is None:
        values["state"] = "failed"
    else:
        values["due_at"] = to_unix(again_at)
    tx.change(sa.update(rows).where(rows.c.id == identifier).values(**values))


def get(tx: Transaction, identifier: str) -> Letter | None:
    """Find a letter by its id."""
    row = tx.connection.execute(sa.select(rows).where(rows.c.id == identifier)).one_or_none()
    return None if row is None else _letter(row)


def page(
    tx: Transaction, state: str | None, *, before: Letter | None = None, limit: int = 100
) -> Sequence[Letter]:
    """List letters, newest first, optionally of one state; `before` continues a page."""
    query = sa.select(rows).order_by(rows.c.created_at.desc(), rows.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(rows.c.state == state)
    if before is not None:
        here = sa.tuple_(rows.c.created_at, rows.c.id)
        query = query.where(here < sa.tuple_(to_unix(before.created_at), before.id))
    return [_letter(row) for row in tx.connection.execute(query)]


def send_again(tx: Transaction, identifier: str) -> bool:
    """Queue a letter that was sent or given up once more; False if it waits already, or is none.

    It stays the same letter, under the same Message-ID; its time to be given up begins anew.
    """
    changed = tx.change(
        sa.update(rows)
        .where(rows.c.id == identifier, rows.c.state != "queued")
        .values(state="queued", tries=0, due_at=tx.at, created_at=tx.at, error=None)
    )
    return changed == 1


def ending(
    tx: Transaction, letter: str, *, profile: str, after: datetime, until: datetime
) -> list[str]:
    """List valid certificates that end after `after` and not after `until`, and were not renewed.

    Those whose owner has an address and did not get the letter `letter` about it yet; enrollment
    ids, a thousand at most. A letter's id is its name, a hyphen and the enrollment.
    """
    newer = certificates.alias()
    renewed = sa.exists().where(
        newer.c.renews == certificates.c.enrollment, newer.c.state == CertificateState.VALID.value
    )
    told = sa.exists().where(rows.c.id == sa.literal(f"{letter}-") + certificates.c.enrollment)
    query = (
        sa.select(certificates.c.enrollment)
        .join(invitations, invitations.c.number == certificates.c.invitation)
        .where(
            certificates.c.not_after > to_unix(after),
            certificates.c.not_after <= to_unix(until),
            certificates.c.profile == profile,
            # In a way that tempts no planner to walk along all that is valid.
            certificates.c.state + "" == CertificateState.VALID.value,
            invitations.c.email.is_not(None),
            ~renewed,
            ~told,
        )
        .order_by(certificates.c.not_after, certificates.c.enrollment)
        .limit(1000)
    )
    return list(tx.connection.execute(query).scalars())
