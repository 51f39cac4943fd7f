"""An operator's desk: registers, enrolls, edits, and looks under the hood."""

import base64
from typing import Any

import sqlalchemy as sa

from tests.command_line import Shell
from tests.live import Holder, Live, make_csr, new_key
from tests.parts import unguard_audit


def invite_person(shell: Shell, *more: str) -> Any:
    options = ["--profile", "person", "--name", "Taro Yamada", "--email", "taro@example.ac.jp"]
    return shell.json("invite", *options, "--no-mail", *more)


def invite_device(shell: Shell, *more: str) -> Any:
    return shell.json("invite", "--profile", "device", "--device-id", "printer-17", *more)


def enroll(live: Live, invited: Any, status: int = 200) -> Holder | None:
    """Enroll over EST with what `invite --json` printed."""
    key = new_key()
    pair = f"{invited['est']['username']}:{invited['est']['password']}"
    answer = live.request(
        "POST",
        f"/.well-known/est/{invited['profile']}/simpleenroll",
        body=base64.b64encode(make_csr(key)),
        headers={
            "Content-Type": "application/pkcs10",
            "Authorization": "Basic " + base64.b64encode(pair.encode()).decode(),
        },
    )
    assert answer.status == status, answer.body
    return Holder(key, answer.certificates()[0]) if status == 200 else None


def edit(shell: Shell, old: str, new: str) -> None:
    path = shell.directory / "estserver.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def sql(shell: Shell, statement: str) -> None:
    engine = sa.create_engine(f"sqlite:///{shell.directory}/estserver.db")
    with engine.begin() as connection:
        if "audit_events" in statement:
            unguard_audit(connection)
        connection.exec_driver_sql(statement)
    engine.dispose()
