"""The agent's log: events as journal entries with fields, as lines of JSON, or as lines of text.

The journal's native protocol is a datagram to ``/run/systemd/journal/socket``: ``NAME=value`` lines, or for values with newlines the name,
a newline, the length as 64-bit little endian, and the value. Source: systemd's "Native Journal Protocol" page and
systemd.journal-fields(7).
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
import time
from contextlib import suppress
from typing import TextIO

from bitward_agent.daemon.config import LogForm
from bitward_agent.daemon.facts import Event, EventKind

JOURNAL_SOCKET = "/run/systemd/journal/socket"
FIELD_BYTES_LIMIT = 8192
DATAGRAM_FIELDS_LIMIT = 64
FAULT_EVERY_SECONDS = 60.0

MESSAGE_IDS: dict[EventKind, str] = {
    EventKind.STARTED: "d48b1fd913cf4a3294e5b327e4c0ad43",
    EventKind.STOPPED: "b16c3b521daf49a8b2f86914081ccb97",
    EventKind.RELOADED: "bae43d28ea7c493fb17ddb72050f1495",
    EventKind.CONFIG_REFUSED: "35e22fdfef0f43e2abfe949b5ecb3bc7",
    EventKind.STATE_LOST: "a04bb80080e44f30b6d513c718b7bf87",
    EventKind.STATE_FULL: "9b09f51ccb3341c0aff7719912b3a5d9",
    EventKind.PROTECTED: "c519725230af42c19a4a83853b829c23",
    EventKind.REPORTED_NEW: "722eff9b439e4c48a02a3573de13bb5d",
    EventKind.VERIFIED: "2a5729d603ac4665a304809ff046c4f0",
    EventKind.DAMAGE_FOUND: "9f37fd3db9ce4fc9ad248b5ba78b92f7",
    EventKind.HEALED: "f77a53586e854f30a8729f6bf777c989",
    EventKind.NOT_HEALED: "ed3a6543c7894b14bd6bec7a4f9bc7c6",
    EventKind.HANDED_OVER: "db2140e4105f4730aeb37a42403cdf65",
    EventKind.CHANGED: "81c99d5508e04db68a4f29225fee0d9b",
    EventKind.GONE: "7f08f8659cc14e19934026fc80ff66f2",
    EventKind.INDEXED: "e9b19dc692254fb28e992822733371b7",
    EventKind.UNVERIFIABLE: "e181f17f1580423fbaf7b9f3a0bed87a",
    EventKind.HARDWARE_SUSPECT: "58c137e784534185ae42795122f7afe3",
    EventKind.INCIDENT_CLOSED: "37b89c6a743c42d68a53515c0045c090",
    EventKind.ALERT_FAILED: "1ca559d39538482fb295e474ea41d7b3",
    EventKind.PAUSED: "6030674fbe3d4cbd83150d8db8e5a310",
    EventKind.RESUMED: "f825feff1c174bb5a2f2352c1d41f6f6",
    EventKind.EXPECTING: "d316417068df4501bc415b7b698268eb",
    EventKind.WATCH_LIMIT: "f01a03e6daa143c09e293e899866cd0e",
    EventKind.FAULT: "81d4914b50d94576956db6d271cc5803",
}
"""One for each kind, drawn once and never changed: people filter by them (``journalctl MESSAGE_ID=…``)."""

_ERROR, _WARNING, _NOTICE, _INFO = 3, 4, 5, 6
_PRIORITIES: dict[EventKind, int] = {
    EventKind.NOT_HEALED: _ERROR,
    EventKind.HARDWARE_SUSPECT: _ERROR,
    EventKind.FAULT: _ERROR,
    EventKind.STATE_LOST: _ERROR,
    EventKind.DAMAGE_FOUND: _WARNING,
    EventKind.UNVERIFIABLE: _WARNING,
    EventKind.CONFIG_REFUSED: _WARNING,
    EventKind.STATE_FULL: _WARNING,
    EventKind.ALERT_FAILED: _WARNING,
    EventKind.WATCH_LIMIT: _WARNING,
    EventKind.GONE: _NOTICE,
    EventKind.CHANGED: _NOTICE,
    EventKind.HEALED: _NOTICE,
    EventKind.REPORTED_NEW: _NOTICE,
    EventKind.HANDED_OVER: _NOTICE,
}
_WORDS = {_ERROR: "error", _WARNING: "warning", _NOTICE: "notice", _INFO: "info"}


def priority(kind: EventKind) -> int:
    """The syslog priority of a kind of event."""
    return _PRIORITIES.get(kind, _INFO)


def one_line(text: str) -> str:
    """Text that cannot pretend to be another line or command a terminal: whatever does not print is escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text)


