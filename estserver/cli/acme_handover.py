"""The ACME door of an invitation on the command line: kid and key, and commands for each client."""

import base64
import shlex
from pathlib import Path

import click
from cryptography import x509

from estserver.core import Core
from estserver.external_binding import acme_binding
from estserver.model import Door, Invitation

_COMMON = "certbot"


def acme_row(core: Core, invitation: Invitation) -> dict[str, str] | None:
    """Return directory, kid and key of an invitation, None where its ACME door is shut."""
    base = core.settings.acme_url
    if Door.ACME not in invitation.doors or base is None:
        return None
    kid, key = acme_binding(core.keyring, invitation)
    return {"directory": f"{base}/directory", "kid": kid, "hmac_key": key.reveal()}


def print_acme(core: Core, invitation: Invitation, root: Path, *, every_client: bool) -> None:
    """Print for a person how to use the ACME door, ready to be pasted; nothing where it is shut.

    `every_client`: not with the most common one alone.
    """
    row = acme_row(core, invitation)
    if row is None:
        return
    names = _names(invitation, x509.DNSName)
    addresses = _names(invitation, x509.IPAddress)
    if not names + addresses:
        click.echo(
            "\nNot over ACME: it asks for host names and addresses, and this registration has none "
            "(--dns, --ip)."
        )
        return
    click.echo("\nOver ACME")
    click.echo(f"  directory  {row['directory']}")
    click.echo(f"  kid        {row['kid']}")
    click.echo(f"  HMAC key   {row['hmac_key']}")
    click.echo(f"  root       {root}")
    click.echo("\n  The names need no challenge.")
    for client, lines in _commands(row, names, addresses, root).items():
        if not (every_client or client == _COMMON):
            continue
        click.echo(f"\n  {client}{_remark(client, invitation, names, addresses)}")
        for line in lines:
            click.echo(f"    {line}")
    if not every_client:
        click.echo("\n  For lego, acme.sh, uacme, Caddy or cert-manager: invite with --clients.")


def _names(invitation: Invitation, kind: type[x509.DNSName | x509.IPAddress]) -> list[str]:
    return [str(name.value) for name in invitation.names if isinstance(name, kind)]


def _remark(client: str, invitation: Invitation, names: list[str], addresses: list[str]) -> str:
    """Return what one must know of a client before its commands work for these names."""
    if addresses and client == "certbot":
        return " (5.3 or later: older ones know no addresses)"
    if addresses and client == "lego":
        return " (a recent one: 4.9 knows no addresses)"
    wanted = len(names + addresses)
    if client.startswith("Caddy") and invitation.units < wanted:
        return f", one certificate for each name: invite with --max {wanted}"
    return ""


def _commands(
    row: dict[str, str], names: list[str], addresses: list[str], root: Path
) -> dict[str, list[str]]:
    """Return what to type or write for each client; each string is one line."""
    directory, kid, key = row["directory"], row["kid"], row["hmac_key"]
    ca, url = shlex.quote(str(root)), shlex.quote(directory)
    quoted = [shlex.quote(name) for name in names + addresses]
    each = " ".join(f"-d {name}" for name in quoted)
    for_certbot = [
        *(f"-d {shlex.quote(name)}" for name in names),
        *(f"--ip-address {address}" for address in addresses),
    ]
    return {
        "certbot": [
            (
                f"REQUESTS_CA_BUNDLE={ca} certbot certonly -n --agree-tos "
                f"--register-unsafely-without-email --server {url} --eab-kid {kid} "
                f"--eab-hmac-key={key} --standalone {' '.join(for_certbot)}"
            )
        ],
        "lego": [
            f"LEGO_CA_CERTIFICATES={ca} lego --server {url} --accept-tos --email admin@localhost "
            f"--eab --kid {kid} --hmac {key} --http "
            + " ".join(f"--domains {name}" for name in quoted)
            + " run"
        ],
        "acme.sh": [
            (
                f"acme.sh --server {url} --ca-bundle {ca} --register-account --eab-kid {kid} "
                f"--eab-hmac-key {key}"
            ),
            f"acme.sh --server {url} --ca-bundle {ca} --issue -w . {each}",
        ],
        "uacme (trusts what the system trusts: add the root there)": [
            f"uacme -y -a {url} -e {kid}:{key} new",
            f"uacme -a {url} -h /bin/true issue {' '.join(quoted)}",
        ],
        "Caddy (Caddyfile)": [
            f"{', '.join(names + addresses)} {{",
            "    tls {",
            f"        issuer acme {directory} {{",
            f"            eab {kid} {key}",
            f"            trusted_roots {root}",
            "        }",
            "    }",
            "}",
        ],
        "cert-manager (Issuer; put the HMAC key into the secret estserver-eab under `key`)": [
            "spec:",
            "  acme:",
            f"    server: {directory}",
            f"    caBundle: {base64.b64encode(root.read_bytes()).decode()}",
            "    privateKeySecretRef: {name: estserver-account}",
            "    externalAccountBinding:",
            f'      keyID: "{kid}"',
            "      keySecretRef: {name: estserver-eab, key: key}",
            "    solvers: [{http01: {ingress: {}}}]",
        ],
    }
