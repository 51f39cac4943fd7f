"""The sections of the configuration: frozen values, each key with its default.

`config` puts them together and reads them; `conf/estserver.toml` explains them.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from estserver.model import Door, KeyType, Language, RenewalAuth

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(value: object) -> object:
    """Turn `90d`, `12h`, `30m`, `10s`, `2w` into a timedelta; other types pass through.

    Raises ValueError: text that is none of these.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", value.strip())
    if match is None:
        raise ValueError("is not a duration such as 90d, 12h, 30m or 10s")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Branding(_Section):
    """What stands on every page and mail (SEED-01)."""

    organization: str = "Example Organization"
    organization_ja: str = "サンプル機構"
    service: str = "Digital Certificate Issuance Service"
    service_ja: str = "電子証明書発行サービス"
    logo: Path | None = None
    support: str = ""
    support_ja: str = ""


class Database(_Section):
    """Where everything durable lives."""

    url: str = "sqlite:///estserver.db"


class Secrets(_Section):
    """Files outside the database that its contents are useless without."""

    master: Path = Path("secrets/master.key")
    passphrase: Path = Path("secrets/passphrase")


FrontForm = Literal["rfc9440", "haproxy", "nginx"]
"""How a proxy tells the client's certificate: `Client-Cert`, base64 DER, %-escaped PEM."""


class Listener(_Section):
    """One socket: where it listens and how the world reaches it."""

    bind: str = "127.0.0.1"
    port: int = Field(ge=0, le=65535)
    url: str
    """Public base URL without trailing slash: goes into mail, CDP, AIA and challenges."""
    certificate: Path | None = None
    key: Path | None = None
    serves: tuple[str, ...]
    socket: Path | None = None
    """A Unix socket instead of bind and port, for a proxy that ends TLS on this machine."""
    socket_group: str | None = None
    """A group that may open the socket too (mode 0660); none: its owner alone (0600)."""
    front: FrontForm = "rfc9440"
    front_users: tuple[str, ...] = ()
    """Users besides our own and root whose processes are believed at the socket."""

    @field_validator("url")
    @classmethod
    def _no_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")


def _listener(port: int, scheme: str, *serves: str) -> Any:
    return Field(
        default_factory=lambda: Listener(
            port=port, url=f"{scheme}://localhost:{port}", serves=serves
        )
    )


