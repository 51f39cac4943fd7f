"""The scenarios of a run, in the order in which it goes through them."""

from collections.abc import Callable
from functools import partial

from scripts.benchmarks import bare, doors, endurance, enrolling, growth
from scripts.benchmarks.course import Extent, Scenario


def _loads(count: int, beginning: float = 3) -> Callable[[Extent], float]:
    """Estimate so many loads a round, each with making CSRs before and checking after."""
    return lambda extent: beginning + count * extent.rounds * (extent.seconds * 1.5 + 0.3)


def _once(seconds: float) -> Callable[[Extent], float]:
    return lambda _: seconds


def _large(seconds: float) -> Callable[[Extent], float]:
    """Estimate work that grows with the large database; `seconds` for a million certificates."""
    return lambda extent: 5 + seconds * extent.certificates / 1e6


def _kills(extent: Extent) -> float:
    return 7 * extent.rounds


def _enrollments(extent: Extent) -> float:
    return 8 + extent.enrollments / 400


SCENARIOS = (
    Scenario("limits", "what one core can do at best", bare.limits, _loads(7)),
    Scenario("est", "EST on SQLite, one worker", enrolling.est, _loads(8)),
    Scenario("journal", "EST with a journal", enrolling.journal, _loads(3)),
    Scenario("single-use", "a PIN for each certificate", enrolling.single_use, _loads(6)),
    Scenario("reenroll", "renewal over mutual TLS", enrolling.reenroll, _loads(2)),
    Scenario("postgresql", "EST on PostgreSQL", enrolling.postgresql, _loads(3, 6)),
    Scenario("workers", "two workers on SQLite", enrolling.workers, _loads(3, 5)),
    Scenario(
        "workers-postgresql",
        "two workers on PostgreSQL",
        enrolling.workers_postgresql,
        _loads(3, 7),
    ),
    Scenario("haproxy", "behind HAProxy", partial(enrolling.behind_front, "haproxy"), _loads(2, 3)),
    Scenario("nginx", "behind nginx", partial(enrolling.behind_front, "nginx"), _loads(2, 3)),
    Scenario("web", "the wizard", doors.web, _loads(3)),
    Scenario("acme", "ACME orders", doors.acme, _loads(1, 5)),
    Scenario("pebble", "ACME orders of pebble", doors.acme_peer, _loads(1, 5)),
    Scenario("memory", "memory of a worker", endurance.memory, _enrollments, alternates=False),
    Scenario("start", "from exec to listening", endurance.start, _once(9), alternates=False),
    Scenario("kill", "SIGKILL under load", endurance.kill, _kills, alternates=False),
    Scenario("lists", "lists of many certificates", growth.lists, _large(40), alternates=False),
    Scenario("ocsp", "OCSP answers", growth.ocsp, _large(5), alternates=False),
    Scenario(
        "revocation", "ten thousand revocations", growth.revocation, _once(8), alternates=False
    ),
    Scenario("crl", "CRLs", growth.crl, _large(60), alternates=False),
)
