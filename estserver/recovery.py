"""Recovery: a restored database is brought up to what the journal and published CRLs tell.

After a restore the certificates issued since the backup are unknown, and, worse, those revoked
since are good. Recovery works out the difference first and then applies it, so that it can be
shown before anything changes, and may run again: what is there stays as it is.

Certificates prove themselves by their issuer's signature. A revocation is believed: at worst
somebody needs a new certificate. An intent without its certificate is given up, never signed: no
client ever got what it became, and whoever could add a line to the journal could have anything
signed.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from estserver.ca.issuer import unsigned
from estserver.core import Core
from estserver.history import History, Standing, read_crl
from estserver.journal import Entry, Line, Reading
from estserver.model import Event, Origin, RevocationReason, Via
from estserver.sortable_ids import new_id
from estserver.store import Transaction, crls, health, refilling, revocations
from estserver.store.purging import PURGED
from estserver.store.refilling import Lost

_BATCH = 200
_NUMBERS = 1 << 63
_FACTS = {
    "invitation": None,
    "profile": refilling.UNKNOWN,
    "via": "internal",
    "applicant": "recovery",
    "proof": "none",
    "renews": None,
}
"""What is assumed of a certificate whose intent the journal lacks."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revocation to apply again; `enrollment` None: nothing is known of this serial."""

    issuer: str
    serial: int
    enrollment: str | None
    revoked_at: datetime
    reason: RevocationReason


