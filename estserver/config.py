"""TOML in, frozen settings out; every error names its key path.

Unknown keys are errors. `ESTSERVER_DATABASE__URL` style variables override the file. Secrets are
never inline: settings name the files that hold them. Relative paths are relative to the folder of
the configuration file.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from estserver.errors import ConfigurationError
from estserver.settings import (
    ACME,
    EST,
    Audit,
    Branding,
    Database,
    IssuerSettings,
    Journal,
    Limits,
    Listeners,
    Log,
    Mail,
    ProfileSettings,
    Retention,
    Revocation,
    Secrets,
    Web,
)
from estserver.shipped_profiles import SHIPPED_PROFILES as SHIPPED_PROFILES  # noqa: PLC0414 - part of the configuration
from estserver.wording import trouble

SEARCH_PATH = (Path("estserver.toml"), Path("/etc/estserver/estserver.toml"))
ISSUER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
"""Stands in URLs (`/crl/ISSUER.crl`) and in names of files."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}")
RESERVED_LABELS = frozenset(
    {
        *("cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"),
        # Extensions and drafts: a label must never shadow an operation that may come.
        "renewal-info",
        # RFC 8295
        *("pal", "eecerts", "crls", "symmetrickeys", "firmware", "tamp"),
        # the lightweight operations draft
        *("ucacert", "ucacerts", "ucrl", "usimpleenroll", "usimplereenroll", "ucsrattrs"),
    }
)


class Settings(BaseSettings):
    """The whole configuration. `directory` is where relative paths start."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="ESTSERVER_",
        env_nested_delimiter="__",
    )

    directory: Path = Field(default=Path(), exclude=True)
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Names and addresses in the server's own TLS certificates."""
    tls_issuer: str | None = None
    """The issuer of those; none: that of est.default_profile."""
    branding: Branding = Branding()
    database: Database = Database()
    secrets: Secrets = Secrets()
    listeners: Listeners = Field(default_factory=Listeners)
    issuers: dict[str, IssuerSettings] = Field(default_factory=dict)
    profiles: dict[str, ProfileSettings] = Field(default_factory=dict, validate_default=True)
    est: EST = EST()
    acme: ACME = ACME()
    web: Web = Web()
    mail: Mail = Mail()
    revocation: Revocation = Revocation()
    journal: Journal = Journal()
    audit: Audit = Audit()
    limits: Limits = Limits()
    log: Log = Log()
    retention: Retention = Retention()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings

    @field_validator("profiles", mode="before")
    @classmethod
    def _over_the_shipped_ones(cls, value: Any) -> Any:
        """A table named like a shipped profile changes only the keys it mentions."""
        if not isinstance(value, Mapping):
            return value
        given = {
            name: {**SHIPPED_PROFILES.get(name, {}), **table}
            if isinstance(table, Mapping)
            else table
            for name, table in value.items()
        }
        return {**SHIPPED_PROFILES, **given}

    @model_validator(mode="after")
    def _issuers_fit(self) -> Self:
        for name, issuer in self.issuers.items():
            if not ISSUER_NAME.fullmatch(name):
                raise ValueError(f"issuers.{name}: an issuer may not be called that")
            if unknown := set(issuer.succeeds) - (self.issuers.keys() - {name}):
                raise ValueError(f"issuers.{name}.succeeds: no issuer {', '.join(sorted(unknown))}")
        users = {f"profiles.{name}.issuer": rule.issuer for name, rule in self.profiles.items()}
        if self.tls_issuer is not None:
            users["tls_issuer"] = self.tls_issuer
        if not self.issuers:
            return self
        for key, name in users.items():
            if name not in self.issuers:
                raise ValueError(f"{key}: there is no such issuer")
        if retired := [key for key, name in users.items() if self.issuers[name].retired]:
            raise ValueError(f"{', '.join(retired)}: a retired issuer issues nothing any more")
        return self

    @model_validator(mode="after")
    def _profiles_fit(self) -> Self:
        for name, profile in self.profiles.items():
            if not _LABEL.fullmatch(name) or name.lower() in RESERVED_LABELS:
                # RFC 7030 §3.2.2: a label must not equal an operation's path segment.
                raise ValueError(f"profiles.{name}: an EST label may not be called that")
            if not set(profile.default_doors) <= set(profile.doors):
                raise ValueError(f"profiles.{name}.default_doors: not all of them are in doors")
        if self.est.default_profile not in self.profiles:
            raise ValueError("est.default_profile: no such profile")
        if self.acme.open_profile not in self.profiles:
            raise ValueError("acme.open_profile: no such profile")
        return self

    def path(self, relative: Path) -> Path:
        """Return `relative` as seen from the configuration file's folder."""
        return self.directory / relative

    @property
    def acme_url(self) -> str | None:
        """The base URL of the ACME door, or None where no listener serves it."""
        listeners = self.listeners
        for listener in (listeners.web, listeners.devices, listeners.status, listeners.management):
            if "acme" in listener.serves:
                return f"{listener.url}/acme"
        return None

    @property
    def own_issuer(self) -> str:
        """The issuer of the server's own TLS certificates."""
        return self.tls_issuer or self.profiles[self.est.default_profile].issuer

    def secret_files(self) -> list[Path]:
        """List every file that nobody but its owner may read, whether it exists or not."""
        named = [self.secrets.master, self.secrets.passphrase]
        named += [issuer.key for issuer in self.issuers.values()]
        mail = self.mail
        signs = mail.signing_key or mail.signing_certificate
        named += [path for path in (mail.password_file, signs) if path is not None]
        # Certificates of our own, made by `serve`, and the root's key where it still lies here.
        found = [*self.path(Path("keys")).glob("*.pem"), *self.path(Path("ca")).glob("*.key")]
        return list(dict.fromkeys([*(self.path(path) for path in named), *found]))

    @property
    def database_file(self) -> Path | None:
        """The SQLite file, or None where the database is a server."""
        prefix = "sqlite:///"
        if not self.database_url.startswith(prefix):
            return None
        return Path(self.database_url.removeprefix(prefix))

    @property
    def database_url(self) -> str:
        """The database URL with a relative SQLite path made absolute."""
        prefix = "sqlite:///"
        if self.database.url.startswith(prefix) and self.database.url != "sqlite://":
            return prefix + str(self.path(Path(self.database.url.removeprefix(prefix))).resolve())
        return self.database.url


