"""The issuer: what is linted is what is signed, serials, keys on disk."""

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.ca.issuer import Issuer
from estserver.ca.keys import encrypt_key, generate_key, key_type_of, load_key
from estserver.errors import ConfigurationError, Fault, LintFailed
from estserver.files import write_private
from estserver.model import Draft, KeyType, Secret
from tests.live import new_key
from tests.parts import URLS, Hierarchy, make_ca
from tests.plans import issuer_of, plan_of

CA_KEYS = (
    KeyType.EC_P256,
    KeyType.EC_P384,
    KeyType.EC_P521,
    KeyType.RSA_2048,
    KeyType.RSA_3072,
    KeyType.RSA_4096,
)


# -- what is linted is what is signed ------------------------------------------------------------


@pytest.mark.row("EST-187", "EST-181")
@pytest.mark.parametrize("key_type", CA_KEYS)
def test_the_draft_is_byte_for_byte_what_is_signed(key_type: KeyType) -> None:
    ca = make_ca(key_type)
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    certificate = x509.load_der_x509_certificate(issuer.sign(draft))
    assert certificate.tbs_certificate_bytes == draft.tbs
    assert certificate.serial_number == draft.serial
    certificate.verify_directly_issued_by(ca.issuing.certificate)
    # RFC 5280 §4.1.1.2: the same algorithm inside and outside, octet for octet.
    algorithm = {
        "rsa": "300d06092a864886f70d01010b0500",
        "ec-p256": "300a06082a8648ce3d040302",
        "ec-p384": "300a06082a8648ce3d040303",
        "ec-p521": "300a06082a8648ce3d040304",
    }[key_type.value if key_type.rsa_bits is None else "rsa"]
    whole = certificate.public_bytes(Encoding.DER)
    assert whole.count(bytes.fromhex(algorithm)) == 2
    assert whole.endswith(certificate.signature)


def test_two_signatures_of_one_draft_differ_in_the_signature_alone(ca: Hierarchy) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    one, two = (x509.load_der_x509_certificate(issuer.sign(draft)) for _ in range(2))
    assert one.tbs_certificate_bytes == two.tbs_certificate_bytes
    assert one.signature != two.signature


def test_a_draft_of_another_issuer_is_not_signed(ca: Hierarchy) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    with pytest.raises(Fault, match="other"):
        issuer.sign(replace(draft, issuer="other"))


@pytest.mark.parametrize("damage", [b"", b"\x30\x00", b"\x30\x03\x02\x01\x01"])
def test_what_is_no_certificate_is_not_handed_out(ca: Hierarchy, damage: bytes) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    with pytest.raises((Fault, ValueError)):
        issuer.sign(replace(draft, tbs=damage))


def test_a_draft_that_is_not_one_element_is_not_handed_out(ca: Hierarchy) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    for tbs in (draft.tbs + b"\x05\x00", draft.tbs[:-1], draft.tbs + draft.tbs):
        with pytest.raises((Fault, ValueError)):
            issuer.sign(replace(draft, tbs=tbs))


def test_a_draft_that_names_another_issuer_inside_is_not_handed_out(ca: Hierarchy) -> None:
    draft = issuer_of(make_ca()).prepare(plan_of(ca))
    with pytest.raises(Fault, match="does not verify"):
        issuer_of(ca).sign(draft)


def test_a_draft_with_another_serial_than_its_record_is_not_handed_out(ca: Hierarchy) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    with pytest.raises(Fault, match="not the draft"):
        issuer.sign(replace(draft, serial=draft.serial + 1))


def test_a_key_store_that_signs_wrongly_puts_nothing_into_the_world(
    ca: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = issuer_of(ca)
    draft = issuer.prepare(plan_of(ca))
    monkeypatch.setattr(issuer, "_key", new_key())
    with pytest.raises(Fault, match="does not verify"):
        issuer.sign(draft)


def test_an_issuer_needs_the_key_of_its_certificate(ca: Hierarchy) -> None:
    with pytest.raises(ConfigurationError, match="do not belong together"):
        Issuer("issuing", ca.chain, new_key(), URLS)


def test_an_issuer_needs_the_certificate_of_a_ca(ca: Hierarchy) -> None:
    key = new_key()
    issuer = issuer_of(ca)
    leaf = x509.load_der_x509_certificate(issuer.sign(issuer.prepare(plan_of(ca, key=key))))
    with pytest.raises(ConfigurationError, match="not a CA's"):
        Issuer("leaf", (leaf, *ca.chain), key, URLS)


# -- serials -------------------------------------------------------------------------------------


@pytest.mark.row("INC-24", "EST-178")
def test_serials_are_random_positive_and_at_most_twenty_octets(ca: Hierarchy) -> None:
    asked = []

    def randbits(count: int) -> int:
        asked.append(count)
        return secrets.randbits(count)

    issuer_of(ca, randbits=randbits).prepare(plan_of(ca))
    assert asked == [159]
    serials = [secrets.randbits(asked[0]) for _ in range(10_000)]
    assert len(set(serials)) == len(serials)
    assert all(0 < serial < 1 << 159 for serial in serials)
    # The sign bit stays free, so that the DER INTEGER never needs a twenty-first octet.
    assert max(serial.bit_length() // 8 + 1 for serial in serials) == 20
    top = Counter(serial >> 155 for serial in serials)
    assert set(top) == set(range(16))
    assert all(480 < count < 780 for count in top.values())


@pytest.mark.row("INC-24", "EST-178")
@pytest.mark.parametrize("serial", [1, (1 << 64) - 1, (1 << 159) - 1])
def test_a_serial_of_the_wrong_length_is_never_signed(ca: Hierarchy, serial: int) -> None:
    issuer = issuer_of(ca, randbits=lambda _: serial)
    if serial == (1 << 159) - 1:
        assert issuer.prepare(plan_of(ca)).serial == serial
        return
    with pytest.raises(LintFailed, match="serial length"):
        issuer.prepare(plan_of(ca))


# -- keys on disk --------------------------------------------------------------------------------


def test_a_key_comes_back_from_its_file_under_its_passphrase_only(tmp_path: Path) -> None:
    key, path = new_key(), tmp_path / "deep/ca.key"
    write_private(path, encrypt_key(key, Secret("right")))
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path, Secret("right")).private_numbers() == key.private_numbers()
    with pytest.raises(ConfigurationError, match=r"ca\.key") as refused:
        load_key(path, Secret("wrong-passphrase"))
    assert "wrong-passphrase" not in str(refused.value)


def unreadable(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,  # noqa: ARG005 - called with a path
        unreadable,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_bytes(
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"
        ),
    ],
)
def test_a_file_that_holds_no_key_is_a_configuration_error(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "ca.key")
    with pytest.raises(ConfigurationError, match=r"ca\.key"):
        load_key(tmp_path / "ca.key", Secret("x"))


def test_the_server_makes_and_knows_every_type_but_ed25519() -> None:
    for key_type in (KeyType.EC_P256, KeyType.EC_P384, KeyType.EC_P521, KeyType.RSA_2048):
        assert key_type_of(generate_key(key_type)) is key_type
    with pytest.raises(ConfigurationError):
        generate_key(KeyType.ED25519)
    with pytest.raises(ConfigurationError):
        key_type_of(ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(ConfigurationError):
        key_type_of(rsa.generate_private_key(65537, 1024))


def test_a_draft_says_what_its_certificate_will_say(ca: Hierarchy) -> None:
    plan = plan_of(ca)
    draft = issuer_of(ca).prepare(plan)
    assert draft == Draft("issuing", draft.serial, draft.tbs, plan.not_before, plan.not_after)
