"""A key made by the server, for browsers that cannot make one: made, certified, sent once, gone.

Nothing of it is stored or logged. Who loses the file uses the replacement. The password is always a
generated one of 100 bits: the MAC of files from pyca/cryptography is fixed at 2048 rounds, which
protects no password that a person would choose.
"""

import secrets

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs12 import (
    PBES,
    PKCS12PrivateKeyTypes,
    serialize_key_and_certificates,
)

from estserver.ca.issuer import signature_hash
from estserver.ca.keys import generate_key
from estserver.csr import CSR, read_csr
from estserver.model import KeyType, Secret

CONTENT_TYPE = "application/x-pkcs12"
_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
_ROUNDS = 150_000
"""More breaks .NET (KB5025823), see pkcs12-formats.js."""


def generate_password() -> Secret:
    """Make a file password such as the browser's own generatePassword makes: 5 groups of 4."""
    groups = ("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(5))
    return Secret("-".join(groups))


def make_key(key_type: KeyType) -> tuple[PKCS12PrivateKeyTypes, CSR]:
    """Make a key and the CSR with which it walks the same street as every other key."""
    key = generate_key(key_type)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return key, read_csr(builder.sign(key, signature_hash(key)).public_bytes(Encoding.DER))


def make_file(
    key: PKCS12PrivateKeyTypes,
    certificates: tuple[bytes, ...],
    *,
    name: str,
    password: Secret,
    compatible: bool,
) -> bytes:
    """Return the PKCS#12; `certificates` are DER, the key's own first, root last."""
    algorithm = PBES.PBESv1SHA1And3KeyTripleDESCBC if compatible else PBES.PBESv2SHA256AndAES256CBC
    rounds = 2048 if compatible else _ROUNDS
    encryption = (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(rounds)
        .key_cert_algorithm(algorithm)
        .hmac_hash(SHA1() if compatible else SHA256())  # noqa: S303 - what old importers know
        .build(password.reveal().encode())
    )
    own, *others = (x509.load_der_x509_certificate(der) for der in certificates)
    return serialize_key_and_certificates(name.encode(), key, own, others, encryption)
