"""Renewal campaigns: what is marked renews early, by whatever door, and progress is seen."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from estserver.campaigns import Campaigns
from estserver.cli import main
from estserver.errors import BadInput, Conflict
from estserver.renewal_information import read_certificate_id
from estserver.store import outbox
from estserver.store.campaigns import Campaign
from estserver.store.selection import Selection
from tests.live import ORIGIN, Answer, Holder, Live, make_csr, new_key

EST = "/.well-known/est"
DEVICES = Selection(profile="device")


def run(live: Live, *arguments: str) -> Result:
    configuration = str(live.directory / "estserver.toml")
    return CliRunner().invoke(main, ["--config", configuration, *arguments])


def identifier(holder: Holder) -> str:
    """The name of a certificate as RFC 9773 §4.1 has it."""
    extension = holder.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    serial = holder.certificate.serial_number
    parts = (
        extension.value.key_identifier or b"",
        serial.to_bytes(serial.bit_length() // 8 + 1),
    )
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def suggested(answer: Answer) -> tuple[datetime, datetime]:
    assert answer.status == 200, answer.body
    window = json.loads(answer.body)["suggestedWindow"]
    start, end = (datetime.fromisoformat(window[name]) for name in ("start", "end"))
    return start, end


def windows(live: Live, holder: Holder) -> list[tuple[datetime, datetime]]:
    """Ask every door when to renew."""
    name = identifier(holder)
    return [
        suggested(live.request("GET", f"{EST}/renewal-info/{name}")),
        suggested(live.request("GET", f"{EST}/device/renewal-info/{name}")),
        suggested(live.request("GET", f"/acme/renewal-info/{name}", listener="web")),
    ]


def campaign(live: Live, **fields: object) -> Campaign:
    now = live.clock.now()
    made = Campaign("p256", now, now + timedelta(days=14), None, "test", None)
    return replace(made, **fields)  # type: ignore[arg-type]  # fields as tests name them


def start(live: Live, one: Campaign, selection: Selection = DEVICES, *, mail: bool = False) -> int:
    return Campaigns(live.core.store, live.clock).start(one, selection, mail=mail, origin=ORIGIN)


def renew(live: Live, holder: Holder) -> Answer:
    return live.request(
        "POST",
        f"{EST}/simplereenroll",
        body=make_csr(new_key(), subject=holder.certificate.subject),
        headers={"Content-Type": "application/pkcs10"},
        holder=holder,
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "年度更新", "letters a-z"),
        ("name", "two words", "letters a-z"),
        ("name", "a>\r\nBcc: somebody", "letters a-z"),
        ("explanation", "see the intranet", "a URL"),
    ],
)
def test_what_no_letter_or_client_could_carry_begins_no_campaign(
    live: Live, field: str, value: str, said: str
) -> None:
    """The name goes into Message-IDs, the explanation into renewal information."""
    with pytest.raises(BadInput, match=said):
        start(live, campaign(live, **{field: value}), mail=True)
    assert Campaigns(live.core.store, live.clock).all() == []


@pytest.mark.row("EST-188", "ACME-172")
def test_all_doors_say_the_last_third_until_a_campaign_says_sooner(live: Live) -> None:
    holder = live.enroll(live.invite("device"))
    begins, ends = holder.certificate.not_valid_before_utc, holder.certificate.not_valid_after_utc
    for first, last in windows(live, holder):
        assert ends - (ends - begins) / 2 < first < last < ends
    one = campaign(live)
    assert start(live, one) == 1
    assert windows(live, holder) == [(one.begins_at, one.renew_by)] * 3
    Campaigns(live.core.store, live.clock).end("p256", by="test", origin=ORIGIN)
    assert all(first > one.renew_by for first, _ in windows(live, holder))


@pytest.mark.row("EST-188")
def test_renewal_information_over_est_is_json_for_anybody_and_404_for_what_is_not_there(
    live: Live,
) -> None:
    name = identifier(live.enroll(live.invite("device")))
    answer = live.request("GET", f"{EST}/renewal-info/{name}")
    assert answer.headers["Content-Type"] == "application/json"
    assert "Content-Transfer-Encoding" not in answer.headers
    assert int(answer.headers["Retry-After"]) >= 60
    aki, serial = name.split(".")
    assert live.request("GET", f"{EST}/renewal-info/{aki}.AQ").status == 404
    assert live.request("GET", f"{EST}/server/renewal-info/{name}").status == 404
    for bad in (f"{name}=", aki, f"{aki}.{serial}.", f"{aki}.*", "x" * 200):
        assert live.request("GET", f"{EST}/renewal-info/{bad}").status == 400
    assert live.request("POST", f"{EST}/renewal-info/{name}").status == 405


def test_an_explanation_goes_along(live: Live) -> None:
    holder = live.enroll(live.invite("device"))
    start(live, campaign(live, explanation="https://www.example.org/why"))
    answer = live.request("GET", f"{EST}/renewal-info/{identifier(holder)}")
    assert json.loads(answer.body)["explanationURL"] == "https://www.example.org/why"


def test_only_what_is_selected_is_marked_and_only_once(live: Live) -> None:
    live.enroll(live.invite("device"))
    live.enroll(live.invite("server"))
    one = campaign(live)
    assert start(live, one) == 1
    live.enroll(live.invite("device"))
    assert start(live, one) == 1
    _, progress = Campaigns(live.core.store, live.clock).get("p256")
    assert (progress.members, progress.renewed, progress.waiting) == (2, 0, 2)


def test_progress_counts_what_was_renewed_and_what_is_gone(live: Live) -> None:
    first, second = (live.enroll(live.invite("device")) for _ in range(2))
    start(live, campaign(live))
    assert renew(live, first).status == 200
    serial = f"{second.certificate.serial_number:x}"
    run(live, "certificates", "revoke", serial, "--reason", "superseded")
    _, progress = Campaigns(live.core.store, live.clock).get("p256")
    assert (progress.renewed, progress.gone, progress.waiting) == (1, 1, 0)


def test_a_campaign_opens_the_renewal_window_early(make_live: Callable[[str], Live]) -> None:
    live = make_live("\n[profiles.device.renewal]\nwindow = '30d'\n")
    holder = live.enroll(live.invite("device"))
    early = renew(live, holder)
    assert early.status == 403
    assert b"too early" in early.body
    start(live, campaign(live))
    assert renew(live, holder).status == 200


def test_owners_get_one_letter_that_says_by_when_and_why(live: Live) -> None:
    live.enroll(live.invite("device", email="ops@example.ac.jp"))
    one = campaign(live, explanation="https://www.example.org/why")
    start(live, one, mail=True)
    start(live, one, mail=True)
    letters = live.core.store.read(lambda tx: outbox.page(tx, None))
    (letter,) = [letter for letter in letters if letter.template == "renew-early"]
    text = str(live.core.post_office().read(letter.id))
    assert f"{one.renew_by:%Y}" in text
    assert "https://www.example.org/why" in text
    assert "/renew" in text


def test_a_name_belongs_to_one_campaign_and_the_past_is_no_date(live: Live) -> None:
    live.enroll(live.invite("device"))
    one = campaign(live)
    start(live, one)
    with pytest.raises(Conflict, match="another campaign"):
        start(live, replace(one, renew_by=one.renew_by + timedelta(days=1)))
    with pytest.raises(BadInput, match="past"):
        start(live, campaign(live, name="late", renew_by=live.clock.now()))


def test_the_command_starts_lists_shows_and_ends(live: Live) -> None:
    live.enroll(live.invite("device"))
    day = f"{datetime.now(UTC) + timedelta(days=20):%Y-%m-%d}"
    arguments = ("--profile", "device", "--renew-by", day, "--no-mail")
    assert "There are no campaigns" in run(live, "campaign", "list").output
    assert (
        "1 certificate fits" in run(live, "campaign", "start", "x", *arguments, "--dry-run").stdout
    )
    done = run(live, "campaign", "start", "x", *arguments)
    assert "1 certificate is marked for campaign x" in done.stdout, done.output
    (row,) = json.loads(run(live, "campaign", "list", "--json").stdout)
    assert (row["certificates"], row["waiting"], row["ended"]) == (1, 1, None)
    assert run(live, "campaign", "end", "x").exit_code == 0
    again = run(live, "campaign", "end", "x")
    assert again.exit_code == 1
    assert "has ended already" in again.stderr
    assert run(live, "campaign", "show", "y").exit_code == 1


@pytest.mark.row("ACME-173")
def test_one_spelling_of_an_identifier_only() -> None:
    good = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
    assert str(read_certificate_id(good)) == good
    for bad in (f"{good}=", good.replace("AIdlQyE", "AACHZUMh"), "", ".", 7, None):
        with pytest.raises(BadInput):
            read_certificate_id(bad)
