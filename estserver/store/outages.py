"""Why the database cannot be used, in its driver's words: for operators, never for clients."""

import sqlite3

import sqlalchemy as sa

from estserver.errors import Error
from estserver.wording import trouble


def explained(error: Error) -> str:
    """Return the sentence of an error and, where the database gave a reason, that as well."""
    said = _said(error.__cause__)
    return f"{error.detail} ({said})" if said and said not in error.detail else error.detail


def _said(cause: BaseException | None) -> str:
    match cause:
        case sa.exc.DBAPIError():
            # Its own text has the statement and its values.
            return str(cause.orig).partition("\n")[0]
        case sqlite3.Error():
            return str(cause)
        case sa.exc.TimeoutError():
            return "no connection to it is free"
        case OSError():
            return trouble(cause)
        case _:
            return ""
