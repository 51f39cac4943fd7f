"""notBefore and notAfter of an order: read strictly (RFC 8555 §7.4, RFC 3339)."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from estserver.protocols.acme.problems import malformed

# RFC 3339 §5.6 date-time, whose "T" and "Z" may be in lower case.
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def read_validity(asked: Mapping[str, object]) -> tuple[datetime | None, datetime | None]:
    """Return what an order asks for, UTC and whole seconds; None where it asks for nothing.

    Raises Problem malformed: not RFC 3339, not whole seconds, or the end before the beginning.
    """
    not_before, not_after = (_moment(asked, name) for name in ("notBefore", "notAfter"))
    if not_before is not None and not_after is not None and not_after <= not_before:
        raise malformed("notAfter must be later than notBefore")
    return not_before, not_after


def _moment(asked: Mapping[str, object], name: str) -> datetime | None:
    text = asked.get(name)
    if text is None and name not in asked:
        return None
    if not isinstance(text, str) or not _DATE_TIME.fullmatch(text):
        raise malformed(f"{name} is not a time of RFC 3339 such as 2027-01-31T12:00:00Z")
    try:
        moment = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise malformed(f"{name} is a time that does not exist") from error
    if moment.microsecond:
        raise malformed(f"{name} must be in whole seconds: certificates know no fractions")
    return moment
