"""Linking identity and proof of possession: the CSR was signed for this very TLS connection.

RFC 7030 §3.5: the client puts base64 of the connection's tls-unique value into challengePassword
(RFC 7894: into estIdentityLinking), and "the server MUST verify it".
"""

import base64
import hmac
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from estserver import pin
from estserver.csr import CSR, NamesOnly
from estserver.errors import BadCredentials, IncompleteCSR, LinkingFailed, MistypedPIN
from estserver.model import Secret

Policy = Literal["off", "optional", "required"]
NONE = "none"
TLS_UNIQUE = "tls-unique"
_FAILED = "the linking of identity and POP failed: "


@dataclass(frozen=True, slots=True)
class Channel:
    """What of a TLS connection a CSR can be bound to.

    `version` as OpenSSL spells it (`TLSv1.2`), None where TLS ended at a proxy. `tls_unique` is
    the first Finished message of the newest handshake (RFC 5929 §3.1), None where undefined.
    """

    version: str | None
    tls_unique: bytes | None


def channel_of(request: web.Request) -> Channel:
    """Return the channel that `request` came over."""
    transport = request.transport
    ssl_object = None if transport is None else transport.get_extra_info("ssl_object")
    if ssl_object is None:
        return Channel(None, None)
    version: str | None = ssl_object.version()
    # RFC 8446 App. C.5: tls-unique is not defined for TLS 1.3; Python returns octets all the same.
    unique = ssl_object.get_channel_binding(TLS_UNIQUE) if version == "TLSv1.2" else None
    return Channel(version, unique)


def verify_linking(csr: CSR | NamesOnly, channel: Channel, policy: Policy) -> str:
    """Check what the CSR says it is bound to; return the proof to be recorded.

    Every value that is there must be right. `off` ignores the values, as a house needs whose
    devices write other things there; that is less than RFC 7030 §3.5 asks, hence not the default.
    Raises LinkingFailed (wrong, cannot be checked, or the PIN), IncompleteCSR (required, absent).
    """
    given = [value for value in (csr.challenge_password, csr.identity_linking) if value is not None]
    if any(_looks_like_pin(value) for value in given):
        raise LinkingFailed(
            f"{_FAILED}challengePassword holds what looks like the PIN; "
            "send the PIN as the password of HTTP Basic and leave challengePassword out"
        )
    if policy == "off":
        return NONE
    if not given:
        if policy == "required":
            raise IncompleteCSR(
                "the linking of identity and POP is required: put base64 of the tls-unique value "
                "of this TLS 1.2 connection into challengePassword (RFC 7030 section 3.5)"
            )
        return NONE
    expected = _expected(channel)
    # Every comparison is made, so that time does not tell which one failed.
    right = [hmac.compare_digest(value.reveal().encode(), expected) for value in given]
    if not all(right):
        raise LinkingFailed(
            f"{_FAILED}challengePassword is not base64 of the tls-unique value of this "
            "connection; make the CSR after the handshake and send it over the same connection"
        )
    return TLS_UNIQUE


def _expected(channel: Channel) -> bytes:
    """Return the text that the CSR must carry. Raises LinkingFailed: it cannot be known here."""
    if channel.version is None:
        raise LinkingFailed(
            f"{_FAILED}the channel binding cannot be checked behind a proxy; "
            "leave challengePassword out"
        )
    if not channel.tls_unique:
        raise LinkingFailed(
            f"{_FAILED}{channel.version} has no tls-unique value and this server cannot export "
            "another one; connect with TLS 1.2, or leave challengePassword out"
        )
    return base64.b64encode(channel.tls_unique)


def _looks_like_pin(value: Secret) -> bool:
    """Tell whether somebody put the PIN there, as some other servers want it (EST-109)."""
    try:
        pin.normalize(value.reveal())
    except MistypedPIN:
        return True
    except BadCredentials:
        return False
    return True
