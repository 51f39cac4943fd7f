"""What everybody may see: landing page, help, and the CA certificates with their fingerprints."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from estserver import http
from estserver.ca.chains import Chains
from estserver.ca.hierarchy import common_name
from estserver.errors import NotFound
from estserver.web.pages import Site
from estserver.web.platforms import KINDS, detect
from estserver.web.standing import CertificateFacts, facts

Kind = Literal["root", "new", "old", "intermediate"]
"""While a root takes over from another, one is new and the other old."""
_ORDER = ("new", "root", "old", "intermediate")


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA certificate as the trust page shows it; `path` is where it is downloaded."""

    certificate: x509.Certificate
    facts: CertificateFacts
    kind: Kind
    path: str

    @property
    def name(self) -> str:
        """CN, or O where there is none: what certificate managers show."""
        return common_name(self.certificate)


class TrustPages:
    """`/`, `/help`, `/trust` and the downloads below it; also shown beside the wizard."""

    def __init__(self, site: Site) -> None:
        self._site = site
        authorities = [*_authorities(site.services.chains)]
        self._authorities = {authority.path: authority for authority in authorities}
        self._changes = _changes(site.services.chains)

    def routes(self, application: web.Application) -> None:
        """Add the pages."""
        application.router.add_get("/", self._landing)
        application.router.add_get("/help", self._help)
        application.router.add_get("/trust", self._trust)
        application.router.add_get("/trust/{file}", self._download)

    @property
    def root_path(self) -> str:
        """Where the first root certificate to stay is downloaded, without its ending."""
        return next(a.path for a in self._authorities.values() if a.kind in {"root", "new"})

    async def _landing(self, request: web.Request) -> web.Response:
        http.note(request, operation="landing")
        return self._site.page(request, "landing.html")

    async def _help(self, request: web.Request) -> web.Response:
        http.note(request, operation="help")
        platform = detect(request.headers.get("User-Agent", ""))
        return self._site.page(request, "help.html", platform=platform, kinds=KINDS)

    async def _trust(self, request: web.Request) -> web.Response:
        http.note(request, operation="trust")
        now = self._site.services.clock.now()
        ordered = sorted(self._authorities.values(), key=lambda a: (_ORDER.index(a.kind), a.name))
        return self._site.page(
            request, "trust.html", authorities=ordered, changes=self._changes, now=now
        )

    async def _download(self, request: web.Request) -> web.Response:
        http.note(request, operation="trust")
        stem, _, ending = request.match_info["file"].rpartition(".")
        if stem == "bundle" and ending == "pem":
            everything = [a.certificate for a in self._authorities.values()]
            body = b"".join(c.public_bytes(Encoding.PEM) for c in everything)
            return self._site.file(body, "application/x-pem-file", "ca-certificates.pem")
        authority = self._authorities.get(f"/trust/{stem}")
        if authority is None or ending not in ("pem", "cer"):
            raise NotFound("there is no such CA certificate")
        name = f"{authority.name}.{ending}".replace("/", "_")
        if ending == "pem":
            body = authority.certificate.public_bytes(Encoding.PEM)
            return self._site.file(body, "application/x-pem-file", name)
        # The type of RFC 2585 §4.1: Firefox, which once offered to install it, now just saves it.
        return self._site.file(authority.facts.der, "application/pkix-cert", name)


def _authorities(chains: Chains) -> Iterator[Authority]:
    """Yield the CA certificates of all issuers in use; cross-certificates are not for people."""
    for name in chains.active():
        roots = chains.roots(name)
        for certificate in chains[name]:
            kind: Kind = "intermediate"
            if certificate in roots:
                kind = "root" if len(roots) == 1 else "new" if certificate == roots[-1] else "old"
            yield Authority(
                certificate=certificate,
                facts=facts(certificate.public_bytes(Encoding.DER)),
                kind=kind,
                path=f"/trust/{certificate.fingerprint(hashes.SHA256()).hex()[:16]}",
            )


def _changes(chains: Chains) -> tuple[tuple[str, str], ...]:
    """Return the changes of root under way: names of the old roots, name of the new one."""
    families = dict.fromkeys(chains.roots(name) for name in chains.active())
    return tuple(
        (", ".join(common_name(root) for root in old), common_name(new))
        for *old, new in families
        if old
    )
