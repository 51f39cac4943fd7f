"""CRL, OCSP and CA certificates over HTTP, fetched by openssl, GnuTLS and a raw client."""

import asyncio
import base64
import gzip
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp.test_utils import TestServer
from aiohttp.web import Application
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509 import ocsp
from structlog.testing import capture_logs

from estserver import http
from estserver.errors import Error
from estserver.model import RevocationReason
from estserver.protocols import EnrollmentProtocol
from estserver.protocols.status import RENDER, StatusProtocol
from estserver.protocols.status_documents import takes_gzip
from tests.status_driver import House, build, question, revoke_in_bulk, run

GOOD, REVOKED = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED
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


@pytest.fixture
async def site(tmp_path: Path, aiohttp_server: Serve) -> AsyncIterator[Site]:
    directory = tmp_path / "house"
    directory.mkdir()
    house = build(directory)
    house.install_responder()
    with ThreadPoolExecutor(8) as executor:
        server = await aiohttp_server(StatusProtocol(house.services(executor)).application())
        assert server.port is not None
        yield Site(
            house,
            server.port,
            house.write_pem("issuer.pem", house.certificate()),
            house.write_pem("trust.pem", house.certificate(), house.root),
        )
        await server.close()
    house.store.close()


def path_of(request: bytes) -> str:
    return "/ocsp/" + quote(base64.b64encode(request).decode(), safe="")


# -- OCSP ------------------------------------------------------------------------------------------


@pytest.mark.row("I5")
@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
async def test_openssl_sees_good_then_revoked(site: Site, algorithm: str) -> None:
    certificate, enrollment = await site.issue("host")
    leaf = site.house.write_pem("leaf.pem", certificate)
    command = ["openssl", "ocsp", f"-{algorithm}", "-issuer", site.issuer_pem, "-cert", leaf]
    command += ["-url", f"{site.url}/ocsp", "-CAfile", site.trust_pem]
    said = await site.run(*command)
    assert "Response verify OK" in said
    assert "no nonce" not in said
    assert f"{leaf}: good" in said
    await site.revoke(enrollment)
    said = await site.run(*command)
    assert f"{leaf}: revoked" in said
    assert "Reason: keyCompromise" in said


async def test_openssl_asks_about_several_certificates_at_once(site: Site) -> None:
    first, _ = await site.issue("first")
    second, enrollment = await site.issue("second")
    await site.revoke(enrollment)
    leaves = [site.house.write_pem(f"{i}.pem", c) for i, c in enumerate((first, second))]
    asked = [part for leaf in leaves for part in ("-cert", leaf)]
    said = await site.run(
        *("openssl", "ocsp", "-issuer", site.issuer_pem, *asked),
        *("-url", f"{site.url}/ocsp", "-CAfile", site.trust_pem),
    )
    assert f"{leaves[0]}: good" in said
    assert f"{leaves[1]}: revoked" in said


async def test_gnutls_sees_good_then_revoked(site: Site) -> None:
    certificate, enrollment = await site.issue("host")
    leaf = site.house.write_pem("leaf.pem", certificate)
    command = ["ocsptool", f"--ask={site.url}/ocsp", "--load-issuer", site.issuer_pem]
    command += ["--load-cert", leaf, "--load-trust", site.trust_pem]
    said = await site.run(*command)
    assert "Certificate Status: good" in said
    assert "Success" in said
    await site.revoke(enrollment)
    assert "Certificate Status: revoked" in await site.run(*command)


async def tricky_question(site: Site) -> bytes:
    """Ask about a certificate in a request whose base64 has slashes, pluses and padding."""
    certificate, _ = await site.issue("host")
    for algorithm in (hashes.SHA1(), hashes.SHA256(), hashes.SHA384()):
        for size in range(1, 33):
            dice = random.Random(size)
            for _ in range(50):
                nonce = dice.randbytes(size)
                asked = question(certificate, site.house.certificate(), algorithm, nonce)
                text = base64.b64encode(asked).decode()
                if "/" in text and "+" in text and text.endswith("="):
                    return asked
    raise AssertionError("no request like that")


