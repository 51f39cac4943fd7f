"""How a PKCS#10 travels: base64 of DER, plain DER or PEM in; the DER of one SEQUENCE out.

Part of the wall of `estserver.csr`, through which it is imported. Each refusal says what is
wrong with the wrapping (EST-075 to EST-079): it is the commonest mistake of hand-made clients.
"""

import binascii
import re
from enum import StrEnum

from estserver.errors import BadCSR

MAX_CSR_BYTES = 16 * 1024
"""Of the DER. An RSA-4096 CSR with 100 host names of 60 characters has 8 kB."""
_MAX_BODY_BYTES = 4 * MAX_CSR_BYTES

_WHITE_SPACE = b" \t\r\n\v\f"
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
_STRAY = re.compile(rb"[^A-Za-z0-9+/=]")
_NO_TEXT = re.compile(rb"[^\t-\r -~]")
_PEM_LABELS = frozenset({b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST"})
_SEQUENCE_TAG = b"\x30"
_INDEFINITE = 0x80
_MAX_PADDING = 2


class Form(StrEnum):
    """How a request body carries its PKCS#10; anything but `base64` is tolerance (EST-076)."""

    BASE64 = "base64"
    DER = "der"
    PEM = "pem"


def form_of(body: bytes) -> Form:
    """Tell how `body` is encoded, by its looks; says nothing about its being well-formed."""
    # A SEQUENCE begins like the digit 0; what tells them apart is that DER is no text.
    if body[:1] == _SEQUENCE_TAG and _NO_TEXT.search(body):
        return Form.DER
    return Form.PEM if b"-----BEGIN " in body else Form.BASE64


def decode_body(body: bytes) -> bytes:
    """Return the DER of exactly one SEQUENCE, which may yet be anything inside.

    `body`: base64 of DER with any white space, DER, or PEM with any text around it.
    Raises BadCSR: empty, too large, not base64, not one PEM block, not one SEQUENCE.
    RFC 7030 §4.2.1, RFC 8951 §3.1, RFC 7468 §7.
    """
    if len(body) > _MAX_BODY_BYTES:
        raise _too_large()
    match form_of(body):
        case Form.DER:
            der = body
        case Form.PEM:
            der = _decode_base64(_open_pem(body))
        case Form.BASE64:
            der = _decode_base64(body)
    if len(der) > MAX_CSR_BYTES:
        raise _too_large()
    _check_outermost(der)
    return der


def _too_large() -> BadCSR:
    return BadCSR(f"The request is larger than {MAX_CSR_BYTES} bytes.")


def _open_pem(body: bytes) -> bytes:
    """Return what stands between the lines of the one PEM block; text around it is ignored."""
    if b"PRIVATE KEY-----" in body:
        raise BadCSR(
            "This holds a private key, which must never leave its owner. "
            "Make a new key and send only the certificate request."
        )
    _, _, rest = body.partition(b"-----BEGIN ")
    label, _, rest = rest.partition(b"-----")
    if label not in _PEM_LABELS:
        raise BadCSR("The PEM block is not a CERTIFICATE REQUEST.")
    content, end, rest = rest.partition(b"-----END " + label + b"-----")
    if not end:
        raise BadCSR("The PEM block has no END line that fits its BEGIN line.")
    if b"-----BEGIN " in rest:
        raise BadCSR("The request holds more than one PEM block: send exactly one PKCS#10.")
    return content


def _decode_base64(text: bytes) -> bytes:
    """Decode base64 as RFC 4648 §4 has it, white space apart; refusals say what is wrong."""
    data = text.translate(None, _WHITE_SPACE)
    if not data:
        raise BadCSR("The request is empty: send one PKCS#10, base64 of DER.")
    symbols = data.rstrip(b"=")
    if not _BASE64.fullmatch(symbols):
        stray = _STRAY.search(symbols)
        if stray is None:
            raise BadCSR("The base64 goes on after its padding: send exactly one PKCS#10.")
        if stray[0] in b"-_":
            raise BadCSR("The base64 is of the URL-safe alphabet: use the one with + and /.")
        raise BadCSR(f"The body is not base64: it holds the byte 0x{stray[0].hex()}.")
    if len(data) % 4 or len(data) - len(symbols) > _MAX_PADDING:
        raise BadCSR("The base64 is cut short or its padding is wrong.")
    return binascii.a2b_base64(data, strict_mode=True)


def _check_outermost(der: bytes) -> None:
    """Refuse what is not one SEQUENCE from the first byte to the last, saying why."""
    if der[:1] != _SEQUENCE_TAG or len(der) < 2:
        raise BadCSR("The request is not a PKCS#10: it does not begin as a DER SEQUENCE.")
    first = der[1]
    if first == _INDEFINITE:
        raise BadCSR("The request is BER of indefinite length: DER is needed.")
    length = 2 + first if first < _INDEFINITE else _long_length(der, first & 0x7F)
    if length > len(der):
        raise BadCSR("The request is cut short.")
    if length < len(der):
        if der[length : length + 1] == _SEQUENCE_TAG:
            raise BadCSR("The body holds more than one request: send exactly one PKCS#10.")
        raise BadCSR(f"{len(der) - length} bytes follow the request: send exactly one PKCS#10.")


def _long_length(der: bytes, octets: int) -> int:
    return 2 + octets + int.from_bytes(der[2 : 2 + octets])
