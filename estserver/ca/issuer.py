"""Issuer: the only holder of a CA's private key.

`prepare` makes a draft from a plan: it signs with a throw-away key of the same type, which gives
byte-identical to-be-signed bytes, and lints what came out. `sign` signs exactly those bytes.
Between the two the registration authority commits the draft, so that no signature exists without a
record.
"""

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from estserver.ca.keys import PrivateKey, generate_key, key_type_of
from estserver.ca.lint import lint, lint_spliced
from estserver.ca.template import Kind, Template, content_of, elements, encode, is_element, kind_of
from estserver.errors import ConfigurationError, Fault
from estserver.model import Draft, KeyType, Plan, PublicKey

SERIAL_BITS = 159
_OTHER_SERIAL = 0x80
_MAX_TEMPLATES = 64
_ISSUER_AT = 3
_RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")
_ALGORITHMS = {
    # DER AlgorithmIdentifier: RSA with NULL parameters (RFC 4055 §5), ECDSA with none (RFC 5758).
    KeyType.RSA_2048: _RSA_SHA256,
    KeyType.RSA_3072: _RSA_SHA256,
    KeyType.RSA_4096: _RSA_SHA256,
    KeyType.EC_P256: bytes.fromhex("300a06082a8648ce3d040302"),
    KeyType.EC_P384: bytes.fromhex("300a06082a8648ce3d040303"),
    KeyType.EC_P521: bytes.fromhex("300a06082a8648ce3d040304"),
}


@dataclass(frozen=True, slots=True)
class StatusURLs:
    """Where relying parties find an issuer's certificate and its status (RFC 5280 §4.2)."""

    certificate: str
    ocsp: str
    crl: str
    delta: str = ""

    def crl_of(self, scope: str) -> str:
        """Where the CRL of one profile alone is; of all certificates where `scope` is empty."""
        return _shard(self.crl, scope)

    def delta_of(self, scope: str) -> str:
        """Where the delta CRL is that goes with that one."""
        return _shard(self.delta, scope)


def _shard(url: str, scope: str) -> str:
    return f"{url.removesuffix('.crl')}/{scope}.crl" if scope else url


@cache
def _throwaway_key(key_type: KeyType) -> PrivateKey:
    """One key per type and process; nothing it signs ever leaves `prepare`."""
    return generate_key(key_type)


def signature_hash(
    key: PrivateKey | ec.EllipticCurvePublicKey,
) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512:
    """The hash that goes with a key: SHA-384 for P-384, SHA-512 for P-521, else SHA-256."""
    curve = getattr(key, "curve", None)
    if isinstance(curve, ec.SECP384R1):
        return hashes.SHA384()
    if isinstance(curve, ec.SECP521R1):
        return hashes.SHA512()
    return hashes.SHA256()


def sign_bytes(key: PrivateKey, tbs: bytes) -> tuple[bytes, bytes]:
    """Sign to-be-signed bytes; return the AlgorithmIdentifier, DER, and the signature."""
    hash_algorithm = signature_hash(key)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(tbs, ec.ECDSA(hash_algorithm))
    else:
        signature = key.sign(tbs, padding.PKCS1v15(), hash_algorithm)
    return _ALGORITHMS[key_type_of(key)], signature


def _scheme(key: PrivateKey, algorithm: hashes.HashAlgorithm) -> tuple[Any, ...]:
    """Return what `sign` and `verify` want to know besides the digest."""
    hashed = utils.Prehashed(algorithm)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return (ec.ECDSA(hashed),)
    return padding.PKCS1v15(), hashed


