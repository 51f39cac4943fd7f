"""The browser's modules run by Node.js: asked, and their files made once."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.web.browser_modules import (
    DRIVER,
    FRIENDLY_NAME,
    MODULES,
    STATIC,
    Ask,
    Authority,
    Issued,
    named,
    program,
    run,
)


@pytest.fixture(scope="session")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    node = program("node", "nodejs")
    folder = tmp_path_factory.mktemp("modules")
    for source in [*(STATIC / name for name in MODULES), DRIVER]:
        shutil.copy(source, folder)
    # Browsers are told that these are modules; node is told here, so that nobody is served this.
    (folder / "package.json").write_text('{"type": "module"}')

    def ask_node(command: str, argument: object = None) -> Any:
        question = json.dumps({"command": command, "argument": argument}).encode()
        done = run(node, folder / DRIVER.name, stdin=question)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return ask_node


@pytest.fixture(scope="session")
def issue(ask: Ask) -> Callable[[str], Issued]:
    root = Authority(named("Test Root"), ec.generate_private_key(ec.SECP256R1()))
    issuer = Authority(named("Test Issuer"), ec.generate_private_key(ec.SECP256R1()))
    issuer_certificate = root.certify(issuer.name, issuer.key.public_key(), ca=True)
    root_certificate = root.certify(root.name, root.key.public_key(), ca=True)

    @functools.cache
    def issue_once(key_type: str) -> Issued:
        made = ask("request", key_type)
        request = x509.load_der_x509_csr(bytes.fromhex(made["csr"]))
        return Issued(
            csr=bytes.fromhex(made["csr"]),
            pem=made["pem"],
            private_key=bytes.fromhex(made["privateKey"]),
            public_key=bytes.fromhex(made["publicKey"]),
            certificate=issuer.certify(named(FRIENDLY_NAME), request.public_key(), ca=False),
            authorities=(issuer_certificate, root_certificate),
        )

    return issue_once


@pytest.fixture(scope="session")
def build(
    ask: Ask, issue: Callable[[str], Issued], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("pkcs12")

    @functools.cache
    def build_once(key_type: str, file_format: str) -> Path:
        answer = ask("pkcs12", issue(key_type).contents(format=file_format))
        path = folder / f"{key_type}-{file_format}.p12"
        path.write_bytes(bytes.fromhex(answer["file"]))
        return path

    return build_once
