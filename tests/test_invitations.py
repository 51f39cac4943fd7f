"""Invitations: what is shown once, how guessing is slowed, and what the database never holds."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from estserver import pin
from estserver.authentication import PINCredential
from estserver.errors import (
    BadCredentials,
    BadInput,
    Conflict,
    MistypedPIN,
    NotFound,
    TooManyAttempts,
)
from estserver.invitations import DEAD_AT, FREE_TRIES, MAX_DELAY_SECONDS, Handover, Registration
from estserver.model import Door, InvitationState, Language, Secret
from estserver.settings import Limits
from estserver.steps import walk
from estserver.store import Transaction, outbox, registrations
from estserver.store.tables import attempts, audit_events, metadata
from estserver.throttling import source_key
from tests.parts import ORIGIN, SOURCE, Parts, StillClock

MakeParts = Callable[..., Parts]
SECOND = timedelta(seconds=1)
ELSEWHERE = "203.0.113.9"


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def parts(make_parts: MakeParts, clock: StillClock) -> Parts:
    return make_parts(clock=clock)


@pytest.fixture
def both(make_database: Callable[[], str], make_parts: MakeParts, clock: StillClock) -> Parts:
    """The same on SQLite and on PostgreSQL."""
    return make_parts(make_database(), clock=clock)


def wear_out(parts: Parts, handover: Handover, tries: int) -> None:
    """Count wrong PINs without the slow hash of each."""

    def unit(tx: Transaction) -> None:
        for _ in range(tries):
            registrations.count_pin_failure(tx, handover.invitation.number, dead_at=DEAD_AT)

    parts.store.write(unit)
    parts.clock.advance(MAX_DELAY_SECONDS * SECOND)


def person(parts: Parts, **fields: Any) -> Handover:
    return parts.invite("person", **fields)


def wrong(length: int = pin.SHORT) -> Secret:
    return pin.generate(length)


def try_pin(
    parts: Parts, handover: Handover, typed: Secret | None = None
) -> type[Exception] | None:
    """Type a PIN behind the URL; return what was raised."""
    assert handover.token is not None
    invitation = parts.invitations.by_token(handover.token.reveal())
    secret = typed or handover.pin
    assert secret is not None
    try:
        parts.invitations.confirm(invitation, secret, source=SOURCE)
    except (BadCredentials, TooManyAttempts) as error:
        return type(error)
    return None


def failures(parts: Parts, handover: Handover) -> int:
    return parts.invitations.get(handover.invitation.number).pin_failures


def redeem(
    parts: Parts, number: str, secret: Secret, source: str = SOURCE
) -> tuple[type[Exception], str] | None:
    """Show a PIN at the guessable door; return class and text of what was raised."""
    try:
        walk(parts.invitations.redeeming(number, secret, source=source), parts.store)
    except (BadCredentials, TooManyAttempts) as error:
        return type(error), error.detail
    return None


# -- issuing -------------------------------------------------------------------------------------


def test_an_invitation_opens_the_default_doors_of_its_profile(parts: Parts) -> None:
    handover = person(parts)
    assert handover.invitation.doors == {Door.WEB}
    assert parts.invite("device").invitation.doors == {Door.EST, Door.ACME}
    assert handover.token is not None
    assert len(handover.token.reveal()) == 22
    assert handover.pin is not None
    assert len(pin.normalize(handover.pin.reveal()).reveal()) == pin.SHORT + 1
    both = person(parts, doors=frozenset({Door.WEB, Door.EST}))
    assert both.pin is not None
    assert len(pin.normalize(both.pin.reveal()).reveal()) == pin.LONG + 1
    assert parts.invite("device").token is None


def test_an_invitation_for_acme_alone_has_no_pin(parts: Parts) -> None:
    handover = parts.invite("server", doors=frozenset({Door.ACME}))
    assert (handover.pin, handover.token) == (None, None)
    with pytest.raises(Conflict, match="no door"):
        parts.invitations.new_pin(
            handover.invitation.number, expires=None, by="test", origin=ORIGIN
        )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"profile": "nothing"}, "no profile nothing"),
        ({"profile": "_tls"}, "no profile"),
        ({"units": 0}, "max must be"),
        ({"units": 1_000_001}, "max must be"),
        ({"expires": timedelta(0)}, "expires"),
        ({"expires": timedelta(days=999_999)}, "expires"),
        ({"names": ("dns:a b",)}, "dns"),
        ({"names": ("www.example.ac.jp",)}, "needs one of the forms"),
        ({"names": ("email:a@b.example",)}, "does not certify"),
        ({"device_id": "x\ny"}, "device id"),
        ({"device_id": "x" * 65}, "device id"),
        ({"email": "not an address"}, "mail address"),
        ({"email": "a@b.example\r\nBcc: c@d.example"}, "mail address"),
        ({"doors": frozenset()}, "at least one door"),
        ({"doors": frozenset({Door.WEB})}, "does not open the door web"),
        ({"device_id": None, "names": ()}, "a name to certify"),
    ],
)
def test_what_cannot_be_registered_is_refused_and_leaves_nothing(
    parts: Parts, fields: dict[str, Any], said: str
) -> None:
    registration = Registration(
        **{"profile": "device", "device_id": "printer-17", "names": ("dns:p.example",), **fields}
    )
    with pytest.raises(BadInput, match=said):
        parts.invitations.issue(registration, by="test", origin=ORIGIN)
    assert parts.invitations.page() == []


def test_numbers_tokens_and_pins_are_all_different(parts: Parts) -> None:
    handovers = [person(parts) for _ in range(20)]
    assert len({h.invitation.number for h in handovers}) == 20
    assert len({h.token.reveal() for h in handovers if h.token}) == 20
    assert len({h.pin.reveal() for h in handovers if h.pin}) == 20


def test_two_profiles_keep_their_invitations_apart(parts: Parts) -> None:
    one, two = person(parts), parts.invite("mail")
    assert one.token is not None
    assert two.token is not None
    assert parts.invitations.by_token(one.token.reveal()).profile == "person"
    assert parts.invitations.by_token(two.token.reveal()).profile == "mail"
    assert two.pin is not None
    assert try_pin(parts, one, two.pin) is BadCredentials
    assert try_pin(parts, one) is None


def test_pages_list_every_invitation_once_newest_first(both: Parts) -> None:
    for _ in range(7):
        both.invite()
        both.clock.advance(SECOND)
    both.invite()
    both.invite()
    seen, after = [], None
    while page := both.invitations.page(after, limit=2):
        seen += [one.number for one in page]
        after = seen[-1]
    assert len(seen) == len(set(seen)) == 9
    created = [both.invitations.get(number).created_at for number in seen]
    assert created == sorted(created, reverse=True)


# -- the URL -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token", ["", "x", "A" * 22, "A" * 64, "A" * 65, "é" * 22, "\x00", "../.."]
)
def test_an_unknown_token_finds_nothing(both: Parts, token: str) -> None:
    person(both)
    with pytest.raises(NotFound, match="not known"):
        both.invitations.by_token(token)


@pytest.mark.row("A-4")
def test_finding_by_the_url_changes_nothing(parts: Parts) -> None:
    handover = person(parts)
    assert handover.token is not None
    before = parts.invitations.get(handover.invitation.number)
    for _ in range(100):
        assert parts.invitations.by_token(handover.token.reveal()) == before


def test_a_resent_mail_has_the_same_url_and_the_same_pin(parts: Parts) -> None:
    handover = person(parts)
    number = handover.invitation.number
    again = parts.invitations.resend(number, by="test", origin=ORIGIN)
    token, first = parts.invitations.url_token(again), handover.token
    assert token is not None
    assert first is not None
    assert token.reveal() == first.reveal()
    assert try_pin(parts, handover) is None
    letters = parts.store.read(lambda tx: outbox.of_invitation(tx, number))
    assert [letter.template for letter in letters] == ["invitation", "invitation"]


def test_what_cannot_be_resent_says_why(parts: Parts) -> None:
    held = person(parts, hold=True)
    for number, said in (
        (held.invitation.number, "held"),
        (parts.invite().invitation.number, "no mail address"),
    ):
        with pytest.raises(Conflict, match=said):
            parts.invitations.resend(number, by="test", origin=ORIGIN)
    with pytest.raises(NotFound):
        parts.invitations.resend("1", by="test", origin=ORIGIN)


def test_a_held_invitation_is_mailed_when_it_is_released(parts: Parts) -> None:
    handover = person(parts, hold=True, language=Language.JA)
    number = handover.invitation.number
    assert parts.store.read(lambda tx: outbox.of_invitation(tx, number)) == []
    opened = parts.invitations.release(number, by="test", origin=ORIGIN)
    assert opened.state is InvitationState.OPEN
    (letter,) = parts.store.read(lambda tx: outbox.of_invitation(tx, number))
    assert letter.language is Language.JA
    with pytest.raises(Conflict):
        parts.invitations.release(number, by="test", origin=ORIGIN)


def test_cancelling_happens_once(parts: Parts) -> None:
    number = parts.invite().invitation.number
    cancelled = parts.invitations.cancel(number, by="test", origin=ORIGIN)
    assert cancelled.state is InvitationState.CANCELLED
    for change in (parts.invitations.cancel, parts.invitations.release):
        with pytest.raises(Conflict):
            change(number, by="test", origin=ORIGIN)
    with pytest.raises(Conflict):
        parts.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN)


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
def test_waiting_survives_a_restart(make_parts: MakeParts) -> None:
    parts = make_parts()
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
    wear_out(both, dead, DEAD_AT)
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


# -- new PINs ------------------------------------------------------------------------------------


def test_a_new_pin_ends_the_old_one_and_moves_the_expiry_forward_only(parts: Parts) -> None:
    handover = parts.invite(expires=timedelta(days=30))
    number = handover.invitation.number
    assert handover.pin is not None
    short = parts.invitations.new_pin(number, expires=timedelta(days=1), by="t", origin=ORIGIN)
    assert short.invitation.expires_at == handover.invitation.expires_at
    assert not short.invitation.renewal_pin
    assert redeem(parts, number, handover.pin) is not None
    assert short.pin is not None
    assert redeem(parts, number, short.pin) is None
    parts.clock.advance(timedelta(days=40))
    long = parts.invitations.new_pin(number, expires=None, by="t", origin=ORIGIN)
    assert long.invitation.expires_at >= parts.clock.now() + timedelta(days=30) - SECOND
    assert long.invitation.pin_generation == 3
    with pytest.raises(BadInput):
        parts.invitations.new_pin(number, expires=timedelta(days=-1), by="t", origin=ORIGIN)


def test_a_new_pin_on_a_spent_invitation_is_for_renewal(parts: Parts) -> None:
    handover = parts.invite()
    parts.enroll(handover)
    number = handover.invitation.number
    fresh = parts.invitations.new_pin(number, expires=None, by="t", origin=ORIGIN)
    assert fresh.invitation.renewal_pin


# -- what the database never holds ---------------------------------------------------------------


def canaries_of(handover: Handover) -> list[bytes]:
    """Return every form of a handed-over secret that must lie nowhere."""
    assert handover.pin is not None
    shown = handover.pin.reveal()
    plain = pin.normalize(shown).reveal()
    texts = [form.encode() for form in (shown, plain, plain[:-1])]
    token = [] if handover.token is None else [handover.token.reveal().encode()]
    return [*texts, *(hashlib.sha256(text).digest() for text in texts), *token]


def dump(tx: Transaction) -> bytes:
    """Return every value of every table."""
    values = (
        value
        for table in metadata.sorted_tables
        for row in tx.connection.execute(sa.select(table))
        for value in row
    )
    return b"\n".join(v if isinstance(v, bytes) else str(v).encode() for v in values)


@pytest.mark.row("INC-20", "EST-068", "A-31")
def test_the_database_holds_no_pin_no_token_and_no_pepper(both: Parts) -> None:
    handovers = [
        person(both),
        person(both, doors=frozenset({Door.WEB, Door.EST})),
        both.invite(),
        both.invite("server"),
    ]
    for handover in handovers[:2]:
        try_pin(both, handover)
        try_pin(both, handover, wrong())
    both.enroll(handovers[2])
    number = handovers[0].invitation.number
    handovers.append(both.invitations.new_pin(number, expires=None, by="test", origin=ORIGIN))
    both.invitations.resend(number, by="test", origin=ORIGIN)
    canaries = {f"{n}": canaries_of(handover) for n, handover in enumerate(handovers)}
    canaries["master"] = [both.master.encode()]
    content = both.store.read(dump)
    assert number.encode() in content
    for name, forms in canaries.items():
        for form in forms:
            assert form not in content, name
            assert form.hex().encode() not in content, name
    assert handovers[0].token is not None
    assert hashlib.sha256(b"url" + handovers[0].token.reveal().encode()).digest() in content


def test_another_master_secret_opens_nothing(make_parts: MakeParts, clock: StillClock) -> None:
    parts = make_parts(clock=clock)
    handovers = [person(parts), parts.invite()]
    stranger = make_parts(parts.url, clock=clock)
    assert stranger.master != parts.master
    assert try_pin(stranger, handovers[0]) is BadCredentials
    assert handovers[1].pin is not None
    assert redeem(stranger, handovers[1].invitation.number, handovers[1].pin) is not None
