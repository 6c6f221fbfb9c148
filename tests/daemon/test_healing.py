"""Policy to action, and the actions on real files: the disk, the memory, sources, and what must never be touched."""

from __future__ import annotations

import mmap
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bitward_agent.daemon.config import OnChange, OnDamage, WatchConfig
from bitward_agent.daemon.healing import Action, Healing, action_for, heal, is_repair_pending, is_sealed
from bitward_agent.daemon.pace import UNPACED, Stopped, never
from bitward_agent.daemon.scrub import scrub_file
from bitward_agent.findings import FileVerification, SidecarReport, SidecarState, Verdict
from bitward_agent.io import Disk, journal_path
from bitward_agent.medium import UncachedReader
from bitward_agent.verify import MOVES_TOLD, REPAIR_PENDING_TOLD
from daemon.weights import flip, protect, verify, watch_of, write_weights
from faulty_disks import Death, DyingDisk
from loop_ext4 import LoopExt4, drop_from_cache, mounted_ext4

SEED = 7_2026
NOW = 1_800_000_000_000_000_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = Path(os.path.realpath(tmp_path)) / "models"
    folder.mkdir()
    path = write_weights(folder / "model.safetensors", kilobytes=2000)
    protect(path)
    return path


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopExt4]:
    with mounted_ext4(Path(os.path.realpath(tmp_path_factory.mktemp("loop")))) as mounted:
        yield mounted


def scrub(path: Path) -> FileVerification:
    found = scrub_file(str(path), f"{path}.ward", pace=UNPACED, stop=never)
    assert isinstance(found, FileVerification)
    return found


def healed(path: Path, found: FileVerification | None = None, watch: WatchConfig | None = None, disk: Disk | None = None) -> Healing:
    return heal(found or scrub(path), f"{path}.ward", watch or watch_of(path.parent), NOW, pace=UNPACED, stop=never, disk=disk or Disk())


def verdict(kind: Verdict, message: str = "", *, modified: bool = False, sidecar: SidecarState = SidecarState.INTACT) -> FileVerification:
    return FileVerification("/m", kind, 1, "ab", "first-seen", modified, SidecarReport("/m.ward", sidecar), message=message)


HEAL, REPORT, PROTECT, ALARM = OnDamage.HEAL, OnDamage.REPORT, OnChange.PROTECT, OnChange.ALARM


@pytest.mark.parametrize(
    ("found", "damage", "change", "sealed", "action"),
    [
        (verdict(Verdict.INTACT), HEAL, PROTECT, False, Action.NONE),
        (verdict(Verdict.INTACT, sidecar=SidecarState.DAMAGED), HEAL, PROTECT, False, Action.HEAL),
        (verdict(Verdict.INTACT, sidecar=SidecarState.DAMAGED), REPORT, PROTECT, False, Action.REPORT),
        (verdict(Verdict.DAMAGED), HEAL, PROTECT, False, Action.HEAL),
        (verdict(Verdict.DAMAGED), HEAL, PROTECT, True, Action.HEAL),
        (verdict(Verdict.DAMAGED), REPORT, PROTECT, False, Action.REPORT),
        (verdict(Verdict.DAMAGED, modified=True), HEAL, PROTECT, False, Action.REPORT),
        (verdict(Verdict.DAMAGED, REPAIR_PENDING_TOLD, modified=True), HEAL, PROTECT, False, Action.HEAL),
        (verdict(Verdict.DAMAGED, REPAIR_PENDING_TOLD), REPORT, PROTECT, False, Action.REPORT),
        (verdict(Verdict.CHANGED), HEAL, PROTECT, False, Action.PROTECT),
        (verdict(Verdict.CHANGED), HEAL, PROTECT, True, Action.ALARM),
        (verdict(Verdict.CHANGED), HEAL, ALARM, False, Action.ALARM),
        (verdict(Verdict.UNVERIFIABLE, MOVES_TOLD), HEAL, PROTECT, False, Action.NONE),
        (verdict(Verdict.UNVERIFIABLE, "no sidecar"), HEAL, PROTECT, False, Action.REPORT),
    ],
)
def test_policy(found: FileVerification, damage: OnDamage, change: OnChange, sealed: bool, action: Action) -> None:
    assert action_for(found, damage, change, is_sealed=sealed) is action


