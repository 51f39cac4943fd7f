"""Finding people and devices by how something about them begins, on both databases."""

import json
from datetime import datetime, timedelta

import pytest
from click.testing import CliRunner

from estserver.cli import main
from estserver.model import CertificateState
from estserver.store import Transaction, certificates
from estserver.store.findable import folded
from estserver.store.search import certificates_like, registrations_like
from tests.live import Live
from tests.parts import Parts


@pytest.mark.parametrize(
    "typed",
    [
        "Taro",
        "yama",
        "ＹＡＭＡＤＡ",  # noqa: RUF001 - as a Japanese keyboard types it
        "taro yam",
        "TARO@example",
        "山",
        "printer-1",
        "17",
        "printer-17.ex",
        "10.0.",
    ],
)
def test_the_beginning_of_a_name_a_word_an_address_or_a_host_finds(both: Parts, typed: str) -> None:
    both.invite("person", name="Taro Yamada", email="taro@example.ac.jp")
    both.invite("person", name="山田 太郎", email="x@example.ac.jp")
    both.invite(
        "device",
        device_id="printer-17",
        names=("dns:printer-17.example.ac.jp", "ip:10.0.0.17"),
    )
    both.invite("device", device_id="other", names=("dns:other.example.ac.jp",))
    found = both.store.read(lambda tx: registrations_like(tx, typed, limit=10))
    assert len(found) == 1, [one.label for one in found]


@pytest.mark.parametrize("typed", ["amada", "%", "_aro", "zzz", "taro\U0010ffff"])
def test_what_stands_in_the_middle_or_is_a_pattern_does_not(both: Parts, typed: str) -> None:
    both.invite("person", name="Taro Yamada", email="taro@example.ac.jp")
    assert both.store.read(lambda tx: registrations_like(tx, typed, limit=10)) == []


def test_certificates_are_found_through_their_registration_newest_first(both: Parts) -> None:
    handover = both.invite("device", device_id="printer-17", units=2)
    first, second = both.enroll(handover), both.enroll(handover)
    both.enroll(both.invite("device", device_id="other", names=("dns:other.example.ac.jp",)))
    found = both.store.read(lambda tx: certificates_like(tx, "PRINTER", limit=10))
    assert {one.enrollment for one in found} == {first.enrollment, second.enrollment}
    one = both.store.read(lambda tx: certificates_like(tx, "PRINTER", limit=1))
    assert len(one) == 1


def test_the_commands_search(live: Live) -> None:
    live.enroll(live.invite("device", device_id="printer-17"))
    live.invite("person", name="Taro Yamada")

    def rows(*arguments: str) -> list[dict[str, object]]:
        configuration = str(live.directory / "estserver.toml")
        result = CliRunner().invoke(main, ["--config", configuration, *arguments, "--json"])
        assert result.exit_code == 0, result.output
        found: list[dict[str, object]] = json.loads(result.stdout)
        return found

    assert len(rows("certificates", "list", "--search", "print")) == 1
    assert len(rows("invitations", "list", "--search", "yamada")) == 1
    assert rows("invitations", "list", "--search", "nobody") == []


def test_folding_is_the_same_however_it_was_typed() -> None:
    wide = "  Ｔａｒｏ\u3000YAMADA "  # noqa: RUF001 - as a Japanese keyboard types it
    assert folded(wide) == folded("taro yamada") == "taro yamada"


def test_lists_by_end_go_on_where_a_page_ended(both: Parts) -> None:
    handover = both.invite("device", units=5)
    issued = []
    for _ in range(5):
        issued.append(both.enroll(handover).enrollment)
        both.clock.advance(timedelta(hours=1))

    def walk(state: CertificateState | None, until: datetime | None) -> list[str]:
        found: list[str] = []

        def following(tx: Transaction) -> list[str]:
            last = found[-1] if found else None
            page = certificates.page(tx, state=state, expiring_before=until, before=last, limit=2)
            return [record.enrollment for record in page]

        while page := both.store.read(following):
            found += page
        return found

    soon = both.clock.now() + timedelta(days=400)
    assert walk(None, soon) == issued
    assert walk(CertificateState.EXPIRED, None) == []
    both.clock.advance(timedelta(days=370))
    assert walk(CertificateState.EXPIRED, None) == issued[::-1]
    assert walk(None, soon) == []
