"""CA certificates: how a root, an issuing CA and a cross-certificate look, and who signs them.

Pure: keys and certificates in memory. Where they are kept stands in `root_folder` and `rollover`.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estserver import pin
from estserver.ca.issuer import signature_hash
from estserver.ca.keys import PrivateKey, generate_key
from estserver.errors import BadInput
from estserver.model import KeyType

KEY_TYPES = (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_3072, KeyType.RSA_4096)
ROOT_LIFE = timedelta(days=20 * 365 + 5)
ISSUING_LIFE = timedelta(days=10 * 365 + 2)
NAME_MAX = 64
"""Characters of O and CN (RFC 5280 Appendix A.1)."""
_SHORTEST_LIFE = timedelta(days=30)
_BACKDATE = timedelta(hours=1)
"""Leaves begin five minutes in the past; their issuer must not begin after them."""
_CN_ROOM = 24
"""What ` Issuing CA 2026-XXXXXX` takes up of the characters of a CN."""
_ANY_POLICY = x509.CertificatePolicies(
    [x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)]
)
_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)

CAPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Authority:
    """A certification authority at hand: its certificate and its key."""

    certificate: x509.Certificate
    key: PrivateKey


def fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256 in upper-case hex with colons, as people compare it."""
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2)).upper()


def common_name(certificate: x509.Certificate) -> str:
    """Return what certificate managers call a CA: its CN, or O where there is none."""
    for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        if found := certificate.subject.get_attributes_for_oid(oid):
            return str(found[-1].value)
    return certificate.subject.rfc4514_string()


def new_mark(now: datetime) -> str:
    """Return the part of a CA's name that no other CA has, such as 2026-7KQ2MX.

    A browser that trusts an older CA of the same name would mix the two up (INC-25).
    """
    return f"{now.year}-{''.join(secrets.choice(pin.ALPHABET) for _ in range(6))}"


def ca_name(organization: str, role: str, mark: str) -> x509.Name:
    """Return the name of a `Root CA` or `Issuing CA`.

    O is what Firefox groups certificates by (SEED-17).
    """
    short = organization if len(organization) <= NAME_MAX - _CN_ROOM else ""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{short} {role} {mark}".strip()),
        ]
    )


def make_hierarchy(
    organization: str, key_type: KeyType, now: datetime
) -> tuple[Authority, Authority]:
    """Make a root and an issuing CA below it."""
    mark = new_mark(now)
    root = make_root(organization, key_type, now, mark=mark)
    key = generate_key(key_type)
    name = ca_name(organization, "Issuing CA", mark)
    return root, Authority(certify_issuing(root, name, key.public_key(), now), key)


def make_root(
    organization: str,
    key_type: KeyType,
    now: datetime,
    *,
    mark: str,
    outlives: x509.Certificate | None = None,
) -> Authority:
    """Make a self-signed root, which ends later than the root it follows.

    RFC 7030 §4.1.3: of several roots the newest "has the latest NotAfter date".
    """
    key = generate_key(key_type)
    name = ca_name(organization, "Root CA", mark)
    end = now + ROOT_LIFE
    if outlives is not None:
        end = max(end, outlives.not_valid_after_utc + timedelta(days=1))
    # RFC 5280 §6.1 does not look at a trust anchor's path length, so the root states none.
    builder = _ca_builder(name, key.public_key(), now, end, path_length=None).issuer_name(name)
    return Authority(builder.sign(key, signature_hash(key)), key)


def certify_issuing(
    root: Authority, name: x509.Name, public_key: CAPublicKey, now: datetime
) -> x509.Certificate:
    """Let `root` certify an issuing CA, which ends before its root does.

    No CDP and no AIA: the root's key goes off-line and signs no CRL, and a pointer to a list that
    is not there makes strict relying parties reject the whole chain. An issuing CA that is lost is
    ended by removing the root. anyPolicy lets profiles assert policies (RFC 5280 §4.2.1.4).
    Raises BadInput: the root is not valid for long enough.
    """
    left = root.certificate.not_valid_after_utc - now
    if left < _SHORTEST_LIFE or now < root.certificate.not_valid_before_utc:
        raise BadInput(
            f"the root {common_name(root.certificate)} is valid from "
            f"{root.certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{root.certificate.not_valid_after_utc:%Y-%m-%d}, too short for an issuing CA: "
            "make a new root with `estserver ca new-root`"
        )
    end = min(now + ISSUING_LIFE, root.certificate.not_valid_after_utc)
    return (
        _ca_builder(name, public_key, now, end, path_length=0)
        .issuer_name(root.certificate.subject)
        .add_extension(_authority_key(root.certificate), critical=False)
        .add_extension(_ANY_POLICY, critical=False)
        .sign(root.key, signature_hash(root.key))
    )


def request_issuing(name: x509.Name, key: PrivateKey) -> x509.CertificateSigningRequest:
    """Ask for an issuing CA's certificate with what it needs (RFC 5280 §4.2.1.2, .3, .9)."""
    public_key = key.public_key()
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(key, signature_hash(key))
    )


def cross_certify(subject: x509.Certificate, by: Authority) -> x509.Certificate:
    """Let one root vouch for another: OldWithNew and NewWithOld (RFC 4210 §4.4).

    It carries what limits the subject (path length, usage, name constraints) and its key
    identifier, and is valid for as long as both are.
    """
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject.subject)
        .issuer_name(by.certificate.subject)
        .public_key(subject.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(subject.not_valid_before_utc, by.certificate.not_valid_before_utc))
        .not_valid_after(min(subject.not_valid_after_utc, by.certificate.not_valid_after_utc))
    )
    for extension in subject.extensions:
        if isinstance(
            extension.value,
            x509.BasicConstraints
            | x509.KeyUsage
            | x509.NameConstraints
            | x509.SubjectKeyIdentifier,
        ):
            builder = builder.add_extension(extension.value, extension.critical)
    return (
        builder.add_extension(_authority_key(by.certificate), critical=False)
        .add_extension(_ANY_POLICY, critical=False)
        .sign(by.key, signature_hash(by.key))
    )


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)


def _ca_builder(
    subject: x509.Name,
    public_key: CAPublicKey,
    now: datetime,
    end: datetime,
    *,
    path_length: int | None,
) -> x509.CertificateBuilder:
    """Begin a CA certificate: what root and issuing CA share (RFC 5280 §4.2.1.2, .3, .9)."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        # The last second belongs to the life (RFC 5280 §4.1.2.5).
        .not_valid_after(end - _BACKDATE - timedelta(seconds=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
