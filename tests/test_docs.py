"""The documentation tells the truth: conf/estserver.toml has every setting with its default."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from estserver import config
from estserver.config import Settings
from estserver.errors import ConfigurationError
from estserver.settings import IssuerSettings, ProfileSettings

REFERENCE = Path(__file__).parent.parent / "conf/estserver.toml"
_HEADING = re.compile(r"\[([a-z.]+)\]")
_KEY = re.compile(r"(?P<comment># )?(?P<key>[a-z_0-9]+) = (?P<value>.+)")
_TABLES_OF_TABLES: dict[str, type[BaseModel]] = {
    "issuers": IssuerSettings,
    "profiles": ProfileSettings,
}


def _lines() -> list[str]:
    return REFERENCE.read_text(encoding="utf-8").splitlines()


def _documented() -> dict[str, bool]:
    """Return key path -> whether it is in force (not commented out)."""
    found = {}
    table = ""
    for line in _lines():
        if heading := _HEADING.fullmatch(line):
            table = heading[1] + "."
        elif match := _KEY.fullmatch(line):
            found[table + match["key"]] = match["comment"] is None
    return found


def _keys(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return key path -> default of every setting; each shipped table of tables by one example."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        kind = field.annotation
        if name in _TABLES_OF_TABLES:
            example = {"issuers": "issuing", "profiles": "person"}[name]
            found |= _keys(_TABLES_OF_TABLES[name], f"{prefix}{name}.{example}.")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= _keys(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.get_default(call_default_factory=True)
    return found


def test_every_setting_stands_in_the_reference() -> None:
    documented, known = _documented().keys(), _keys(Settings).keys()
    assert not known - documented
    # The one profile that shows every key speaks for the others.
    shown = {re.sub(r"^profiles\.[^.]+\.", "profiles.person.", path) for path in documented}
    assert not shown - known


def test_the_example_of_two_nodes_is_a_configuration() -> None:
    settings = config.load(REFERENCE.with_name("two-nodes.toml"))
    assert settings.database_file is None
    assert settings.database_url.startswith("postgresql+psycopg://")
    # A failover goes by the journals, each on a disk of its own.
    assert settings.journal.path == Path("/srv/estserver-journal")
    assert settings.path(settings.audit.anchor).is_relative_to("/srv/estserver-journal")


def test_unit_fronts_and_nodes_name_the_same_folders() -> None:
    unit = REFERENCE.with_name("estserver.service").read_text(encoding="utf-8")
    assert "\nRuntimeDirectory=estserver\n" in unit
    assert "\nReadWritePaths=-/srv/estserver-journal\n" in unit
    assert "\nStateDirectory=estserver\n" in unit
    for example in ("haproxy.cfg", "nginx.conf"):
        text = REFERENCE.with_name(example).read_text(encoding="utf-8")
        told = set(re.findall(r'^#   socket = "(.+)"$', text, re.MULTILINE))
        assert told == {"/run/estserver/web.sock", "/run/estserver/devices.sock"}
        assert told == set(re.findall(r"(?:@|unix:)(/[\w/]+\.sock)", text))
        assert "/var/lib/estserver/ca" in text


def test_only_settings_without_a_default_are_commented_out() -> None:
    defaults = _keys(Settings)
    for path, in_force in _documented().items():
        if not in_force:
            assert defaults[path] is None, path


def test_the_reference_gives_the_defaults() -> None:
    written = config.load(REFERENCE).model_dump(exclude={"issuers"})
    assert written == Settings().model_dump(exclude={"issuers"})
    assert config.load(REFERENCE).issuers["issuing"].crl_lifetime == (
        IssuerSettings.model_fields["crl_lifetime"].default
    )


def test_shipped_profiles_are_written_out_in_full() -> None:
    written = tomllib.loads(REFERENCE.read_text(encoding="utf-8"))["profiles"]
    assert written.keys() == config.SHIPPED_PROFILES.keys()
    for name, shipped in config.SHIPPED_PROFILES.items():
        assert shipped.keys() <= written[name].keys()


def test_every_setting_has_a_comment_above_it() -> None:
    above, for_all = "", False
    for number, line in enumerate(_lines(), 1):
        if _HEADING.fullmatch(line):
            for_all = False
        elif _KEY.fullmatch(line):
            assert for_all or above.startswith("# "), f"line {number}: {line}"
            assert for_all or not _KEY.fullmatch(above), f"line {number}: {line}"
        for_all = for_all or line == "# As above, for all that follows."
        above = line


def test_the_example_of_a_setting_without_default_is_valid() -> None:
    text = "\n".join(line.removeprefix("# ") if _KEY.fullmatch(line) else line for line in _lines())
    Settings(**tomllib.loads(text))


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("listeners.web.prot", "listeners.web.prot: unknown key"),
        ("mial.host", "mial: unknown key"),
        ("profiles.person.kyes", "profiles.person.kyes: unknown key"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_its_path(
    key: str, named: str, tmp_path: Path
) -> None:
    table, _, name = key.rpartition(".")
    path = tmp_path / "estserver.toml"
    path.write_text(f'[{table}]\n{name} = "x"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError) as raised:
        config.load(path)
    assert named in raised.value.detail
