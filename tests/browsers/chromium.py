"""Drives Debian's Chromium by Playwright, with the instance's root in its own trust store.

Playwright's Page has all the verbs; here is what it lacks. A client certificate goes through
Playwright's own TLS proxy: what it proves is the server and the pages, not Chromium's dialog.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from playwright.sync_api import Page, sync_playwright

BINARY = "/usr/bin/chromium"


@dataclass(frozen=True, slots=True)
class Shown:
    """A PKCS#12 file to show to the server at `origin`."""

    origin: str
    path: Path
    password: str


class Chromium:
    """One headless Chromium that trusts `root`, PEM; gone with `close`."""

    def __init__(self, folder: Path, root: Path) -> None:
        """Start; the home folder that Chromium sees is in `folder`."""
        home = folder / "chromium-home"
        store = home / ".pki/nssdb"
        store.mkdir(parents=True)
        for command in (["-N", "--empty-password"], ["-A", "-t", "C,,", "-n", "root", "-i", root]):
            subprocess.run(["certutil", "-d", f"sql:{store}", *command], check=True)
        # Node.js, which makes the connections with client certificates, has a list of its own, and
        # the driver inherits the environment as it is at this moment.
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("NODE_EXTRA_CA_CERTS", str(root))
            self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=BINARY, env={**os.environ, "HOME": str(home)}
        )

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
        """Quit."""
        self._browser.close()
        self._playwright.stop()

    def person(
        self,
        *,
        shows: Shown | None = None,
        javascript: bool = True,
        width: int = 1280,
        height: int = 900,
        locale: str = "en",
        dark: bool = False,
    ) -> Page:
        """Return an empty page of somebody who never was here: no cookies, no stored keys."""
        context = self._browser.new_context(
            accept_downloads=True,
            client_certificates=None
            if shows is None
            else [{"origin": shows.origin, "pfxPath": shows.path, "passphrase": shows.password}],
            java_script_enabled=javascript,
            viewport={"width": width, "height": height},
            locale=locale,
            color_scheme="dark" if dark else "light",
        )
        # Two cores make an RSA key, and the machine may have other things to do.
        context.set_default_timeout(60_000)
        return context.new_page()


def save_download(page: Page, folder: Path, *, after: str | None = None) -> Path:
    """Wait for a download, begun by a click on `after` if given, and save it in `folder`."""
    with page.expect_download() as download:
        if after is not None:
            page.click(after)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path
