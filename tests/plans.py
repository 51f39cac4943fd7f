"""Plans and drafts for the registrations that tests make."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from estserver import config
from estserver.ca.issuer import Issuer
from estserver.csr import CSR
from estserver.model import Door, Invitation, InvitationState, Language, Plan
from estserver.names import parse_general_name
from estserver.profiles import Profile
from tests.live import Key, MovableClock
from tests.parts import APPLICANTS, URLS, Hierarchy, csr_of

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)


def registered(profile: str = "device", **fields: Any) -> Invitation:
    """Return a registration as the store would hand it out."""
    given = {**APPLICANTS.get(profile, {}), **fields}
    names = tuple(parse_general_name(text) for text in given.pop("names", ()))
    doors = frozenset(Door(door) for door in config.Settings().profiles[profile].default_doors)
    return Invitation(
        **{
            "number": "4711",
            "profile": profile,
            "name": "",
            "email": None,
            "device_id": None,
            "names": names,
            "language": Language.EN,
            "doors": doors,
            "units": 1,
            "units_used": 0,
            "state": InvitationState.OPEN,
            "approval": False,
            "created_at": NOW,
            "expires_at": NOW + timedelta(days=30),
            "renew_until": None,
            "pin_generation": 1,
            "pin_failures": 0,
            "pin_dead": False,
            "renewal_pin": False,
            "replaced": False,
            "url_generation": 1,
            "organization": "Example University",
            **given,
        }
    )


def profile(issuer: x509.Certificate, name: str = "device", **rules: Any) -> Profile:
    settings = config.Settings(profiles={name: rules}) if rules else config.Settings()
    return Profile(name, settings.profiles[name], issuer)


def planned(rules: Profile, csr: CSR | None = None, now: datetime = NOW, **fields: Any) -> Plan:
    grant = rules.grant(registered(rules.name, **fields))
    return rules.plan(csr or csr_of(), grant, now)


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issuer_of(ca: Hierarchy, **fields: Any) -> Issuer:
    return Issuer("issuing", ca.chain, ca.issuing.key, URLS, **fields)


def plan_of(ca: Hierarchy, profile: str = "device", key: Key | None = None, **fields: Any) -> Plan:
    rules = Profile(profile, config.Settings().profiles[profile], ca.issuing.certificate)
    grant = rules.grant(registered(profile, **fields))
    return rules.plan(csr_of(key), grant, MovableClock().now())
