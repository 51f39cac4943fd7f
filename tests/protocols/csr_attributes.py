"""CsrAttrs (RFC 7030 §4.5.2) as another program's parser reads it."""

from asn1crypto import core


class Attribute(core.Sequence):  # type: ignore[misc]  # asn1crypto has no types
    """An OID and the values it may have."""

    _fields = [("type", core.ObjectIdentifier), ("values", core.SetOf, {"spec": core.Any})]  # noqa: RUF012 - its way


class AttrOrOID(core.Choice):  # type: ignore[misc]  # asn1crypto has no types
    """A bare OID, or one with values."""

    _alternatives = [("oid", core.ObjectIdentifier), ("attribute", Attribute)]  # noqa: RUF012 - its way


class CsrAttrs(core.SequenceOf):  # type: ignore[misc]  # asn1crypto has no types
    """What a server announces."""

    _child_spec = AttrOrOID
