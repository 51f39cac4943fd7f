"""EST under load: new and kept connections, both databases, one worker and two, behind a front."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from scripts.benchmarks.course import Course, Figures, Measurement
from scripts.benchmarks.dialogues import ask, enrollment, reenrollment
from scripts.benchmarks.generator import Load, Target
from scripts.benchmarks.instances import (
    Instance,
    credentials,
    make_csr,
    make_csrs,
    make_instance,
    require_chain,
)
from scripts.benchmarks.machine import on_cores, pin
from scripts.benchmarks.peers import Absent, program
from scripts.benchmarks.pki import write_holder
from scripts.benchmarks.postgresql import cluster, main_process, server_programs

_UNITS = 1_000_000
_AT_LEAST = 256
_WARM = 32
_SINGLE_USE_AT_MOST = 2000
_HOLDERS = 16
_KINDS = (("fresh", 16), ("kept", 16), ("kept", 64))


@dataclass(slots=True)
class Served:
    """A server to load, and what is known of it.

    `roots`: the processes whose trees make up the server; `cores`: where they run. `per_second`:
    so many enrollments, or a few more, are to be expected.
    """

    instance: Instance
    target: Target
    roots: tuple[int, ...]
    cores: tuple[int, ...]
    credentials: str
    enrolled: int = 0
    per_second: float = 0.0

    def expected(self, seconds: float) -> int:
        """Return how many requests to make for a load, so that they do not run out."""
        return int(self.per_second * seconds * 1.5) + _AT_LEAST


def enroll(
    course: Course,
    served: Served,
    name: str,
    connections: int,
    *,
    keep_alive: bool,
    single_use: bool = False,
) -> Figures:
    """Enroll new keys for the seconds of a load; check every certificate after the clock."""
    count = served.expected(course.extent.seconds)
    if single_use:
        count = min(count, _SINGLE_USE_AT_MOST)
        invited = served.instance.invite("device", count, device_id="bench")
        users = [credentials(handover) for handover in invited]
    else:
        users = [served.credentials] * count
    csrs = course.supply.take(count)
    items = tuple(enrollment(csr, user) for csr, user in zip(csrs, users, strict=True))
    load = Load(served.target, ask, items, connections, keep_alive, course.extent.seconds)
    outcome, figures = course.drive(name, load, served.roots, served.cores)
    course.supply.give_back(csrs[outcome.started :])
    for index, body in outcome.results:
        course.checker.check(csrs[index], body)
    served.enrolled += len(outcome.results)
    served.per_second = max(figures["per_second"], served.per_second)
    return figures


def serve(
    course: Course,
    stack: ExitStack,
    instance: Instance,
    *,
    workers: int = 1,
    beside: tuple[int, ...] = (),
) -> Served:
    """Serve an instance, with an invitation for as many devices as there will be.

    `beside`: other processes whose time is the server's, such as the database.
    """
    cores = course.cores.server if workers == 1 else course.cores.pair
    arguments = () if workers == 1 else ("--workers", str(workers))
    running = stack.enter_context(instance.serving(cores, *arguments))
    for root in beside:
        pin(root, cores)
    (handover,) = instance.invite("device", device_id="bench", units=_UNITS)
    return Served(
        instance,
        instance.target("devices"),
        (running.child.pid, *beside),
        cores,
        credentials(handover),
    )


def warm_up(course: Course, served: Served) -> Served:
    """Verify the server's chain once and enroll a little, so that nothing later is the first."""
    require_chain(served.target)
    csrs = course.supply.take(_WARM)
    items = tuple(enrollment(csr, served.credentials) for csr in csrs)
    load = Load(served.target, ask, items, 4, keep_alive=True, seconds=60)
    _, figures = course.drive("warm-up", load, served.roots, served.cores)
    served.enrolled += _WARM
    # Many connections share commits that four do not.
    served.per_second = figures["per_second"] * 4
    return served


def sqlite(course: Course, stack: ExitStack) -> Served:
    """Return the server that most scenarios load: SQLite, one worker. Made once a run."""
    if "sqlite" not in course.shared:
        served = serve(course, stack, make_instance(course.folder / "sqlite"))
        course.shared["sqlite"] = warm_up(course, served)
    shared: Served = course.shared["sqlite"]
    return shared


def _postgresql(course: Course, stack: ExitStack, *, workers: int = 1) -> Served:
    programs = server_programs()
    if programs is None or find_spec("psycopg") is None:
        raise Absent("needs PostgreSQL (Debian package postgresql) and the extra `postgres`")
    folder = stack.enter_context(
        cluster(programs, course.folder, "synchronous_commit=on", "max_connections=200")
    )
    url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
    instance = make_instance(course.folder / f"postgresql-{workers}", database=url)
    beside = (main_process(folder),)
    return warm_up(course, serve(course, stack, instance, workers=workers, beside=beside))


# -- scenarios -------------------------------------------------------------------------------------


def _enrolling(
    course: Course, served: Served, prefix: str, *kinds: tuple[str, int]
) -> list[Measurement]:
    """Return a measurement for each (fresh or kept, connections)."""

    def measurement(kind: str, connections: int) -> Measurement:
        name, keep = f"{prefix} {kind} {connections}", kind == "kept"
        return Measurement(name, lambda: enroll(course, served, name, connections, keep_alive=keep))

    return [measurement(kind, connections) for kind, connections in kinds]


