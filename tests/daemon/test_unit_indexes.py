"""The indexes that the agent keeps of directories: made, kept true, and never so that a lost file is forgotten. The real process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitward.api import protect, repair, verify
from bitward_agent.daemon.config import OnChange, OnNew
from bitward_agent.daemon.index_plan import Fate, plan_index
from bitward_agent.durable import remove
from bitward_agent.findings import ExitCode
from bitward_agent.units import read_index
from bitward_formats.unit_index import UNIT_INDEX_NAME, UnitEntry, UnitIndex
from cli.command_line import bitward
from daemon.agent_process import Agent
from daemon.weights import write_weights

INDEX = UNIT_INDEX_NAME


@dataclass
class Place:
    """A watched folder with ``a`` and ``sub/b``, and an agent that is not started."""

    models: Path
    agent: Agent

    def write(self, name: str, seed: int = 1) -> Path:
        path = self.models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, seed=seed, kilobytes=200)
        a_minute_ago = time.time_ns() - 60_000_000_000
        os.utime(path, ns=(a_minute_ago, a_minute_ago))
        return path

    def names(self, folder: Path | None = None) -> list[str]:
        index = read_index(str((folder or self.models) / INDEX))
        return [os.fsdecode(entry.path) for entry in index.entries] if isinstance(index, UnitIndex) else []

    def until_indexed(self, *names: str, folder: Path | None = None) -> None:
        self.agent.until(lambda: self.names(folder) == sorted(names), f"{folder or self.models} has an index of {names}")

    def incidents(self) -> list[tuple[str, str]]:
        return [(one["kind"], one["path"]) for one in self.agent.ask("status")["incidents"]]

    def lose(self, path: Path) -> None:
        """A file vanishes while nobody looks, and its sidecar does not."""
        self.agent.kill()
        remove(str(path))
        self.agent.start()


def place_of(home: Path, watch: str = "") -> Place:
    models = home / "models"
    models.mkdir()
    agent = Agent(home / "agent", f"[[watch]]\npath = '{models}'\n{watch}")
    place = Place(models, agent)
    place.write("a.safetensors")
    place.write("sub/b.safetensors", seed=2)
    return place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    one = place_of(tmp_path)
    with one.agent:
        one.until_indexed("a.safetensors", "sub/b.safetensors")
        one.until_indexed("b.safetensors", folder=one.models / "sub")
        yield one


def test_a_directory_that_the_agent_protects_can_be_verified_and_repaired_whole(place: Place) -> None:
    for folder in (place.models, place.models / "sub"):
        assert verify(folder).exit_code == ExitCode.OK
        assert repair(folder).exit_code == ExitCode.OK
    before = (place.models / INDEX).stat()
    place.agent.ask("scrub", str(place.models))
    assert place.agent.terminate() == 0
    place.agent.start()
    place.write("sub/c.safetensors", seed=3)
    place.until_indexed("b.safetensors", "c.safetensors", folder=place.models / "sub")
    place.until_indexed("a.safetensors", "sub/b.safetensors", "sub/c.safetensors")
    assert verify(place.models).exit_code == ExitCode.OK
    assert place.incidents() == []
    assert len(place.agent.events("indexed")) == 4
    assert (place.models / INDEX).stat().st_mtime_ns > before.st_mtime_ns
    (place.models / "sub").rename(place.models / "renamed")
    place.until_indexed("a.safetensors", "renamed/b.safetensors", "renamed/c.safetensors")
    for folder in (place.models, place.models / "renamed"):
        assert verify(folder).exit_code == ExitCode.OK
    assert place.incidents() == []


def test_a_file_lost_while_the_agent_is_down_is_told_and_stays_named(place: Place) -> None:
    lost = place.models / "sub" / "b.safetensors"
    data = lost.read_bytes()
    index = (place.models / "sub" / INDEX).read_bytes()
    place.lose(lost)
    place.agent.until(lambda: place.incidents() == [("missing", str(lost.parent))], "the loss is told once, where it happened")
    place.agent.until(lambda: place.agent.alert_count() == 1, "somebody is called")
    assert (place.models / "sub" / INDEX).read_bytes() == index
    report = verify(place.models)
    assert (report.exit_code, report.units[0].missing) == (ExitCode.NOT_REPAIRABLE, ("sub/b.safetensors",))
    place.agent.kill()
    place.agent.start()
    place.write("sub/d.safetensors", seed=4)
    place.until_indexed("b.safetensors", "d.safetensors", folder=lost.parent)
    assert place.agent.alert_count() == 1
    lost.write_bytes(data)
    place.agent.until(lambda: place.incidents() == [], "it is there again")
    assert verify(place.models / "sub").exit_code == ExitCode.OK


def test_a_loss_is_told_though_the_state_was_lost_too(place: Place) -> None:
    place.agent.kill()
    remove(str(place.models / "a.safetensors"))
    (place.agent.state / "agent.db").write_bytes(b"rot" * 5000)
    place.agent.start()
    place.agent.until(lambda: ("missing", str(place.models)) in place.incidents(), "the index alone knew of it")
    assert "a.safetensors" in place.names()
    assert verify(place.models).exit_code == ExitCode.NOT_REPAIRABLE


def test_what_somebody_removes_is_forgotten_without_an_alarm(place: Place) -> None:
    remove(str(place.models / "a.safetensors"))
    place.until_indexed("sub/b.safetensors")
    assert verify(place.models).exit_code == ExitCode.OK
    place.agent.kill()
    for path in (place.models / "sub").iterdir():
        remove(str(path))
    (place.models / "sub").rmdir()
    place.agent.start()
    place.agent.until(lambda: not (place.models / INDEX).exists(), "an index that would name nothing is gone")
    assert place.incidents() == []
    assert place.agent.alert_count() == 0


def test_where_every_change_is_an_alarm_nothing_is_forgotten_until_a_person_says_so(tmp_path: Path) -> None:
    place = place_of(tmp_path, "on_change = 'alarm'")
    gone = place.models / "a.safetensors"
    with place.agent:
        place.until_indexed("a.safetensors", "sub/b.safetensors")
        remove(str(gone))
        place.agent.until(lambda: place.incidents() == [("missing", str(gone))], "told")
        place.write("c.safetensors", seed=3)
        place.until_indexed("a.safetensors", "c.safetensors", "sub/b.safetensors")
        assert verify(place.models).exit_code == ExitCode.NOT_REPAIRABLE
        assert place.incidents() == [("missing", str(gone))]
        protect(place.models, force=True)
        assert verify(place.models).exit_code == ExitCode.OK
        assert place.names() == ["c.safetensors", "sub/b.safetensors"]


def test_an_index_is_where_the_sidecars_are(tmp_path: Path) -> None:
    wards = tmp_path / "wards"
    place = place_of(tmp_path, f"sidecar_dir = '{wards}'")
    with place.agent:
        place.until_indexed("a.safetensors", "sub/b.safetensors", folder=wards / "models")
        place.until_indexed("b.safetensors", folder=wards / "models" / "sub")
        assert sorted(path.name for path in place.models.rglob("*") if path.is_file()) == ["a.safetensors", "b.safetensors"]
        assert verify(place.models, sidecar_dir=wards).exit_code == ExitCode.OK
        assert verify(place.models / "sub", sidecar_dir=wards / "models").exit_code == ExitCode.OK
        gate = ("agent", "verify", "--config", place.agent.config)
        assert [bitward(*gate, folder).code for folder in (place.models, place.models / "sub")] == [0, 0]
        place.lose(place.models / "a.safetensors")
        assert [bitward(*gate, folder).code for folder in (place.models, place.models / "sub")] == [ExitCode.NOT_REPAIRABLE, 0]
        place.agent.until(lambda: place.incidents() == [("missing", str(place.models))], "told")
        assert verify(place.models, sidecar_dir=wards).exit_code == ExitCode.NOT_REPAIRABLE


def test_a_damaged_index_is_made_whole_and_what_lies_in_its_place_is_told(place: Place) -> None:
    index = place.models / INDEX
    whole = index.read_bytes()
    place.agent.kill()
    index.write_bytes(whole[:5000] + b"\xff" * 100 + whole[5100:])
    other = place.models / "sub" / INDEX
    remove(str(other))
    other.mkdir()
    place.agent.start()
    place.agent.until(lambda: index.read_bytes() == whole, "healed")
    place.agent.until(lambda: any(one["path"] == str(other.parent) for one in place.agent.events("unverifiable")), "told")
    assert other.is_dir()


def test_a_sealed_index_stays_as_it_is_and_what_differs_is_told(place: Place) -> None:
    index = place.models / INDEX
    sealed = index.read_bytes()
    index.with_name(f"{INDEX}-seal").write_bytes(b"whatever: only a person may break it")
    place.write("c.safetensors", seed=3)
    place.agent.until(lambda: place.incidents() == [("changed", str(place.models))], "told")
    assert index.read_bytes() == sealed
    remove(str(place.models / "c.safetensors"))
    place.agent.until(lambda: place.incidents() == [], "as it was sealed")


A, B, C = (UnitEntry(name, 5, bytes([seed]) * 32) for seed, name in enumerate((b"a", b"b", b"c")))
B2 = UnitEntry(b"b", 6, b"\7" * 32)


@pytest.mark.parametrize("on_change", OnChange)
@pytest.mark.parametrize("fate", Fate)
def test_only_what_was_seen_to_go_drops_out_and_only_where_changes_are_welcome(fate: Fate, on_change: OnChange) -> None:
    plan = plan_index([A, B], {b"a": A}, lambda _: fate, on_new=OnNew.PROTECT, on_change=on_change)
    dropped = fate is Fate.REMOVED and on_change is OnChange.PROTECT
    assert plan.entries == ((A,) if dropped else (A, B))
    assert plan.dropped == ((b"b",) if dropped else ())
    assert plan.missing == (() if dropped or fate is Fate.THERE else (b"b",))
    assert bool(plan.told) == bool(plan.missing)


@pytest.mark.parametrize(("on_change", "kept", "told"), [(OnChange.PROTECT, B2, ()), (OnChange.ALARM, B, (b"b",))])
def test_another_root_is_taken_or_told(on_change: OnChange, kept: UnitEntry, told: tuple[bytes, ...]) -> None:
    plan = plan_index([B], {b"b": B2}, lambda _: Fate.LOST, on_new=OnNew.PROTECT, on_change=on_change)
    assert (plan.entries, plan.mismatched) == ((kept,), told)
    unreadable = plan_index([B], {b"b": None}, lambda _: Fate.LOST, on_new=OnNew.PROTECT, on_change=on_change)
    assert (unreadable.entries, unreadable.told) == ((B,), "")


@pytest.mark.parametrize(("on_new", "entries"), [(OnNew.PROTECT, (A, B, C)), (OnNew.REPORT, (B,))])
def test_files_are_added_where_the_agent_protects_them(on_new: OnNew, entries: tuple[UnitEntry, ...]) -> None:
    plan = plan_index([B], {b"c": C, b"a": A, b"b": B}, lambda _: Fate.LOST, on_new=on_new, on_change=OnChange.ALARM)
    assert plan.entries == entries