def text_line(event: Event) -> str:
    """An event for people."""
    path = f"{one_line(event.path)}: " if event.path else ""
    return f"{_time_of(event)} {_WORDS[priority(event.kind)]} {event.kind.value}: {path}{one_line(event.message)}"


def json_line(event: Event) -> str:
    """An event for programs, in one line of ASCII. Bytes of names that are no UTF-8 come as lone surrogates."""
    document: dict[str, object] = {
        "schema": "bitward.event/1",
        "time": _time_of(event),
        "time_ns": event.at_ns,
        "level": _WORDS[priority(event.kind)],
        "event": event.kind.value,
        "message_id": MESSAGE_IDS[event.kind],
        "path": event.path or None,
        "message": event.message,
        **{name: value for name, value in event.fields if name not in _TAKEN},
    }
    return json.dumps(document)


_TAKEN = frozenset({"schema", "time", "time_ns", "level", "event", "message_id", "path", "message"})


def _time_of(event: Event) -> str:
    seconds, rest = divmod(event.at_ns, 1_000_000_000)
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"


def journal_datagram(event: Event) -> bytes:
    """An event in the journal's native protocol."""
    path = f"{event.path}: " if event.path else ""
    pairs = [
        ("MESSAGE", f"{path}{event.message}"),
        ("MESSAGE_ID", MESSAGE_IDS[event.kind]),
        ("PRIORITY", str(priority(event.kind))),
        ("SYSLOG_IDENTIFIER", "bitward-agent"),
        ("BITWARD_EVENT", event.kind.value),
    ]
    if event.path:
        pairs.append(("BITWARD_PATH", event.path))
    pairs += [(f"BITWARD_{name.upper()}", value) for name, value in event.fields[:DATAGRAM_FIELDS_LIMIT] if _is_field_name(name)]
    return b"".join(_journal_field(name, value) for name, value in pairs)


def _is_field_name(name: str) -> bool:
    return name not in ("path", "event") and name.isascii() and name.replace("_", "").isalnum() and len(name) <= 50


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape" if _is_escaped(value) else "backslashreplace")[:FIELD_BYTES_LIMIT]
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _is_escaped(value: str) -> bool:
    """Whether all surrogates stand for bytes of a name, so that those bytes can be given."""
    return all(not "\ud800" <= one <= "\udfff" or "\udc80" <= one <= "\udcff" for one in value)


class Log:
    """Where events are written. Never raises: a log that cannot be written must not stop the work."""

    def __init__(self, form: LogForm, *, stream: TextIO | None = None, journal: str = JOURNAL_SOCKET) -> None:
        self.form = form
        self._stream = sys.stderr if stream is None else stream
        self._journal = journal
        self._socket: socket.socket | None = None
        self._told_at = -FAULT_EVERY_SECONDS

    def write(self, event: Event) -> None:
        """Write one event; to the stream where the journal does not answer."""
        if self.form is LogForm.JOURNAL:
            try:
                self._send(journal_datagram(event))
            except OSError as error:
                self._fall_back(event, error)
            return
        self._print(json_line(event) if self.form is LogForm.JSON else text_line(event))

    def _fall_back(self, event: Event, error: OSError) -> None:
        if time.monotonic() - self._told_at >= FAULT_EVERY_SECONDS:
            self._told_at = time.monotonic()
            self._print(f"the journal does not take entries ({error.strerror}): they come here")
        self._print(text_line(event))

    def _send(self, datagram: bytes) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(1.0)
        self._socket.sendto(datagram, self._journal)

    def _print(self, line: str) -> None:
        with suppress(OSError, ValueError):
            encoding = self._stream.encoding or "utf-8"
            self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + os.linesep)
            self._stream.flush()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
