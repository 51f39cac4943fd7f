"""PKCS#12 files made by the browser's modules open in every importer at hand."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from tests.web.browser_modules import (
    FRIENDLY_NAME,
    PASSWORD,
    Ask,
    Issued,
    every_key_type,
    output_of,
    program,
    run,
)

FORMATS = ("modern", "compatible")
MODERN_ROUNDS = 150_000
COMPATIBLE_ROUNDS = 2048
both_formats = pytest.mark.parametrize("file_format", FORMATS)


@every_key_type
@both_formats
def test_pkcs12_opens_in_openssl(
    build: Callable[[str, str], Path], key_type: str, file_format: str
) -> None:
    path = build(key_type, file_format)
    openssl = (program("openssl", "openssl"), "pkcs12", "-in", path)
    text = output_of(*openssl, "-passin", f"pass:{PASSWORD}", "-info", "-nodes")
    if file_format == "modern":
        scheme = f"PBES2, PBKDF2, AES-256-CBC, Iteration {MODERN_ROUNDS}, PRF hmacWithSHA256"
        mac = f"MAC: sha256, Iteration {MODERN_ROUNDS}"
    else:
        scheme = f"pbeWithSHA1And3-KeyTripleDES-CBC, Iteration {COMPATIBLE_ROUNDS}"
        mac = f"MAC: sha1, Iteration {COMPATIBLE_ROUNDS}"
    assert mac in text
    assert f"PKCS7 Encrypted data: {scheme}" in text
    assert f"Shrouded Keybag: {scheme}" in text
    assert text.count("-----BEGIN CERTIFICATE-----") == 3
    assert text.count("-----BEGIN PRIVATE KEY-----") == 1
    key_ids = re.findall(r"localKeyID: ([0-9A-F ]{59})", text)
    assert len(key_ids) == 2
    assert key_ids[0] == key_ids[1]


@both_formats
def test_pkcs12_wrong_password_fails(
    build: Callable[[str, str], Path], file_format: str, tmp_path: Path
) -> None:
    path = build("ec-p256", file_format)
    openssl = (program("openssl", "openssl"), "pkcs12", "-in", path, "-nodes")
    refused = run(*openssl, "-passin", f"pass:{PASSWORD.lower()}")
    assert refused.returncode != 0
    assert b"Mac verify error" in refused.stderr
    with pytest.raises(ValueError, match="Invalid password"):
        pkcs12.load_pkcs12(path.read_bytes(), PASSWORD.lower().encode())
    pk12util = program("pk12util", "libnss3-tools")
    refused = run(pk12util, "-l", path, "-d", nss_database(tmp_path), "-W", PASSWORD.lower())
    assert b"SEC_ERROR_BAD_PASSWORD" in refused.stderr


@every_key_type
@both_formats
def test_pkcs12_opens_in_cryptography(
    build: Callable[[str, str], Path],
    issue: Callable[[str], Issued],
    key_type: str,
    file_format: str,
) -> None:
    issued = issue(key_type)
    loaded = pkcs12.load_pkcs12(build(key_type, file_format).read_bytes(), PASSWORD.encode())
    assert loaded.cert is not None
    assert loaded.key is not None
    assert loaded.cert.certificate == issued.certificate
    assert loaded.cert.friendly_name == FRIENDLY_NAME.encode()
    assert tuple(extra.certificate for extra in loaded.additional_certs) == issued.authorities
    assert [extra.friendly_name for extra in loaded.additional_certs] == [None, None]
    expected = serialization.load_der_private_key(issued.private_key, None)
    assert private_der(loaded.key) == private_der(expected)


def private_der(key: Any) -> bytes:
    pkcs8 = serialization.PrivateFormat.PKCS8
    exported: bytes = key.private_bytes(
        serialization.Encoding.DER, pkcs8, serialization.NoEncryption()
    )
    return exported


def nss_database(folder: Path) -> str:
    database = f"sql:{folder}"
    output_of(program("certutil", "libnss3-tools"), "-N", "-d", database, "--empty-password")
    return database


@every_key_type
@both_formats
def test_pkcs12_imports_into_nss(
    build: Callable[[str, str], Path], key_type: str, file_format: str, tmp_path: Path
) -> None:
    path = build(key_type, file_format)
    database = nss_database(tmp_path)
    pk12util = program("pk12util", "libnss3-tools")
    listed = output_of(pk12util, "-l", path, "-d", database, "-W", PASSWORD)
    assert "Key(shrouded)" in listed
    assert f"Friendly Name: {FRIENDLY_NAME}" in listed
    output_of(pk12util, "-i", path, "-d", database, "-W", PASSWORD)
    certutil = program("certutil", "libnss3-tools")
    assert re.search(rf"{FRIENDLY_NAME}\s+u,u,u", output_of(certutil, "-L", "-d", database))
    keys = output_of(certutil, "-K", "-d", database)
    assert keys.count("< 0>") == 1
    assert FRIENDLY_NAME in keys


@pytest.mark.parametrize("key_type", ["rsa-3072", "ec-p256"])
@both_formats
def test_pkcs12_opens_in_java(
    build: Callable[[str, str], Path], key_type: str, file_format: str
) -> None:
    keytool = shutil.which("keytool")
    if keytool is None:
        pytest.skip("keytool is missing: install default-jre-headless to try Java too")
    store = ("-storetype", "PKCS12", "-keystore", build(key_type, file_format))
    english = "-J-Duser.language=en"
    text = output_of(keytool, english, "-list", "-v", *store, "-storepass", PASSWORD)
    assert f"Alias name: {FRIENDLY_NAME}" in text
    assert "Entry type: PrivateKeyEntry" in text
    assert "Certificate chain length: 3" in text


@pytest.mark.parametrize("name", ["𠮷田 😀", 'O\'Neil "x" <&>', "", "名" * 255])
def test_friendly_name_reads_back(
    ask: Ask, issue: Callable[[str], Issued], name: str, tmp_path: Path
) -> None:
    answer = ask("pkcs12", issue("ec-p256").contents(friendlyName=name))
    path = tmp_path / "named.p12"
    path.write_bytes(bytes.fromhex(answer["file"]))
    loaded = pkcs12.load_pkcs12(path.read_bytes(), PASSWORD.encode())
    assert loaded.cert is not None
    assert loaded.key is not None
    if max(name, default="") <= "\uffff":
        # Beyond the BMP pyca finds no name: BMPString has no surrogate pairs.
        assert (loaded.cert.friendly_name or b"") == name.encode()
    pk12util = program("pk12util", "libnss3-tools")
    listed = output_of(pk12util, "-l", path, "-d", nss_database(tmp_path), "-W", PASSWORD)
    assert f"Friendly Name: {name}" in listed or not name


def test_pkcs12_takes_every_printable_ascii_character_in_the_password(
    ask: Ask, issue: Callable[[str], Issued]
) -> None:
    password = "".join(map(chr, range(0x20, 0x7F)))
    answer = ask("pkcs12", issue("ec-p256").contents(password=password))
    loaded = pkcs12.load_pkcs12(bytes.fromhex(answer["file"]), password.encode())
    assert loaded.key is not None


@pytest.mark.parametrize(
    "password", ["", "パスワード123456", "tab\there", "line\n", "naïve password"]
)
def test_password_importers_disagree_about_is_refused(
    ask: Ask, issue: Callable[[str], Issued], password: str
) -> None:
    refused = ask("pkcs12Refusal", issue("ec-p256").contents(password=password))
    assert refused == {"name": "BadPassword", "code": "password-not-printable-ascii"}


@pytest.mark.parametrize("password", ["correct horse battery", PASSWORD[:-1], PASSWORD.lower()])
def test_compatible_format_takes_generated_passwords_only(
    ask: Ask, issue: Callable[[str], Issued], password: str
) -> None:
    contents = issue("ec-p256").contents(password=password, format="compatible")
    refused = ask("pkcs12Refusal", contents)
    assert refused == {"name": "BadPassword", "code": "password-not-generated"}


@pytest.mark.parametrize("part", ["privateKey", "certificate"])
@pytest.mark.parametrize("value", ["", "3003020100ff", "30030201", "3080000000", "020100"])
def test_pkcs12_parts_must_be_one_der_sequence(
    ask: Ask, issue: Callable[[str], Issued], part: str, value: str
) -> None:
    refused = ask("pkcs12Refusal", issue("ec-p256").contents(**{part: value}))
    assert refused == {"name": "BadDER", "code": "bad-der"}


def test_generated_passwords_are_100_bits_in_groups(ask: Ask) -> None:
    passwords = ask("passwords", 500)
    shape = re.compile(r"[2-9A-HJ-NP-Z]{4}(-[2-9A-HJ-NP-Z]{4}){4}")
    assert all(shape.fullmatch(password) for password in passwords)
    assert len(set(passwords)) == len(passwords)
    assert len(set("".join(passwords)) - {"-"}) == 32


def test_building_a_modern_file_reports_progress_and_lets_the_page_work(
    ask: Ask, issue: Callable[[str], Issued]
) -> None:
    answer = ask("pkcs12", issue("ec-p256").contents())
    assert answer["progress"] == sorted(answer["progress"])
    assert answer["progress"][-1] == 1
    assert len(answer["progress"]) > 2
    assert answer["ticks"] > 2
