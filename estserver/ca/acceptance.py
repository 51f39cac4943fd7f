"""What comes from outside for a CA of ours: certificates, chains and keys, read and judged.

Nothing here trusts a file: it must parse, belong together, and be fit to sign certificates and CRLs
for as long as it says. Each refusal says what is wrong and what to bring instead.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_pem_private_key,
    pkcs7,
    pkcs12,
)

from estserver.ca.hierarchy import CAPublicKey, common_name
from estserver.ca.keys import PrivateKey, key_type_of
from estserver.errors import BadInput, Error
from estserver.model import Secret
from estserver.public_keys import check_key

Chain = tuple[x509.Certificate, ...]
"""Issuing CA first, root last."""
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_MAX_CHAIN = 8
# The first element of a PFX is version 3; that of a key is version 0 or 1 (RFC 7292 §4).
_PFX = re.compile(rb"\x30(?:\x80|\x81.|\x82..|\x83...|[\x00-\x7f])\x02\x01\x03", re.DOTALL)
_PEM_KEY = re.compile(rb"-----BEGIN ((EC |RSA |ENCRYPTED )?PRIVATE KEY)-----")


@contextlib.contextmanager
def _wall(what: str) -> Iterator[None]:
    """Turn whatever the libraries throw at a bad file into a refusal that names it."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        raise BadInput(f"{what} cannot be read: {error}") from error


