"""The rules of names, for CSRs, officers and imports alike."""
# ruff: noqa: PT017 - a property test has two good outcomes

import ipaddress
import unicodedata

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from estserver.errors import BadInput
from estserver.names import (
    canonical_general_name,
    canonical_name,
    check_general_name,
    check_text,
    decode_name,
    decode_names,
    display_name,
    encode_name,
    encode_names,
    format_general_name,
    is_wildcard,
    parse_general_name,
    read_name,
    read_names,
    same_name,
)


def name(*values: str, oid: x509.ObjectIdentifier = NameOID.COMMON_NAME) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for value in values])


def is_safe(text: str) -> bool:
    """Nothing a terminal or log would act upon."""
    return not {unicodedata.category(c) for c in text} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    "text",
    ["Ada Lovelace", "山田　太郎", "Jürgen", "O'Neill-Smith", "Ørsted 🙂", "a", "x" * 64, "<b>&"],
)
def test_clean_text_passes_unchanged(text: str) -> None:
    assert check_text(text, "name", 64) == text


def test_text_comes_back_in_nfc() -> None:
    assert check_text("Ju\u0308rgen", "name", 6) == "Jürgen"


@pytest.mark.row("INC-36", "A-9")
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is empty"),
        ("x" * 65, "is longer than 64 characters"),
        (" a", "begins or ends with a blank"),
        ("a\u3000", "begins or ends with a blank"),
        ("\u0301a", "begins with a combining mark"),
        ("a\0b", "U+0000"),
        ("a\nb", "U+000A"),
        ("a\x1b[31m", "U+001B"),
        ("a\x7f", "U+007F"),
        ("a\x85b", "U+0085"),
        ("a\u2028b", "U+2028"),
        ("a\u2029b", "U+2029"),
        ("a\u202eb", "U+202E"),
        ("a\u2066b", "U+2066"),
        ("a\u061cb", "U+061C"),
        ("a\u200bb", "U+200B"),
        ("a\ufeffb", "U+FEFF"),
        ("a\ue000b", "U+E000"),
        ("a\ud800b", "U+D800"),
        ("a\uffffb", "U+FFFF"),
        ("a\U000e0041b", "U+E0041"),
    ],
)
def test_text_that_is_not_one_clean_line_is_refused_and_the_field_named(
    text: str, rule: str
) -> None:
    with pytest.raises(BadInput, match=r"^family name ") as refused:
        check_text(text, "family name", 64)
    assert rule in refused.value.detail
    assert is_safe(refused.value.detail)
    assert refused.value.values["field"] == "family name"


@given(st.text(max_size=40))
def test_whatever_text_passes_is_printable_and_passes_again(text: str) -> None:
    try:
        clean = check_text(text, "name", 200)
    except BadInput as refused:
        assert is_safe(refused.detail)
    else:
        assert clean == unicodedata.normalize("NFC", clean) == check_text(clean, "name", 200)
        assert is_safe(clean)


@pytest.mark.row("EST-092")
@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("dns:Host.Example", "dns:host.example"),
        ("DNS:printer-1", "dns:printer-1"),
        ("dns:*.example.org", "dns:*.example.org"),
        ("dns:例え.テスト", "dns:xn--r8jz45g.xn--zckzah"),
        ("dns:Bücher.example", "dns:xn--bcher-kva.example"),
        ("dns:xn--bcher-kva.example", "dns:xn--bcher-kva.example"),
        ("dns:" + ".".join(["a" * 63] * 3 + ["b" * 61]), None),
        ("ip:192.0.2.1", "ip:192.0.2.1"),
        ("ip:2001:DB8:0::1", "ip:2001:db8::1"),
        ("email:Ada.Lovelace+x@Example.ORG", "email:Ada.Lovelace+x@example.org"),
        ("email:a@例え.jp", "email:a@xn--r8jz45g.jp"),
        ("uri:HTTPS://Host.Example/Path?q#F", "uri:https://host.example/Path?q#F"),
        ("uri:urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", None),
        ("uri:https://[2001:db8::1]:8443/x", None),
        ("uri:spiffe://example.org/ns/a", None),
        ("uri:https://192.0.2.1/", None),
    ],
)
def test_the_text_form_of_a_general_name_is_read_normalized_and_written_back(
    text: str, normal: str | None
) -> None:
    parsed = parse_general_name(text)
    assert format_general_name(parsed) == (normal or text)
    assert check_general_name(parsed) == parsed
    assert parse_general_name(format_general_name(parsed)) == parsed


