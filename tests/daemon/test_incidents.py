"""One incident per file and fault; and what repairs say about the hardware."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from bitward_agent.daemon.extents import place_of_repair, place_on_device
from bitward_agent.daemon.facts import Incident, IncidentKind, RepairRecord
from bitward_agent.daemon.incidents import (
    MEMORY_REPAIRS,
    NEIGHBOUR_BYTES,
    WINDOW_NS,
    ended_by,
    hardware_suspects,
    incident_of,
    missing_incident,
)
from bitward_agent.findings import FileVerification, SidecarReport, SidecarState, Verdict
from bitward_agent.verify import MOVES_TOLD, REPLACED_TOLD
from daemon.weights import flip, protect, verify, write_weights
from loop_ext4 import mounted_ext4

NOW = 1_800_000_000_000_000_000
LATER = NOW + 3600 * 1_000_000_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = write_weights(Path(os.path.realpath(tmp_path)) / "model.safetensors", kilobytes=2000)
    protect(path)
    return path


def told(kind: Verdict, message: str = "") -> FileVerification:
    return FileVerification("/m/x", kind, 1, "ab", "first-seen", False, SidecarReport("", SidecarState.INTACT), message=message)


def test_intact_and_moving_files_are_no_incident(model: Path) -> None:
    assert incident_of(verify(model), NOW) is None
    for message in (MOVES_TOLD, REPLACED_TOLD):
        assert incident_of(told(Verdict.UNVERIFIABLE, message), NOW) is None


@pytest.mark.parametrize(("verdict", "kind"), [(Verdict.CHANGED, IncidentKind.CHANGED), (Verdict.UNVERIFIABLE, IncidentKind.UNVERIFIABLE)])
def test_other_verdicts_are_one_incident_each(verdict: Verdict, kind: IncidentKind) -> None:
    found = incident_of(told(verdict, "why"), NOW)
    assert found is not None
    assert (found.kind, found.fault, found.message) == (kind, "", "why")


def test_damage_of_a_file_is_one_incident_that_keeps_its_name(model: Path) -> None:
    flip(model, (500_000, 3), (1_000_000, 6))
    first = incident_of(verify(model), NOW)
    assert first is not None
    assert (first.kind, first.tensor, first.flip_count, first.medium) == (IncidentKind.DAMAGED, "model.weight", 2, "disk")
    assert first.message.startswith("2 blocks damaged, 2 bits known to be wrong")
    flip(model, (100_000, 1))  # a block before it: the same incident as long as that is open
    again = incident_of(verify(model), LATER, [replace(first, id=5)])
    assert again is not None
    assert (again.fault, again.offset, again.flip_count) == (first.fault, first.offset, 3)
    other = incident_of(verify(model), LATER, [replace(first, closed_ns=NOW)])
    assert other is not None
    assert other.fault != first.fault
    elsewhere = incident_of(verify(model), LATER, [replace(first, path="/another")])
    assert elsewhere is not None
    assert elsewhere.fault == other.fault


def test_what_parity_cannot_restore_is_said(model: Path) -> None:
    state = model.stat()
    with model.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(1_900_000))
    os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))
    found = incident_of(verify(model), NOW)
    assert found is not None
    assert "beyond parity" in found.message


def test_verdicts_end_incidents() -> None:
    def ended(verdict: Verdict, *kinds: IncidentKind) -> list[tuple[IncidentKind, str]]:
        ones = [Incident("/m/x", kind, "", NOW, "") for kind in kinds]
        ones += [Incident("/m/other", kind, "", NOW, "") for kind in kinds]
        return [(one.kind, outcome) for one, outcome in ended_by(told(verdict), ones)]

    every = list(IncidentKind)
    assert ended(Verdict.INTACT, *every) == [
        (IncidentKind.DAMAGED, "intact"),
        (IncidentKind.CHANGED, "reverted"),
        (IncidentKind.UNVERIFIABLE, "intact"),
        (IncidentKind.MISSING, "intact"),
    ]
    assert ended(Verdict.DAMAGED, *every) == [(IncidentKind.UNVERIFIABLE, "damaged"), (IncidentKind.MISSING, "damaged")]
    assert ended(Verdict.UNVERIFIABLE, IncidentKind.DAMAGED, IncidentKind.UNVERIFIABLE) == []
    assert missing_incident("/m/x", NOW, "gone").kind is IncidentKind.MISSING


def repair(
    path: str = "/m/a", cell: int = 100, at_ns: int = NOW, medium: str = "disk", offset: int = 0, device: int = 0x801
) -> RepairRecord:
    return RepairRecord(at_ns, path, "w", 0, offset, 65536, "parity", medium, 1, cell, device)


def test_one_repair_says_nothing() -> None:
    assert hardware_suspects([], NOW) == ()
    assert hardware_suspects([repair()], NOW, lambda one: 0) == ()


def test_the_same_cell_again() -> None:
    twice = [repair(), repair(at_ns=LATER)]
    found = hardware_suspects(twice, LATER)
    assert [(one.path, one.kind, one.fault) for one in found] == [("/m/a", IncidentKind.HARDWARE_SUSPECT, "cell")]
    assert "byte 100 failed again" in found[0].message
    assert hardware_suspects([repair(), repair(cell=101, at_ns=LATER)], LATER) == ()
    assert hardware_suspects([repair(), repair(path="/m/b", at_ns=LATER)], LATER) == ()
    assert hardware_suspects([repair(cell=-1), repair(cell=-1, at_ns=LATER)], LATER) == ()
    assert hardware_suspects([repair(), repair()], NOW) == ()  # one repair that names it twice
    assert hardware_suspects(twice, LATER + WINDOW_NS + 1) == ()
    many = [repair(cell=cell, at_ns=at) for cell in range(50) for at in (NOW, LATER)]
    assert len(hardware_suspects(many, LATER)) == 1


def test_neighbours_on_one_disk_across_files() -> None:
    ones = [repair("/m/a", 1), repair("/m/b", 2)]

    def suspects(low: int, high: int, *repairs: RepairRecord) -> list[str]:
        places = dict(zip(("/m/a", "/m/b"), (low, high), strict=True))
        return [one.fault for one in hardware_suspects(repairs or ones, NOW, lambda one: places[one.path])]

    assert suspects(0, NEIGHBOUR_BYTES) == ["disk:8:1"]
    assert suspects(NEIGHBOUR_BYTES, 0) == ["disk:8:1"]
    assert suspects(0, NEIGHBOUR_BYTES + 1) == []
    assert suspects(0, 0, repair("/m/a", 1), repair("/m/b", 2, device=0x802)) == []
    assert suspects(0, 0, repair("/m/a", 1), repair("/m/b", 2, medium="memory")) == []
    assert suspects(0, 0, repair("/m/a", 1), repair("/m/a", 2)) == []
    assert hardware_suspects(ones, NOW, lambda one: None) == ()


def test_memory_across_files() -> None:
    wrong = [repair(f"/m/{index % 2}", index, medium="memory") for index in range(MEMORY_REPAIRS)]
    assert [one.fault for one in hardware_suspects(wrong, NOW)] == ["memory"]
    assert hardware_suspects(wrong[:-1], NOW) == ()
    assert hardware_suspects([replace(one, path="/m/0") for one in wrong], NOW) == ()


def test_many_repairs_in_no_more_than_a_moment() -> None:
    seeded = random.Random(3)
    many = [repair(f"/m/{seeded.randrange(1000)}", seeded.randrange(1 << 40), NOW + index) for index in range(20_000)]
    assert len(hardware_suspects(many, NOW + 20_000, lambda one: one.cell)) <= 1


def test_places_are_where_the_bytes_are(tmp_path: Path) -> None:
    with mounted_ext4(Path(os.path.realpath(tmp_path))) as loop:
        path = write_weights(loop.folder / "w", seed=31, kilobytes=3000)
        os.sync()
        fd = os.open(path, os.O_RDONLY)
        try:
            image, data = loop.image.read_bytes(), path.read_bytes()
            for offset in (0, 1, 65536, 2_000_001):
                place = place_on_device(fd, offset)
                assert place is not None
                assert image[place : place + 100] == data[offset : offset + 100]
            assert place_on_device(fd, 1 << 40) is None
        finally:
            os.close(fd)
        assert place_of_repair(repair(str(path), offset=65536)) is not None
    assert place_of_repair(repair(str(path))) is None
