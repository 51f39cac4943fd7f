"""The management listener: is it alive, is it ready, what has it counted."""

import os
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from typing import Literal

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from estserver import http
from estserver.errors import Error
from estserver.protocols import Services
from estserver.store.outages import explained

_ENDS_SOON = timedelta(days=30)


def _gauge(name: str, documentation: str, *labels: str) -> Gauge:
    # Every worker knows all of them: the one that was asked last tells.
    mode: Literal["mostrecent"] = "mostrecent"
    return Gauge(name, documentation, labels, registry=http.registry, multiprocess_mode=mode)


_crl_age = _gauge("estserver_crl_age_seconds", "Since thisUpdate", "issuer", "profile")
_crl_left = _gauge("estserver_crl_left_seconds", "Until nextUpdate", "issuer", "profile")
_responder_left = _gauge(
    "estserver_ocsp_responder_left_seconds", "Until the OCSP responder's notAfter", "issuer"
)


class Management:
    """`/healthz` (the process answers), `/readyz` (it can do its work), `/metrics` (Prometheus)."""

    name = "management"
    prefix = ""

    def __init__(self, services: Services) -> None:
        self._services = services

    def application(self) -> web.Application:
        """Return the three routes."""
        application = web.Application(middlewares=[http.observer("management", _render)])
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics)
        return application

    def background(self) -> Sequence[Coroutine[None, None, None]]:
        """Nothing runs besides the requests."""
        return ()

    async def _healthz(self, request: web.Request) -> web.Response:
        http.note(request, operation="healthz")
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        http.note(request, operation="readyz")
        problems = await self._services.run(self._problems)
        body = {"ready": not problems, "problems": problems}
        return web.json_response(body, status=503 if problems else 200)

    def _problems(self) -> list[str]:
        now = self._services.clock.now()
        journal = self._services.journal
        unwritable = None if journal is None else journal.problem()
        problems = [] if unwritable is None else [unwritable]
        try:
            # Asks the database too, which a CRL at hand would outlive.
            for age in self._services.status.ages():
                if age.red:
                    problems.append(f"the CRL of {age.issuer} is old")
                if self._services.settings.issuers[age.issuer].retired:
                    continue
                if self._services.chains[age.issuer][0].not_valid_after_utc - now < _ENDS_SOON:
                    problems.append(f"the certificate of {age.issuer} expires within 30 days")
        except Error as error:
            problems.append(explained(error))
        return problems

    async def _metrics(self, request: web.Request) -> web.Response:
        http.note(request, operation="metrics")
        self._measure()
        registry = http.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            # One of several workers: what all of them have counted lies in files.
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    def _measure(self) -> None:
        """Set the gauges of certificate status, by what is known without the database."""
        status = self._services.status
        for age in status.remembered_ages():
            if age.age is not None and age.left is not None:
                _crl_age.labels(age.issuer, age.scope).set(age.age.total_seconds())
                _crl_left.labels(age.issuer, age.scope).set(age.left.total_seconds())
        for life in status.responders():
            if life.left is not None:
                _responder_left.labels(life.issuer).set(life.left.total_seconds())


async def _render(request: web.Request, error: Error) -> web.StreamResponse:
    reference = request[http.REFERENCE]
    return web.Response(status=503, text=f"{error.detail}\nReference: {reference}\n")
