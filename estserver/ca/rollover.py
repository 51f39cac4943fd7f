"""Ceremonies on an instance that lives: another issuing CA, another root, a CA from outside.

Each writes keys, certificates and, last, the lines of the configuration, or nothing at all. No
ceremony here and nothing in `serve` needs a root's key but `certify`, `new_issuer`, `new_root`.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import config
from estserver.ca.acceptance import (
    Chain,
    check_chain,
    check_cross,
    order_chain,
    read_certificates,
    read_private_key,
    same_authority,
)
from estserver.ca.chains import read_chains
from estserver.ca.hierarchy import (
    Authority,
    CAPublicKey,
    ca_name,
    certify_issuing,
    common_name,
    cross_certify,
    make_root,
    new_mark,
    request_issuing,
)
from estserver.ca.keys import (
    PrivateKey,
    encrypt_key,
    generate_key,
    key_type_of,
    load_key,
    read_secret,
)
from estserver.ca.root_folder import require_empty, write_root
from estserver.config import Settings
from estserver.csr import read_csr
from estserver.errors import BadInput, Conflict, Fault
from estserver.files import drafted, write_private, write_public
from estserver.model import KeyType, Secret
from estserver.settings import IssuerSettings


@dataclass(frozen=True, slots=True)
class Added:
    """An issuer that is configured now. `toml` is what was added; empty: it was there before."""

    name: str
    chain: Chain
    cross: tuple[x509.Certificate, ...]
    toml: str


@dataclass(frozen=True, slots=True)
class Outside:
    """Files from outside, their contents: certificates, those above, and cross-certificates."""

    certificate: bytes | None
    chain: bytes | None = None
    cross: bytes | None = None

    def chain_of(self, also: Sequence[x509.Certificate] = ()) -> Chain:
        """Return the chain they make. Raises BadInput."""
        if self.certificate is None:
            raise BadInput("the certificate of the CA is missing: give its file")
        first, *others = read_certificates(self.certificate, "the certificate file")
        if self.chain is not None:
            others += read_certificates(self.chain, "the chain file")
        return order_chain(first, [*others, *also])

    def crosses(self) -> tuple[x509.Certificate, ...]:
        """Return the cross-certificates. Raises BadInput."""
        if self.cross is None:
            return ()
        return read_certificates(self.cross, "the file of cross-certificates")


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What every ceremony needs: the instance, and one moment that all certificates begin at."""

    configuration: Path
    settings: Settings
    now: datetime

    # -- issuing CAs certified elsewhere ----------------------------------------------------------

    def request(self, name: str, key_type: KeyType) -> Path:
        """Make a key for an issuing CA and the CSR for its certificate; return the CSR's path.

        A key that is there already is used again: that is how a CA's certificate is renewed.
        Raises BadInput; ConfigurationError: the key does not open.
        """
        issuer = self._settings_of(name)
        key_path = self._path(issuer.key)
        csr_path = self._path(issuer.certificate).with_suffix(".csr")
        if key_path.exists():
            key = load_key(key_path, self._passphrase())
            subject = self._subject_so_far(issuer, csr_path)
        else:
            key = generate_key(key_type)
            organization = self.settings.branding.organization
            subject = ca_name(organization, "Issuing CA", new_mark(self.now))
            write_private(key_path, encrypt_key(key, self._passphrase()))
        write_public(csr_path, request_issuing(subject, key).public_bytes(Encoding.PEM))
        return csr_path

    def install(self, name: str, files: Outside, succeeds: tuple[str, ...] = ()) -> Added:
        """Take the certificate that answers a request.

        For an issuer that has one already it must be of the same name and key (a renewed one).
        Raises BadInput: see `check_chain`; Conflict: another name or chain than before.
        """
        issuer = self._settings_of(name)
        key_path = self._path(issuer.key)
        if not key_path.exists():
            raise BadInput(f"{key_path} is not there: begin with `estserver ca request {name}`")
        key = load_key(key_path, self._passphrase())
        if name not in self.settings.issuers:
            return self._add(name, key, files, succeeds, key_is_there=True)
        chain = files.chain_of(self._known_certificates())
        check_chain(chain, key.public_key(), self.now)
        certificate = self._path(issuer.certificate)
        before = [*_certificates(certificate)]
        before += [one for path in issuer.chain for one in _certificates(self._path(path))]
        if not before and issuer.chain:
            write_public(self._path(issuer.chain[0]), _pem(chain[1:]))
        elif not _continues(before, chain):
            raise Conflict(
                f"issuer {name} is configured below another CA or with another name than this: "
                f"{common_name(chain[0])} below {common_name(chain[-1])}: add it under another "
                "name (`estserver ca request`)"
            )
        write_public(certificate, _pem(chain[:1]))
        return Added(name, chain, (), "")

    def adopt(
        self,
        name: str,
        key: bytes,
        passphrase: Secret | None,
        files: Outside,
        succeeds: tuple[str, ...] = (),
    ) -> Added:
        """Take over an existing CA with its key, from then on encrypted under our passphrase.

        Raises BadInput: see `read_private_key` and `check_chain`; Conflict: the name is taken.
        """
        found, along = read_private_key(key, passphrase, "the key file")
        bundle = b"".join(one.public_bytes(Encoding.PEM) for one in along)
        if bundle:
            files = Outside(files.certificate or bundle, (files.chain or b"") + bundle, files.cross)
        return self._add(name, found, files, succeeds)

    # -- with a root at hand ----------------------------------------------------------------------

    def new_issuer(
        self, name: str, root: Authority, key_type: KeyType | None, succeeds: tuple[str, ...]
    ) -> Added:
        """Make a new issuing CA below `root`. Raises BadInput, Conflict."""
        return self._make(name, root, key_type, succeeds, ())

    def new_root(
        self,
        name: str,
        folder: Path,
        key_type: KeyType | None,
        succeeds: str | None,
        old_root: Authority | None,
    ) -> Added:
        """Make a new root in `folder`, an issuing CA `name` below it, and both cross-certificates.

        Without the old root's key there is OldWithNew only: who has the old root alone must then
        learn of the new one before anything below it is used. A root that succeeds none is linked
        with none.
        Raises BadInput: `old_root` is not that of issuer `succeeds`, or allows no CA below a CA.
        """
        require_empty(folder)
        self._require_new(name)
        old = None if succeeds is None else self._root_of(succeeds)
        if old is not None and old_root is not None:
            _require_same(old_root.certificate, old)
        root = make_root(
            self.settings.branding.organization,
            key_type or (KeyType.EC_P256 if old is None else _key_type(old)),
            self.now,
            mark=new_mark(self.now),
            outlives=old,
        )
        cross = [] if old is None else [cross_certify(old, root)]
        if old_root is not None:
            cross.append(cross_certify(root.certificate, old_root))
        with _undone_on_failure(folder / "root.crt", folder / "root.key", folder / "passphrase"):
            write_root(folder, root)
            older = () if succeeds is None else (succeeds,)
            return self._make(name, root, key_type, older, tuple(cross))

    def _root_of(self, issuer: str) -> x509.Certificate:
        chains = read_chains(self.settings)
        if issuer not in chains:
            raise BadInput(f"there is no issuer {issuer} to take over from")
        return chains[issuer][-1]

    # -- the common part ---------------------------------------------------------------------------

    def _make(
        self,
        name: str,
        root: Authority,
        key_type: KeyType | None,
        succeeds: tuple[str, ...],
        cross: tuple[x509.Certificate, ...],
    ) -> Added:
        key = generate_key(key_type or key_type_of(root.key))
        subject = ca_name(self.settings.branding.organization, "Issuing CA", new_mark(self.now))
        certificate = certify_issuing(root, subject, key.public_key(), self.now)
        files = Outside(_pem([certificate, root.certificate]), cross=_pem(cross) or None)
        return self._add(name, key, files, succeeds)

    def _add(
        self,
        name: str,
        key: PrivateKey,
        files: Outside,
        succeeds: tuple[str, ...],
        *,
        key_is_there: bool = False,
    ) -> Added:
        """Check everything, write the files, and the configuration last."""
        self._require_new(name)
        issuer = self._settings_of(name)
        chain = files.chain_of(self._known_certificates())
        check_chain(chain, key.public_key(), self.now)
        known = read_chains(self.settings)
        for other, existing in known.items():
            if existing[0].subject == chain[0].subject:
                raise Conflict(f"issuer {other} is called {common_name(chain[0])} too")
        older = [name for name in succeeds if name in known]
        roots = [chain[-1], *(root for name in older for root in known.roots(name))]
        cross = files.crosses()
        for certificate in cross:
            check_cross(certificate, roots)
        certificate_path, chain_path = self._path(issuer.certificate), self._path(issuer.chain[0])
        cross_file = Path(f"ca/{name}-cross.crt")
        cross_path, key_path = self._path(cross_file), self._path(issuer.key)
        made = [certificate_path, chain_path, cross_path]
        for path in made if key_is_there else [*made, key_path]:
            if path.exists():
                raise Conflict(f"{path} is there already: choose another name or remove it")
        with _undone_on_failure(*made, *([] if key_is_there else [key_path])):
            if not key_is_there:
                write_private(key_path, encrypt_key(key, self._passphrase()))
            write_public(certificate_path, _pem(chain[:1]))
            if chain[1:]:
                write_public(chain_path, _pem(chain[1:]))
            if cross:
                write_public(cross_path, _pem(cross))
            toml = _table(
                name,
                issuer.model_copy(
                    update={
                        "chain": issuer.chain if chain[1:] else (),
                        "succeeds": succeeds,
                        "cross": (cross_file,) if cross else (),
                    }
                ),
            )
            append(self.configuration, toml)
        return Added(name, chain, cross, toml)

    def _require_new(self, name: str) -> None:
        if not config.ISSUER_NAME.fullmatch(name):
            raise BadInput(f"an issuer's name is letters, digits, - and _, at most 32: not {name}")
        if name in self.settings.issuers:
            raise Conflict(f"there is an issuer {name} already: choose another name")

    def _settings_of(self, name: str) -> IssuerSettings:
        """Return where an issuer's files are, or are going to be."""
        if name in self.settings.issuers:
            return self.settings.issuers[name]
        self._require_new(name)
        return IssuerSettings(
            certificate=Path(f"ca/{name}.crt"),
            chain=(Path(f"ca/{name}-chain.crt"),),
            key=Path(f"ca/{name}.key"),
        )

    def _known_certificates(self) -> list[x509.Certificate]:
        """Return the CA certificates that lie here already: a file may leave out its root."""
        paths = {path for issuer in self.settings.issuers.values() for path in issuer.chain}
        return [one for path in sorted(paths) for one in _certificates(self._path(path))]

    def _subject_so_far(self, issuer: IssuerSettings, csr_path: Path) -> x509.Name:
        certificate = self._path(issuer.certificate)
        if certificate.exists():
            return _certificates(certificate)[0].subject
        if csr_path.exists():
            return read_csr(csr_path.read_bytes()).subject
        raise BadInput(
            f"{self._path(issuer.key)} has neither certificate nor CSR: remove it to begin anew"
        )

    def _passphrase(self) -> Secret:
        return read_secret(self._path(self.settings.secrets.passphrase))

    def _path(self, path: Path) -> Path:
        return self.settings.path(path)


