"""What goes wrong between us and a mail server: whose fault it is, and what to do about it."""

import socket
import ssl
from collections.abc import Mapping

import aiosmtplib

from estserver.settings import Mail

_MAX_SAID = 200
_ADVICE: Mapping[type[Exception], str] = {
    socket.gaierror: "there is no host of that name: correct mail.host",
    ConnectionRefusedError: "nothing listens there: start it, or correct mail.host and mail.port",
    TimeoutError: "does not answer in time: look whether it runs and a firewall lets us through",
    ssl.SSLCertVerificationError: (
        "its TLS certificate is refused ({said}): it needs one for that name from a CA that this "
        "machine trusts"
    ),
    ssl.SSLError: 'no TLS there: mail.security "tls" is for port 465, "starttls" for 25 and 587',
    aiosmtplib.SMTPAuthenticationError: (
        "refuses the log-in ({said}): correct mail.username and mail.password_file"
    ),
}
"""What to do, by the first type that the error or its cause has."""


def is_about_one_letter(error: Exception) -> bool:
    """Tell a refusal of one letter from a server that takes none."""
    # RFC 5321 §3.8: 421 announces that the server closes the connection.
    return bool(_codes(error)) and 421 not in _codes(error)


def is_final(error: Exception) -> bool:
    """RFC 5321 §4.2.1: 5yz to RCPT or DATA will not change by itself.

    A refused sender or log-in is our configuration, which somebody will mend.
    """
    codes = _codes(error)
    return bool(codes) and min(codes) >= 500


def say(error: Exception, mail: Mail) -> str:
    """Return one printable line: of a letter what the server answered, of a server what to do."""
    if is_about_one_letter(error):
        return _printable(_answers(error))
    return f"mail server {mail.host} port {mail.port}: {_about_the_server(error)}"


def _about_the_server(error: Exception) -> str:
    cause = error.__cause__ or error
    said = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else None
    for kind, advice in _ADVICE.items():
        if isinstance(cause, kind) or isinstance(error, kind):
            return advice.format(said=_printable(said or _answers(error)))
    return _printable(_answers(error))


def _codes(error: Exception) -> list[int]:
    """Return the answers to RCPT or DATA that refused the letter; none for any other trouble."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return [refused.code for refused in error.recipients]
    if isinstance(error, aiosmtplib.SMTPRecipientRefused | aiosmtplib.SMTPDataError):
        return [error.code]
    return []


def _answers(error: Exception) -> str:
    """Return what the server answered, or else what the library says."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return "; ".join(f"{refused.code} {refused.message}" for refused in error.recipients)
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return f"{error.code} {error.message}"
    return str(error) or type(error).__name__


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(shown.split())[:_MAX_SAID]
