"""The grammar of single names: clean text, host names, mail addresses, URIs, addresses.

Allow-lists throughout (INC-36). Every function returns the normal form of what it accepts and
raises BadInput for the rest; the text names the field and escapes what a terminal or log would
act upon. Imported through `estserver.names`, which owns names as a whole.
"""

import ipaddress
import re
import unicodedata

import idna

from estserver.errors import BadInput

MAX_DNS_NAME = 253
"""RFC 1035 §2.3.4: 255 octets on the wire are 253 characters."""
MAX_EMAIL = 254
"""RFC 5321 §4.5.3.1.3: a path has 256 octets, two of them the angle brackets."""
MAX_URI = 512
_MAX_LOCAL_PART = 64
_MAX_SHOWN = 64

# Control, format (all bidirectional controls are), surrogate, private use, unassigned; line and
# paragraph separator.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LOCAL_PART = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_URI = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):"
    r"(?:(?P<slashes>//)(?P<user>[^/?#@\[\]]*@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]]*)"
    r"(?P<port>:[0-9]{0,5})?(?=[/?#]|\Z))?"
    r"(?P<rest>[^#\[\]]*(?:#[^#\[\]]*)?)"
)
_URI_CHARACTERS = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})+")


def check_text(value: str, what: str, max_length: int) -> str:
    """Return `value` in NFC if it is one clean line of text.

    `what` names the field in the refusal; `max_length` counts characters after NFC.
    Raises BadInput: empty, too long, blanks at an end, controls, invisible formatting (with it
    bidirectional controls), line separators, private-use, surrogate or unassigned characters.
    """
    if value.isascii():
        text = value
        clean = text.isprintable()
    else:
        text = unicodedata.normalize("NFC", value)
        clean = False
    if not text:
        raise bad(what, "is empty")
    if len(text) > max_length:
        raise bad(what, f"is longer than {max_length} characters")
    if not clean:
        for character in text:
            if unicodedata.category(character) in _REFUSED_CATEGORIES:
                raise bad(what, f"holds the character U+{ord(character):04X}, not allowed in names")
        if unicodedata.category(text[0]).startswith("M"):
            raise bad(what, "begins with a combining mark")
    if text[0].isspace() or text[-1].isspace():
        raise bad(what, "begins or ends with a blank")
    return text


def check_dns(value: str, what: str) -> str:
    """Return a host name in lower case and A-labels; `*` only as the whole leftmost label.

    RFC 1034 §3.5 with RFC 1123 §2.1, RFC 5890 §2.3.1; RFC 5280 §4.2.1.6.
    """
    field = f"{what} {shown(value)}" if value else what
    text = check_text(value, field, MAX_DNS_NAME)
    stem = text.removeprefix("*.")
    star = text[: len(text) - len(stem)]
    if not stem.isascii():
        try:
            stem = idna.encode(stem, uts46=True, std3_rules=True).decode("ascii")
        except idna.IDNAError as error:
            raise bad(field, "is not a valid internationalized host name") from error
    host = stem.lower()
    if host.endswith("."):
        raise bad(field, "ends with a dot")
    if len(star) + len(host) > MAX_DNS_NAME:
        raise bad(field, f"is longer than {MAX_DNS_NAME} characters")
    labels = host.split(".")
    for label in labels:
        _check_label(label, field)
    # WHATWG URL "ends in a number": 192.0.2.1, 127.1 and 0x7f000001 are addresses to somebody.
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        raise bad(field, "is an address, not a host name: use an iPAddress")
    return star + host


def _check_label(label: str, field: str) -> None:
    if not _DNS_LABEL.fullmatch(label):
        raise bad(field, "is not a host name: labels of letters, digits and inner hyphens, 1 to 63")
    # RFC 5890 §2.3.1: of the labels with `--` in third place only A-labels have a meaning.
    if label[2:4] == "--":
        try:
            valid = label.startswith("xn--") and idna.alabel(idna.ulabel(label)) == label.encode()
        except idna.IDNAError:
            valid = False
        if not valid:
            raise bad(field, "holds a label with -- that is not a valid A-label")


def check_email(value: str, what: str) -> str:
    """Return a mail address with its domain in lower case: RFC 5321 §4.1.2, dot-string only."""
    field = f"{what} {shown(value)}" if value else what
    text = check_text(value, field, MAX_EMAIL)
    local, at, domain = text.rpartition("@")
    if not at:
        raise bad(field, "has no @")
    if not local.isascii():
        # It would need SmtpUTF8Mailbox (RFC 9598), which few verifiers read.
        raise bad(field, "has a local part outside ASCII: such addresses are not supported")
    if len(local) > _MAX_LOCAL_PART or not _LOCAL_PART.fullmatch(local):
        raise bad(field, "has a local part that is not dot-separated plain words, 1 to 64")
    host = check_dns(domain, f"{field}: its domain")
    if host.startswith("*."):
        raise bad(field, "has a wildcard for a domain")
    if len(local) + 1 + len(host) > MAX_EMAIL:
        raise bad(field, f"is longer than {MAX_EMAIL} characters")
    return f"{local}@{host}"


def check_uri(value: str, what: str) -> str:
    """Return an absolute URI with scheme and host in lower case.

    RFC 5280 §4.2.1.6: a URI with an authority names a host name or an address.
    """
    field = f"{what} {shown(value)}" if value else what
    text = check_text(value, field, MAX_URI)
    match = _URI.fullmatch(text) if _URI_CHARACTERS.fullmatch(text) else None
    if match is None or not (match["slashes"] or match["rest"]):
        raise bad(field, "is not an absolute ASCII URI")
    host = match["host"]
    if match["slashes"]:
        if not host:
            raise bad(field, "has no host")
        if host.startswith("["):
            check_ip(host[1:-1])
        elif not _is_ipv4(host):
            host = check_dns(host, f"{field}: its host")
            if host.startswith("*."):
                raise bad(field, "has a wildcard for a host")
    elif match["rest"].startswith("//"):
        raise bad(field, "has a malformed host or port")
    return fold_uri(text)


def fold_uri(text: str) -> str:
    """Return a URI with scheme and host in lower case (RFC 5280 §7.4); others unchanged."""
    match = _URI.fullmatch(text)
    if match is None:
        return text
    scheme, slashes, user, host, port, rest = (part or "" for part in match.groups())
    return f"{scheme.lower()}:{slashes}{user}{host.lower()}{port}{rest}"


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def check_ip(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the one address that `value` writes; no prefix length, no zone."""
    field = f"ip address {shown(value)}" if value else "ip address"
    text = check_text(value, field, 45)
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise bad(field, "is not one IPv4 or IPv6 address") from error
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise bad(field, "has a zone, which a certificate cannot carry")
    return address


def bad(field: str, rule: str) -> BadInput:
    """Make the refusal of `field`, a noun, by `rule`, a verb phrase; both also as its values."""
    return BadInput(f"{field} {rule}.", values={"field": field, "rule": rule})


def shown(text: str) -> str:
    """Quote a name for an error: escaped, and cut where it grows long."""
    cut = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
    return f'"{visible(cut)}"'


def visible(text: str) -> str:
    r"""Escape what a terminal or log would act upon, the way RFC 4514 does: `\0A`, UTF-8."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "".join(f"\\{octet:02X}" for octet in character.encode("utf-8", "surrogatepass"))
        if unicodedata.category(character) in _REFUSED_CATEGORIES
        else character
        for character in text
    )
