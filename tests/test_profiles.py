"""Profiles: what of a registration, a CSR and the settings reaches a plan."""

import gc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from estserver import config
from estserver.csr import read_csr
from estserver.errors import BadInput, ConfigurationError, Fault, KeyNotAllowed
from estserver.model import Door, Grant, Plan
from estserver.names import parse_general_name
from estserver.profiles import BACKDATE
from tests.live import new_key
from tests.parts import Hierarchy, csr_of
from tests.plans import NOW, common_name, planned, profile, registered

SHIPPED = tuple(config.SHIPPED_PROFILES)


@pytest.fixture
def issuing(ca: Hierarchy) -> x509.Certificate:
    return ca.issuing.certificate


def extension(plan: Plan, kind: type[x509.ExtensionType]) -> x509.Extension[Any]:
    return next(one for one in plan.extensions if isinstance(one.value, kind))


# -- what a registration grants ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subject", "names"),
    [
        ("person", "CN=山田 太郎", {"email:taro@example.ac.jp"}),
        ("mail", "CN=taro@example.ac.jp", {"email:taro@example.ac.jp"}),
        ("device", "CN=printer-17", {"dns:printer-17.example.ac.jp"}),
        ("server", "CN=www.example.ac.jp", {"dns:www.example.ac.jp"}),
        ("officer", "CN=Hanako Sato", {"email:hanako@example.ac.jp"}),
    ],
)
def test_a_shipped_profile_grants_what_was_registered(
    issuing: x509.Certificate, name: str, subject: str, names: set[str]
) -> None:
    rules = profile(issuing, name)
    rules.check_invitation(registered(name))
    grant = rules.grant(registered(name))
    assert grant.subject.rfc4514_string() == subject
    assert grant.names == {parse_general_name(text) for text in names}
    assert not grant.exact


def test_what_was_granted_to_many_registrations_is_not_kept(issuing: x509.Certificate) -> None:
    rules = profile(issuing)
    before = sum(isinstance(one, Grant) for one in gc.get_objects())
    for number in range(1000):
        rules.grant(registered(number=str(number)))
    assert sum(isinstance(one, Grant) for one in gc.get_objects()) < before + 100


def test_a_device_without_an_id_is_called_by_its_first_name(issuing: x509.Certificate) -> None:
    names = ("ip:192.0.2.7", "dns:b.example.ac.jp", "dns:a.example.ac.jp")
    grant = profile(issuing).grant(registered(device_id=None, names=names))
    assert grant.subject == common_name("192.0.2.7")


def test_an_address_that_was_ordered_over_acme_is_no_common_name(
    issuing: x509.Certificate,
) -> None:
    address, host = parse_general_name("ip:192.0.2.7"), parse_general_name("dns:a.example.ac.jp")
    rules = profile(issuing, "server")
    assert rules.order([address], None).subject == x509.Name([])
    assert rules.order([address, host], None).subject == common_name("a.example.ac.jp")


def test_a_common_name_longer_than_64_is_left_to_the_subject_alternative_name(
    issuing: x509.Certificate,
) -> None:
    long = "a" * 60 + ".example.ac.jp"
    plan = planned(profile(issuing, "server"), names=(f"dns:{long}",))
    assert plan.subject == x509.Name([])
    assert plan.names == (x509.DNSName(long),)
    assert extension(plan, x509.SubjectAlternativeName).critical


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("person", {"email": None}, "needs: email"),
        ("person", {"name": ""}, "needs: name"),
        ("server", {"names": ()}, "needs: names"),
        ("device", {"device_id": None, "names": ()}, "needs a name to certify"),
        ("person", {"doors": frozenset({Door.ACME})}, "does not open the door acme"),
        ("person", {"names": ("dns:www.example.ac.jp",)}, "does not certify dns:www"),
        ("device", {"names": ("email:a@example.ac.jp",)}, "does not certify email:a@"),
        ("device", {"names": ("dns:*.example.ac.jp",)}, "does not certify wildcards"),
        (
            "server",
            {"names": tuple(f"dns:h{n}.example.ac.jp" for n in range(101))},
            "at most 100 names",
        ),
    ],
)
def test_what_a_profile_cannot_certify_is_refused_at_registration(
    issuing: x509.Certificate, name: str, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        profile(issuing, name).check_invitation(registered(name, **fields))


def test_an_organization_longer_than_rfc5280_allows_is_refused(issuing: x509.Certificate) -> None:
    rules = profile(issuing, subject=("O={organization}", "CN={device_id}"))
    rules.check_invitation(registered())
    with pytest.raises(BadInput, match="organizationName"):
        rules.check_invitation(registered(organization="大" * 65))


def test_a_country_that_is_none_is_refused(issuing: x509.Certificate) -> None:
    rules = profile(issuing, subject=("C=Japan", "CN={device_id}"))
    with pytest.raises(BadInput, match="cannot make a subject"):
        rules.grant(registered())


# -- keys ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rsa_2048() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_a_key_type_outside_the_profile_is_refused_with_what_is_allowed(
    issuing: x509.Certificate, rsa_2048: rsa.RSAPrivateKey
) -> None:
    with pytest.raises(KeyNotAllowed) as refused:
        planned(profile(issuing, "person"), csr_of(rsa_2048))
    assert refused.value.values == {"allowed": "rsa-3072, ec-p256, rsa-4096, ec-p384"}
    assert "rsa with 2048 bits" in refused.value.detail
    with pytest.raises(KeyNotAllowed):
        planned(profile(issuing, "person"), csr_of(ec.generate_private_key(ec.SECP521R1())))


