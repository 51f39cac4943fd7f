"""A walk through every page in every state: for what all pages must keep to, and for pictures.

Each function yields the name of a state and the page that shows it; the next one follows when the
caller asks for it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from playwright.sync_api import Page, expect

from estserver.invitations import Handover
from estserver.model import CertificateRecord, CertificateState, Language, RevocationReason
from tests.browsers.chromium import Shown, save_download
from tests.live import ORIGIN, Live
from tests.web.applicant import issued, pin

TOML = """
[revocation]
hold = true
[profiles.person]
server_key = true
# First, because it is made in no time.
keys = ["ec-p256", "rsa-3072", "rsa-4096"]
"""
"""What the instance must be configured with."""
Sight = tuple[str, Page]
PIN = "input[name=pin]"
NEXT = "button[name=next]"
ISSUE = "button[name=issue]"
DOWNLOAD = "#download"
PASSWORD = "input[name=p12-password]"
STEP = "[aria-current=step]"


@dataclass(frozen=True, slots=True)
class Gallery:
    """`come` opens a page of somebody new: see Chromium.person. The instance's clock may move."""

    come: Callable[..., Page]
    live: Live
    folder: Path
    language: Language

    def walk(self) -> Iterator[Sight]:
        """Show every page once."""
        yield from self._open_to_all()
        yield from self._wizard()
        yield from self._approval()
        yield from self._scriptless()
        yield from self._ended()
        yield from self._certificate()

    def _open_to_all(self) -> Iterator[Sight]:
        page = self._somebody()
        for path in ("", "trust", "help", "nothing", "e/unknown"):
            page.goto(f"{self.live.url('web')}/{path}")
            yield f"web-{path.replace('/', '-') or 'landing'}", page
        for path in ("", "test", "renew"):
            page.goto(f"{self.live.url('devices')}/{path}")
            yield f"devices-{path or 'landing'}-without-certificate", page

    def _wizard(self) -> Iterator[Sight]:
        invited, other = self._invite(units=2), self._invite()
        page = self._somebody()
        page.goto(link(self.live, invited))
        yield "step1", page
        page.fill(PIN, _mistyped(invited))
        page.click(NEXT)
        expect(page.locator("#pin-problem")).to_be_visible()
        yield "step1-mistyped", page
        for _ in range(3):
            page.fill(PIN, pin(other))
            page.click(NEXT)
            expect(page.locator("#error")).to_be_visible()
        yield "step1-wrong-thrice", page
        enter_pin(page, invited)
        yield "step2", page
        page.fill(PASSWORD, "短い")
        page.click(ISSUE)
        expect(page.locator("#p12-password-problem")).to_be_visible()
        yield "step2-bad-password", page
        page.reload()
        page.locator("#advanced summary").click()
        for method in ("csr", "server"):
            page.check(f"#method-{method}")
            yield f"step2-{method}", page
        page.goto(f"{link(self.live, invited)}/pin")
        yield "step1-confirmed", page

        page.goto(link(self.live, invited))
        elsewhere = self._somebody()
        confirm(elsewhere, self.live, invited)
        take(page, self.folder)
        yield "step3", page
        take(elsewhere, self.folder)
        for summary in elsewhere.locator("summary").all():
            summary.click()
        yield "step3-unfolded", elsewhere
        page.goto(f"{link(self.live, invited)}/another")
        yield "another-refused", page
        third = self._somebody()
        confirm(third, self.live, invited)
        yield "step3-key-elsewhere", third
        third.goto(f"{link(self.live, invited)}/replace")
        yield "replace", third
        page.goto(link(self.live, invited))
        expect(page.locator(DOWNLOAD)).to_be_visible()
        page.click("button[name=taken]")
        expect(page.locator(".notice.good")).to_be_visible()
        yield "step3-taken", page

        late = self._somebody()
        confirm(late, self.live, other)
        late.context.clear_cookies()
        late.click(ISSUE)
        expect(late.locator("#error")).to_be_visible()
        yield "step2-session-ended", late

    def _approval(self) -> Iterator[Sight]:
        invited = self._invite(approval=True)
        page = self._somebody()
        confirm(page, self.live, invited)
        yield "step2-approval", page
        page.click(ISSUE)
        expect(page.locator(ISSUE)).to_have_count(0)
        yield "waiting", page
        enrollment, _ = self.live.core.ra.of_invitation(invited.invitation.number)[0]
        reason = "所属を確認できませんでした" if self._japanese else "the department is not known"
        self.live.core.ra.reject(enrollment.id, reason=reason, by="test", origin=ORIGIN)
        page.goto(link(self.live, invited))
        yield "step2-rejected", page

    def _scriptless(self) -> Iterator[Sight]:
        invited = self._invite()
        page = self._somebody(javascript=False)
        page.goto(link(self.live, invited))
        enter_pin(page, invited)
        page.check("#method-server")
        yield "step2-scriptless", page
        save_download(page, self.folder, after=ISSUE)
        page.goto(link(self.live, invited))
        yield "step3-scriptless", page

    def _ended(self) -> Iterator[Sight]:
        page = self._somebody()
        cancelled, held, guessed = self._invite(), self._invite(hold=True), self._invite()
        self.live.core.invitations.cancel(cancelled.invitation.number, by="test", origin=ORIGIN)
        page.goto(link(self.live, cancelled))
        yield "cancelled", page
        page.goto(link(self.live, held))
        yield "held", page
        page.goto(link(self.live, guessed))
        slower = page.locator("#error[data-code=too-many-attempts]")
        # The waiting time doubles, so that a slow machine needs a try or two more.
        for _ in range(15):
            page.fill(PIN, pin(held))
            with page.expect_navigation():
                page.click(NEXT)
            if slower.count():
                break
        expect(slower).to_be_visible()
        yield "step1-too-many", page

    def _certificate(self) -> Iterator[Sight]:
        invited = self._invite()
        page = self._somebody()
        confirm(page, self.live, invited)
        path, password = take(page, self.folder)
        devices = self.live.url("devices")
        holder = self._somebody(shows=Shown(devices, path, password))
        holder.goto(f"{devices}/test")
        yield "test-works", holder
        holder.goto(f"{devices}/renew")
        yield "renew", holder
        take(holder, self.folder)
        yield "renewed", holder
        holder.goto(f"{devices}/test")
        yield "test-newer", holder
        holder.goto(f"{devices}/renew?again=1")
        yield "renew-again", holder

        ra = self.live.core.ra
        records = [ra.find(one.serial_number) for one in issued(self.live, invited)]
        for record in records:
            self._revoke(record, RevocationReason.CERTIFICATE_HOLD)
        for way in ("test", "renew"):
            holder.goto(f"{devices}/{way}")
            yield f"{way}-on-hold", holder
        page.goto(link(self.live, invited))
        yield "step3-on-hold", page
        for record in records:
            ra.release(record.enrollment, comment=None, by="test", origin=ORIGIN)

        renewal = self.live.core.invitations.new_pin(
            invited.invitation.number, expires=None, by="test", origin=ORIGIN
        )
        page.goto(link(self.live, renewal))
        yield "step1-new-pin", page
        confirm(page, self.live, renewal)
        yield "step2-renewal-pin", page

        self.live.clock.advance(timedelta(days=400))
        holder.goto(f"{devices}/test")
        yield "test-expired", holder
        holder.goto(f"{devices}/renew")
        yield "renew-expired", holder
        late = self._somebody()
        late.goto(link(self.live, invited))
        yield "expired", late
        self.live.clock.advance(timedelta(days=-400))
        holder.goto(f"{devices}/revoke")
        yield "revoke", holder
        holder.check("#reason-affiliationChanged")
        holder.check("#confirm")
        holder.click("button[name=revoke]")
        yield "revoked", holder
        for record in records:
            if ra.certificate(record.enrollment).state is not CertificateState.REVOKED:
                self._revoke(record, RevocationReason.AFFILIATION_CHANGED)
        holder.goto(f"{devices}/renew")
        yield "renew-revoked", holder
        page.goto(link(self.live, renewal))
        yield "step2-revoked", page

    @property
    def _japanese(self) -> bool:
        return self.language is Language.JA

    def _somebody(self, **how: object) -> Page:
        return self.come(locale=self.language.value, **how)

    def _revoke(self, record: CertificateRecord, reason: RevocationReason) -> None:
        self.live.core.ra.revoke(
            record.enrollment, reason=reason, comment=None, by="test", origin=ORIGIN
        )

    def _invite(self, **registration: object) -> Handover:
        return self.live.invite("person", language=self.language, **registration)


def link(live: Live, handover: Handover) -> str:
    """Return the link that is mailed."""
    assert handover.token is not None
    return f"{live.url('web')}/e/{handover.token.reveal()}"


def enter_pin(page: Page, handover: Handover) -> None:
    """Enter the PIN in STEP1 and wait for what follows, its scripts included."""
    page.fill(PIN, pin(handover))
    with page.expect_navigation():
        page.click(NEXT)


def confirm(page: Page, live: Live, handover: Handover) -> None:
    """Open the link and enter the PIN."""
    page.goto(link(live, handover))
    enter_pin(page, handover)


def take(page: Page, folder: Path, *, after: str = ISSUE) -> tuple[Path, str]:
    """Press Issue, wait for the file, and return where it is and its password."""
    path = save_download(page, folder, after=after)
    return path, page.input_value(PASSWORD)


def _mistyped(handover: Handover) -> str:
    right = pin(handover)
    return right[:-1] + ("8" if right[-1] == "7" else "7")
