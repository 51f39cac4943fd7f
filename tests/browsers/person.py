"""A person at Firefox, and the file that she is given."""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from estserver.invitations import Handover
from tests.browsers.firefox import Firefox
from tests.live import Live

PIN = "input[name=pin]"
NEXT = "button[name=next]"
ISSUE = "button[name=issue]"
DOWNLOAD = "#download"
PASSWORD = "input[name=p12-password]"
STEP = "[aria-current=step]"


IMPORTED, WRONG_PASSWORD = 0, 6


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a link and a PIN in front of a Firefox."""

    firefox: Firefox
    live: Live
    handover: Handover

    @property
    def number(self) -> str:
        return self.handover.invitation.number

    @property
    def link(self) -> str:
        assert self.handover.token is not None
        return f"{self.live.url('web')}/e/{self.handover.token.reveal()}"

    @property
    def pin(self) -> str:
        assert self.handover.pin is not None
        return self.handover.pin.reveal()

    def confirm(self) -> None:
        """Open the link and enter the PIN."""
        self.firefox.open(self.link)
        self.firefox.fill(PIN, self.pin)
        self.firefox.press(NEXT)

    def issue(self) -> "File":
        """Press Issue in STEP2 and wait for the file."""
        self.firefox.click(ISSUE)
        return take(self.firefox)

    def issued(self) -> list[x509.Certificate]:
        """Return the certificates of the registration, newest first, as the store has them."""
        found = self.live.core.ra.of_invitation(self.number)
        held = [self.live.core.ra.certificate_of(enrollment.id) for enrollment, _ in found]
        return [x509.load_der_x509_certificate(one[1]) for one in held if one is not None]


@dataclass(frozen=True, slots=True)
class File:
    """A downloaded PKCS#12 file and what STEP3 said about it."""

    path: Path
    password: str
    serial: str

    def certificate(self) -> x509.Certificate:
        """Open the file, check that the key is that of the certificate, return the latter."""
        key, certificate, others = pkcs12.load_key_and_certificates(
            self.path.read_bytes(), self.password.encode()
        )
        assert key is not None
        assert certificate is not None
        assert key.public_key() == certificate.public_key()
        assert len(others) == 2
        return certificate


def take(firefox: Firefox) -> File:
    """Wait for STEP3 and the file that it hands over."""
    firefox.shown(DOWNLOAD)
    path = firefox.next_download()
    return File(path, firefox.value(PASSWORD), firefox.text("#serial"))


def person(firefox: Firefox, live: Live, **registration: object) -> Person:
    return Person(firefox, live, live.invite("person", **registration))


def holder(firefox: Firefox, live: Live) -> File:
    """Return the file of somebody who has taken and imported a certificate."""
    somebody = person(firefox, live)
    somebody.confirm()
    file = somebody.issue()
    assert firefox.import_pkcs12(file.path, file.password) == IMPORTED
    return file
