"""Debian's Pebble, the test server of Let's Encrypt: an oracle that proves our raw tests.

Whatever a test of the wire claims, a second server that nobody here wrote must claim it too, or
stand in `DIFFERS` with the reason.
"""

import json
import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import trustme

from tests.live import free_ports

KID = "kid-1"
MAC_KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
_RESOURCES = {
    "directory": "dir",
    "new-nonce": "newNonce",
    "new-account": "newAccount",
    "new-order": "newOrder",
    "revoke-cert": "revokeCert",
    "key-change": "keyChange",
}
_SECONDS = 20
SAYS: Mapping[str, tuple[str, ...]] = {
    "accountDoesNotExist": ("malformed",),
    "badCSR": ("malformed", "unauthorized"),
    "badPublicKey": ("malformed",),
    "badRevocationReason": ("malformed",),
    "badSignatureAlgorithm": ("malformed", "badPublicKey"),
    "malformed": ("unauthorized", "badPublicKey"),
    "unauthorized": ("malformed",),
    "unsupportedIdentifier": ("malformed",),
}
"""With what other types it refuses what we refuse with the first."""
_NAMES = "it checks names less than Boulder does, and says so in its README"
_CN = "it compares the subjectAltName alone, and as it is written"
_EAB = "it takes the binding as go-jose reads it, members that it does not know aside"
_GO = "Go's decoders skip line breaks and stray bits, mend surrogates and ignore other members"
_REASONS = "it takes every reason of RFC 5280, and null for none"
DIFFERS: Mapping[str, str] = {
    "test_a_binding_of_another_shape_is_malformed[header]": _EAB,
    "test_a_binding_of_another_shape_is_malformed[jwk]": _EAB,
    "test_a_binding_of_another_shape_is_malformed[signatures]": _EAB,
    "test_a_content_type_may_have_parameters": "it compares the Content-Type as a whole",
    "test_a_csr_that_is_not_of_the_order_leaves_it_ready": _CN,
    "test_a_key_change_that_is_not_right_changes_nothing": "it does not look at oldKey's account",
    "test_a_key_with_an_account_is_no_new_key": "it answers 500, where RFC 8555 §7.3.5 has 409",
    "test_a_request_of_another_shape_is_malformed[lone surrogate]": _GO,
    "test_a_request_of_another_shape_is_malformed[newline]": _GO,
    "test_a_request_of_another_shape_is_malformed[signature and signatures]": _GO,
    "test_a_request_of_another_shape_is_malformed[stray bits]": _GO,
    "test_a_request_to_the_wrong_url_does_not_use_up_its_nonce": "it redeems before it looks",
    "test_an_order_needs_identifiers[payload10]": "it has no limit to the names of an order",
    "test_an_update_changes_the_contacts_of_ones_own_account_only": (
        "it changes the account of kid, whatever URL it is asked at"
    ),
    "test_contacts_are_one_plain_mail_address_each[mailto:a%0a@example.org-invalidContact]": (
        "it does not decode what it takes"
    ),
    "test_contacts_are_one_plain_mail_address_each"
    "[mailto:a@example.org?subject=x-invalidContact]": "header fields are allowed to it",
    "test_each_algorithm_goes_all_the_way[EdDSA]": "it knows RS256 and the three of ECDSA only",
    "test_everything_but_the_directory_links_to_it": "a challenge does not link up to its authz",
    "test_names_may_stand_in_the_cn_or_the_san_in_any_order[mixed case]": _CN,
    "test_names_may_stand_in_the_cn_or_the_san_in_any_order[one in the CN]": _CN,
    "test_new_nonce_by_get_and_head": "it says no-cache, where RFC 8555 §7.2 has no-store",
    "test_no_contact_is_needed_and_an_empty_update_changes_nothing": (
        "an update without contact is malformed to it"
    ),
    "test_nobody_sees_what_is_another_accounts": (
        "it shows the account of kid, whatever URL it is asked at"
    ),
    "test_one_name_may_stand_in_the_cn_alone": _CN,
    **{
        f"test_other_reasons_are_refused_with_the_list_of_good_ones[{reason}]": _REASONS
        for reason in ("2", "6", "8", "10", "None")
    },
    **{
        f"test_what_is_no_identifier_is_refused[{case}-malformed]": _NAMES
        for case in (
            *("dns--a.example.org", "dns-0x7f000001", "dns-a..b", "dns-xn--.example.org"),
            *(f"dns-{'l' * 64}.example.org", "dns-xn--zzzzzzz999.example.org"),
            *("ip-2001:DB8:0::1", "ip-2001:db8:0:0:0:0:0:1", "ip-::ffff:1.2.3.4"),
        )
    },
}
"""Tests, or one case of a test, that Pebble fails, and why that does not count against the test."""
_ENVIRONMENT = {
    # Every challenge is met at once, no good nonce is refused, nothing is authorized beforehand.
    "PEBBLE_VA_ALWAYS_VALID": "1",
    "PEBBLE_VA_NOSLEEP": "1",
    "PEBBLE_WFE_NONCEREJECT": "0",
    "PEBBLE_AUTHZREUSE": "0",
}


