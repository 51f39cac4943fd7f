"""Linking identity and proof of possession: tls-unique in the CSR (sheet F)."""

import base64
import ssl
from collections.abc import Callable, Sequence

import pytest

from estserver.csr import read_csr
from estserver.errors import LinkingFailed
from estserver.invitations import Handover
from estserver.protocols.est_linking import Channel, verify_linking
from tests.der import attribute
from tests.live import Live, new_key
from tests.protocols.est_wire import (
    CHALLENGE_PASSWORD,
    IDENTITY_LINKING,
    Wire,
    audit_rows,
    csr,
    get,
    issued,
    post,
    raw_csr,
    renewed,
    text,
    tls12,
    units_used,
)

SENTENCE = b"he linking of identity and POP"
REQUIRED = '\n[profiles.device]\npop_linking = "required"\n'
OFF = '\n[profiles.device]\npop_linking = "off"\n'
OTP_CHALLENGE = "1.2.840.113549.1.9.16.2.56"
REVOCATION_CHALLENGE = "1.2.840.113549.1.9.16.2.57"


def challenge(value: str | bytes, *, tag: int = 0x0C, oid: str = CHALLENGE_PASSWORD) -> bytes:
    return attribute(oid, text(value, tag))


def proofs(live: Live, handover: Handover) -> Sequence[str]:
    return [found.proof for found, _ in live.core.ra.of_invitation(handover.invitation.number)]


@pytest.mark.row("EST-098", "EST-111", "EST-193")
def test_base64_of_tls_unique_on_tls_1_2_is_accepted_and_recorded(live: Live) -> None:
    handover = live.invite("device")
    with Wire(live, context=tls12(live)) as wire:
        value = base64.b64encode(wire.unique)
        assert wire.enroll(handover, raw_csr(challenge(value))).status == 200
    assert proofs(live, handover) == ["tls-unique"]
    intended = [row for row in audit_rows(live) if row.event == "certificate.intended"]
    assert intended[-1].detail["proof"] == "tls-unique"


@pytest.mark.row("EST-098", "EST-012")
def test_a_challenge_round_on_the_same_connection_does_not_break_the_link(live: Live) -> None:
    """libest and others ask once without the PIN, then send the same CSR again."""
    with Wire(live, context=tls12(live)) as wire:
        body = raw_csr(challenge(base64.b64encode(wire.unique)))
        assert wire.ask("POST", "simpleenroll", body=body).status == 401
        assert wire.enroll(live.invite("device"), body).status == 200


@pytest.mark.row("EST-099")
def test_a_wrong_value_is_refused_and_spends_nothing(live: Live) -> None:
    handover = live.invite("device")
    with Wire(live, context=tls12(live)) as other:
        elsewhere = base64.b64encode(other.unique)
    with Wire(live, context=tls12(live)) as wire:
        unique = wire.unique
        for value in (
            elsewhere,
            base64.b64encode(unique[::-1]),
            base64.b64encode(unique[:-1]),
            base64.b64encode(unique).rstrip(b"="),
            base64.b64encode(unique) + b"A",
            unique.hex(),
            "secret",
        ):
            if value == base64.b64encode(unique):
                continue
            answer = wire.enroll(handover, raw_csr(challenge(value)))
            assert answer.status == 400
            assert SENTENCE in answer.body
        assert wire.enroll(handover, raw_csr(challenge(""))).status == 400
    assert units_used(live, handover) == 0
    assert issued(live, handover) == []