class Listeners(_Section):
    """The four listeners; what each serves is configuration."""

    web: Listener = _listener(8443, "https", "web", "acme")
    devices: Listener = _listener(9443, "https", "est", "renewal")
    status: Listener = _listener(8080, "http", "status")
    management: Listener = _listener(9180, "http", "management")

    def each(self) -> tuple[tuple[str, Listener], ...]:
        """Return them all with their names."""
        return (
            ("web", self.web),
            ("devices", self.devices),
            ("status", self.status),
            ("management", self.management),
        )

    @model_validator(mode="before")
    @classmethod
    def _partial_tables(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {
            name: {
                **cls.model_fields[name].get_default(call_default_factory=True).model_dump(),
                **t,
            }
            if name in cls.model_fields and isinstance(t, Mapping)
            else t
            for name, t in data.items()
        }


class IssuerSettings(_Section):
    """One issuing CA: certificate, the chain above it (root last) and its encrypted key."""

    certificate: Path
    chain: tuple[Path, ...]
    key: Path
    crl_lifetime: Duration = Field(default=timedelta(days=7), ge=timedelta(minutes=10))
    delta_crls: bool = False
    """Whether each CRL comes with one that lists only what the last full one lacks."""
    succeeds: tuple[str, ...] = ()
    """Issuers that this one takes over from: each then hands out the other's certificates too."""
    cross: tuple[Path, ...] = ()
    """Cross-certificates between its root and theirs (RFC 4210 §4.4)."""
    retired: bool = False
    """It issues nothing any more, but still signs CRLs and OCSP answers."""


class Renewal(_Section):
    """When and how the holder of a certificate may renew it."""

    auth: RenewalAuth = RenewalAuth.CERTIFICATE
    window: Duration | None = None
    """How long before notAfter renewal opens; none: at any time."""
    grace: Duration = timedelta(0)
    """How long after notAfter an expired certificate still renews."""
    same_key: bool = True
    revoke_superseded: bool = False
    overlap: Duration = timedelta(days=14)


class Notices(_Section):
    """What the owner is told by mail, where the registration has an address."""

    issued: bool = False
    """Whether each new or renewed certificate is told."""
    before_expiry: tuple[Duration, ...] = tuple(timedelta(days=n) for n in (60, 30, 14, 7, 1))
    """How long before notAfter; those longer than half the validity are left out."""
    expired: bool = True


class ProfileSettings(_Section):
    """The rules of one kind of certificate, as written; `profiles.Profile` is the checked form."""

    title: str
    title_ja: str
    issuer: str = "issuing"
    doors: tuple[Door, ...]
    default_doors: tuple[Door, ...]
    subject: tuple[str, ...]
    """RDNs such as `CN={name}`; `{device_id|first_name}` takes the first that is there."""
    names: tuple[Literal["dns", "ip", "email", "uri"], ...] = ()
    requires: tuple[Literal["name", "email", "device_id", "names"], ...] = ()
    wildcard: bool = False
    max_names: int = Field(default=100, ge=0, le=100)
    keys: tuple[KeyType, ...] = Field(min_length=1)
    validity: Duration
    key_usage: tuple[str, ...] = ("digitalSignature",)
    extended_key_usage: tuple[str, ...] = Field(min_length=1)
    policies: tuple[str, ...] = ()
    approval: bool = False
    renewal: Renewal = Renewal()
    notices: Notices = Notices()
    replacement: Duration = timedelta(hours=72)
    """How long after issuance a lost key may be replaced once by its owner; 0s: never."""
    server_key: bool = False
    csr_upload: bool = True
    pop_linking: Literal["off", "optional", "required"] = "optional"
    change_subject_name: bool = False
    own_crl: bool = False
    """Whether certificates point to a CRL of this profile alone."""


class EST(_Section):
    """RFC 7030 settings."""

    default_profile: str = "device"
    realm: str = "estserver"
    serverkeygen: bool = False
    retry_after: Duration = timedelta(seconds=60)
    pem: bool = True
    """Take PEM and raw DER bodies too, as many scripts send them."""


class ACME(_Section):
    """RFC 8555 settings."""

    require_eab: bool = True
    """False lets anybody have an account; each of its names then needs a challenge."""
    open_profile: str = "server"
    """What accounts without a binding get."""
    terms_of_service: str | None = None
    website: str | None = None
    caa_identities: tuple[str, ...] = ()
    contact: Literal["optional", "required"] = "optional"
    order_lifetime: Duration = timedelta(days=7)
    authorization_lifetime: Duration = timedelta(days=30)
    nonce_lifetime: Duration = timedelta(hours=1)
    body_bytes: int = Field(default=50000, ge=1000)
    renewal_grace: Duration = timedelta(days=30)
    """How long after its end a certificate's names are still ordered again without a new unit."""
    retry_after: Duration = timedelta(seconds=5)
    challenges: tuple[Literal["http-01", "dns-01", "tls-alpn-01"], ...] = (
        "http-01",
        "dns-01",
        "tls-alpn-01",
    )
    http_port: int = Field(default=80, ge=1, le=65535)
    tls_port: int = Field(default=443, ge=1, le=65535)
    resolvers: tuple[str, ...] = ()
    """ADDRESS or ADDRESS:PORT of the name servers to ask; none: those of the system."""
    allow_networks: tuple[str, ...] = ()
    """Networks that challenges may reach though they are private, such as 10.0.0.0/8."""
    accounts_per_hour: int = Field(default=1000, ge=1)
    """New accounts for one network: /24 of IPv4, /56 of IPv6."""
    orders_per_hour: int = Field(default=300, ge=1)
    """New orders of one account; those that renew a certificate do not count."""
    network_orders_per_hour: int = Field(default=3000, ge=1)
    """New orders from one network, of whatever accounts."""
    pause_after: Duration = timedelta(days=5)
    """How long an order may fail again and again until it is paused; 0s: for ever."""
    order_retention: Duration = timedelta(days=90)
    """How long orders that led to no certificate are remembered after their end."""
    tolerate_padding: bool = False
    """Whether the CSR of a finalize may carry base64 padding, which RFC 8555 §6.1 forbids."""
    caa: bool = False
    """Whether CAA records are checked (RFC 8659)."""


class Mail(_Section):
    """How mail leaves; without `host` the commands print it instead."""

    host: str | None = None
    port: int = 25
    security: Literal["none", "starttls", "tls"] = "starttls"
    username: str | None = None
    password_file: Path | None = None
    sender: str = "estserver@localhost"
    administrator: str | None = None
    """Who is told of dead PINs and replacements; none: the sender's own mailbox."""
    give_up_after: Duration = timedelta(hours=48)
    both_languages: bool = False
    """Whether each letter says it in both languages, the reader's own first."""
    templates: Path | None = None
    """A folder with all templates, instead of those shipped."""
    signing_certificate: Path | None = None
    """PEM chain, leaf first, with which letters are signed (S/MIME); none: unsigned."""
    signing_key: Path | None = None
    """Its key, encrypted under the passphrase; none: it is in the certificate's file."""


class Revocation(_Section):
    """What officers may do to certificates besides revoking them for good."""

    hold: bool = False
    """Whether certificates can be put on hold, and released (RFC 5280 certificateHold)."""


class Journal(_Section):
    """What is issued and revoked, written off the database before it happens."""

    path: Path | None = None
    """The folder; none: no journal is kept."""
    file_bytes: int = Field(default=64 << 20, ge=4096)
    """Size at which a file is ended and the next begun."""


class Audit(_Section):
    """The audit trail's proof against its own database."""

    anchor: Path = Path("audit.anchor")
    """Where the ends of its chains are noted every hour."""
    verify_every: Duration = timedelta(hours=24)
    """How often `serve` re-checks everything that is stored; 0s: never."""


class Web(_Section):
    """Pages for people."""

    language: Language = Language.EN
    session_idle: Duration = timedelta(minutes=30)


class Limits(_Section):
    """Bounds on what one request or one stranger may cost."""

    body_bytes: int = 65536
    request_seconds: int = 30
    header_seconds: int = 15
    stalled_seconds: int = 60
    guesses_per_source: int = 20
    """Wrong PINs one source prefix may send per hour at a guessable door before it gets 429."""
    connections: int = 4096


class Retention(_Section):
    """How long what names somebody is kept; `estserver purge` erases what is older.

    The defaults are those of the CA/Browser Forum: two years after a certificate has ended
    (TLS Baseline Requirements 5.4.3 and 5.5.2), and for the audit trail the longest life besides.
    """

    certificates: Duration = timedelta(days=731)
    """After notAfter."""
    registrations: Duration = timedelta(days=731)
    """After the registration and the last of its certificates have ended."""
    audit: Duration = timedelta(days=1130)
    mail: Duration = timedelta(days=90)
    automatic: bool = False
    """Whether the server purges by itself, every hour."""


class Log(_Section):
    """Log lines: `json` for machines, `console` for people."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"
