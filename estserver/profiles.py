"""Profile: the rules of one kind of certificate. Pure: no I/O, no clock, no randomness.

`grant` turns a registration into what may stand in a certificate; `plan` turns a CSR and a grant
into one certificate as it shall be. Of a CSR only the public key goes in; its names are compared
with the grant and never copied.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from estserver.csr import CSR, allows
from estserver.errors import (
    BadInput,
    ConfigurationError,
    Fault,
    KeyNotAllowed,
    NamesNotAllowed,
    NotEntitled,
)
from estserver.granted_names import require_ordered, require_same, require_within
from estserver.model import Door, Grant, Invitation, Plan, PublicKey
from estserver.name_constraints import constraints_of, forbidden
from estserver.names import (
    format_general_name,
    read_name,
)
from estserver.settings import ProfileSettings
from estserver.wording import counted

BACKDATE = timedelta(minutes=5)
"""How far notBefore lies in the past, for relying parties whose clocks run slow."""
_LONGEST = timedelta(days=36500)
_COMMON_NAME_MAX = 64
_ATTRIBUTES = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
    "serialNumber": NameOID.SERIAL_NUMBER,
    "UID": NameOID.USER_ID,
}
_USAGES = {
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "ocspSigning": ExtendedKeyUsageOID.OCSP_SIGNING,
    "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
}
_KEY_USAGES = ("digitalSignature", "contentCommitment", "keyEncipherment", "keyAgreement")
_SIGNS = frozenset({"digitalSignature", "contentCommitment"})
_SAID = {"device_id": "device id", "names": "names (of hosts, or addresses)"}
_CAPABLE = {
    # RFC 4055 §1.2, RFC 8813 §3, RFC 8410 §5, by the first letters of the key type.
    "rs": _SIGNS | {"keyEncipherment"},
    "ec": _SIGNS | {"keyAgreement"},
    "ed": _SIGNS,
}
_KINDS: Mapping[str, type[x509.GeneralName]] = {
    "dns": x509.DNSName,
    "ip": x509.IPAddress,
    "email": x509.RFC822Name,
    "uri": x509.UniformResourceIdentifier,
}
_Fields = tuple[tuple[str, str], ...]
_MAX_GRANTS = 64
"""Of 2 KB each: for registrations in use right now, as a thousand devices may share one."""
_AnyExtension = x509.Extension[x509.ExtensionType]
_PLACEHOLDER = re.compile(r"\{([a-z_|]+)\}")


class Profile:
    """A checked profile. Built once at start from its settings and its issuer's certificate.

    Raises ConfigurationError: an unknown usage, attribute or placeholder; the detail names the key.
    """

    def __init__(self, name: str, settings: ProfileSettings, issuer: x509.Certificate) -> None:
        self.name = name
        self.settings = settings
        self._constraints = constraints_of(issuer)
        self._issuer_not_before = issuer.not_valid_before_utc
        self._issuer_not_after = issuer.not_valid_after_utc
        if not BACKDATE < settings.validity <= _LONGEST:
            raise self._wrong("validity", "must be more than 5m and at most 36500d")
        self._subject = [self._attribute(rdn) for rdn in settings.subject]
        self._usages = [self._usage(text) for text in settings.extended_key_usage]
        self._signs_status = ExtendedKeyUsageOID.OCSP_SIGNING in self._usages
        # RFC 5280 §4.2.1.12 warns of anyExtendedKeyUsage: it would open every other purpose.
        if ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in self._usages:
            raise self._wrong("extended_key_usage", "may not hold anyExtendedKeyUsage")
        if len(set(self._usages)) < len(self._usages):
            raise self._wrong("extended_key_usage", "names a purpose twice")
        if unknown := set(settings.key_usage) - set(_KEY_USAGES):
            raise self._wrong("key_usage", f"unknown: {', '.join(sorted(unknown))}")
        for key in settings.keys:
            # RFC 5280 §4.2.1.3: "at least one of the bits MUST be set to 1".
            if not set(settings.key_usage) & _CAPABLE[key.value[:2]]:
                raise self._wrong("key_usage", f"none of it suits a key of type {key.value}")
        self._kinds = tuple(_KINDS[kind] for kind in settings.names)
        try:
            self._policies = [ObjectIdentifier(dotted) for dotted in settings.policies]
        except ValueError as error:
            raise self._wrong("policies", "not an object identifier") from error
        # RFC 5280 §4.2.1.4: a policy "MUST NOT appear more than once".
        if len(set(self._policies)) < len(self._policies):
            raise self._wrong("policies", "names a policy twice")
        # Registrations of many units are asked for again and again.
        self._grants = lru_cache(_MAX_GRANTS)(self._grant)
        self._fixed_extensions = {letters: self._fix_extensions(letters) for letters in _CAPABLE}

    def _wrong(self, key: str, what: str) -> ConfigurationError:
        return ConfigurationError(f"profiles.{self.name}.{key}: {what}")

    def _attribute(self, rdn: str) -> tuple[ObjectIdentifier, str]:
        attribute, _, template = rdn.partition("=")
        if attribute not in _ATTRIBUTES or not template:
            raise self._wrong("subject", f"{rdn!r} is not ATTRIBUTE=TEMPLATE")
        fields = {f for found in _PLACEHOLDER.findall(template) for f in found.split("|")}
        if fields - {"name", "email", "device_id", "first_name", "organization", "number"}:
            raise self._wrong("subject", f"{rdn!r} has an unknown placeholder")
        return _ATTRIBUTES[attribute], template

    def _usage(self, text: str) -> ObjectIdentifier:
        if text in _USAGES:
            return _USAGES[text]
        try:
            return ObjectIdentifier(text)
        except ValueError as error:
            raise self._wrong("extended_key_usage", f"{text!r} is neither name nor OID") from error

    def title(self, language: str) -> str:
        """What the certificate is called on pages and in mail."""
        return self.settings.title_ja if language == "ja" else self.settings.title

    @property
    def extended_key_usage(self) -> tuple[ObjectIdentifier, ...]:
        """The purposes every certificate of this profile has."""
        return tuple(self._usages)

    def check_invitation(self, invitation: Invitation) -> None:
        """Raise BadInput unless this profile can certify what `invitation` registers."""
        have = {
            "name": bool(invitation.name),
            "email": invitation.email is not None,
            "device_id": invitation.device_id is not None,
            "names": bool(invitation.names),
        }
        if missing := [need for need in self.settings.requires if not have[need]]:
            said = ", ".join(_SAID.get(need, need) for need in missing)
            raise BadInput(f"profile {self.name} needs: {said}")
        for door in sorted(invitation.doors):
            self.require_door(door)
        grant = self.grant(invitation)
        # Templates may fill in what only this program's settings bound: an organization's name.
        read_name(grant.subject.public_bytes())
        if not grant.names and not len(grant.subject):
            raise BadInput(f"profile {self.name} needs a name to certify: a device id or DNS name")

    def grant(self, invitation: Invitation) -> Grant:
        """Say what a certificate for this registration may contain.

        Raises BadInput: a name of a kind this profile does not certify, too many of them, or a
        subject that cannot be.
        """
        names = invitation.names
        if invitation.email is not None and x509.RFC822Name in self._kinds:
            names = (x509.RFC822Name(invitation.email), *names)
        return self._grants(names, _fields_of(invitation))

    def _grant(self, names: tuple[x509.GeneralName, ...], fields: _Fields) -> Grant:
        self.check_names(names)
        return Grant(self._subject_of(names, fields), frozenset(names))

    def order(self, names: Sequence[x509.GeneralName], invitation: Invitation | None) -> Grant:
        """Say what a certificate for an ACME order of `names` may contain; None: no registration.

        Raises BadInput: as `grant`.
        """
        self.check_names(names)
        # certbot 5.8 takes every CN for a host name and fails on an address, though it has stored
        # the certificate; the subjectAltName holds the address anyway.
        hosts = [name for name in names if isinstance(name, x509.DNSName)]
        fields = () if invitation is None else _fields_of(invitation)
        return Grant(self._subject_of(hosts, fields), frozenset(names), ordered=True)

    def check_names(self, names: Sequence[x509.GeneralName]) -> None:
        """Raise BadInput unless this profile certifies names of these kinds, and so many."""
        for name in names:
            if not isinstance(name, self._kinds):
                shown = format_general_name(name)
                raise BadInput(f"profile {self.name} does not certify {shown}")
            wildcard = isinstance(name, x509.DNSName) and name.value.startswith("*.")
            if wildcard and not self.settings.wildcard:
                raise BadInput(f"profile {self.name} does not certify wildcards: {name.value}")
        if len(names) > self.settings.max_names:
            most = counted(self.settings.max_names, "name")
            raise BadInput(f"profile {self.name} takes at most {most}")

    def _subject_of(self, names: Sequence[x509.GeneralName], fields: _Fields) -> x509.Name:
        first = next((n for n in names if isinstance(n, x509.DNSName | x509.IPAddress)), None)
        filling = {"first_name": "" if first is None else str(first.value), **dict(fields)}
        values = [
            (oid, value)
            for oid, template in self._subject
            if (value := _fill(template, filling))
            # A longer CN is not RFC 5280; the subjectAltName holds the name anyway.
            and not (oid == NameOID.COMMON_NAME and len(value) > _COMMON_NAME_MAX)
        ]
        try:
            return x509.Name([x509.NameAttribute(oid, value) for oid, value in values])
        except ValueError as error:
            raise BadInput(f"profile {self.name} cannot make a subject of this: {error}") from error

    def check_validity(
        self, not_before: datetime | None, not_after: datetime | None, now: datetime
    ) -> None:
        """Raise BadInput unless a certificate ordered now may begin and end at these times."""
        if not_before is not None and not now - BACKDATE <= not_before <= now:
            raise BadInput("notBefore can only be now: leave it out")
        latest = self._latest(not_before or self._earliest(now))
        if not_after is not None and not now < not_after <= latest:
            raise BadInput(
                f"notAfter must lie between now and {latest:%Y-%m-%dT%H:%M:%SZ}, "
                f"as the profile {self.name} has it"
            )

    def require_door(self, door: Door) -> None:
        """Raise BadInput unless the profile may be used through `door`."""
        if door not in self.settings.doors:
            opens = ", ".join(self.settings.doors) or "none"
            raise BadInput(f"profile {self.name} does not open the door {door}, only: {opens}")

    def plan(self, csr: CSR, grant: Grant, now: datetime) -> Plan:
        """Decide one certificate.

        Raises KeyNotAllowed, NamesNotAllowed (a name outside the grant or the issuer's
        nameConstraints), IdentityMismatch (an exact grant and a CSR that differs), NotEntitled
        (the validity that was ordered cannot be had any more), Fault (the issuer is not valid now).
        """
        if not allows(self.settings.keys, csr.key):
            allowed = ", ".join(key.value for key in self.settings.keys)
            raise KeyNotAllowed(
                f"profile {self.name} takes these keys: {allowed}; the CSR has "
                f"{csr.key.family} with {csr.key.bits} bits",
                values={"allowed": allowed},
            )
        if grant.exact:
            require_same(csr, grant)
        elif grant.ordered:
            require_ordered(csr, grant)
        else:
            require_within(csr, grant)
        if names := forbidden(self._constraints, grant.subject, grant.names):
            shown = ", ".join(sorted(format_general_name(name) for name in names))
            raise NamesNotAllowed(
                f"the issuing CA may not certify {shown}: ask the administrator",
                values={"name": shown},
            )
        return self._plan(csr.public_key, csr.spki, grant, now)

    def plan_again(self, public_key: PublicKey, grant: Grant, now: datetime) -> Plan:
        """Decide the certificate of an enrollment whose CSR was accepted before its approval."""
        spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return self._plan(public_key, spki, grant, now)

    def _plan(self, public_key: PublicKey, spki: bytes, grant: Grant, now: datetime) -> Plan:
        not_before = grant.not_before or self._earliest(now)
        latest = self._latest(not_before)
        not_after = grant.not_after or latest
        if not self._issuer_not_before <= now < self._issuer_not_after:
            raise Fault(f"the issuer of profile {self.name} is not valid now")
        if not self._issuer_not_before <= not_before <= now < not_after <= latest:
            raise NotEntitled("the validity that was ordered cannot be had any more: order anew")
        names = tuple(sorted(grant.names, key=format_general_name))
        return Plan(
            profile=self.name,
            issuer=self.settings.issuer,
            subject=grant.subject,
            names=names,
            public_key=public_key,
            spki=spki,
            not_before=not_before,
            not_after=not_after,
            extensions=self._extensions(public_key, grant.subject, names),
            # RFC 6960 §4.2.2.2.1: a responder's own status is not asked of itself.
            publish_status=not self._signs_status,
            own_crl=self.settings.own_crl,
        )

    def _earliest(self, now: datetime) -> datetime:
        return max(now - BACKDATE, self._issuer_not_before)

    def _latest(self, not_before: datetime) -> datetime:
        # RFC 5280 §4.1.2.5: both ends count, so n days end one second early (INC-26).
        not_after = not_before + self.settings.validity - timedelta(seconds=1)
        return min(not_after, self._issuer_not_after)

    def _extensions(
        self, public_key: PublicKey, subject: x509.Name, names: tuple[x509.GeneralName, ...]
    ) -> tuple[x509.Extension[x509.ExtensionType], ...]:
        before, after = self._fixed_extensions[_letters(public_key)]
        if not names:
            return (*before, *after)
        # RFC 5280 §4.2.1.6: critical where the subject is empty.
        critical = not len(subject)
        return (*before, _extension(x509.SubjectAlternativeName(names), critical=critical), *after)

    def _fix_extensions(
        self, letters: str
    ) -> tuple[tuple[_AnyExtension, ...], tuple[_AnyExtension, ...]]:
        """Make what stands before and after the names for all keys of one family, once for all."""
        before = (
            _extension(x509.BasicConstraints(ca=False, path_length=None), critical=True),
            _extension(self._key_usage(letters), critical=True),
            _extension(x509.ExtendedKeyUsage(self._usages)),
        )
        after = []
        if self._policies:
            policies = [x509.PolicyInformation(oid, None) for oid in self._policies]
            after.append(_extension(x509.CertificatePolicies(policies)))
        if self._signs_status:
            after.append(_extension(x509.OCSPNoCheck()))
        return before, tuple(after)

    def _key_usage(self, letters: str) -> x509.KeyUsage:
        wanted = _CAPABLE[letters] & set(self.settings.key_usage)
        return x509.KeyUsage(
            digital_signature="digitalSignature" in wanted,
            content_commitment="contentCommitment" in wanted,
            key_encipherment="keyEncipherment" in wanted,
            key_agreement="keyAgreement" in wanted,
            data_encipherment=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )


def _fields_of(invitation: Invitation) -> _Fields:
    """Return what of a registration can stand in a subject."""
    return (
        ("name", invitation.name),
        ("email", invitation.email or ""),
        ("device_id", invitation.device_id or ""),
        ("organization", invitation.organization),
        ("number", invitation.number),
    )


def _letters(public_key: PublicKey) -> str:
    """Return the first letters of a key's type."""
    match public_key:
        case rsa.RSAPublicKey():
            return "rs"
        case ec.EllipticCurvePublicKey():
            return "ec"
        case _:
            return "ed"


def _extension(value: x509.ExtensionType, *, critical: bool = False) -> _AnyExtension:
    return x509.Extension(value.oid, critical, value)


def _fill(template: str, fields: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return next((found for name in match[1].split("|") if (found := fields.get(name))), "")

    return _PLACEHOLDER.sub(value, template).strip()
