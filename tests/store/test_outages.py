"""What operators are told of a database that cannot be used, and what they are not."""

from contextlib import closing

import pytest

from estserver.core import SystemClock
from estserver.errors import ConfigurationError, Unavailable
from estserver.store import Store
from estserver.store.outages import explained

_SERVER = "postgresql+psycopg://estserver:hunter2@"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"{_SERVER}127.0.0.1:1/x", "port 1 failed: Connection refused"),
        (f"{_SERVER}/x?host=/nowhere", "/nowhere/.s.PGSQL.5432"),
        ("sqlite:////nowhere/x.db", "nowhere/x.db.lock: no such file or directory"),
    ],
    ids=["TCP", "Unix socket", "file"],
)
def test_the_drivers_reason_is_told_and_the_client_does_not_get_it(url: str, reason: str) -> None:
    with closing(Store(url, SystemClock())) as store, pytest.raises(Unavailable) as refused:
        store.write(lambda _: None)
    assert reason in explained(refused.value)
    assert "hunter2" not in explained(refused.value)
    assert refused.value.detail == "the database is busy or cannot be written now: try again"


@pytest.mark.parametrize("url", ["sqlite3:///x.db", "sqlite+nope:///x", "mysql://u@h/x", "x"])
def test_a_database_of_another_kind_is_told_in_a_sentence(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must be sqlite:///FILE or postgresql"):
        Store(url, SystemClock())


@pytest.mark.parametrize("password", ["p@hunter2", "p@hunter/2", "p@hun ter2", "p@hun?ter2"])
def test_the_rest_of_a_password_with_an_at_sign_is_no_name_of_a_host(password: str) -> None:
    url = f"postgresql+psycopg://estserver:{password}@127.0.0.1:1/x"
    with pytest.raises(ConfigurationError, match="write %40") as refused:
        Store(url, SystemClock())
    assert "hun" not in refused.value.detail
