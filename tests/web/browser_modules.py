"""The browser's modules under Node.js: how they are asked, and who judges what they make."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

STATIC = Path(__file__).parents[2] / "estserver" / "web" / "static"
DRIVER = Path(__file__).parent / "browser_modules.mjs"
MODULES = (
    "certificate.js",
    "csr.js",
    "der.js",
    "des3.js",
    "keystore.js",
    "pkcs12-formats.js",
    "pkcs12.js",
    "sha2.js",
)


KEY_TYPES = ("rsa-2048", "rsa-3072", "rsa-4096", "ec-p256", "ec-p384", "ec-p521")
FRIENDLY_NAME = "山田 太郎"
PASSWORD = "K7QM-2XHD-9WRT-PZ4C-VB6N"  # of the shape generatePassword makes
NOT_BEFORE = datetime(2026, 1, 1, tzinfo=UTC)
NOT_AFTER = datetime(2036, 1, 1, tzinfo=UTC)
every_key_type = pytest.mark.parametrize("key_type", KEY_TYPES)


# What node answers is JSON of a shape that each test knows.
Ask: TypeAlias = Callable[..., Any]


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: scripts/test installs {package}", pytrace=False)
    return found


def run(*command: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command, input=stdin, capture_output=True, check=False, timeout=60, env=environment
    )


def output_of(*command: str | Path, stdin: bytes = b"") -> str:
    done = run(*command, stdin=stdin)
    text = (done.stdout + done.stderr).decode(errors="backslashreplace")
    assert done.returncode == 0, f"{command}\n{text}"
    return text


@dataclass(frozen=True, slots=True)
class Issued:
    csr: bytes
    pem: str
    private_key: bytes
    public_key: bytes
    certificate: x509.Certificate
    authorities: tuple[x509.Certificate, ...]

    def contents(self, **changes: object) -> dict[str, object]:
        """Give the argument of createPKCS12, bytes as hexadecimal."""
        return {
            "privateKey": self.private_key.hex(),
            "certificate": der(self.certificate).hex(),
            "caCertificates": [der(authority).hex() for authority in self.authorities],
            "friendlyName": FRIENDLY_NAME,
            "password": PASSWORD,
            **changes,
        }


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def named(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "国立試験研究所"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name),
        ]
    )


@dataclass(frozen=True, slots=True)
class Authority:
    name: x509.Name
    key: ec.EllipticCurvePrivateKey

    def certify(self, subject: x509.Name, key: Any, *, ca: bool) -> x509.Certificate:
        return (
            x509.CertificateBuilder(self.name, subject, key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOT_BEFORE)
            .not_valid_after(NOT_AFTER)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
