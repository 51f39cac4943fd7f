"""PyPI's `acme`, the library of certbot, as a judge that knows nothing of us."""

import pytest
from acme import client, messages
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from josepy import jwa
from josepy.jwk import JWKEC

from tests.live import Live, new_key
from tests.protocols.acme.wire import csr_for, eab


@pytest.fixture(autouse=True)
def trust(shared: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(shared.root))


def _client(
    live: Live,
    key: ec.EllipticCurvePrivateKey,
    account: messages.RegistrationResource | None = None,
) -> client.ClientV2:
    network = client.ClientNetwork(JWKEC(key=key), account=account, alg=jwa.ES256)
    directory = client.ClientV2.get_directory(f"{live.url('web')}/acme/directory", network)
    return client.ClientV2(directory, network)


def _register(live: Live, acme: client.ClientV2, *names: str) -> messages.RegistrationResource:
    handover = live.invite("server", names=tuple(f"dns:{name}" for name in names))
    kid, mac_key = eab(live, handover)
    assert acme.net.key is not None
    public = acme.net.key.public_key()
    binding = messages.ExternalAccountBinding.from_data(public, kid, mac_key, acme.directory)
    registration = messages.NewRegistration.from_data(
        email="root@example.org", terms_of_service_agreed=True, external_account_binding=binding
    )
    return acme.new_account(registration)


@pytest.mark.row("ACME-060", "ACME-077", "ACME-109", "ACME-146", "ACME-149", "ACME-152", "ACME-156")
def test_the_library_of_certbot_goes_from_eab_to_revocation(shared: Live) -> None:
    acme = _client(shared, new_key())
    _register(shared, acme, "www.example.org")
    key = new_key()
    pem = x509.load_der_x509_csr(csr_for("www.example.org", key=key)).public_bytes(Encoding.PEM)
    order = acme.new_order(pem)
    assert [a.body.status for a in order.authorizations] == [messages.STATUS_VALID]
    done = acme.poll_and_finalize(order)
    leaf = x509.load_pem_x509_certificates(done.fullchain_pem.encode())[0]
    assert leaf.public_key() == key.public_key()
    acme.revoke(leaf, 1)
    with pytest.raises(messages.Error) as raised:
        acme.revoke(leaf, 1)
    assert raised.value.code == "alreadyRevoked"


@pytest.mark.row("ACME-063", "ACME-070", "ACME-098")
def test_the_library_of_certbot_finds_updates_and_deactivates_its_account(shared: Live) -> None:
    key = new_key()
    acme = _client(shared, key)
    account = _register(shared, acme, "up.example.org")
    # As certbot does before it stores an account: the library cannot write a binding it has read.
    account = account.update(body=account.body.update(external_account_binding=None))
    found = _client(shared, key).query_registration(account)
    assert found.uri == account.uri
    updated = acme.update_registration(
        found.update(body=found.body.update(contact=("mailto:new@example.org",)))
    )
    assert updated.body.contact == ("mailto:new@example.org",)
    assert acme.deactivate_registration(updated).body.status == "deactivated"
    with pytest.raises(messages.Error) as raised:
        acme.query_registration(updated)
    assert raised.value.code == "unauthorized"
