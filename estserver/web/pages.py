"""What all pages of one listener share: words, templates, headers, static files, error pages."""

import hashlib
import mimetypes
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from aiohttp import web
from babel import negotiate_locale
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from estserver import http
from estserver.errors import (
    AlreadyIssued,
    BadCredentials,
    BadCSR,
    BadInput,
    ConfigurationError,
    Conflict,
    CredentialsRequired,
    Error,
    Fault,
    IdentityMismatch,
    LinkingFailed,
    MistypedPIN,
    NamesNotAllowed,
    NotEntitled,
    NotFound,
    Refused,
    RegistrationClosed,
    TooManyAttempts,
    Unavailable,
)
from estserver.http import BodyTooLarge, SlowBody, UnsupportedMediaType
from estserver.model import Language
from estserver.protocols import Services
from estserver.web.catalogue import Catalogue, read_catalogues
from estserver.web.standing import facts, serial_as_firefox

# The status of the page that an error becomes: by its own class, else by the nearest base.
# 403, not 401, where a PIN or certificate is missing: RFC 9110 §15.5.2 wants a challenge with 401,
# and there is no HTTP authentication that would help.
RENDER: Mapping[type[Error], int] = MappingProxyType(
    {
        Error: 500,
        Refused: 400,
        BadInput: 400,
        BadCSR: 400,
        LinkingFailed: 400,
        MistypedPIN: 400,
        CredentialsRequired: 403,
        BadCredentials: 403,
        NamesNotAllowed: 403,
        IdentityMismatch: 403,
        NotEntitled: 403,
        NotFound: 404,
        SlowBody: 408,
        AlreadyIssued: 409,
        Conflict: 409,
        RegistrationClosed: 410,
        BodyTooLarge: 413,
        UnsupportedMediaType: 415,
        TooManyAttempts: 429,
        Fault: 500,
        Unavailable: 503,
    }
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
        "img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
        "base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "accelerometer=(), camera=(), display-capture=(), geolocation=(), "
        "gyroscope=(), hid=(), magnetometer=(), microphone=(), midi=(), payment=(), serial=(), "
        "usb=()",
        "Cache-Control": "no-store",
        "X-Robots-Tag": "noindex",
    }
)
WEB = Path(__file__).parent
LANGUAGE_COOKIE = "__Host-language"
_A_YEAR = 365 * 24 * 3600
_LOGO_TYPES = ("image/png", "image/svg+xml", "image/jpeg", "image/webp", "image/gif")
_STATIC_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
REGISTRATION_LANGUAGE: web.RequestKey[Language] = web.RequestKey("language", Language)
HOME: web.RequestKey[str] = web.RequestKey("home", str)
"""The page that an error page leads back to; also where its language links lead."""


