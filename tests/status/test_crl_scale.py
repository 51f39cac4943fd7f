"""CRLs of many entries, in shards and deltas, on two nodes."""

import time
import tracemalloc
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from estserver.ca import crl as layout
from estserver.errors import Fault, NotFound
from estserver.model import KeyType
from estserver.status import StatusAuthority
from estserver.store.tables import crl_entries
from estserver.store.tables import crls as crl_table
from tests.status.judging import GOOD, REVOKED, lint, parsed
from tests.status_driver import LIFETIME, House, question, revoke_in_bulk, run

HOUR = timedelta(hours=1)


# -- strangers -------------------------------------------------------------------------------------


def test_asking_for_crls_that_there_are_not_fills_no_memory(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    house.status.publish("issuing")

    def ask(count: int) -> None:
        for number in range(count):
            with pytest.raises(NotFound):
                house.status.crl("issuing", f"{number:08}" * 500)

    ask(10)
    tracemalloc.start()
    try:
        ask(300)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What was asked for is 1.2 MB.
    assert held < 300_000


# -- many entries ----------------------------------------------------------------------------------


@pytest.mark.row("INC-25", "I5", "I6")
@pytest.mark.timeout(1800)
def test_one_more_revocation_adds_one_entry_however_long_the_list_is(
    make_house: Callable[..., House], request: pytest.FixtureRequest
) -> None:
    full = bool(request.config.getoption("--full"))
    house = make_house()
    house.issue("first")
    count = 1_000_000 if full else 10_000
    serials = revoke_in_bulk(house, count)
    started = time.thread_time()
    first = house.status.publish("issuing")
    cold = time.thread_time() - started
    assert first.entries.count == count
    listed = parsed(first.der)
    assert len(listed) == count
    for serial in (serials[0], serials[count // 2], serials[-1]):
        assert listed.get_revoked_certificate_by_serial_number(serial) is not None
    certificate, enrollment = house.issue("one more")
    house.revoke(enrollment)
    started = time.thread_time()
    second = house.status.publish("issuing")
    again = time.thread_time() - started
    assert second.entries.count == count + 1
    # What was there is not made again: all chunks but the last are the same objects.
    shared = zip(first.entries.chunks[:-1], second.entries.chunks, strict=False)
    assert all(one is other for one, other in shared)
    runs = house.store.read(
        lambda tx: (
            tx.connection.execute(
                sa.select(sa.func.length(crl_entries.c.entries)).order_by(crl_entries.c.position)
            )
            .scalars()
            .all()
        )
    )
    assert runs[-1] < 64, "one small row"
    assert max(runs) <= layout.CHUNK_BYTES
    there = parsed(second.der)
    assert there.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    assert house.another_process().crl("issuing").der == second.der
    if full:
        assert cold < 8
        assert again < 0.5


def test_what_is_known_is_not_read_again(make_house: Callable[..., House]) -> None:
    house = make_house()
    other = house.another_process()
    house.issue("first")
    revoke_in_bulk(house, 1000)
    first = house.status.publish("issuing")
    taken = other.crl("issuing")
    assert taken.der == first.der
    house.store.write(
        lambda tx: tx.change(
            sa.update(crl_entries).where(crl_entries.c.position == 0).values(entries=b"gone")
        )
    )
    _, enrollment = house.issue("host")
    house.revoke(enrollment)
    with pytest.raises(Exception, match="overtaking"):
        house.status.publish("issuing")
    assert other.crl("issuing") is taken


def test_a_damaged_list_is_never_given_and_made_anew(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.issue("first")
    revoke_in_bulk(house, 100)
    published = house.status.publish("issuing")
    spoiled = bytearray(b"".join(published.entries.chunks))
    spoiled[10] ^= 1
    house.store.write(lambda tx: tx.change(sa.update(crl_entries).values(entries=bytes(spoiled))))
    stranger = house.another_process()
    with pytest.raises(Fault, match="damaged"):
        stranger.crl("issuing")
    healed = stranger.publish("issuing")
    assert healed.number == published.number + 1
    assert len(parsed(healed.der)) == 100
    assert house.status.crl("issuing").der == healed.der


def test_a_crl_of_an_older_release_is_served_until_the_next_one_is_made(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    _, enrollment = house.issue("host")
    house.revoke(enrollment)
    published = house.status.publish("issuing")
    old = {"head": published.der, "tail": b"", "generation": 0, "entries_size": 0}
    house.store.write(lambda tx: tx.change(sa.update(crl_table).values(number=41, **old)))
    upgraded = house.another_process()
    assert upgraded.crl("issuing").der == published.der
    renewed = upgraded.publish("issuing")
    assert renewed.number == 42
    assert len(parsed(renewed.der)) == 1


# -- shards and deltas -----------------------------------------------------------------------------


def test_rfc5280_5_2_5_certificates_of_a_profile_point_to_a_crl_of_their_own(
    make_house: Callable[..., House],
) -> None:
    house = make_house(own_crls=("device",))
    device, enrollment = house.issue("device", "device")
    server, other = house.issue("localhost", "_tls")
    house.revoke(enrollment)
    house.revoke(other)
    published = {crl.scope: parsed(crl.der) for crl in house.status.publish_due()}
    assert set(published) == {"", "device"}
    assert {entry.serial_number for entry in published[""]} == {
        device.serial_number,
        server.serial_number,
    }
    assert {entry.serial_number for entry in published["device"]} == {device.serial_number}
    (point,) = device.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    shard = published["device"].extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    assert shard.critical
    assert shard.value.full_name == point.full_name
    assert shard.value.only_contains_user_certs
    with pytest.raises(x509.ExtensionNotFound):
        published[""].extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    trust = house.write_pem("trust.pem", house.certificate(), house.root)
    leaf = house.write_pem("leaf.pem", device)
    pem = house.write_der("shard.pem", published["device"].public_bytes(Encoding.PEM))
    with pytest.raises(AssertionError, match="certificate revoked"):
        run("openssl", "verify", "-crl_check", "-CRLfile", pem, "-CAfile", trust, leaf)
    good, _ = house.issue("good", "device")
    leaf = house.write_pem("good.pem", good)
    run("openssl", "verify", "-crl_check", "-CRLfile", pem, "-CAfile", trust, leaf)


def test_a_shard_is_published_for_as_long_as_certificates_may_point_to_it(
    make_house: Callable[..., House],
) -> None:
    house = make_house(own_crls=("device",))
    house.status.publish_due()
    del house.profiles["device"]
    restarted = house.another_process()
    assert [crl.scope for crl in restarted.publish_due()] == ["", "device"]
    with pytest.raises(NotFound):
        restarted.crl("issuing", "person")


def test_rfc5280_5_2_4_a_delta_lists_what_its_base_lacks(make_house: Callable[..., House]) -> None:
    house = make_house(delta_crls=True)
    _, enrollment = house.issue("before")
    house.revoke(enrollment)
    base = house.status.publish("issuing")
    after, enrollment = house.issue("after")
    house.revoke(enrollment)
    full = house.status.publish("issuing")
    assert full.delta is not None
    delta = parsed(b"".join(full.delta))
    assert [entry.serial_number for entry in delta] == [after.serial_number]
    indicator = delta.extensions.get_extension_for_class(x509.DeltaCRLIndicator)
    assert indicator.critical
    assert indicator.value.crl_number == base.number
    number = delta.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    assert number == full.number == base.number + 1
    freshest = parsed(full.der).extensions.get_extension_for_class(x509.FreshestCRL)
    assert not freshest.critical
    assert str(next(iter(freshest.value)).full_name[0].value).endswith("/delta/issuing.crl")
    with pytest.raises(x509.ExtensionNotFound):
        delta.extensions.get_extension_for_class(x509.FreshestCRL)
    house.clock.offset += LIFETIME / 2
    renewed = house.status.publish("issuing")
    assert renewed.delta is not None
    assert len(parsed(b"".join(renewed.delta))) == 0
    assert renewed.base_number == renewed.number


@pytest.mark.row("INC-29")
@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.RSA_2048])
def test_openssl_gnutls_and_pkilint_accept_shards_and_deltas(
    make_house: Callable[..., House], key_type: KeyType
) -> None:
    house = make_house(own_crls=("device",), delta_crls=True, key_type=key_type)
    house.status.publish_due()
    _, enrollment = house.issue("device", "device")
    house.revoke(enrollment)
    chain = house.write_pem("chain.pem", house.certificate(), house.root)
    for crl in house.status.publish_due():
        assert crl.delta is not None
        for kind, der in (("full", crl.der), ("delta", b"".join(crl.delta))):
            file = house.write_der(f"{crl.scope}-{kind}.crl", der)
            said = run("openssl", "crl", "-inform", "DER", "-in", file, "-CAfile", chain, "-text")
            assert "verify OK" in said
            said = run("certtool", "--crl-info", "--inder", "--infile", file)
            assert "Revoked certificates (1)" in said
            lint("lint_crl", "lint", "-t", "CRL", "-p", "PKIX", "-s", "WARNING", file)


# -- two nodes -------------------------------------------------------------------------------------


@pytest.mark.row("I5", "INC-25")
def test_revoked_shows_on_every_node_within_ten_seconds_and_good_at_once(
    make_house: Callable[..., House], make_database: Callable[[], str]
) -> None:
    house = make_house(url=make_database())
    responder = house.install_responder()
    node = house.another_process()
    node.use_responder("issuing", responder, house.status._answers._responders["issuing"]._key)
    certificate, enrollment = house.issue("host")
    asked = question(certificate, house.certificate())

    def status(authority: StatusAuthority) -> object:
        return ocsp.load_der_ocsp_response(authority.answer(asked).der).certificate_status

    assert status(house.status) is status(node) is GOOD
    assert node.answer_at_hand(asked) is not None
    house.revoke(enrollment)
    # Where it was revoked, it shows in the same moment.
    assert house.status.answer_at_hand(asked) is None
    assert status(house.status) is REVOKED
    # HTTP caches may hold an answer for five seconds more than the node does.
    house.clock.offset += timedelta(seconds=5)
    assert status(node) is REVOKED
    for authority in (house.status, node):
        assert len(parsed(authority.publish("issuing").der)) == 1


def test_answers_that_are_over_take_no_memory(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.install_responder()
    for _ in range(3):
        house.status.answer(question(house.issue("host")[0], house.certificate()))
    at_hand = house.status._answers._at_hand
    assert len(at_hand) == 3
    house.clock.offset += timedelta(seconds=4)
    asked = question(house.issue("host")[0], house.certificate())
    house.status.answer(asked)
    assert list(at_hand) == [asked]


def test_only_answers_that_hold_are_at_hand(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.install_responder()
    certificate, _ = house.issue("host")
    plain = question(certificate, house.certificate())
    fresh = question(certificate, house.certificate(), nonce=bytes(32))
    for asked, kept in ((plain, True), (fresh, False), (b"garbage", False)):
        assert house.status.answer_at_hand(asked) is None
        answer = house.status.answer(asked)
        assert house.status.answer_at_hand(asked) == (answer if kept else None)
    house.clock.offset += timedelta(seconds=4)
    assert house.status.answer_at_hand(plain) is None
    house.status.answer(plain)
    house.clock.offset -= HOUR
    assert house.status.answer_at_hand(plain) is None, "made in the future"
    house.clock.offset += HOUR
    house.install_responder()
    assert house.status.answer_at_hand(plain) is None, "made by another responder"
