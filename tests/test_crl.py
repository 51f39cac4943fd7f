"""CRLs laid out by hand: byte for byte what the library builds of the same content."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.ca import crl
from estserver.ca.crl import Entries, Scope
from estserver.ca.issuer import Issuer, StatusURLs, signature_hash
from estserver.ca.keys import generate_key
from estserver.model import KeyType, RevocationReason
from tests.status_driver import authority

THIS_UPDATE = datetime(2026, 11, 23, 4, 50, 27, tzinfo=UTC)
NEXT_UPDATE = THIS_UPDATE + timedelta(days=7)
URL = "http://pki.example.ac.jp/crl/issuing/person.crl"
KEYS = {kind: generate_key(kind) for kind in (KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048)}


def make_issuer(kind: KeyType) -> Issuer:
    key = KEYS[kind]
    root = authority("Root", key)
    return Issuer("issuing", (authority("CA", key, (root, key)), root), key, StatusURLs("", "", ""))


def rows(count: int, seed: int = 5280) -> list[crl.Row]:
    """Revocations of every reason, with serials of every length, over many years."""
    dice = random.Random(seed)
    return [
        (
            f"{dice.getrandbits(dice.choice((1, 8, 127, 128, 151, 152, 158, 159))) or 1:040x}",
            dice.randrange(946684800, 2840140800),
            dice.choice(list(RevocationReason)).value,
        )
        for _ in range(count)
    ]


def whole(
    issuer: Issuer, entries: Entries, *extensions: x509.Extension[x509.ExtensionType]
) -> bytes:
    scope = Scope(issuer.certificate, issuer.algorithm, extensions)
    tbs = crl.lay_out(scope, 4711, THIS_UPDATE, NEXT_UPDATE, entries.size)
    signature = issuer.sign_crl(tbs.around(entries.chunks))
    frame = crl.complete(tbs, entries.size, issuer.algorithm, signature)
    assert crl.take_apart(frame) == (tbs, signature)
    return b"".join(frame.around(entries.chunks))


def built(
    issuer: Issuer,
    revoked: Sequence[crl.Row],
    *extensions: x509.Extension[x509.ExtensionType],
) -> x509.CertificateRevocationList:
    """Let `cryptography` build the same."""
    own_key = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    builder = (
        x509.CertificateRevocationListBuilder(revoked_certificates=[entry(*r) for r in revoked])
        .issuer_name(issuer.certificate.subject)
        .last_update(THIS_UPDATE)
        .next_update(NEXT_UPDATE)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_key.value), False
        )
        .add_extension(x509.CRLNumber(4711), False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    key = next(key for key in KEYS.values() if key.public_key() == issuer.certificate.public_key())
    return builder.sign(key, signature_hash(key))


def entry(serial: str, at: int, reason: str) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(int(serial, 16))
        .revocation_date(datetime.fromtimestamp(at, UTC))
    )
    if reason != "unspecified":
        builder = builder.add_extension(x509.CRLReason(x509.ReasonFlags(reason)), critical=False)
    return builder.build()


@pytest.mark.parametrize("count", [0, 1, 3, 5, 1000, 20000])
@pytest.mark.parametrize("kind", list(KEYS))
def test_the_bytes_are_those_of_the_librarys_builder(kind: KeyType, count: int) -> None:
    if count == 20000 and kind is not KeyType.EC_P256:
        return
    issuer, revoked = make_issuer(kind), rows(count)
    made = whole(issuer, Entries().plus(crl.encode(revoked), count))
    expected = built(issuer, revoked)
    assert x509.load_der_x509_crl(made).tbs_certlist_bytes == expected.tbs_certlist_bytes
    if kind is KeyType.RSA_2048:
        # Signatures of RSA are the same each time; those of ECDSA are not.
        assert made == expected.public_bytes(Encoding.DER)
    key = issuer.certificate.public_key()
    assert x509.load_der_x509_crl(made).is_signature_valid(key)  # type: ignore[arg-type]  # ours is one that signs


def test_shards_and_deltas_are_those_of_the_librarys_builder() -> None:
    issuer, revoked = make_issuer(KeyType.RSA_2048), rows(7)
    entries = Entries().plus(crl.encode(revoked), 7)
    point, freshest = crl.shard_point(URL), crl.freshest(URL)
    delta = x509.DeltaCRLIndicator(4700)
    for extensions in (
        [x509.Extension(point.oid, True, point)],
        [x509.Extension(freshest.oid, False, freshest)],
        [x509.Extension(delta.oid, True, delta), x509.Extension(point.oid, True, point)],
    ):
        made = whole(issuer, entries, *extensions)
        assert made == built(issuer, revoked, *extensions).public_bytes(Encoding.DER)


def test_times_from_2050_on_are_generalized() -> None:
    issuer = make_issuer(KeyType.RSA_2048)
    edge = int(datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
    revoked = [(f"{n + 1:040x}", edge + n, "superseded") for n in range(3)]
    made = whole(issuer, Entries().plus(crl.encode(revoked), 3))
    assert made == built(issuer, revoked).public_bytes(Encoding.DER)
    assert list(crl.listed(crl.encode(revoked), datetime(2050, 1, 1, tzinfo=UTC))) == [
        (f"{n + 1:040x}", edge + n) for n in (1, 2)
    ]


def test_entries_grow_at_their_end_and_share_what_stands_before() -> None:
    revoked = rows(60_000)
    grown = Entries()
    for start in range(0, len(revoked), 500):
        longer = grown.plus(crl.encode(revoked[start : start + 500]), 500)
        assert longer.chunks[: len(grown.chunks) - 1] == grown.chunks[:-1]
        grown = longer
    joined = crl.encode(revoked)
    assert b"".join(grown.chunks) == joined
    assert (grown.size, grown.count) == (len(joined), 60_000)
    assert max(map(len, grown.chunks)) <= crl.CHUNK_BYTES
    for offset in (0, 1, crl.CHUNK_BYTES - 1, crl.CHUNK_BYTES, grown.size - 1, grown.size):
        assert b"".join(grown.after(offset)) == joined[offset:]


def test_what_is_listed_is_found_again_by_its_date() -> None:
    revoked = rows(2000)
    entries = crl.encode(revoked)
    for at in (0, 1_000_000_000, 2_000_000_000, 2_524_607_999, 2_524_608_000):
        since = datetime.fromtimestamp(at, UTC)
        assert list(crl.listed(entries, since)) == [row[:2] for row in revoked if row[1] >= at]


def test_a_key_that_does_not_sign_what_it_shows_is_found_out() -> None:
    issuer = make_issuer(KeyType.EC_P256)
    signature = issuer.sign_crl((b"some", b"thing"))
    assert issuer.vouches_for((b"something",), signature)
    assert not issuer.vouches_for((b"anything",), signature)
    other = ec.generate_private_key(ec.SECP256R1()).sign(
        b"something", ec.ECDSA(signature_hash(KEYS[KeyType.EC_P256]))
    )
    assert not issuer.vouches_for((b"something",), other)