async def test_rfc6960_a_1_get_takes_every_spelling_of_base64_in_a_path(site: Site) -> None:
    asked = await tricky_question(site)
    text = base64.b64encode(asked).decode()
    escaped = quote(text, safe="")
    for path in (
        f"/ocsp/{escaped}",
        f"/ocsp/{text}",
        f"/ocsp//{escaped}",
        f"/ocsp%2F{escaped}",
        f"/ocsp{escaped}",
        f"/ocsp/{text.rstrip('=')}",
        f"/ocsp/{escaped.replace('%2F', '%2f')}",
        f"/ocsp/{text.replace('+', '%20')}",
        f"/ocsp/{escaped}?cache=buster",
    ):
        answer = await site.fetch("GET", path)
        assert answer.status == 200, path
        assert answer.ocsp.certificate_status is GOOD, path
        assert answer.headers["Cache-Control"] == "no-store", "an answer with a nonce is for one"


async def test_openssl_verifies_what_get_returns(site: Site) -> None:
    certificate, _ = await site.issue("host")
    leaf = site.house.write_pem("leaf.pem", certificate)
    file = str(site.house.directory / "leaf.req")
    command = ("openssl", "ocsp", "-issuer", site.issuer_pem, "-cert", leaf, "-no_nonce")
    await site.run(*command, "-reqout", file)
    asked = await asyncio.to_thread(Path(file).read_bytes)
    answer = await site.fetch("GET", path_of(asked))
    response = site.house.write_der("leaf.resp", answer.body)
    said = await site.run(*command, "-respin", response, "-CAfile", site.trust_pem)
    assert "Response verify OK" in said
    assert f"{leaf}: good" in said


async def test_rfc5019_6_2_an_answer_to_get_may_be_cached_for_seconds_only(site: Site) -> None:
    certificate, _ = await site.issue("host")
    path = path_of(question(certificate, site.house.certificate()))
    answer = await site.fetch("GET", path)
    directives = answer.headers["Cache-Control"].replace(" ", "").split(",")
    assert "max-age=5" in directives
    assert "no-transform" in directives
    assert answer.headers["ETag"]
    assert answer.headers["Last-Modified"] == format_datetime(
        answer.ocsp.this_update_utc, usegmt=True
    )
    head = await site.fetch("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["Content-Length"]) > 100


async def test_an_answer_given_again_is_counted_and_its_line_is_for_debug(site: Site) -> None:
    certificate, _ = await site.issue("host")
    asked = question(certificate, site.house.certificate())

    def counted() -> float:
        labels = {"via": "status", "operation": "ocsp", "label": "", "outcome": "ok"}
        return http.registry.get_sample_value("estserver_requests_total", labels) or 0

    before = counted()
    with capture_logs() as lines:
        answers = [await site.fetch("POST", "/ocsp", asked, REQUEST) for _ in range(3)]
    assert len({answer.body for answer in answers}) == 1
    assert counted() == before + 3
    levels = [line["log_level"] for line in lines if line["event"] == "request.answered"]
    assert levels == ["info", "debug", "debug"]


async def test_post_is_never_cached(site: Site) -> None:
    certificate, _ = await site.issue("host")
    asked = question(certificate, site.house.certificate())
    answer = await site.fetch("POST", "/ocsp", asked, REQUEST)
    assert answer.ocsp.certificate_status is GOOD
    assert answer.headers["Cache-Control"] == "no-store"


async def test_go_clients_may_send_the_request_in_chunks(site: Site) -> None:
    certificate, _ = await site.issue("host")
    asked = question(certificate, site.house.certificate())
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    head = b"POST /ocsp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/ocsp-request\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"1\r\n" + asked[i : i + 1] + b"\r\n" for i in range(len(asked)))
    writer.write(head + chunks + b"0\r\n\r\n")
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert raw.startswith(b"HTTP/1.1 200 ")
    body = raw.partition(b"\r\n\r\n")[2]
    assert ocsp.load_der_ocsp_response(body).certificate_status is GOOD


@pytest.mark.parametrize(
    "path", ["/ocsp/", "/ocsp/%00", "/ocsp/!!!", "/ocsp/AAAA", "/ocsp/M", "/ocsp/%FF%FE", "/ocspx"]
)
async def test_garbage_in_a_path_is_malformed(site: Site, path: str) -> None:
    answer = await site.fetch("GET", path)
    assert answer.status == 200
    assert answer.ocsp.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


async def test_a_body_of_5000_bytes_is_malformed_and_one_of_100000_is_not_read(site: Site) -> None:
    answer = await site.fetch("POST", "/ocsp", bytes(5000), REQUEST)
    assert answer.ocsp.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST
    answer = await site.fetch("POST", "/ocsp", bytes(100_000), REQUEST)
    assert answer.status == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/pkcs10"},
        {"Content-Type": ""},
        {**REQUEST, "Content-Encoding": "gzip"},
    ],
)
async def test_another_content_type_or_encoding_is_415_with_a_sentence(
    site: Site, headers: dict[str, str]
) -> None:
    answer = await site.fetch("POST", "/ocsp", b"0\0", headers)
    assert answer.status == 415
    assert answer.headers.get_content_type() == "text/plain"
    assert b"send " in answer.body


