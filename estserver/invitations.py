"""Invitations: issue one, hand it over, redeem its PIN, throttle guessing, change and end it.

Two secrets open an invitation. The URL token finds it, the PIN confirms. Both are derived or drawn
here and nowhere stored: of the token the database has a SHA-256, of the PIN a peppered hash.

The token is derived from the master secret rather than drawn, so that a mail can be rendered when
it is sent, and sent again, without the token lying in the outbox. To whoever lacks the master
secret it is 128 random bits.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from cryptography import x509

from estserver import pin
from estserver.errors import (
    BadCredentials,
    BadInput,
    Conflict,
    NotFound,
    TooManyAttempts,
)
from estserver.keyring import Keyring
from estserver.model import (
    Clock,
    Door,
    Event,
    Invitation,
    InvitationState,
    Origin,
    Secret,
)
from estserver.names import check_text, parse_general_name
from estserver.pin_hashing import PINHasher
from estserver.profiles import Profile
from estserver.registration import Handover, Registration
from estserver.settings import Limits
from estserver.steps import Steps, read, walk
from estserver.store import Store, Transaction, outbox, registrations
from estserver.store.registrations import PINHash
from estserver.throttling import SourceThrottle
from estserver.wording import counted

__all__ = [
    "DEAD_AT",
    "FREE_TRIES",
    "GUESSED_AT",
    "MAX_DELAY_SECONDS",
    "Handover",
    "Invitations",
    "Registration",
]

FREE_TRIES = 5
MAX_DELAY_SECONDS = 60
GUESSED_AT = 10
"""Wrong PINs behind one URL after which the administrator is told that somebody guesses."""
DEAD_AT = 100
"""Wrong PINs behind the URL after which the PIN is dead (NIST SP 800-63B §5.2.2)."""
_LONGEST = timedelta(days=3650)
_UNKNOWN_URL = "this link is not known: check that it is complete, or ask for a new one"
_WRONG_PIN = "the invitation number or the PIN is wrong"


class Invitations:
    """All that happens to an invitation except issuance. Thread-safe."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        keyring: Keyring,
        profiles: dict[str, Profile],
        limits: Limits,
        organization: str,
    ) -> None:
        self._store = store
        self._clock = clock
        self._keyring = keyring
        self._profiles = profiles
        self._throttle = SourceThrottle(clock, limits.guesses_per_source)
        self._organization = organization
        self._hasher = PINHasher(keyring)

    # -- registering -----------------------------------------------------------------------------

    def issue(self, registration: Registration, *, by: str, origin: Origin) -> Handover:
        """Register an applicant and return what is shown once.

        Raises BadInput: a name the profile does not certify, a missing field, a closed door.
        """
        checked = self._check(registration)
        while True:
            invitation = replace(checked, number=_new_number())
            access = pin.generate(_pin_symbols(invitation.doors))
            hashed = self._hasher.hash(pin.normalize(access.reveal()))
            token = self.url_token(invitation)
            url_hash = None if token is None else _token_hash(token)

            def unit(
                tx: Transaction,
                invitation: Invitation = invitation,
                hashed: PINHash = hashed,
                url_hash: bytes | None = url_hash,
            ) -> bool:
                added = registrations.add(tx, invitation, pin=hashed, url_hash=url_hash, by=by)
                if added:
                    tx.audit(
                        Event(
                            "invitation.issued",
                            by,
                            f"invitation {invitation.number}",
                            {"profile": invitation.profile, "label": invitation.label},
                        ),
                        origin,
                    )
                    if registration.mail and not registration.hold:
                        _post_invitation(tx, invitation)
                return added

            if self._store.write(unit):
                return Handover(invitation, access if _takes_pin(invitation.doors) else None, token)

    def _check(self, registration: Registration) -> Invitation:
        profile = self._profiles.get(registration.profile)
        if profile is None or profile.name.startswith("_"):
            known = ", ".join(sorted(name for name in self._profiles if not name.startswith("_")))
            raise BadInput(f"there is no profile {registration.profile}; there are {known}")
        if not 1 <= registration.units <= 1_000_000:
            raise BadInput("max must be between 1 and 1000000")
        _require_sensible(registration.expires)
        names = tuple(parse_general_name(text) for text in registration.names)
        email = registration.email
        if email is not None:
            address = parse_general_name(f"email:{email}")
            assert isinstance(address, x509.RFC822Name)  # noqa: S101 - narrows for mypy
            email = address.value
        now = self._clock.now()
        doors = registration.doors
        invitation = Invitation(
            number="",
            profile=profile.name,
            name=check_text(registration.name, "name", 64) if registration.name else "",
            email=email,
            device_id=None
            if registration.device_id is None
            else check_text(registration.device_id, "device id", 64),
            names=names,
            language=registration.language,
            doors=frozenset(profile.settings.default_doors) if doors is None else doors,
            units=registration.units,
            units_used=0,
            state=InvitationState.HELD if registration.hold else InvitationState.OPEN,
            approval=profile.settings.approval
            if registration.approval is None
            else registration.approval,
            created_at=now,
            expires_at=now + registration.expires,
            renew_until=registration.renew_until,
            pin_generation=1,
            pin_failures=0,
            pin_dead=False,
            renewal_pin=False,
            replaced=False,
            url_generation=1,
            organization=self._organization,
        )
        if not invitation.doors:
            raise BadInput("an invitation needs at least one door")
        profile.check_invitation(invitation)
        return invitation

    # -- finding ---------------------------------------------------------------------------------

    def get(self, number: str) -> Invitation:
        """Find an invitation by number. Raises NotFound."""
        return walk(self.getting(number), self._store)

    def getting(self, number: str) -> Steps[Invitation]:
        """Return the steps of `get`."""
        found = yield from read(_by_number, number)
        return _known(found, number)

    def by_token(self, token: str) -> Invitation:
        """Find an invitation by its URL token. Raises NotFound. Changes nothing."""
        if len(token) > 64:
            raise NotFound(_UNKNOWN_URL)
        digest = _token_hash(Secret(token))
        found = self._store.read(lambda tx: registrations.by_url(tx, digest))
        if found is None or Door.WEB not in found.doors:
            raise NotFound(_UNKNOWN_URL)
        return found

    def page(self, after: str | None = None, limit: int = 100) -> list[Invitation]:
        """List invitations, newest first, after the one with number `after`."""
        last = None if after is None else self.get(after)
        return list(self._store.read(lambda tx: registrations.page(tx, after=last, limit=limit)))

    def url_token(self, invitation: Invitation) -> Secret | None:
        """Return the URL token (22 characters base64url), or None where the web door is shut."""
        if Door.WEB not in invitation.doors:
            return None
        raw = self._keyring.derive(
            "invitation-url", invitation.number, str(invitation.url_generation), length=16
        )
        return Secret(base64.urlsafe_b64encode(raw).decode().rstrip("="))

    # -- redeeming a PIN -------------------------------------------------------------------------

    def confirm(self, invitation: Invitation, typed: Secret, *, source: str) -> None:
        """Check the PIN of an invitation that its secret URL has found.

        Five tries are free, then each must wait, doubling to a minute; at a hundred the PIN dies.
        Raises MistypedPIN, BadCredentials, TooManyAttempts.
        """
        symbols = pin.normalize(typed.reveal())
        # The try is counted before the slow hash, so that parallel guesses cannot all slip by.
        number = invitation.number
        failed_before, failures = self._store.write(lambda tx: self._begin_try(tx, number))
        stored = self._store.read(lambda tx: registrations.pin_hash(tx, number))
        if self._hasher.matches(stored, symbols):
            self._store.write(
                lambda tx: registrations.forgive_pin_failure(tx, number, failed_at=failed_before)
            )
            return
        if failures >= GUESSED_AT:
            self._store.write(lambda tx: self._tell_guessed(tx, number, failures))
        walk(self._throttle.count(source), self._store)
        raise BadCredentials("the PIN is wrong")

    def _begin_try(self, tx: Transaction, number: str) -> tuple[datetime, int]:
        """Count a try as wrong; return when the last one was, and how many there are now."""
        # Holds the row: guesses through several nodes wait for each other like all others.
        failed_at = registrations.pin_failed_at(tx, number)
        present = registrations.get(tx, number)
        if present is None:
            raise NotFound(_UNKNOWN_URL)
        if present.pin_dead:
            raise BadCredentials(
                "this PIN was tried too often and is dead: ask the administrator for a new one",
                reason="dead",
            )
        over = present.pin_failures - FREE_TRIES
        if over >= 0:
            delay = timedelta(seconds=min(MAX_DELAY_SECONDS, 2**over))
            wait = failed_at + delay - tx.now
            if wait > timedelta(0):
                raise TooManyAttempts(
                    f"too many wrong PINs: try again in {counted(wait.seconds, 'second')}",
                    retry_after=wait,
                )
        return failed_at, registrations.count_pin_failure(tx, number)

    def _tell_guessed(self, tx: Transaction, number: str, failures: int) -> None:
        """Tell the administrator that somebody guesses; at a hundred the PIN dies of it."""
        present = registrations.get(tx, number, hold=True)
        if present is None or present.pin_failures < failures:
            return  # there is a new PIN meanwhile
        once = f"{number}-{present.pin_generation}"
        if failures < DEAD_AT:
            values = {"failures": str(failures)}
            outbox.tell_administrator(tx, "pin-guessed", present, once, values)
        elif registrations.kill_pin(tx, number):
            died = Event("pin.dead", "server", f"invitation {number}", {"failures": failures})
            tx.audit(died, Origin("", "server"))
            outbox.tell_administrator(tx, "pin-dead", present, once, {})

    def redeeming(
        self, number: str, typed: Secret, *, source: str, counted: bool = True
    ) -> Steps[Invitation]:
        """Find and check an invitation at a guessable door: number (or empty) and long PIN.

        The hash is compared first: a right PIN is never refused because others guessed wrongly.
        `counted` False for requests that spend nothing: a wrong PIN is then no failed attempt.
        Raises BadCredentials, the same for unknown and wrong; TooManyAttempts for this source.
        """
        try:
            symbols = pin.normalize(typed.reveal())
        except BadCredentials:
            if counted:
                yield from self._throttle.require_quiet(source)
            raise
        found = yield from read(registrations.by_pins, self._hasher.pepper(symbols))
        # Octets, because compare_digest refuses text that is not ASCII.
        known = found is not None and hmac.compare_digest(
            (number or found.number).encode(), found.number.encode()
        )
        if found is None or not known or found.pin_dead:
            if counted:
                yield from self._throttle.require_quiet(source)
                yield from self._throttle.count(source)
            raise BadCredentials(_WRONG_PIN)
        return found

    # -- changing --------------------------------------------------------------------------------

    def release(self, number: str, *, by: str, origin: Origin) -> Invitation:
        """Open an invitation that was held back until its PIN was handed over; mail its URL.

        Raises NotFound, Conflict.
        """

        def unit(tx: Transaction) -> None:
            if not registrations.set_state(
                tx, number, before=InvitationState.HELD, to=InvitationState.OPEN
            ):
                raise Conflict(f"invitation {number} is not held back")
            tx.audit(Event("invitation.released", by, f"invitation {number}"), origin)
            opened = registrations.get(tx, number)
            if opened is not None:
                _post_invitation(tx, opened)

        self.get(number)
        self._store.write(unit)
        return self.get(number)

    def cancel(self, number: str, *, by: str, origin: Origin) -> Invitation:
        """End an invitation: no redemption, no repeated answer, no renewal. Revokes nothing.

        Raises NotFound, Conflict.
        """

        def unit(tx: Transaction) -> None:
            if not registrations.set_state(tx, number, before=None, to=InvitationState.CANCELLED):
                raise Conflict(f"invitation {number} is cancelled already")
            tx.audit(Event("invitation.cancelled", by, f"invitation {number}"), origin)

        self.get(number)
        self._store.write(unit)
        return self.get(number)

    def new_pin(
        self, number: str, *, expires: timedelta | None, by: str, origin: Origin
    ) -> Handover:
        """Replace the PIN; on a spent invitation the new one renews its certificate once.

        The expiry moves to `expires` from now, or stays where it is if that is later.
        Raises NotFound, Conflict (cancelled, or no door takes a PIN), BadInput (`expires`).
        """
        life = expires or timedelta(days=30)
        _require_sensible(life)
        access = pin.generate(_pin_symbols(self.get(number).doors))
        hashed = self._hasher.hash(pin.normalize(access.reveal()))

        def unit(tx: Transaction) -> None:
            present = _held(tx, number)
            if present.state is InvitationState.CANCELLED:
                raise Conflict(f"invitation {number} is cancelled")
            if not _takes_pin(present.doors):
                raise Conflict(f"invitation {number} has no door that takes a PIN")
            until = max(tx.now + life, present.expires_at)
            registrations.set_pin(tx, number, hashed, expires_at=until)
            tx.audit(Event("pin.renewed", by, f"invitation {number}"), origin)

        self._store.write(unit)
        fresh = self.get(number)
        return Handover(fresh, access, self.url_token(fresh))

    def resend(self, number: str, *, by: str, origin: Origin) -> Invitation:
        """Mail the URL again; PIN and URL stay the same.

        Raises NotFound, Conflict: cancelled, held back, or without web door or address.
        """

        def unit(tx: Transaction) -> Invitation:
            present = _held(tx, number)
            if present.state is not InvitationState.OPEN:
                raise Conflict(f"invitation {number} is {present.state}")
            if present.email is None or Door.WEB not in present.doors:
                raise Conflict(f"invitation {number} has no mail address or no web door")
            _post_invitation(tx, present)
            tx.audit(Event("invitation.resent", by, f"invitation {number}"), origin)
            return present

        return self._store.write(unit)


