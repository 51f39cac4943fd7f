"""PyPI's `acme`, the library of certbot, in a program of our own."""

from pathlib import Path

import pytest
from acme import challenges, client, messages
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from josepy import jwa
from josepy.jwk import JWKEC

from tests.interop.acme.world import HOOKED, World
from tests.interop.commands import Shell
from tests.live import new_key
from tests.protocols.acme.wire import csr_for


@pytest.fixture
def account(world: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> client.ClientV2:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", shell.variables["CA"])
    network = client.ClientNetwork(JWKEC(key=new_key()), alg=jwa.ES256)
    directory = client.ClientV2.get_directory(world.directory, network)
    account = client.ClientV2(directory, network)
    account.new_account(messages.NewRegistration.from_data(terms_of_service_agreed=True))
    return account


@pytest.mark.row("ACME-128", "ACME-136", "ACME-164", "ACME-167")
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (challenges.HTTP01, ("one.example.org", f"ip:{HOOKED}")),
        (challenges.DNS01, ("one.example.org", "*.one.example.org")),
    ],
)
def test_names_are_shown_by(
    world: World,
    shell: Shell,
    account: client.ClientV2,
    kind: type[challenges.HTTP01 | challenges.DNS01],
    names: tuple[str, str],
) -> None:
    csr = x509.load_der_x509_csr(csr_for(*names)).public_bytes(Encoding.PEM)
    order = account.new_order(csr)
    for authorization in order.authorizations:
        (body,) = [one for one in authorization.body.challenges if isinstance(one.chall, kind)]
        response, validation = body.response_and_validation(account.net.key)
        if isinstance(body.chall, challenges.HTTP01):
            place = Path(shell.variables["WWW"]) / body.chall.path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(validation)
        else:
            name = body.chall.validation_domain_name(authorization.body.identifier.value)
            with (Path(shell.variables["TXT"]) / name).open("a") as record:
                record.write(f"{validation}\n")
        account.answer_challenge(body, response)
    done = account.poll_and_finalize(order)
    (shell.folder / "cert.pem").write_text(done.fullchain_pem)
    expected = [name if name.startswith("ip:") else f"dns:{name}" for name in names]
    certificate = world.certificate(shell.folder / "cert.pem", *expected)
    assert world.shown_by(certificate) == {kind.typ}
    account.revoke(certificate, 5)
    world.require_revoked(certificate, x509.ReasonFlags.cessation_of_operation)
