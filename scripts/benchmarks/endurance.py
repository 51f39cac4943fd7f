"""What a worker costs and survives: start, memory, and being killed under load."""

import os
import signal
import ssl
import statistics
import time
from contextlib import ExitStack
from functools import partial
from http.client import HTTPSConnection

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.store import certificates
from scripts.benchmarks.course import Course, Figures, Measurement
from scripts.benchmarks.dialogues import ask, enrollment
from scripts.benchmarks.enrolling import Served, enroll, serve, sqlite, warm_up
from scripts.benchmarks.generator import Load
from scripts.benchmarks.instances import Instance, make_instance
from scripts.benchmarks.machine import resident_megabytes

_STARTS = 5
_IDLE = 500
_SETTLED_SECONDS = 1
_KILL_AFTER_SECONDS = 1.5


def start(course: Course, _: ExitStack) -> list[Measurement]:
    """From exec until all listeners listen, of an instance that was started before."""
    return [Measurement("start", partial(_starts, course))]


def _starts(course: Course) -> Figures:
    instance = make_instance(course.folder / "start")
    seconds, resident = [], []
    for _ in range(_STARTS + 1):
        with instance.serving(course.cores.server) as running:
            seconds.append(running.start_seconds)
            resident.append(resident_megabytes(running.child.pid))
    # The first start issues the server's own certificates.
    return {
        "seconds": statistics.median(seconds[1:]),
        "first_seconds": seconds[0],
        "rss_mb": statistics.median(resident[1:]),
    }


def memory(course: Course, stack: ExitStack) -> list[Measurement]:
    """A worker after many enrollments, what idle connections add, and one that did everything."""
    measurements = []
    if "sqlite" in course.shared:
        pid = sqlite(course, stack).roots[0]
        measurements.append(
            Measurement("memory after all loads", lambda: {"rss_mb": resident_megabytes(pid)})
        )
    served = serve(course, stack, make_instance(course.folder / "memory"))
    return [*measurements, Measurement("memory", partial(_memory, course, served))]


def _memory(course: Course, served: Served) -> Figures:
    warm_up(course, served)
    while served.enrolled < course.extent.enrollments:
        enroll(course, served, "memory kept 64", 64, keep_alive=True)
    pid = served.roots[0]
    time.sleep(_SETTLED_SECONDS)
    loaded = resident_megabytes(pid)
    context = ssl.create_default_context(cafile=served.target.root)
    with ExitStack() as idle:
        for _ in range(_IDLE):
            connection = HTTPSConnection(served.target.name, served.target.port, context=context)
            idle.callback(connection.close)
            connection.request("GET", "/.well-known/est/cacerts")
            connection.getresponse().read()
        time.sleep(_SETTLED_SECONDS)
        grown = resident_megabytes(pid) - loaded
    return {
        "rss_mb": loaded,
        "enrollments": served.enrolled,
        "connection_kb": grown * 1e3 / _IDLE,
        "connections": _IDLE,
    }


def kill(course: Course, _: ExitStack) -> list[Measurement]:
    """SIGKILL under load: what was answered must be in the database."""
    return [Measurement("kill", partial(_kills, course))]


def _kills(course: Course) -> Figures:
    instance = make_instance(course.folder / "kill")
    answered = missing = unfinished = 0
    for _ in range(course.extent.rounds):
        certified = _killed(course, instance)
        with instance.core() as core:
            unfinished += len(
                core.store.read(lambda tx: certificates.unfinished(tx, created_before=tx.now))
            )
            for certificate in certified:
                der = certificate.public_bytes(Encoding.DER)
                record = core.store.read(partial(certificates.by_der, der=der))
                stored = None if record is None else core.ra.certificate_of(record.enrollment)
                answered += 1
                missing += stored is None or stored[1] != der
    return {"answered": answered, "missing": missing, "unfinished": unfinished}


def _killed(course: Course, instance: Instance) -> list[x509.Certificate]:
    """Serve, load, kill; return the certificates that were answered."""
    with ExitStack() as stack:
        served = serve(course, stack, instance)
        warm_up(course, served)
        csrs = course.supply.take(served.expected(_KILL_AFTER_SECONDS * 2))
        items = tuple(enrollment(csr, served.credentials) for csr in csrs)
        load = Load(served.target, ask, items, 64, keep_alive=True, seconds=60)
        wait = course.generator.begin(load)
        time.sleep(_KILL_AFTER_SECONDS)
        os.kill(served.roots[0], signal.SIGKILL)
        outcome = wait()
    return [course.checker.check(csrs[index], body) for index, body in outcome.results]
