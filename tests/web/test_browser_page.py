"""The browser's modules in Chromium, under the pages' own policy."""

import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from playwright.sync_api import Page, sync_playwright

from tests.web.browser_modules import (
    FRIENDLY_NAME,
    MODULES,
    PASSWORD,
    STATIC,
    Authority,
    der,
    named,
    program,
)

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


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
