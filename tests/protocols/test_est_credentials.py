"""EST credentials: the challenge, the PIN, guessing, and what a used PIN still does (sheet D)."""

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from estserver import pin
from estserver.invitations import Handover
from tests.live import ORIGIN, Holder, Live, basic, make_csr, new_key
from tests.protocols.est_wire import (
    PKCS10,
    Wire,
    audit_rows,
    credentials,
    csr,
    get,
    issued,
    post,
    raw_csr,
    renewed,
    units_used,
)

CHALLENGE = 'Basic realm="estserver", charset="UTF-8"'
WRONG = "ZZZZZ-ZZZZZ-ZZZZ"
BOTH = """
[profiles.device]
renewal = {auth = "certificate+pin"}
"""


def pin_of(handover: Handover) -> str:
    assert handover.pin is not None
    return handover.pin.reveal()


def wrong_pin(right: str) -> str:
    """Change two symbols of a PIN so that its check symbol still fits."""
    symbols = right.replace("-", "")
    body = ("0" if symbols[0] != "0" else "1") + symbols[1:-1]
    return body + pin._check_symbol(body)


# -- the challenge -------------------------------------------------------------------------------


@pytest.mark.row("EST-049", "EST-067", "EST-086", "EST-193", "EST-195")
def test_without_credentials_the_answer_is_one_exact_challenge_and_no_body(shared: Live) -> None:
    with Wire(shared) as wire:
        body = csr()
        wire.send(
            "POST /.well-known/est/simpleenroll HTTP/1.1",
            "Host: localhost",
            "Connection: close",
            f"Content-Type: {PKCS10}",
            f"Content-Length: {len(body)}",
            body=body,
        )
        head, _, rest = wire.rest().partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 401 Unauthorized"
    assert [line for line in lines if line.lower().startswith("www-")] == [
        f"WWW-Authenticate: {CHALLENGE}"
    ]
    assert "Content-Length: 0" in lines
    assert rest == b""


@pytest.mark.row("EST-049")
def test_the_realm_is_configuration(make_live: Callable[[str], Live]) -> None:
    live = make_live('\n[est]\nrealm = "Example EST"\n')
    answer = post(live, csr())
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Example EST", charset="UTF-8"'


@pytest.mark.row("EST-050", "EST-060")
def test_the_same_csr_with_the_right_pin_after_the_challenge_is_issued(live: Live) -> None:
    handover, body = live.invite("device"), csr()
    assert post(live, body).status == 401
    assert post(live, body, by=handover).status == 200


@pytest.mark.row("EST-066")
def test_a_pin_sent_at_once_needs_no_challenge(live: Live) -> None:
    with Wire(live) as wire:
        assert wire.enroll(live.invite("device"), csr()).status == 200


# -- the form of credentials ---------------------------------------------------------------------


@pytest.mark.row("EST-051")
def test_the_user_name_may_be_empty(live: Live) -> None:
    authorization = credentials("", pin_of(live.invite("device")))
    assert post(live, csr(), headers={"Authorization": authorization}).status == 200


@pytest.mark.row("EST-052")
@pytest.mark.parametrize("user", ["admin", "1", "estuser", "0000000000"])
def test_any_other_user_name_than_the_number_is_401(live: Live, user: str) -> None:
    handover = live.invite("device")
    authorization = credentials(user, pin_of(handover))
    answer = post(live, csr(), headers={"Authorization": authorization})
    assert answer.status == 401
    assert units_used(live, handover) == 0


@pytest.mark.row("EST-053")
def test_odd_octets_in_credentials_are_plain_refusals(make_live: Callable[[str], Live]) -> None:
    live = make_live("\n[limits]\nguesses_per_source = 1000\n")
    users = ("", "1234567890", "grüße", "端末", b"gr\xfc\xdfe", "u" * 1024)
    secrets = ("a:b:c", "ünïcode", b"\xfc\xff\x00", "x" * 1024, "", "端" * 9)
    for user in users:
        for secret in secrets:
            answer = post(live, csr(), headers={"Authorization": credentials(user, secret)})
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == CHALLENGE


@pytest.mark.row("EST-053")
def test_a_right_pin_with_a_user_name_that_is_no_ascii_is_401(live: Live) -> None:
    for user in ("端末", b"gr\xfc\xdfe"):
        authorization = credentials(user, pin_of(live.invite("device")))
        assert post(live, csr(), headers={"Authorization": authorization}).status == 401