@pytest.mark.row("EST-182")
@pytest.mark.parametrize("name", SHIPPED)
def test_key_usage_follows_the_key_type(
    issuing: x509.Certificate, rsa_2048: rsa.RSAPrivateKey, name: str
) -> None:
    rules = profile(issuing, name, keys=("rsa-2048", "ec-p256", "ed25519"))
    grant = rules.grant(registered(name))
    usages = {}
    ed = ed25519.Ed25519PrivateKey.generate()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for csr in (
        csr_of(rsa_2048),
        csr_of(new_key()),
        read_csr(request.sign(ed, None).public_bytes(Encoding.DER)),
    ):
        found = extension(rules.plan(csr, grant, NOW), x509.KeyUsage)
        assert found.critical
        assert found.value.digital_signature
        assert not found.value.key_cert_sign
        assert not found.value.crl_sign
        usages[csr.key.family] = found.value.key_encipherment
    assert usages == {"rsa": True, "ec-p256": False, "ed25519": False}


def test_key_agreement_is_for_curves_only(
    issuing: x509.Certificate, rsa_2048: rsa.RSAPrivateKey
) -> None:
    rules = profile(issuing, key_usage=("digitalSignature", "keyAgreement"))
    for key, agrees in ((new_key(), True), (rsa_2048, False)):
        found = extension(planned(rules, csr_of(key)), x509.KeyUsage)
        assert found.value.key_agreement is agrees


# -- validity ------------------------------------------------------------------------------------


@pytest.mark.row("INC-26", "EST-179")
@pytest.mark.parametrize(
    ("now", "validity", "not_after"),
    [
        ("2027-03-01T12:00:00", "90d", "2027-05-30T11:54:59"),
        ("2027-03-01T12:00:00", "365d", "2028-02-29T11:54:59"),
        ("2028-02-29T00:05:00", "365d", "2029-02-27T23:59:59"),
        ("2028-02-28T00:05:00", "1d", "2028-02-28T23:59:59"),
        ("2027-12-31T23:59:59", "1h", "2028-01-01T00:54:58"),
        ("2027-03-01T12:00:00", "395d", "2028-03-30T11:54:59"),
    ],
)
def test_n_days_end_one_second_before_n_days(
    issuing: x509.Certificate, now: str, validity: str, not_after: str
) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    plan = planned(profile(issuing, validity=validity), now=moment)
    assert plan.not_before == moment - BACKDATE
    assert plan.not_after == datetime.fromisoformat(not_after).replace(tzinfo=UTC)
    # RFC 5280 §4.1.2.5 counts both ends.
    whole = plan.not_after - plan.not_before + timedelta(seconds=1)
    assert whole == profile(issuing, validity=validity).settings.validity


def ca_certificate(begins: datetime, ends: datetime) -> x509.Certificate:
    key = new_key()
    name = common_name("CA")
    return (
        x509.CertificateBuilder()
        .issuer_name(name)
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(ends)
        .sign(key, hashes.SHA256())
    )


@pytest.mark.row("INC-26", "EST-179")
@pytest.mark.parametrize("name", SHIPPED)
def test_no_certificate_outlives_an_issuer_that_ends_tomorrow(name: str) -> None:
    issuer = ca_certificate(NOW - timedelta(days=900), NOW + timedelta(days=1))
    rules = profile(issuer, name)
    assert planned(rules).not_after == NOW + timedelta(days=1)
    plan = rules.plan_again(new_key().public_key(), rules.grant(registered(name)), NOW)
    assert plan.not_after == NOW + timedelta(days=1)


@pytest.mark.row("INC-26", "EST-179")
@pytest.mark.parametrize("year", [2049, 2050])
def test_the_turn_from_utctime_to_generalizedtime_changes_nothing(year: int) -> None:
    now = datetime(year, 1, 1, 0, 2, tzinfo=UTC)
    issuer = ca_certificate(now - timedelta(days=900), now + timedelta(days=9000))
    plan = planned(profile(issuer), now=now)
    assert plan.not_before == now - BACKDATE
    assert plan.not_after == now - BACKDATE + timedelta(days=365, seconds=-1)


def test_no_certificate_begins_before_its_issuer() -> None:
    issuer = ca_certificate(NOW - timedelta(minutes=1), NOW + timedelta(days=900))
    assert planned(profile(issuer)).not_before == NOW - timedelta(minutes=1)


