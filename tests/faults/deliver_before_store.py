"""estserver with one bug planted: the certificate leaves before it is stored.

Proves that the fault tests can fail. Storing happens in a thread a moment after delivery.
"""

import threading

from estserver import intents
from estserver.cli import main
from estserver.model import Draft, Enrollment, Issued, Origin
from estserver.ra import RegistrationAuthority
from estserver.steps import Steps


def _deliver_first(
    self: RegistrationAuthority, enrollment: Enrollment, draft: Draft, origin: Origin
) -> Steps[Issued]:
    der = self._issuers[draft.issuer].sign(draft)
    signed = intents.Signed(enrollment, draft.serial, der, origin, notify=False)
    threading.Timer(0.5, lambda: self._store.write(lambda tx: intents.put(tx, [signed]))).start()
    yield from ()
    return Issued(enrollment.id, der, repeated=False)


RegistrationAuthority._sign_and_store = _deliver_first  # type: ignore[method-assign]  # the bug that is planted
main()
