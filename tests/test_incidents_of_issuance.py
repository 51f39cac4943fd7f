"""What CAs got wrong about serials, validity and the state of a registration (rows INC-n)."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes

from estserver import failpoints, pin
from estserver.ca.hierarchy import make_hierarchy
from estserver.ca.issuer import Issuer, StatusURLs
from estserver.config import Settings
from estserver.errors import BadCredentials, Fault, MistypedPIN, NotFound, TooManyAttempts
from estserver.invitations import FREE_TRIES
from estserver.model import EnrollmentState, Grant, KeyType, Plan, Secret
from estserver.profiles import Profile
from estserver.store.tables import certificate_bytes
from tests.live import ORIGIN, Live, new_key
from tests.parts import Parts
from tests.protocols.est_wire import common_name, csr, issued, post, units_used

URLS = StatusURLs("http://h.example/ca", "http://h.example/ocsp", "http://h.example/crl")


def _profile(issuer: x509.Certificate, days: int = 365) -> Profile:
    settings = Settings().profiles["device"]
    settings = settings.model_copy(update={"validity": timedelta(days=days)})
    return Profile("device", settings, issuer)


def _plan(profile: Profile, now: datetime) -> Plan:
    grant = Grant(common_name("printer-17"), frozenset({x509.DNSName("printer-17.example")}))
    return profile.plan_again(new_key().public_key(), grant, now)


# -- serials and validity --------------------------------------------------------------------------


@pytest.mark.row("INC-24", "EST-178")
def test_serials_are_159_random_bits() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    root, issuing = make_hierarchy("Example", KeyType.EC_P256, now)
    issuer = Issuer("issuing", (issuing.certificate, root.certificate), issuing.key, URLS)
    plan = _plan(_profile(issuing.certificate), now)
    serials = [issuer.prepare(plan).serial for _ in range(1000)]
    assert len(set(serials)) == len(serials)
    assert all(serial > 0 and len(asn1.encode_der(serial)) <= 2 + 20 for serial in serials)
    # Half of the serials have a given bit: 1000 throws of a coin, six standard deviations.
    for bit in range(159):
        assert 405 <= sum(serial >> bit & 1 for serial in serials) <= 595
    assert not any(abs(a - b) < 2**100 for a, b in pairwise(serials))


@pytest.mark.row("INC-26", "EST-179", "A-33")
@pytest.mark.parametrize("days", [1, 30, 90, 365, 398, 825])
@pytest.mark.parametrize(
    "now",
    [
        datetime(2026, 11, 23, 12, 0, tzinfo=UTC),
        datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC),
        datetime(2027, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2050, 1, 1, tzinfo=UTC),
    ],
)
def test_n_days_are_n_days_and_dates_are_encoded_by_their_year(now: datetime, days: int) -> None:
    root, issuing = make_hierarchy("Example", KeyType.EC_P256, now)
    issuer = Issuer("issuing", (issuing.certificate, root.certificate), issuing.key, URLS)
    draft = issuer.prepare(_plan(_profile(issuing.certificate, days), now))
    certificate = x509.load_der_x509_certificate(issuer.sign(draft))
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    # RFC 5280 §4.1.2.5: both ends belong to it.
    assert end - begin + timedelta(seconds=1) == timedelta(days=days)
    assert begin <= now < end
    assert issuing.certificate.not_valid_before_utc <= begin
    for moment in (begin, end):
        utc = f"{moment:%y%m%d%H%M%S}Z".encode()
        general = f"{moment:%Y%m%d%H%M%S}Z".encode()
        encoded = b"\x17\x0d" + utc if moment.year < 2050 else b"\x18\x0f" + general
        assert encoded in draft.tbs


@pytest.mark.row("INC-26", "EST-179")
def test_no_certificate_outlives_its_issuer() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    _, issuing = make_hierarchy("Example", KeyType.EC_P256, now)
    profile = _profile(issuing.certificate)
    tomorrow = issuing.certificate.not_valid_after_utc - timedelta(days=1)
    assert _plan(profile, tomorrow).not_after == issuing.certificate.not_valid_after_utc


# -- the state of a registration -------------------------------------------------------------------


@pytest.mark.row("INC-17")
def test_a_registration_cancelled_meanwhile_stops_the_enrollment_at_its_last_step(
    live: Live,
) -> None:
    handover = live.invite("device", approval=True)
    body = csr()
    assert post(live, body, by=handover).status == 202
    ((enrollment, _),) = live.core.ra.of_invitation(handover.invitation.number)
    live.core.ra.approve(enrollment.id, by="officer", origin=ORIGIN)
    live.core.invitations.cancel(handover.invitation.number, by="officer", origin=ORIGIN)
    live.core.ra.finish(ORIGIN)
    assert post(live, body, by=handover).status == 403
    assert issued(live, handover) == []
    assert live.core.ra.enrollment(enrollment.id).state is EnrollmentState.REJECTED


# -- guessing --------------------------------------------------------------------------------------


@pytest.mark.row("INC-19", "A-1", "A-3")
def test_all_spellings_of_a_pin_share_one_counter_and_the_owner_still_gets_in(live: Live) -> None:
    handover = live.invite("person")
    assert handover.pin is not None
    right = handover.pin.reveal().replace("-", "")
    body = ("0" if right[0] != "0" else "2") + right[1:-1]
    wrong = body + pin._check_symbol(body)
    spellings = [wrong, wrong.lower(), "-".join(wrong), f" {wrong} ", wrong.replace("0", "O")]
    invitations = live.core.invitations
    number = handover.invitation.number
    for number_of_tries in range(1, FREE_TRIES + 8):
        if number_of_tries > FREE_TRIES:
            live.clock.advance(timedelta(minutes=1))
        typed = Secret(spellings[number_of_tries % len(spellings)])
        with pytest.raises(BadCredentials):
            invitations.confirm(handover.invitation, typed, source="127.0.0.1")
        assert invitations.get(number).pin_failures == number_of_tries
    full_width = "".join(chr(ord(symbol) + 0xFEE0) for symbol in wrong)
    with pytest.raises(TooManyAttempts):
        invitations.confirm(handover.invitation, Secret(full_width), source="127.0.0.1")
    # A mistyped symbol costs nothing, and a minute later the right PIN opens.
    mistyped = Secret(right[:-1] + ("0" if right[-1] != "0" else "2"))
    with pytest.raises(MistypedPIN):
        invitations.confirm(handover.invitation, mistyped, source="127.0.0.1")
    assert invitations.get(number).pin_failures == number_of_tries
    live.clock.advance(timedelta(minutes=1))
    invitations.confirm(handover.invitation, Secret(right), source="127.0.0.1")


@pytest.mark.row("INC-19", "A-4", "A-29")
def test_opening_a_link_changes_nothing_and_an_unknown_one_tells_nothing(live: Live) -> None:
    handover = live.invite("person")
    assert handover.token is not None
    path = f"/e/{handover.token.reveal()}"
    before = live.core.invitations.get(handover.invitation.number)
    for method in ("GET", "HEAD", "OPTIONS"):
        for _ in range(5):
            live.request(method, path, listener="web")
    assert live.core.invitations.get(handover.invitation.number) == before
    assert units_used(live, handover) == 0
    unknown = [live.request("GET", f"/e/{'A' * n}", listener="web") for n in (1, 22, 64, 500)]
    assert {answer.status for answer in unknown} == {404}
    with pytest.raises(NotFound):
        live.core.invitations.by_token("A" * 22)


def test_a_stored_draft_that_would_make_a_ca_is_not_signed(parts: Parts) -> None:
    handover, key = parts.invite(), new_key()
    failpoints.arm("intent-committed:1:raise")
    with pytest.raises(Fault):
        parts.enroll(handover, key)
    failpoints.disarm()
    now = parts.clock.now()
    forged = (
        x509.CertificateBuilder()
        .issuer_name(parts.issuer.certificate.subject)
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Evil CA")]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(new_key(), hashes.SHA256())
    )
    written = sa.update(certificate_bytes).values(tbs=forged.tbs_certificate_bytes)
    parts.store.write(lambda tx: tx.connection.execute(written))
    with pytest.raises(Fault, match=r"no certificate of ours|would make a CA"):
        parts.ra.finish(ORIGIN)
    stored = sa.select(certificate_bytes.c.der)
    assert parts.store.read(lambda tx: tx.connection.scalars(stored).all()) == [None]
