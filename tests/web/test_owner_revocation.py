"""The owner revokes: with the certificate, or with the link and the PIN; done once OCSP says so."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from estserver.model import CertificateRecord, CertificateState, Language, RevocationReason
from estserver.store import outbox
from tests.live import Holder, Live
from tests.web.test_renewal import certified
from tests.web.visitor import Page, Visitor


def record(live: Live, holder: Holder) -> CertificateRecord:
    return live.core.ra.find(holder.certificate.serial_number)


def by_certificate(live: Live) -> tuple[Visitor, Page, Holder]:
    """Open the page as whoever holds the certificate."""
    _, holder = certified(live, language=Language.EN)
    visitor = Visitor(live, "devices", holder)
    return visitor, visitor.get("/revoke"), holder


def by_pin(live: Live) -> tuple[Visitor, Page, Holder]:
    """Open the page as whoever has the link and the PIN."""
    handover, holder = certified(live, language=Language.EN)
    assert handover.token is not None
    assert handover.pin is not None
    visitor = Visitor(live)
    home = f"/e/{handover.token.reveal()}"
    visitor.enter(home, handover.pin.reveal())
    return (
        visitor,
        visitor.get(f"{home}/revoke?certificate={record(live, holder).enrollment}"),
        holder,
    )


Way = Callable[[Live], tuple[Visitor, Page, Holder]]
ways = pytest.mark.parametrize("way", [by_certificate, by_pin])


@ways
def test_the_owner_revokes_and_is_told_what_ocsp_says(live: Live, way: Way) -> None:
    visitor, page, holder = way(live)
    assert page.status == 200
    assert "cannot be undone" in page.seen
    done = visitor.submit(page, "revoke-form", reason="keyCompromise", confirm="yes")
    assert done.status == 200
    assert 'data-verdict="revoked"' in done.text
    found = record(live, holder)
    assert found.state is CertificateState.REVOKED
    assert found.reason is RevocationReason.KEY_COMPROMISE
    letters = live.core.store.read(lambda tx: outbox.page(tx, None))
    assert [one.template for one in letters].count("revoked") == 1


@ways
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"confirm": "yes"}, "choose why"),
        ({"confirm": "yes", "reason": "cACompromise"}, "choose why"),
        ({"reason": "superseded"}, "tick the box"),
    ],
)
def test_nothing_is_revoked_without_reason_and_confirmation(
    live: Live, way: Way, fields: dict[str, str], words: str
) -> None:
    visitor, page, holder = way(live)
    refused = visitor.submit(page, "revoke-form", **fields)
    assert refused.status == 400
    assert words in refused.seen
    assert record(live, holder).state is CertificateState.VALID


@ways
def test_a_forged_form_revokes_nothing(live: Live, way: Way) -> None:
    visitor, page, holder = way(live)
    form = page.forms["revoke-form"]
    fields = {**form.fields, "reason": "superseded", "confirm": "yes"}
    assert visitor.post(form.action, {**fields, "csrf": "x"}).status == 403
    elsewhere = {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}
    assert visitor.post(form.action, fields, **elsewhere).status == 403
    assert record(live, holder).state is CertificateState.VALID


@ways
def test_what_is_revoked_already_is_not_asked_for_again(live: Live, way: Way) -> None:
    visitor, page, _ = way(live)
    visitor.submit(page, "revoke-form", reason="superseded", confirm="yes")
    again = visitor.submit(page, "revoke-form", reason="superseded", confirm="yes")
    assert again.status in (403, 404)


def test_without_certificate_or_session_there_is_nothing_to_revoke(live: Live) -> None:
    refused = Visitor(live, "devices").get("/revoke")
    assert refused.status == 403
    assert "ask the administrator to revoke it" in refused.text
    handover, holder = certified(live)
    assert handover.token is not None
    path = f"/e/{handover.token.reveal()}/revoke"
    assert Visitor(live).get(f"{path}?certificate={record(live, holder).enrollment}").status == 403


def test_somebody_elses_certificate_is_not_found(live: Live) -> None:
    visitor, page, _ = by_pin(live)
    _, other = certified(live, email="hanako@example.ac.jp", name="Hanako")
    form = page.forms["revoke-form"]
    fields = {
        **form.fields,
        "enrollment": record(live, other).enrollment,
        "reason": "superseded",
        "confirm": "yes",
    }
    assert visitor.post(form.action, fields).status == 404
    assert record(live, other).state is CertificateState.VALID


def test_the_pages_speak_japanese(live: Live) -> None:
    _, holder = certified(live, language=Language.JA)
    visitor = Visitor(live, "devices", holder)
    page = visitor.get("/revoke")
    assert "証明書の失効" in page.seen
    done = visitor.submit(page, "revoke-form", reason="cessationOfOperation", confirm="yes")
    assert "失効が完了しました" in done.seen


def test_the_take_and_test_pages_lead_there(live: Live) -> None:
    handover, holder = certified(live)
    assert handover.token is not None
    assert handover.pin is not None
    step3 = Visitor(live).enter(f"/e/{handover.token.reveal()}", handover.pin.reveal())
    assert "/revoke?certificate=" in step3.text
    assert 'href="/revoke"' in Visitor(live, "devices", holder).get("/test").text


def test_an_expired_certificate_is_not_revoked(live: Live) -> None:
    visitor, page, holder = by_certificate(live)
    live.clock.advance(timedelta(days=396))
    page = visitor.get("/revoke")
    done = visitor.submit(page, "revoke-form", reason="superseded", confirm="yes")
    assert done.status == 409
    assert record(live, holder).state is CertificateState.VALID