@pytest.mark.row("INC-9")
async def test_mutated_requests_never_cause_a_server_error(site: Site) -> None:
    certificate, _ = await site.issue("host")
    asked = question(certificate, site.house.certificate(), nonce=bytes(16))
    dice = random.Random(2560)
    for index in range(300):
        mutant = bytearray(asked)
        for _ in range(dice.randint(1, 3)):
            mutant[dice.randrange(len(mutant))] = dice.randrange(256)
        if index % 2:
            answer = await site.fetch("POST", "/ocsp", bytes(mutant), REQUEST)
        else:
            answer = await site.fetch("GET", path_of(bytes(mutant)))
        assert answer.status == 200
        assert answer.ocsp.response_status in set(ocsp.OCSPResponseStatus)


async def test_while_the_database_is_away_ocsp_says_try_later_and_the_crl_stays(
    site: Site, tmp_path: Path
) -> None:
    certificate, _ = await site.issue("host")
    asked = question(certificate, site.house.certificate())
    before = await site.fetch("GET", "/crl/issuing.crl")
    site.house.store.engine.dispose()
    site.house.directory.rename(tmp_path / "gone")
    answer = await site.fetch("POST", "/ocsp", asked, REQUEST)
    assert answer.status == 503
    assert answer.ocsp.response_status is ocsp.OCSPResponseStatus.TRY_LATER
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await site.fetch("GET", "/crl/issuing.crl")).body == before.body
    (tmp_path / "gone").rename(site.house.directory)
    answer = await site.fetch("POST", "/ocsp", asked, REQUEST)
    assert answer.ocsp.certificate_status is GOOD


# -- CRLs ------------------------------------------------------------------------------------------


@pytest.mark.row("I5")
async def test_the_crl_is_served_and_verifies(site: Site) -> None:
    certificate, enrollment = await site.issue("host")
    answer = await site.fetch("GET", "/crl/issuing.crl")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/pkix-crl"
    assert len(x509.load_der_x509_crl(answer.body)) == 0
    await site.revoke(enrollment)
    await asyncio.to_thread(site.house.status.publish_due)
    body = (await site.fetch("GET", "/crl/issuing.crl")).body
    file = site.house.write_der("issuing.crl", body)
    said = await site.run(
        "openssl", "crl", "-inform", "DER", "-in", file, "-CAfile", site.trust_pem, "-text"
    )
    assert "verify OK" in said
    assert f"{certificate.serial_number:X}" in said
    leaf = site.house.write_pem("leaf.pem", certificate)
    crl = x509.load_der_x509_crl(body).public_bytes(Encoding.PEM)
    pem = site.house.write_der("crl.pem", crl)
    with pytest.raises(AssertionError, match="certificate revoked"):
        await site.run(
            "openssl", "verify", "-crl_check", "-CRLfile", pem, "-CAfile", site.trust_pem, leaf
        )


async def test_rfc9110_13_an_unchanged_crl_is_not_sent_again(site: Site) -> None:
    first = await site.fetch("GET", "/crl/issuing.crl")
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    for headers in (
        {"If-None-Match": etag},
        {"If-None-Match": f'"other", W/{etag}'},
        {"If-None-Match": "*"},
        {"If-Modified-Since": modified},
    ):
        again = await site.fetch("GET", "/crl/issuing.crl", headers=headers)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["ETag"] == etag
    both = {"If-None-Match": '"other"', "If-Modified-Since": modified}
    assert (await site.fetch("GET", "/crl/issuing.crl", headers=both)).status == 200
    _, enrollment = await site.issue("host")
    await site.revoke(enrollment)
    await asyncio.to_thread(site.house.status.publish_due)
    changed = await site.fetch("GET", "/crl/issuing.crl", headers={"If-None-Match": etag})
    assert changed.status == 200
    assert changed.headers["ETag"] != etag