@pytest.mark.row("EST-100", "EST-098")
def test_where_linking_is_required_a_csr_without_it_is_told_so(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live(REQUIRED)
    handover = live.invite("device")
    with Wire(live, context=tls12(live)) as wire:
        answer = wire.enroll(handover, csr())
        assert answer.status == 400
        assert SENTENCE + b" is required" in answer.body
        assert units_used(live, handover) == 0
        linked = raw_csr(challenge(base64.b64encode(wire.unique)))
        assert wire.enroll(handover, linked).status == 200


@pytest.mark.row("EST-101")
def test_where_linking_is_optional_it_may_be_left_out(live: Live) -> None:
    handover = live.invite("device")
    assert post(live, csr(), by=handover).status == 200
    assert proofs(live, handover) == ["none"]


@pytest.mark.row("EST-102")
def test_on_a_resumed_session_the_value_is_that_of_the_resumed_handshake(live: Live) -> None:
    context = tls12(live)
    with Wire(live, context=context) as wire:
        assert wire.ask("GET", "cacerts").status == 200
        original = wire.unique
        session = wire.bye()
    handover = live.invite("device")
    with Wire(live, context=context, session=session) as wire:
        assert wire.sock.session_reused
        assert wire.unique != original
        answer = wire.enroll(handover, raw_csr(challenge(base64.b64encode(original))))
        assert answer.status == 400
        answer = wire.enroll(handover, raw_csr(challenge(base64.b64encode(wire.unique))))
        assert answer.status == 200


@pytest.mark.row("EST-103", "EST-104")
def test_on_tls_1_3_nothing_is_accepted_least_of_all_what_python_calls_tls_unique(
    live: Live,
) -> None:
    handover = live.invite("device")
    context = live.tls(minimum_version=ssl.TLSVersion.TLSv1_3)
    with Wire(live, context=context) as wire:
        for value in (base64.b64encode(wire.unique), base64.b64encode(b"x" * 32), "", "text"):
            answer = wire.enroll(handover, raw_csr(challenge(value)))
            assert answer.status == 400
        assert SENTENCE in answer.body
        assert b"TLSv1.3 has no tls-unique value" in answer.body
        assert b"connect with TLS 1.2" in answer.body
    assert units_used(live, handover) == 0


@pytest.mark.row("EST-105")
def test_an_exporter_value_on_tls_1_2_is_refused(live: Live) -> None:
    with Wire(live, context=tls12(live)) as wire:
        value = base64.b64encode(bytes(32))
        assert wire.enroll(live.invite("device"), raw_csr(challenge(value))).status == 400


@pytest.mark.row("EST-106")
@pytest.mark.parametrize("tag", [0x0C, 0x13, 0x14, 0x16], ids=["utf8", "printable", "t61", "ia5"])
def test_the_value_is_compared_by_its_text_in_any_string_type(live: Live, tag: int) -> None:
    handover = live.invite("device")
    with Wire(live, context=tls12(live)) as wire:
        value = base64.b64encode(wire.unique)
        assert wire.enroll(handover, raw_csr(challenge(value, tag=tag))).status == 200


@pytest.mark.row("EST-107")
def test_malformed_values_are_refused(shared: Live) -> None:
    handover = shared.invite("device")
    with Wire(shared, context=tls12(shared)) as wire:
        right = base64.b64encode(wire.unique)
        for body in (
            raw_csr(challenge("x" * 256)),
            raw_csr(attribute(CHALLENGE_PASSWORD, text(right), text("other"))),
            raw_csr(challenge(right), challenge(right)),
            raw_csr(attribute(CHALLENGE_PASSWORD)),
            raw_csr(challenge(b"\xff\xfe\xfd", tag=0x0C)),
        ):
            assert wire.enroll(handover, body).status == 400


@pytest.mark.row("EST-108", "EST-149")
def test_csrattrs_announces_challenge_password_only_where_it_is_required(
    make_live: Callable[[str], Live],
) -> None:
    oid = bytes.fromhex("06092a864886f70d010907")
    for toml, announced in ((REQUIRED, True), ("", False), (OFF, False)):
        live = make_live(toml)
        assert (oid in base64.b64decode(get(live, "csrattrs").body)) == announced


@pytest.mark.row("EST-109")
@pytest.mark.parametrize("toml", ["", OFF])
def test_the_pin_in_challenge_password_is_no_pin_and_gets_a_hint(
    make_live: Callable[[str], Live], toml: str
) -> None:
    live = make_live(toml)
    handover = live.invite("device")
    assert handover.pin is not None
    body = raw_csr(challenge(handover.pin.reveal()))
    assert post(live, body).status == 401
    answer = post(live, body, by=handover)
    assert answer.status == 400
    assert b"looks like the PIN" in answer.body
    assert b"HTTP Basic" in answer.body
    assert handover.pin.reveal().encode() not in answer.body
    assert units_used(live, handover) == 0


@pytest.mark.row("EST-109")
def test_where_linking_is_off_other_values_are_ignored(make_live: Callable[[str], Live]) -> None:
    live = make_live(OFF)
    handover = live.invite("device")
    assert post(live, raw_csr(challenge("hello")), by=handover).status == 200
    assert proofs(live, handover) == ["none"]


@pytest.mark.row("EST-110")
def test_est_identity_linking_is_verified_the_same_way(live: Live) -> None:
    handover = live.invite("device")
    with Wire(live, context=tls12(live)) as wire:
        right = base64.b64encode(wire.unique)
        wrong = base64.b64encode(bytes(12))
        for attributes in (
            [challenge(wrong, oid=IDENTITY_LINKING)],
            [challenge(right), challenge(wrong, oid=IDENTITY_LINKING)],
            [challenge(wrong), challenge(right, oid=IDENTITY_LINKING)],
        ):
            assert wire.enroll(handover, raw_csr(*attributes)).status == 400
        linked = raw_csr(challenge(right, oid=IDENTITY_LINKING))
        assert wire.enroll(handover, linked).status == 200
    assert proofs(live, handover) == ["tls-unique"]


@pytest.mark.row("EST-110")
def test_challenges_that_were_not_announced_are_ignored(live: Live) -> None:
    handover = live.invite("device")
    otp = challenge("123456", oid=OTP_CHALLENGE)
    revocation = challenge("secret", oid=REVOCATION_CHALLENGE)
    assert post(live, raw_csr(otp, revocation), by=handover).status == 200
    assert proofs(live, handover) == ["none"]


@pytest.mark.row("EST-112")
def test_a_poll_on_a_new_connection_is_linked_to_that_one(live: Live) -> None:
    handover, key = live.invite("device", approval=True), new_key()
    for _ in range(2):
        with Wire(live, context=tls12(live)) as wire:
            linked = raw_csr(challenge(base64.b64encode(wire.unique)), key=key)
            assert wire.enroll(handover, linked).status == 202
    assert proofs(live, handover) == ["tls-unique"]


@pytest.mark.row("EST-098")
def test_a_renewal_is_linked_too(live: Live) -> None:
    holder = live.enroll(live.invite("device"))
    with Wire(live, context=tls12(live, holder)) as wire:
        subject = holder.certificate.subject
        wrong = raw_csr(challenge("wrong"), subject=subject)
        assert wire.ask("POST", "simplereenroll", body=wrong).status == 400
        right = raw_csr(challenge(base64.b64encode(wire.unique)), subject=subject)
        assert wire.ask("POST", "simplereenroll", body=right).status == 200
    assert renewed(live, holder).status == 200


@pytest.mark.row("EST-033")
def test_behind_a_proxy_a_value_cannot_be_checked_and_is_refused() -> None:
    linked = read_csr(raw_csr(challenge("AAAAAAAAAAAAAAAA")))
    with pytest.raises(LinkingFailed, match="cannot be checked behind a proxy"):
        verify_linking(linked, Channel(None, None), "optional")
    assert verify_linking(read_csr(csr()), Channel(None, None), "optional") == "none"
