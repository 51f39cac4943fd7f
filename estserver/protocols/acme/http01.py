"""http-01: the key authorization at a well-known path (RFC 8555 §8.3), redirects as Boulder has it.

Invariants: the URL that the HTTP library sees has a judged address for its host, so it has
nothing to resolve; the name travels in Host and SNI only. Of what the other side sends nothing
stands in a refusal but the host of a redirect, so that nobody can read internal pages through us
(§10.4).
"""

import asyncio
import hmac
import re
import ssl
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from estserver.protocols.acme.addresses import Dialler, read_address
from estserver.protocols.acme.challenge import Challenge, ChallengeFailed
from estserver.protocols.acme.lookups import Address

_MAX_REDIRECTS = 10
_MAX_URL = 2000
_BODY_BYTES = 128
"""A key authorization has 87 characters with our tokens; what fills this is something else."""
_FOLLOWED = frozenset({301, 302, 307, 308})
_LOCATION = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_AUTHORITY = re.compile(
    r"(?:(?P<name>[A-Za-z0-9.-]+)|\[(?P<v6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?"
)
_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "estserver ACME validation (http-01; RFC 8555)",
}


@dataclass(frozen=True, slots=True)
class Hop:
    """One request to be made. `host` is a name or an address without brackets."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""

    @property
    def host_header(self) -> str:
        """Boulder sends no port even where it is not the usual one, and clients rely on it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def url(self, address: Address) -> URL:
        """Return what the HTTP library is asked for: the address itself is the host."""
        literal = f"[{address}]" if address.version == 6 else str(address)
        return URL(f"{self.scheme}://{literal}:{self.port}{self.target}", encoded=True)


class HTTP01:
    """Fetches key authorizations."""

    def __init__(self, dialler: Dialler, *, http_port: int, tls_port: int, seconds: float) -> None:
        self._dialler = dialler
        self._ports = {"http": http_port, "https": tls_port}
        self._seconds = seconds
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # A host that is about to get its first certificate has none yet that could be verified.
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE

    async def validate(self, challenge: Challenge) -> None:
        """Raise ChallengeFailed unless the key authorization lies where it should.

        Problems: dns; connection where a host cannot be reached or a redirect not followed;
        tls; unauthorized for an answer other than 200; incorrectResponse for another content.
        """
        path = f"/.well-known/acme-challenge/{challenge.token}"
        hop = Hop("http", challenge.identifier, self._ports["http"], path)
        seen = {hop}
        while True:
            answer = await self._get(hop)
            if isinstance(answer, bytes):
                return _compare(answer, challenge)
            hop = self.follow(hop, answer)
            if hop in seen:
                raise ChallengeFailed("connection", "the redirects run in a circle")
            if len(seen) > _MAX_REDIRECTS:
                raise ChallengeFailed("connection", f"more than {_MAX_REDIRECTS} redirects")
            seen.add(hop)

    async def _get(self, hop: Hop) -> bytes | str:
        """Return the body's beginning, or where a redirect leads; IPv4 is the one fallback."""
        *earlier, last = await self._dialler.targets(hop.host, hop.port)
        for address in earlier:
            try:
                # A dead address must leave time for the other one.
                async with asyncio.timeout(self._seconds / 2):
                    return await self._get_from(address, hop)
            except (_Unreachable, TimeoutError):
                continue
        try:
            return await self._get_from(last, hop)
        except _Unreachable as error:
            raise ChallengeFailed(
                "connection", f"no HTTP answer from port {hop.port} of {hop.host}"
            ) from error

    async def _get_from(self, address: Address, hop: Hop) -> bytes | str:
        connector = aiohttp.TCPConnector(ssl=self._tls, force_close=True)
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=1024,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        server_name = None if read_address(hop.host) else hop.host
        try:
            async with (
                session,
                session.get(
                    hop.url(address),
                    headers=_HEADERS | {"Host": hop.host_header},
                    allow_redirects=False,
                    server_hostname=server_name,
                ) as response,
            ):
                return await _read(response)
        except ssl.SSLError as error:
            raise ChallengeFailed("tls", f"{hop.host} failed the TLS handshake") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Unreachable from error

    def follow(self, hop: Hop, location: str) -> Hop:
        """Return where a redirect leads. Raises ChallengeFailed connection."""
        if len(location) > _MAX_URL or not _LOCATION.fullmatch(location):
            raise _bad_redirect(f"to what is no URL of at most {_MAX_URL} characters")
        base = f"{hop.scheme}://{hop.host_header}:{hop.port}{hop.target}"
        try:
            given = urlsplit(location)
            parts = urlsplit(urljoin(base, location))
        except ValueError as error:
            raise _bad_redirect("to what is no URL") from error
        if given.scheme and not given.netloc:
            # urljoin would take "http:path" for a relative reference, as old browsers did.
            raise _bad_redirect("to a URL without a host")
        if parts.scheme not in self._ports:
            raise _bad_redirect("to another scheme than http and https")
        authority = _AUTHORITY.fullmatch(parts.netloc)
        if authority is None:
            # With it every URL with credentials.
            raise _bad_redirect("to a host that is not plain")
        port = int(authority["port"]) if authority["port"] else self._ports[parts.scheme]
        if port not in self._ports.values():
            ports = " and ".join(map(str, self._ports.values()))
            raise _bad_redirect(f"to another port than {ports}")
        host = authority["v6"] or authority["name"].lower().removesuffix(".")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if len(target) > _MAX_URL:
            raise _bad_redirect(f"to a path of more than {_MAX_URL} characters")
        return Hop(parts.scheme, host, port, target)


class _Unreachable(Exception):
    """The connection gave no HTTP answer: the next address may."""


async def _read(response: aiohttp.ClientResponse) -> bytes | str:
    """Return the beginning of a 200's body, or a redirect's Location."""
    if response.status in _FOLLOWED:
        location = response.headers.get("Location")
        if location is None:
            raise _bad_redirect("without a Location")
        return location
    if 300 <= response.status < 400:
        raise _bad_redirect("with another status than 301, 302, 307 and 308")
    if response.status != 200:
        raise ChallengeFailed("unauthorized", f"the host answered {response.status}, not 200")
    body = b""
    while len(body) < _BODY_BYTES:
        octets = await response.content.read(_BODY_BYTES - len(body))
        if not octets:
            break
        body += octets
    return body


def _compare(body: bytes, challenge: Challenge) -> None:
    """§8.3: the server "SHOULD ignore whitespace characters at the end of the body"."""
    if len(body) >= _BODY_BYTES or not hmac.compare_digest(
        body.rstrip(), challenge.key_authorization.encode("ascii")
    ):
        raise ChallengeFailed(
            "incorrectResponse", "the file's content is not the key authorization"
        )


def _bad_redirect(how: str) -> ChallengeFailed:
    return ChallengeFailed("connection", f"the host redirects {how}")