class Issuer:
    """One issuing CA. `chain` is its certificate first, the root last."""

    def __init__(
        self,
        name: str,
        chain: tuple[x509.Certificate, ...],
        key: PrivateKey,
        urls: StatusURLs,
        randbits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        """Raises ConfigurationError: the key is not that of the certificate, or of a type not used.

        Also for a certificate that has no subject key identifier or is no CA's.
        """
        self.name = name
        self.chain = chain
        self.urls = urls
        self._key = key
        self._randbits = randbits
        if key.public_key() != chain[0].public_key():
            raise ConfigurationError(f"issuer {name}: key and certificate do not belong together")
        self._key_type = key_type_of(key)
        # Of the type that `keys` can load, hence one whose signatures this scheme makes.
        self._public_key: Any = chain[0].public_key()
        self._hash = signature_hash(key)
        self._scheme = _scheme(key, self._hash)
        self._templates: dict[Kind, Template] = {}
        self._templating = threading.Lock()
        try:
            own_key = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            constraints = self.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        except x509.ExtensionNotFound as error:
            raise ConfigurationError(f"issuer {name}: the certificate is not a CA's") from error
        if not constraints.value.ca:
            raise ConfigurationError(f"issuer {name}: the certificate is not a CA's")
        self._own_name = self.certificate.subject.public_bytes()
        self._ends = self.certificate.not_valid_after_utc
        self._authority_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            own_key.value
        )

    @property
    def certificate(self) -> x509.Certificate:
        """The issuing CA's own certificate."""
        return self.chain[0]

    @property
    def quick(self) -> bool:
        """Whether signing takes less than a tenth of a millisecond."""
        return self._key_type is KeyType.EC_P256

    def prepare(self, plan: Plan) -> Draft:
        """Give `plan` a serial and our URLs, and lint the outcome.

        Certificates of a kind that was linted in full before are spliced into its template, and
        looked at in what varies.
        Raises LintFailed: the draft is not what was planned or breaks RFC 5280.
        """
        serial = self._randbits(SERIAL_BITS)
        kind = kind_of(plan)
        template = self._templates.get(kind)
        if template is None:
            draft = self._specimen(plan, serial)
            lint(draft, plan, self.certificate, serial)
            tbs = draft.tbs_certificate_bytes
            self._keep_template(kind, plan, draft)
        else:
            tbs = template.splice(plan, serial)
            lint_spliced(unsigned(tbs), plan, serial, issuer_ends=self._ends)
        return Draft(self.name, serial, tbs, plan.not_before, plan.not_after)

    def _keep_template(self, kind: Kind, plan: Plan, draft: x509.Certificate) -> None:
        """Make the template of a kind of certificate from a draft that passed the full lint."""
        other = _unlike(plan, _throwaway_key(self._key_type).public_key())
        template = Template(((plan, draft), (other, self._specimen(other, _OTHER_SERIAL))))
        with self._templating:
            # Profiles come and go with each reload; a few kinds are made for each.
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            self._templates[kind] = template

    def specimen(self, plan: Plan) -> x509.Certificate:
        """Return what `plan` would become, signed by a throw-away key: for linters only."""
        return self._specimen(plan, self._randbits(SERIAL_BITS))

    def _specimen(self, plan: Plan, serial: int) -> x509.Certificate:
        throwaway = _throwaway_key(self._key_type)
        return self._builder(plan, serial).sign(throwaway, signature_hash(throwaway))

    def _builder(self, plan: Plan, serial: int) -> x509.CertificateBuilder:
        builder = (
            x509.CertificateBuilder()
            .issuer_name(self.certificate.subject)
            .subject_name(plan.subject)
            .public_key(plan.public_key)
            .serial_number(serial)
            .not_valid_before(plan.not_before)
            .not_valid_after(plan.not_after)
        )
        for extension in plan.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        subject_key = x509.SubjectKeyIdentifier.from_public_key(plan.public_key)
        access = [_access(AuthorityInformationAccessOID.CA_ISSUERS, self.urls.certificate)]
        if plan.publish_status:
            access.insert(0, _access(AuthorityInformationAccessOID.OCSP, self.urls.ocsp))
            url = self.urls.crl_of(plan.profile if plan.own_crl else "")
            point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
            builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
        return (
            builder.add_extension(self._authority_key, critical=False)
            .add_extension(subject_key, critical=False)
            .add_extension(x509.AuthorityInformationAccess(access), critical=False)
        )

    def sign(self, draft: Draft) -> bytes:
        """Sign a recorded draft and return the certificate, DER.

        Raises Fault: the draft is another issuer's, or the signature just made does not verify
        (a broken key store must not put anything into the world).
        """
        if draft.issuer != self.name:
            raise Fault(f"a draft of issuer {draft.issuer} came to issuer {self.name}")
        digest = self._digest([draft.tbs])
        signature = self._sign(digest)
        certificate = _certificate(draft.tbs, self.algorithm, signature)
        if not self._verifies(digest, signature):
            raise Fault(f"issuer {self.name}: the signature just made does not verify")
        signed = x509.load_der_x509_certificate(certificate)
        if next(islice(elements(content_of(draft.tbs)), _ISSUER_AT, None)) != self._own_name:
            raise Fault(f"issuer {self.name}: the draft does not verify under this issuer's name")
        # The draft stands first in the certificate: being one element, it is what was parsed.
        if not is_element(draft.tbs) or signed.serial_number != draft.serial:
            raise Fault(f"issuer {self.name}: the certificate is not the draft")
        return certificate

    def require_leaf(self, draft: Draft) -> None:
        """Look at a draft that only the database vouches for; raise Fault unless it is no CA's.

        A fresh draft was linted a moment ago; one that waited in a table for its signature may be
        whatever somebody with the database's password wrote there.
        """
        try:
            unsigned = x509.load_der_x509_certificate(
                _certificate(draft.tbs, self.algorithm, bytes(1))
            )
            constraints = unsigned.extensions.get_extension_for_class(x509.BasicConstraints).value
            usage = unsigned.extensions.get_extension_for_class(x509.KeyUsage).value
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise Fault(
                f"issuer {self.name}: the stored draft is no certificate of ours"
            ) from error
        if constraints.ca or usage.key_cert_sign or usage.crl_sign:
            raise Fault(f"issuer {self.name}: the stored draft would make a CA: who wrote it?")

    @property
    def algorithm(self) -> bytes:
        """The AlgorithmIdentifier of what this issuer signs, DER."""
        return _ALGORITHMS[self._key_type]

    def sign_crl(self, tbs: Iterable[bytes]) -> bytes:
        """Sign the pieces of a TBSCertList whose content `status` has decided.

        Returns the signature. Raises Fault: it does not verify.
        RFC 5280 §5.1.
        """
        digest = self._digest(tbs)
        signature = self._sign(digest)
        if not self._verifies(digest, signature):
            raise Fault(f"issuer {self.name}: the CRL just signed does not verify")
        return signature

    def vouches_for(self, tbs: Iterable[bytes], signature: bytes) -> bool:
        """Tell whether `signature` is ours over these pieces."""
        return self._verifies(self._digest(tbs), signature)

    def _digest(self, pieces: Iterable[bytes]) -> bytes:
        """Hash what may be 50 MB without joining it; hashlib lets other threads run meanwhile."""
        digest = hashlib.new(self._hash.name)
        for piece in pieces:
            digest.update(piece)
        return digest.digest()

    def _sign(self, digest: bytes) -> bytes:
        signature: bytes = self._key.sign(digest, *self._scheme)
        return signature

    def _verifies(self, digest: bytes, signature: bytes) -> bool:
        try:
            self._public_key.verify(signature, digest, *self._scheme)
        except InvalidSignature:
            return False
        return True