def certify(root: Authority, csr: bytes, now: datetime) -> x509.Certificate:
    """Let a root answer the request for an issuing CA's certificate.

    Raises BadCSR, KeyNotAllowed, BadInput: no name, or the root ends too soon.
    """
    asked = read_csr(csr)
    if not list(asked.subject):
        raise BadInput("the CSR has no subject, and a CA needs a name")
    if not isinstance(asked.public_key, CAPublicKey):
        raise BadInput("the CSR is for a key that is neither RSA nor EC")
    return certify_issuing(root, asked.subject, asked.public_key, now)


def append(configuration: Path, toml: str) -> None:
    """Add tables to a configuration file, if a server could start with the outcome.

    Raises ConfigurationError: it could not; the file stays as it was.
    """
    path = configuration.resolve()
    text = path.read_text(encoding="utf-8")
    with drafted(path, BytesIO(f"{text.rstrip()}\n\n{toml}".encode())) as draft:
        read_chains(config.load(draft))


def _table(name: str, issuer: IssuerSettings) -> str:
    def paths(given: Sequence[Path]) -> str:
        return json.dumps([str(path) for path in given])

    lines = [
        f"[issuers.{name}]",
        f"certificate = {json.dumps(str(issuer.certificate))}",
        f"chain = {paths(issuer.chain)}",
        f"key = {json.dumps(str(issuer.key))}",
    ]
    if issuer.succeeds:
        lines.append(f"succeeds = {json.dumps(issuer.succeeds)}")
    if issuer.cross:
        lines.append(f"cross = {paths(issuer.cross)}")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _undone_on_failure(*paths: Path) -> Iterator[None]:
    """Remove `paths`, which were not there before, if the body fails."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _certificates(path: Path) -> tuple[x509.Certificate, ...]:
    return read_certificates(path.read_bytes(), str(path)) if path.exists() else ()


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _continues(before: Sequence[x509.Certificate], chain: Chain) -> bool:
    """Tell whether `chain` is that of the same CA below the same ones: only its first is new."""
    return same_authority(before[0], chain[0]) and [*before[1:]] == [*chain[1:]]


def _require_same(given: x509.Certificate, root: x509.Certificate) -> None:
    if not same_authority(given, root):
        raise BadInput(
            f"the root given is {common_name(given)}, but the issuer to take over from is below "
            f"{common_name(root)}"
        )


def _key_type(certificate: x509.Certificate) -> KeyType:
    public_key = certificate.public_key()
    if not isinstance(public_key, CAPublicKey):
        raise Fault("a root in force has a key that is neither RSA nor EC")
    return key_type_of(public_key)
