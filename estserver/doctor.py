"""Is this instance healthy? Configuration, secrets, keys, names, database, clock, CRLs, mail, disk.

Nothing here changes anything. A check that cannot be made is a bad finding, never an exception.
"""

import asyncio
import ipaddress
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from estserver import anchor
from estserver.anchor import AnchorFile
from estserver.ca.hierarchy import common_name
from estserver.ca.keys import readable_by_others
from estserver.config import Settings
from estserver.core import Core, open_core, require_database_file
from estserver.duties import NODE
from estserver.errors import Error
from estserver.model import Clock
from estserver.names import parse_general_name
from estserver.own_certificates import own_file, responder_purpose
from estserver.settings import Listener
from estserver.specimens import pkix_linter, specimen
from estserver.status import RED
from estserver.store import Store, health, leases, require_current
from estserver.unix_sockets import obstacles
from estserver.wording import counted, trouble

_EXPIRY_WARNING = timedelta(days=90)
_CLOCK_TOLERANCE = timedelta(minutes=2)
_ALLOWED = frozenset({"pkix.invalid_uri_syntax"})
"""pkilint's grammar of URLs knows neither localhost nor URNs; `names` reads URIs by RFC 3986."""
_LOW_DISK, _NO_DISK = 1 << 30, 100 << 20


class Verdict(StrEnum):
    """`bad` makes `doctor` fail; `warning` wants a look this week."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    check: str
    verdict: Verdict
    detail: str


Check = Callable[[Settings, Clock], Iterator[Finding]]


def examine(load: Callable[[], Settings], clock: Clock) -> Iterator[Finding]:
    """Check one instance; `load` reads its configuration. Yields findings as they are made."""
    try:
        settings = load()
    except Error as error:
        yield Finding("configuration", Verdict.BAD, error.detail)
        return
    yield Finding("configuration", Verdict.OK, counted(len(settings.profiles), "profile"))
    for name, check in _CHECKS.items():
        yield from _guarded(name, check(settings, clock))


def _guarded(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Pass findings on; a check that cannot be made is itself a bad finding."""
    try:
        yield from findings
    except Error as error:
        yield Finding(name, Verdict.BAD, error.detail)
    except OSError as error:
        yield Finding(name, Verdict.BAD, trouble(error))


# -- files and listeners --------------------------------------------------------------------------


def _secret_files(settings: Settings, _clock: Clock) -> Iterator[Finding]:
    """Look for secrets that others than their owner can read."""
    paths = settings.secret_files()
    open_to_others = readable_by_others(paths)
    if open_to_others:
        yield Finding("secrets", Verdict.BAD, "; ".join(open_to_others))
    else:
        yield Finding(
            "secrets",
            Verdict.OK,
            f"{counted(len(paths), 'file')}, readable by no one but the owner",
        )
    yield from _root_keys(settings)


def _root_keys(settings: Settings) -> Iterator[Finding]:
    """Look for keys of roots that nobody carried away."""
    in_use = {settings.path(issuer.key) for issuer in settings.issuers.values()}
    for path in sorted({*settings.directory.glob("*/*.key")} - in_use):
        certificate = path.with_suffix(".crt")
        if certificate.exists() and _is_root(certificate):
            yield Finding(
                "root key", Verdict.WARNING, f"{path}: no daily work needs it, carry it away"
            )


def _is_root(path: Path) -> bool:
    """Tell whether a file begins with a self-signed certificate."""
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except ValueError:
        return False
    return certificate.issuer == certificate.subject


def _listener_names(settings: Settings, clock: Clock) -> Iterator[Finding]:
    """RFC 7030 §3.6.1, RFC 9525: clients compare the URL's host with the SAN, never with the CN."""
    for name in ("web", "devices", "status", "management"):
        listener: Listener = getattr(settings.listeners, name)
        parse_general_name(f"uri:{listener.url}")
        url = urlsplit(listener.url)
        check = f"listener {name}"
        if url.scheme == "http" and name in {"web", "devices"}:
            yield Finding(check, Verdict.BAD, f"{listener.url} is not https")
        elif listener.socket is not None:
            socket = settings.path(listener.socket)
            yield from _guarded(check, _behind_a_front(settings, listener, socket, check))
        elif url.scheme == "http":
            yield Finding(check, Verdict.OK, listener.url)
        elif listener.certificate is not None:
            yield _given_certificate(settings, listener, url.hostname or "", check, clock.now())
        elif _host(url.hostname or "") not in {_host(host) for host in settings.hosts}:
            yield Finding(
                check,
                Verdict.BAD,
                f"CLIENTS WILL REFUSE {listener.url}: {url.hostname} is not in `hosts`, so the "
                "TLS certificate does not name it",
            )
        else:
            yield Finding(check, Verdict.OK, f"{listener.url} is named in the TLS certificate")


