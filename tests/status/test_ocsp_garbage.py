"""OCSP requests that are none: malformed, and never an exception."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver.errors import Error
from tests.status.judging import GOOD, MALFORMED
from tests.status_driver import House, question


def test_garbage_is_malformed_and_never_an_exception(answering: House) -> None:
    certificate, _ = answering.issue("host")
    asked = question(certificate, answering.certificate())
    for garbage in (
        b"",
        b"\x30",
        b"\x30\x00",
        b"\x05\x00",
        b"\x30\x80\x00\x00",
        asked + b"\x00",
        asked[:-1],
        b"\x30\x84\xff\xff\xff\xff" + asked,
        b"\x30" * 4000,
        bytes.fromhex("30023000"),
        bytes.fromhex("300430023000"),
        bytes.fromhex("30043002a000"),
        certificate.public_bytes(Encoding.DER),
    ):
        assert answering.ask(garbage).response_status is MALFORMED


def test_a_request_over_four_kibibytes_is_malformed(answering: House) -> None:
    certificate, _ = answering.issue("host")
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        certificate, answering.certificate(), hashes.SHA256()
    )
    for size, status in ((3000, ocsp.OCSPResponseStatus.SUCCESSFUL), (4096, MALFORMED)):
        ballast = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(size))
        asked = builder.add_extension(ballast, critical=False).build()
        assert answering.ask(asked.public_bytes(Encoding.DER)).response_status is status


def test_only_version_1_is_understood_and_a_requestor_may_name_itself(answering: House) -> None:
    certificate, _ = answering.issue("host")
    outer = asn1.decode_der(asn1.TLV, question(certificate, answering.certificate()))
    requests = bytes(asn1.decode_der(asn1.TLV, bytes(outer.data)).data)
    requestor = bytes.fromhex("a1078105") + b"a@b.c"
    for before, status in (
        (bytes.fromhex("a003020100"), ocsp.OCSPResponseStatus.SUCCESSFUL),
        (bytes.fromhex("a003020101"), MALFORMED),
        (requestor, ocsp.OCSPResponseStatus.SUCCESSFUL),
        (bytes.fromhex("a003020100") + requestor, ocsp.OCSPResponseStatus.SUCCESSFUL),
        (requestor + bytes.fromhex("a003020100"), MALFORMED),
    ):
        assert answering.ask(sequence(sequence(before + requests))).response_status is status


def sequence(content: bytes) -> bytes:
    length = (len(content),) if len(content) < 128 else (0x81, len(content))
    return bytes((0x30, *length)) + content


def mutants(seed: bytes, count: int, dice: random.Random) -> Iterator[bytes]:
    """Yield `count` damaged copies of `seed`: bytes changed, cut, doubled, inserted."""
    for _ in range(count):
        mutant = bytearray(seed)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(mutant) or 1)
            match dice.randrange(4):
                case 0 if mutant:
                    mutant[at] = dice.randrange(256)
                case 1:
                    del mutant[at : at + dice.randint(1, 8)]
                case 2:
                    mutant[at:at] = mutant[at : at + dice.randint(1, 16)]
                case _:
                    mutant[at:at] = dice.randbytes(dice.randint(1, 4))
        yield bytes(mutant)


@pytest.mark.row("INC-9")
def test_two_thousand_mutations_never_raise_and_never_make_good_of_another_serial(
    answering: House,
) -> None:
    certificate, _ = answering.issue("host")
    asked = question(certificate, answering.certificate(), nonce=bytes(16))
    dice = random.Random(6960)
    seen = Counter[str]()
    for mutant in mutants(asked, 2000, dice):
        try:
            response = answering.ask(mutant)
        except Error as error:
            pytest.fail(f"{error!r} for {mutant.hex()}")
        seen[response.response_status.name] += 1
        if response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL:
            for single in response.responses:
                is_ours = single.serial_number == certificate.serial_number
                assert (single.certificate_status is GOOD) == is_ours
    assert set(seen) <= {"SUCCESSFUL", "MALFORMED_REQUEST", "UNAUTHORIZED"}
    assert seen["MALFORMED_REQUEST"] > 500
    assert seen["SUCCESSFUL"] > 0
