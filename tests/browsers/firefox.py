"""Drives Debian's own Firefox, its certificate store and its dialogs over Marionette.

What a person does with the mouse is done with the mouse; what has no page (the certificate store,
the question which certificate to show) is done from the browser's own window ("chrome").
"""

import base64
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from marionette_driver.errors import (
    JavascriptException,
    NoSuchElementException,
    NoSuchWindowException,
    StaleElementException,
    TimeoutException,
)
from marionette_driver.marionette import ActionSequence, Marionette, WebElement
from marionette_driver.wait import Wait

BINARY = "/usr/bin/firefox-esr"
_SECONDS = 60
_DEPARTING = (
    JavascriptException,
    NoSuchElementException,
    NoSuchWindowException,
    StaleElementException,
)
"""What a question to a page may meet while the next page takes its place."""
_DATABASE = "Cc['@mozilla.org/security/x509certdb;1'].getService(Ci.nsIX509CertDB)"
_DIALOG = """
const box = gBrowser.getTabDialogBox(gBrowser.selectedBrowser);
const found = box.getTabDialogManager()._dialogs.map(dialog => dialog._frame.contentDocument).find(
    page => page?.documentURI === 'chrome://pippki/content/clientauthask.xhtml');
const menu = found?.getElementById('nicknames');
"""


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """A row of Certificate Manager > Your Certificates; it groups the rows by `issuer`, an O."""

    issuer: str
    name: str
    serial: str


class CertificateDialog:
    """The open dialog "… has requested that you identify yourself with a certificate"."""

    def __init__(self, firefox: "Firefox") -> None:
        self._firefox = firefox

    @property
    def host(self) -> str:
        """The sentence that names who asks."""
        said = "found.getElementById('clientAuthSiteIdentification').textContent"
        return str(self._ask(f"return {said}"))

    @property
    def choices(self) -> list[str]:
        """What is offered: `CN [serial]` each."""
        return list(self._ask("return Array.from(menu.menupopup.children, item => item.label)"))

    @property
    def details(self) -> str:
        """What is said about the selected certificate."""
        lines = "Array.from(found.querySelectorAll('.details'), line => line.textContent)"
        return "\n".join(self._ask(f"return {lines}"))

    def choose(self, serial: str) -> None:
        """Select the certificate with this serial, `72:1D:…`, and press OK."""
        chosen = self._ask(
            "const at = Array.from(menu.menupopup.children).findIndex("
            "  item => item.label.endsWith(`[${arguments[0]}]`));"
            "if (at < 0) return false;"
            "menu.selectedIndex = at;"
            "found.getElementById('certAuthAsk').getButton('accept').click();"
            "return true",
            serial,
        )
        assert chosen, f"no certificate with serial {serial} is offered"

    def cancel(self) -> None:
        """Press "Don't send a certificate"."""
        self._ask("found.getElementById('certAuthAsk').getButton('cancel').click()")

    def _ask(self, script: str, *arguments: object) -> Any:
        return self._firefox.chrome(_DIALOG + script, *arguments)


