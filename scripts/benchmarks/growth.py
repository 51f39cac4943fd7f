"""A million certificates: lists and lookups, CRLs, OCSP answers."""

import base64
import multiprocessing
import random
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp as pyca_ocsp

from estserver import config
from estserver.core import SystemClock, open_core
from estserver.model import CertificateState, EnrollmentState, Origin, RevocationReason
from estserver.store import (
    Transaction,
    certificates,
    crls,
    outbox,
    registrations,
    revocations,
    search,
    selection,
)
from scripts.benchmarks import bulk
from scripts.benchmarks.bulk import Large
from scripts.benchmarks.course import Course, Figures, Measurement, percentile, timed
from scripts.benchmarks.dialogues import ask, http_request
from scripts.benchmarks.enrolling import serve, warm_up
from scripts.benchmarks.generator import Load
from scripts.benchmarks.instances import (
    ESTSERVER,
    REPOSITORY,
    Instance,
    make_instance,
)
from scripts.benchmarks.machine import on_cores, peak_megabytes, pinned

_ORIGIN = Origin("bench", "cli")
_SMALL = 100_000
_REVOKED_EVERY = 50
_CALLS = 100
_CALLS_LEAST = 5
_ASKING_SECONDS = 2
_PAGE = 50
_SOON = timedelta(days=30)
_ASKED_AGAIN = 16
_OCSP_PER_SECOND = 12000
_BULK = 10_000


def _made(course: Course, count: int) -> tuple[Instance, Large]:
    """Return an instance with `count` certificates, made once a run."""
    name = f"large-{count}"
    if name not in course.shared:
        instance = make_instance(course.folder / name, change=_quiet)
        with ExitStack() as stack:
            warm_up(course, serve(course, stack, instance))
        database = instance.settings.database_file
        if database is None:
            raise RuntimeError("bulk loads are for SQLite")
        course.shared[name] = instance, bulk.fill(database, count, revoked_every=_REVOKED_EVERY)
    made: tuple[Instance, Large] = course.shared[name]
    return made


def _quiet(text: str) -> str:
    """Switch off what would be at work on so many certificates beside what is measured."""
    reminders = "\n[profiles.device.notices]\nbefore_expiry = []\nexpired = false\n"
    return text.replace("[audit]\n", '[audit]\nverify_every = "0s"\n') + reminders


# -- lists -----------------------------------------------------------------------------------------


def lists(course: Course, _: ExitStack) -> list[Measurement]:
    """Time what commands, pages and doors ask the store, with other arguments each time."""
    instance, large = _made(course, course.extent.certificates)
    return [
        Measurement(name, partial(_asked, course, instance, large, question))
        for name, question in _QUESTIONS.items()
    ]


Question = Callable[[Transaction, Large, int], object]

