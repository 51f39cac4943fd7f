"""What an applicant has in hand and does in the wizard, and what is stored of it."""

from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from estserver.invitations import Handover
from tests.live import Live
from tests.web.visitor import Page, Visitor

MakeLive = Callable[[str], Live]
TYPO = "7K2-M4X-9QA"
SERVER_KEY = "\n[profiles.person]\nserver_key = true\n"
APPROVAL = "\n[profiles.person]\napproval = true\n"


def link(handover: Handover) -> str:
    assert handover.token is not None
    return f"/e/{handover.token.reveal()}"


def pin(handover: Handover) -> str:
    assert handover.pin is not None
    return handover.pin.reveal()


def wrong_pin(handover: Handover, live: Live) -> str:
    """Return the PIN of another invitation: well formed and wrong."""
    while (other := pin(live.invite("person"))) == pin(handover):
        pass
    return other


def signed_in(live: Live, handover: Handover) -> tuple[Visitor, Page]:
    visitor = Visitor(live)
    return visitor, visitor.enter(link(handover), pin(handover))


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)


def issued(live: Live, handover: Handover) -> list[x509.Certificate]:
    """Return the stored certificates of an invitation, newest first."""
    found = []
    for enrollment, _ in live.core.ra.of_invitation(handover.invitation.number):
        held = live.core.ra.certificate_of(enrollment.id)
        if held is not None:
            found.append(x509.load_der_x509_certificate(held[1]))
    return found
