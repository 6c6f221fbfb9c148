"""What the agent's modules tell each other and what its store keeps, as frozen values.

Times are nanoseconds since 1970 (``time.time_ns``), 0 for never. Paths are absolute, in the file system's bytes (surrogateescape).
"""

from __future__ import annotations

from enum import StrEnum

from bitward_agent.findings import Verdict
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """One file that the agent knows.

    ``watch`` is the path of the watch that it belongs to, ``root`` the sidecar's file root in hex (empty: not protected), ``origin`` as
    in reports. ``verdict`` is None until the file was verified whole for the first time. ``scrub_position_bytes`` is how far an
    unfinished scrub has come; ``suspect`` that it met a block that differs. ``seen_mtime_ns``, ``seen_size`` and ``seen_inode`` are those
    of the file when it was last looked at. ``failures`` counts attempts in a row that came to nothing; until ``retry_ns`` there is none.
    ``damaged_blocks`` are left after the last healing.
    """

    path: str
    watch: str
    root: str = ""
    origin: str = ""
    verdict: Verdict | None = None
    bytes: int = 0
    last_full_verify_ns: int = 0
    scrub_position_bytes: int = 0
    seen_mtime_ns: int = 0
    seen_size: int = 0
    message: str = ""
    sidecar: str = ""
    seen_inode: int = 0
    failures: int = 0
    retry_ns: int = 0
    suspect: bool = False
    damaged_blocks: int = 0


class IncidentKind(StrEnum):
    """What an incident is about."""

    DAMAGED = "damaged"
    CHANGED = "changed"
    UNVERIFIABLE = "unverifiable"
    MISSING = "missing"
    HARDWARE_SUSPECT = "hardware-suspect"
    STATE_LOST = "state-lost"


@dataclass(frozen=True, slots=True)
class Incident:
    """Something a person should know, told once.

    ``fault`` is what makes two sightings the same incident, beside ``path`` and ``kind``: tensor and block of the first damage, say. ``id``
    is 0 until the store has given one; ``seen_count`` counts sightings. ``closed_ns`` is 0 while the incident is open; ``outcome`` says how
    it ended (healed, reverted, accepted, gone …), ``alerted`` whether somebody was told. ``block`` and ``offset`` are -1 where they make no
    sense, ``flip_count`` 0 where unknown.
    """

    path: str
    kind: IncidentKind
    fault: str
    opened_ns: int
    message: str
    medium: str = "unknown"
    tensor: str | None = None
    block: int = -1
    offset: int = -1
    flip_count: int = 0
    id: int = 0
    seen_ns: int = 0
    seen_count: int = 1
    closed_ns: int = 0
    outcome: str = ""
    alerted: bool = False


@dataclass(frozen=True, slots=True)
class RepairRecord:
    """One block that was put right. ``cell`` is the byte of the file that held the first wrong bit, -1 if unknown."""

    at_ns: int
    path: str
    tensor: str | None
    block: int
    offset: int
    length: int
    source: str
    medium: str
    flip_count: int
    cell: int = -1
    device: int = 0


@dataclass(frozen=True, slots=True)
class FlipRecord:
    """One bit of a repair: for the log, and for seeing that the same cell fails again. ``offset`` is the byte of the file."""

    tensor: str | None
    index: tuple[int, ...]
    bit: int
    offset: int


class EventKind(StrEnum):
    """What happened. Each kind has a MESSAGE_ID of its own in the journal."""

    STARTED = "started"
    STOPPED = "stopped"
    RELOADED = "reloaded"
    CONFIG_REFUSED = "config-refused"
    STATE_LOST = "state-lost"
    STATE_FULL = "state-full"
    PROTECTED = "protected"
    REPORTED_NEW = "reported-new"
    VERIFIED = "verified"
    DAMAGE_FOUND = "damage-found"
    HEALED = "healed"
    NOT_HEALED = "not-healed"
    HANDED_OVER = "handed-over"
    CHANGED = "changed"
    GONE = "gone"
    INDEXED = "indexed"
    UNVERIFIABLE = "unverifiable"
    HARDWARE_SUSPECT = "hardware-suspect"
    INCIDENT_CLOSED = "incident-closed"
    ALERT_FAILED = "alert-failed"
    PAUSED = "paused"
    RESUMED = "resumed"
    EXPECTING = "expecting"
    WATCH_LIMIT = "watch-limit"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the agent's log. ``fields`` are (name, value) pairs in lower case: ``tensor``, ``bit``, ``medium``, ``source`` …"""

    at_ns: int
    kind: EventKind
    path: str
    message: str
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Expectation:
    """Somebody said that this path, or what lies below it, will be rewritten until then."""

    path: str
    until_ns: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What the agent counted since its state began: bits put right by medium, blocks healed, lost ones now, bytes read by scrubs."""

    corrected_bits: tuple[tuple[str, int], ...] = ()
    healed_blocks: int = 0
    scrubbed_bytes: int = 0
    incidents: int = 0
