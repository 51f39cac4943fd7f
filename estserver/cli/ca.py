"""`estserver ca`: certification authorities: show, request, install, import, take over.

Only `sign`, `new-issuer` and `new-root` open a root's key; none of them needs a running server.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import config
from estserver.ca.chains import read_chains
from estserver.ca.hierarchy import KEY_TYPES, common_name, fingerprint
from estserver.ca.keys import read_secret
from estserver.ca.rollover import Added, Ceremony, Outside, certify
from estserver.ca.root_folder import open_root
from estserver.cli.operator import Operator, Topic
from estserver.cli.output import Columns, hint, iso, print_fields, print_rows
from estserver.core import SystemClock, require_database_file
from estserver.files import write_public
from estserver.model import Event, KeyType
from estserver.store import Store, require_current

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_key_type = click.option(
    "--key-type",
    type=click.Choice([kind.value for kind in KEY_TYPES]),
    help="Of the new key. [default: that of the root, or ec-p256]",
)
_succeeds = click.option(
    "--succeeds",
    multiple=True,
    metavar="NAME",
    help="Issuer it takes over from; may be given again.",
)
_chain = click.option("--chain", type=_FILE, help="The certificates above it, up to the root.")
_cross = click.option(
    "--cross", type=_FILE, help="Cross-certificates between its root and those in use."
)


@click.group(cls=Topic)
def ca() -> None:
    """Certification authorities: new ones, existing ones, and a change from one to another."""


@ca.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_command(operator: Operator, *, as_json: bool) -> None:
    """Show the issuers with their roots, fingerprints and ends."""
    settings = operator.settings()
    chains = read_chains(settings)
    rows = [
        {
            "name": name,
            "subject": common_name(chain[0]),
            "sha256": fingerprint(chain[0]),
            "expires": iso(chain[0].not_valid_after_utc),
            "root": common_name(chain[-1]),
            "root_sha256": fingerprint(chain[-1]),
            "root_expires": iso(chain[-1].not_valid_after_utc),
            "state": "retired" if settings.issuers[name].retired else "active",
            "succeeds": list(settings.issuers[name].succeeds),
            "profiles": [p for p, rule in settings.profiles.items() if rule.issuer == name],
        }
        for name, chain in chains.items()
    ]
    headings = ("name", "subject", "expires", "root", "root_expires", "state", "profiles")
    columns = Columns(
        {key.replace("_", " ").capitalize(): key for key in headings}, "No issuer is configured."
    )
    print_rows(rows, columns, as_json=as_json)


@ca.command()
@click.argument("name")
@_key_type
@click.pass_obj
def request(operator: Operator, *, name: str, key_type: str | None) -> None:
    """Make the key of an issuing CA NAME and the CSR that another CA is to sign.

    For an issuer that is there: the CSR for a new certificate of the same key.
    """
    with _ceremony(operator) as (ceremony, audit):
        path = ceremony.request(name, KeyType(key_type or KeyType.EC_P256))
        audit("ca.requested", name, {"csr": str(path)})
    click.echo(path)
    hint(f"\nHave it signed as a CA (pathLen 0 or more), then: estserver ca install {name} FILE")


@ca.command()
@click.argument("csr", type=_FILE)
@click.option(
    "--root", "folder", type=_FOLDER, required=True, help="Folder with root.key and root.crt."
)
@click.option("--root-passphrase", type=_FILE, help="[default: the file passphrase in the folder]")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: stdout]")
def sign(*, csr: Path, folder: Path, root_passphrase: Path | None, out: Path | None) -> None:
    """Let the root in a folder sign the CSR of an issuing CA. Needs no instance."""
    root = open_root(folder, root_passphrase or folder / "passphrase")
    certificate = certify(root, csr.read_bytes(), SystemClock().now())
    pem = certificate.public_bytes(Encoding.PEM) + root.certificate.public_bytes(Encoding.PEM)
    if out is None:
        click.echo(pem, nl=False)
    elif out.exists() and not out.is_file():
        # A device or a pipe; a file in its place would be nonsense.
        out.write_bytes(pem)
    else:
        write_public(out, pem)
    hint(f"Signed: {certificate.subject.rfc4514_string()}\nSHA-256: {fingerprint(certificate)}")


@ca.command()
@click.argument("name")
@click.argument("certificate", type=_FILE)
@_chain
@_cross
@_succeeds
@click.pass_obj
def install(
    operator: Operator,
    *,
    name: str,
    certificate: Path,
    chain: Path | None,
    cross: Path | None,
    succeeds: tuple[str, ...],
) -> None:
    """Take the CERTIFICATE that answers the request of NAME; a file may hold the whole chain."""
    with _ceremony(operator) as (ceremony, audit):
        added = ceremony.install(name, _outside(certificate, chain, cross), succeeds)
        audit("ca.installed", name, _facts(added))
    _show(added)


@ca.command("import")
@click.argument("name")
@click.option("--key", type=_FILE, required=True, help="PKCS#8, PKCS#1, SEC 1 or PKCS#12.")
@click.option("--passphrase-file", type=_FILE, help="Holds the passphrase of the key.")
@click.option("--certificate", type=_FILE, help="[default: the one in the PKCS#12]")
@_chain
@_cross
@_succeeds
@click.pass_obj
def import_command(  # noqa: PLR0913 - one argument an option
    operator: Operator,
    *,
    name: str,
    key: Path,
    passphrase_file: Path | None,
    certificate: Path | None,
    chain: Path | None,
    cross: Path | None,
    succeeds: tuple[str, ...],
) -> None:
    """Take over an existing issuing CA with its key, as issuer NAME."""
    passphrase = None if passphrase_file is None else read_secret(passphrase_file)
    with _ceremony(operator) as (ceremony, audit):
        files = _outside(certificate, chain, cross)
        added = ceremony.adopt(name, key.read_bytes(), passphrase, files, succeeds)
        audit("ca.imported", name, _facts(added))
    _show(added)
    hint(f"Remove {key}: the key is kept here, encrypted under the instance's passphrase.")


@ca.command("new-issuer")
@click.argument("name")
@click.option(
    "--root", "folder", type=_FOLDER, help="Folder of the root. [default: the instance's ca/]"
)
@_key_type
@_succeeds
@click.pass_obj
def new_issuer(
    operator: Operator,
    *,
    name: str,
    folder: Path | None,
    key_type: str | None,
    succeeds: tuple[str, ...],
) -> None:
    """Make a new issuing CA NAME below a root whose key is at hand."""
    with _ceremony(operator) as (ceremony, audit):
        root = open_root(*_root_place(ceremony, folder))
        added = ceremony.new_issuer(name, root, KeyType(key_type) if key_type else None, succeeds)
        audit("ca.added", name, _facts(added))
    _show(added)


@ca.command("new-root")
@click.argument("name")
@click.argument("folder", type=_FOLDER)
@click.option(
    "--succeeds", metavar="NAME", help="Issuer whose root the new one follows. [default: none]"
)
@click.option(
    "--old-root", type=_FOLDER, help="Folder of the old root. [default: the instance's ca/]"
)
@click.option("--without-old-root", is_flag=True, help="Its key is not at hand: see README.")
@_key_type
@click.pass_obj
def new_root(  # noqa: PLR0913 - one argument an option
    operator: Operator,
    *,
    name: str,
    folder: Path,
    succeeds: str | None,
    old_root: Path | None,
    without_old_root: bool,
    key_type: str | None,
) -> None:
    """Make a new root in FOLDER, an issuing CA NAME below it, and links to the old one.

    Which of the two links can be made depends on whether the old root's key is at hand.
    """
    with _ceremony(operator) as (ceremony, audit):
        alone = succeeds is None or without_old_root
        old = None if alone else open_root(*_root_place(ceremony, old_root))
        kind = KeyType(key_type) if key_type else None
        added = ceremony.new_root(name, folder, kind, succeeds, old)
        audit("ca.added", name, _facts(added))
    _show(added)
    hint(f"Carry {folder} away, its passphrase apart from its key: no daily work needs them.")


@contextlib.contextmanager
def _ceremony(operator: Operator) -> Iterator[tuple[Ceremony, "_Audit"]]:
    """Begin a ceremony; the database must be there to keep the record of it."""
    configuration = config.find(operator.configuration, os.environ)
    settings = config.load(configuration)
    require_database_file(settings)
    clock = SystemClock()
    store = Store(settings.database_url, clock)
    try:
        require_current(store)
        yield Ceremony(configuration, settings, clock.now()), _Audit(store, operator)
    finally:
        store.close()


class _Audit:
    """Writes what a ceremony did into the audit trail."""

    def __init__(self, store: Store, operator: Operator) -> None:
        self._store = store
        self._operator = operator

    def __call__(self, kind: str, name: str, details: dict[str, str]) -> None:
        event = Event(kind, self._operator.by, f"issuer {name}", details)
        self._store.write(lambda tx: tx.audit(event, self._operator.origin))


def _root_place(ceremony: Ceremony, folder: Path | None) -> tuple[Path, Path]:
    """Return the root's folder and the passphrase file for where it has none of its own."""
    settings = ceremony.settings
    return folder or settings.path(Path("ca")), settings.path(settings.secrets.passphrase)


def _outside(certificate: Path | None, chain: Path | None, cross: Path | None) -> Outside:
    return Outside(
        *(None if path is None else path.read_bytes() for path in (certificate, chain, cross))
    )


def _facts(added: Added) -> dict[str, str]:
    return {"sha256": fingerprint(added.chain[0]), "root_sha256": fingerprint(added.chain[-1])}


def _show(added: Added) -> None:
    issuing, root = added.chain[0], added.chain[-1]
    row = {
        "issuer": added.name,
        "subject": common_name(issuing),
        "expires": iso(issuing.not_valid_after_utc),
        "sha256": fingerprint(issuing),
        "root": common_name(root),
        "root_sha256": fingerprint(root),
        "cross_certificates": ", ".join(_link(one) for one in added.cross),
    }
    print_fields(row, as_json=False)
    if added.toml:
        hint(f"\nAdded to the configuration:\n\n{added.toml}")
        hint(f'Restart every node, then move profiles one by one: issuer = "{added.name}"')
    else:
        hint("\nRestart every node: CA certificates are read at start.")


def _link(cross: x509.Certificate) -> str:
    issuer = cross.issuer.rfc4514_string()
    return f"{common_name(cross)} signed by {issuer}"
