"""A proxy in front of a listener: it ends TLS and tells us who came, over a Unix socket.

What the proxy says counts because only the users named in the settings can have opened the socket:
the kernel tells who connected, no password and no header does. Nothing it says about a certificate
is taken over but the certificate itself; the application checks that again.
"""

import base64
import binascii
import ipaddress
import os
import socket
import struct
from asyncio import BaseTransport
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from estserver.errors import BadInput, CertificateRefused
from estserver.settings import FrontForm
from estserver.unix_sockets import front_user
from estserver.wording import user_name

_HEADERS: dict[FrontForm, str] = {
    # RFC 9440 §2.1: an sf-binary (RFC 8941 §3.3.5), the DER in base64 between colons.
    "rfc9440": "Client-Cert",
    # HAProxy: %[ssl_c_der,base64]
    "haproxy": "X-SSL-Client-Cert",
    # nginx: $ssl_client_escaped_cert, one PEM with %-escapes
    "nginx": "X-SSL-Client-Cert",
}
_CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""


@dataclass(frozen=True, slots=True)
class Front:
    """The proxy of one listener: in which form it tells the certificate, and whose process it is.

    `listener` is its name in the settings; `users` are user ids.
    """

    listener: str
    form: FrontForm
    users: frozenset[int]

    def trusts(self, transport: BaseTransport) -> bool:
        """Tell whether the process at the other end of a Unix socket is the proxy's."""
        return peer_user(transport) in self.users

    def refusal(self, transport: BaseTransport) -> str:
        """Say whose process is not the proxy's, and which setting would make it so."""
        user = peer_user(transport)
        whose = "somebody" if user is None else user_name(user)
        setting = f"listeners.{self.listener}.front_users"
        return f"{whose} is not in {setting}: add the user there if the proxy runs as it"

    def certificate(self, request: web.Request) -> bytes | None:
        """Return the certificate that the client showed to the proxy, DER; None: it showed none.

        Raises BadInput: not exactly one certificate in the agreed form (the proxy is set up
        wrongly, or let a client's own header through). Raises CertificateRefused: it is not meant
        for clients, which the TLS of a listener of our own would not have let in either.
        """
        name = _HEADERS[self.form]
        # A name with an underscore is another header to us and the same one to some proxies.
        values = [
            value
            for key, value in request.headers.items()
            if key.lower().replace("_", "-") == name.lower()
        ]
        if not any(values):
            return None
        if len(values) > 1:
            raise BadInput(f"more than one {name} header: the proxy must set it, not add to it")
        try:
            certificate = _read(self.form, values[0].strip())
            purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            purposes = None
        except Exception as error:
            # The wall of this header: the parser has many ways to refuse.
            raise BadInput(
                f"{name} does not hold one certificate in the form {self.form}: set the proxy up "
                "as its example in conf/ shows"
            ) from error
        if purposes is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
            raise CertificateRefused(
                "this certificate is not meant for clients: present one with the purpose "
                "clientAuth, or use a PIN",
                reason="purpose",
            )
        return certificate.public_bytes(Encoding.DER)

    def source(self, request: web.Request) -> str:
        """Return the client's address as the proxy saw it, or `front` where it tells none.

        The last address of X-Forwarded-For: those before it may be the client's own words.
        """
        said = ",".join(request.headers.getall("X-Forwarded-For", []))
        try:
            return str(ipaddress.ip_address(said.rpartition(",")[2].strip()))
        except ValueError:
            return "front"


FRONT: web.RequestKey[Front] = web.RequestKey("front", Front)
"""Set on requests that came through a listener's proxy, on no others."""


def peer_user(transport: BaseTransport) -> int | None:
    """Return the user id of the process at the other end, None where it is no Unix socket."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(raw)[1]
    return user


def user_ids(names: tuple[str, ...]) -> frozenset[int]:
    """Turn user names or numbers into ids; our own and root's always belong.

    Raises ConfigurationError: there is no such user.
    """
    return frozenset({*map(front_user, names), 0, os.geteuid()})


def _read(form: FrontForm, value: str) -> x509.Certificate:
    if form == "nginx":
        (certificate,) = x509.load_pem_x509_certificates(unquote_to_bytes(value))
        return certificate
    if form == "rfc9440":
        if len(value) < 3 or value[0] != ":" or value[-1] != ":":
            raise binascii.Error("not between colons")
        value = value[1:-1]
    return x509.load_der_x509_certificate(base64.b64decode(value, validate=True))
