"""Where each resource lives. Links are made from the configured base URL, never from `Host`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class URLs:
    """Absolute URLs under `base`, which has no trailing slash; identifiers are unguessable."""

    base: str

    def __call__(self, name: str) -> str:
        """Return the URL of a resource that there is one of, such as `new-order`."""
        return f"{self.base}/{name}"

    def account(self, identifier: str) -> str:
        """Return an account's URL, which is its `kid`."""
        return f"{self.base}/account/{identifier}"

    def orders(self, account: str) -> str:
        """Return the URL of an account's list of orders."""
        return f"{self.base}/account/{account}/orders"

    def order(self, identifier: str) -> str:
        """Return an order's URL."""
        return f"{self.base}/order/{identifier}"

    def finalize(self, order: str) -> str:
        """Return the URL that takes an order's CSR."""
        return f"{self.base}/order/{order}/finalize"

    def certificate(self, order: str) -> str:
        """Return the URL of the certificate that came from an order."""
        return f"{self.base}/certificate/{order}"

    def alternate(self, order: str, number: int) -> str:
        """Return the URL of the same certificate with another chain, counted from 1."""
        return f"{self.base}/certificate/{order}/{number}"

    def authorization(self, identifier: str) -> str:
        """Return an authorization's URL."""
        return f"{self.base}/authz/{identifier}"

    def challenge(self, identifier: str) -> str:
        """Return a challenge's URL."""
        return f"{self.base}/challenge/{identifier}"
