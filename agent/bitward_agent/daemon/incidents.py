"""From verdicts to incidents, and from repairs to doubts about the hardware. Pure.

One incident per file and fault: the store counts further sightings of an open one (same path, kind and fault), and alerts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bitward_agent.daemon.facts import Incident, RepairRecord
from bitward_agent.findings import FileVerification

Place = Callable[[RepairRecord], int | None]
"""Where on its device a repaired block lies, in bytes; ``None`` if that cannot be told. ``extents.place_of_repair`` is one."""


def incident_of(found: FileVerification, now_ns: int, open_ones: Iterable[Incident] = ()) -> Incident | None:
    """The incident that a verdict is, ``None`` for an intact file. One that is open and still has its fault keeps its name."""
    raise NotImplementedError


def missing_incident(path: str, now_ns: int, message: str) -> Incident:
    """The incident of a protected file that is gone while its sidecar is there."""
    raise NotImplementedError


def ended_by(found: FileVerification, open_ones: Iterable[Incident]) -> tuple[tuple[Incident, str], ...]:
    """The open incidents of a file that a new verdict ends, each with its outcome."""
    raise NotImplementedError


def hardware_suspects(repairs: Sequence[RepairRecord], now_ns: int, place: Place | None = None) -> tuple[Incident, ...]:
    """What repairs say about disk and memory: the same cell again, neighbours on one disk across files, memory across files."""
    raise NotImplementedError
