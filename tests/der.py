"""DER octet by octet, for what no library would encode."""

from cryptography import x509
from cryptography.hazmat import asn1


def tlv(tag: int, *parts: bytes) -> bytes:
    """Encode one value."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = (size.bit_length() + 7) // 8
    return bytes([tag, 0x80 | octets]) + size.to_bytes(octets) + content


def oid(dotted: str) -> bytes:
    """Encode an OBJECT IDENTIFIER."""
    return asn1.encode_der(x509.ObjectIdentifier(dotted))


def attribute(dotted: str, *values: bytes) -> bytes:
    """Encode an Attribute of DER values."""
    return tlv(0x30, oid(dotted), tlv(0x31, *sorted(values)))