def unsigned(tbs: bytes) -> x509.Certificate:
    """Wrap a to-be-signed certificate so that it can be read; there is no signature on it."""
    return x509.load_der_x509_certificate(_certificate(tbs, _ALGORITHMS[KeyType.EC_P256], b""))


def _certificate(tbs: bytes, algorithm: bytes, signature: bytes) -> bytes:
    """Put a certificate together: RFC 5280 §4.1."""
    return encode(b"\x30", tbs + algorithm + encode(b"\x03", b"\x00" + signature))


def _unlike(plan: Plan, public_key: PublicKey) -> Plan:
    """Return a plan of the same kind that differs in all that varies, lengths included."""
    subject = [*plan.subject, x509.NameAttribute(NameOID.SERIAL_NUMBER, "0123456789" * 6)]
    extensions = [
        x509.Extension(
            extension.oid,
            not extension.critical,
            x509.SubjectAlternativeName([*extension.value, x509.DNSName("a.example" * 7)]),
        )
        if isinstance(extension.value, x509.SubjectAlternativeName)
        else extension
        for extension in plan.extensions
    ]
    return replace(
        plan,
        subject=x509.Name(subject),
        public_key=public_key,
        spki=public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        not_before=datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        not_after=datetime(2050, 1, 1, tzinfo=UTC),
        extensions=tuple(extensions),
    )


def _access(method: x509.ObjectIdentifier, url: str) -> x509.AccessDescription:
    return x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
