"""What everybody may see: landing page, help, and the CA certificates with their fingerprints."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estserver import http
from estserver.errors import NotFound
from estserver.web.pages import Site
from estserver.web.platforms import KINDS, detect
from estserver.web.standing import CertificateFacts, facts


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA certificate as the trust page shows it; `path` is where it is downloaded."""

    certificate: x509.Certificate
    facts: CertificateFacts
    root: bool
    path: str

    @property
    def name(self) -> str:
        """CN, or O where there is none: what certificate managers show."""
        subject = self.certificate.subject
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
            if found := subject.get_attributes_for_oid(oid):
                return str(found[-1].value)
        return subject.rfc4514_string()


class TrustPages:
    """`/`, `/help`, `/trust` and the downloads below it; also shown beside the wizard."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._authorities: Mapping[str, Authority] = {}
        for chain in site.services.chains.values():
            for certificate in chain:
                authority = _authority(certificate)
                self._authorities = {**self._authorities, authority.path: authority}

    def routes(self, application: web.Application) -> None:
        """Add the pages."""
        application.router.add_get("/", self._landing)
        application.router.add_get("/help", self._help)
        application.router.add_get("/trust", self._trust)
        application.router.add_get("/trust/{file}", self._download)

    @property
    def root_path(self) -> str:
        """Where the first root certificate is downloaded, without its ending."""
        return next(a.path for a in self._authorities.values() if a.root)

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
        ordered = sorted(self._authorities.values(), key=lambda a: (not a.root, a.name))
        return self._site.page(request, "trust.html", authorities=ordered, now=now)

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


def _authority(certificate: x509.Certificate) -> Authority:
    return Authority(
        certificate=certificate,
        facts=facts(certificate.public_bytes(Encoding.DER)),
        root=certificate.issuer == certificate.subject,
        path=f"/trust/{certificate.fingerprint(hashes.SHA256()).hex()[:16]}",
    )