@pytest.mark.row("EST-054", "EST-067")
@pytest.mark.parametrize(
    "authorization",
    [
        "Basic",
        "Basic ",
        "Basic !!!!",
        "Basic =",
        "Basic QUJD",
        "Basic dXNlcjpwYXNz dXNlcjpwYXNz",
        "Basic \u00e9\u00e9\u00e9\u00e9",
        "Digest username=x",
        "Bearer abc.def.ghi",
        "Negotiate",
        "",
    ],
)
def test_malformed_credentials_are_401_with_a_reason(shared: Live, authorization: str) -> None:
    answer = post(shared, csr(), headers={"Authorization": authorization})
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == CHALLENGE
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert b"PIN" in answer.body
    assert b"\nReference: " in answer.body


@pytest.mark.row("EST-054")
@pytest.mark.parametrize("scheme", ["basic", "BASIC", "bAsIc"])
def test_the_scheme_is_case_insensitive(live: Live, scheme: str) -> None:
    _, encoded = basic(live.invite("device")).split()
    answer = post(live, csr(), headers={"Authorization": f"{scheme}  {encoded} "})
    assert answer.status == 200


@pytest.mark.row("EST-054")
def test_two_authorization_headers_are_refused(live: Live) -> None:
    handover = live.invite("device")
    with Wire(live) as wire:
        header = f"Authorization: {basic(handover)}"
        answer = wire.ask("POST", "simpleenroll", body=csr(), headers=[header, header])
    assert answer.status == 401


# -- certificate and PIN -------------------------------------------------------------------------


@pytest.mark.row("EST-055", "EST-144")
def test_a_certificate_alone_enrolls_for_the_same_names(live: Live) -> None:
    holder = live.enroll(live.invite("device", names=("dns:p17.example.ac.jp",)))
    answer = post(live, csr(), holder=holder)
    assert answer.status == 200
    certificate = answer.certificates()[0]
    assert certificate.subject == holder.certificate.subject
    assert certificate.serial_number != holder.certificate.serial_number
    other = post(live, csr(subject="printer-99"), holder=holder)
    assert other.status == 403
    assert b"printer-99" in other.body


