"""The status listener of a small CA, asked over HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage

from aiohttp.test_utils import TestServer
from aiohttp.web import Application
from cryptography import x509
from cryptography.x509 import ocsp

from estserver.model import RevocationReason
from tests.status_driver import House, run

REQUEST = {"Content-Type": "application/ocsp-request"}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def ocsp(self) -> ocsp.OCSPResponse:
        assert self.headers.get_content_type() == "application/ocsp-response"
        return ocsp.load_der_ocsp_response(self.body)


@dataclass(frozen=True, slots=True)
class Site:
    house: House
    port: int
    issuer_pem: str
    trust_pem: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def fetch(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send exactly this path: no client library may tidy it."""

        def ask() -> Answer:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
            connection.close()
            return answer

        return await asyncio.to_thread(ask)

    async def run(self, *command: str) -> str:
        return await asyncio.to_thread(run, *command)

    async def issue(self, name: str) -> tuple[x509.Certificate, str]:
        return await asyncio.to_thread(self.house.issue, name)

    async def revoke(self, enrollment: str) -> None:
        await asyncio.to_thread(self.house.revoke, enrollment, RevocationReason.KEY_COMPROMISE)


Serve = Callable[[Application], Awaitable[TestServer]]
