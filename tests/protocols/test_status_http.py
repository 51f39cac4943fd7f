"""CRLs and CA certificates over HTTP, and what the status listener refuses."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from estserver import http
from estserver.errors import Error
from estserver.protocols import EnrollmentProtocol
from estserver.protocols.status import RENDER, StatusProtocol
from estserver.protocols.status_documents import takes_gzip
from tests.protocols.status_wire import REQUEST, Serve, Site
from tests.status_driver import build, question, revoke_in_bulk

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