def read_certificates(content: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """Read all certificates of a file: PEM, DER, or a certs-only PKCS#7 in either form.

    `what` names the file in refusals. Raises BadInput: it holds no certificate.
    """
    with _wall(what):
        if b"-----BEGIN CERTIFICATE-----" in content:
            found = x509.load_pem_x509_certificates(content)
        elif b"-----BEGIN PKCS7-----" in content:
            found = pkcs7.load_pem_pkcs7_certificates(content)
        else:
            try:
                found = [x509.load_der_x509_certificate(content)]
            except ValueError:
                found = pkcs7.load_der_pkcs7_certificates(content)
        for certificate in found:
            # Parsing is lazy: touch what may yet throw.
            _ = (certificate.extensions, certificate.subject, certificate.issuer)
            certificate.public_key()
    if not found:
        raise BadInput(f"{what} holds no certificate")
    return tuple(found)


def read_private_key(
    content: bytes, passphrase: Secret | None, what: str
) -> tuple[PrivateKey, tuple[x509.Certificate, ...]]:
    """Read a private key and the certificates that came along in a PKCS#12.

    PEM or DER, PKCS#8, PKCS#1 or SEC 1, or PKCS#12; encrypted or not.
    Raises BadInput: unreadable, the passphrase is missing or wrong, neither RSA nor EC.
    """
    password = None if passphrase is None else passphrase.reveal().encode()
    certificates: list[x509.Certificate | None] = []
    key: PrivateKeyTypes | None
    try:
        if _PEM_KEY.search(content):
            key = load_pem_private_key(content, password)
        elif _PFX.match(content):
            # PKCS#12 knows no "no password": files without one have an empty one.
            key, leaf, others = pkcs12.load_key_and_certificates(content, password or b"")
            certificates = [leaf, *others]
        else:
            key = load_der_private_key(content, password)
    except TypeError as error:
        needed = "is encrypted: give its passphrase" if password is None else "is not encrypted"
        raise BadInput(f"{what} {needed}") from error
    except Exception as error:
        hint = "it needs its passphrase" if password is None else "the passphrase is wrong"
        raise BadInput(f"{what} is no private key that can be read, or {hint}") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise BadInput(f"{what} holds no RSA or EC private key")
    with _wall(what):
        check_key(key.public_key())
        key_type_of(key)
    return key, tuple(certificate for certificate in certificates if certificate is not None)


def order_chain(certificate: x509.Certificate, others: Sequence[x509.Certificate]) -> Chain:
    """Return `certificate` and those of `others` that lead to a self-signed root.

    Raises BadInput: nobody signed one of them, or it leads nowhere, or by a broken hash.
    """
    chain = [certificate]
    while True:
        # A root's own signature proves nothing, but the libraries verify no other hash either.
        with _wall(_named(chain[-1])):
            known = isinstance(chain[-1].signature_hash_algorithm, _HASHES)
        if not known:
            raise BadInput(f"{_named(chain[-1])} is not signed with SHA-256, SHA-384 or SHA-512")
        if signed_by(chain[-1], chain[-1]):
            return tuple(chain)
        above = [one for one in others if one not in chain and signed_by(chain[-1], one)]
        if not above or len(chain) == _MAX_CHAIN:
            raise BadInput(
                f"the chain does not lead to a self-signed root: the certificate of "
                f"{chain[-1].issuer.rfc4514_string()}, which signed {_named(chain[-1])}, is not "
                "among the files: bring every certificate up to the root"
            )
        # A self-signed one ends the search; a cross-certificate would only make it longer.
        chain.append(next((one for one in above if signed_by(one, one)), above[0]))


def check_chain(chain: Chain, public_key: CAPublicKey, now: datetime) -> None:
    """Check that `chain` lets the holder of `public_key` act as an issuing CA.

    Raises BadInput: another key, not a CA's, not allowed to sign certificates and CRLs, without key
    identifier, outside its time, a path length exceeded (RFC 5280 §6.1).
    """
    if chain[0].public_key() != public_key:
        raise BadInput(
            f"{_named(chain[0])} belongs to another key: bring the one made for this key"
        )
    for depth, certificate in enumerate(chain):
        with _wall(_named(certificate)):
            _check_authority(certificate, depth)
        if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
            raise BadInput(
                f"{_named(certificate)} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} "
                f"to {certificate.not_valid_after_utc:%Y-%m-%d} only: bring one that is valid now"
            )


def check_cross(cross: x509.Certificate, roots: Sequence[x509.Certificate]) -> None:
    """Check that `cross` is one of `roots` vouched for by another. Raises BadInput."""
    subject = [one for one in roots if same_authority(one, cross)]
    issuers = [one for one in roots if signed_by(cross, one)]
    if not subject or not issuers or subject[0] == issuers[0]:
        raise BadInput(
            f"{_named(cross)}, signed by {cross.issuer.rfc4514_string()}, links no two of "
            f"the roots {', '.join(_named(root) for root in roots)}"
        )
    with _wall(_named(cross)):
        _check_authority(cross, 1)
        _check_authority(issuers[0], 2)


def same_authority(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Tell whether two certificates are of one CA: the same name and key."""
    return one.subject == other.subject and one.public_key() == other.public_key()


def _check_authority(certificate: x509.Certificate, below: int) -> None:
    """Check one CA certificate with `below` CA certificates between it and a leaf."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound as error:
        raise BadInput(
            f"{_named(certificate)} is not fit for a CA: it needs basicConstraints, keyUsage and "
            "subjectKeyIdentifier (RFC 5280 §4.2.1)"
        ) from error
    if not constraints.ca:
        raise BadInput(f"{_named(certificate)} is not a CA's: ask for one with CA:TRUE")
    if not usage.key_cert_sign or (below == 0 and not usage.crl_sign):
        raise BadInput(f"{_named(certificate)} may not sign: it needs keyCertSign and cRLSign")
    if constraints.path_length is not None and constraints.path_length < below:
        raise BadInput(
            f"{_named(certificate)} allows {constraints.path_length} CAs below it, and here are "
            f"{below}: ask for a greater pathLenConstraint"
        )


def signed_by(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    """Tell whether `by` issued `certificate`: its name, and a signature of its key."""
    try:
        certificate.verify_directly_issued_by(by)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _named(certificate: x509.Certificate) -> str:
    return f"the certificate of {common_name(certificate)}"
