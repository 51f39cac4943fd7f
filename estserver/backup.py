"""Backup and restore of a whole instance: database, configuration, CA certificates, keys, secrets.

A backup is a folder with a copy of every file and a manifest, written last, that names each with
its SHA-256: a folder without one is no backup. Files of the instance's folder lie under `instance/`
as they lay there; others, which the configuration names, under `elsewhere/`, and go back to where
they were. What happened after the backup stands in the journal; that and the audit anchor are no
part of it, since they are to outlive what is restored.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from estserver import config
from estserver.ca.acceptance import read_certificates, same_authority
from estserver.config import Settings
from estserver.core import Core
from estserver.errors import BadInput
from estserver.files import PRIVATE, drafted, write_private
from estserver.model import Clock, Event, Origin
from estserver.store import Store, dumping, health
from estserver.wording import trouble

MANIFEST = "manifest.json"
_FORMAT = 1
_DATABASE, _INSIDE, _OUTSIDE = "database", "instance", "elsewhere"


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of a backup: `path` in the backup, `place` where it belongs.

    A relative `place` starts at the instance's folder.
    """

    kind: str
    path: str
    place: str
    mode: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds; `directory` is where the instance was."""

    made_at: str
    version: str
    directory: str
    configuration: str
    files: tuple[Kept, ...]

    @property
    def others(self) -> tuple[Kept, ...]:
        """All of it but the database."""
        return tuple(file for file in self.files if file.kind != "database")

    @property
    def secrets(self) -> int:
        """How many files of it are secrets in the clear."""
        return sum(file.kind == "secret" for file in self.files)


# -- backup ---------------------------------------------------------------------------------------


def back_up(
    core: Core, configuration: Path, target: Path, *, with_secrets: bool, by: str, origin: Origin
) -> Manifest:
    """Write a backup of a running or resting instance into `target`, which is empty or absent.

    Raises BadInput: the folder is not empty or cannot be written; ConfigurationError: pg_dump.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} is not empty: choose a new folder")
    settings = core.settings
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = [_copy_database(core.store, settings, target)]
        secret = {settings.path(path).resolve() for path in _secrets(settings)}
        for source in _sources(settings, configuration):
            kind = "configuration" if source == configuration.resolve() else "file"
            if source in secret:
                if not with_secrets:
                    continue
                kind = "secret"
            kept.append(_copy(source, settings.directory.resolve(), target, kind))
        manifest = Manifest(
            made_at=core.clock.now().isoformat(),
            version=version("estserver"),
            directory=str(settings.directory.resolve()),
            configuration=configuration.resolve().name,
            files=tuple(kept),
        )
        text = json.dumps({"format": _FORMAT, **asdict(manifest)}, indent=2)
        write_private(target / MANIFEST, text.encode())
    except OSError as error:
        raise BadInput(trouble(error, target)) from error
    told: dict[str, str | int | bool | None] = {
        "files": len(kept),
        "secrets": manifest.secrets,
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    event = Event("instance.backed-up", by, "instance", told)
    core.store.write(lambda tx: tx.audit(event, origin))
    return manifest


def _secrets(settings: Settings) -> list[Path]:
    """List the files that lie open: CA keys are encrypted under one of them."""
    named = (settings.secrets.master, settings.secrets.passphrase, settings.mail.password_file)
    return [path for path in named if path is not None]


def _sources(settings: Settings, configuration: Path) -> list[Path]:
    """List every file of an instance but its database: what settings name, and what it made."""
    named = {settings.path(path) for path in _paths(settings)}
    names = [Path("ca"), Path("keys"), Path("secrets"), settings.mail.templates]
    folders = [settings.path(name) for name in names if name is not None]
    made = {path for folder in folders for path in folder.rglob("*")}
    files = {path.resolve() for path in named | made | {configuration} if path.is_file()}
    return sorted(files - {settings.database_file, settings.path(settings.audit.anchor).resolve()})


def _paths(settings: Settings) -> Iterator[Path]:
    """Yield every path among settings, however deep."""
    pending: list[Any] = [settings.model_dump()]
    while pending:
        value = pending.pop()
        if isinstance(value, Path):
            yield value
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, tuple | list):
            pending += value


def _copy_database(store: Store, settings: Settings, target: Path) -> Kept:
    path = target / _DATABASE
    path.touch(0o600)
    dumping.dump(store, path)
    _sync(path)
    place = "" if settings.database_file is None else str(settings.database_file)
    return _kept("database", path, target, place, 0o600)


def _copy(source: Path, directory: Path, target: Path, kind: str) -> Kept:
    inside = source.is_relative_to(directory)
    place = source.relative_to(directory) if inside else source.relative_to("/")
    path = target / (_INSIDE if inside else _OUTSIDE) / place
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(0o600)
    shutil.copyfile(source, path)
    _sync(path)
    mode = source.stat().st_mode & 0o777
    return _kept(kind, path, target, str(place if inside else source), mode)


def _kept(kind: str, path: Path, target: Path, place: str, mode: int) -> Kept:
    octets = path.stat().st_size
    return Kept(kind, str(path.relative_to(target)), place, mode, octets, _file_sha256(path))


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- restore --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored:
    """An instance brought back; `missing` are the secrets that are not there.

    `database_only`: the instance was there, and all of it but the database is as it was. Of what
    the backup has besides, `absent` is not there and was not put back, `changed` is another.
    """

    configuration: Path
    manifest: Manifest
    settings: Settings
    database_only: bool
    absent: tuple[Kept, ...] = ()
    changed: tuple[Kept, ...] = ()

    @property
    def missing(self) -> tuple[Path, ...]:
        """The secrets without which nothing can be served."""
        named = map(self.settings.path, _secrets(self.settings))
        return tuple(path for path in named if not path.exists())


