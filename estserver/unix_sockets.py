"""Unix sockets for a proxy on this machine: binding one, and what would keep the proxy from it."""

import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from estserver.errors import ConfigurationError
from estserver.wording import user_name

_WRITE, _ENTER = 2, 1
"""Bits of a mode, as they stand for others."""


def unix_socket(path: Path, group: str | None) -> socket.socket:
    """Bind a Unix socket that its owner alone may open, or its owner and `group`.

    What a dead server left at `path` is taken away; a living server's is not.
    Raises ConfigurationError: folder or group are missing or not ours, another server listens
    there, or something else lies there. Raises OSError.
    """
    number = None if group is None else _group_id(group)
    if not path.parent.is_dir():
        raise ConfigurationError(_no_folder(path))
    if path.exists() and not path.is_socket():
        # To connect to a file is refused like to a dead socket.
        raise ConfigurationError(_no_socket(path))
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise ConfigurationError(f"{path}: another server listens there")
    with ExitStack() as undo:
        taken = undo.enter_context(socket.socket(socket.AF_UNIX))
        # Whether accept() waits is one flag for all workers that share this socket, and a copy sets
        # it as it stands here: where it said "wait", starting one worker froze the loops of the
        # others.
        taken.setblocking(False)
        _bind(taken, path)
        undo.callback(path.unlink, missing_ok=True)
        if number is not None:
            try:
                os.chown(path, -1, number)
            except PermissionError as error:
                raise ConfigurationError(_not_to_give(path, group, os.geteuid())) from error
            path.chmod(0o660)
        undo.pop_all()
    return taken


def _bind(taken: socket.socket, path: Path) -> None:
    # Nobody may slip in between bind and chmod: the mode is that of the umask at bind.
    before = os.umask(0o177)
    try:
        taken.bind(str(path))
    except PermissionError as error:
        raise ConfigurationError(_not_to_write(path, os.geteuid())) from error
    finally:
        os.umask(before)


def front_user(name: str) -> int:
    """Return the id of one of a listener's `front_users`, a name or a number.

    Raises ConfigurationError: there is no such user.
    """
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise ConfigurationError(
            f"front_users: there is no user {name}: install the proxy, or correct the name"
        ) from error


def obstacles(
    path: Path, group: str | None, *, owner: int, front_users: Sequence[str]
) -> Iterator[str]:
    """Say what keeps `owner`, who serves, from making a socket, and its proxy from opening it.

    Judged by modes and groups, so that whoever asks need not be root. Raises OSError.
    """
    service = _account(owner)
    if not path.parent.is_dir():
        yield _no_folder(path)
    elif path.exists() and not path.is_socket():
        yield _no_socket(path)
    elif not service.may(path.parent, _WRITE | _ENTER):
        yield _not_to_write(path, owner)
    number = None
    if group is not None:
        try:
            number = _group_id(group)
        except ConfigurationError as error:
            yield error.detail
            return
        if not service.may_give(path, number):
            yield _not_to_give(path, group, owner)
    if group is not None and not front_users:
        yield "front_users: name the user that the proxy runs as; nobody else is believed"
    for name in front_users:
        yield from _between(name, path, owner=owner, group=number)


def _between(name: str, path: Path, *, owner: int, group: int | None) -> Iterator[str]:
    """Say what keeps the proxy's user `name` from opening a socket of `owner` and `group`."""
    try:
        front = _account(front_user(name))
    except ConfigurationError as error:
        yield error.detail
        return
    above = [place for place in path.resolve().parents if place.is_dir()]
    shut = [place for place in above if not front.may(place, _ENTER)]
    if shut:
        yield (
            f"{name} may not enter {shut[-1]}: choose a folder for the socket that it may enter, "
            "such as /run/estserver"
        )
    elif front.user not in {0, owner} and group not in front.groups:
        yield f"{name} may not open {path}: set socket_group to a group that {name} is in"


@dataclass(frozen=True, slots=True)
class _Account:
    """A user as the kernel judges one."""

    user: int
    groups: frozenset[int]

    def may(self, path: Path, wanted: int) -> bool:
        """Tell whether the mode of `path` lets this user do what the bits `wanted` say."""
        found = path.stat()
        shift = 6 if found.st_uid == self.user else 3 if found.st_gid in self.groups else 0
        return self.user == 0 or found.st_mode >> shift & wanted == wanted

    def may_give(self, path: Path, group: int) -> bool:
        """Tell whether this user, who makes `path`, can make it that group's."""
        if self.user == 0 or group in self.groups:
            return True
        # `serve` may have groups that only systemd knows of: then it has done so already.
        if path.is_socket() and path.stat().st_gid == group:
            return True
        if not path.parent.is_dir():
            return False
        folder = path.parent.stat()
        return bool(folder.st_mode & stat.S_ISGID) and folder.st_gid == group


def _account(user: int) -> _Account:
    groups = {*os.getgroups(), os.getegid()} if user == os.geteuid() else set()
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return _Account(user, frozenset(groups))
    return _Account(user, frozenset({*groups, *os.getgrouplist(entry.pw_name, entry.pw_gid)}))


def _group_id(name: str) -> int:
    """Return a group's id. Raises ConfigurationError: there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ConfigurationError(
            f"socket_group: there is no group {name}: install the proxy, or correct the name"
        ) from error


# -- what is wrong, and what to do ----------------------------------------------------------------


def _no_folder(path: Path) -> str:
    return (
        f"{path}: make the folder {path.parent}, which the proxy may enter (one in /run is made by "
        "systemd when the service starts, if its unit has RuntimeDirectory=)"
    )


def _no_socket(path: Path) -> str:
    return f"{path}: is there and is no socket: choose another path"


def _not_to_write(path: Path, user: int) -> str:
    who = user_name(user)
    return f"{path}: cannot be made: {path.parent} must be a folder that {who} may write to"


def _not_to_give(path: Path, group: str | None, user: int) -> str:
    who = user_name(user)
    return (
        f"{path}: cannot be given to the group {group}, which {who} is not in: "
        f"usermod -aG {group} {who}, or with systemd SupplementaryGroups={group}"
    )