@dataclass(slots=True)
class Difference:
    """What the database lacks. `problems`: what could not be used, each a sentence."""

    invitations: dict[str, dict[str, Any]] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    dead_pins: dict[str, int] = field(default_factory=dict)
    certificates: list[Lost] = field(default_factory=list)
    intents: list[Lost] = field(default_factory=list)
    revocations: list[Revocation] = field(default_factory=list)
    releases: dict[str, int] = field(default_factory=dict)
    """Serials of what is on hold and was released, by enrollment."""
    crl_numbers: dict[str, int] = field(default_factory=dict)
    units: list[str] = field(default_factory=list)
    """Invitations of which units turned out to be spent; known once it was applied."""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Tell whether the database lacks nothing."""
        return not (
            self.invitations
            or self.cancelled
            or self.dead_pins
            or self.certificates
            or self.intents
            or self.revocations
            or self.releases
            or self.crl_numbers
        )


def compare(core: Core, journal: Reading | None, published: Sequence[bytes]) -> Difference:
    """Work out what the database lacks of a journal and of published CRLs (DER or PEM).

    Raises BadInput: a CRL is not one of this instance's; Unavailable.
    """
    return _Comparison(core).run(journal, published)


class _Comparison:
    """Gathers the difference; keeps in memory only what the database lacks."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._found = Difference()
        self._facts: dict[str, tuple[Entry, int]] = {}
        self._signed: dict[str, tuple[bytes, int]] = {}
        self._registrations: dict[str, dict[str, Any]] = {}
        self._told: dict[str, tuple[bool, bool, int, int]] = {}
        self._history = History()
        self._numbers: dict[str, int] = {}

    def run(self, journal: Reading | None, published: Sequence[bytes]) -> Difference:
        if journal is not None:
            batch: list[Line] = []
            for line in journal:
                batch.append(line)
                if len(batch) == _BATCH:
                    self._take(batch)
                    batch = []
            self._take(batch)
            self._found.notes += journal.notes
            self._found.problems += journal.problems
        for octets in published:
            self._take_crl(octets)
        self._compare_registrations()
        self._compare_certificates()
        self._compare_revocations()
        self._compare_numbers()
        self._note_erased()
        return self._found

    def _take(self, batch: list[Line]) -> None:
        """Keep what is news; a line that makes no sense is a problem, not the end."""
        about = {str(line.entry.fields.get("enrollment", "")) for line in batch}
        known = self._core.store.read(lambda tx: refilling.known_enrollments(tx, sorted(about)))
        for line in batch:
            entry = line.entry
            try:
                match entry.kind:
                    case "registration":
                        self._remember(refilling.read_registration(entry.fields), line.at)
                    case "revocation" | "release":
                        self._history.take(entry)
                    case "crl":
                        number = int(entry.fields["number"])
                        if not 0 <= number < _NUMBERS:
                            raise ValueError(number)
                        self._take_number(entry.text("issuer"), number)
                    case "abandoned":
                        pass  # as every intent without its certificate
                    case "intent" | "certificate":
                        identifier = entry.text("enrollment")
                        row = known.get(identifier)
                        if row is None or row.certificate is None or not row.signed:
                            self._take_issuance(identifier, line)
                    case _:
                        self._found.notes.append(f"{line.where}: {entry.kind} is not known here")
            except (KeyError, TypeError, ValueError, OverflowError):
                self._found.problems.append(f"{line.where}: its {entry.kind} makes no sense")

    def _take_issuance(self, identifier: str, line: Line) -> None:
        if line.entry.kind == "intent":
            line.entry.octets("tbs")
            self._facts[identifier] = line.entry, line.at
            return
        # Of several the last counts: the others were written before commits that failed.
        before = self._signed.get(identifier)
        if before is None or before[1] <= line.at:
            self._signed[identifier] = line.entry.octets("der"), line.at

    def _take_number(self, issuer: str, number: int) -> None:
        self._numbers[issuer] = max(number, self._numbers.get(issuer, 0))

    def _take_crl(self, octets: bytes) -> None:
        issuer, crl = read_crl(octets, self._core.chains)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        self._take_number(issuer, number)
        self._history.take_crl(issuer, crl)

    # -- against the database --------------------------------------------------------------------

    def _remember(self, fields: dict[str, Any], at: int) -> None:
        """Keep how a registration stood last.

        Files of two processes may tell of the same second in either order: what is erased or
        cancelled stays so, and PINs are only ever replaced by newer ones.
        """
        number = fields["number"]
        cancelled = fields["state"] == "cancelled"
        told = fields["name"] == PURGED, cancelled, fields["pin_generation"], at
        if self._told.get(number, told) <= told:
            self._told[number] = told
            self._registrations[number] = fields

    def _compare_registrations(self) -> None:
        for numbers in _batches(sorted(self._registrations)):
            known = self._core.store.read(partial(refilling.known_invitations, numbers=numbers))
            for number in numbers:
                fields = self._registrations[number]
                if number not in known:
                    self._found.invitations[number] = fields
                    continue
                state, generation = known[number]
                if fields["state"] == "cancelled" and state != "cancelled":
                    self._found.cancelled.append(number)
                if fields["pin_generation"] > generation:
                    self._found.dead_pins[number] = fields["pin_generation"]

    def _note_erased(self) -> None:
        """Tell of what was erased and is back, out of the backup or out of the journal."""
        erased = [n for n, fields in self._registrations.items() if fields["name"] == PURGED]
        returning = (*self._found.certificates, *self._found.intents)
        back = {lost.facts["invitation"] for lost in returning}.intersection(erased)
        for numbers in _batches(erased):
            back |= self._core.store.read(partial(refilling.unerased, numbers=numbers))
        self._found.notes += [
            f"invitation {number}: had been erased: estserver purge --invitation {number}"
            for number in sorted(back)
        ]

    def _compare_certificates(self) -> None:
        for identifier in sorted(self._facts.keys() | self._signed.keys()):
            try:
                lost = self._lost(identifier)
            except Exception as error:  # noqa: BLE001 - the wall: parsers have many ways to refuse
                said = str(error) or "its signature is not that of its issuer"
                self._found.problems.append(f"enrollment {identifier}: {said}")
                continue
            if lost.der is None and self._is_there(identifier):
                continue
            (self._found.intents if lost.der is None else self._found.certificates).append(lost)
            if lost.facts["invitation"] is not None:
                self._require_invitation(lost.facts["invitation"], lost)

    def _require_invitation(self, number: str, lost: Lost) -> None:
        """Have a registration for a certificate to belong to; one nobody knows stays shut."""
        if number in self._registrations or number in self._found.invitations:
            return
        if number not in self._core.store.read(
            lambda tx: refilling.known_invitations(tx, [number])
        ):
            self._found.invitations[number] = refilling.nobodys_invitation(number, lost)
            self._found.notes.append(f"invitation {number}: nothing is known of it, it stays shut")

    def _is_there(self, identifier: str) -> bool:
        """Tell whether an intent without certificate is known already, as an intent."""
        known = self._core.store.read(lambda tx: refilling.known_enrollments(tx, [identifier]))
        return identifier in known and known[identifier].certificate is not None

    def _lost(self, identifier: str) -> Lost:
        """Put together what is known of one enrollment; raises whatever is wrong with it."""
        der, at = self._signed.get(identifier, (None, 0))
        entry, at = self._facts.get(identifier, (None, at))
        if der is not None:
            certificate = x509.load_der_x509_certificate(der)
            issuer = self._issuer_of(certificate)
            tbs = certificate.tbs_certificate_bytes
            if entry is not None and entry.octets("tbs") != tbs:
                raise ValueError("the certificate is not the draft of its intent")
        elif entry is not None:
            tbs = entry.octets("tbs")
            certificate, issuer = unsigned(tbs), entry.fields["issuer"]
        else:
            raise KeyError(identifier)
        facts = {"authority": f"recovered:{identifier}", **_FACTS}
        if entry is not None:
            facts |= {
                name: entry.text(name)
                for name, assumed in facts.items()
                if assumed is not None or entry.fields[name] is not None
            }
            Via(entry.text("via"))
        # Parsing is lazy: what may yet throw must do so here.
        _ = certificate.extensions
        spki = certificate.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        return Lost(
            enrollment=identifier,
            facts={**facts, "issuer": issuer},
            at=at,
            tbs=tbs,
            certificate=certificate,
            spki=spki,
            spki_sha256=hashlib.sha256(spki).digest(),
            der=der,
            sha256=None if der is None else hashlib.sha256(der).digest(),
        )

    def _issuer_of(self, certificate: x509.Certificate) -> str:
        """Name the issuer that signed a certificate. Raises ValueError: none of ours did."""
        for name, chain in self._core.chains.items():
            if certificate.issuer == chain[0].subject:
                certificate.verify_directly_issued_by(chain[0])
                return name
        raise ValueError("its issuer is none of this instance's")

    def _compare_revocations(self) -> None:
        returning = {
            (lost.facts["issuer"], lost.certificate.serial_number): lost.enrollment
            for lost in (*self._found.certificates, *self._found.intents)
        }
        by_issuer: dict[str, list[int]] = {}
        for issuer, serial in sorted(self._history.told):
            by_issuer.setdefault(issuer, []).append(serial)
        for issuer, serials in by_issuer.items():
            if issuer not in self._core.chains:
                self._found.problems.append(f"issuer {issuer} of revocations is not configured")
                continue
            for some in _batches(serials):
                known = self._core.store.read(
                    partial(refilling.known_revocations, issuer=issuer, serials=some)
                )
                for serial in some:
                    told = self._history.told[issuer, serial]
                    enrollment, revoked = known.get(serial, (None, None))
                    if not told.is_news_to(None if revoked is None else Standing(*revoked)):
                        continue
                    # What comes back takes the place of what an earlier recovery knew of it.
                    enrollment = returning.get((issuer, serial), enrollment)
                    if told.reason is not None:
                        self._found.revocations.append(
                            Revocation(issuer, serial, enrollment, told.at, told.reason)
                        )
                    elif enrollment is not None:
                        self._found.releases[enrollment] = serial

    def _compare_numbers(self) -> None:
        for issuer, number in self._numbers.items():
            newest = self._core.store.read(partial(revocations.newest_crl_number, issuer=issuer))
            if number > newest:
                self._found.crl_numbers[issuer] = number


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), _BATCH):
        yield items[first : first + _BATCH]