# Every query that the data could make slow belongs here: `list` for what commands, pages and doors
# ask while somebody waits, `duty` for what the server asks itself again and again.
_QUESTIONS: dict[str, Question] = {
    "list newest certificates": lambda tx, *_: certificates.page(tx, limit=_PAGE),
    "list certificates further on": lambda tx, large, n: certificates.page(
        tx, before=large.enrollment(n), limit=_PAGE
    ),
    "list valid certificates": lambda tx, large, n: certificates.page(
        tx, state=CertificateState.VALID, before=large.enrollment(n), limit=_PAGE
    ),
    "list revoked certificates": lambda tx, large, n: certificates.page(
        tx, state=CertificateState.REVOKED, before=large.enrollment(n), limit=_PAGE
    ),
    "list expired certificates": lambda tx, *_: certificates.page(
        tx, state=CertificateState.EXPIRED, limit=_PAGE
    ),
    "list expiring certificates": lambda tx, large, n: certificates.page(
        tx, expiring_before=tx.now + _SOON, before=large.enrollment(n), limit=_PAGE
    ),
    "list by serial": lambda tx, large, n: certificates.by_serial(tx, large.serial(n)),
    "list by key": lambda tx, large, n: certificates.by_spki(tx, large.key_digest(n)),
    "list of an invitation": lambda tx, large, n: certificates.invitation_certificates(
        tx, large.invitation(n)
    ),
    "list status for OCSP": lambda tx, large, n: revocations.statuses(
        tx, "issuing", [large.serial(n)]
    ),
    "list newest enrollments": lambda tx, *_: certificates.enrollments_in(tx, None, limit=_PAGE),
    "list pending enrollments": lambda tx, *_: certificates.enrollments_in(
        tx, EnrollmentState.PENDING, limit=_PAGE
    ),
    "list newest invitations": lambda tx, *_: registrations.page(tx, after=None, limit=_PAGE),
    "list invitations further on": lambda tx, large, n: registrations.page(
        tx, after=registrations.get(tx, large.invitation(n)), limit=_PAGE
    ),
    "list search by name": lambda tx, large, n: search.certificates_like(
        tx, large.label(n)[:-2], limit=_PAGE
    ),
    "list search by mail address": lambda tx, large, n: search.registrations_like(
        tx, f"{large.label(n)}@", limit=_PAGE
    ),
    "list by mail address": lambda tx, large, n: selection.select(
        tx,
        selection=selection.Selection(email=f"{large.label(n)}@example.org"),
        after=None,
        limit=_PAGE,
    ),
    "duty unfinished intents": lambda tx, *_: certificates.unfinished(tx, created_before=tx.now),
    "duty superseded certificates": lambda tx, *_: certificates.superseded(
        tx, profile="device", renewed_before=tx.now, renewed_after=tx.now - timedelta(days=16)
    ),
    "duty reminders": lambda tx, *_: outbox.ending(
        tx, "expiring-7", profile="device", after=tx.now, until=tx.now + timedelta(days=1)
    ),
}


def _asked(course: Course, instance: Instance, large: Large, question: Question) -> Figures:
    numbers = random.Random(1)
    times: list[float] = []
    with on_cores(course.cores.server), instance.core() as core:
        while len(times) < _CALLS and (sum(times) < _ASKING_SECONDS or len(times) < _CALLS_LEAST):
            number = numbers.randrange(large.count)
            times.append(timed(partial(core.store.read, partial(_ask, question, large, number))))
    times.sort()
    return {
        "p50_ms": percentile(times, 0.5) * 1e3,
        "p99_ms": percentile(times, 0.99) * 1e3,
        "certificates": large.count,
    }


def _ask(question: Question, large: Large, number: int, tx: Transaction) -> object:
    return question(tx, large, number)


# -- OCSP ------------------------------------------------------------------------------------------


def ocsp(course: Course, stack: ExitStack) -> list[Measurement]:
    """Answers over kept connections: few certificates asked about again and again, many once."""
    instance, large = _made(course, course.extent.certificates)
    served = serve(course, stack, instance)
    issuer = x509.load_pem_x509_certificate((instance.directory / "ca/issuing.crt").read_bytes())
    seconds = course.extent.seconds
    requests = int(_OCSP_PER_SECOND * seconds)

    def measure(name: str, serials: list[int]) -> Figures:
        questions = {serial: status_request(issuer, serial) for serial in set(serials)}
        items = tuple(questions[serial] for serial in serials)
        target = instance.target("status")
        load = Load(target, ask, items, 16, keep_alive=True, seconds=seconds)
        outcome, figures = course.drive(name, load, served.roots, served.cores)
        for index, body in outcome.results:
            answer = pyca_ocsp.load_der_ocsp_response(body)
            if answer.serial_number != serials[index]:
                raise RuntimeError("an OCSP answer came back for another certificate")
        return figures

    few = [large.serial(number % _ASKED_AGAIN) for number in range(requests)]
    many = [large.serial(number) for number in range(min(requests, large.count))]
    return [
        Measurement("ocsp cached", partial(measure, "ocsp cached", few)),
        Measurement("ocsp uncached", partial(measure, "ocsp uncached", many)),
    ]