@pytest.mark.row("EST-092", "INC-36")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "host.example",
        "othername:1.2.3",
        "dns:",
        "dns:a..b",
        "dns:.a",
        "dns:a.",
        "dns:-a.example",
        "dns:a-.example",
        "dns:a_b.example",
        "dns:a b.example",
        "dns:a\0.example",
        "dns:" + "a" * 64,
        "dns:" + ".".join(["a" * 63] * 4),
        "dns:*",
        "dns:f*.example",
        "dns:a.*.example",
        "dns:*.*.example",
        "dns:192.0.2.1",
        "dns:127.1",
        "dns:0x7f000001",
        "dns:::1",
        "dns:xn--a.example",
        "dns:xn--zz--zz.example",
        "dns:ab--cd.example",
        "dns:\u202eexample",
        "dns:a\u200d.example",
        "ip:192.0.2.1/24",
        "ip:192.0.2.256",
        "ip:192.0.2.01",
        "ip:fe80::1%eth0",
        "ip:localhost",
        "ip:",
        "email:a",
        "email:@example.org",
        "email:a@",
        "email:a@b@example.org",
        "email:a..b@example.org",
        "email:.a@example.org",
        'email:"a b"@example.org',
        "email:a@[192.0.2.1]",
        "email:a@*.example",
        "email:é@example.org",
        "email:a@b\r\nBcc: c@d",
        "email:" + "a" * 65 + "@example.org",
        "uri:",
        "uri:/relative",
        "uri://host/x",
        "uri:https:",
        "uri:https://",
        "uri:https:///x",
        "uri:https://a_b/",
        "uri:https://a:port/",
        "uri:https://*.example/",
        "uri:https://[::1",
        "uri:https://example.org/%zz",
        "uri:https://example.org/a b",
        "uri:https://例え.jp/",
        "uri:https://example.org/#a#b",
        "uri:https://example.org/" + "a" * 512,
    ],
)
def test_a_general_name_outside_its_grammar_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_general_name(text)
    assert is_safe(refused.value.detail)


def test_a_refused_mail_address_outside_ascii_says_that_it_is_not_supported() -> None:
    with pytest.raises(BadInput, match="not supported"):
        parse_general_name("email:søren@example.org")


@pytest.mark.row("EST-092")
def test_a_wildcard_is_flagged_for_policy() -> None:
    assert is_wildcard(parse_general_name("dns:*.example.org"))
    assert not is_wildcard(parse_general_name("dns:www.example.org"))
    assert not is_wildcard(parse_general_name("uri:https://example.org/"))


@given(st.text(max_size=60), st.sampled_from(["dns", "ip", "email", "uri"]))
def test_parsing_any_text_gives_a_name_or_a_refusal(text: str, kind: str) -> None:
    try:
        parsed = parse_general_name(f"{kind}:{text}")
    except BadInput as refused:
        assert is_safe(refused.detail)
    else:
        assert format_general_name(parsed).isascii()
        assert read_names(encode_names((parsed,))) == (parsed,)


def test_every_kind_of_general_name_has_a_text_form_safe_for_terminals() -> None:
    assert [
        format_general_name(general_name)
        for general_name in (
            x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x01a"),
            x509.DirectoryName(name("a\nb")),
            x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
            x509.DNSName("a\x1b\0b"),
            x509.IPAddress(ipaddress.ip_network("192.0.2.0/24")),
        )
    ] == [
        "othername:1.3.6.1.4.1.311.20.2.3",
        r"dirname:CN=a\0Ab",
        "rid:1.2.3",
        r"dns:a\1B\00b",
        "ip:192.0.2.0/24",
    ]


def test_a_subject_is_displayed_on_one_line_without_controls() -> None:
    shown = display_name(name("山田", "a\u202eb\nc\0", "x, y"))
    assert shown == r"CN=x\, y,CN=a\E2\80\AEb\0Ac\00,CN=山田"
    assert is_safe(shown)
    assert display_name(x509.Name([])) == ""


@pytest.mark.row("EST-130")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Ada Lovelace", "ADA  lovelace"),
        ("Ada Lovelace", " Ada\u3000Lovelace "),
        ("Straße", "STRASSE"),
        ("Ju\u0308rgen", "JÜRGEN"),
        ("\uff21\uff22\uff23", "abc"),
    ],
)
def test_rfc5280_7_1_case_and_blanks_make_no_difference(a: str, b: str) -> None:
    assert same_name(name(a), name(b))
    assert hash(canonical_name(name(a))) == hash(canonical_name(name(b)))


@pytest.mark.row("EST-130")
def test_rfc5280_7_1_the_string_type_makes_no_difference() -> None:
    printable, utf8 = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ada", _type)])
        for _type in (_ASN1Type.PrintableString, _ASN1Type.UTF8String)
    )
    assert encode_name(printable) != encode_name(utf8)
    assert same_name(printable, utf8)


