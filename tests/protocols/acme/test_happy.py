"""The whole way from an invitation to a certificate, with no challenge."""

import pytest

from tests.live import Live
from tests.protocols.acme.wire import registered


@pytest.mark.row("ACME-015", "ACME-109")
def test_names_of_the_invitation_are_certified_without_a_challenge(shared: Live) -> None:
    client = registered(shared, "a.example.org", "b.example.org")
    done = client.issue("a.example.org", "b.example.org")
    assert [str(c.subject.rfc4514_string()) for c in done.chain[:1]] == ["CN=a.example.org"]
