"""The root's own folder: `root.key`, `root.crt`, `passphrase`. To be carried away after a ceremony.

The key is encrypted under a passphrase of the folder's own, so that the instance's opens it not.
`init` without a folder keeps the root among the instance's files, under the instance's passphrase.
"""

import secrets
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from estserver.ca.acceptance import read_certificates
from estserver.ca.hierarchy import Authority
from estserver.ca.keys import encrypt_key, load_key, read_secret
from estserver.errors import BadInput
from estserver.files import write_private, write_public
from estserver.model import Secret

_KEY, _CERTIFICATE, _PASSPHRASE = "root.key", "root.crt", "passphrase"


def new_passphrase() -> Secret:
    """Return 256 random bits as text."""
    return Secret(secrets.token_urlsafe(32))


def require_empty(folder: Path) -> None:
    """Raise BadInput if something lies in `folder` already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty: choose a new folder")


def write_root(folder: Path, root: Authority) -> None:
    """Write a root under a passphrase of its own. Raises BadInput: the folder is not empty."""
    require_empty(folder)
    passphrase = new_passphrase()
    write_private(folder / _PASSPHRASE, f"{passphrase.reveal()}\n".encode())
    write_private(folder / _KEY, encrypt_key(root.key, passphrase))
    write_public(folder / _CERTIFICATE, root.certificate.public_bytes(Encoding.PEM))


def open_root(folder: Path, passphrase: Path) -> Authority:
    """Open the root in `folder`; `passphrase` is the file to use where the folder has none.

    Raises BadInput: the folder holds no root, or key and certificate do not belong together;
    ConfigurationError: the key does not open.
    """
    for name in (_KEY, _CERTIFICATE):
        if not (folder / name).is_file():
            raise BadInput(
                f"{folder / name} is not there: say which folder the root is in (--root, "
                "--old-root), or let it sign elsewhere (`estserver ca request`, `ca sign`, "
                "`ca install`)"
            )
    own = folder / _PASSPHRASE
    key = load_key(folder / _KEY, read_secret(own if own.is_file() else passphrase))
    certificate = read_certificates(
        (folder / _CERTIFICATE).read_bytes(), str(folder / _CERTIFICATE)
    )
    if certificate[0].public_key() != key.public_key():
        raise BadInput(f"{folder}: key and certificate do not belong together")
    return Authority(certificate[0], key)
