"""The core put together: settings become the objects below HTTP. Starts nothing.

Commands open it without keys, `serve` with them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography import x509

from estserver.authentication import Authenticator
from estserver.ca.chains import Chains, read_chains
from estserver.ca.issuer import Issuer, StatusURLs
from estserver.ca.keys import load_key, read_secret
from estserver.config import Settings
from estserver.errors import ConfigurationError
from estserver.invitations import Invitations
from estserver.journal import FileJournal
from estserver.keyring import Keyring
from estserver.model import Clock, Invitation
from estserver.own_certificates import internal_profiles
from estserver.profiles import Profile
from estserver.ra import RegistrationAuthority
from estserver.status import CRLRules, StatusAuthority
from estserver.store import Store, require_current

if TYPE_CHECKING:
    from estserver.mail.post import PostOffice


class SystemClock:
    """The real time."""

    def now(self) -> datetime:
        """Return the present moment, UTC, whole seconds."""
        return datetime.fromtimestamp(int(time.time()), UTC)


@dataclass(frozen=True, slots=True)
class Core:
    """Everything below HTTP, put together."""

    settings: Settings
    clock: Clock
    store: Store
    keyring: Keyring
    profiles: dict[str, Profile]
    """One dictionary that all parts share, so that new profiles reach them all at once."""
    chains: Chains
    issuers: Mapping[str, Issuer]
    invitations: Invitations
    authenticator: Authenticator
    ra: RegistrationAuthority
    status: StatusAuthority
    journal: FileJournal | None

    def take_profiles(self, settings: Settings) -> None:
        """Go on with the profiles of `settings`.

        Raises ConfigurationError and changes nothing: a profile is wrong, or there are other
        issuers or CA certificates, which only a restart takes (too much is built from them).
        """
        self._require_same_issuers(settings)
        fresh = _build_profiles(settings, self.chains)
        for gone in self.profiles.keys() - fresh.keys():
            del self.profiles[gone]
        self.profiles.update(fresh)

    def _require_same_issuers(self, settings: Settings) -> None:
        old, new = self.settings.issuers, settings.issuers
        changed = {name for name in {**old, **new} if old.get(name) != new.get(name)}
        if not changed:
            chains = read_chains(settings)
            changed = {name for name in chains if chains.bag(name) != self.chains.bag(name)}
        if changed:
            raise ConfigurationError(
                f"issuers: a restart is needed for {', '.join(sorted(changed))}; until then the "
                "profiles stay as they are too"
            )

    def retrieval_url(self, invitation: Invitation) -> str | None:
        """Return the secret URL of an invitation, or None where the web door is shut."""
        token = self.invitations.url_token(invitation)
        return None if token is None else f"{self.settings.listeners.web.url}/e/{token.reveal()}"

    def post_office(self) -> "PostOffice":
        """Return what sends this instance's mail. Raises ConfigurationError."""
        # Templates, mail formats and SMTP: 2.6 MB and 0.1 s, for most commands in vain.
        from estserver.mail.post import PostOffice  # noqa: PLC0415 - see above

        return PostOffice.open(self.settings, self.store, self.profiles, self.retrieval_url)

    def close(self) -> None:
        """Finish what is being written and let go of the database."""
        self.store.close()
        if self.journal is not None:
            self.journal.close()


def open_core(settings: Settings, clock: Clock, *, with_keys: bool) -> Core:
    """Build the core. Without keys it can do everything but sign.

    Raises ConfigurationError: a file is missing or wrong, or the database has another schema.
    """
    if not settings.issuers:
        raise ConfigurationError("issuers: none is configured")
    keyring = Keyring(read_secret(settings.path(settings.secrets.master)))
    chains = read_chains(settings)
    issuers = {}
    if with_keys:
        passphrase = read_secret(settings.path(settings.secrets.passphrase))
        issuers = {
            name: Issuer(
                name,
                chain,
                load_key(settings.path(settings.issuers[name].key), passphrase),
                _status_urls(settings, name),
            )
            for name, chain in chains.items()
        }
    profiles = _build_profiles(settings, chains)
    require_database_file(settings)
    journal = _open_journal(settings, clock)
    store = Store(settings.database_url, clock, journal)
    try:
        require_current(store)
        invitations = Invitations(
            store, clock, keyring, profiles, settings.limits, settings.branding.organization
        )
        return Core(
            settings=settings,
            clock=clock,
            store=store,
            keyring=keyring,
            profiles=profiles,
            chains=chains,
            issuers=issuers,
            invitations=invitations,
            authenticator=Authenticator(
                store, clock, invitations, profiles, order_grace=settings.acme.renewal_grace
            ),
            ra=RegistrationAuthority(
                store,
                clock,
                profiles,
                issuers,
                settings.est.retry_after,
                holds=settings.revocation.hold,
            ),
            status=StatusAuthority(
                store,
                clock,
                issuers,
                {
                    name: CRLRules(issuer.crl_lifetime, issuer.delta_crls)
                    for name, issuer in settings.issuers.items()
                },
                profiles,
            ),
            journal=journal,
        )
    except BaseException:
        store.close()
        raise


def _open_journal(settings: Settings, clock: Clock) -> FileJournal | None:
    kept = settings.journal
    if kept.path is None:
        return None
    return FileJournal(settings.path(kept.path), clock, kept.file_bytes)


def require_database_file(settings: Settings) -> None:
    """Raise ConfigurationError if the SQLite file is gone.

    SQLite would make an empty one: a CA that has forgotten what it issued and revoked.
    """
    path = settings.database_file
    if path is not None and not path.exists():
        raise ConfigurationError(
            f"{path} does not exist: restore it from a backup with `estserver restore` (an empty "
            "file made by hand and `estserver migrate` begin a new database, which knows no "
            "certificate)"
        )


def _build_profiles(
    settings: Settings, chains: Mapping[str, tuple[x509.Certificate, ...]]
) -> dict[str, Profile]:
    rules = {**settings.profiles, **internal_profiles(settings)}
    return {name: Profile(name, rule, chains[rule.issuer][0]) for name, rule in rules.items()}


def _status_urls(settings: Settings, issuer: str) -> StatusURLs:
    base = settings.listeners.status.url
    return StatusURLs(
        certificate=f"{base}/ca/{issuer}.cer",
        ocsp=f"{base}/ocsp",
        crl=f"{base}/crl/{issuer}.crl",
        delta=f"{base}/delta/{issuer}.crl",
    )
