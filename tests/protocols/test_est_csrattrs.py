"""EST /csrattrs: what is announced, and that it is what is enforced (sheet I)."""

import base64
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.der import attribute
from tests.live import Answer, Holder, Live, basic, new_key
from tests.protocols.csr_attributes import CsrAttrs
from tests.protocols.est_wire import (
    CHALLENGE_PASSWORD,
    EXTENSION_REQUEST,
    csr,
    get,
    names_of,
    post,
    raw_csr,
    units_used,
)

EC = "1.2.840.10045.2.1"
RSA = "1.2.840.113549.1.1.1"
ED25519 = "1.3.101.112"
NAMES = ("dns:p17.example.ac.jp", "ip:192.0.2.17")


def read(answer: Answer) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the bare OIDs, and the attributes' values by OID; each may stand once."""
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/csrattrs"
    assert answer.headers["Content-Transfer-Encoding"] == "base64"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    der = base64.b64decode(b"".join(answer.body.split()), validate=True)
    decoded = CsrAttrs.load(der, strict=True)
    assert decoded.dump(force=True) == der
    oids, attributes = [], {}
    for element in decoded:
        if element.name == "oid":
            oids.append(element.chosen.dotted)
        else:
            oid = element.chosen["type"].dotted
            assert oid not in attributes
            attributes[oid] = list(element.chosen["values"])
    return oids, attributes


def san_of(values: Sequence[Any]) -> list[str]:
    assert len(values) == 1
    extensions = values[0].parse(asn1_x509.Extensions)
    assert [extension["extn_id"].native for extension in extensions] == ["subject_alt_name"]
    return [name.native for name in extensions[0]["extn_value"].parsed]


@pytest.mark.row("EST-145", "EST-146", "EST-148", "EST-151")
@pytest.mark.parametrize("path", ["csrattrs", "device/csrattrs"])
def test_anybody_learns_key_type_and_signature(shared: Live, path: str) -> None:
    oids, attributes = read(get(shared, path))
    assert oids == ["1.2.840.10045.4.3.2"]
    assert list(attributes) == [EC]
    assert [value.native for value in attributes[EC]] == ["1.2.840.10045.3.1.7"]


@pytest.mark.row("EST-148", "EST-151", "EST-154", "EST-155")
@pytest.mark.parametrize(
    ("key_type", "oids", "attributes"),
    [
        ("rsa-2048", ["1.2.840.113549.1.1.11"], {RSA: [2048]}),
        ("rsa-4096", ["1.2.840.113549.1.1.11"], {RSA: [4096]}),
        ("ec-p384", ["1.2.840.10045.4.3.3"], {EC: ["1.3.132.0.34"]}),
        ("ec-p521", ["1.2.840.10045.4.3.4"], {EC: ["1.3.132.0.35"]}),
        ("ed25519", [ED25519], {}),
    ],
)
def test_the_first_key_type_of_the_profile_is_announced_once(
    make_live: Callable[[str], Live], key_type: str, oids: list[str], attributes: dict[str, Any]
) -> None:
    live = make_live(f'\n[profiles.device]\nkeys = ["{key_type}", "ec-p256"]\n')
    found_oids, found = read(get(live, "device/csrattrs"))
    assert found_oids == oids
    assert {oid: [value.native for value in values] for oid, values in found.items()} == attributes


@pytest.mark.row("EST-145", "EST-160")
def test_the_default_profile_answers_without_a_label(make_live: Callable[[str], Live]) -> None:
    live = make_live('\n[est]\ndefault_profile = "person"\n')
    assert get(live, "csrattrs").body == get(live, "person/csrattrs").body
    assert get(live, "csrattrs").body != get(live, "device/csrattrs").body