def _behind_a_front(
    settings: Settings, listener: Listener, socket: Path, check: str
) -> Iterator[Finding]:
    """Look whether `serve` can make the socket and the front open it."""
    # Nobody else than who serves may read the secrets.
    owner = settings.path(settings.secrets.master).stat().st_uid
    users = listener.front_users
    found = list(obstacles(socket, listener.socket_group, owner=owner, front_users=users))
    # systemd makes a folder there when the service starts.
    only_stopped = socket.resolve().is_relative_to("/run") and not socket.parent.exists()
    if not found:
        detail = f"{listener.url} is the front's, which comes by {socket}"
        yield Finding(check, Verdict.OK, detail)
    elif only_stopped and len(found) == 1:
        yield Finding(check, Verdict.WARNING, found[0])
    else:
        yield Finding(check, Verdict.BAD, "; ".join(found))


def _given_certificate(
    settings: Settings, listener: Listener, host: str, check: str, now: datetime
) -> Finding:
    """Judge a TLS certificate that the operator brought."""
    path = settings.path(listener.certificate or Path())
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        return Finding(check, Verdict.BAD, trouble(error))
    except ValueError:
        return Finding(check, Verdict.BAD, f"{path}: not a PEM certificate")
    except x509.ExtensionNotFound:
        return Finding(check, Verdict.BAD, f"{path}: names no host: make one with a SAN")
    covered = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    covered += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    wanted = _host(host)
    if wanted not in covered and f"*.{wanted.partition('.')[2]}" not in covered:
        return Finding(
            check, Verdict.BAD, f"CLIENTS WILL REFUSE {listener.url}: {path} does not name {host}"
        )
    return _expiry(check, f"{path} names {host}", certificate, now)


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text.lower()


def _expiry(check: str, what: str, certificate: x509.Certificate, now: datetime) -> Finding:
    left = certificate.not_valid_after_utc - now
    if left < timedelta(0):
        return Finding(check, Verdict.BAD, f"{what}: expired on {certificate.not_valid_after_utc}")
    verdict = Verdict.WARNING if left < _EXPIRY_WARNING else Verdict.OK
    return Finding(check, verdict, f"{what}: {counted(left.days, 'day')} left")


def _disk(settings: Settings, _clock: Clock) -> Iterator[Finding]:
    free = shutil.disk_usage(settings.directory).free
    verdict = (
        Verdict.BAD if free < _NO_DISK else Verdict.WARNING if free < _LOW_DISK else Verdict.OK
    )
    yield Finding("disk", verdict, f"{free >> 20} MiB free for {settings.directory}")


# -- database and core ----------------------------------------------------------------------------


def _database(settings: Settings, clock: Clock) -> Iterator[Finding]:
    require_database_file(settings)
    store = Store(settings.database_url, clock)
    try:
        require_current(store)
        found = store.read(health.damage)
        newest = store.read(health.newest_event)
        nodes = store.read(lambda tx: leases.held(tx, NODE))
        risk = store.read(health.asynchronous_standby)
    finally:
        store.close()
    if found:
        yield Finding("database", Verdict.BAD, "; ".join(found))
    else:
        yield Finding("database", Verdict.OK, "reachable, newest schema, undamaged")
    served = ", ".join(node.name.removeprefix(NODE) for node in nodes) or "none serves now"
    if risk is None:
        yield Finding("nodes", Verdict.OK, served)
    else:
        yield Finding("nodes", Verdict.WARNING, f"{served}: {risk}")
    if newest is None:
        yield Finding("clock", Verdict.WARNING, "no audit row to compare it with")
    elif newest > clock.now() + _CLOCK_TOLERANCE:
        yield Finding(
            "clock", Verdict.BAD, f"is behind the newest audit row by {newest - clock.now()}"
        )
    else:
        yield Finding("clock", Verdict.OK, f"{clock.now():%Y-%m-%d %H:%M:%S} UTC")


def _core(settings: Settings, clock: Clock) -> Iterator[Finding]:
    """Open the instance with its keys, as `serve` does, and look at what depends on them."""
    core = open_core(settings, clock, with_keys=True)
    try:
        now = clock.now()
        for name in core.issuers:
            yield _authority(core, name, now)
        yield from _responders(core, now)
        for age in core.status.ages():
            check = f"CRL {age.name}"
            if age.age is None:
                yield Finding(check, Verdict.WARNING, "none yet: `serve` publishes the first")
            else:
                said = f"{age.age} old, {age.life_left:.0%} of its life left"
                if age.red:
                    said += ": `serve` makes the next; if it runs, look for errors in its log"
                yield Finding(check, Verdict.BAD if age.red else Verdict.OK, said)
        yield from _guarded("journal", _journal(core))
        yield from _guarded("verification", _proofs(core, now))
        yield from _guarded("profiles", _lint(core, now))
        yield from _guarded("mail", _mail(core))
    finally:
        core.close()


