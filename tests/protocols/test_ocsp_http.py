"""OCSP over HTTP, as openssl, GnuTLS, Go and caches in between have it."""

import asyncio
import base64
import random
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp
from structlog.testing import capture_logs

from estserver import http
from tests.protocols.status_wire import REQUEST, Site
from tests.status_driver import question

GOOD, REVOKED = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED


def path_of(request: bytes) -> str:
    return "/ocsp/" + quote(base64.b64encode(request).decode(), safe="")


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