async def test_head_tells_the_size_of_the_crl(site: Site) -> None:
    full = await site.fetch("GET", "/crl/issuing.crl")
    head = await site.fetch("HEAD", "/crl/issuing.crl")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(full.body))
    assert head.headers["ETag"] == full.headers["ETag"]


async def test_a_crl_past_half_its_life_is_still_served(site: Site) -> None:
    first = await site.fetch("GET", "/crl/issuing.crl")
    site.house.clock.offset += timedelta(days=5)
    assert (await site.fetch("GET", "/crl/issuing.crl")).body == first.body


@pytest.fixture
async def large(tmp_path: Path, aiohttp_server: Serve) -> AsyncIterator[Site]:
    """Serve a CRL of 10 000 entries, one of a single profile, and deltas."""
    directory = tmp_path / "large"
    directory.mkdir()
    house = build(directory, own_crls=("device",), delta_crls=True)
    house.install_responder()
    revoke_in_bulk(house, 10_000, "person")
    house.status.publish_due()
    with ThreadPoolExecutor(8) as executor:
        server = await aiohttp_server(StatusProtocol(house.services(executor)).application())
        assert server.port is not None
        yield Site(house, server.port, "", "")
        await server.close()
    house.store.close()


async def test_a_large_crl_comes_compressed_to_whoever_takes_gzip(large: Site) -> None:
    plain = await large.fetch("GET", "/crl/issuing.crl")
    assert len(x509.load_der_x509_crl(plain.body)) == 10_000
    assert "Content-Encoding" not in plain.headers
    takes = {"Accept-Encoding": "br, gzip;q=0.8"}
    packed = await large.fetch("GET", "/crl/issuing.crl", headers=takes)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) * 0.7
    for answer in (plain, packed):
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert answer.headers["Content-Length"] == str(len(answer.body))
        assert "no-transform" in answer.headers["Cache-Control"]
    # RFC 9110 §8.8.3: "A strong validator [...] changes with the content coding".
    assert packed.headers["ETag"] != plain.headers["ETag"]
    for headers in ({}, takes):
        known = (packed if headers else plain).headers["ETag"]
        again = {**headers, "If-None-Match": known}
        assert (await large.fetch("GET", "/crl/issuing.crl", headers=again)).status == 304
        other = {**headers, "If-None-Match": (plain if headers else packed).headers["ETag"]}
        assert (await large.fetch("GET", "/crl/issuing.crl", headers=other)).status == 200
        head = await large.fetch("HEAD", "/crl/issuing.crl", headers=headers)
        assert head.headers["Content-Length"] == str(len((packed if headers else plain).body))
        assert head.body == b""


async def test_a_crl_that_grew_is_compressed_anew(large: Site) -> None:
    takes = {"Accept-Encoding": "gzip"}
    first = await large.fetch("GET", "/crl/issuing.crl", headers=takes)
    certificate, enrollment = await large.issue("host")
    await large.revoke(enrollment)
    await asyncio.to_thread(large.house.status.publish_due)
    second = await large.fetch("GET", "/crl/issuing.crl", headers=takes)
    assert second.headers["ETag"] != first.headers["ETag"]
    crl = x509.load_der_x509_crl(gzip.decompress(second.body))
    assert crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    assert len(crl) == 10_001


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("GZIP ;q=1", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*", True),
        ("deflate, *;q=0", False),
        ("br,gzip ; q=0.5", True),
    ],
)
def test_rfc9110_12_5_3_accept_encoding(accepted: str, *, expected: bool) -> None:
    assert takes_gzip(accepted) is expected


async def test_shards_and_deltas_are_where_their_crls_say(large: Site) -> None:
    certificate, enrollment = await large.issue("host")
    await large.revoke(enrollment)
    await asyncio.to_thread(large.house.status.publish_due)
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    path = str((point.full_name or [])[0].value).removeprefix("http://pki.example.org")
    assert path == "/crl/issuing/device.crl"
    etags = set()
    for where in (path, "/crl/issuing.crl"):
        answer = await large.fetch("GET", where)
        full = x509.load_der_x509_crl(answer.body)
        freshest = full.extensions.get_extension_for_class(x509.FreshestCRL).value
        (delta_point,) = freshest
        there = str((delta_point.full_name or [])[0].value).removeprefix("http://pki.example.org")
        small = await large.fetch("GET", there)
        assert small.headers["Content-Type"] == "application/pkix-crl"
        delta = x509.load_der_x509_crl(small.body)
        assert [entry.serial_number for entry in delta] == [certificate.serial_number]
        etags |= {answer.headers["ETag"], small.headers["ETag"]}
    assert len(etags) == 4


