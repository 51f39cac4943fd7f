"""Guessing at PINs behind the URL and at the guessable door."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import pytest
import sqlalchemy as sa

from estserver import pin
from estserver.authentication import PINCredential
from estserver.errors import BadCredentials, MistypedPIN, TooManyAttempts
from estserver.invitations import DEAD_AT, FREE_TRIES, MAX_DELAY_SECONDS, Handover
from estserver.model import Door, Secret
from estserver.settings import Limits
from estserver.steps import walk
from estserver.store import Transaction, registrations
from estserver.store.tables import attempts, audit_events
from estserver.throttling import source_key
from tests.invitations.pins import SECOND, person, redeem, try_pin, wrong
from tests.parts import ORIGIN, SOURCE, Parts

ELSEWHERE = "203.0.113.9"


def wear_out(parts: Parts, handover: Handover, tries: int) -> None:
    """Count wrong PINs without the slow hash of each."""

    def unit(tx: Transaction) -> None:
        for _ in range(tries):
            registrations.count_pin_failure(tx, handover.invitation.number)

    parts.store.write(unit)
    parts.clock.advance(MAX_DELAY_SECONDS * SECOND)


def failures(parts: Parts, handover: Handover) -> int:
    return parts.invitations.get(handover.invitation.number).pin_failures


# -- guessing behind the URL ---------------------------------------------------------------------


@pytest.mark.row("A-1")
def test_five_tries_are_free_then_each_waits_twice_as_long_up_to_a_minute(parts: Parts) -> None:
    handover = person(parts)
    for _ in range(FREE_TRIES):
        assert try_pin(parts, handover, wrong()) is BadCredentials
    for delay in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        parts.clock.advance((delay - 1) * SECOND)
        assert try_pin(parts, handover, wrong()) is TooManyAttempts
        assert try_pin(parts, handover) is TooManyAttempts
        parts.clock.advance(SECOND)
        assert try_pin(parts, handover, wrong()) is BadCredentials
    parts.clock.advance(MAX_DELAY_SECONDS * SECOND)
    assert try_pin(parts, handover) is None


def test_the_wait_is_told(parts: Parts) -> None:
    handover = person(parts)
    for _ in range(FREE_TRIES + 3):
        try_pin(parts, handover, wrong())
        parts.clock.advance(4 * SECOND)
    assert handover.pin is not None
    with pytest.raises(TooManyAttempts) as refused:
        parts.invitations.confirm(handover.invitation, handover.pin, source=SOURCE)
    assert refused.value.retry_after is not None
    assert SECOND <= refused.value.retry_after <= 4 * SECOND


@pytest.mark.row("A-1", "EST-069")
def test_after_a_hundred_tries_the_pin_is_dead_and_a_new_one_revives(parts: Parts) -> None:
    handover = person(parts)
    number = handover.invitation.number
    wear_out(parts, handover, DEAD_AT - 3)
    for _ in range(3):
        assert not parts.invitations.get(number).pin_dead
        assert try_pin(parts, handover, wrong()) is BadCredentials
        parts.clock.advance(MAX_DELAY_SECONDS * SECOND)
    assert parts.invitations.get(number).pin_dead
    parts.clock.advance(timedelta(days=1))
    assert handover.pin is not None
    with pytest.raises(BadCredentials) as refused:
        parts.invitations.confirm(handover.invitation, handover.pin, source=SOURCE)
    assert refused.value.reason == "dead"
    query = sa.select(audit_events.c.object).where(audit_events.c.event == "pin.dead")
    told = parts.store.read(lambda tx: tx.connection.execute(query).scalars().all())
    assert told == [f"invitation {number}"]
    fresh = parts.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN)
    assert try_pin(parts, fresh) is None
    assert try_pin(parts, handover) is BadCredentials
    assert (fresh.token and fresh.token.reveal()) == (handover.token and handover.token.reveal())


@pytest.mark.row("A-3")
def test_a_right_pin_after_ninety_nine_wrong_ones_kills_nothing(both: Parts) -> None:
    handover = person(both)
    wear_out(both, handover, DEAD_AT - 1)
    assert try_pin(both, handover) is None
    invitation = both.invitations.get(handover.invitation.number)
    assert (invitation.pin_failures, invitation.pin_dead) == (DEAD_AT - 1, False)
    query = sa.select(sa.func.count()).where(audit_events.c.event == "pin.dead")
    assert both.store.read(lambda tx: tx.connection.execute(query).scalar_one()) == 0


@pytest.mark.row("A-2", "EST-059")
def test_parallel_guesses_get_no_more_tries_than_serial_ones(both: Parts) -> None:
    handover = person(both)
    other = both.another()
    guesses = [wrong() for _ in range(40)]
    with closing(other.store), ThreadPoolExecutor(20) as pool:
        outcomes = list(
            pool.map(lambda n: try_pin((both, other)[n % 2], handover, guesses[n]), range(40))
        )
    assert outcomes.count(BadCredentials) == FREE_TRIES
    assert outcomes.count(TooManyAttempts) == 40 - FREE_TRIES
    assert failures(both, handover) == FREE_TRIES


def test_right_pins_at_once_are_all_right_and_leave_no_trace(both: Parts) -> None:
    handover = person(both)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: try_pin(both, handover), range(FREE_TRIES))) == {None}
    assert failures(both, handover) == 0


@pytest.mark.row("A-3")
def test_the_right_pin_between_wrong_ones_takes_nothing_from_the_owner(parts: Parts) -> None:
    handover = person(parts)
    for _ in range(FREE_TRIES - 1):
        try_pin(parts, handover, wrong())
    for _ in range(10):
        assert try_pin(parts, handover) is None
    assert failures(parts, handover) == FREE_TRIES - 1


def test_a_typing_mistake_costs_nothing(parts: Parts) -> None:
    handover = person(parts)
    assert handover.pin is not None
    right = pin.normalize(handover.pin.reveal()).reveal()
    for place, symbol in enumerate(right):
        other = "7" if symbol != "7" else "8"
        mistyped = Secret(right[:place] + other + right[place + 1 :])
        assert try_pin(parts, handover, mistyped) is MistypedPIN
    for typed in ("", "123", "not a pin at all"):
        assert try_pin(parts, handover, Secret(typed or " ")) is BadCredentials
    assert failures(parts, handover) == 0
    assert try_pin(parts, handover) is None


@pytest.mark.row("EST-059")
def test_waiting_survives_a_restart(parts: Parts) -> None:
    handover = person(parts)
    for _ in range(FREE_TRIES + 1):
        try_pin(parts, handover, wrong())
        parts.clock.advance(SECOND)
    try_pin(parts, handover, wrong())
    other = parts.another()
    with closing(other.store):
        assert try_pin(other, handover) is TooManyAttempts


# -- guessing at the guessable door --------------------------------------------------------------


@pytest.mark.row("EST-058", "INC-19", "A-29")
def test_unknown_and_wrong_are_the_same(both: Parts) -> None:
    handover, other = both.invite(), both.invite()
    assert handover.pin is not None
    number = handover.invitation.number
    dead = person(both, doors=frozenset({Door.WEB, Door.EST}))
    assert dead.pin is not None
    wear_out(both, dead, DEAD_AT - 1)
    assert try_pin(both, dead, wrong()) is BadCredentials
    assert both.invitations.get(dead.invitation.number).pin_dead
    both.clock.advance(timedelta(hours=2))
    answers = {
        redeem(both, "1000000000", wrong(pin.LONG)),
        redeem(both, number, wrong(pin.LONG)),
        redeem(both, "", wrong(pin.LONG)),
        redeem(both, other.invitation.number, handover.pin),
        redeem(both, "山田", handover.pin),
        redeem(both, dead.invitation.number, dead.pin),
    }
    assert len(answers) == 1
    assert redeem(both, number, handover.pin) is None


@pytest.mark.row("EST-059", "A-2", "A-3")
def test_the_right_pin_is_never_refused_for_the_failures_of_others(both: Parts) -> None:
    handover = both.invite()
    assert handover.pin is not None
    number = handover.invitation.number
    limit = Limits().guesses_per_source
    for n in range(limit + 5):
        answer = redeem(both, number, wrong(pin.LONG))
        assert answer is not None
        assert answer[0] is (BadCredentials if n < limit else TooManyAttempts)
    # The source that floods is slowed for wrong PINs; the right one passes even from there.
    assert redeem(both, number, handover.pin) is None
    assert redeem(both, number, handover.pin, ELSEWHERE) is None
    answer = redeem(both, number, wrong(pin.LONG), ELSEWHERE)
    assert answer is not None
    assert answer[0] is BadCredentials


@pytest.mark.row("EST-059", "INC-19")
def test_a_source_prefix_shares_its_count_across_numbers_restart_and_processes(
    both: Parts,
) -> None:
    limit = Limits().guesses_per_source
    for n in range(limit):
        redeem(both, f"{n}", wrong(pin.LONG), f"198.51.100.{n}")
    other = both.another()
    with closing(other.store):
        steps = other.invitations.redeeming("x", wrong(pin.LONG), source="198.51.100.250")
        with pytest.raises(TooManyAttempts) as refused:
            walk(steps, other.store)
        assert refused.value.retry_after is not None
        assert SECOND <= refused.value.retry_after <= timedelta(hours=1)
        answer = redeem(other, "x", wrong(pin.LONG), "198.51.101.1")
        assert answer is not None
        assert answer[0] is BadCredentials
        both.clock.advance(timedelta(hours=1))
        answer = redeem(other, "x", wrong(pin.LONG), "198.51.100.250")
        assert answer is not None
        assert answer[0] is BadCredentials


@pytest.mark.row("EST-059")
def test_the_pages_count_for_the_same_source(parts: Parts) -> None:
    handover = person(parts)
    for _ in range(FREE_TRIES):
        try_pin(parts, handover, wrong())
    query = sa.select(attempts.c.key, attempts.c.failures)
    rows = parts.store.read(lambda tx: tx.connection.execute(query).all())
    assert [tuple(row) for row in rows] == [("source:198.51.100.0/24", FREE_TRIES)]


def test_strangers_who_flood_cause_no_more_writes(parts: Parts) -> None:
    limit = Limits().guesses_per_source
    for _ in range(limit + 50):
        redeem(parts, "1", wrong(pin.LONG))
    query = sa.select(attempts.c.failures)
    assert parts.store.read(lambda tx: tx.connection.execute(query).scalars().all()) == [limit]
    horizon = parts.clock.now() + timedelta(days=1)
    assert parts.store.write(lambda tx: registrations.forget_attempts(tx, older_than=horizon)) == 1


def test_what_spends_nothing_counts_nothing(parts: Parts) -> None:
    handover = parts.invite()
    for _ in range(50):
        with pytest.raises(BadCredentials):
            parts.authenticator.entitle(
                PINCredential(handover.invitation.number, wrong(pin.LONG), SOURCE), counted=False
            )
        steps = parts.invitations.redeeming("1", Secret("00000-00000-0001"), source=SOURCE)
        with pytest.raises(MistypedPIN):
            walk(steps, parts.store)
    query = sa.select(sa.func.count()).select_from(attempts)
    assert parts.store.read(lambda tx: tx.connection.execute(query).scalar_one()) == 0


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("198.51.100.7", "source:198.51.100.0/24"),
        ("::ffff:198.51.100.7", "source:198.51.100.0/24"),
        ("2001:db8:1:2345::1", "source:2001:db8:1:2300::/56"),
        ("fe80::1%eth0", "source:fe80::/56"),
        ("", "source:local"),
        ("/run/estserver.sock", "source:local"),
    ],
)
def test_sources_are_counted_by_their_network(source: str, key: str) -> None:
    assert source_key(source) == key
