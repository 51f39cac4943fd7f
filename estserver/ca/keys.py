"""Private keys: made, kept encrypted on disk, loaded. PKCS#8 PEM under the passphrase file."""

import stat
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from estserver.errors import ConfigurationError
from estserver.model import KeyType, Secret
from estserver.wording import trouble

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_CURVES: dict[KeyType, ec.EllipticCurve] = {
    KeyType.EC_P256: ec.SECP256R1(),
    KeyType.EC_P384: ec.SECP384R1(),
    KeyType.EC_P521: ec.SECP521R1(),
}


def generate_key(key_type: KeyType) -> PrivateKey:
    """Make a key pair. Raises ConfigurationError for Ed25519, which no browser imports."""
    if (bits := key_type.rsa_bits) is not None:
        return rsa.generate_private_key(65537, bits)
    if key_type not in _CURVES:
        raise ConfigurationError(f"the server makes no keys of type {key_type}")
    return ec.generate_private_key(_CURVES[key_type])


def key_type_of(key: PrivateKey | rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> KeyType:
    """Name the type of one of our own keys. Raises ConfigurationError: of a type not used here."""
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        found = [kind for kind in KeyType if kind.rsa_bits == key.key_size]
    else:
        found = [kind for kind, curve in _CURVES.items() if curve.name == key.curve.name]
    if not found:
        raise ConfigurationError("a key is neither RSA of 2048, 3072 or 4096 bits nor on a P curve")
    return found[0]


def encrypt_key(key: PrivateKey, passphrase: Secret) -> bytes:
    """Return `key` as PKCS#8 PEM encrypted under `passphrase`."""
    encryption = BestAvailableEncryption(passphrase.reveal().encode())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def load_key(path: Path, passphrase: Secret) -> PrivateKey:
    """Load an encrypted PKCS#8 PEM. Raises ConfigurationError naming the file."""
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase.reveal().encode())
    except OSError as error:
        raise ConfigurationError(trouble(error, path)) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path}: not a key encrypted under the passphrase") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path}: neither an RSA nor an EC key")
    return key


def readable_by_others(paths: Iterable[Path]) -> list[str]:
    """Say of each file that others than its owner may read, which mode it has.

    Raises OSError: a file is not there.
    """
    return [
        f"{path} has mode {mode:04o}, must be 0600"
        for path in paths
        if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077
    ]


def read_secret(path: Path) -> Secret:
    """Read a secret text file without its final line break. Raises ConfigurationError."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(trouble(error, path)) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is no text in UTF-8") from error
    if not text:
        raise ConfigurationError(f"{path}: is empty")
    return Secret(text)