def restore(
    source: Path, directory: Path | None, clock: Clock, *, by: str, origin: Origin
) -> Restored:
    """Make the instance of a backup anew in `directory`, or where it was. Overwrites nothing.

    Where all is there but the database, the database alone comes back: what is there is newer
    than the backup, and what is not may have been taken away for good.
    Raises BadInput: no backup, a damaged one, one of another instance, or something stands where
    it would write.
    """
    manifest = read_manifest(source)
    into = Path(manifest.directory) if directory is None else directory.resolve()
    written: list[Path] = []
    try:
        for file in manifest.files:
            path = source / file.path
            if not path.is_file() or _file_sha256(path) != file.sha256:
                raise BadInput(
                    f"{path}: is missing or not what was backed up: nothing was restored"
                )
        if (into / manifest.configuration).exists():
            restored = _look_around(source, manifest, into)
        else:
            restored = _bring_back_all(source, manifest, into, written)
        dumping.refill(restored.settings.database_url, source / _DATABASE)
        if (database := restored.settings.database_file) is not None:
            written.append(database)
        _record(restored, clock, by, origin)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BadInput(trouble(error, into)) from error
        raise
    return restored


def _bring_back_all(source: Path, manifest: Manifest, into: Path, written: list[Path]) -> Restored:
    """Put everything but the database back; note in `written` what is new."""
    settings = config.load(source / _INSIDE / manifest.configuration)
    settings = settings.model_copy(update={"directory": into})
    dumping.require_empty(settings.database_url)
    for file in [file for file in manifest.others if not _is_there(file, into)]:
        _put(source / file.path, into / file.place, file.mode)
        written.append(into / file.place)
    return Restored(into / manifest.configuration, manifest, settings, database_only=False)


def _look_around(source: Path, manifest: Manifest, into: Path) -> Restored:
    """See what is there of an instance that lacks its database alone; put nothing back."""
    configuration = into / manifest.configuration
    settings = config.load(configuration)
    dumping.require_empty(settings.database_url)
    absent = tuple(file for file in manifest.others if not (into / file.place).exists())
    changed = tuple(
        file
        for file in manifest.others
        if file not in absent and _file_sha256(into / file.place) != file.sha256
    )
    _require_same_instance(source, manifest, into, settings)
    return Restored(
        configuration, manifest, settings, database_only=True, absent=absent, changed=changed
    )


def _require_same_instance(
    source: Path, manifest: Manifest, into: Path, settings: Settings
) -> None:
    """Raise BadInput if no issuer of the instance in `into` is in the backup."""
    kept = {(into / file.place).resolve(): source / file.path for file in manifest.others}
    for issuer in settings.issuers.values():
        path = settings.path(issuer.certificate)
        copy = kept.get(path.resolve())
        if copy is not None and path.is_file():
            before, now = (read_certificates(one.read_bytes(), str(one)) for one in (copy, path))
            if same_authority(before[0], now[0]):
                return
    raise BadInput(
        f"{into / manifest.configuration} is there already, and no CA of it is one of the backup: "
        "nothing was restored; move it away to have all of the backup there"
    )


def read_manifest(source: Path) -> Manifest:
    """Read what a backup holds. Raises BadInput: it is no backup, or of another kind."""
    path = source / MANIFEST
    try:
        octets = path.read_bytes()
        fields = TypeAdapter(dict[str, Any]).validate_json(octets)
        if fields.get("format") != _FORMAT:
            raise BadInput(f"{source}: the backup is of another version of estserver")
        manifest = TypeAdapter(Manifest).validate_json(octets, strict=True)
    except FileNotFoundError as error:
        raise BadInput(f"{source} is no backup: it has no {MANIFEST}") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(
            f"{path}: is not as `backup` writes it: {' '.join((where, first['msg'])).strip()}"
        ) from error
    names = [name for file in manifest.files for name in (file.path, file.place)]
    names += [manifest.directory, manifest.configuration]
    if (
        any(".." in Path(name).parts or "\0" in name for name in names)
        or any(Path(file.path).is_absolute() for file in manifest.files)
        or Path(manifest.configuration).name != manifest.configuration
        or not Path(manifest.directory).is_absolute()
    ):
        raise BadInput(f"{path}: a path leads out of the backup")
    return manifest


def _is_there(file: Kept, into: Path) -> bool:
    """Tell whether a file outside the instance is there as it was. Raises BadInput: another is."""
    place = into / file.place
    if not place.exists():
        return False
    if Path(file.place).is_absolute() and _file_sha256(place) == file.sha256:
        return True
    raise BadInput(f"{place} is there already: nothing was restored")


def _put(source: Path, place: Path, mode: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as copy, drafted(place, copy, mode=PRIVATE) as draft:
        draft.chmod(mode & 0o777)


def _record(restored: Restored, clock: Clock, by: str, origin: Origin) -> None:
    manifest = restored.manifest
    store = Store(restored.settings.database_url, clock)
    try:
        told = {"made_at": manifest.made_at, "version": manifest.version}
        event = Event(health.RESTORED, by, "instance", told)
        store.write(lambda tx: tx.audit(event, origin))
    finally:
        store.close()