class Site:
    """Renders the pages of one listener. `url` is that listener's public base URL.

    `close`: end the connection after each answer, because a connection that lives on hides a
    certificate that was imported meanwhile.
    """

    def __init__(self, services: Services, *, url: str, close: bool = False) -> None:
        self.services = services
        self.url = url
        self.catalogues = read_catalogues()
        self._close = close
        self._environment = Environment(
            loader=FileSystemLoader(WEB / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["breakable"] = breakable
        self._static = {
            path.name: path.read_bytes()
            for path in sorted((WEB / "static").iterdir())
            if path.suffix in _STATIC_TYPES
        }
        digest = hashlib.sha256(b"".join(self._static.values()))
        # The version is a folder, so that the imports inside the modules carry it as well.
        self._version = digest.hexdigest()[:16]
        self._logo = self._read_logo()

    def routes(self, application: web.Application) -> None:
        """Add what every listener with pages serves besides them."""
        application.router.add_get("/static/{name}", self._serve_static)
        application.router.add_get("/static/{version}/{name}", self._serve_static)
        application.router.add_get("/logo", self._serve_logo)
        application.router.add_route("*", "/{other:.*}", self._serve_nothing)

    # -- pages -------------------------------------------------------------------------------------

    def language(self, request: web.Request) -> Language:
        """Choose: `?lang=`, cookie, registration, Accept-Language, configuration."""
        supported = {language.value for language in Language}
        for wish in (request.query.get("lang"), request.cookies.get(LANGUAGE_COOKIE)):
            if wish in supported:
                return Language(wish)
        if REGISTRATION_LANGUAGE in request:
            return request[REGISTRATION_LANGUAGE]
        accepted = [
            part.split(";")[0].strip().replace("-", "_")
            for part in request.headers.get("Accept-Language", "")[:200].split(",")
        ]
        found = negotiate_locale(accepted, sorted(supported))
        return self.services.settings.web.language if found is None else Language(found)

    def page(
        self, request: web.Request, template: str, *, status: int = 200, **context: object
    ) -> web.Response:
        """Render a template in the request's language."""
        language = self.language(request)
        words = self.catalogues[language]
        branding = self.services.settings.branding
        japanese = language is Language.JA
        html = self._environment.get_template(template).render(
            t=words,
            lang=language.value,
            languages=[one.value for one in Language],
            # Empty: a link to the page itself. A path that begins with `//` would name a host.
            here=request.get(HOME, ""),
            branding=branding,
            service=branding.service_ja if japanese else branding.service,
            support=branding.support_ja if japanese else branding.support,
            logo=None if self._logo is None else "/logo",
            static=f"/static/{self._version}",
            web_url=self.services.settings.listeners.web.url,
            devices_url=self.services.settings.listeners.devices.url,
            **{"error": None, "refresh": None, "needs_pin": False, "renewal": False, **context},
        )
        response = web.Response(text=html, content_type="text/html", status=status)
        response.headers.update(HEADERS)
        response.headers["Vary"] = "Accept-Language, Cookie"
        response.headers["Content-Language"] = language.value
        if request.query.get("lang") == language.value:
            self._remember_language(response, language)
        return self.finished(response)

    def see(self, location: str) -> web.Response:
        """Answer a POST that was done: the page to look at now (RFC 9110 §15.4.4)."""
        response = web.Response(status=303, headers={**HEADERS, "Location": location})
        return self.finished(response)

    def file(
        self, body: bytes, content_type: str, name: str, *, inline: bool = False
    ) -> web.Response:
        """Answer with a file to be saved under `name`, which may be of any script (RFC 6266)."""
        response = web.Response(body=body, content_type=content_type)
        response.headers.update(HEADERS)
        if not inline:
            fallback = "".join(c if c.isascii() and c not in '"\\' else "_" for c in name)
            encoded = quote(name, safe="")
            response.headers["Content-Disposition"] = (
                f"attachment; filename=\"{fallback}\"; filename*=UTF-8''{encoded}"
            )
        return self.finished(response)

    def certificate_file(self, certificates: tuple[bytes, ...], ending: str) -> web.Response:
        """Answer with a certificate, DER given, its chain behind it: `pem` all, `cer` the first.

        Raises NotFound: there is no such form.
        """
        stem = facts(certificates[0]).file_stem
        match ending:
            case "pem":
                parsed = [x509.load_der_x509_certificate(der) for der in certificates]
                body = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in parsed)
                return self.file(body, "application/x-pem-file", f"{stem}.pem")
            case "cer":
                return self.file(certificates[0], "application/pkix-cert", f"{stem}.cer")
            case _:
                raise NotFound("there is no such file")

    def finished(self, response: web.Response) -> web.Response:
        """Close the connection after an answer where this listener does so."""
        if self._close:
            response.force_close()
        return response

    # -- errors ------------------------------------------------------------------------------------

    async def error_page(self, request: web.Request, error: Error) -> web.StreamResponse:
        """Turn an error into a page of its own: the observer's `render`."""
        return self.error(request, error, "error.html")

    def error(
        self, request: web.Request, error: Error, template: str, **context: object
    ) -> web.Response:
        """Say an error in words, with its reference, on the page where it belongs."""
        response = self.page(
            request,
            template,
            status=status_of(error),
            **{"error": self.said(request, error), **context},
        )
        seconds = http.retry_after_seconds(error)
        if seconds is not None:
            response.headers["Retry-After"] = seconds
        return response

    def said(self, request: web.Request, error: Error, **values: object) -> Mapping[str, object]:
        """Return what a template says about an error: words, technical detail, reference."""
        words = self.catalogues[self.language(request)]
        seconds = http.retry_after_seconds(error)
        known = {"seconds": seconds or "1", **_readable(error.values, words), **values}
        # A fault's detail is for our log; where the words have the reason, it says nothing more.
        telling = isinstance(error, BadCSR | BadInput | Conflict) and "reason" not in error.values
        return {
            "code": error.code,
            "text": words.error(error, **known),
            "detail": error.detail if telling else None,
            "reference": request[http.REFERENCE],
            "back": request.get(HOME),
        }

    # -- static files ------------------------------------------------------------------------------

    async def _serve_static(self, request: web.Request) -> web.Response:
        http.note(request, operation="static")
        name = request.match_info["name"]
        body = self._static.get(name)
        if body is None:
            raise NotFound("there is no such file")
        response = web.Response(
            body=body, content_type=_STATIC_TYPES[Path(name).suffix], charset="utf-8"
        )
        response.headers.update(HEADERS)
        current = request.match_info.get("version") == self._version
        response.headers["Cache-Control"] = (
            f"public, max-age={_A_YEAR}, immutable" if current else "no-cache"
        )
        return self.finished(response)

    async def _serve_logo(self, request: web.Request) -> web.Response:
        http.note(request, operation="static")
        if self._logo is None:
            raise NotFound("there is no logo")
        body, content_type = self._logo
        response = self.file(body, content_type, "logo", inline=True)
        response.headers["Cache-Control"] = "public, max-age=3600"
        return response

    async def _serve_nothing(self, _request: web.Request) -> web.Response:
        raise NotFound("there is no such page")

    def _read_logo(self) -> tuple[bytes, str] | None:
        path = self.services.settings.branding.logo
        if path is None:
            return None
        full = self.services.settings.path(path)
        content_type, _ = mimetypes.guess_type(full.name)
        if content_type not in _LOGO_TYPES:
            raise ConfigurationError(f"branding.logo: {full} is not an image that browsers show")
        try:
            return full.read_bytes(), content_type
        except OSError as error:
            raise ConfigurationError(f"branding.logo: {full}: {error.strerror}") from error

    def _remember_language(self, response: web.StreamResponse, language: Language) -> None:
        response.set_cookie(
            LANGUAGE_COOKIE,
            language.value,
            max_age=_A_YEAR,
            path="/",
            secure=True,
            httponly=True,
            samesite="Lax",
        )


def breakable(colon_hex: str) -> Markup:
    """Let a long colon hex wrap after its colons; what is copied from the page stays the same."""
    return Markup(":<wbr>").join(colon_hex.split(":"))


def _readable(values: Mapping[str, str], words: Catalogue) -> Mapping[str, str]:
    """Return an error's values the way the rest of a page writes serials and days."""
    shown = dict(values)
    if "serial" in shown:
        shown["serial"] = serial_as_firefox(int(shown["serial"], 16))
    if "date" in shown:
        shown["date"] = words.date(datetime.fromisoformat(shown["date"]))
    return shown


def status_of(error: Error) -> int:
    """Return the HTTP status for an error: that of its class or its nearest base."""
    return next(RENDER[kind] for kind in type(error).__mro__ if kind in RENDER)
