"""acme-tiny."""

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from estserver.invitations import Handover
from tests.interop.acme.world import World
from tests.interop.commands import Shell
from tests.protocols.acme.wire import Client

_NAMES = ("dns:one.example.org", "dns:two.example.org")


@pytest.fixture
def tiny(shell: Shell) -> Shell:
    """Return a shell with a CSR for both names, and a place for what is to be shown."""
    names = "subjectAltName=DNS:one.example.org,DNS:two.example.org"
    shell.run(
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout one.key "
        f'-subj / -addext "{names}" -out one.csr && mkdir -p "$WWW/.well-known/acme-challenge"'
    )
    return Shell(shell.folder, {**shell.variables, "SSL_CERT_FILE": shell.variables["CA"]})


def _run(shell: Shell) -> None:
    shell.run(
        "acme-tiny --quiet --account-key account.key --csr one.csr --disable-check "
        '--acme-dir "$WWW/.well-known/acme-challenge" --directory-url "$DIR" > one.crt'
    )


@pytest.mark.row("ACME-017", "ACME-061", "ACME-069")
def test_it_goes_on_with_an_account_that_was_bound_for_it(
    world: World, handover: Handover, tiny: Shell
) -> None:
    # It knows no external account binding: another client binds its key.
    key = rsa.generate_private_key(65537, 2048)
    assert Client(world.live, key).register(handover).status == 201
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (tiny.folder / "account.key").write_bytes(pem)
    with world.earlier():
        _run(tiny)
    first = world.granted(tiny.folder / "one.crt", *_NAMES)
    _run(tiny)
    world.renewed(first, tiny.folder / "one.crt", *_NAMES)


@pytest.mark.row("ACME-128")
def test_names_are_shown_by_http_01(world: World, tiny: Shell) -> None:
    tiny.run("openssl genrsa -traditional -out account.key 2048")
    _run(tiny)
    certificate = world.certificate(tiny.folder / "one.crt", *_NAMES)
    assert world.shown_by(certificate) == {"http-01"}
