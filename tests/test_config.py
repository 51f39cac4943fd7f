"""Settings: every mistake is named by its key path, and no value is ever repeated."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from estserver import failpoints
from estserver.ca.ceremony import create_instance
from estserver.config import RESERVED_LABELS, SHIPPED_PROFILES, Settings, find, load
from estserver.errors import BadInput, ConfigurationError, Fault
from estserver.keyring import Keyring, new_master
from estserver.model import Door, Secret
from estserver.settings import parse_duration
from tests.live import MovableClock

Write = Callable[[str], Path]
CANARY = "hunter2-canary"
ISSUER = "[issuers.issuing]\ncertificate = 'a'\nchain = []\nkey = 'b'\n"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ESTSERVER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(text: str) -> Path:
        path = tmp_path / "estserver.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return put


def refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load(path)
    assert str(path) in refused.value.detail
    assert CANARY not in refused.value.detail
    return refused.value.detail.removeprefix(f"{path}: ")


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("bogus = 1", "bogus"),
        ("directory = '/'", "directory"),
        ("_env_file = 'x'", "_env_file"),
        ("_case_sensitive = true", "_case_sensitive"),
        ("self = 1", "self"),
        ("[database]\nurl = 'x'\npassword = 'hunter2-canary'", "database.password"),
        ("[listeners.web]\nport = 1\nurl = 'https://x'\nbogus = 1", "listeners.web.bogus"),
        ("[listeners.bogus]\nport = 1", "listeners.bogus"),
        ("[profiles.device]\nbogus = 1", "profiles.device.bogus"),
        ("[profiles.device.renewal]\nbogus = 1", "profiles.device.renewal.bogus"),
        (
            ISSUER + "bogus = 1",
            "issuers.issuing.bogus",
        ),
        ("[web]\nbogus = 1", "web.bogus"),
    ],
)
def test_an_unknown_key_is_named_by_its_path(write: Write, text: str, path: str) -> None:
    assert refusal(write(text)) == f"{path}: unknown key"


@pytest.mark.row("INC-20")
@pytest.mark.parametrize(
    ("text", "path"),
    [
        (f"database = '{CANARY}'", "database"),
        (f"[database]\nurl = ['{CANARY}']", "database.url"),
        (f"[listeners.web]\nport = '{CANARY}'", "listeners.web.port"),
        ("[listeners.web]\nport = 65536", "listeners.web.port"),
        (f"[profiles.device]\nvalidity = '{CANARY}'", "profiles.device.validity"),
        (f"[profiles.device]\nkeys = ['{CANARY}']", "profiles.device.keys.0"),
        ("[profiles.device]\nkeys = []", "profiles.device.keys"),
        (f"[profiles.device]\nnames = ['{CANARY}']", "profiles.device.names.0"),
        (f"[profiles.device]\ndoors = ['{CANARY}']", "profiles.device.doors.0"),
        (f"profiles = '{CANARY}'", "profiles"),
        (f"profiles.device = '{CANARY}'", "profiles.device"),
        (f"[profiles.device.renewal]\nauth = '{CANARY}'", "profiles.device.renewal.auth"),
        (f"[mail]\nsecurity = '{CANARY}'", "mail.security"),
        (f"[web]\nlanguage = '{CANARY}'", "web.language"),
        (f"[log]\nlevel = '{CANARY}'", "log.level"),
        (f"[est]\ndefault_profile = '{CANARY}'", "est.default_profile"),
        (f"[profiles.new]\ntitle = '{CANARY}'", "profiles.new."),
        (
            ISSUER + f"[profiles.device]\nissuer = '{CANARY}'",
            "profiles.device.issuer",
        ),
        ("[profiles.mail]\ndefault_doors = ['est']", "profiles.mail.default_doors"),
        ("hosts = [1]", "hosts.0"),
    ],
)
def test_a_wrong_value_is_named_by_its_path_and_not_repeated(
    write: Write, text: str, path: str
) -> None:
    assert path in refusal(write(text))


@pytest.mark.parametrize("text", ["= 1", "[a", "a = ", 'a = "\\x"', "a = 1\na = 2", "\x00"])
def test_a_file_that_is_no_toml_is_refused(write: Write, text: str) -> None:
    assert refusal(write(text)).startswith("not TOML: ")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "missing.toml")
    assert "is a directory" in refusal(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    assert "not TOML" in refusal(tmp_path / "latin.toml")


@pytest.mark.row("EST-003", "EST-190", "EST-191")
@pytest.mark.parametrize("label", sorted(RESERVED_LABELS))
def test_a_label_called_like_an_operation_is_refused(write: Write, label: str) -> None:
    for spelled in (label, label.upper()):
        text = f"[profiles.{spelled}]\ntitle = 'a'\ntitle_ja = 'a'\n" + PROFILE
        assert f"profiles.{spelled}: an EST label" in refusal(write(text))


@pytest.mark.row("EST-003", "EST-005")
@pytest.mark.parametrize("label", ["_tls", "", "a b", "a/b", "..", "a%2F", "é", "a" * 65, "-x"])
def test_a_label_that_is_no_path_segment_is_refused(write: Write, label: str) -> None:
    text = f'[profiles."{label}"]\ntitle = "a"\ntitle_ja = "a"\n' + PROFILE
    assert "an EST label" in refusal(write(text))


PROFILE = """\
doors = ["est"]
default_doors = ["est"]
subject = ["CN={name}"]
keys = ["ec-p256"]
validity = "90d"
extended_key_usage = ["clientAuth"]
"""


def test_a_profile_of_ones_own_needs_only_what_has_no_default(write: Write) -> None:
    settings = load(write("[profiles.sensor]\ntitle = 'Sensor'\ntitle_ja = 'センサ'\n" + PROFILE))
    assert set(settings.profiles) == {*SHIPPED_PROFILES, "sensor"}
    assert settings.profiles["sensor"].validity == timedelta(days=90)


# -- what is merged ------------------------------------------------------------------------------


def test_an_empty_file_gives_the_shipped_profiles(write: Write) -> None:
    settings = load(write(""))
    assert set(settings.profiles) == {"person", "mail", "device", "server", "officer"}
    assert settings == load(write(""))
    assert settings.profiles == Settings().profiles


def test_a_table_of_a_shipped_profile_changes_only_what_it_mentions(write: Write) -> None:
    settings = load(write("[profiles.device]\nvalidity = '30d'\n[profiles.device.renewal]\n"))
    shipped = Settings().profiles
    assert settings.profiles["device"].validity == timedelta(days=30)
    changed = shipped["device"].model_copy(update={"validity": timedelta(days=30)})
    assert settings.profiles["device"] == changed
    assert settings.profiles["person"] == shipped["person"]


def test_a_table_of_a_listener_changes_only_what_it_mentions(write: Write) -> None:
    settings = load(write("[listeners.web]\nport = 443\nurl = 'https://pki.example/'\n"))
    assert settings.listeners.web.port == 443
    assert settings.listeners.web.url == "https://pki.example"
    assert settings.listeners.web.serves == Settings().listeners.web.serves
    assert settings.listeners.devices == Settings().listeners.devices


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90d", timedelta(days=90)),
        ("12h", timedelta(hours=12)),
        ("30m", timedelta(minutes=30)),
        ("10s", timedelta(seconds=10)),
        ("2w", timedelta(weeks=2)),
        ("0s", timedelta(0)),
        (" 7d ", timedelta(days=7)),
    ],
)
def test_durations_are_a_number_and_a_unit(write: Write, text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected
    assert load(write(f"[web]\nsession_idle = '{text}'")).web.session_idle == expected


@pytest.mark.parametrize(
    "text", ["", "d", "1", "1y", "-1d", "1.5d", "1d2h", "1234567d", "\uff11d", "P1D"]
)
def test_other_texts_are_no_durations(write: Write, text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)
    said = refusal(write(f"[web]\nsession_idle = '{text}'"))
    assert said == "web.session_idle: is not a duration such as 90d, 12h, 30m or 10s"


# -- the environment -----------------------------------------------------------------------------


def test_the_environment_wins_over_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("[database]\nurl = 'sqlite:///file.db'\n[listeners.web]\nport = 1\n")
    monkeypatch.setenv("ESTSERVER_DATABASE__URL", "postgresql+psycopg://db/x")
    monkeypatch.setenv("ESTSERVER_LISTENERS__WEB__PORT", "2")
    monkeypatch.setenv("ESTSERVER_LISTENERS__DEVICES__URL", "https://d.example/")
    monkeypatch.setenv("ESTSERVER_PROFILES__DEVICE__VALIDITY", "7d")
    monkeypatch.setenv("ESTSERVER_HOSTS", '["a.example"]')
    # Not settings: what is read elsewhere.
    monkeypatch.setenv("ESTSERVER_CONFIG", "elsewhere")
    monkeypatch.setenv("ESTSERVER_FAILPOINT", "parsed:1:raise")
    settings = load(path)
    assert settings.database_url == "postgresql+psycopg://db/x"
    assert settings.listeners.web.port == 2
    assert settings.listeners.web.serves == Settings().listeners.web.serves
    assert settings.listeners.devices.url == "https://d.example"
    assert settings.profiles["device"].validity == timedelta(days=7)
    assert settings.profiles["device"].doors == (Door.EST, Door.ACME)
    assert settings.hosts == ("a.example",)


@pytest.mark.row("INC-20")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ESTSERVER_DATABASE__PASSWORD", CANARY, "database.password: unknown key"),
        ("ESTSERVER_LISTENERS__WEB__PORT", CANARY, "listeners.web.port"),
        ("ESTSERVER_HOSTS", CANARY, "ESTSERVER_"),
        ("ESTSERVER_HOSTS", f'["{CANARY}', "ESTSERVER_"),
        ("ESTSERVER_EST", CANARY, "ESTSERVER_"),
    ],
)
def test_a_wrong_variable_is_refused_without_its_value(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    assert said in refusal(write(""))


# -- files ---------------------------------------------------------------------------------------


def test_the_configuration_is_looked_for_in_its_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = tmp_path / "given.toml"
    assert find(given, {"ESTSERVER_CONFIG": "x"}) == given
    assert find(None, {"ESTSERVER_CONFIG": "x"}) == Path("x")
    with pytest.raises(ConfigurationError, match="estserver init"):
        find(None, {})
    (tmp_path / "estserver.toml").write_text("")
    assert find(None, {}) == Path("estserver.toml")


def test_paths_start_at_the_configuration_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("")
    monkeypatch.chdir("/")
    settings = load(path)
    assert settings.path(settings.secrets.master) == tmp_path / "secrets/master.key"
    assert settings.database_url == f"sqlite:///{tmp_path}/estserver.db"
    absolute = load(write("[database]\nurl = 'sqlite:////var/x.db'"))
    assert absolute.database_url == "sqlite:////var/x.db"
    assert settings.path(Path("/etc/x")) == Path("/etc/x")


def test_what_init_writes_can_be_loaded(tmp_path: Path) -> None:
    instance = create_instance(tmp_path / "i", MovableClock())
    settings = load(instance.configuration)
    assert set(settings.issuers) == {"issuing"}


# -- secrets and failpoints ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "master", ["", "short", "!" * 60, f"{CANARY * 9}$", "é" * 60, "A" * 42, "A" * 40 + " A"]
)
def test_a_master_secret_that_is_none_is_refused_without_showing_it(master: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Keyring(Secret(master))
    assert CANARY not in refused.value.detail
    assert refused.value.__cause__ is None


def test_keys_for_different_purposes_never_meet() -> None:
    keyring = Keyring(Secret(new_master()))
    keys = {
        keyring.derive("a"),
        keyring.derive("b"),
        keyring.derive("a", "b"),
        keyring.derive("a", "b", "c"),
        keyring.derive("a", "bc"),
        keyring.derive("ab"),
        Keyring(Secret(new_master())).derive("a"),
    }
    assert len(keys) == 7
    assert keyring.derive("a", length=66)[:32] == keyring.derive("a")


def test_what_was_sealed_opens_for_its_purpose_only() -> None:
    keyring = Keyring(Secret(new_master()))
    sealed = keyring.seal("cookie", b"content")
    assert keyring.unseal("cookie", sealed) == b"content"
    assert keyring.seal("cookie", b"content") != sealed
    flipped = ("B" if sealed[-2] != "B" else "C").join((sealed[:-2], sealed[-1]))
    for purpose, text in (
        ("form", sealed),
        ("cookie", flipped),
        ("cookie", sealed[:-4]),
        ("cookie", ""),
        ("cookie", "AAAA"),
        ("cookie", "é" * 40),
        ("cookie", f"{sealed[:8]}!{sealed[8:]}"),
        ("cookie", f" {sealed}"),
    ):
        with pytest.raises(BadInput):
            keyring.unseal(purpose, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "signed",
        "signed:1",
        "signed:0:kill",
        "signed:-1:kill",
        "signed:²:kill",
        "signed:1:explode",
        "bogus:1:kill",
        "signed:1:sleep:long",
        "signed:1:sleep:-1",
        "signed:1:sleep:nan",
        "signed:1:sleep:1e9",
    ],
)
def test_a_failpoint_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="ESTSERVER_FAILPOINT"):
        failpoints.arm(text)


def test_a_failpoint_acts_the_nth_time_and_once() -> None:
    failpoints.arm("signed:3:raise")
    try:
        outcomes = []
        for _ in range(5):
            try:
                failpoints.reach("signed")
            except Fault:
                outcomes.append("fault")
            else:
                outcomes.append("on")
        assert outcomes == ["on", "on", "fault", "on", "on"]
        failpoints.reach("stored")
    finally:
        failpoints.disarm()
    failpoints.arm("signed:1:sleep:0.001")
    failpoints.reach("signed")
    failpoints.disarm()


@pytest.mark.parametrize(
    ("keys", "secret"),
    [
        ("signing_certificate = 'a.pem'\nsigning_key = 'b.pem'", "b.pem"),
        ("signing_certificate = 'a.pem'", "a.pem"),
    ],
)
def test_what_signs_letters_is_among_the_secrets(write: Write, keys: str, secret: str) -> None:
    settings = load(write(f"{ISSUER}[mail]\n{keys}\n"))
    letters = {path.name for path in settings.secret_files()} & {"a.pem", "b.pem"}
    assert letters == {secret}