def status_request(issuer: x509.Certificate, serial: int) -> bytes:
    """Ask over HTTP for the status of a certificate, as most clients do: GET, SHA-1, no nonce."""
    name = hashes.Hash(hashes.SHA1())
    name.update(issuer.subject.public_bytes())
    key = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
    request = pyca_ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        name.finalize(), key, serial, hashes.SHA1()
    )
    der = request.build().public_bytes(serialization.Encoding.DER)
    path = base64.b64encode(der).decode().replace("+", "%2B").replace("/", "%2F")
    return http_request("GET", f"/ocsp/{path.replace('=', '%3D')}")


# -- CRLs ------------------------------------------------------------------------------------------


def crl(course: Course, _: ExitStack) -> list[Measurement]:
    """CRLs of a hundred thousand and of all certificates: cold, and again after one revocation."""
    counts = sorted({min(_SMALL, course.extent.certificates), course.extent.certificates})
    return [Measurement(f"crl {count}", partial(_crl, course, count)) for count in counts]


def _crl(course: Course, count: int) -> Figures:
    instance, large = _made(course, count)
    database = instance.settings.database_file
    if database is None:
        raise RuntimeError("bulk loads are for SQLite")
    bulk.revoke_all(database, large)
    # A process of its own, so that its memory is the CRL's and nothing is cached.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(publish, instance.configuration, large, course.cores.server).result()


def publish(configuration: Path, large: Large, cores: tuple[int, ...]) -> Figures:
    """Publish the CRL of everything, revoke one more, publish again."""
    with on_cores(cores):
        core = open_core(config.load(configuration), SystemClock(), with_keys=True)
        try:
            core.store.write(partial(crls.dismiss, issuer="issuing"))
            cold = timed(lambda: core.status.publish("issuing"))
            entries = len(x509.load_der_x509_crl(core.status.crl("issuing").der))
            if entries < large.count:
                raise RuntimeError(f"the CRL has {entries} entries")
            core.ra.revoke(
                large.template,
                reason=RevocationReason.SUPERSEDED,
                comment=None,
                by="bench",
                origin=_ORIGIN,
            )
            again = timed(lambda: core.status.publish("issuing"))
            newest = core.status.crl("issuing").der
            if len(x509.load_der_x509_crl(newest)) != entries + 1:
                raise RuntimeError("the second CRL does not list the new revocation")
        finally:
            core.close()
    return {
        "cold_s": cold,
        "again_s": again,
        "entries": entries,
        "megabytes": len(newest) / 1e6,
        "peak_rss_mb": peak_megabytes(),
    }


# -- revocation of many ----------------------------------------------------------------------------


def revocation(course: Course, _: ExitStack) -> list[Measurement]:
    """Revoke ten thousand certificates with one command, as after a compromise."""
    instance, large = _made(course, course.extent.certificates)
    return [Measurement("revocation", partial(_revoke, course, instance, large))]


def _revoke(course: Course, instance: Instance, large: Large) -> Figures:
    newest = range(large.count - 1, -1, -1)
    valid = [number for number in newest if number % _REVOKED_EVERY][:_BULK]
    serials = course.folder / "serials"
    serials.write_text("".join(f"{large.serial(number):x}\n" for number in valid))
    arguments = ("--serials", serials, "--reason", "superseded", "--yes")
    configuration = str(instance.configuration)
    command = (*ESTSERVER, "--config", configuration, "certificates", "revoke-selected")
    begun = time.monotonic()
    done = subprocess.run(
        pinned((*command, *arguments), course.cores.server),
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - begun
    if not done.stdout.startswith(f"{len(valid)} certificates are revoked"):
        raise RuntimeError(done.stdout)
    return {"seconds": seconds, "revoked": len(valid), "per_second": len(valid) / seconds}
