"""Scrubbing: stopped anywhere and taken up there, blind to nothing, leaving the page cache as it was."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bitward_agent.daemon.facts import UnitRecord
from bitward_agent.daemon.pace import UNPACED, never
from bitward_agent.daemon.page_cache import PAGE_CACHE_BYTES, cached_pages
from bitward_agent.daemon.scrub import ScrubPosition, ScrubProgress, scrub_file
from bitward_agent.findings import FileVerification, SidecarState, Verdict
from bitward_formats.pages import PAGE_BYTES
from daemon.weights import flip, protect, verify, write_weights
from faulty_disks import BadSectorDisk
from loop_ext4 import LoopExt4, drop_from_cache, mounted_ext4

SEED = 20261122


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = write_weights(tmp_path / "model.safetensors")
    protect(path)
    return path


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopExt4]:
    with mounted_ext4(tmp_path_factory.mktemp("loop")) as mounted:
        yield mounted


def scrub(
    path: Path, start: ScrubPosition | None = None, stop_after: int | None = None, **named: object
) -> ScrubProgress | FileVerification:
    """Scrub at full speed; ``stop_after``: that many chunks are read first."""
    told = []

    def stop() -> bool:
        return stop_after is not None and len(told) >= stop_after

    def tell(at: ScrubPosition, total: int) -> None:
        told.append((at, total))

    return scrub_file(
        str(path),
        f"{path}.ward",
        start or ScrubPosition(),
        pace=UNPACED,
        stop=stop,
        tell=tell,
        **named,  # type: ignore[arg-type]
    )


def verdict_of(found: ScrubProgress | FileVerification) -> FileVerification:
    assert isinstance(found, FileVerification)
    return found


def test_intact_is_what_verify_says(model: Path) -> None:
    found, verified = verdict_of(scrub(model)), verify(model)
    assert found == verified
    assert found.verdict is Verdict.INTACT


def test_every_stop_is_taken_up_where_it_was(model: Path) -> None:
    at, read, rounds = ScrubPosition(), 0, 0
    while isinstance(found := scrub(model, at, stop_after=1), ScrubProgress):
        assert found.at.position_bytes > at.position_bytes
        assert found.total_bytes == model.stat().st_size
        read, at, rounds = read + found.read_bytes, found.at, rounds + 1
        assert rounds < 20
    assert rounds == 5
    assert at.position_bytes == model.stat().st_size  # what was left was the sidecar
    assert read == model.stat().st_size
    assert found.verdict is Verdict.INTACT


def test_taken_up_from_a_record(model: Path) -> None:
    found = scrub(model, stop_after=2)
    assert isinstance(found, ScrubProgress)
    record = UnitRecord(
        *(str(model), str(model.parent), found.at.root),
        scrub_position_bytes=found.at.position_bytes,
        seen_size=found.at.size,
        seen_mtime_ns=found.at.mtime_ns,
    )
    assert ScrubPosition.of_record(record) == found.at


@pytest.mark.parametrize("change", ["mtime", "size", "root", "nothing"])
def test_starts_anew_when_it_is_no_longer_the_same(model: Path, change: str) -> None:
    found = scrub(model, stop_after=3)
    assert isinstance(found, ScrubProgress)
    flip(model, (1000, 3))  # in what was read already: only a new start sees it
    match change:
        case "mtime":
            os.utime(model, ns=(1, model.stat().st_mtime_ns + 1))
        case "size":
            with model.open("ab") as file:
                file.write(b"x")
        case "root":
            found = replace(found, at=replace(found.at, root="ab" * 32))
    after = verdict_of(scrub(model, found.at))
    assert after.verdict is (Verdict.INTACT if change == "nothing" else Verdict.DAMAGED)


def test_damage_is_what_verify_says(model: Path) -> None:
    print(f"seed {SEED}")
    seeded, size = random.Random(SEED), model.stat().st_size
    places = [(seeded.randrange(size), seeded.randrange(8)) for _ in range(8)]
    flip(model, *places)
    found, verified = verdict_of(scrub(model)), verify(model)
    assert found == verified
    assert {(one.offset, one.bit % 8) for damage in found.damage for one in damage.flips} == set(places)
    assert not found.modified


def test_damage_survives_a_stop(model: Path) -> None:
    flip(model, (3 << 20, 6))
    found = scrub_until_read(model, ScrubPosition(), 12)
    for reads in range(13, 60):
        if found.at.suspect:
            break
        found = scrub_until_read(model, found.at, reads)
    assert found.at.suspect  # it differed, and verifying was stopped
    assert found.at.position_bytes <= 3 << 20
    assert verdict_of(scrub(model, found.at)).damage[0].flip_count == 1


def scrub_until_read(path: Path, start: ScrubPosition, reads: int) -> ScrubProgress:
    """Stopped before a read, of file or sidecar, after so many."""
    asked = iter([False] * reads)
    found = scrub_file(str(path), f"{path}.ward", start, pace=UNPACED, stop=lambda: next(asked, True))
    assert isinstance(found, ScrubProgress)
    return found


def test_what_differs_once_only_is_told(model: Path) -> None:
    at = ScrubPosition(1 << 20, model.stat().st_size, model.stat().st_mtime_ns, verify(model).root, suspect=True)
    found = verdict_of(scrub(model, at))
    assert found.verdict is Verdict.INTACT
    assert "differed when it was first read" in found.message


def test_rewritten_file_is_changed(model: Path) -> None:
    write_weights(model, seed=2)
    assert verdict_of(scrub(model)).verdict is Verdict.CHANGED


def test_file_that_moves_is_not_judged(model: Path) -> None:
    def tell(at: ScrubPosition, total: int) -> None:
        os.utime(model, ns=(1, at.position_bytes))

    found = scrub_file(str(model), f"{model}.ward", pace=UNPACED, stop=never, tell=tell)
    assert verdict_of(found).verdict is Verdict.UNVERIFIABLE
    assert "changes while it is read" in verdict_of(found).message


def test_file_replaced_meanwhile_is_not_judged(model: Path, tmp_path: Path) -> None:
    other = write_weights(tmp_path / "other", seed=3)

    def tell(at: ScrubPosition, total: int) -> None:
        if other.exists():
            os.replace(other, model)

    found = scrub_file(str(model), f"{model}.ward", pace=UNPACED, stop=never, tell=tell)
    assert verdict_of(found).verdict is Verdict.UNVERIFIABLE


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "gone"])
def test_what_is_no_file_is_unverifiable(model: Path, tmp_path: Path, what: str) -> None:
    model.rename(tmp_path / "kept")
    match what:
        case "link":
            model.symlink_to(tmp_path / "kept")
        case "fifo":
            os.mkfifo(model)
        case "folder":
            model.mkdir()
    assert verdict_of(scrub(model)).verdict is Verdict.UNVERIFIABLE


def test_sidecar_damage_is_seen(model: Path) -> None:
    ward = Path(f"{model}.ward")
    flip(ward, (ward.stat().st_size // 2, 2))
    found = verdict_of(scrub(model))
    assert found.verdict is Verdict.INTACT
    assert found.sidecar.state is SidecarState.DAMAGED
    assert found == verify(model)


@pytest.mark.parametrize("hurt", ["gone", "empty", "garbage"])
def test_sidecar_that_cannot_be_used(model: Path, hurt: str) -> None:
    ward = Path(f"{model}.ward")
    ward.unlink()
    if hurt != "gone":
        ward.write_bytes(b"" if hurt == "empty" else random.Random(SEED).randbytes(10 * PAGE_BYTES))
    assert verdict_of(scrub(model)).verdict is Verdict.UNVERIFIABLE


def test_bad_sector_is_damage(model: Path) -> None:
    found = verdict_of(scrub(model, disk=BadSectorDisk({model: {200}})))
    assert found.verdict is Verdict.DAMAGED
    assert found.damage[0].unreadable


def cached_pieces(path: Path) -> list[bool]:
    fd = os.open(path, os.O_RDONLY)
    try:
        if cached_pages(fd, 0, 1) is None:
            pytest.skip("this kernel does not tell what is cached")
        return [cached_pages(fd, at, 1) == 1 for at in range(0, path.stat().st_size, PAGE_CACHE_BYTES)]
    finally:
        os.close(fd)


def test_page_cache_stays_as_it_was(loop: LoopExt4) -> None:
    model = write_weights(loop.folder / "cached.safetensors", seed=7, kilobytes=4000)
    protect(model)
    os.sync()
    drop_from_cache(model)
    fd = os.open(model, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.preadv(fd, [bytearray(256 << 10)], 1 << 20)
    os.close(fd)
    before = cached_pieces(model)
    assert sum(before) == (256 << 10) // PAGE_CACHE_BYTES
    assert verdict_of(scrub(model)).verdict is Verdict.INTACT
    after = cached_pieces(model)
    assert [here and not there for here, there in zip(before, after, strict=True)].count(True) == 0
    assert sum(after) - sum(before) <= 0.02 * len(after)


def test_memory_wrong_and_disk_right(loop: LoopExt4) -> None:
    model = write_weights(loop.folder / "memory.safetensors", seed=8, kilobytes=3000)
    protect(model)
    loop.flip_beneath(model, 2_000_000)
    drop_from_cache(model)
    model.read_bytes()  # now the cache is wrong
    loop.flip_back(model, 2_000_000)
    found = verdict_of(scrub(model))
    assert [(one.medium, one.flip_count) for one in found.damage] == [("memory", 1)]


def test_disk_wrong_and_memory_right(loop: LoopExt4) -> None:
    model = write_weights(loop.folder / "disk.safetensors", seed=9, kilobytes=3000)
    protect(model)
    model.read_bytes()
    loop.flip_beneath(model, 2_000_000)
    assert verify(model).verdict is Verdict.INTACT  # every program computes right with it, until the page goes
    found = verdict_of(scrub(model))
    assert found.verdict is Verdict.DAMAGED
    assert [(one.medium, one.flip_count, one.flips[0].offset) for one in found.damage] == [("disk", 1, 2_000_000)]
    assert "memory holds the right bytes" in found.message


def test_disk_wrong_and_not_cached(loop: LoopExt4) -> None:
    model = write_weights(loop.folder / "cold.safetensors", seed=10, kilobytes=3000)
    protect(model)
    loop.flip_beneath(model, 2_000_000)
    drop_from_cache(model)
    found = verdict_of(scrub(model))
    assert [(one.medium, one.flips[0].offset) for one in found.damage] == [("disk", 2_000_000)]


def test_intact_needs_no_numpy_and_little_memory(model: Path) -> None:
    code = f"""
import sys
from bitward_agent.daemon.pace import UNPACED, never
from bitward_agent.daemon.page_cache import PAGE_CACHE_BYTES, cached_pages
from bitward_agent.daemon.scrub import scrub_file
assert scrub_file({str(model)!r}, {str(model) + ".ward"!r}, pace=UNPACED, stop=never).verdict == "intact"
assert "numpy" not in sys.modules
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert int(done.stdout) < 60 << 10
