"""Invitations: issuing, the URL, new PINs, and what the database never holds."""

import hashlib
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from estserver import pin
from estserver.errors import BadCredentials, BadInput, Conflict, NotFound
from estserver.invitations import Handover, Registration
from estserver.model import Door, InvitationState, Language
from estserver.store import Transaction, outbox
from estserver.store.tables import metadata
from tests.invitations.pins import SECOND, MakeParts, person, redeem, try_pin, wrong
from tests.parts import ORIGIN, Parts, StillClock

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
