"""The day a certificate ends, as an entry for the reader's calendar (RFC 5545)."""

from datetime import datetime, timedelta

_REMIND = (timedelta(days=-30), timedelta(days=-7))


def expiry_entry(uid: str, *, ends: datetime, made: datetime, title: str, text: str) -> bytes:
    """Make an .ics with one all-day event on the day in UTC that a certificate ends; UTF-8.

    `uid` names the event for ever: the same entry sent twice stays one event in the calendar.
    """
    # A quarter of a second to import, for letters that leave in the background.
    from icalendar import Alarm, Calendar, Event  # noqa: PLC0415 - see above

    event = Event()
    event.add("uid", uid)
    event.add("dtstamp", made)
    event.add("dtstart", ends.date())
    event.add("summary", title)
    event.add("description", text)
    # A day's reminder does not make its reader busy.
    event.add("transp", "TRANSPARENT")
    for before in _REMIND:
        alarm = Alarm()
        alarm.add("action", "DISPLAY")
        alarm.add("trigger", before)
        alarm.add("description", title)
        event.add_component(alarm)
    entry = Calendar()
    entry.add("version", "2.0")
    entry.add("prodid", "-//estserver//expiry//EN")
    entry.add("method", "PUBLISH")
    entry.add_component(event)
    octets: bytes = entry.to_ical()
    return octets
