"""The house: imports run downward only, and libraries stay in their rooms."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "estserver"
# Lowest first; a module may import its own room and the rooms before it.
ROOMS = (
    ("errors", "files", "model", "registration", "failpoints", "sortable_ids", "shipped_profiles"),
    ("wording", "names", "name_grammar", "keyring", "pin", "settings"),
    ("csr", "csr_body", "public_keys", "config", "journal"),
    ("profiles", "name_constraints", "granted_names"),
    ("ca", "store", "mail"),
    ("steps", "convoy", "spending", "pin_hashing"),
    ("invitations", "notices", "retention", "external_binding", "throttling"),
    (
        "revoking",
        "campaigns",
        "renewal_information",
        "authentication",
        "credentials",
        "intents",
        "approvals",
    ),
    ("ra", "status"),
    ("own_certificates",),
    ("core", "duties", "anchor"),
    ("front", "unix_sockets"),
    ("http",),
    ("protocols", "web", "management"),
    ("logs", "listeners", "systemd", "specimens", "allocator"),
    ("server", "doctor", "verification", "backup", "history", "recovery"),
    ("supervisor",),
    ("cli",),
)
# A protocol's own tables are its own room's business.
OWN_TABLES = {
    "estserver.protocols.acme.authorization_records",
    "estserver.protocols.acme.erasure",
    "estserver.protocols.acme.failure_records",
    "estserver.protocols.acme.records",
    "estserver.protocols.acme.tables",
}
LIBRARIES = {
    "aiohttp": {"front", "http", "protocols", "web", "management", "listeners", "server", "cli"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "josepy": {"protocols"},
    "dns": {"protocols"},
    "pkcs11": {"ca"},
    "jinja2": {"web", "mail"},
    "click": {"cli"},
    "rich": {"cli"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _level(room: str) -> int:
    return next(level for level, rooms in enumerate(ROOMS) if room in rooms)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_run_downward_only(path: Path) -> None:
    module = _name(path)
    if module in {"estserver", "estserver.__main__"}:
        return
    for imported in _imports(path):
        if imported.startswith("estserver."):
            assert _level(_room(imported)) <= _level(_room(module)), f"{module} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_siblings_never_import_each_other(path: Path) -> None:
    module = _name(path)
    doors = ("estserver.protocols.", "estserver.web.")
    if not module.startswith(doors):
        return
    own = ".".join(module.split(".")[:3])
    for imported in _imports(path):
        if not imported.startswith(doors):
            continue
        allowed = imported.startswith(
            ("estserver.protocols.encoding", own, "estserver.web.")
            if module.startswith("estserver.web.")
            else ("estserver.protocols.encoding", own.split("_")[0])
        )
        is_interface = imported.rsplit(".", 1)[1][0].isupper() and imported.count(".") == 2
        assert allowed or is_interface, f"{module} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    room = _room(_name(path))
    for imported in _imports(path):
        if imported.startswith("sqlalchemy") and _name(path) in OWN_TABLES:
            continue
        rooms = LIBRARIES.get(imported.split(".")[0])
        assert rooms is None or room.split("_")[0] in rooms or room in rooms, (
            f"{_name(path)} imports {imported}"
        )


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    long = {
        _name(path): lines
        for path in MODULES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 460
    }
    assert not long


def test_the_signing_key_has_one_caller() -> None:
    callers = {
        _name(path)
        for path in MODULES
        if "_issuers[draft.issuer].sign(" in path.read_text(encoding="utf-8")
        or ".issuer.sign(" in path.read_text(encoding="utf-8")
    }
    assert callers == {"estserver.ra"}