# -- applying -------------------------------------------------------------------------------------


def apply(
    core: Core,
    difference: Difference,
    *,
    by: str,
    origin: Origin,
    progress: Callable[[str, int], None] = lambda _what, _done: None,
) -> None:
    """Put everything back, in batches, each with its audit rows; fills in `difference.units`.

    Killed half-way, it is run again. Raises Unavailable.
    """
    write = core.store.write
    for numbers in _batches(list(difference.invitations)):
        write(partial(_put_invitations, difference=difference, numbers=numbers))
    for number in difference.cancelled:
        write(partial(refilling.close_invitation, number=number))
    for number, generation in difference.dead_pins.items():
        write(partial(refilling.kill_pin, number=number, generation=generation))
    returning = [*difference.certificates, *difference.intents]
    done = 0
    for some in _batches(returning):
        units = write(partial(_put_enrollments, some=some, by=by, origin=origin))
        seen = {*difference.units, *difference.invitations}
        difference.units += [number for number in units if number not in seen]
        done += len(some)
        progress("certificates", done)
    done = 0
    for again in _batches(difference.revocations):
        unit = partial(_revoke, core=core, again=again, by=by, origin=origin)
        write(unit)
        done += len(again)
        progress("revocations", done)
    for some in _batches(list(difference.releases.items())):
        write(partial(_release, released=some, by=by, origin=origin))
    write(partial(_finish, difference=difference, by=by, origin=origin))


