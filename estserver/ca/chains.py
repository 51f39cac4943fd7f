"""Chains: the CA certificates of all configured issuers, and the ways from each to every root.

While one issuer takes over from another (`succeeds`), both are one family. Whoever trusts any root
of a family can verify whatever the family issues with what `bag`, `sent` or `ways` gives: that is
what a change of CA rests on (RFC 4210 §4.4, RFC 7030 §4.1.3).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.ca.acceptance import Chain, check_cross, same_authority, signed_by
from estserver.config import Settings
from estserver.errors import BadInput, ConfigurationError
from estserver.wording import trouble


@dataclass(frozen=True, slots=True)
class Way:
    """One way from an issuer to a root: what goes between leaf and root, and that root."""

    certificates: Chain
    root: x509.Certificate


class Chains(Mapping[str, Chain]):
    """By issuer name: issuing CA first, root last. Nothing in it changes.

    `cross`: all cross-certificates. `successions`: by issuer, those it takes over from.
    `retired`: issuers that issue nothing any more.
    """

    def __init__(
        self,
        chains: Mapping[str, Chain],
        *,
        cross: Mapping[str, Sequence[x509.Certificate]] | None = None,
        successions: Mapping[str, Sequence[str]] | None = None,
        retired: frozenset[str] = frozenset(),
    ) -> None:
        self._chains = dict(chains)
        self._cross = cross or {}
        self._successions = successions or {}
        self._retired = retired
        self._signers = {
            one: next((chain[-1] for chain in chains.values() if signed_by(one, chain[-1])), None)
            for crosses in self._cross.values()
            for one in crosses
        }

    def __getitem__(self, issuer: str) -> Chain:
        return self._chains[issuer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._chains)

    def __len__(self) -> int:
        return len(self._chains)

    def family(self, issuer: str) -> tuple[str, ...]:
        """Return the issuers linked with `issuer` by successions, itself too, as configured."""
        pairs = [(new, old) for new, olds in self._successions.items() for old in olds]
        members = {issuer}
        while found := {one for pair in pairs if members & {*pair} for one in pair} - members:
            members |= found
        return tuple(name for name in self._chains if name in members)

    def roots(self, issuer: str) -> tuple[x509.Certificate, ...]:
        """Return the roots of the family, oldest first: the last one is what is to stay."""
        found = dict.fromkeys(self._chains[name][-1] for name in self.family(issuer))
        return tuple(sorted(found, key=lambda root: root.not_valid_before_utc))

    def active(self) -> tuple[str, ...]:
        """Return the issuers that people should know: those not retired, and their families."""
        current = {
            member for name in self if name not in self._retired for member in self.family(name)
        }
        return tuple(name for name in self if name in current)

    def bag(self, issuer: str) -> tuple[x509.Certificate, ...]:
        """Return all CA certificates of the family, none twice, what `issuer` needs first.

        With two roots these are OldWithOld, OldWithNew, NewWithOld and NewWithNew.
        """
        family = [issuer, *(name for name in self.family(issuer) if name != issuer)]
        found = [certificate for name in family for certificate in self._chains[name]]
        return tuple(dict.fromkeys([*found, *self._crosses(issuer)]))

    def ways(self, issuer: str) -> tuple[Way, ...]:
        """Return the shortest way to each root of the family that can be reached, oldest first.

        To its own root the way is its chain; to another it goes on by cross-certificates.
        """
        *below, own = self._chains[issuer]
        found = {own: Way(tuple(below), own)}
        ends = [own]
        for end in ends:
            for cross in self._crosses(issuer):
                upper = self._signers[cross]
                if same_authority(cross, end) and upper is not None and upper not in found:
                    found[upper] = Way((*found[end].certificates, cross), upper)
                    ends.append(upper)
        return tuple(found[root] for root in self.roots(issuer) if root in found)

    def sent(self, issuer: str) -> tuple[x509.Certificate, ...]:
        """Return what goes behind a leaf so that it verifies from every root of the family."""
        every = [certificate for way in self.ways(issuer) for certificate in way.certificates]
        return tuple(dict.fromkeys(every))

    def in_file(self, issuer: str) -> tuple[bytes, ...]:
        """Return what goes behind a leaf in a file for people, DER: what is sent, and its root."""
        certificates = dict.fromkeys([*self.sent(issuer), self._chains[issuer][-1]])
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)

    def _crosses(self, issuer: str) -> tuple[x509.Certificate, ...]:
        crosses = [one for name in self.family(issuer) for one in self._cross.get(name, ())]
        return tuple(dict.fromkeys(crosses))


def read_chains(settings: Settings) -> Chains:
    """Read the certificates of all issuers and check that each is signed by the one above.

    Raises ConfigurationError: a file is missing or wrong, a chain leads to no self-signed root, or
    a cross-certificate links no two roots of its issuer's family.
    """
    cross = {
        name: [one for path in issuer.cross for one in _read(settings, path)]
        for name, issuer in settings.issuers.items()
    }
    chains = Chains(
        {name: _read_chain(settings, name) for name in settings.issuers},
        cross=cross,
        successions={name: issuer.succeeds for name, issuer in settings.issuers.items()},
        retired=frozenset(name for name, issuer in settings.issuers.items() if issuer.retired),
    )
    for name, certificates in cross.items():
        for certificate in certificates:
            try:
                check_cross(certificate, chains.roots(name))
            except BadInput as error:
                raise ConfigurationError(f"issuers.{name}.cross: {error.detail}") from error
    return chains


def _read(settings: Settings, path: Path) -> list[x509.Certificate]:
    full = settings.path(path)
    try:
        return x509.load_pem_x509_certificates(full.read_bytes())
    except OSError as error:
        raise ConfigurationError(trouble(error, full)) from error
    except ValueError as error:
        raise ConfigurationError(f"{full}: not a PEM certificate") from error


def _read_chain(settings: Settings, name: str) -> Chain:
    """Read issuing certificate, intermediates and root, and check that each signs the one below."""
    issuer = settings.issuers[name]
    if not settings.path(issuer.certificate).exists():
        raise ConfigurationError(
            f"{settings.path(issuer.certificate)}: not there: have the CSR of this issuing CA "
            f"signed (`estserver ca request {name}`), then `estserver ca install {name} FILE`; "
            "if it was there, restore it from a backup"
        )
    chain = [one for path in (issuer.certificate, *issuer.chain) for one in _read(settings, path)]
    for lower, upper in zip(chain, [*chain[1:], chain[-1]], strict=True):
        try:
            lower.verify_directly_issued_by(upper)
        except Exception as error:
            raise ConfigurationError(
                f"issuers.{name}: the chain does not lead to a self-signed root"
            ) from error
    return tuple(chain)
