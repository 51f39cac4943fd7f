"""A refusal is the same through every door."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver.invitations import Handover
from estserver.model import Door
from tests.live import ORIGIN, Answer, Live, new_key
from tests.protocols.est_wire import certificate_count, csr, issued, post, raw_csr, units_used


@dataclass
class Visitor:
    """A browser without JavaScript: opens the link, types the PIN, uploads a CSR."""

    live: Live
    handover: Handover
    cookie: str = ""
    csrf: str = ""

    def __post_init__(self) -> None:
        assert self.handover.pin is not None
        assert self.handover.token is not None
        self.path = f"/e/{self.handover.token.reveal()}"
        answer = self.post(self.path, f"pin={self.handover.pin.reveal()}")
        assert answer.status == 303
        self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        page = self.live.request("GET", self.path, listener="web", headers={"Cookie": self.cookie})
        self.csrf = page.body.decode().partition('name="csrf" value="')[2].partition('"')[0]

    def post(self, path: str, form: str) -> Answer:
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": self.cookie,
            "Origin": self.live.url("web"),
        }
        return self.live.request("POST", path, listener="web", body=form.encode(), headers=headers)

    def issue(self, body: bytes, also: str = "") -> Answer:
        form = f"csrf={self.csrf}&purpose=new&method=csr&csr={quote(body, safe='')}{also}"
        return self.post(f"{self.path}/issue", form)


def _outcomes(live: Live, via: str) -> Counter[str]:
    """Return how often each outcome was counted at a door."""
    lines = live.request("GET", "/metrics", listener="management").body.decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        if line.startswith("estserver_requests_total{") and f'via="{via}"' in line:
            found[line.partition('outcome="')[2].partition('"')[0]] += int(float(line.split()[-1]))
    return found


def _of_another_registration(live: Live) -> bytes:
    taken = live.enroll(live.invite("device", device_id="taken"))
    return csr(key=taken.key)


def _signed_by_another_key(_live: Live) -> bytes:
    other = new_key().public_key()
    return raw_csr(spki=other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _cancel(live: Live, handover: Handover) -> None:
    live.core.invitations.cancel(handover.invitation.number, by="test", origin=ORIGIN)


def _let_expire(live: Live, _handover: Handover) -> None:
    live.clock.advance(timedelta(minutes=11))


def _use_up(live: Live, handover: Handover) -> None:
    live.enroll(handover)


def _nothing(_live: Live, _handover: Handover) -> None:
    """Leave the registration as it is."""


@pytest.mark.row("INC-6")
@pytest.mark.parametrize(
    ("body", "before", "code"),
    [
        (lambda _: csr(names=(x509.DNSName("a.example"),)), _nothing, "names-not-allowed"),
        (lambda _: csr(subject="somebody-else"), _nothing, "names-not-allowed"),
        (lambda _: csr(key=ec.generate_private_key(ec.SECP521R1())), _nothing, "key-not-allowed"),
        (_of_another_registration, _nothing, "key-not-allowed"),
        (lambda _: b"bm90IGEgQ1NS", _nothing, "bad-csr"),
        (_signed_by_another_key, _nothing, "bad-csr"),
        (lambda _: csr(), _cancel, "registration-closed"),
        (lambda _: csr(), _let_expire, "bad-credentials"),
        (lambda _: csr(), _use_up, "already-issued"),
    ],
)
def test_a_refusal_is_the_same_through_every_door(
    body: Callable[[Live], bytes],
    before: Callable[[Live, Handover], None],
    code: str,
    live: Live,
) -> None:
    both = frozenset({Door.WEB, Door.EST})
    handover = live.invite("person", doors=both, expires=timedelta(minutes=10))
    visitor = Visitor(live, handover)
    before(live, handover)
    asked = body(live)
    spent, count = units_used(live, handover), certificate_count(live)
    doors: dict[str, Callable[[], Answer]] = {
        "est": lambda: post(live, asked, by=handover),
        "web": lambda: visitor.issue(asked),
    }
    seen = {}
    for via, ask in doors.items():
        earlier = _outcomes(live, via)
        answer = ask()
        assert 400 <= answer.status < 500, via
        seen[via] = dict(_outcomes(live, via) - earlier)
    assert seen == {"est": {code: 1}, "web": {code: 1}}
    assert (units_used(live, handover), certificate_count(live)) == (spent, count)


@pytest.mark.row("INC-16")
@pytest.mark.parametrize("field", ["csrf", "purpose", "method", "csr"])
def test_a_form_field_that_comes_twice_is_refused(field: str, shared: Live) -> None:
    handover = shared.invite("person")
    answer = Visitor(shared, handover).issue(csr(), also=f"&{field}=x")
    assert answer.status == 400
    assert (issued(shared, handover), units_used(shared, handover)) == ([], 0)


@pytest.mark.row("INC-16", "A-20")
def test_a_name_never_becomes_markup(shared: Live) -> None:
    name = "<svg onload=alert(1)>\"'&"
    handover = shared.invite("person", name=name)
    visitor = Visitor(shared, handover)
    page = shared.request("GET", visitor.path, listener="web", headers={"Cookie": visitor.cookie})
    assert b"&lt;svg onload" in page.body
    assert b"<svg onload" not in page.body
