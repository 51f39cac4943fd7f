"""Revocation: what its transaction checks and writes, for one certificate or for many.

For good, or on hold until somebody releases or revokes it, where the instance has holds at all.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from estserver import notices
from estserver.errors import BadInput, Conflict, NotFound
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

    @property
    def holds(self) -> bool:
        """Whether it is one that can be taken back."""
        return self.reason is RevocationReason.CERTIFICATE_HOLD

    def among(self, selection: Selection) -> Selection:
        """Return what it can hit of a selection: what is on hold can still be revoked for good."""
        return replace(selection, held=not self.holds)


def require_holds(*, enabled: bool) -> None:
    """Raise BadInput where the instance has no holds."""
    if not enabled:
        raise BadInput(
            "certificates are not put on hold or released here: `hold = true` under [revocation] "
            "in the configuration allows it; until then give a reason that is final"
        )


def revoke(
    tx: Transaction, identifier: str, revocation: Revocation, origin: Origin
) -> CertificateRecord:
    """Revoke a certificate, signed or only intended; return its row as it was before.

    A hold is only for one that is signed and valid, and can become a revocation for good. A
    compromised key is blocked for ever. The owner is told, unless it is the server that clears
    away what was renewed. Raises NotFound, Conflict (revoked before, not to be held).
    """
    record = _required(tx, identifier)
    reason, by = revocation.reason, revocation.by
    if reason is RevocationReason.KEY_COMPROMISE:
        # Key before certificate, the order in which a renewal looks at them.
        revocations.block_key(tx, record.spki_sha256, reason.value)
    if revocation.holds:
        if not revocations.hold(tx, identifier, comment=revocation.comment):
            raise Conflict(_why_no_hold(_required(tx, identifier), tx))
    elif not revocations.revoke(tx, identifier, reason=reason, comment=revocation.comment):
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
    if revocation.holds:
        notices.tell_held(tx, record)
    elif by != "server" and (record.state is CertificateState.VALID or record.on_hold):
        notices.tell_revoked(tx, record, reason)
    return record


def release(
    tx: Transaction, identifier: str, *, comment: str | None, by: str, origin: Origin
) -> CertificateRecord:
    """End the hold of a certificate; return its row as it is now. The owner is told.

    Raises NotFound, Conflict (it is not on hold, or revoked for good).
    """
    if not revocations.release(tx, identifier):
        record = _required(tx, identifier)
        about = f"the certificate with serial {record.serial_hex}"
        if record.state is CertificateState.REVOKED:
            raise Conflict(f"{about} is revoked for good ({record.reason}), not on hold")
        raise Conflict(f"{about} is not on hold: it is {record.state_at(tx.now).value}")
    record = _required(tx, identifier)
    tx.audit(
        Event(
            "certificate.released",
            by,
            f"certificate {record.serial_hex}",
            {"comment": comment, "enrollment": identifier},
        ),
        origin,
    )
    if record.state_at(tx.now) is CertificateState.VALID:
        notices.tell_released(tx, record)
    return record


def _required(tx: Transaction, identifier: str) -> CertificateRecord:
    record = certificates.certificate(tx, identifier)
    if record is None:
        raise NotFound("there is no such certificate")
    return record


def _why_no_hold(record: CertificateRecord, tx: Transaction) -> str:
    about = f"the certificate with serial {record.serial_hex}"
    match record.state_at(tx.now):
        case CertificateState.REVOKED:
            return f"{about} is {'on hold' if record.on_hold else 'revoked'} already"
        case CertificateState.EXPIRED:
            return f"{about} has expired: nobody takes it any more"
        case _:
            return f"{about} is not signed, so it cannot be put on hold: revoke it for good"


def revoke_selected(
    store: Store,
    selection: Selection,
    revocation: Revocation,
    origin: Origin,
    progress: Callable[[int], None] = lambda _done: None,
) -> int:
    """Revoke every certificate of a selection that is not, or put it on hold; return how many.

    In batches, each durable when `progress` is told of it, so that the same call goes on where a
    crash ended it. Raises Unavailable.
    """
    selection = revocation.among(selection)
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
        # Somebody else may have been faster, or time: then it is not hit.
        with suppress(Conflict):
            revoke(tx, record.enrollment, revocation, origin)
            revoked += 1
    return revoked