def find(explicit: Path | None, environment: Mapping[str, str]) -> Path:
    """Return the configuration file to use.

    Raises ConfigurationError: none of the places holds one.
    """
    if explicit is not None:
        return explicit
    if environment.get("ESTSERVER_CONFIG"):
        return Path(environment["ESTSERVER_CONFIG"])
    for candidate in SEARCH_PATH:
        if candidate.is_file():
            return candidate
    places = ", ".join(str(path) for path in SEARCH_PATH)
    raise ConfigurationError(
        f"no configuration: looked for --config, $ESTSERVER_CONFIG, {places}; "
        "make an instance with `estserver init DIR`"
    )


def load(path: Path) -> Settings:
    """Read one configuration file.

    Raises ConfigurationError: unreadable, not TOML, or a key that is unknown or out of range;
    the detail names file and key path and never repeats a value.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(trouble(error, path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    # Checked here because the settings class has arguments of its own, such as _env_file.
    if unknown := data.keys() - Settings.model_fields.keys() | data.keys() & {"directory"}:
        raise ConfigurationError(f"{path}: {', '.join(sorted(unknown))}: unknown key")
    try:
        return Settings(**data, directory=path.resolve().parent)
    except ValidationError as error:
        # str(error) would print the input, which may be a misplaced secret.
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {_say(item)}"
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError(f"{path}: " + "; ".join(lines)) from None
    except SettingsError:
        # An environment value that should be JSON and is not; its text would quote the value.
        raise ConfigurationError(f"{path}: a variable ESTSERVER_… is not JSON") from None


def _say(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    return str(item["msg"]).removeprefix("Value error, ")