def _put_invitations(tx: Transaction, difference: Difference, numbers: Iterable[str]) -> None:
    for number in numbers:
        refilling.add_invitation(tx, difference.invitations[number])


def _put_enrollments(tx: Transaction, some: Sequence[Lost], by: str, origin: Origin) -> list[str]:
    """Put enrollments back; return the invitations of which more is spent than was known."""
    touched: dict[str, None] = {}
    for lost in some:
        refilling.put_back(tx, lost)
        number = lost.facts["invitation"]
        if number is not None:
            touched[number] = None
            if lost.facts["renews"] is not None and lost.der is not None:
                refilling.spend_rights(tx, number, lost.facts["authority"])
        serial, signed = lost.certificate.serial_number, lost.der is not None
        tx.audit(_recovered(serial, lost.enrollment, by, signed=signed), origin)
    return [number for number in touched if refilling.count_units(tx, number)]


def _recovered(serial: int, enrollment: str, by: str, *, signed: bool) -> Event:
    about = f"certificate {serial:x}"
    return Event("certificate.recovered", by, about, {"enrollment": enrollment, "signed": signed})


def _revoke(
    tx: Transaction, core: Core, again: Sequence[Revocation], by: str, origin: Origin
) -> None:
    for revocation in again:
        enrollment = revocation.enrollment
        if enrollment is None:
            enrollment = new_id(tx.now)
            not_after = core.chains[revocation.issuer][0].not_valid_after_utc
            refilling.add_unknown(tx, enrollment, revocation.issuer, revocation.serial, not_after)
            tx.audit(_recovered(revocation.serial, enrollment, by, signed=False), origin)
        refilling.revoke_again(tx, enrollment, revocation.revoked_at, revocation.reason)
        told = {"reason": revocation.reason.value, "recovered": True, "enrollment": enrollment}
        event = Event("certificate.revoked", by, f"certificate {revocation.serial:x}", told)
        tx.audit(event, origin)


def _release(tx: Transaction, released: Iterable[tuple[str, int]], by: str, origin: Origin) -> None:
    for enrollment, serial in released:
        if revocations.release(tx, enrollment):
            event = Event(
                "certificate.released",
                by,
                f"certificate {serial:x}",
                {"recovered": True, "enrollment": enrollment},
            )
            tx.audit(event, origin)


def _finish(tx: Transaction, difference: Difference, by: str, origin: Origin) -> None:
    for issuer, number in difference.crl_numbers.items():
        refilling.raise_crl_number(tx, issuer, number)
    for issuer in {*difference.crl_numbers, *(one.issuer for one in difference.revocations)}:
        # Those in the database are older than what was published, or lack what came back.
        crls.dismiss(tx, issuer)
    told: dict[str, str | int | bool | None] = {
        "invitations": len(difference.invitations),
        "certificates": len(difference.certificates),
        "intents": len(difference.intents),
        "revocations": len(difference.revocations),
        "releases": len(difference.releases),
        "problems": len(difference.problems),
    }
    tx.audit(Event(health.RECOVERED, by, "instance", told), origin)