@pytest.mark.parametrize("off", [timedelta(days=-2), timedelta(days=2)])
def test_an_issuer_that_is_not_valid_now_issues_nothing(off: timedelta) -> None:
    issuer = ca_certificate(NOW + off - timedelta(days=1), NOW + off + timedelta(days=1))
    with pytest.raises(Fault, match="issuer of profile device"):
        planned(profile(issuer))


# -- everything else comes from the profile ------------------------------------------------------


@pytest.mark.row("EST-088", "EST-089", "EST-185", "INC-37")
@pytest.mark.parametrize("name", SHIPPED)
def test_of_a_csr_only_the_key_reaches_the_plan(issuing: x509.Certificate, name: str) -> None:
    key = new_key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for asked, critical in (
        (x509.BasicConstraints(ca=True, path_length=3), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
        (
            x509.CertificatePolicies(
                [x509.PolicyInformation(x509.ObjectIdentifier("1.2.3"), None)]
            ),
            False,
        ),
        (x509.KeyUsage(True, True, True, True, True, True, True, False, False), True),
        (
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.311.25.2"), b"\x05\x00"),
            False,
        ),
    ):
        builder = builder.add_extension(asked, critical)
    csr = read_csr(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
    rules = profile(issuing, name)
    grant = rules.grant(registered(name))
    assert rules.plan(csr, grant, NOW) == rules.plan(csr_of(key), grant, NOW)


@pytest.mark.row("EST-184", "EST-185")
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_certificate_is_no_ca_and_renews_over_tls(
    issuing: x509.Certificate, name: str
) -> None:
    plan = planned(profile(issuing, name))
    constraints = extension(plan, x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    assert ExtendedKeyUsageOID.CLIENT_AUTH in extension(plan, x509.ExtendedKeyUsage).value
    assert plan.publish_status


@pytest.mark.row("EST-180", "EST-183")
def test_the_subject_alternative_name_is_critical_only_where_the_subject_is_empty(
    issuing: x509.Certificate,
) -> None:
    assert not extension(planned(profile(issuing)), x509.SubjectAlternativeName).critical
    plan = planned(profile(issuing, subject=()))
    assert extension(plan, x509.SubjectAlternativeName).critical


def test_a_responder_certificate_points_to_no_status(issuing: x509.Certificate) -> None:
    plan = planned(profile(issuing, extended_key_usage=("ocspSigning",)))
    assert not plan.publish_status
    assert not extension(plan, x509.OCSPNoCheck).critical


# -- settings that are wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "path"),
    [
        ({"subject": ("CN",)}, "subject"),
        ({"subject": ("XX={name}",)}, "subject"),
        ({"subject": ("CN={nmae}",)}, "subject"),
        ({"subject": ("CN={name|nmae}",)}, "subject"),
        ({"extended_key_usage": ("clientauth",)}, "extended_key_usage"),
        ({"extended_key_usage": ("2.5.29.37.0",)}, "extended_key_usage"),
        ({"extended_key_usage": ("clientAuth", "1.3.6.1.5.5.7.3.2")}, "extended_key_usage"),
        ({"key_usage": ("keyCertSign",)}, "key_usage"),
        ({"key_usage": ()}, "key_usage"),
        ({"key_usage": ("keyEncipherment",)}, "key_usage"),
        ({"key_usage": ("keyAgreement",), "keys": ("rsa-2048",)}, "key_usage"),
        ({"policies": ("any",)}, "policies"),
        ({"policies": ("1.2.3", "1.2.3")}, "policies"),
        ({"validity": "0s"}, "validity"),
        ({"validity": "5m"}, "validity"),
        ({"validity": "36501d"}, "validity"),
    ],
)
def test_wrong_settings_are_refused_at_start_by_their_key(
    issuing: x509.Certificate, rules: dict[str, Any], path: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^profiles\.device\.{path}: "):
        profile(issuing, **rules)


def test_key_encipherment_alone_suits_rsa_alone(issuing: x509.Certificate) -> None:
    profile(issuing, key_usage=("keyEncipherment",), keys=("rsa-2048", "rsa-3072"))


def test_a_purpose_may_be_given_as_an_oid(issuing: x509.Certificate) -> None:
    rules = profile(issuing, extended_key_usage=("clientAuth", "1.3.6.1.5.5.7.3.28"))
    assert rules.extended_key_usage[1].dotted_string == "1.3.6.1.5.5.7.3.28"


def test_a_door_that_is_shut_is_refused(issuing: x509.Certificate) -> None:
    rules = profile(issuing, "mail")
    rules.require_door(Door.WEB)
    with pytest.raises(BadInput, match="door est"):
        rules.require_door(Door.EST)


def test_a_title_comes_in_the_language_asked_for(issuing: x509.Certificate) -> None:
    rules = profile(issuing, "person")
    assert (rules.title("en"), rules.title("ja")) == ("Personal certificate", "個人証明書")