def _held(tx: Transaction, number: str) -> Invitation:
    """Return an invitation that nobody else changes until the commit. Raises NotFound."""
    return _known(registrations.get(tx, number, hold=True), number)


def _known(found: Invitation | None, number: str) -> Invitation:
    if found is None:
        raise NotFound(f"there is no invitation {number}")
    return found


def _by_number(tx: Transaction, numbers: Sequence[str]) -> list[Invitation | None]:
    found = registrations.by_numbers(tx, numbers)
    return [found.get(number) for number in numbers]


def _post_invitation(tx: Transaction, invitation: Invitation) -> None:
    if invitation.email is None or Door.WEB not in invitation.doors:
        return
    outbox.post(
        tx,
        identifier=f"invitation-{invitation.number}-{secrets.token_hex(8)}",
        template="invitation",
        invitation=invitation,
        recipient=invitation.email,
        values={},
    )


def _takes_pin(doors: frozenset[Door]) -> bool:
    return bool(doors & {Door.WEB, Door.EST})


def _pin_symbols(doors: frozenset[Door]) -> int:
    return pin.LONG if Door.EST in doors else pin.SHORT


def _require_sensible(life: timedelta) -> None:
    if not timedelta(0) < life <= _LONGEST:
        raise BadInput(f"expires must lie in the future, at most {_LONGEST.days} days ahead")


def _new_number() -> str:
    """Ten random digits: easy to say on the phone, and no hint how many there are."""
    return f"{secrets.randbelow(9 * 10**9) + 10**9}"


def _token_hash(token: Secret) -> bytes:
    return hashlib.sha256(b"url" + token.reveal().encode()).digest()
