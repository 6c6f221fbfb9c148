"""From verdicts to incidents, and from repairs to doubts about the hardware. Pure.

One incident per file and fault: the store counts further sightings of an open one (same path, kind and fault), and alerts once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from bitward_agent.daemon.facts import Incident, IncidentKind, RepairRecord
from bitward_agent.findings import Damage, FileVerification, Verdict
from bitward_agent.medium import DISK, MEMORY, UNKNOWN
from bitward_agent.verify import MOVES_TOLD, REPLACED_TOLD

Place = Callable[[RepairRecord], int | None]
"""Where on its device a repaired block lies, in bytes; ``None`` if that cannot be told. ``extents.place_of_repair`` is one."""

WINDOW_NS = 30 * 86_400 * 1_000_000_000
"""How far back repairs are looked at."""
NEIGHBOUR_BYTES = 16 << 20
"""Damage in two files that lies this close on one disk is told as one fault of the disk. A guess."""
MEMORY_REPAIRS = 3
"""So many blocks wrong in memory, in two files or more, and the memory is suspected."""


def incident_of(found: FileVerification, now_ns: int, open_ones: Iterable[Incident] = ()) -> Incident | None:
    """The incident that a verdict is, ``None`` for an intact file. One that is open and still has its fault keeps its name."""
    own = [one for one in open_ones if one.path == found.path and not one.closed_ns]
    match found.verdict:
        case Verdict.INTACT:
            return None
        case Verdict.DAMAGED:
            return _of_damage(found, now_ns, [one for one in own if one.kind is IncidentKind.DAMAGED])
        case Verdict.CHANGED:
            return Incident(found.path, IncidentKind.CHANGED, "", now_ns, found.message, seen_ns=now_ns)
        case Verdict.UNVERIFIABLE:
            if found.message in (MOVES_TOLD, REPLACED_TOLD):
                return None
            return Incident(found.path, IncidentKind.UNVERIFIABLE, "", now_ns, found.message, seen_ns=now_ns)


def _fault(damage: Damage) -> str:
    return f"{damage.tensor if damage.tensor is not None else ''}:{damage.block}"


def _of_damage(found: FileVerification, now_ns: int, own: Sequence[Incident]) -> Incident:
    """All damage of a file is one incident, named by its first block; as long as any block of an open one is bad it is that one."""
    first = found.damage[0] if found.damage else Damage(None, -1, -1, 0, False, "none", UNKNOWN, 0)
    faults = {_fault(one): one for one in reversed(found.damage)}
    fault, named = _fault(first), first
    for one in own:
        if one.fault in faults:
            fault, named = one.fault, faults[one.fault]
            break
    media = {one.medium for one in found.damage}
    count = len(found.damage)
    lost = sum(not one.repairable for one in found.damage)
    bits = sum(one.flip_count for one in found.damage)
    told = f"{count} block{'s' * (count != 1)} damaged, {bits} bit{'s' * (bits != 1)} known to be wrong"
    told += f", {lost} beyond parity" if lost else ""
    return Incident(
        *(found.path, IncidentKind.DAMAGED, fault, now_ns, "; ".join(filter(None, (told, found.message)))),
        medium=media.pop() if len(media) == 1 else UNKNOWN,
        tensor=named.tensor,
        block=named.block,
        offset=named.offset,
        flip_count=bits,
        seen_ns=now_ns,
    )


def missing_incident(path: str, now_ns: int, message: str) -> Incident:
    """The incident of a protected file that is gone while its sidecar is there."""
    return Incident(path, IncidentKind.MISSING, "", now_ns, message, seen_ns=now_ns)


def ended_by(found: FileVerification, open_ones: Iterable[Incident]) -> tuple[tuple[Incident, str], ...]:
    """The open incidents of a file that a new verdict ends, each with its outcome.

    Doubts about hardware do not end with a verdict: a person ends them. Damage does not end while nothing can be told.
    """
    ended = []
    for one in open_ones:
        if one.path != found.path or one.closed_ns or one.kind in (IncidentKind.HARDWARE_SUSPECT, IncidentKind.STATE_LOST):
            continue
        if found.verdict is Verdict.INTACT:
            ended.append((one, "reverted" if one.kind is IncidentKind.CHANGED else "intact"))
        elif found.verdict is not Verdict.UNVERIFIABLE and one.kind in (IncidentKind.UNVERIFIABLE, IncidentKind.MISSING):
            ended.append((one, found.verdict.value))
        elif one.kind is IncidentKind.MISSING and found.bytes:
            ended.append((one, "there again"))
    return tuple(ended)


def hardware_suspects(repairs: Sequence[RepairRecord], now_ns: int, place: Place | None = None) -> tuple[Incident, ...]:
    """What repairs say about disk and memory: the same cell again, neighbours on one disk across files, memory across files."""
    recent = [one for one in repairs if now_ns - one.at_ns <= WINDOW_NS]
    return (*_same_cells(recent, now_ns), *_disk_neighbours(recent, now_ns, place), *_memory(recent, now_ns))


def _suspect(one: RepairRecord, fault: str, now_ns: int, told: str, medium: str) -> Incident:
    where = {"tensor": one.tensor, "block": one.block, "offset": one.offset}
    return Incident(one.path, IncidentKind.HARDWARE_SUSPECT, fault, now_ns, told, medium=medium, seen_ns=now_ns, **where)  # type: ignore[arg-type]


def _same_cells(repairs: Sequence[RepairRecord], now_ns: int) -> list[Incident]:
    """A byte that was put right at two times. All cells of a file are one incident."""
    times: dict[tuple[str, int], list[RepairRecord]] = {}
    for one in repairs:
        if one.cell >= 0:
            times.setdefault((one.path, one.cell), []).append(one)
    again: dict[str, list[RepairRecord]] = {}
    for (path, _), found in sorted(times.items()):
        if len({one.at_ns for one in found}) > 1:
            again.setdefault(path, []).append(found[0])
    suspects = []
    for cells in again.values():
        first = cells[0]
        told = f"byte {first.cell} failed again after it was repaired"
        told += f", and {len(cells) - 1} more of this file" if len(cells) > 1 else ""
        suspects.append(_suspect(first, "cell", now_ns, told, first.medium))
    return suspects


def _disk_neighbours(repairs: Sequence[RepairRecord], now_ns: int, place: Place | None) -> list[Incident]:
    """Blocks of different files, wrong on one disk, close to each other there. One incident a disk."""
    if place is None:
        return []
    by_device: dict[int, list[tuple[int, RepairRecord]]] = {}
    for one in repairs:
        at = place(one) if one.medium == DISK else None
        if at is not None:
            by_device.setdefault(one.device, []).append((at, one))
    suspects = []
    for device, found in sorted(by_device.items()):
        found.sort(key=lambda pair: pair[0])
        for (low, one), (high, other) in pairwise(found):
            if one.path != other.path and high - low <= NEIGHBOUR_BYTES:
                name = f"{os.major(device)}:{os.minor(device)}"
                told = (
                    f"disk {name}: {one.path} and {other.path} were damaged near each other, between bytes {low} and {high + other.length}"
                )
                suspects.append(_suspect(min(one, other, key=lambda repair: repair.path), f"disk:{name}", now_ns, told, DISK))
                break
    return suspects


def _memory(repairs: Sequence[RepairRecord], now_ns: int) -> list[Incident]:
    """Blocks of several files that were right on the disk and wrong in memory: one incident for the machine."""
    wrong = sorted((one for one in repairs if one.medium == MEMORY), key=lambda one: (one.at_ns, one.path, one.offset))
    paths = {one.path for one in wrong}
    if len(wrong) < MEMORY_REPAIRS or len(paths) < 2:
        return []
    told = f"{len(wrong)} blocks of {len(paths)} files were wrong in memory and right on the disk: test this machine's memory"
    return [_suspect(wrong[0], "memory", now_ns, told, MEMORY)]
