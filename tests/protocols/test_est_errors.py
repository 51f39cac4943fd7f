"""Every error of the tree has its status at the EST door, and its words."""

from datetime import timedelta

import pytest
from aiohttp.test_utils import make_mocked_request

import estserver.server  # noqa: F401 - who puts everything together knows every error
from estserver import http
from estserver.errors import Error, Fault, Refused, Unavailable
from estserver.protocols.est import RENDER
from estserver.protocols.est_answers import refusal, sentence, status_of
from tests.protocols.est_wire import EST

STATUSES = {400, 401, 403, 404, 405, 413, 415, 429, 500, 503}


def subclasses(of: type[Error]) -> set[type[Error]]:
    direct = of.__subclasses__()
    return {of, *direct, *(deeper for one in direct for deeper in subclasses(one))}


def name_of(kind: type[Error]) -> str:
    return kind.__name__


KINDS: list[type[Error]] = sorted(subclasses(Error) - {Error}, key=name_of)


@pytest.mark.row("EST-117")
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_every_error_has_a_status_of_the_known_set(kind: type[Error]) -> None:
    assert any(base in RENDER for base in kind.__mro__)
    error = kind.__new__(kind)
    assert status_of(error) in STATUSES
    assert (status_of(error) >= 500) == issubclass(kind, Fault)


@pytest.mark.row("EST-126")
def test_a_fault_tells_the_client_nothing_but_its_reference() -> None:
    request = make_mocked_request("POST", f"{EST}/simpleenroll")
    request[http.REFERENCE] = "0123456789abcdef"
    answer = refusal(request, Fault("disk /dev/sda1 is full"), realm="r", retry_after="60")
    assert answer.status == 500
    assert answer.body == b"Internal error.\nReference: 0123456789abcdef\n"


@pytest.mark.row("EST-125")
def test_unavailable_always_says_when_to_ask_again() -> None:
    request = make_mocked_request("POST", f"{EST}/simpleenroll")
    request[http.REFERENCE] = "0123456789abcdef"
    for retry_after, seconds in ((None, "60"), (timedelta(seconds=7), "7")):
        error = Unavailable("database is locked", retry_after=retry_after)
        answer = refusal(request, error, realm="r", retry_after="60")
        assert (answer.status, answer.headers["Retry-After"]) == (503, seconds)
        assert b"locked" not in (answer.body or b"")  # type: ignore[operator]  # aiohttp allows other bodies


@pytest.mark.row("EST-118")
def test_a_sentence_begins_with_a_capital_and_ends_with_a_stop() -> None:
    assert sentence(Refused("send less")) == "Send less."
    assert sentence(Refused("Why?")) == "Why?"