async def test_without_shards_and_deltas_their_places_are_404_with_a_sentence(site: Site) -> None:
    for path in ("/delta/issuing.crl", "/crl/issuing/device.crl", "/delta/issuing/device.crl"):
        answer = await site.fetch("GET", path)
        assert answer.status == 404, path
        assert answer.headers.get_content_type() == "text/plain"


# -- CA certificates -------------------------------------------------------------------------------


@pytest.mark.row("EST-185")
async def test_rfc5280_4_2_2_1_issuer_root_and_chain_are_served(site: Site) -> None:
    issuing = await site.fetch("GET", "/ca/issuing.cer")
    assert issuing.headers["Content-Type"] == "application/pkix-cert"
    assert x509.load_der_x509_certificate(issuing.body) == site.house.certificate()
    root = await site.fetch("GET", "/ca/issuing-root.cer")
    assert x509.load_der_x509_certificate(root.body) == site.house.root
    chain = await site.fetch("GET", "/ca/issuing.p7c")
    assert chain.headers["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
    served = set(pkcs7.load_der_pkcs7_certificates(chain.body))
    assert served == {site.house.certificate(), site.house.root}
    etag = {"If-None-Match": issuing.headers["ETag"]}
    assert (await site.fetch("GET", "/ca/issuing.cer", headers=etag)).status == 304


@pytest.mark.row("EST-185")
async def test_the_urls_in_a_certificate_lead_here(site: Site) -> None:
    certificate, _ = await site.issue("host")
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    urls = [str(one.access_location.value) for one in access]
    urls += [str(name.value) for point in points for name in point.full_name or []]
    paths = sorted(url.removeprefix("http://pki.example.org") for url in urls)
    assert paths == ["/ca/issuing.cer", "/crl/issuing.crl", "/ocsp"]
    asked = question(certificate, site.house.certificate())
    assert (await site.fetch("GET", paths[0])).status == 200
    assert (await site.fetch("GET", paths[1])).status == 200
    assert (await site.fetch("POST", paths[2], asked, REQUEST)).status == 200


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nothing",
        "/crl/other.crl",
        "/crl/issuing",
        "/crl/issuing.pem",
        "/crl/.crl",
        "/crl/..%2f..%2fissuing.crl",
        "/ca/other.cer",
        "/ca/issuing",
        "/CRL/issuing.crl",
    ],
)
async def test_what_is_not_here_is_404_with_a_sentence(site: Site, path: str) -> None:
    answer = await site.fetch("GET", path)
    assert answer.status == 404
    assert answer.headers.get_content_type() == "text/plain"
    assert answer.body.startswith(b"there is no")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/crl/issuing.crl", "GET, HEAD"),
        ("DELETE", "/ca/issuing.cer", "GET, HEAD"),
        ("GET", "/ocsp", "POST"),
        ("PUT", "/ocsp", "POST"),
    ],
)
async def test_another_method_is_405_naming_the_right_ones(
    site: Site, method: str, path: str, allowed: str
) -> None:
    answer = await site.fetch(method, path)
    assert answer.status == 405
    assert answer.headers["Allow"] == allowed
    assert answer.headers.get_content_type() == "text/plain"
    assert allowed.encode() in answer.body


async def test_strangers_cannot_invent_labels_for_the_counters(site: Site) -> None:
    await site.fetch("GET", "/crl/issuing.crl")
    await site.fetch("GET", "/crl/invented.crl")
    labels = {
        sample.labels["label"]
        for metric in http.registry.collect()
        for sample in metric.samples
        if sample.labels.get("operation") == "crl" and "label" in sample.labels
    }
    assert "issuing" in labels
    assert "invented" not in labels


def test_every_error_of_the_tree_has_a_status() -> None:
    def walk(kind: type[Error]) -> list[type[Error]]:
        return [kind, *(below for sub in kind.__subclasses__() for below in walk(sub))]

    for kind in walk(Error)[1:]:
        assert any(base in RENDER for base in kind.__mro__), kind.__name__


def test_the_door_is_an_enrollment_protocol(tmp_path: Path) -> None:
    house = build(tmp_path)
    with ThreadPoolExecutor(1) as executor:
        door: EnrollmentProtocol = StatusProtocol(house.services(executor))
    assert (door.name, door.prefix, list(door.background())) == ("status", "", [])
    house.store.close()