def test_flips_come_back_and_each_is_accounted_for(model: Path) -> None:
    print(f"seed {SEED}")
    right, seeded = model.read_bytes(), random.Random(SEED)
    places = sorted((block * 65536 + seeded.randrange(200, 60_000), seeded.randrange(8)) for block in seeded.sample(range(30), 6))
    flip(model, *places)
    before = model.stat()
    done = healed(model)
    assert (done.verdict, done.remaining, done.refused) == (Verdict.INTACT, 0, False)
    assert model.read_bytes() == right
    assert model.stat().st_mtime_ns == before.st_mtime_ns
    assert sorted(one.cell for one in done.repairs) == [offset for offset, _ in places]
    assert {(one.flip_count, one.source, one.path, one.at_ns) for one in done.repairs} == {(1, "parity", str(model), NOW)}
    assert scrub(model) == verify(model)
    assert verify(model).verdict is Verdict.INTACT


def test_modified_file_is_never_healed(model: Path) -> None:
    flip(model, (100_000, 6), keep_mtime=False)
    wrong, found = model.read_bytes(), scrub(model)
    assert (found.verdict, found.modified) == (Verdict.DAMAGED, True)
    assert action_for(found, HEAL, PROTECT, is_sealed=False) is Action.REPORT
    done = healed(model, found)
    assert (done.verdict, done.repairs) == (Verdict.DAMAGED, ())
    assert "was modified" in done.message
    assert model.read_bytes() == wrong


def test_modified_after_it_was_found_is_not_healed(model: Path) -> None:
    flip(model, (100_000, 6))
    found = scrub(model)
    os.utime(model)
    wrong = model.read_bytes()
    done = healed(model, found)
    assert done.repairs == ()
    assert "modified" in done.message
    assert model.read_bytes() == wrong


def test_rewritten_file_is_not_healed(model: Path) -> None:
    found = scrub(model)
    write_weights(model, seed=99, kilobytes=2000)
    new = model.read_bytes()
    flipped = replace(found, verdict=Verdict.DAMAGED)
    assert healed(model, flipped).repairs == ()
    assert model.read_bytes() == new


def test_link_swapped_in_leads_nowhere(model: Path, tmp_path: Path) -> None:
    flip(model, (100_000, 6))
    found = scrub(model)
    target = tmp_path / "target"
    shutil.move(model, target)
    wrong = target.read_bytes()
    model.symlink_to(target)
    done = healed(model, found)
    assert done.verdict is Verdict.UNVERIFIABLE
    assert "symbolic link" in done.message
    assert target.read_bytes() == wrong


def test_folder_swapped_for_a_link_leads_nowhere(model: Path, tmp_path: Path) -> None:
    flip(model, (100_000, 6))
    found = scrub(model)
    away = tmp_path / "away"
    model.parent.rename(away)
    model.parent.symlink_to(away)
    wrong = (away / model.name).read_bytes()
    assert healed(model, found, watch_of(tmp_path)).verdict is Verdict.UNVERIFIABLE
    assert (away / model.name).read_bytes() == wrong


def test_sidecar_is_healed(model: Path) -> None:
    ward = Path(f"{model}.ward")
    right = ward.read_bytes()
    flip(ward, (len(right) // 2, 4))
    done = healed(model)
    assert done.verdict is Verdict.INTACT
    assert ward.read_bytes() == right


def test_sources_in_their_order(tmp_path: Path) -> None:
    model = write_weights(Path(os.path.realpath(tmp_path)) / "model.safetensors", kilobytes=400)
    protect(model)
    right = model.read_bytes()
    second = tmp_path / "second"
    second.mkdir()
    (second / model.name).write_bytes(right)
    state = model.stat()
    with model.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(380_000))
    os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))
    without = healed(model)
    assert (without.verdict, without.remaining > 0) == (Verdict.DAMAGED, True)
    done = healed(model, watch=watch_of(model.parent, sources=(str(tmp_path / "gone"), str(second))))
    assert (done.verdict, done.remaining) == (Verdict.INTACT, 0)
    assert "gone" in done.message
    assert model.read_bytes() == right
    assert {one.source for one in done.repairs} & {str(second), str(second / model.name)}


def test_killed_at_any_change_is_healed_next_time(model: Path) -> None:
    right = model.read_bytes()
    counting = DyingDisk()
    flip(model, (300_000, 5), (900_000, 1))
    bad = model.read_bytes()
    found = scrub(model)
    assert healed(model, found, disk=counting).verdict is Verdict.INTACT
    for step in range(len(counting.calls)):
        model.write_bytes(bad)
        os.utime(model, ns=(NOW, read_mtime(model)))
        with pytest.raises(Death):
            healed(model, found, disk=DyingDisk(step, torn=True))
        again = scrub(model)
        if again.verdict is not Verdict.INTACT or is_repair_pending(f"{model}.ward"):
            assert action_for(again, HEAL, PROTECT, is_sealed=False) is Action.HEAL, (step, counting.calls[step])
            assert healed(model, again).verdict is Verdict.INTACT
        assert model.read_bytes() == right
        assert not os.path.lexists(journal_path(f"{model}.ward"))


