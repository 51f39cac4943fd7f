"""The modules that touch the private key, judged by the tools their output is for.

The modules run in node, their key store in Debian's Chromium under the CSP of the site.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cryptography_vectors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Page

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
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

KEY_TYPES = ("rsa-2048", "rsa-3072", "rsa-4096", "ec-p256", "ec-p384", "ec-p521")
FORMATS = ("modern", "compatible")
FRIENDLY_NAME = "山田 太郎"
PASSWORD = "K7QM-2XHD-9WRT-PZ4C-VB6N"  # of the shape generatePassword makes
MODERN_ROUNDS = 150_000
COMPATIBLE_ROUNDS = 2048

NOT_BEFORE = datetime(2026, 1, 1, tzinfo=UTC)
NOT_AFTER = datetime(2036, 1, 1, tzinfo=UTC)

every_key_type = pytest.mark.parametrize("key_type", KEY_TYPES)
both_formats = pytest.mark.parametrize("file_format", FORMATS)

# What node answers is JSON of a shape that each test knows.
Ask: TypeAlias = "Callable[..., Any]"


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


# --- CSR ---


def test_key_types_are_the_six_agreed_ones(ask: Ask) -> None:
    assert tuple(ask("keyTypes")) == KEY_TYPES


@every_key_type
def test_rfc2986_request_proves_possession(
    issue: Callable[[str], Issued], key_type: str, tmp_path: Path
) -> None:
    path = tmp_path / "request.der"
    path.write_bytes(issue(key_type).csr)
    openssl = program("openssl", "openssl")
    text = output_of(openssl, "req", "-verify", "-noout", "-inform", "DER", "-in", path)
    assert "verify OK" in text


@every_key_type
def test_rfc2986_request_carries_the_key_and_nothing_else(
    issue: Callable[[str], Issued], key_type: str
) -> None:
    issued = issue(key_type)
    request = x509.load_der_x509_csr(issued.csr)
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == ""
    assert len(request.attributes) == 0
    assert request.public_bytes(serialization.Encoding.DER) == issued.csr
    assert request.public_bytes(serialization.Encoding.PEM).decode() == issued.pem
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public_key = request.public_key()
    assert public_key.public_bytes(serialization.Encoding.DER, spki) == issued.public_key
    family, _, size = key_type.partition("-")
    assert isinstance(public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
    assert isinstance(public_key, rsa.RSAPublicKey) == (family == "rsa")
    assert public_key.key_size == int(size.removeprefix("p"))


@pytest.mark.parametrize(
    ("key_type", "digest"),
    [
        ("rsa-3072", hashes.SHA256),
        ("ec-p256", hashes.SHA256),
        ("ec-p384", hashes.SHA384),
        ("ec-p521", hashes.SHA512),
    ],
)
def test_request_is_signed_with_the_hash_of_its_key(
    issue: Callable[[str], Issued], key_type: str, digest: type[hashes.HashAlgorithm]
) -> None:
    request = x509.load_der_x509_csr(issue(key_type).csr)
    assert isinstance(request.signature_hash_algorithm, digest)


@pytest.mark.parametrize("key_type", ["ec-p256", "ec-p521"])
def test_rfc3279_2_2_3_short_signature_numbers_stay_der(ask: Ask, key_type: str) -> None:
    requests = ask("manyECRequests", {"keyType": key_type, "count": 600})
    loaded = [x509.load_der_x509_csr(bytes.fromhex(request)) for request in requests]
    assert all(request.is_signature_valid for request in loaded)
    assert len({len(request.signature) for request in loaded}) > 2


def test_unknown_key_type_is_refused(ask: Ask) -> None:
    refused = ask("requestRefusal", "rsa-1024")
    assert refused == {"name": "UnsupportedKeyType", "code": "unsupported-key-type"}


# --- PKCS#12: every key type, both formats, every importer at hand ---


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


# --- Certificates ---


@every_key_type
def test_certificate_facts_are_read(
    ask: Ask, issue: Callable[[str], Issued], key_type: str
) -> None:
    issued = issue(key_type)
    facts = ask("certificate", der(issued.certificate).hex())
    serial = facts["serialNumber"]
    assert re.fullmatch(r"[0-9A-F]{2}(:[0-9A-F]{2})*", serial)
    assert int(serial.replace(":", ""), 16) == issued.certificate.serial_number
    assert facts["commonName"] == FRIENDLY_NAME
    assert bytes.fromhex(facts["publicKey"]) == issued.public_key


def test_damaged_certificates_are_refused(ask: Ask, issue: Callable[[str], Issued]) -> None:
    good = der(issue("ec-p256").certificate)
    cut = [good[:length].hex() for length in range(0, len(good), 7)]
    refusals = ask("certificateRefusals", [*cut, (good + b"\0").hex(), "3000", "30023000"])
    assert {refused["code"] for refused in refusals} == {"bad-der"}


# --- Hash and cipher ---


def test_fips180_4_sha256_equals_hashlib(ask: Ask) -> None:
    messages = [bytes(range(256)) * 4][:1] + [os.urandom(length) for length in range(200)]
    digests = ask("sha256", [message.hex() for message in messages])
    assert digests == [hashlib.sha256(message).hexdigest() for message in messages]


def test_sha256_chain_equals_hashlib(ask: Ask) -> None:
    digest = start = hashlib.sha256(b"").digest()
    rounds = 1000
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
    assert ask("sha256Chain", {"digest": start.hex(), "rounds": rounds}) == digest.hex()


# SP 800-20: every table of DES is exercised; MMT3 has three different keys and several blocks.
@pytest.mark.parametrize(
    "file",
    ["TCBCvartext", "TCBCinvperm", "TCBCvarkey", "TCBCpermop", "TCBCsubtab", "TCBCMMT3"],
)
def test_sp800_20_triple_des_vectors(ask: Ask, file: str) -> None:
    with cryptography_vectors.open_vector_file(f"ciphers/3DES/CBC/{file}.rsp", "r") as lines:
        vectors = list(encryption_vectors(lines))
    assert len(vectors) >= 10
    assert ask("tripleDES", vectors) == [vector["ciphertext"] for vector in vectors]


def encryption_vectors(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    vector: dict[str, str] = {}
    for line in map(str.strip, lines):
        if line == "[DECRYPT]":
            return
        name, separator, value = line.partition(" = ")
        if separator:
            vector[name] = value
        if name == "CIPHERTEXT":
            keys = vector["KEYs"] * 3 if "KEYs" in vector else ""
            yield {
                "key": keys or vector["KEY1"] + vector["KEY2"] + vector["KEY3"],
                "iv": vector["IV"],
                "plaintext": vector["PLAINTEXT"],
                "ciphertext": vector["CIPHERTEXT"],
            }
            vector = {}


# --- Key store ---


def test_missing_storage_is_a_typed_error(ask: Ask) -> None:
    refusals = ask("storageRefusals")
    assert refusals == [{"name": "StorageBlocked", "code": "storage-blocked"}] * 4


class StaticFiles(SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", CSP)
        super().end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "index.html").write_text("<!doctype html><title>test</title>")
    (tmp_path / "favicon.ico").touch()
    for name in MODULES:
        shutil.copy(STATIC / name, tmp_path)
    handler = functools.partial(StaticFiles, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        # WebCrypto and IndexedDB want a secure context; localhost is one.
        yield f"http://localhost:{server.server_port}/index.html"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(site: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program("chromium", "chromium"), args=["--no-sandbox"]
        )
        opened = browser.new_page()
        complaints: list[str] = []
        opened.on("console", lambda message: complaints.append(message.text))
        opened.goto(site)
        yield opened
        browser.close()
    assert complaints == []


def test_chromium_keeps_the_key_over_a_reload_and_builds_the_file_under_the_csp(
    page: Page,
) -> None:
    csr = page.evaluate("""async () => {
        const { generateKeyPair, createCSR } = await import('/csr.js');
        const { claimEnrollment } = await import('/keystore.js');
        const records = await Promise.all(['first', 'second'].map(async () => {
            const keyPair = await generateKeyPair('ec-p256');
            const csr = await createCSR(keyPair);
            return { invitationKey: 'i-1', keyPair, csr, keyType: 'ec-p256',
                     createdAt: new Date(), certificates: null };
        }));
        const standing = await Promise.all(records.map(claimEnrollment));
        return standing.map((record) => Array.from(record.csr));
    }""")
    assert csr[0] == csr[1], "two clicks must go on with one key"
    request = x509.load_der_x509_csr(bytes(csr[0]))
    authority = Authority(named("Test Root"), ec.generate_private_key(ec.SECP256R1()))
    certificate = authority.certify(named(FRIENDLY_NAME), request.public_key(), ca=False)

    page.reload()
    file = page.evaluate(
        """async ({ certificate, friendlyName, password }) => {
            const { exportPrivateKey } = await import('/csr.js');
            const { loadEnrollment, saveEnrollment } = await import('/keystore.js');
            const { createPKCS12 } = await import('/pkcs12.js');
            const record = await loadEnrollment('i-1');
            await saveEnrollment({ ...record, certificates: [Uint8Array.from(certificate)] });
            const stored = await loadEnrollment('i-1');
            return Array.from(await createPKCS12({
                privateKey: await exportPrivateKey(stored.keyPair),
                certificate: stored.certificates[0],
                caCertificates: [],
                friendlyName,
                password,
            }));
        }""",
        {
            "certificate": list(der(certificate)),
            "friendlyName": FRIENDLY_NAME,
            "password": PASSWORD,
        },
    )
    loaded = pkcs12.load_pkcs12(bytes(file), PASSWORD.encode())
    assert loaded.cert is not None
    assert loaded.cert.certificate == certificate
    assert loaded.key is not None
    assert loaded.key.public_key() == request.public_key()

    left = page.evaluate("""async () => {
        const { deleteEnrollment, listEnrollments, loadEnrollment } = await import('/keystore.js');
        const before = (await listEnrollments()).map((record) => record.invitationKey);
        await deleteEnrollment('i-1');
        await deleteEnrollment('never-there');
        return [before, await listEnrollments(), await loadEnrollment('i-1')];
    }""")
    assert left == [["i-1"], [], None]


def test_chromium_blocked_storage_is_a_typed_error(page: Page) -> None:
    code = page.evaluate("""async () => {
        Object.defineProperty(globalThis, 'indexedDB', {
            get() { throw new DOMException('denied', 'SecurityError'); },
        });
        const { loadEnrollment } = await import('/keystore.js');
        return loadEnrollment('i-1').catch((error) => [error.name, error.code, error.cause.name]);
    }""")
    assert code == ["StorageBlocked", "storage-blocked", "SecurityError"]