@pytest.mark.row("EST-150", "EST-160")
@pytest.mark.parametrize("path", ["csrattrs", "device/csrattrs"])
def test_with_the_pin_the_names_of_that_registration_are_announced(shared: Live, path: str) -> None:
    handover = shared.invite("device", names=NAMES)
    headers = {"Authorization": basic(handover)}
    for _ in range(3):
        _, attributes = read(get(shared, path, headers=headers))
        assert set(attributes) == {EC, EXTENSION_REQUEST}
        assert sorted(san_of(attributes[EXTENSION_REQUEST])) == ["192.0.2.17", "p17.example.ac.jp"]
    assert units_used(shared, handover) == 0
    assert post(shared, csr(), by=handover).status == 200


@pytest.mark.row("EST-160")
def test_the_pin_of_another_profile_speaks_for_that_profile_only_without_a_label(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live('\n[profiles.server]\nkeys = ["rsa-3072"]\n')
    headers = {"Authorization": basic(live.invite("server"))}
    _, attributes = read(get(live, "csrattrs", headers=headers))
    assert set(attributes) == {RSA, EXTENSION_REQUEST}
    assert get(live, "device/csrattrs", headers=headers).body == get(live, "device/csrattrs").body


@pytest.mark.row("EST-160")
def test_with_a_certificate_its_own_names_are_announced(live: Live) -> None:
    holder = live.enroll(live.invite("device", names=NAMES))
    _, attributes = read(get(live, "csrattrs", holder=holder))
    assert sorted(san_of(attributes[EXTENSION_REQUEST])) == ["192.0.2.17", "p17.example.ac.jp"]


@pytest.mark.row("EST-150")
def test_a_registration_without_alternative_names_asks_for_none(shared: Live) -> None:
    headers = {"Authorization": basic(shared.invite("device"))}
    _, attributes = read(get(shared, "csrattrs", headers=headers))
    assert set(attributes) == {EC}


def names_announced(values: Sequence[Any]) -> tuple[x509.GeneralName, ...]:
    names = values[0].parse(asn1_x509.Extensions)[0]["extn_value"].parsed
    return tuple(
        x509.IPAddress(ip_address(name.native))
        if name.name == "ip_address"
        else x509.DNSName(name.native)
        for name in names
    )


@pytest.mark.row("EST-161")
def test_a_csr_built_from_what_is_announced_enrolls(live: Live) -> None:
    handover = live.invite("device", names=NAMES)
    _, attributes = read(get(live, "csrattrs", headers={"Authorization": basic(handover)}))
    curve = {"1.2.840.10045.3.1.7": ec.SECP256R1()}[attributes[EC][0].native]
    key = ec.generate_private_key(curve)
    wanted = names_announced(attributes[EXTENSION_REQUEST])
    answer = post(live, csr(key=key, names=wanted), by=handover)
    assert answer.status == 200
    (certificate,) = answer.certificates()
    assert set(names_of(certificate)) == set(wanted)
    again = post(
        live,
        csr(names=wanted, subject="printer-17"),
        holder=Holder(key, certificate),
        path="simplereenroll",
    )
    assert again.status == 200


@pytest.mark.row("EST-161", "EST-148")
def test_any_key_type_of_the_profile_is_taken_and_no_other(
    make_live: Callable[[str], Live],
) -> None:
    live = make_live('\n[profiles.device]\nkeys = ["ec-p256", "rsa-2048"]\n')
    handover = live.invite("device")
    answer = post(live, csr(key=ec.generate_private_key(ec.SECP384R1())), by=handover)
    assert answer.status == 400
    assert b"ec-p256, rsa-2048" in answer.body
    key = rsa.generate_private_key(65537, 2048)
    assert post(live, csr(key=key), by=handover).status == 200


@pytest.mark.row("EST-162")
def test_attributes_that_nobody_knows_are_ignored_in_a_csr(shared: Live) -> None:
    unknown = attribute("2.999.1", b"\x0c\x01x")
    body = raw_csr(unknown, attribute("1.3.6.1.1.1.1.22", b"\x06\x01\x2a"), key=new_key())
    assert post(shared, body, by=shared.invite("device")).status == 200
    assert CHALLENGE_PASSWORD not in read(get(shared, "csrattrs"))[0]
