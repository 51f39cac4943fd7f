"""S/MIME signatures on letters (RFC 8551 §3.5.3), so that readers can tell ours from others'."""

import secrets
from email.generator import BytesGenerator
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estserver.ca.keys import load_key
from estserver.errors import ConfigurationError
from estserver.model import Secret


class LetterSigner:
    """Signs finished letters with the service's own mail certificate."""

    def __init__(self, certificate: Path, key: Path, passphrase: Secret) -> None:
        """`certificate` is PEM, leaf first; `key` PKCS#8 PEM, encrypted under the passphrase.

        Raises ConfigurationError: they cannot be read or do not belong together.
        """
        try:
            self._certificate, *self._chain = x509.load_pem_x509_certificates(
                certificate.read_bytes()
            )
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"mail.signing_certificate: cannot read {certificate}") from (
                error
            )
        self._key = load_key(key, passphrase)
        if self._key.public_key() != self._certificate.public_key():
            raise ConfigurationError("mail.signing_key: is not the key of mail.signing_certificate")

    def sign(self, message: EmailMessage) -> bytes:
        """Return the letter as it goes over the wire: multipart/signed around its content.

        Put together by hand: whatever the library parses it writes anew, in other octets than
        those that were signed.
        """
        content, outer = EmailMessage(policy=message.policy), []
        for name, value in message.items():
            if name.lower().startswith("content-") and name.lower() != "content-language":
                content[name] = value
            else:
                outer.append((name, value))
        content.set_payload(message.get_payload())
        signed = _octets(content)
        builder = pkcs7.PKCS7SignatureBuilder().set_data(signed)
        builder = builder.add_signer(self._certificate, self._key, hashes.SHA256())
        for above in self._chain:
            builder = builder.add_certificate(above)
        signature = builder.sign(
            Encoding.DER, [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
        )
        envelope = EmailMessage(policy=message.policy)
        for name, value in outer:
            envelope[name] = value
        proof = EmailMessage(policy=message.policy)
        proof.set_content(
            signature,
            "application",
            "pkcs7-signature",
            disposition="attachment",
            filename="smime.p7s",
            params={"name": "smime.p7s"},
        )
        del proof["MIME-Version"]
        boundary = f"=_{secrets.token_hex(16)}".encode()
        return b"\r\n".join(
            (
                _octets(envelope).rstrip(b"\r\n"),
                b'Content-Type: multipart/signed; protocol="application/pkcs7-signature";',
                b' micalg="sha-256"; boundary="' + boundary + b'"',
                b"",
                b"--" + boundary,
                signed,
                b"--" + boundary,
                _octets(proof).rstrip(b"\r\n"),
                b"--" + boundary + b"--",
                b"",
            )
        )


def _octets(message: EmailMessage) -> bytes:
    """Write a message out as SMTP wants it, without changing a line that begins with From."""
    out = BytesIO()
    BytesGenerator(out, mangle_from_=False, policy=message.policy).flatten(message)
    return out.getvalue()
