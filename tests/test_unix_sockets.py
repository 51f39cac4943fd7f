"""Unix sockets for a proxy: how they are bound, and what would keep the proxy from one."""

import grp
import os
import pwd
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from estserver import config
from estserver.errors import ConfigurationError
from estserver.listeners import bind
from estserver.unix_sockets import obstacles, unix_socket
from tests.live import Workshop

NOBODY = pwd.getpwnam("nobody")
NOGROUP = grp.getgrgid(NOBODY.pw_gid).gr_name


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that everybody may enter; pytest's own is shut to others."""
    made = Path(tempfile.mkdtemp(prefix="estserver-front-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextmanager
def _unprivileged() -> Iterator[None]:
    """Be nobody, where we are root; whoever else we are has no privileges either."""
    if os.geteuid() != 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY.pw_gid)
    os.seteuid(NOBODY.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def test_a_living_servers_socket_is_not_taken_and_a_dead_ones_is(tmp_path: Path) -> None:
    path = tmp_path / "devices.sock"
    living = unix_socket(path, None)
    living.listen()
    with pytest.raises(ConfigurationError, match="another server listens"):
        unix_socket(path, None)
    living.close()
    unix_socket(path, None).close()


def test_what_is_no_socket_is_not_removed_for_one(tmp_path: Path) -> None:
    path = tmp_path / "issuing.key"
    path.write_text("a key", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="is there and is no socket"):
        unix_socket(path, None)
    assert path.read_text(encoding="utf-8") == "a key"


def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no group no-such-group"):
        unix_socket(tmp_path / "x.sock", "no-such-group")
    assert not list(tmp_path.iterdir())


def test_a_socket_that_cannot_be_given_to_its_group_does_not_stay(folder: Path) -> None:
    if os.geteuid() == 0:
        os.chown(folder, NOBODY.pw_uid, -1)
    with _unprivileged(), pytest.raises(ConfigurationError, match="SupplementaryGroups=root"):
        unix_socket(folder / "web.sock", "root")
    assert not list(folder.iterdir())


def test_a_folder_that_is_not_ours_is_named() -> None:
    with (
        _unprivileged(),
        pytest.raises(ConfigurationError, match=r"/usr must be a folder that \w+ may write to"),
    ):
        unix_socket(Path("/usr/estserver-test.sock"), None)


def test_serve_says_which_folder_to_make_for_which_listener(template: Path, tmp_path: Path) -> None:
    live = Workshop(template).make(tmp_path / "instance", start=False)
    path = live.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("[listeners.web]\n", '[listeners.web]\nsocket = "run/web.sock"\n'))
    with pytest.raises(ConfigurationError) as raised:
        bind(config.load(path).listeners, live.directory)
    assert raised.value.detail.startswith("listeners.web: ")
    assert f"make the folder {live.directory}/run" in raised.value.detail


# -- what doctor says ------------------------------------------------------------------------------


def _found(path: Path, group: str | None = NOGROUP, *users: str, owner: int = 0) -> list[str]:
    return list(obstacles(path, group, owner=owner, front_users=users))


def test_nothing_is_said_of_a_socket_that_will_do(folder: Path) -> None:
    path = folder / "web.sock"
    assert _found(path, NOGROUP, "nobody") == []
    # By number, and where there is no proxy but our own processes.
    assert _found(path, NOGROUP, str(NOBODY.pw_uid)) == []
    assert _found(path, None) == []
    assert _found(path, None, "root") == []


def test_users_and_folders_that_are_not_there_are_told_together(folder: Path) -> None:
    missing, unknown = _found(folder / "run/web.sock", NOGROUP, "nobody", "no-such-user")
    assert f"make the folder {folder}/run" in missing
    assert "there is no user no-such-user: install the proxy" in unknown


def test_a_proxy_that_may_not_enter_a_folder_above_is_told_which(folder: Path) -> None:
    (folder / "state/run").mkdir(parents=True)
    path = folder / "state/run/web.sock"
    (folder / "state").chmod(0o750)
    (said,) = _found(path, NOGROUP, "nobody")
    assert f"nobody may not enter {folder}/state: choose a folder" in said
    (folder / "state").chmod(0o711)
    assert _found(path, NOGROUP, "nobody") == []


def test_a_proxy_outside_of_the_sockets_group_is_told_to_join(folder: Path) -> None:
    for group in (None, "root"):
        (said,) = _found(folder / "web.sock", group, "nobody")
        assert "nobody may not open" in said
        assert "set socket_group to a group that nobody is in" in said


def test_a_group_is_ours_to_give_by_membership_by_its_folder_or_where_it_has_it(
    folder: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make folders of others")
    path, daemon = folder / "web.sock", pwd.getpwnam("daemon")
    os.chown(folder, daemon.pw_uid, -1)
    (said,) = _found(path, NOGROUP, "nobody", owner=daemon.pw_uid)
    assert f"cannot be given to the group {NOGROUP}, which daemon is not in" in said
    assert f"usermod -aG {NOGROUP} daemon" in said
    (said,) = _found(path, "daemon", owner=daemon.pw_uid)
    assert said.startswith("front_users: name the user that the proxy runs as")
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(path))
        os.chown(path, daemon.pw_uid, NOBODY.pw_gid)
        assert _found(path, NOGROUP, "nobody", owner=daemon.pw_uid) == []
    path.unlink()
    _, said = _found(folder / "missing/web.sock", NOGROUP, "nobody", owner=daemon.pw_uid)
    assert "cannot be given" in said
    os.chown(folder, -1, NOBODY.pw_gid)
    folder.chmod(0o2755)
    assert _found(path, NOGROUP, "nobody", owner=daemon.pw_uid) == []


def test_a_folder_or_path_that_serve_cannot_use_is_named(folder: Path) -> None:
    path = folder / "web.sock"
    folder.chmod(0o555)
    assert (
        "must be a folder that daemon may write to"
        in _found(path, None, owner=pwd.getpwnam("daemon").pw_uid)[0]
    )
    folder.chmod(0o755)
    path.write_text("a key", encoding="utf-8")
    assert "is there and is no socket" in _found(path, None)[0]
