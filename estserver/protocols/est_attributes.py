"""What csrattrs announces: what enrollment enforces or fills in (RFC 7030 §4.5, RFC 9908)."""

from cryptography import x509
from cryptography.x509.oid import SignatureAlgorithmOID

from estserver.model import Grant, KeyType
from estserver.names import format_general_name
from estserver.profiles import Profile
from estserver.protocols.encoding import csr_attributes

_SIGNATURES = {
    KeyType.EC_P256: SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    KeyType.EC_P384: SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    KeyType.EC_P521: SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    KeyType.RSA_2048: SignatureAlgorithmOID.RSA_WITH_SHA256,
    KeyType.RSA_3072: SignatureAlgorithmOID.RSA_WITH_SHA256,
    KeyType.RSA_4096: SignatureAlgorithmOID.RSA_WITH_SHA256,
    KeyType.ED25519: SignatureAlgorithmOID.ED25519,
}


def announce(profile: Profile, grant: Grant | None) -> bytes:
    """Return the DER of CsrAttrs for a profile, and for one applicant's names where known.

    Of the keys it is the first that the profile takes: RFC 9908 §3.2 has room for one. The names
    come with complete values, or not at all. Usages are the profile's own affair and not asked for.
    """
    key_type = profile.settings.keys[0]
    names = sorted(() if grant is None else grant.names, key=format_general_name)
    extensions: list[x509.Extension[x509.ExtensionType]] = []
    if grant is not None and names:
        san = x509.SubjectAlternativeName(names)
        extensions.append(x509.Extension(san.oid, not len(grant.subject), san))
    return csr_attributes(
        challenge_password=profile.settings.pop_linking == "required",
        key_type=key_type,
        extensions=extensions,
        signature=_SIGNATURES[key_type],
    )
