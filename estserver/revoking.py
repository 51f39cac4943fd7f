"""Revocation: what its transaction checks and writes, for one certificate or for many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from estserver import notices
from estserver.errors import Conflict, NotFound
from estserver.model import CertificateRecord, CertificateState, Event, Origin, RevocationReason
from estserver.store import Store, Transaction, certificates, revocations
from estserver.store.selection import Selection, select

_BATCH = 200


@dataclass(frozen=True, slots=True)
class Revocation:
    """Why and by whom something is revoked; `comment` is for the officers, not for the owner."""

    reason: RevocationReason
    comment: str | None
    by: str


def revoke(
    tx: Transaction, identifier: str, revocation: Revocation, origin: Origin
) -> CertificateRecord:
    """Revoke a certificate, signed or only intended; return its row as it was before.

    A compromised key is blocked for ever. The owner is told, unless it is the server that clears
    away what was renewed. Raises NotFound, Conflict (revoked before).
    """
    record = certificates.certificate(tx, identifier)
    if record is None:
        raise NotFound("there is no such certificate")
    reason, by = revocation.reason, revocation.by
    if reason is RevocationReason.KEY_COMPROMISE:
        # Key before certificate, the order in which a renewal looks at them.
        revocations.block_key(tx, record.spki_sha256, reason.value)
    if not revocations.revoke(tx, identifier, reason=reason, comment=revocation.comment):
        raise Conflict(f"the certificate with serial {record.serial_hex} is revoked already")
    tx.audit(
        Event(
            "certificate.revoked",
            by,
            f"certificate {record.serial_hex}",
            {"reason": reason.value, "comment": revocation.comment, "enrollment": identifier},
        ),
        origin,
    )
    if by != "server" and record.state is CertificateState.VALID:
        notices.tell_revoked(tx, record, reason)
    return record


def revoke_selected(
    store: Store,
    selection: Selection,
    revocation: Revocation,
    origin: Origin,
    progress: Callable[[int], None] = lambda _done: None,
) -> int:
    """Revoke every unrevoked certificate of a selection; return how many.

    In batches, each durable when `progress` is told of it, so that the same call goes on where a
    crash ended it. Raises Unavailable.
    """
    revoked = 0
    last: str | None = None
    while found := store.read(partial(select, selection=selection, after=last, limit=_BATCH)):
        last = found[-1].enrollment
        revoked += store.write(partial(_revoke_batch, found, revocation, origin))
        progress(revoked)
    return revoked


def _revoke_batch(
    found: Sequence[CertificateRecord],
    revocation: Revocation,
    origin: Origin,
    tx: Transaction,
) -> int:
    revoked = 0
    for record in found:
        present = certificates.certificate(tx, record.enrollment)
        # Somebody else may have been faster.
        if present is not None and present.state is not CertificateState.REVOKED:
            revoke(tx, record.enrollment, revocation, origin)
            revoked += 1
    return revoked
