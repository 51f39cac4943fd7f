"""estserver with one bug planted: the certificate leaves before it is stored.

Proves that the fault tests can fail. Storing happens in a thread a moment after delivery.
"""

import threading

from estserver import intents
from estserver.cli import main
from estserver.model import Draft, Issued, Origin
from estserver.ra import RegistrationAuthority


def _deliver_first(
    self: RegistrationAuthority, identifier: str, draft: Draft, origin: Origin
) -> Issued:
    der = self._issuers[draft.issuer].sign(draft)
    threading.Timer(
        0.5, lambda: self._store.write(lambda tx: intents.put(tx, identifier, der, origin))
    ).start()
    return Issued(identifier, der, repeated=False)


RegistrationAuthority._sign_and_store = _deliver_first  # type: ignore[method-assign]
main()