def _authority(core: Core, name: str, now: datetime) -> Finding:
    """Judge an issuer that opened: its key fits and its chain verifies.

    A change of CA takes as long as the longest certificate lives, so the warning comes that early:
    what is issued later than that is cut short.
    """
    check = f"issuer {name}"
    certificates = {*core.chains[name], *core.chains.sent(name)}
    soonest = min(certificates, key=lambda one: one.not_valid_after_utc)
    if core.settings.issuers[name].retired:
        end = soonest.not_valid_after_utc
        return Finding(check, Verdict.OK, f"retired; remove it after {end:%Y-%m-%d}")
    rules = [rule for rule in core.settings.profiles.values() if rule.issuer == name]
    longest = max((rule.validity for rule in rules), default=timedelta(0))
    left = soonest.not_valid_after_utc - now
    if timedelta(0) <= left < longest + _EXPIRY_WARNING:
        return Finding(
            check,
            Verdict.WARNING,
            f"{common_name(soonest)} has {counted(left.days, 'day')} left and certificates are "
            f"issued for {longest.days}: begin its successor (`estserver ca new-issuer` or "
            "`ca new-root`)",
        )
    return _expiry(check, "key fits, chain verifies", soonest, now)


def _journal(core: Core) -> Iterator[Finding]:
    """Look whether what is issued can be written down, and would outlive the database."""
    check, kept = "journal", core.settings.journal.path
    if core.journal is None or kept is None:
        said = "none: a restore forgets what came after the backup; set journal.path"
        yield Finding(check, Verdict.WARNING, said)
        return
    folder, database = core.settings.path(kept), core.settings.database_file
    if (problem := core.journal.problem()) is not None:
        yield Finding(check, Verdict.BAD, f"NOTHING CAN BE ISSUED: {problem}")
    elif database and folder.exists() and folder.stat().st_dev == database.stat().st_dev:
        said = f"{folder} can be written; on another disk it would outlive the database"
        yield Finding(check, Verdict.OK, said)
    else:
        yield Finding(check, Verdict.OK, f"{folder} can be written")


def _proofs(core: Core, now: datetime) -> Iterator[Finding]:
    """Look how long ago everything stored was verified, and the audit trail anchored."""
    every = core.settings.audit.verify_every
    newest = core.store.read(health.newest_verification)
    if newest is None:
        said = "not yet since the instance was made or restored: `serve` does it within minutes"
        yield Finding("verification", Verdict.OK, said)
    else:
        late = bool(every) and now - newest.at > 2 * every
        verdict = Verdict.BAD if newest.problems else Verdict.WARNING if late else Verdict.OK
        found = counted(newest.problems, "problem")
        said = f"{found}: see `estserver verify`" if newest.problems else "clean"
        yield Finding("verification", verdict, f"{now - newest.at} ago, {said}")
    file = AnchorFile(core.settings.path(core.settings.audit.anchor))
    age = anchor.age(file.read(), now)
    if age is None:
        yield Finding("audit anchor", Verdict.WARNING, "none yet: `serve` drops the first")
    else:
        verdict = Verdict.WARNING if age > 2 * anchor.EVERY else Verdict.OK
        yield Finding("audit anchor", verdict, f"{file.path}: {age} old")


def _responders(core: Core, now: datetime) -> Iterator[Finding]:
    """Look at the certificates that sign OCSP answers: renewed at half of their life, or not."""
    for name in core.issuers:
        check = f"OCSP responder {name}"
        path = own_file(core.settings, responder_purpose(name))
        if not path.exists():
            yield Finding(check, Verdict.WARNING, "none yet: `serve` makes the first")
            continue
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        left = certificate.not_valid_after_utc - now
        share = left / (certificate.not_valid_after_utc - certificate.not_valid_before_utc)
        if share <= RED:
            detail = f"expires on {certificate.not_valid_after_utc} and nobody renews it"
            yield Finding(check, Verdict.BAD, detail)
        else:
            yield Finding(check, Verdict.OK, f"{counted(left.days, 'day')} left")


def _mail(core: Core) -> Iterator[Finding]:
    office = core.post_office()
    letters = core.store.read(health.count_letters)
    waiting, failed = letters.get("queued", 0), letters.get("failed", 0)
    state = f"{waiting} waiting, {failed} failed"
    if not office.sends:
        yield Finding("mail", Verdict.OK, f"no server: commands print what is to be sent; {state}")
        return
    asyncio.run(office.check())
    verdict = Verdict.WARNING if failed else Verdict.OK
    yield Finding("mail", verdict, f"{core.settings.mail.host} answers; {state}")


# -- lint -----------------------------------------------------------------------------------------


def _lint(core: Core, now: datetime) -> Iterator[Finding]:
    """Let pkilint judge one draft of every profile: stricter and slower than `ca.lint`."""
    try:
        judge = pkix_linter()
    except ImportError:
        yield Finding("profiles", Verdict.SKIPPED, "not linted: pkilint is not installed")
        return
    for name, profile in core.profiles.items():
        if name.startswith("_"):
            continue
        try:
            draft = specimen(core, profile, now)
        except Error as error:
            yield Finding(f"profile {name}", Verdict.BAD, error.detail)
            continue
        errors, warnings = (codes - _ALLOWED for codes in judge(draft))
        verdict = Verdict.BAD if errors else Verdict.WARNING if warnings else Verdict.OK
        said = ", ".join(sorted(errors | warnings)) or "a draft certificate lints clean"
        yield Finding(f"profile {name}", verdict, said)


_CHECKS: Mapping[str, Check] = {
    "secrets": _secret_files,
    "listeners": _listener_names,
    "database": _database,
    "instance": _core,
    "disk": _disk,
}
