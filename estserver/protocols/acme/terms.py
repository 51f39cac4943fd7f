"""Agreeing to new terms of service: the page that a refused client sends its owner to.

RFC 8555 §7.3.3: the problem's `instance` is a URL "that the client should direct a human user to
visit … for instructions on how to agree to the terms". The URL is sealed, so it is nobody else's.
"""

from html import escape

from estserver.errors import BadInput, NotFound
from estserver.model import Event, Origin
from estserver.protocols import Services
from estserver.protocols.acme import records
from estserver.protocols.acme.answers import Answer
from estserver.protocols.acme.records import Account
from estserver.protocols.acme.urls import URLs
from estserver.store import Transaction

_PURPOSE = "acme-terms"
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Terms of service</title></head>
<body><h1>Terms of service</h1>{}</body></html>
"""


class Terms:
    """Makes and answers the URLs at which new terms are agreed to."""

    def __init__(self, services: Services, urls: URLs) -> None:
        self._services = services
        self._urls = urls

    def instance(self, account: Account, terms: str) -> str:
        """Return the URL at which the owner of an account agrees to the terms at `terms`."""
        token = self._services.keyring.seal(_PURPOSE, f"{account.id}\n{terms}".encode())
        return self._urls(f"terms/{token}")

    def show(self, token: str) -> Answer:
        """Show what is to be agreed to, and a button. Raises NotFound."""
        _, terms = self._open(token)
        link = escape(terms, quote=True)
        return _page(
            f'<p>The terms have changed: <a href="{link}">{link}</a></p>'
            '<form method="post"><button name="agree">I agree for my ACME account</button></form>'
        )

    def agree(self, token: str, origin: Origin) -> Answer:
        """Note that the owner agrees. Raises NotFound."""
        account, terms = self._open(token)

        def unit(tx: Transaction) -> None:
            if not records.agree(tx, account, terms=terms):
                raise NotFound("this account is closed")
            actor = f"account {account}"
            tx.audit(Event("account.agreed", actor, actor, {"terms": terms}), origin)

        self._services.store.write(unit)
        return _page("<p>Thank you. Your client can go on.</p>")

    def _open(self, token: str) -> tuple[str, str]:
        try:
            content = self._services.keyring.unseal(_PURPOSE, token).decode()
        except BadInput as error:
            raise NotFound("there is nothing here: begin at the directory") from error
        account, _, terms = content.partition("\n")
        if terms != self._services.settings.acme.terms_of_service:
            raise NotFound("these terms are not the present ones: run your client again")
        return account, terms


def _page(body: str) -> Answer:
    return Answer(content=_PAGE.format(body).encode(), content_type="text/html; charset=utf-8")