@pytest.mark.row("EST-129")
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (name("a"), name("b")),
        (name("a"), name("a", "b")),
        (name("a", "b"), name("b", "a")),
        (name("a"), x509.Name([])),
        (name("a"), name("a", oid=NameOID.ORGANIZATION_NAME)),
        (name("Muller"), name("Müller")),
    ],
)
def test_rfc5280_7_1_other_values_types_counts_and_orders_are_another_name(
    a: x509.Name, b: x509.Name
) -> None:
    assert not same_name(a, b)


def test_rfc5280_7_1_a_multi_valued_rdn_is_a_set() -> None:
    one = x509.NameAttribute(NameOID.COMMON_NAME, "a")
    two = x509.NameAttribute(NameOID.USER_ID, "1")
    rdn = x509.RelativeDistinguishedName
    assert same_name(x509.Name([rdn([one, two])]), x509.Name([rdn([two, one])]))
    assert not same_name(x509.Name([rdn([one, two])]), x509.Name([one, two]))


@pytest.mark.row("EST-130")
def test_alternative_names_compare_as_sets_with_hosts_folded() -> None:
    def canonical(*names: x509.GeneralName) -> set[object]:
        return {canonical_general_name(general_name) for general_name in names}

    assert canonical(
        x509.DNSName("A.example"), x509.RFC822Name("A@B.example"), x509.DirectoryName(name("X"))
    ) == canonical(
        x509.DirectoryName(name("x")), x509.RFC822Name("A@b.EXAMPLE"), x509.DNSName("a.EXAMPLE")
    )
    assert canonical(x509.RFC822Name("a@b.example")) != canonical(x509.RFC822Name("A@b.example"))
    uri = x509.UniformResourceIdentifier
    assert canonical(uri("HTTP://A.example/x")) == canonical(uri("http://a.example/x"))
    assert canonical(uri("http://a.example/X")) != canonical(uri("http://a.example/x"))
    assert canonical(x509.DNSName("a.example")) != canonical(uri("a.example"))
    other = x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")
    rid = x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))
    assert len(canonical(other, rid, x509.IPAddress(ipaddress.ip_address("::1")))) == 3


def test_names_survive_their_stored_form() -> None:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "JP"),
            x509.NameAttribute(NameOID.COMMON_NAME, "山田", _ASN1Type.BMPString),
        ]
    )
    assert encode_name(decode_name(encode_name(subject))) == encode_name(subject)
    assert decode_name(encode_name(x509.Name([]))) == x509.Name([])
    names: tuple[x509.GeneralName, ...] = (
        parse_general_name("dns:b.example"),
        parse_general_name("dns:a.example"),
        parse_general_name("ip:::1"),
        parse_general_name("email:a@b.example"),
        parse_general_name("uri:urn:x:y"),
        x509.DirectoryName(subject),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x0c\x01a"),
    )
    assert decode_names(encode_names(names)) == names
    assert decode_names(encode_names(())) == ()


@pytest.mark.parametrize("der", [b"", b"\0", b"0", b"0\x80\0\0", b"0\0\0", b"0\x02\xa3\0", b"1\0"])
def test_stored_forms_that_are_damaged_are_refused(der: bytes) -> None:
    with pytest.raises(BadInput):
        decode_names(der)
    if der != b"0\x02\xa3\0":
        with pytest.raises(BadInput):
            read_name(der)
    with pytest.raises(BadInput):
        decode_name(der)


@given(st.binary(max_size=60))
def test_reading_any_bytes_as_names_gives_names_or_a_refusal(der: bytes) -> None:
    for read in (read_name, read_names, decode_name, decode_names):
        try:
            read(b"0" + bytes([len(der)]) + der)
        except BadInput as refused:
            assert is_safe(refused.detail)


@pytest.mark.parametrize("country", ["J", "JPN", "J1", "日本"])
def test_a_country_has_two_letters(country: str) -> None:
    value = country.encode()
    attribute = b"\x06\x03\x55\x04\x06\x0c" + bytes([len(value)]) + value
    der = attribute
    for tag in (b"0", b"1", b"0"):
        der = tag + bytes([len(der)]) + der
    with pytest.raises(BadInput, match="countryName in the subject"):
        read_name(der)


def test_a_name_that_stands_twice_is_read_once() -> None:
    twice = encode_names((x509.DNSName("a.example"), x509.DNSName("A.EXAMPLE")))
    assert read_names(twice) == (x509.DNSName("a.example"),)
