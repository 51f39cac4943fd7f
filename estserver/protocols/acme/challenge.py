"""What a validator is asked, and how it says no."""

from dataclasses import dataclass

from estserver.errors import Refused


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge to be validated now, with everything that the validator may know.

    `type` is http-01, dns-01 or tls-alpn-01; `identifier_type` dns or ip. `identifier` is the host
    name in lower case and A-labels, without `*.` even where `wildcard` is true, or the address in
    the form of RFC 5952. `key_authorization` is the token, a dot and the thumbprint of the account
    key at the time of the client's response (RFC 8555 §8.1). `account_uri` is what a CAA record
    may name (RFC 8657 §3).
    """

    type: str
    identifier_type: str
    identifier: str
    wildcard: bool
    token: str
    key_authorization: str
    account_uri: str


class ChallengeFailed(Refused):
    """The identifier was not shown to be the account's; `problem` is an ACME error type.

    One of connection, dns, unauthorized, incorrectResponse, tls, caa (RFC 8555 §6.7). The detail
    never repeats what the other side has sent.
    """

    code = "challenge-failed"

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem
