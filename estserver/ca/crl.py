"""CRLs (RFC 5280 §5) in DER, laid out piece by piece. No policy, no I/O.

`cryptography` builds a CRL out of one object for each entry: a million of them cost many seconds
and most of a gigabyte, anew for each CRL. Here an entry is its bytes, made once and never touched
again: a CRL is a head, its entries as they are, and a tail. Byte for byte what `cryptography`
builds of the same content, which the tests prove.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache

from cryptography import x509
from cryptography.hazmat import asn1

from estserver.ca import der
from estserver.model import RevocationReason

CHUNK_BYTES = 1 << 20
"""How long a run of entries gets before the next one is begun: what two CRLs share."""

_CRL_EXTENSIONS = 0xA0
_VERSION_2 = b"\x02\x01\x01"
_CRITICAL = b"\x01\x01\xff"
REMOVED = "removeFromCRL"
"""Stands for a reason in delta CRLs: the hold of this certificate has ended. RFC 5280 §5.3.1."""
_REASONS = {
    reason: x509.CRLReason(x509.ReasonFlags(reason)).public_bytes()
    for reason in (*RevocationReason, REMOVED)
    # RFC 5280 §5.3.1: "SHOULD be absent instead of using the unspecified (0) reasonCode value".
    if reason != RevocationReason.UNSPECIFIED
}
_WITHIN_HOUR = [f"{minute:02}{second:02}Z".encode() for minute in range(60) for second in range(60)]
_SERIAL_DIGITS = 40

Row = tuple[str, int, str]
"""One revocation as the database has it: serial (hex), seconds since 1970, reason."""


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of a CRL as bytes, in chunks. Longer ones share the chunks of shorter ones."""

    chunks: tuple[bytes, ...] = ()
    size: int = 0
    count: int = 0

    def plus(self, more: bytes, count: int) -> "Entries":
        """Return these entries and after them `count` more, DER."""
        chunks = self.chunks
        if chunks and len(chunks[-1]) + len(more) <= CHUNK_BYTES:
            chunks = (*chunks[:-1], chunks[-1] + more)
        elif more:
            chunks = (*chunks, more)
        return Entries(chunks, self.size + len(more), self.count + count)

    def after(self, offset: int) -> Iterator[bytes]:
        """Yield what stands from byte `offset` on."""
        for chunk in self.chunks:
            if offset < len(chunk):
                yield chunk[offset:] if offset > 0 else chunk
            offset -= len(chunk)


def encode(rows: Iterable[Row]) -> bytes:
    """Return the entries of `rows` one after another, DER. RFC 5280 §5.3."""
    frames: dict[tuple[int, str], tuple[Sequence[bytes], bytes, bytes]] = {}
    entries = []
    for serial, at, reason in rows:
        hour, second = divmod(at, 3600)
        frame = frames.get((hour, reason))
        if frame is None:
            frame = frames[hour, reason] = _frame(hour, reason)
        heads, time, tail = frame
        number = bytes.fromhex(serial)
        if len(number) * 2 != _SERIAL_DIGITS or not 0 < number[0] < 0x80:
            value = int(serial, 16)
            number = value.to_bytes(value.bit_length() // 8 + 1, "big")
        entries.append(heads[len(number)] + number + time + _WITHIN_HOUR[second] + tail)
    return b"".join(entries)


def _frame(hour: int, reason: str) -> tuple[Sequence[bytes], bytes, bytes]:
    """Return what entries of an hour and reason share.

    That is, by the serial's length, all before the serial; the time up to its minutes; the rest.
    """
    day, hour_of_day = divmod(hour, 24)
    time = _midnight(day) + b"%02d" % hour_of_day
    tail = _because(reason)
    return _heads(len(time) + len(_WITHIN_HOUR[0]) + len(tail)), time, tail


@cache
def _because(reason: str) -> bytes:
    if reason not in _REASONS:
        return b""
    return der.tlv(der.SEQUENCE, _extension(x509.CRLReason.oid, _REASONS[reason]))


@cache
def _heads(rest: int) -> Sequence[bytes]:
    """Return, by the length of its serial, how an entry begins after whose serial `rest` stands."""
    return [
        bytes((der.SEQUENCE, 2 + length + rest, der.INTEGER, length))
        for length in range(_SERIAL_DIGITS // 2 + 2)
    ]


@lru_cache(maxsize=4096)
def _midnight(day: int) -> bytes:
    """Return the Time of a day since 1970 without its hours, minutes and seconds."""
    return der.time(datetime.fromtimestamp(day * 86400, UTC))[: -len("000000Z")]


def listed(entries: bytes, since: datetime) -> Iterator[tuple[str, int]]:
    """Yield serial and time (as in `Row`) of the entries dated `since` or later."""
    horizon = f"{since:%Y%m%d%H%M%SZ}".encode()
    at = 0
    while at < len(entries):
        number = at + 4
        time = number + entries[at + 3]
        at += 2 + entries[at + 1]
        digits = entries[time + 2 : time + 2 + entries[time + 1]]
        if entries[time] == der.UTC_TIME:
            digits = (b"20" if digits < b"50" else b"19") + digits
        if digits >= horizon:
            serial = int.from_bytes(entries[number:time], "big")
            moment = datetime.strptime(digits.decode(), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
            yield f"{serial:0{_SERIAL_DIGITS}x}", int(moment.timestamp())


@dataclass(frozen=True, slots=True)
class Scope:
    """What a CRL says about itself besides its entries.

    `algorithm`: the AlgorithmIdentifier of the signature, DER. `extensions` are all but the number,
    in the order in which they shall stand after it.
    """

    issuer: x509.Certificate
    algorithm: bytes
    extensions: tuple[x509.Extension[x509.ExtensionType], ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """A CRL without its entries: they go between `head` and `tail`."""

    head: bytes
    tail: bytes

    def around(self, entries: Iterable[bytes]) -> tuple[bytes, ...]:
        """Return the pieces of the whole."""
        return (self.head, *entries, self.tail)


def lay_out(
    scope: Scope, number: int, this_update: datetime, next_update: datetime, entries_size: int
) -> Frame:
    """Return the frame of a TBSCertList, to be signed around `entries_size` bytes of entries."""
    own_key = scope.issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_key)
    extensions = b"".join(
        _extension(extension.oid, extension.value.public_bytes(), critical=extension.critical)
        for extension in (
            x509.Extension(authority.oid, critical=False, value=authority),
            x509.Extension(x509.CRLNumber.oid, critical=False, value=x509.CRLNumber(number)),
            *scope.extensions,
        )
    )
    tail = der.tlv(_CRL_EXTENSIONS, der.tlv(der.SEQUENCE, extensions))
    head = _VERSION_2 + scope.algorithm + scope.issuer.subject.public_bytes()
    head += der.time(this_update) + der.time(next_update)
    if entries_size:
        # RFC 5280 §5.1.2.6: without any, "the revoked certificates list MUST be absent".
        head += bytes((der.SEQUENCE,)) + der.length(entries_size)
    return Frame(
        bytes((der.SEQUENCE,)) + der.length(len(head) + entries_size + len(tail)) + head, tail
    )


def complete(tbs: Frame, entries_size: int, algorithm: bytes, signature: bytes) -> Frame:
    """Return the frame of the signed CertificateList."""
    tail = tbs.tail + algorithm + der.bit_string(signature)
    size = len(tbs.head) + entries_size + len(tail)
    return Frame(bytes((der.SEQUENCE,)) + der.length(size) + tbs.head, tail)


def take_apart(whole: Frame) -> tuple[Frame, bytes]:
    """Return the frame of the TBSCertList that `complete` was given, and the signature."""
    start, _ = der.contents(whole.head, 0)
    _, extensions = der.contents(whole.tail, 0)
    _, algorithm = der.contents(whole.tail, extensions)
    bits, _ = der.contents(whole.tail, algorithm)
    return Frame(whole.head[start:], whole.tail[:extensions]), whole.tail[bits + 1 :]


def shard_point(url: str) -> x509.IssuingDistributionPoint:
    """Say that a CRL holds only what points to `url`, and no CA certificates. RFC 5280 §5.2.5."""
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)],
        relative_name=None,
        only_contains_user_certs=True,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )


def freshest(url: str) -> x509.FreshestCRL:
    """Say where the delta CRL of a CRL is. RFC 5280 §5.2.6."""
    name = x509.UniformResourceIdentifier(url)
    return x509.FreshestCRL([x509.DistributionPoint([name], None, None, None)])


def _extension(oid: x509.ObjectIdentifier, value: bytes, *, critical: bool = False) -> bytes:
    return der.tlv(
        der.SEQUENCE, asn1.encode_der(oid) + _CRITICAL * critical + der.tlv(der.OCTET_STRING, value)
    )
