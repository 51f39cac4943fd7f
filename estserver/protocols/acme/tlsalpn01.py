"""tls-alpn-01: a self-signed certificate that carries the key authorization's digest (RFC 8737)."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import ssl

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from estserver.protocols.acme.addresses import Dialler
from estserver.protocols.acme.challenge import Challenge, ChallengeFailed
from estserver.protocols.acme.lookups import Address

_PROTOCOL = "acme-tls/1"
_ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_GOODBYE_SECONDS = 1.0
_HANDSHAKE_FAILED = (ssl.SSLError, ConnectionResetError, ConnectionAbortedError)
"""Who has been connected to and hangs up in the middle did not like the handshake."""


class TLSALPN01:
    """Shakes hands and reads certificates; no application data is ever exchanged."""

    def __init__(self, dialler: Dialler, *, port: int, seconds: float) -> None:
        self._dialler = dialler
        self._port = port
        self._seconds = seconds
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # RFC 8737 §3: the certificate is self-signed by design; `check_certificate` verifies it.
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.set_alpn_protocols([_PROTOCOL])

    async def validate(self, challenge: Challenge) -> None:
        """Raise ChallengeFailed unless the host shows the right certificate.

        Problems: dns; connection; tls where no handshake comes about or `acme-tls/1` is not
        chosen; incorrectResponse where the certificate is another than RFC 8737 §3 wants.
        """
        check_certificate(await self._certificate(challenge), challenge)

    async def _certificate(self, challenge: Challenge) -> bytes:
        *earlier, last = await self._dialler.targets(challenge.identifier, self._port)
        name = _server_name(challenge)
        for address in earlier:
            try:
                async with asyncio.timeout(self._seconds / 2):
                    return await self._shake_hands(address, name)
            except _HANDSHAKE_FAILED as error:
                raise _tls_failed() from error
            except OSError:  # with it TimeoutError: the IPv4 address is the one fallback
                continue
        try:
            return await self._shake_hands(last, name)
        except _HANDSHAKE_FAILED as error:
            raise _tls_failed() from error
        except TimeoutError:
            raise
        except OSError as error:
            raise ChallengeFailed(
                "connection", f"port {self._port} of the host cannot be reached"
            ) from error

    async def _shake_hands(self, address: Address, server_name: str) -> bytes:
        """Return the DER of the certificate that the other side shows."""
        # A literal address: nothing is resolved here.
        _, writer = await asyncio.open_connection(
            str(address),
            self._port,
            ssl=self._tls,
            server_hostname=server_name,
            ssl_shutdown_timeout=_GOODBYE_SECONDS,
        )
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        chosen = connection.selected_alpn_protocol()
        certificate = connection.getpeercert(binary_form=True)
        # RFC 8737 §3: after the handshake "the connection MUST be immediately closed".
        writer.close()
        with contextlib.suppress(OSError):  # how the other side says goodbye is all the same
            await writer.wait_closed()
        if chosen != _PROTOCOL or certificate is None:
            raise ChallengeFailed("tls", f"the host did not choose the protocol {_PROTOCOL}")
        return certificate


def _server_name(challenge: Challenge) -> str:
    """RFC 8738 §6: for an address the name of its reverse mapping, which SNI can carry."""
    if challenge.identifier_type == "ip":
        return ipaddress.ip_address(challenge.identifier).reverse_pointer
    return challenge.identifier


def check_certificate(der: bytes, challenge: Challenge) -> None:
    """Raise ChallengeFailed incorrectResponse unless this is the certificate of RFC 8737 §3."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        proof = extensions.get_extension_for_oid(_ACME_IDENTIFIER)
        certificate.verify_directly_issued_by(certificate)
    except x509.ExtensionNotFound as error:
        missing = (
            "subjectAltName"
            if error.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME
            else "acmeIdentifier"
        )
        raise _bad_certificate(f"has no {missing} extension") from error
    except Exception as error:
        # Duplicate extensions, unknown name types, foreign keys: the parser has no common base.
        raise _bad_certificate("cannot be read or is not self-signed") from error
    if [_plain(name) for name in names] != [(challenge.identifier_type, challenge.identifier)]:
        raise _bad_certificate("must name the identifier and nothing else in subjectAltName")
    if not proof.critical:
        raise _bad_certificate("has an acmeIdentifier extension that is not critical")
    digest = hashlib.sha256(challenge.key_authorization.encode("ascii")).digest()
    value = proof.value.value if isinstance(proof.value, x509.UnrecognizedExtension) else b""
    # §3: Authorization ::= OCTET STRING (SIZE (32)), in DER.
    if not hmac.compare_digest(value, b"\x04\x20" + digest):
        raise _bad_certificate("carries another digest than that of the key authorization")


def _plain(name: x509.GeneralName) -> tuple[str, str]:
    match name:
        case x509.DNSName():
            return "dns", name.value.lower()
        case x509.IPAddress():
            return "ip", str(name.value)
        case _:
            return "other", ""


def _bad_certificate(how: str) -> ChallengeFailed:
    return ChallengeFailed("incorrectResponse", f"the certificate shown {how} (RFC 8737 3)")


def _tls_failed() -> ChallengeFailed:
    return ChallengeFailed("tls", f"the TLS handshake for {_PROTOCOL} failed")