@pytest.mark.row("EST-056")
def test_where_policy_wants_certificate_and_pin_either_alone_is_refused(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live(BOTH)
    handover = live.invite("device")
    holder = live.enroll(handover)
    alone = renewed(live, holder)
    assert (alone.status, alone.body) == (401, b"")
    fresh = live.core.invitations.new_pin(
        handover.invitation.number, expires=None, by="test", origin=ORIGIN
    )
    assert post(live, csr(), by=fresh).status == 403
    assert post(live, csr(), by=fresh, path="simplereenroll").status == 403
    assert renewed(live, holder, by=handover).status == 401
    assert renewed(live, holder, by=fresh).status == 200
    assert renewed(live, holder, by=fresh).status == 401
    assert len(issued(live, handover)) == 2


@pytest.mark.row("EST-057")
@pytest.mark.parametrize("path", ["simpleenroll", "simplereenroll"])
def test_a_wrong_pin_beside_a_good_certificate_is_refused_and_counted(
    make_live: Callable[[str], Live], path: str
) -> None:
    live = make_live("\n[limits]\nguesses_per_source = 2\n")
    handover = live.invite("device")
    holder = live.enroll(handover)
    wrong = {"Authorization": credentials(handover.invitation.number, wrong_pin(pin_of(handover)))}
    statuses = [renewed(live, holder, path=path, headers=wrong).status for _ in range(3)]
    assert statuses == [401, 401, 429]
    assert len(issued(live, handover)) == 1


@pytest.mark.row("EST-057")
def test_the_own_pin_beside_the_certificate_is_fine_and_another_one_is_not(live: Live) -> None:
    handover, other = live.invite("device"), live.invite("device", device_id="printer-18")
    holder = live.enroll(handover)
    assert renewed(live, holder, by=handover).status == 200
    answer = renewed(live, holder, by=other)
    assert answer.status == 403
    assert b"another registration" in answer.body
    assert units_used(live, other) == 0


# -- wrong PINs ----------------------------------------------------------------------------------


@pytest.mark.row("EST-058", "EST-118")
def test_wrong_unknown_expired_and_used_pins_look_the_same(live: Live) -> None:
    used, expired = live.invite("device"), live.invite("device", expires=timedelta(days=1))
    live.enroll(used)
    live.clock.advance(timedelta(days=2))
    answers = {
        "wrong": credentials(used.invitation.number, wrong_pin(pin_of(used))),
        "unknown": credentials("1234567890", wrong_pin(pin_of(expired))),
        "expired": basic(expired),
        "used": basic(used),
    }
    found = {
        name: post(live, csr(), headers={"Authorization": authorization})
        for name, authorization in answers.items()
    }
    shapes = {
        (
            answer.status,
            answer.body.partition(b"Reference: ")[0],
            tuple(key for key, _ in answer.headers.items()),
            len(answer.body),
        )
        for answer in found.values()
    }
    assert len(shapes) == 1
    assert found["wrong"].status == 401


@pytest.mark.row("EST-059")
def test_a_guessing_source_must_wait_while_the_right_pin_is_served(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("\n[limits]\nguesses_per_source = 5\n")
    handover = live.invite("device")
    wrong = {"Authorization": credentials(handover.invitation.number, wrong_pin(pin_of(handover)))}
    assert [post(live, csr(), headers=wrong).status for _ in range(7)] == [401] * 5 + [429] * 2
    refused = post(live, csr(), headers=wrong)
    assert 1 <= int(refused.headers["Retry-After"]) <= 3600
    assert refused.body.startswith(b"Too many wrong PINs")
    live.restart()
    assert post(live, csr(), headers=wrong).status == 429
    assert post(live, csr(), by=handover).status == 200
    live.clock.advance(timedelta(hours=1))
    assert post(live, csr(), headers=wrong).status == 401


@pytest.mark.row("EST-059", "EST-049")
def test_requests_without_credentials_never_count(make_live: Callable[[str], Live]) -> None:
    live = make_live("\n[limits]\nguesses_per_source = 2\n")
    assert {post(live, csr()).status for _ in range(6)} == {401}
    wrong = {"Authorization": credentials("1", WRONG)}
    assert post(live, csr(), headers=wrong).status == 401


@pytest.mark.row("EST-065")
def test_pins_sent_to_cacerts_and_csrattrs_are_neither_used_nor_counted(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live("\n[limits]\nguesses_per_source = 1\n")
    handover = live.invite("device")
    wrong = {"Authorization": credentials(handover.invitation.number, wrong_pin(pin_of(handover)))}
    right = {"Authorization": basic(handover)}
    with ThreadPoolExecutor(4) as pool:
        paths = ["cacerts", "csrattrs"] * 4
        asked = [pool.submit(get, live, path, headers=h) for path in paths for h in (wrong, right)]
        enrolled = pool.submit(post, live, csr(), by=handover)
        assert {future.result().status for future in asked} == {200}
        assert enrolled.result().status == 200
    assert units_used(live, handover) == 1
    assert post(live, csr(), headers=wrong).status == 401


@pytest.mark.row("EST-060", "EST-099")
def test_refused_requests_leave_the_pin_unspent(live: Live) -> None:
    handover = live.invite("device")
    bodies = [
        b"",
        b"!!!",
        b"MAA=",
        base64.b64encode(make_csr(new_key())[:-5]),
        csr(subject="x" * 9),
    ]
    bodies.append(raw_csr(b"\x30\x00"))
    for body in bodies:
        assert post(live, body, by=handover).status in {400, 403}
    assert units_used(live, handover) == 0
    assert issued(live, handover) == []
    assert post(live, csr(), by=handover).status == 200


# -- once ----------------------------------------------------------------------------------------


@pytest.mark.row("EST-061")
def test_twenty_parallel_enrollments_with_one_pin_give_one_certificate(live: Live) -> None:
    handover = live.invite("device")
    bodies = [csr() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda body: post(live, body, by=handover), bodies))
    assert sorted(answer.status for answer in answers) == [200] + [401] * 19
    stored = issued(live, handover)
    assert len(stored) == 1
    winner = next(answer for answer in answers if answer.status == 200)
    assert stored[0].serial_hex == f"{winner.certificates()[0].serial_number:x}"


@pytest.mark.row("EST-061", "EST-062")
def test_twenty_parallel_repeats_of_one_csr_give_one_certificate_to_all(live: Live) -> None:
    handover, body = live.invite("device"), csr()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post(live, body, by=handover), range(20)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert len(issued(live, handover)) == 1


@pytest.mark.row("EST-062")
def test_a_lost_answer_is_given_again_byte_for_byte(live: Live) -> None:
    handover, key = live.invite("device"), new_key()
    first = post(live, csr(key=key), by=handover)
    live.restart()
    live.clock.advance(timedelta(days=60))
    # A new signature over the same key, as clients make that build the CSR anew.
    again = post(live, csr(key=key), by=handover)
    assert (again.status, again.body) == (200, first.body)
    assert units_used(live, handover) == 1


@pytest.mark.row("EST-063")
def test_a_used_pin_with_another_key_is_refused(live: Live) -> None:
    handover = live.invite("device")
    live.enroll(handover)
    assert post(live, csr(), by=handover).status == 401
    assert len(issued(live, handover)) == 1


@pytest.mark.row("EST-063")
def test_an_invitation_for_several_grants_as_many(live: Live) -> None:
    handover = live.invite("device", units=3)
    statuses = [post(live, csr(), by=handover).status for _ in range(4)]
    assert statuses == [200, 200, 200, 401]


@pytest.mark.row("EST-086")
def test_a_pin_of_another_label_is_refused(live: Live) -> None:
    handover = live.invite("device")
    answer = post(live, csr(), path="server/simpleenroll", by=handover)
    assert answer.status == 403
    assert b"label server: use device" in answer.body
    assert units_used(live, handover) == 0


@pytest.mark.row("EST-087")
def test_a_cancelled_registration_says_so_to_whoever_has_the_pin(live: Live) -> None:
    handover = live.invite("device")
    live.core.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)
    answer = post(live, csr(), by=handover)
    assert answer.status == 403
    assert b"cancelled" in answer.body


@pytest.mark.row("EST-086")
def test_a_pin_for_the_web_only_opens_nothing_here(live: Live) -> None:
    assert post(live, csr(), by=live.invite("person")).status == 401


# -- secrets -------------------------------------------------------------------------------------


@pytest.mark.row("EST-068", "INC-20", "A-25")
def test_no_pin_and_no_credential_is_found_anywhere(
    live: Live, capfd: pytest.CaptureFixture[str]
) -> None:
    handover = live.invite("device")
    secret_pin, authorization = pin_of(handover), basic(handover)
    wrong = credentials(handover.invitation.number, "CANARY-PIN-0451")
    answers = [
        post(live, b"CANARYBODY!", by=handover),
        post(live, csr(), by=handover),
        post(live, csr(), headers={"Authorization": wrong}),
        post(live, csr(), headers={"Authorization": wrong.replace("Basic", "Bearer")}),
        get(live, "csrattrs", headers={"Authorization": authorization}),
        live.request("GET", "/metrics", listener="management"),
    ]
    # Log lines follow the bytes of an answer; a server that has stopped writes no more of them.
    live.restart()
    written = b"".join(path.read_bytes() for path in live.directory.glob("estserver.db*"))
    output = capfd.readouterr()
    everything = written + (output.out + output.err).encode() + b"".join(a.body for a in answers)
    everything += repr(audit_rows(live)).encode()
    for secret in (secret_pin, secret_pin.replace("-", ""), authorization[6:], "CANARY", wrong[6:]):
        assert secret.encode() not in everything
    assert handover.invitation.number in output.err


@pytest.mark.row("EST-069")
def test_a_pin_at_this_guessable_door_has_65_bits(live: Live) -> None:
    symbols = pin_of(live.invite("device")).replace("-", "")
    assert len(symbols) == 13 + 1
    assert set(symbols) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")


@pytest.mark.row("EST-203", "EST-111")
def test_an_issuance_leaves_its_trail(live: Live) -> None:
    handover = live.invite("device")
    holder: Holder = live.enroll(handover)
    rows = [row for row in audit_rows(live) if row.event == "certificate.intended"]
    mine = next(row for row in rows if row.actor == f"invitation {handover.invitation.number}")
    assert mine.detail["via"] == "est"
    assert mine.detail["profile"] == "device"
    assert mine.detail["proof"] == "none"
    assert mine.detail["serial"] == f"{holder.certificate.serial_number:x}"
    assert len(mine.detail["spki_sha256"]) == 64
