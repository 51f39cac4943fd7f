"""What a page's form sent: one value for each field, of bounded size, or a refusal.

The wall for form bodies: whatever is odd about one becomes BadInput here. A field that comes twice
is refused, because two parsers in a row may disagree about which of the two counts (INC-16).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from aiohttp import web

from estserver import http
from estserver.errors import BadInput
from estserver.http import UnsupportedMediaType
from estserver.settings import Limits

_MAX_FIELDS = 32
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_FIELD_NAME = re.compile(rb'form-data\s*;(?:[^"]*;)?\s*name="([^"]*)"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form, as bytes because a file may be among them."""

    fields: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """Return a field as text, empty if it is not there. Raises BadInput: not UTF-8."""
        try:
            return self.fields.get(name, b"").decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"the field {name} is not UTF-8") from error

    def bytes(self, name: str) -> bytes:
        """Return a field as it came, empty if it is not there."""
        return self.fields.get(name, b"")


async def read_form(request: web.Request, limits: Limits) -> Form:
    """Read the body of a POST from a form.

    Raises BadInput, UnsupportedMediaType, BodyTooLarge, SlowBody.
    """
    body = await http.read_body(request, limit=limits.body_bytes, seconds=limits.request_seconds)
    match request.content_type:
        case "application/x-www-form-urlencoded":
            pairs = _urlencoded(body)
        case "multipart/form-data":
            pairs = _multipart(body, _boundary(request.headers.get("Content-Type", "")))
        case other:
            raise UnsupportedMediaType(f"a form is not sent as {other}")
    fields: dict[str, bytes] = {}
    for name, value in pairs:
        if name in fields:
            raise BadInput("a field of the form came twice", values={"reason": "twice"})
        fields[name] = value
    if len(fields) > _MAX_FIELDS:
        raise BadInput("the form has too many fields")
    return Form(fields)


def _urlencoded(body: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError as error:
        raise BadInput("the form is not well encoded") from error
    for name, value in pairs:
        yield name, value.encode()


def _boundary(content_type: str) -> bytes:
    match = re.search(r'boundary=(?:"([^"]*)"|([^;\s]+))', content_type, re.IGNORECASE)
    boundary = "" if match is None else match[1] or match[2] or ""
    if not _BOUNDARY.fullmatch(boundary):
        raise BadInput("the form's boundary is missing or malformed")
    return boundary.encode()


def _multipart(body: bytes, boundary: bytes) -> Iterator[tuple[str, bytes]]:
    """Take RFC 7578 apart: `--b CRLF headers CRLF CRLF value CRLF`, again and again, `--b--`."""
    preamble, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if preamble or not parts or parts.pop() not in (b"--", b"--\r\n"):
        raise BadInput("the form is cut short or not well encoded")
    for part in parts:
        headers, separator, value = part.partition(b"\r\n\r\n")
        disposition = _FIELD_NAME.search(headers)
        if not separator or not headers.startswith(b"\r\n") or disposition is None:
            raise BadInput("a part of the form is not well encoded")
        try:
            yield disposition[1].decode(), value
        except UnicodeDecodeError as error:
            raise BadInput("the name of a field is not UTF-8") from error


def read_csr_field(form: Form) -> bytes:
    """Return the CSR that a form carries, typed or as a file. Raises BadInput: none, or both."""
    typed, uploaded = form.bytes("csr").strip(), form.bytes("csr-file")
    if typed and uploaded:
        raise BadInput("send the CSR as text or as a file, not both", values={"reason": "two-csrs"})
    if not typed and not uploaded:
        raise BadInput("the form holds no CSR", values={"reason": "no-csr"})
    return typed or uploaded
