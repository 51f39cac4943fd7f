"""The scenario of the bare limits: each beside the loads, in the same rounds."""

from contextlib import ExitStack
from functools import partial

from scripts.benchmarks.course import Course, Figures, Measurement
from scripts.benchmarks.dialogues import ask, enrollment
from scripts.benchmarks.generator import Load, Target
from scripts.benchmarks.limits import (
    Pipelines,
    durable_pipeline,
    fastest,
    handshake_microseconds,
    signatures,
    syncs,
)
from scripts.benchmarks.machine import on_cores
from scripts.benchmarks.peers import Absent, bare_nginx

_CSRS = 200
_SHARE = 0.25
"""Of a load's seconds: a loop without a network is steady much sooner."""


def limits(course: Course, stack: ExitStack) -> list[Measurement]:
    """What one core can do at best; everything runs where the server does."""
    pipelines = Pipelines(course.supply.take(_CSRS))
    pipelines.check()
    seconds, folder = course.extent.seconds * _SHARE, course.folder
    loops = {
        "pipeline template": lambda: fastest(pipelines.with_template, seconds),
        "pipeline builder": lambda: fastest(pipelines.with_builder, seconds),
        "pipeline 1 commit": lambda: durable_pipeline(pipelines, folder, 1, seconds),
        "pipeline 2 commits": lambda: durable_pipeline(pipelines, folder, 2, seconds),
        "fdatasync": lambda: syncs(folder, seconds),
    }
    loops |= {
        f"sign {kind}": partial(signatures, kind, seconds)
        for kind in ("P-256", "P-384", "RSA-3072")
    }

    def loop(name: str) -> Figures:
        with on_cores(course.cores.server):
            return {"per_second": loops[name]()}

    def handshake(*, mutual: bool) -> Figures:
        with on_cores(course.cores.server):
            return {"server_cpu_us": handshake_microseconds(course.pki, seconds, mutual=mutual)}

    measurements = [Measurement(name, partial(loop, name)) for name in loops]
    measurements += [
        Measurement("handshake TLS", partial(handshake, mutual=False)),
        Measurement("handshake mTLS", partial(handshake, mutual=True)),
    ]
    return measurements + _nginx(course, stack)


def _nginx(course: Course, stack: ExitStack) -> list[Measurement]:
    """The generator against nginx, which answers at once: bare TLS, and the generator's ceiling."""
    try:
        pid, plain, mutual = stack.enter_context(
            bare_nginx(course.folder / "nginx", course.pki, course.cores.server)
        )
    except Absent as reason:
        course.absent["bare TLS by nginx"] = str(reason)
        return []
    (csr,) = course.supply.take(1)
    request = enrollment(csr, "0000000000:00000-00000-00000")

    def load(name: str, target: Target, *, keep_alive: bool) -> Figures:
        items = (request,) * int(20000 * course.extent.seconds)
        seconds = course.extent.seconds
        _, figures = course.drive(
            name, Load(target, ask, items, 16, keep_alive, seconds), (pid,), course.cores.server
        )
        return figures

    return [
        Measurement(name, partial(load, name, target, keep_alive=keep))
        for name, target, keep in (
            ("nginx fresh 16", plain, False),
            ("nginx mTLS fresh 16", mutual, False),
            ("nginx kept 16", plain, True),
        )
    ]