def est(course: Course, stack: ExitStack) -> list[Measurement]:
    """One worker on SQLite."""
    served = sqlite(course, stack)
    kinds = [(kind, count) for kind in ("fresh", "kept") for count in (1, 16, 64, 256)]
    return _enrolling(course, served, "est sqlite", *kinds)


def journal(course: Course, stack: ExitStack) -> list[Measurement]:
    """One worker on SQLite that keeps a journal, which is one more thing made durable."""
    instance = make_instance(course.folder / "journal", journal=True)
    served = warm_up(course, serve(course, stack, instance))
    return _enrolling(course, served, "est journal", *_KINDS)


def single_use(course: Course, stack: ExitStack) -> list[Measurement]:
    """Each PIN is good for one certificate, so no row is everybody's."""
    served = sqlite(course, stack)
    return [
        Measurement(
            name, partial(enroll, course, served, name, 16, keep_alive=keep, single_use=True)
        )
        for name, keep in (("est single-use fresh 16", False), ("est single-use kept 16", True))
    ]


def postgresql(course: Course, stack: ExitStack) -> list[Measurement]:
    """One worker on PostgreSQL, whose processes share the worker's core."""
    served = _postgresql(course, stack)
    return _enrolling(course, served, "est postgresql", *_KINDS)


def workers(course: Course, stack: ExitStack) -> list[Measurement]:
    """Two workers on SQLite."""
    instance = make_instance(course.folder / "sqlite-2")
    two = warm_up(course, serve(course, stack, instance, workers=2))
    return _enrolling(course, two, "est sqlite 2 workers", *_KINDS)


def workers_postgresql(course: Course, stack: ExitStack) -> list[Measurement]:
    """Two workers on PostgreSQL."""
    two = _postgresql(course, stack, workers=2)
    return _enrolling(course, two, "est postgresql 2 workers", *_KINDS)


def reenroll(course: Course, stack: ExitStack) -> list[Measurement]:
    """Renew over mutual TLS with a new key each time, new connections and kept ones."""
    served = sqlite(course, stack)
    shown, subject = _holders(course, served)
    return [
        Measurement(name, partial(_renew, course, shown, subject, name, keep_alive=keep))
        for name, keep in (("est reenroll fresh 16", False), ("est reenroll kept 16", True))
    ]


def _holders(course: Course, served: Served) -> tuple[Served, str]:
    """Enroll devices; return the server for those who show their certificates, and their CN."""
    folder = course.folder / "holders"
    folder.mkdir()
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(_HOLDERS)]
    csrs = [make_csr(key) for key in keys]
    items = tuple(enrollment(csr, served.credentials) for csr in csrs)
    load = Load(served.target, ask, items, 4, keep_alive=True, seconds=60)
    outcome, _ = course.drive("holders", load, served.roots, served.cores)
    paths = []
    subject = ""
    for index, body in outcome.results:
        certificate = course.checker.check(csrs[index], body)
        paths.append(folder / f"{index}.pem")
        write_holder(paths[-1], keys[index], certificate)
        name = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        subject = str(name[0].value)
    return replace(served, target=replace(served.target, holders=tuple(paths))), subject


def _renew(course: Course, served: Served, subject: str, name: str, *, keep_alive: bool) -> Figures:
    csrs = make_csrs(served.expected(course.extent.seconds), subject=subject)
    items = tuple(map(reenrollment, csrs))
    load = Load(served.target, ask, items, 16, keep_alive, course.extent.seconds)
    outcome, figures = course.drive(name, load, served.roots, served.cores)
    for index, body in outcome.results:
        course.checker.check(csrs[index], body)
    return figures


def behind_front(name: str, course: Course, stack: ExitStack) -> list[Measurement]:
    """Behind a proxy, set up by its example in conf/; `name`: haproxy or nginx."""
    # The tests adapt the examples; whoever has no tests has no examples to measure either.
    from tests.interop.fronts import Front, behind  # noqa: PLC0415 - only where a front is measured
    from tests.live import Live, MovableClock  # noqa: PLC0415 - only where a front is measured

    program(name, "nginx-light" if name == "nginx" else name)
    folder = course.folder / f"front-{name}"
    folder.mkdir()
    folder.chmod(0o755)
    instance = make_instance(
        course.folder / f"behind-{name}", change=partial(behind, name=name, folder=folder)
    )
    shutil.copy(course.pki.server, folder / "tls.pem")
    shutil.copy(course.pki.server, folder / "tls.key")
    issuing = (instance.directory / "ca/issuing.crt").read_bytes()
    (folder / "clients.pem").write_bytes(issuing + instance.root.read_bytes())
    served = serve(course, stack, instance)
    front = Front(name, Live(instance.directory, instance.settings, MovableClock()), folder)
    stack.callback(front.stop)
    # It makes as many threads as it has cores when it starts.
    with on_cores(served.cores):
        front.start()
    assert front.child is not None
    served.roots = (*served.roots, front.child.pid)
    served.target = replace(served.target, root=course.pki.root)
    warm_up(course, served)
    return _enrolling(course, served, f"est behind {name}", ("fresh", 16), ("kept", 16))
