"""serverkeygen: the server makes the key, hands it out once and forgets it (RFC 7030 §4.4).

The key lives in memory for the length of one answer. It is never stored and never logged, so an
answer that was lost cannot be given again: the applicant asks the administrator for a new PIN.
"""

import secrets

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from estserver.ca.issuer import signature_hash
from estserver.ca.keys import generate_key
from estserver.csr import CSR, NamesOnly, read_csr
from estserver.errors import Refused
from estserver.model import KeyType
from estserver.protocols.encoding import wrap_base64
from estserver.protocols.est_answers import CERTIFICATES, COLUMNS

_KEY_IDENTIFIERS = frozenset({"1.2.840.113549.1.9.16.2.37", "1.2.840.113549.1.9.16.2.54"})
"""DecryptKeyIdentifier and AsymmetricDecryptKeyIdentifier."""


def check_request(asked: NamesOnly) -> None:
    """Refuse what must not be ignored in a request for a server-made key.

    "If the server does not have a secret key matching the identifier specified by the client, the
    request MUST be terminated": this server has none (RFC 7030 §4.4.1.1, §4.4.1.2).
    Raises Refused.
    """
    if _KEY_IDENTIFIERS & set(asked.attributes):
        raise Refused(
            "the key to encrypt the private key with is not known here; "
            "leave DecryptKeyIdentifier and AsymmetricDecryptKeyIdentifier out"
        )
    if asked.change_subject is not None:
        raise Refused("serverkeygen does not change names: use simplereenroll")


def make_key(asked: NamesOnly, key_type: KeyType) -> tuple[CSR, bytes]:
    """Make a key pair; return a CSR for the names asked for, and the key as PKCS#8 DER."""
    key = generate_key(key_type)
    builder = x509.CertificateSigningRequestBuilder().subject_name(asked.subject)
    if asked.names:
        san = x509.SubjectAlternativeName(asked.names)
        builder = builder.add_extension(san, critical=not len(asked.subject))
    csr = read_csr(builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER))
    return csr, key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def key_and_certificate(key: bytes, certificates: bytes) -> tuple[str, bytes]:
    """Return content type and body of the answer: the key, then the certs-only PKCS#7.

    Nothing before the first boundary, and one CRLF after the last: Bouncy Castle fails on more.
    libest compares the parts' content types byte for byte.
    """
    boundary = secrets.token_hex(16)
    parts = [("application/pkcs8", key), (CERTIFICATES, certificates)]
    body = b"".join(
        b"--%b\r\nContent-Type: %b\r\nContent-Transfer-Encoding: base64\r\n\r\n%b"
        % (boundary.encode(), kind.encode(), wrap_base64(der, COLUMNS).replace(b"\n", b"\r\n"))
        for kind, der in parts
    )
    return f"multipart/mixed; boundary={boundary}", body + b"--%b--\r\n" % boundary.encode()
