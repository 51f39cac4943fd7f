"""Requests that two parsers in a row could cut at different places: refused, and nothing after."""

from contextlib import suppress

import pytest

from tests.interop.wire import Connection
from tests.live import Live

EST = "/.well-known/est"
HOST = b"Host: localhost\r\n"
TWO = f"GET {EST}/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _framed(*headers: bytes, first: bytes = b"", body: bytes = b"") -> bytes:
    start = first or f"POST {EST}/simpleenroll HTTP/1.1\r\n".encode() + HOST
    return start + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


@pytest.mark.parametrize(
    "request_octets",
    [
        pytest.param(
            _framed(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + TWO),
            id="CL.TE",
        ),
        pytest.param(
            _framed(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + TWO),
            id="TE.CL",
        ),
        pytest.param(
            _framed(b"Content-Length: 1", b"Content-Length: 99", body=b"A" + TWO), id="two lengths"
        ),
        pytest.param(_framed(b"Content-Length: 1, 99", body=b"A" + TWO), id="a list of lengths"),
        pytest.param(_framed(b"Content-Length: +1", body=b"A" + TWO), id="a signed length"),
        pytest.param(_framed(b"Content-Length: -1", body=TWO), id="a negative length"),
        pytest.param(_framed(b"Content-Length: 0x1", body=b"A" + TWO), id="a length in hex"),
        pytest.param(_framed(b"Content-Length: 1_0", body=b"A" * 10), id="a length with _"),
        pytest.param(_framed(b"Content-Length:", body=TWO), id="an empty length"),
        pytest.param(
            _framed("Content-Length: \u0661".encode(), body=b"A" + TWO), id="an Arabic length"
        ),
        pytest.param(_framed(b"Host: example.org", b"Content-Length: 0"), id="two hosts"),
        pytest.param(
            _framed(first=f"GET {EST}/cacerts HTTP/1.1\n".encode() + HOST), id="a bare LF at first"
        ),
        pytest.param(_framed(b"X: y\nContent-Length: 0"), id="a bare LF between headers"),
        pytest.param(_framed(b"X: a\0b", b"Content-Length: 0"), id="NUL in a value"),
        pytest.param(_framed(b"X\0: a", b"Content-Length: 0"), id="NUL in a name"),
        pytest.param(_framed(b"X: a\rb", b"Content-Length: 0"), id="a bare CR"),
        pytest.param(_framed(b"Content-Length : 0"), id="a blank before the colon"),
        pytest.param(_framed(b" Content-Length: 0"), id="a folded first header"),
        pytest.param(_framed(b"Content-Length: 0", b" folded"), id="a folded header"),
        pytest.param(_framed(b"nonsense", b"Content-Length: 0"), id="no colon"),
        pytest.param(_framed(b": a", b"Content-Length: 0"), id="no name"),
        pytest.param(
            _framed(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + TWO), id="xchunked"
        ),
        pytest.param(
            _framed(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + TWO),
            id="chunked not last",
        ),
        pytest.param(
            _framed(
                b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=b"0\r\n\r\n" + TWO
            ),
            id="two transfer encodings",
        ),
        pytest.param(
            _framed(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + TWO), id="VT chunked"
        ),
        pytest.param(
            _framed(b"Transfer-Encoding: chunked", body=b"0x1\r\nA\r\n0\r\n\r\n"), id="chunk 0x1"
        ),
        pytest.param(
            _framed(b"Transfer-Encoding: chunked", body=b"-1\r\nA\r\n0\r\n\r\n"), id="chunk -1"
        ),
        pytest.param(
            _framed(b"Transfer-Encoding: chunked", body=b"1\nA\n0\n\n"), id="chunk ends in LF"
        ),
        pytest.param(
            _framed(b"Transfer-Encoding: chunked", body=b"1\r\nAA\r\n0\r\n\r\n"), id="long chunk"
        ),
        pytest.param(
            _framed(b"Transfer-Encoding: chunked", body=b"f" * 20 + b"\r\nA"), id="endless chunk"
        ),
        pytest.param(_framed(first=b"GET\r\n" + HOST), id="no path"),
        pytest.param(_framed(first=f"GET {EST}/cacerts HTTP/9.9\r\n".encode() + HOST), id="HTTP 9"),
        pytest.param(_framed(first=f"GET {EST}/ca certs HTTP/1.1\r\n".encode() + HOST), id="blank"),
        pytest.param(_framed(first=b"\x16\x03\x01\x02\x00\x01\x00" + HOST), id="TLS in TLS"),
        pytest.param(_framed(b"X: " + b"a" * 100_000), id="a long header"),
        pytest.param(_framed(*[b"X%d: a" % number for number in range(5000)]), id="many headers"),
        pytest.param(
            _framed(first=b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST), id="a long path"
        ),
    ],
)
@pytest.mark.row("INC-22", "A-14", "EST-117")
def test_what_two_parsers_could_read_differently_is_400_and_nothing_after_it_is_answered(
    shared: Live, request_octets: bytes
) -> None:
    with Connection(shared, shared.tls()) as connection:
        with suppress(OSError):
            connection.send(request_octets)
        answer = connection.read_to_end()
    assert answer.startswith(b"HTTP/1."), answer
    assert answer.splitlines()[0].split()[1] == b"400", answer
    assert answer.count(b"HTTP/1.") == 1