class Firefox:
    """One headless Firefox with a profile of its own, gone with `close`. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Start; downloads, the profile and gecko.log go into `folder`."""
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        self._seen: set[str] = set()
        self._marionette = Marionette(
            bin=BINARY,
            headless=True,
            port=0,
            # Without it scripts are not let into the browser's own window.
            app_args=["-remote-allow-system-access"],
            workspace=str(folder),
            gecko_log=str(folder / "gecko.log"),
            prefs={
                "browser.download.folderList": 2,
                "browser.download.dir": str(self.downloads),
                "browser.download.always_ask_before_handling_new_types": False,
                "browser.helperApps.neverAsk.saveToDisk": "application/x-pkcs12",
                "devtools.jsonview.enabled": False,
                # No connections but those that a page needs.
                "network.http.speculative-parallel-limit": 0,
                # The responder of a test instance is not the subject here.
                "security.OCSP.enabled": 0,
            },
        )
        self._marionette.start_session()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Quit and remove the profile."""
        self._marionette.quit()
        self._marionette.cleanup()
        del self._marionette
        # mozprofile removes its folder in __del__, which at interpreter exit is too late.
        gc.collect()

    def chrome(self, script: str, *arguments: object) -> Any:
        """Run a script in the browser's own window; `return` gives the answer."""
        with self._marionette.using_context("chrome"):
            return self._marionette.execute_script(script, script_args=arguments, sandbox="system")

    # -- pages -------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Go to `url` and wait until it has loaded."""
        self._marionette.navigate(url)

    def start_opening(self, url: str) -> None:
        """Type `url` into the address bar and do not wait: a dialog may come before the page."""
        self.chrome(
            "gBrowser.selectedBrowser.fixupAndLoadURIString(arguments[0], {triggeringPrincipal:"
            "  Services.scriptSecurityManager.createNullPrincipal({})})",
            url,
        )

    def ask(self, script: str, *arguments: object) -> Any:
        """Run a script in the page; `return` gives the answer."""
        return self._marionette.execute_script(script, script_args=arguments)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for a condition and return what it found; without it fail with what is shown."""
        wait = Wait(
            self._marionette, timeout=_SECONDS, interval=0.05, ignored_exceptions=_DEPARTING
        )
        try:
            return wait.until(lambda _: condition())
        except TimeoutException:
            shown = self.ask("return [document.URL, document.body?.innerText]")
            raise AssertionError(f"waited in vain at {shown[0]}:\n{shown[1]}") from None

    def until_opened(self, url: str) -> None:
        """Wait for the page that `start_opening` began with; what follows the URL may differ."""
        there = "document.readyState === 'complete' && document.URL.startsWith(arguments[0])"
        self.until(lambda: self.ask(f"return {there}", url))

    def departs(self, action: Callable[[], None]) -> None:
        """Do what leads to another document, and wait until that has loaded."""
        self.ask("document.documentElement.dataset.departs = ''")
        action()
        self.until(
            lambda: self.ask(
                "return document.readyState === 'complete' && document.URL !== 'about:blank'"
                " && !('departs' in document.documentElement.dataset)"
            )
        )

    def reload(self) -> None:
        """Press F5."""
        self._marionette.refresh()

    def back(self) -> None:
        """Press the Back button."""
        self._marionette.go_back()

    def forward(self) -> None:
        """Press the Forward button."""
        self._marionette.go_forward()

    @property
    def url(self) -> str:
        """The address of the page."""
        return str(self._marionette.get_url())

    @property
    def title(self) -> str:
        """The title of the page."""
        return str(self._marionette.title)

    def shown(self, css: str) -> WebElement:
        """Wait until an element that `css` matches is displayed, and return it."""
        return self.until(lambda: self._displayed(css))

    def shows(self, css: str) -> bool:
        """Say whether an element that `css` matches is displayed now."""
        return self._displayed(css) is not None

    def _displayed(self, css: str) -> WebElement | None:
        found = self._marionette.find_elements("css selector", css)
        return next((element for element in found if element.is_displayed()), None)

    def text(self, css: str = "main") -> str:
        """Return the text of what is displayed."""
        return str(self.shown(css).text)

    def value(self, css: str) -> str:
        """Return what stands in a field."""
        return str(self.shown(css).get_property("value"))

    def fill(self, css: str, text: str) -> None:
        """Type into a field instead of what is there."""
        field = self.shown(css)
        field.clear()
        field.send_keys(text)

    def click(self, css: str, *, times: int = 1) -> None:
        """Click; `times=2` is a double click. Waits for nothing afterwards."""
        element = self.shown(css)
        # An action scrolls nothing into view; WebElement.click does, but where a link downloads it
        # waits five seconds for a page that never comes.
        self.ask("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        pointer = ActionSequence(
            self._marionette, "pointer", "mouse", pointer_params={"pointerType": "mouse"}
        )
        pointer.pointer_move(0, 0, origin=element)
        for _ in range(times):
            pointer.click()
        pointer.perform()

    def press(self, css: str, *, times: int = 1) -> None:
        """Click what leads to another page, and wait for that page."""
        self.departs(lambda: self.click(css, times=times))

    def tabs(self) -> list[str]:
        """Return the handles of the open tabs."""
        return list(self._marionette.window_handles)

    def switch(self, tab: str) -> None:
        """Go to another tab."""
        self._marionette.switch_to_window(tab)

    def new_tab(self) -> str:
        """Open a tab, go there, and return its handle."""
        handle = str(self._marionette.open(type="tab", focus=True)["handle"])
        self.switch(handle)
        return handle

    def close_tab(self) -> None:
        """Close this tab and go to the first that is left."""
        self.switch(self._marionette.close()[0])

    def screenshot(self, path: Path, *, window: bool = False) -> None:
        """Save what the page shows, all of it; with `window` the browser around it, dialogs too."""
        with self._marionette.using_context("chrome" if window else "content"):
            path.write_bytes(base64.b64decode(self._marionette.screenshot(full=not window)))

    # -- downloads ---------------------------------------------------------------------------------

    def next_download(self) -> Path:
        """Wait until a file not returned before is complete, and return where it is."""
        return Path(self.until(self._finished_download))

    def forget_downloads(self) -> int:
        """Let `next_download` return none of those until now; return how many there were."""
        found = self._new_downloads()
        self._seen.update(found)
        return len(found)

    def _finished_download(self) -> str | None:
        found = self._new_downloads()
        if not found:
            return None
        self._seen.add(found[0])
        return found[0]

    def _new_downloads(self) -> list[str]:
        with self._marionette.using_context("chrome"):
            paths = self._marionette.execute_async_script(
                """const [resolve] = arguments;
                const {Downloads} = ChromeUtils.importESModule(
                    'resource://gre/modules/Downloads.sys.mjs');
                Downloads.getList(Downloads.ALL).then(list => list.getAll()).then(all => resolve(
                    all.filter(one => one.succeeded).map(one => one.target.path)))""",
                sandbox="system",
            )
        return [path for path in paths if path not in self._seen]

    # -- certificates ------------------------------------------------------------------------------

    def trust(self, root: Path) -> None:
        """Trust a root certificate, PEM, for websites and mail."""
        certificate = x509.load_pem_x509_certificate(root.read_bytes())
        der = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
        # No `u`: with it the CA would count as one of the user's own certificates.
        self.chrome(f"{_DATABASE}.addCertFromBase64(arguments[0], 'CT,C,')", der)

    def import_pkcs12(self, path: Path, password: str) -> int:
        """Do what View Certificates > Import does: 0 done, 6 wrong password, others not done."""
        code = self.chrome(
            "const file = Cc['@mozilla.org/file/local;1'].createInstance(Ci.nsIFile);"
            "file.initWithPath(arguments[0]);"
            f"return {_DATABASE}.importPKCS12File(file, arguments[1])",
            str(path),
            password,
        )
        return int(code)

    def own_certificates(self) -> list[OwnCertificate]:
        """Return what Certificate Manager lists under Your Certificates."""
        rows = self.chrome(
            f"return {_DATABASE}.getCerts()"
            ".filter(one => one.certType & Ci.nsIX509Cert.USER_CERT)"
            ".map(one => [one.issuerOrganization, one.displayName, one.serialNumber])"
        )
        return sorted((OwnCertificate(*row) for row in rows), key=lambda row: row.serial)

    def certificate_dialog(self) -> CertificateDialog:
        """Wait until Firefox asks which certificate to show."""
        self.until(self.asks_for_certificate)
        return CertificateDialog(self)

    def asks_for_certificate(self) -> bool:
        """Say whether Firefox is asking now which certificate to show."""
        # The details come after the list, the last of them last.
        return bool(
            self.chrome(
                _DIALOG + "const last = found?.getElementById('clientAuthCertDetailsStoredOn');"
                "const {storedOn} = JSON.parse(last?.dataset.l10nArgs ?? '{}');"
                "return Boolean(storedOn) && last.textContent.includes(storedOn)"
            )
        )

    def select_certificates_automatically(self, *, on: bool) -> None:
        """Set Settings > Certificates > "Select one automatically", or "Ask you every time"."""
        choice = "Select Automatically" if on else "Ask Every Time"
        self._marionette.set_pref("security.default_personal_cert", choice)

    def forget(self) -> None:
        """Forget own certificates, decisions, cookies, connections: a person who never was here."""
        self.chrome(_DIALOG + "found?.getElementById('certAuthAsk').getButton('cancel').click()")
        self.chrome(
            f"""const database = {_DATABASE};
            for (const one of database.getCerts()) {{
              if (one.certType & Ci.nsIX509Cert.USER_CERT) database.deleteCertificate(one);
            }}
            Services.cookies.removeAll();"""
        )
        self.select_certificates_automatically(on=False)
        self.forget_decisions()

    def forget_decisions(self) -> None:
        """Do what Certificate Manager > Authentication Decisions and a restart do."""
        self.chrome(
            """Cc['@mozilla.org/security/clientAuthRememberService;1']
                .getService(Ci.nsIClientAuthRememberService).clearRememberedDecisions();
            Services.obs.notifyObservers(null, 'net:cancel-all-connections');
            Services.obs.notifyObservers(null, 'net:prune-all-connections');
            Cc['@mozilla.org/psm;1'].getService(Ci.nsINSSComponent)
                .clearSSLExternalAndInternalSessionCache();"""
        )

    def remembered_decisions(self) -> int:
        """Count the hosts for which an answer to the dialog is remembered."""
        return int(
            self.chrome(
                "return Cc['@mozilla.org/security/clientAuthRememberService;1']"
                ".getService(Ci.nsIClientAuthRememberService).getDecisions().length"
            )
        )

    def resize(self, width: int, height: int) -> None:
        """Make the window so large on the outside."""
        self._marionette.set_window_rect(width=width, height=height)
