"""DER written by hand, where a library would cost a copy or a millisecond. Values in, bytes out."""

from datetime import datetime

SEQUENCE, INTEGER, BIT_STRING, OCTET_STRING = 0x30, 0x02, 0x03, 0x04
ENUMERATED, UTC_TIME, GENERALIZED_TIME = 0x0A, 0x17, 0x18


def tlv(tag: int, content: bytes) -> bytes:
    """Return one element."""
    return bytes((tag,)) + length(len(content)) + content


def length(size: int) -> bytes:
    """Return the length octets for `size` octets of contents."""
    if size < 0x80:
        return bytes((size,))
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(octets),)) + octets


def contents(der: bytes, at: int) -> tuple[int, int]:
    """Return where the contents of the element at `at` begin and end; `der` is our own."""
    size, start = der[at + 1], at + 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[at + 2 : start], "big")
    return start, start + size


def bit_string(octets: bytes) -> bytes:
    """Return a BIT STRING of whole octets."""
    return tlv(BIT_STRING, b"\0" + octets)


def generalized_time(moment: datetime) -> bytes:
    """Return a GeneralizedTime of whole seconds, UTC."""
    return tlv(GENERALIZED_TIME, f"{moment:%Y%m%d%H%M%SZ}".encode())


def time(moment: datetime) -> bytes:
    """Return a Time as X.509 has it: UTCTime through 2049, then GeneralizedTime. RFC 5280 §4.1.2.5.

    UTC, whole seconds.
    """
    if moment.year < 2050:
        return tlv(UTC_TIME, f"{moment:%y%m%d%H%M%SZ}".encode())
    return generalized_time(moment)
