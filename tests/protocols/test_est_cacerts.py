"""EST /cacerts: what a device takes its trust from (sheet C)."""

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.live import Live
from tests.protocols.est_wire import Wire, credentials, get

PATHS = ["cacerts", "device/cacerts"]


@pytest.mark.row("EST-034", "EST-035", "EST-036", "EST-037", "EST-046")
@pytest.mark.parametrize("path", PATHS)
def test_anybody_gets_200_with_a_bare_type_and_no_challenge(shared: Live, path: str) -> None:
    answer = get(shared, path)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/pkcs7-mime"
    assert answer.headers["Content-Transfer-Encoding"] == "base64"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Transfer-Encoding" not in answer.headers
    assert "WWW-Authenticate" not in answer.headers


@pytest.mark.row("EST-035")
@pytest.mark.parametrize(
    "headers",
    [
        {"If-None-Match": "*"},
        {"If-Modified-Since": "Sat, 01 Jan 2050 00:00:00 GMT"},
        {"Range": "bytes=0-9"},
        {"Accept": "image/png"},
        {"Accept-Encoding": "gzip"},
    ],
)
def test_conditions_and_ranges_change_nothing(shared: Live, headers: dict[str, str]) -> None:
    plain, answer = get(shared, "cacerts"), get(shared, "cacerts", headers=headers)
    assert answer.status == 200
    assert base64.b64decode(answer.body) == base64.b64decode(plain.body)
    assert "Content-Encoding" not in answer.headers


@pytest.mark.row("EST-038", "EST-039")
def test_the_body_is_one_certs_only_signed_data_in_base64(shared: Live) -> None:
    body = get(shared, "cacerts").body
    der = base64.b64decode(b"".join(body.split()), validate=True)
    info = cms.ContentInfo.load(der, strict=True)
    assert info.dump() == der
    assert info["content_type"].native == "signed_data"
    signed = info["content"]
    assert signed["version"].native == "v1"
    assert signed["encap_content_info"]["content_type"].native == "data"
    assert signed["encap_content_info"]["content"].native is None
    assert len(signed["digest_algorithms"]) == 0
    assert len(signed["signer_infos"]) == 0


@pytest.mark.row("EST-040", "EST-042")
@pytest.mark.parametrize("path", PATHS)
def test_it_holds_the_chain_of_the_label_and_nothing_else(shared: Live, path: str) -> None:
    found = get(shared, path).certificates()
    root = x509.load_pem_x509_certificate(shared.root.read_bytes())
    assert root in found
    assert set(found) == set(shared.core.chains["issuing"])
    assert len(found) == len(set(found))
    for certificate in found:
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.row("EST-041", "EST-116")
def test_openssl_verifies_an_issued_certificate_with_nothing_but_the_answer(
    shared: Live, tmp_path: Path
) -> None:
    holder = shared.enroll(shared.invite("device"))
    found = get(shared, "device/cacerts").certificates()
    for name, certificates in {
        "root.pem": [c for c in found if c.issuer == c.subject],
        "others.pem": [c for c in found if c.issuer != c.subject],
        "leaf.pem": [holder.certificate],
    }.items():
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
        (tmp_path / name).write_bytes(pem)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient"]
    done = subprocess.run(
        [*command, "-CAfile", "root.pem", "-untrusted", "others.pem", "leaf.pem"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"leaf.pem: OK\n", done.stderr


@pytest.mark.row("EST-048", "EST-193", "EST-194", "EST-197")
@pytest.mark.parametrize(
    ("headers", "lines"),
    [
        (["User-Agent: libest 3.2.0p"], 64),
        (["Accept: */*"], 64),
        (["User-Agent: Python-urllib/3.11"], 64),
        (["User-Agent: curl/8.5.0", "Accept: */*"], None),
        ([], None),
    ],
)
def test_base64_comes_in_the_lines_that_each_client_can_read(
    shared: Live, headers: list[str], lines: int | None
) -> None:
    with Wire(shared) as wire:
        body = wire.ask("GET", "cacerts", headers=headers).body
    assert body.endswith(b"\n")
    found = body[:-1].split(b"\n")
    if lines is None:
        assert len(found) == 1
    else:
        assert {len(line) for line in found[:-1]} == {lines}
        assert len(found[-1]) <= lines
    assert base64.b64decode(body) == base64.b64decode(get(shared, "cacerts").body)


@pytest.mark.row("EST-065")
@pytest.mark.parametrize("path", [*PATHS, "csrattrs", "device/csrattrs"])
@pytest.mark.parametrize(
    "authorization", ["Basic !!!", "Bearer x", credentials("1234567890", "00000-00000-0000"), ""]
)
def test_wrong_credentials_are_ignored_where_none_are_needed(
    shared: Live, path: str, authorization: str
) -> None:
    """More often than the guesses that a source has: none of them counts."""
    for _ in range(3):
        answer = get(shared, path, headers={"Authorization": authorization})
        assert (answer.status, answer.body) == (200, get(shared, path).body)


@pytest.mark.row("EST-042", "EST-116", "SEED-20")
def test_without_a_label_a_known_applicant_gets_the_chain_of_their_own_issuer(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live(
        """
[issuers.other]
certificate = "ca/root.crt"
chain = []
key = "ca/root.key"

[profiles.sensor]
title = "Sensor"
title_ja = "Sensor"
issuer = "other"
doors = ["est"]
default_doors = ["est"]
subject = ["CN={device_id}"]
keys = ["ec-p256"]
validity = "30d"
extended_key_usage = ["clientAuth"]
"""
    )
    handover = live.invite("sensor", device_id="s1")
    assert handover.pin is not None
    pin = credentials(handover.invitation.number, handover.pin.reveal())
    root = list(live.core.chains["other"])
    assert get(live, "sensor/cacerts").certificates() == root
    assert get(live, "cacerts", headers={"Authorization": pin}).certificates() == root
    assert set(get(live, "cacerts").certificates()) == set(live.core.chains["issuing"])
    holder = live.enroll(handover)
    assert get(live, "cacerts", holder=holder).certificates() == root