def read_mtime(path: Path) -> int:
    from bitward_agent.verify import open_sidecar

    ward, sidecar, _ = open_sidecar(f"{path}.ward")
    ward.close()
    return sidecar.superblock.mtime_ns


def test_no_right_to_write_is_told(model: Path) -> None:
    flip(model, (100_000, 6))
    found = scrub(model)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    model.chmod(0o400)
    done = healed(model, found)
    assert (done.refused, done.verdict) == (True, Verdict.UNVERIFIABLE)


def test_stopped_before_anything_was_written(model: Path) -> None:
    flip(model, (100_000, 6))
    found, wrong = scrub(model), model.read_bytes()
    asked = iter([False] * 6)
    with pytest.raises(Stopped):
        heal(found, f"{model}.ward", watch_of(model.parent), NOW, pace=UNPACED, stop=lambda: next(asked, True))
    assert model.read_bytes() == wrong
    assert not is_repair_pending(f"{model}.ward")


def test_seal_is_seen(model: Path) -> None:
    assert not is_sealed(f"{model}.ward")
    Path(f"{model}.ward-seal").write_bytes(b"x")
    assert is_sealed(f"{model}.ward")


def test_wrong_memory_is_forgotten_without_a_write(loop: LoopExt4) -> None:
    model = write_weights(loop.folder / "memory.safetensors", seed=21, kilobytes=2000)
    protect(model)
    right = model.read_bytes()
    loop.flip_beneath(model, 1_000_000)
    drop_from_cache(model)
    assert model.read_bytes() != right
    loop.flip_back(model, 1_000_000)
    found = scrub(model)
    assert [one.medium for one in found.damage] == ["memory"]
    before = model.stat()
    done = healed(model, found)
    assert (done.verdict, done.refreshed, done.repair) == (Verdict.INTACT, 1, None)
    assert [(one.medium, one.source, one.cell) for one in done.repairs] == [("memory", "disk", 1_000_000)]
    assert model.read_bytes() == right
    assert model.stat().st_ctime_ns == before.st_ctime_ns


def test_wrong_memory_that_is_mapped_is_rewritten(loop: LoopExt4) -> None:
    model = write_weights(loop.folder / "mapped.safetensors", seed=22, kilobytes=2000)
    protect(model)
    right = model.read_bytes()
    loop.flip_beneath(model, 1_000_000)
    drop_from_cache(model)
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] != right
        loop.flip_back(model, 1_000_000)
        done = healed(model)
        assert done.verdict is Verdict.INTACT
        assert [one.medium for one in done.repairs] == ["memory"]
        assert mapped[:] == right
    drop_from_cache(model)
    assert model.read_bytes() == right


def test_wrong_disk_beneath_right_memory_is_rewritten(loop: LoopExt4) -> None:
    model = write_weights(loop.folder / "disk.safetensors", seed=23, kilobytes=2000)
    protect(model)
    right, before = model.read_bytes(), model.stat()
    loop.flip_beneath(model, 1_000_000)
    found = scrub(model)
    done = healed(model, found)
    assert (done.verdict, done.repair) == (Verdict.INTACT, None)
    assert [(one.medium, one.source, one.cell) for one in done.repairs] == [("disk", "memory", 1_000_000)]
    assert model.stat().st_mtime_ns == before.st_mtime_ns
    drop_from_cache(model)
    assert model.read_bytes() == right
    assert scrub(model).verdict is Verdict.INTACT


def test_bad_sector_beneath_right_memory_is_rewritten(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads around the cache do not go through ``Disk``, so the sector that cannot be read is put beneath them here."""
    right, bad, read = model.read_bytes(), [1_500_000], UncachedReader.read

    def failing(reader: UncachedReader, offset: int, length: int) -> bytes | None:
        return None if any(offset <= one < offset + length for one in bad) else read(reader, offset, length)

    class Remapping(Disk):
        def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            bad[:] = [one for one in bad if not offset <= one < offset + len(data)]
            return super().write(fd, data, offset)

    monkeypatch.setattr(UncachedReader, "read", failing)
    found = scrub(model)
    assert [(one.medium, one.unreadable, one.repairable) for one in found.damage] == [("disk", True, True)]
    done = healed(model, found, disk=Remapping())
    assert (done.verdict, [one.source for one in done.repairs]) == (Verdict.INTACT, ["memory"])
    assert model.read_bytes() == right
    assert scrub(model).verdict is Verdict.INTACT


def test_no_reads_around_the_cache_are_no_damage(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UncachedReader, "read", lambda *_: None)
    assert scrub(model).verdict is Verdict.INTACT
