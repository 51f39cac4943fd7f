"""What a profile would certify, and how pkilint judges it: stricter, slower than `ca.lint`."""

import logging
from collections.abc import Callable
from datetime import datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.ca.keys import generate_key
from estserver.core import Core
from estserver.model import (
    Door,
    Invitation,
    InvitationState,
    KeyType,
    Language,
    PublicKey,
)
from estserver.names import parse_general_name
from estserver.profiles import Profile


def pkix_linter() -> Callable[[x509.Certificate], tuple[set[str], set[str]]]:
    """Return a function that gives pkilint's errors and warnings about a certificate (RFC 5280).

    Raises ImportError: pkilint, which only development and `doctor` use, is not installed.
    """
    from pkilint import loader, validation  # noqa: PLC0415 - an optional package
    from pkilint.pkix import certificate, extension, name  # noqa: PLC0415 - as above

    rules = certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(
            name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS
        ),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )
    severity = validation.ValidationFindingSeverity
    # It tells about every node of every certificate.
    logging.getLogger("pkilint").setLevel(logging.WARNING)

    def judge(draft: x509.Certificate) -> tuple[set[str], set[str]]:
        document = loader.load_der_certificate(draft.public_bytes(Encoding.DER), "draft")
        found = [
            described.finding
            for result in rules.validate(document.root)
            for described in result.finding_descriptions
        ]
        errors = {f.code for f in found if f.severity <= severity.ERROR}
        return errors, {f.code for f in found if f.severity == severity.WARNING}

    return judge


def specimen(core: Core, profile: Profile, now: datetime) -> x509.Certificate:
    """Return a certificate of `profile` as it would be, for a made-up applicant, unsigned by us.

    Raises BadInput, Fault: the profile cannot certify anybody.
    """
    made_up = {
        "dns": "dns:host.example.org",
        "ip": "ip:192.0.2.1",
        "uri": "uri:urn:example:device",
    }
    invitation = Invitation(
        number="1000000000",
        profile=profile.name,
        name="Hanako Sato",
        email="hanako@example.org",
        device_id="device-1",
        names=tuple(
            parse_general_name(made_up[kind]) for kind in profile.settings.names if kind in made_up
        ),
        language=Language.EN,
        doors=frozenset({Door.WEB}),
        units=1,
        units_used=0,
        state=InvitationState.OPEN,
        approval=False,
        created_at=now,
        expires_at=now,
        renew_until=None,
        pin_generation=1,
        pin_failures=0,
        pin_dead=False,
        renewal_pin=False,
        replaced=False,
        url_generation=1,
        organization=core.settings.branding.organization,
    )
    kinds = [kind for kind in profile.settings.keys if kind is not KeyType.ED25519]
    key = _public_key(kinds[0] if kinds else KeyType.EC_P256)
    plan = profile.plan_again(key, profile.grant(invitation), now)
    return core.issuers[plan.issuer].specimen(plan)


@cache
def _public_key(kind: KeyType) -> PublicKey:
    """RSA keys take a second each: one of every type is enough."""
    return generate_key(kind).public_key()
