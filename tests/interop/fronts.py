"""HAProxy and nginx in front of an instance, set up by the examples in conf/."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from estserver import config
from tests.live import Live, Workshop

CONF = Path(__file__).parent.parent.parent / "conf"
PATIENCE_SECONDS = 30
_USERS = {"haproxy": "haproxy", "nginx": "www-data"}


@dataclass(slots=True)
class Front:
    """A proxy process; `name` is haproxy or nginx."""

    name: str
    live: Live
    folder: Path
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until both ports answer."""
        path = self.folder / f"{self.name}.conf"
        path.write_text(self._configuration() + "\n", encoding="utf-8")
        command = {
            "haproxy": ["haproxy", "-db", "-f", str(path)],
            "nginx": ["nginx", "-e", "stderr", "-c", str(path), "-g", "daemon off;"],
        }[self.name]
        with (self.folder / "log").open("wb") as log:
            self.child = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_SECONDS
        for listener in ("web", "devices"):
            while not self._answers(self.live.port(listener)):
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                with suppress(subprocess.TimeoutExpired):
                    self.child.wait(0.05)
                    raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End the proxy."""
        if self.child is not None:
            self.child.terminate()
            self.child.wait(PATIENCE_SECONDS)

    @staticmethod
    def _answers(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def _configuration(self) -> str:
        """The example with the paths and ports of this instance, and loopback only."""
        text = (CONF / {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}[self.name]).read_text()
        text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        for old, new in {
            ":8443": f"127.0.0.1:{self.live.port('web')}",
            ":9443": f"127.0.0.1:{self.live.port('devices')}",
            "listen 8443": f"listen 127.0.0.1:{self.live.port('web')}",
            "listen 9443": f"listen 127.0.0.1:{self.live.port('devices')}",
            "/etc/estserver": str(self.folder),
            "/run/estserver": str(self.folder),
            "/run/nginx.pid": str(self.folder / "nginx.pid"),
        }.items():
            text = text.replace(old, new)
        if os.geteuid() != 0:
            # Who is not root stays who he is.
            text = "\n".join(
                line for line in text.splitlines() if line.split()[:1] not in (["user"], ["group"])
            )
        return text


def behind(text: str, name: str, folder: Path) -> str:
    """Return the text of an estserver.toml with the https listeners on sockets in `folder`."""
    for listener in ("web", "devices"):
        given = f'socket = "{folder / listener}.sock"\nfront = "{name}"\n'
        if os.geteuid() == 0:
            given += f'socket_group = "{_USERS[name]}"\nfront_users = ["{_USERS[name]}"]\n'
        text = text.replace(f"[listeners.{listener}]\n", f"[listeners.{listener}]\n{given}")
    return text


def make_fronted(
    workshop: Workshop, directory: Path, name: str, serve: Callable[[Live], object] = Live.start
) -> tuple[Live, Front]:
    """Make an instance whose two https listeners are a proxy's, `serve` it, start the proxy."""
    # Not under pytest's folder, which the proxy's user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="estserver-front-"))
    folder.chmod(0o755)
    live = workshop.make(directory, start=False)
    path = directory / "estserver.toml"
    path.write_text(behind(path.read_text(encoding="utf-8"), name, folder), encoding="utf-8")
    live.settings = config.load(path)
    serve(live)
    _write_tls(live, folder)
    front = Front(name, live, folder)
    front.start()
    return live, front


def _write_tls(live: Live, folder: Path) -> None:
    """Give the proxy the server certificate that the instance made for itself."""
    pem = next((live.directory / "keys").glob("tls*.pem")).read_bytes()
    passphrase = live.settings.path(live.settings.secrets.passphrase).read_bytes().strip()
    key = load_pem_private_key(pem, passphrase).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    chain = pem[pem.index(b"-----BEGIN CERTIFICATE") :]
    (folder / "tls.pem").write_bytes(chain + key)
    (folder / "tls.key").write_bytes(key)
    (folder / "clients.pem").write_bytes(
        (live.directory / "ca/issuing.crt").read_bytes() + live.root.read_bytes()
    )
