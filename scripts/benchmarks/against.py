"""Any EST server under the same load, so that peers can be paired."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.benchmarks.course import Course, Figures
from scripts.benchmarks.dialogues import ask, enrollment
from scripts.benchmarks.generator import Load, Target
from scripts.benchmarks.instances import make_csrs, require_chain

_PREFIX = "/.well-known/est"
_GUESS_PER_SECOND = 3000


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, what it takes to be let in, and its process if it runs on this machine."""

    url: str
    root: Path | None
    user: str | None
    holder: Path | None
    subject: str
    pid: int | None


def drive_peer(course: Course, peer: Peer, tell: Callable[[str], None]) -> None:
    """Enroll over new and over kept connections; the course keeps the figures.

    Raises OSError: its chain does not lead to `root`, or it cannot be reached.
    """
    parts = urlsplit(peer.url)
    host = parts.hostname or "localhost"
    target = Target(
        parts.port or 443,
        # Looked up once, or every connection would begin with it.
        host=socket.gethostbyname(host),
        name=host,
        root=peer.root,
        holders=() if peer.holder is None else (peer.holder,),
    )
    require_chain(target)
    prefix = parts.path.rstrip("/") or _PREFIX
    rounds: dict[str, list[Figures]] = {}
    for number in range(course.extent.rounds):
        tell(f"round {number + 1} of {course.extent.rounds}")
        for kind in ("fresh", "kept"):
            for connections in (1, 16, 64):
                name = f"peer {kind} {connections}"
                figures = _load(course, peer, target, f"{prefix}/simpleenroll", name)
                rounds.setdefault(name, []).append(figures)
    course.keep(rounds)


def _load(course: Course, peer: Peer, target: Target, path: str, name: str) -> Figures:
    _, kind, connections = name.split()
    seconds = course.extent.seconds
    csrs = make_csrs(int(_GUESS_PER_SECOND * seconds), subject=peer.subject)
    items = tuple(enrollment(csr, peer.user, host=target.name, path=path) for csr in csrs)
    roots = () if peer.pid is None else (peer.pid,)
    load = Load(target, ask, items, int(connections), kind == "kept", seconds)
    outcome, figures = course.drive(name, load, roots, course.cores.server)
    for index, body in outcome.results:
        course.checker.check(csrs[index], body)
    return figures
