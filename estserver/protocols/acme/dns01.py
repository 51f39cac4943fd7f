"""Proofs in TXT records: dns-01 (RFC 8555 §8.4) and dns-persist-01 (draft-ietf-acme-dns-persist).

Both are about names only: an address has no place of its own in DNS (RFC 8738 §7).
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence

from estserver.model import Clock
from estserver.protocols.acme.caa import read_issue_value
from estserver.protocols.acme.challenge import Challenge, ChallengeFailed
from estserver.protocols.acme.lookups import Lookups


class DNS01:
    """Looks for the digest of the key authorization."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups

    async def validate(self, challenge: Challenge) -> None:
        """Raise ChallengeFailed unless one of the TXT records is the digest; others do not matter.

        Problems: dns; unauthorized where there are no TXT records; incorrectResponse.
        """
        digest = hashlib.sha256(challenge.key_authorization.encode("ascii")).digest()
        wanted = base64.urlsafe_b64encode(digest).rstrip(b"=")
        where = f"_acme-challenge.{challenge.identifier}"
        values = await _texts(self._lookups, where, challenge)
        if not any(hmac.compare_digest(value, wanted) for value in values):
            raise ChallengeFailed(
                "incorrectResponse", f"no TXT record of {where} is the digest of this challenge"
            )


class DNSPersist01:
    """Looks for a standing permission: this CA, by one of its `identities`, and the account.

    A record speaks for the name it stands at alone; `policy=wildcard` adds the wildcard beneath.
    """

    def __init__(self, lookups: Lookups, identities: Sequence[str], clock: Clock) -> None:
        self._lookups = lookups
        self._identities = frozenset(name.lower() for name in identities)
        self._clock = clock

    async def validate(self, challenge: Challenge) -> None:
        """Raise ChallengeFailed unless one of the TXT records permits it now.

        Problems: dns; unauthorized where no record permits it.
        """
        now = int(self._clock.now().timestamp())
        where = f"_validation-persist.{challenge.identifier}"
        values = await _texts(self._lookups, where, challenge)
        if not any(self._permits(value, challenge, now) for value in values):
            raise ChallengeFailed(
                "unauthorized", f"no TXT record of {where} permits this account to do this now"
            )

    def _permits(self, text: bytes, challenge: Challenge, now: int) -> bool:
        value = read_issue_value(text)
        if value is None or value.issuer not in self._identities:
            return False
        # A parameter given twice says nothing that could be relied on.
        if any(len(values) > 1 for values in value.parameters.values()):
            return False
        given = {tag: values[0] for tag, values in value.parameters.items()}
        if given.get("accounturi") != challenge.account_uri:
            return False
        if challenge.wildcard and given.get("policy", "").lower() != "wildcard":
            return False
        until = given.get("persistuntil")
        # Seconds since 1970; what is not a number has no meaning that would permit.
        return until is None or (until.isascii() and until.isdigit() and now <= int(until))


async def _texts(lookups: Lookups, where: str, challenge: Challenge) -> tuple[bytes, ...]:
    if challenge.identifier_type != "dns":
        raise ChallengeFailed("unauthorized", f"an address cannot be validated by {challenge.type}")
    values = await lookups.texts(where)
    if not values:
        raise ChallengeFailed("unauthorized", f"{where} has no TXT records")
    return values
