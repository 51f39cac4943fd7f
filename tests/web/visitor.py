"""A browser without scripts, over real HTTPS: cookies, forms as the page has them, redirects."""

import re
import uuid
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.client import HTTPMessage
from typing import Literal
from urllib.parse import urlencode

from tests.live import Holder, Live

VOID = {"input", "meta", "link", "br", "img", "wbr"}


@dataclass(slots=True)
class Form:
    """A form of a page: where it goes, how, and what it holds before anybody types."""

    action: str
    method: str
    enctype: str
    fields: dict[str, str] = field(default_factory=dict)
    buttons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Page:
    """A page as it came: status, headers, text, and what a person sees of it."""

    status: int
    headers: HTTPMessage
    body: bytes
    path: str

    @property
    def text(self) -> str:
        return self.body.decode()

    def _parsed(self) -> "_Parser":
        parser = _Parser()
        parser.feed(self.text)
        return parser

    @property
    def seen(self) -> str:
        """All text, blanks folded."""
        return re.sub(r"\s+", " ", " ".join(self._parsed().words))

    @property
    def title(self) -> str:
        match = re.search(r"<title>(.*?)</title>", self.text, re.DOTALL)
        assert match is not None
        return match[1]

    @property
    def forms(self) -> dict[str, Form]:
        return self._parsed().forms

    @property
    def elements(self) -> list[tuple[str, dict[str, str]]]:
        return self._parsed().elements

    @property
    def step(self) -> str | None:
        """The text of the step that is marked as the current one."""
        found = re.search(r'<li aria-current="step">(.*?)</li>', self.text, re.DOTALL)
        return None if found is None else re.sub(r"<[^>]+>", "", found[1])

    @property
    def error(self) -> str | None:
        """The code of the error summary."""
        found = re.search(r'<section id="error"[^>]* data-code="([^"]+)"', self.text)
        return None if found is None else found[1]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: dict[str, Form] = {}
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._form: Form | None = None
        self._area: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        got = {name: value or "" for name, value in attrs}
        self.elements.append((tag, got))
        if tag == "form":
            self._form = Form(
                got.get("action", ""), got.get("method", "get"), got.get("enctype", "")
            )
            self.forms[got["id"]] = self._form
        if self._form is None:
            return
        name = got.get("name", "")
        if tag == "input" and name:
            kind = got.get("type", "text")
            if kind not in ("radio", "checkbox") or "checked" in got:
                self._form.fields[name] = got.get("value", "")
        elif tag == "select":
            self._area = name
        elif tag == "option" and self._area and self._area not in self._form.fields:
            self._form.fields[self._area] = got.get("value", "")
        elif tag == "textarea":
            self._form.fields[name] = ""
        elif tag == "button" and name:
            self._form.buttons.append(name)

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@dataclass(slots=True)
class Visitor:
    """One browser: what it sends with every request, and the cookies it keeps."""

    live: Live
    listener: Literal["web", "devices"] = "web"
    holder: Holder | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return self.live.url(self.listener)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Page:
        """Make one request as it stands, redirects not followed."""
        sent = {**self.headers, **(headers or {})}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = self.live.request(
            method, path, listener=self.listener, body=body, headers=sent, holder=self.holder
        )
        for line in answer.headers.get_all("Set-Cookie") or []:
            name, _, rest = line.partition("=")
            self.cookies[name] = rest.partition(";")[0]
        return Page(answer.status, answer.headers, answer.body, path)

    def get(self, path: str) -> Page:
        """Open a page, following redirects."""
        return self._followed(self.request("GET", path))

    def post(self, path: str, fields: dict[str, str], **headers: str) -> Page:
        """Send a form as browsers do from a page that says no-referrer, following redirects."""
        sent = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Origin": "null",
            "Sec-Fetch-Site": "same-origin",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        body = urlencode(fields).encode()
        return self._followed(self.request("POST", path, body, sent))

    def submit(self, page: Page, form: str, **fields: str | bytes) -> Page:
        """Fill in and send a form of the page; bytes are a chosen file."""
        found = page.forms[form]
        values: dict[str, str | bytes] = {
            **found.fields,
            **{name.replace("_", "-"): value for name, value in fields.items()},
        }
        assert found.method == "post"
        headers = {"Origin": self.origin, "Sec-Fetch-Site": "same-origin"}
        if found.enctype == "multipart/form-data":
            boundary = uuid.uuid4().hex
            headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
            body = b"".join(_part(boundary, name, value) for name, value in values.items())
            body += f"--{boundary}--\r\n".encode()
        else:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode(values).encode()
        return self._followed(self.request("POST", found.action, body, headers))

    def enter(self, path: str, pin: str) -> Page:
        """Open the link and enter the PIN."""
        return self.submit(self.get(path), "pin-form", pin=pin)

    def _followed(self, page: Page) -> Page:
        while page.status == 303:
            location = page.headers["Location"]
            assert location.startswith("/")
            page = self.request("GET", location)
        return page


def _part(boundary: str, name: str, value: str | bytes) -> bytes:
    file = (
        '; filename="request.csr"\r\nContent-Type: application/pkcs10' if name == "csr-file" else ""
    )
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
