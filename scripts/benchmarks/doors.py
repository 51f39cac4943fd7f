"""The other doors under load: the wizard, ACME, and pebble beside it with the same client."""

import base64
from contextlib import ExitStack
from functools import partial

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from estserver.external_binding import acme_binding
from scripts.benchmarks.course import Course, Figures, Measurement
from scripts.benchmarks.dialogues import Account, Order, Visit, order, register, visit
from scripts.benchmarks.enrolling import Served, sqlite
from scripts.benchmarks.generator import Load, Target
from scripts.benchmarks.instances import make_csrs
from scripts.benchmarks.peers import pebble, read_directory

_ACCOUNTS = 16
_NAMES = 4
"""Of each account; ordering a name again renews it."""
_ORDERS_PER_SECOND = 400
_VISITS_PER_SECOND = 60


def web(course: Course, stack: ExitStack) -> list[Measurement]:
    """People who open their link, enter the PIN, issue with a CSR, and take the certificate."""
    served = sqlite(course, stack)
    return [Measurement("web wizard 16", partial(_visits, course, served))]


def _visits(course: Course, served: Served) -> Figures:
    seconds = course.extent.seconds
    count = int(_VISITS_PER_SECOND * seconds)
    csrs = course.supply.take(count)
    invited = served.instance.invite("person", count, name="Taro Yamada", email="t@example.org")
    items = []
    for csr, handover in zip(csrs, invited, strict=True):
        if handover.pin is None or handover.token is None:
            raise RuntimeError("the invitation has no web door")
        pin = handover.pin.reveal()
        items.append(Visit(f"/e/{handover.token.reveal()}", pin, csr))
    load = Load(served.instance.target("web"), visit, tuple(items), 16, True, seconds)
    outcome, figures = course.drive("web wizard 16", load, served.roots, served.cores)
    for index, body in outcome.results:
        course.checker.check(csrs[index], body)
    return figures


def acme(course: Course, stack: ExitStack) -> list[Measurement]:
    """Orders for names that an invitation covers: newOrder, finalize, certificate."""
    served = sqlite(course, stack)
    target = served.instance.target("web")
    directory = read_directory(target, "/acme/directory")
    with served.instance.core() as core:
        keyring = core.keyring
    accounts = []
    for number in range(_ACCOUNTS):
        names = tuple(f"dns:{name}" for name in _names(number))
        (handover,) = served.instance.invite("server", names=names, units=_NAMES)
        kid, mac_key = acme_binding(keyring, handover.invitation)
        accounts.append(Account(directory, _new_key(), binding=(kid, mac_key.reveal())))
    return _orders(course, "acme order 16", target, accounts, served.roots)


def acme_peer(course: Course, stack: ExitStack) -> list[Measurement]:
    """Debian's pebble: the same client, the same names, everything in memory."""
    pid, target, directory = stack.enter_context(
        pebble(course.folder / "pebble", course.pki, course.cores.server)
    )
    accounts = [Account(directory, _new_key()) for _ in range(_ACCOUNTS)]
    return _orders(course, "pebble order 16", target, accounts, (pid,))


def _orders(
    course: Course, name: str, target: Target, accounts: list[Account], roots: tuple[int, ...]
) -> list[Measurement]:
    """Register the accounts and order each name once, so that all stand authorized."""
    cores = course.cores.server
    load = Load(target, register, tuple(accounts), 4, keep_alive=True, seconds=60)
    outcome, _ = course.drive(f"{name}, accounts", load, roots, cores)
    registered = [
        Account(accounts[index].directory, accounts[index].key, url.decode())
        for index, url in outcome.results
    ]
    subjects = [
        (account, host) for number, account in enumerate(registered) for host in _names(number)
    ]

    def measure(count: int, seconds: float) -> Figures:
        chosen = [subjects[number % len(subjects)] for number in range(count)]
        csrs = [make_csrs(1, names=[host])[0] for _, host in chosen]
        items = tuple(
            Order(account, host, base64.b64decode(csr))
            for (account, host), csr in zip(chosen, csrs, strict=True)
        )
        load = Load(target, order, items, 16, keep_alive=True, seconds=seconds)
        outcome, figures = course.drive(name, load, roots, cores)
        for index, body in outcome.results:
            course.checker.check(csrs[index], body)
        return figures

    measure(len(subjects), 60)
    seconds = course.extent.seconds
    return [Measurement(name, lambda: measure(int(_ORDERS_PER_SECOND * seconds), seconds))]


def _names(account: int) -> list[str]:
    return [f"host{number}.site{account}.example.org" for number in range(_NAMES)]


def _new_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
