"""Template: the to-be-signed bytes of one kind of certificate, with gaps for what varies.

Made from bytes that CertificateBuilder has encoded; subject, subjectAltName, key, serial and dates
are put in later, which takes a fiftieth of the time of building anew. A template proves itself when
it is made: it must give back, byte for byte, what it was made from and another specimen.
"""

import hashlib
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from estserver.errors import LintFailed
from estserver.model import Plan

_INTEGER, _OCTETS, _SEQUENCE, _EXTENSIONS = b"\x02", b"\x04", b"\x30", b"\xa3"
_UTC_TIME, _GENERALIZED_TIME = b"\x17", b"\x18"
_TRUE = b"\x01\x01\xff"
_NAMES = bytes.fromhex("0603551d11")
_KEY = bytes.fromhex("0603551d0e")
_KEY_IDENTIFIER = bytes.fromhex("301d0603551d0e04160414")
"""How a subjectKeyIdentifier begins that is a SHA-1: 20 octets follow."""
_FIRST_GENERALIZED_YEAR = 2050
_LONG = 0x80


def encode(tag: bytes, content: bytes) -> bytes:
    """Return the DER of one element."""
    size = len(content)
    if size < _LONG:
        return tag + bytes((size,)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return tag + bytes((_LONG | len(octets),)) + octets + content


def elements(content: bytes) -> Iterator[bytes]:
    """Yield the elements that stand one after the other; `content` is DER of our own making."""
    at = 0
    while at < len(content):
        _, end = _extent(content, at)
        yield content[at:end]
        at = end


def is_element(data: bytes) -> bool:
    """Tell whether `data` is one element, and nothing follows it."""
    return _extent(data, 0)[1] == len(data)


def content_of(element: bytes) -> bytes:
    """Return what is inside one element."""
    start, end = _extent(element, 0)
    return element[start:end]


def _extent(data: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the element at `at` begins and ends."""
    first = data[at + 1]
    if first < _LONG:
        return at + 2, at + 2 + first
    start = at + 2 + (first & 0x7F)
    return start, start + int.from_bytes(data[at + 2 : start])


Kind = tuple[str | int | None, ...]


def kind_of(plan: Plan) -> Kind:
    """Return what plans have in common whose certificates differ in the gaps of a template only.

    Extensions are told apart by identity, which is quick: profiles plan with the same objects
    always, and a template keeps those it was made with.
    """
    return (
        plan.profile if plan.own_crl else None,
        plan.publish_status,
        *(
            None if extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME else id(extension)
            for extension in plan.extensions
        ),
    )


class Template:
    """Splices to-be-signed certificates that differ from its specimens in the gaps only."""

    def __init__(self, specimens: tuple[tuple[Plan, x509.Certificate], ...]) -> None:
        """`specimens`: plans of one kind, and what CertificateBuilder made of each.

        Raises LintFailed: splicing does not give the same bytes.
        """
        plan, specimen = specimens[0]
        self._kept_for_their_identity = plan.extensions
        parts = list(elements(content_of(specimen.tbs_certificate_bytes)))
        self._version, _, algorithm, issuer, _, _, _, extensions = parts
        self._algorithm_and_issuer = algorithm + issuer
        self._extensions = _pieces(content_of(content_of(extensions)))
        for plan, certificate in specimens:
            if self.splice(plan, certificate.serial_number) != certificate.tbs_certificate_bytes:
                raise LintFailed("the template does not give what CertificateBuilder makes")

    def splice(self, plan: Plan, serial: int) -> bytes:
        """Return the to-be-signed bytes for `plan`, DER."""
        extensions = b"".join(
            piece if isinstance(piece, bytes) else piece(plan) for piece in self._extensions
        )
        content = (
            self._version,
            # One bit more than the number has, so that it is not read as negative.
            encode(_INTEGER, serial.to_bytes(serial.bit_length() // 8 + 1)),
            self._algorithm_and_issuer,
            _validity(plan.not_before, plan.not_after),
            plan.subject.public_bytes(),
            plan.spki,
            encode(_EXTENSIONS, encode(_SEQUENCE, extensions)),
        )
        return encode(_SEQUENCE, b"".join(content))


def alternative_names(certificate: bytes) -> bytes | None:
    """Return the value of the subjectAltName of a certificate of ours, DER; None: it has none."""
    tbs = next(elements(content_of(certificate)))
    *_, extensions = elements(content_of(tbs))
    for extension in elements(content_of(content_of(extensions))):
        if _holds_names(extension):
            *_, value = elements(content_of(extension))
            return content_of(value)
    return None


def _holds_names(extension: bytes) -> bool:
    # The header has two octets, or three.
    return extension.startswith(_NAMES, 2) or extension.startswith(_NAMES, 3)


def _pieces(extensions: bytes) -> list[bytes | Callable[[Plan], bytes]]:
    """Divide what is always the same from what depends on key and names."""
    pieces: list[bytes | Callable[[Plan], bytes]] = []
    for extension in elements(extensions):
        if extension.startswith(_KEY, 2):
            pieces.append(_key_identifier)
        elif _holds_names(extension):
            pieces.append(_names)
        elif pieces and isinstance(pieces[-1], bytes):
            pieces[-1] += extension
        else:
            pieces.append(extension)
    return pieces


def _key_identifier(plan: Plan) -> bytes:
    """RFC 5280 §4.2.1.2 (1): SHA-1 of the BIT STRING, without its count of unused bits."""
    algorithm, _ = _extent(plan.spki, 0)
    _, bits = _extent(plan.spki, algorithm)
    start, end = _extent(plan.spki, bits)
    digest = hashlib.sha1(plan.spki[start + 1 : end], usedforsecurity=False).digest()
    return _KEY_IDENTIFIER + digest


def _names(plan: Plan) -> bytes:
    for extension in plan.extensions:
        if extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME:
            critical = _TRUE if extension.critical else b""
            value = encode(_OCTETS, extension.value.public_bytes())
            return encode(_SEQUENCE, _NAMES + critical + value)
    raise LintFailed("the template has names, the plan has none")


@lru_cache(maxsize=256)
def _validity(not_before: datetime, not_after: datetime) -> bytes:
    return encode(_SEQUENCE, _time(not_before) + _time(not_after))


def _time(moment: datetime) -> bytes:
    """RFC 5280 §4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050 on."""
    if moment.year < _FIRST_GENERALIZED_YEAR:
        return encode(_UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return encode(_GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())
