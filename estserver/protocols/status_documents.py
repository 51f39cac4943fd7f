"""Documents of the status door: what GET, HEAD, conditions and Accept-Encoding make of them.

A CRL may have 50 MB: it leaves in slices of the pieces that all requests share, as fast as the
client takes them, and its compressed form is made once, in parts, off the event loop.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime

from aiohttp import ETag, web

SLICE_BYTES = 1 << 16
"""What is written at once: a slow client keeps no more than this in our memory."""
SMALLEST_PACKED = 4096
"""Below this a compressed copy saves less than its headers cost."""
_HEAD = bytes.fromhex("1f8b08000000000000ff")
_LEVEL = 6
_PACKED = 4

Pieces = Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Document:
    """What a GET answers: a body, in pieces, with its validators."""

    pieces: Pieces
    content_type: str
    etag: str
    last_modified: datetime | None
    cache_control: str

    @property
    def size(self) -> int:
        """How long the body is, bytes."""
        return sum(map(len, self.pieces))


class Packer:
    """Keeps gzip forms of the last few documents; pieces that two share are compressed once.

    RFC 1952: one member, one deflate stream; each piece ends on a byte and refers to no other.
    """

    def __init__(self, run: Callable[..., Coroutine[None, None, list[bytes]]]) -> None:
        """`run` does a blocking call on a thread."""
        self._run = run
        self._packed: dict[str, list[bytes]] = {}
        self._deflated: dict[bytes, bytes] = {}
        self._packing: dict[str, asyncio.Task[list[bytes]]] = {}

    async def pack(self, document: Document) -> list[bytes]:
        """Return the gzip form of a document, in pieces."""
        packed = self._packed.get(document.etag)
        if packed is not None:
            return packed
        task = self._packing.get(document.etag)
        if task is None:
            task = asyncio.create_task(self._run(self._gzip, document.pieces))
            self._packing[document.etag] = task
            task.add_done_callback(lambda done: self._settle(document.etag, done))
        # Whoever asked first may hang up; the others still want it.
        return await asyncio.shield(task)

    def _settle(self, etag: str, task: asyncio.Task[list[bytes]]) -> None:
        del self._packing[etag]
        if task.cancelled() or task.exception() is not None:
            return
        if len(self._packed) >= _PACKED:
            del self._packed[next(iter(self._packed))]
        self._packed[etag] = task.result()

    def _gzip(self, pieces: Pieces) -> list[bytes]:
        checksum, size = 0, 0
        packed, deflated = [_HEAD], {}
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
            size += len(piece)
            short = self._deflated.get(piece) or _deflate(piece)
            packed.append(short)
            deflated[piece] = short
        self._deflated = deflated
        packed.append(b"\x03\x00")
        packed.append(checksum.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little"))
        return packed


def _deflate(piece: bytes) -> bytes:
    """Compress on its own, ending on a byte boundary: a full flush refers to nothing before it."""
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return engine.compress(piece) + engine.flush(zlib.Z_FULL_FLUSH)


async def respond(request: web.Request, document: Document, packer: Packer) -> web.StreamResponse:
    """Answer GET or HEAD with the document, or 304 where the client has it. RFC 9110 §13.1."""
    packs = document.size >= SMALLEST_PACKED
    encoded = packs and takes_gzip(request.headers.get("Accept-Encoding", ""))
    etag = f"{document.etag}-gz" if encoded else document.etag
    if _has(request, document, etag):
        return _described(web.Response(status=304), document, etag, packs=packs)
    pieces = await packer.pack(document) if encoded else document.pieces
    size = sum(map(len, pieces))
    response = web.Response(body=b"".join(pieces)) if size <= SLICE_BYTES else web.StreamResponse()
    response.headers["Content-Type"] = document.content_type
    if encoded:
        response.headers["Content-Encoding"] = "gzip"
    _described(response, document, etag, packs=packs)
    if isinstance(response, web.Response):
        return response
    response.content_length = size
    await response.prepare(request)
    if request.method != "HEAD":
        async for part in _slices(pieces):
            await response.write(part)
    await response.write_eof()
    return response


async def _slices(pieces: Pieces) -> AsyncIterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), SLICE_BYTES):
            yield view[start : start + SLICE_BYTES]


def _described(
    response: web.StreamResponse, document: Document, etag: str, *, packs: bool
) -> web.StreamResponse:
    response.etag = etag
    response.last_modified = document.last_modified
    response.headers["Cache-Control"] = document.cache_control
    if packs:
        response.headers["Vary"] = "Accept-Encoding"
    return response


def _has(request: web.Request, document: Document, etag: str) -> bool:
    """Tell whether the client says that it has this form of the document."""
    matches = request.if_none_match
    if matches is not None:
        return any(_same(tag, etag) for tag in matches)
    since, modified = request.if_modified_since, document.last_modified
    return since is not None and modified is not None and modified <= since


def _same(tag: ETag, etag: str) -> bool:
    return tag.value in {"*", etag}


def takes_gzip(accepted: str) -> bool:
    """Tell whether an Accept-Encoding header takes gzip. RFC 9110 §12.5.3."""
    weights = {}
    for part in accepted.lower().split(","):
        coding, _, parameters = part.partition(";")
        _, _, weight = parameters.partition("q=")
        weights[coding.strip()] = weight.strip() not in {"0", "0.0", "0.00", "0.000"}
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", False)))
