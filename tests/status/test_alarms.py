"""Clocks that are wrong and publishers that are dead: told in time."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import structlog

from estserver.errors import Fault
from estserver.status import StatusWatch
from estserver.store import crls
from tests.status.judging import parsed
from tests.status_driver import LIFETIME, FickleKey, House

HOUR = timedelta(hours=1)


# -- clocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [timedelta(days=400), timedelta(days=-400)])
def test_a_clock_that_contradicts_what_is_published_makes_no_crl(
    make_house: Callable[..., House], jump: timedelta
) -> None:
    house = make_house()
    before = house.status.publish("issuing")
    _, enrollment = house.issue("host")
    house.revoke(enrollment)
    house.clock.offset += jump
    with pytest.raises(Fault, match="set the clock right"):
        house.status.publish("issuing")
    assert house.status.crl("issuing") == before
    house.clock.offset -= jump
    after = house.status.publish("issuing")
    assert after.number == before.number + 1
    assert len(parsed(after.der)) == 1
    assert after.this_update <= house.clock.now()


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_an_hour_of_error_leaves_no_crl_from_the_future(
    make_house: Callable[..., House], jump: timedelta
) -> None:
    house = make_house()
    numbers: list[int] = []
    for offset in (timedelta(0), jump, timedelta(0), -jump, timedelta(0)):
        house.clock.offset = offset
        _, enrollment = house.issue(f"host {len(numbers)}")
        house.revoke(enrollment)
        made = house.status.publish("issuing")
        assert made.this_update <= house.clock.now() < made.next_update
        assert house.status.crl("issuing") == made
        numbers.append(made.number)
        assert len(parsed(made.der)) == len(numbers)
    assert numbers == [1, 2, 3, 4, 5]


def test_an_operator_who_knows_the_clock_to_be_right_has_crls_made(
    make_house: Callable[..., House],
) -> None:
    house = make_house(own_crls=("device",))
    house.status.publish_due()
    house.clock.offset += timedelta(days=400)
    with pytest.raises(Fault, match="estserver crl renew issuing"):
        house.status.publish_due()
    assert house.store.write(lambda tx: crls.dismiss(tx, "issuing"))
    assert [crl.number for crl in house.status.publish_due()] == [3, 4]
    assert not house.store.write(lambda tx: crls.dismiss(tx, "nobody"))


# -- alarms ----------------------------------------------------------------------------------------


def _watched(house: House, hours: int, minutes: int = 10) -> list[tuple[timedelta, str]]:
    """Let a watch run for simulated hours; return when it said what."""
    watch = StatusWatch(house.status, house.clock)
    begun = house.clock.now()
    said = []
    for _ in range(hours * 60 // minutes):
        with structlog.testing.capture_logs() as lines:
            watch.publish()
            watch.look()
        at = house.clock.now() - begun
        said += [(at, line["object"]) for line in lines if line["event"] == "status.alarm"]
        house.clock.offset += timedelta(minutes=minutes)
    return said


@pytest.mark.row("INC-28")
@pytest.mark.parametrize("hours", [12, 24, 72, 95])
def test_72_hours_with_a_dead_publisher_the_alarm_comes_before_the_crl_expires(
    make_house: Callable[..., House], hours: int
) -> None:
    life = timedelta(hours=hours)
    house = make_house(crl_lifetime=life, own_crls=("device",))
    house.status.publish_due()
    house.issuers["issuing"]._key = FickleKey()
    said = _watched(house, 72)
    failed = min(at for at, about in said if about == "CRLs")
    assert life * 0.49 <= failed <= life * 0.51, "that it fails is said as soon as it does"
    for about in ("CRL issuing", "CRL issuing device"):
        at = min(at for at, what in said if what == about)
        assert life * 0.7 <= at < life, "and there is a quarter of its life left to do something"


@pytest.mark.row("INC-28")
def test_the_alarm_comes_with_the_database_dead_too(make_house: Callable[..., House]) -> None:
    house = make_house(crl_lifetime=timedelta(hours=24))
    house.status.publish("issuing")
    house.store.engine.dispose()
    house.directory.rename(house.directory.with_suffix(".gone"))
    watch = StatusWatch(house.status, house.clock)
    house.clock.offset += 17 * HOUR
    assert dict(watch.alarms()) == {}
    house.clock.offset += 2 * HOUR
    assert "lapses in" in dict(watch.alarms())["CRL issuing"]
    house.clock.offset += 6 * HOUR
    assert "lapsed" in dict(watch.alarms())["CRL issuing"]
    house.directory.with_suffix(".gone").rename(house.directory)


def test_the_alarm_ends_when_a_crl_is_published(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.status.publish("issuing")
    key, house.issuers["issuing"]._key = house.issuers["issuing"]._key, FickleKey()
    house.clock.offset += LIFETIME * 0.8
    watch = StatusWatch(house.status, house.clock)
    with structlog.testing.capture_logs() as lines:
        watch.publish()
        watch.look()
        watch.look()
        house.issuers["issuing"]._key = key
        watch.publish()
        watch.look()
    told = [(line["event"], line["object"]) for line in lines]
    assert told == [
        ("status.alarm", "CRLs"),
        ("status.alarm", "CRL issuing"),
        ("status.recovered", "CRLs"),
        ("status.recovered", "CRL issuing"),
    ]


def test_a_responder_certificate_of_30_days_that_nobody_renews_is_told_at_a_quarter(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    house.install_responder()
    watch = StatusWatch(house.status, house.clock)
    house.clock.offset += timedelta(days=22)
    house.status.publish("issuing")
    assert dict(watch.alarms()) == {}
    house.clock.offset += timedelta(days=1)
    (left,) = house.status.responders()
    assert left.red
    assert "has not been renewed" in dict(watch.alarms())["OCSP responder issuing"]
    house.install_responder()
    assert dict(watch.alarms()) == {}