@dataclass(frozen=True, slots=True)
class Invited:
    """What Pebble has for an invitation: one key that binds any number of accounts."""

    number: str = KID

    @property
    def invitation(self) -> "Invited":
        """Where a handover has its number."""
        return self


@dataclass(slots=True)
class Pebble:
    """A running Pebble, with as much of `Live` as a client on the wire needs."""

    authority: trustme.CA
    number: int
    directory: Mapping[str, str] = field(default_factory=dict)

    def port(self, _listener: str) -> int:
        """Return the port of the one listener that counts."""
        return self.number

    def url(self, _listener: str) -> str:
        """Return the base of every URL."""
        return f"https://localhost:{self.number}"

    def tls(self) -> ssl.SSLContext:
        """Make a context that trusts it."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def invite(self, _profile: str, **_fields: Any) -> Invited:
        """Return what an account is bound to; it grants every name."""
        return Invited()

    def resource(self, name: str) -> str:
        """Return the URL of what is called `name` at ours."""
        return self.directory[_RESOURCES[name]]


def installed() -> bool:
    """Tell whether the Debian package is there."""
    return shutil.which("pebble") is not None


@contextmanager
def running(folder: Path) -> Iterator[Pebble]:
    """Start a Pebble in an empty folder, and stop it afterwards."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    ports = free_ports()
    configuration = {
        "listenAddress": f"127.0.0.1:{ports.web}",
        "managementListenAddress": f"127.0.0.1:{ports.devices}",
        "certificate": str(folder / "cert.pem"),
        "privateKey": str(folder / "key.pem"),
        "httpPort": ports.status,
        "tlsPort": ports.management,
        "externalAccountBindingRequired": True,
        "externalAccountMACKeys": {KID: MAC_KEY},
    }
    (folder / "config.json").write_text(json.dumps({"pebble": configuration}))
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            ["pebble", "-config", folder / "config.json", "-dnsserver", "127.0.0.1:1"],
            env={**os.environ, **_ENVIRONMENT},
            stdout=log,
            stderr=log,
        )
    try:
        pebble = Pebble(authority, ports.web)
        pebble.directory = {**_directory(pebble, child), "dir": f"{pebble.url('web')}/dir"}
        yield pebble
    finally:
        child.terminate()
        child.wait(_SECONDS)


def _directory(pebble: Pebble, child: subprocess.Popen[bytes]) -> Mapping[str, str]:
    """Read the directory as soon as there is one."""
    deadline = time.monotonic() + _SECONDS
    while True:
        connection = HTTPSConnection("localhost", pebble.number, timeout=5, context=pebble.tls())
        try:
            connection.request("GET", "/dir")
            found: Mapping[str, str] = json.loads(connection.getresponse().read())
        except OSError:
            assert child.poll() is None
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        else:
            return found
        finally:
            connection.close()
