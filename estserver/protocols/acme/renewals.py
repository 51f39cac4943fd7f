"""Renewal information and what replaces what: RFC 9773."""

from collections.abc import Sequence

from estserver.errors import BadInput
from estserver.model import ACMEOrder, CertificateRecord, CertificateState
from estserver.protocols import Services
from estserver.protocols.acme import records
from estserver.protocols.acme.answers import Answer
from estserver.protocols.acme.problems import Identifier, malformed, unauthorized
from estserver.protocols.acme.records import Account
from estserver.renewal_information import ASK_AGAIN_SECONDS, RenewalInformation, as_json
from estserver.steps import Steps, look, walk
from estserver.store import Transaction, certificates


class Predecessors:
    """Finds the certificate that an identifier means."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._information = RenewalInformation(services.store, services.clock, services.chains)

    def requiring(
        self, text: object, account: Account, identifiers: Sequence[Identifier]
    ) -> Steps[None]:
        """Check that an order of `identifiers` may replace the certificate `text` names (§5).

        Raises Problem malformed, unauthorized; NotFound.
        """
        record = yield from self._finding(text)
        if (yield from look(lambda tx: account_of(tx, record))) != account.id:
            raise unauthorized("the certificate to be replaced is another account's")
        wanted = {f"{identifier.type}:{identifier.value}" for identifier in identifiers}
        if not wanted & set(record.names):
            raise malformed("the certificate to be replaced has none of these identifiers")

    def information(self, text: str) -> Answer:
        """Suggest when to renew a certificate (§4.2)."""
        record = walk(self._finding(text), self._services.store)
        window = self._information.window_of(record)
        early = record.state is CertificateState.REVOKED and not record.on_hold
        website = self._services.settings.acme.website if early else None
        return Answer(as_json(window, website), retry_after=ASK_AGAIN_SECONDS)

    def _finding(self, text: object) -> Steps[CertificateRecord]:
        try:
            return (yield from self._information.finding(text))
        except BadInput as error:
            raise malformed(error.detail) from error


def account_of(tx: Transaction, record: CertificateRecord) -> str | None:
    """Return the account whose order a certificate came from, None if it came otherwise."""
    enrollment = certificates.enrollment(tx, record.enrollment)
    identifier = None if enrollment is None else ACMEOrder.of(enrollment.authority_key)
    order = None if identifier is None else records.order(tx, identifier)
    return None if order is None else order.account
