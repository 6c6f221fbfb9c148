"""What is remembered of a full verification, and everything that makes it worth nothing."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import bitward
from bitward_agent.gate import check as gate_check
from bitward_agent.gate.check import check_file
from bitward_agent.gate.facts import Evidence, GateVerdict
from bitward_agent.gate.identity import NANOSECONDS, FileIdentity, Moment, Remembered, identity_of, why_not_remembered, why_not_trusted
from bitward_agent.gate.verdict_cache import ENTRIES_LIMIT, VerdictCache, _from_bytes, default_folder

STEP_SECONDS = 0.15
"""Longer than the step of a time stamp that the cache allows for."""


@pytest.fixture
def model(tmp_path: Path, small_checkpoint: Path) -> Path:
    bitward.protect(small_checkpoint)
    time.sleep(STEP_SECONDS)
    return small_checkpoint


@pytest.fixture
def cache(tmp_path: Path) -> VerdictCache:
    return VerdictCache(str(tmp_path / "cache"))


def check(model: Path, cache: VerdictCache, **more: object) -> GateVerdict:
    return check_file(model, cache=cache, **more)  # type: ignore[arg-type]


def flip(path: Path, offset: int = 20_000) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_the_second_gate_answers_without_reading(model: Path, cache: VerdictCache) -> None:
    first, second = check(model, cache), check(model, cache)
    assert (first.verdict, first.evidence, first.remembered) == ("intact", Evidence.FULL, True)
    assert (second.verdict, second.evidence, second.root) == ("intact", Evidence.CACHED, first.root)
    assert second.when_ns == first.when_ns
    assert second.identity == first.identity == identity_of(model.stat())
    with model.open("rb") as file:
        assert check_file(file.fileno(), cache=cache).evidence is Evidence.CACHED


def test_force_and_age_read_everything(model: Path, cache: VerdictCache) -> None:
    check(model, cache)
    assert check(model, cache, force=True).evidence is Evidence.FULL
    assert check(model, cache, max_age_seconds=0).evidence is Evidence.FULL
    assert check(model, cache, max_age_seconds=3600).evidence is Evidence.CACHED


def write_in_place(model: Path) -> None:
    flip(model)


def write_and_restore_the_times(model: Path) -> None:
    before = model.stat()
    flip(model)
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_through_a_map_and_restore_the_times(model: Path) -> None:
    before = model.stat()
    with model.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[20_000] ^= 0x10
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_rename(model: Path) -> None:
    before = model.stat()
    other = model.with_name("other")
    shutil.copy(model, other)
    flip(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(model)


def truncate(model: Path) -> None:
    os.truncate(model, model.stat().st_size - 1)


@pytest.mark.parametrize(
    "damage", [write_in_place, write_and_restore_the_times, write_through_a_map_and_restore_the_times, replace_by_rename, truncate]
)
def test_damage_through_the_file_system_misses(model: Path, cache: VerdictCache, damage: Callable[[Path], None]) -> None:
    assert check(model, cache).remembered
    damage(model)
    found = check(model, cache)
    assert (found.verdict, found.evidence) == ("damaged", Evidence.FULL)
    assert check(model, cache).evidence is Evidence.FULL  # nothing that is not intact is remembered


def touch(ward: Path) -> None:
    os.utime(ward)


def rewrite(ward: Path) -> None:
    ward.write_bytes(ward.read_bytes())


def make_anew(ward: Path) -> None:
    bitward.protect(ward.with_suffix(""), force=True)


def restore_its_times(ward: Path) -> None:
    before = ward.stat()
    rewrite(ward)
    os.utime(ward, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [touch, rewrite, make_anew, restore_its_times])
def test_a_touched_sidecar_misses(model: Path, cache: VerdictCache, change: Callable[[Path], None]) -> None:
    assert check(model, cache).remembered
    change(Path(f"{model}.ward"))
    assert check(model, cache).evidence is Evidence.FULL


def test_a_missing_or_torn_sidecar_is_never_intact(model: Path, cache: VerdictCache) -> None:
    ward = Path(f"{model}.ward")
    kept = ward.read_bytes()
    assert check(model, cache).remembered
    for left in (b"", kept[:4096], kept[: len(kept) // 10]):
        ward.write_bytes(left)
        assert check(model, cache).verdict == "unverifiable"
    ward.unlink()
    found = check(model, cache)
    assert (found.verdict, found.evidence, found.exit_code) == ("unverifiable", Evidence.NONE, 3)


def test_healed_is_remembered_from_the_next_reading_on(model: Path, cache: VerdictCache) -> None:
    whole = model.read_bytes()
    write_and_restore_the_times(model)
    healed = check(model, cache, heal=True)
    assert (healed.verdict, healed.healed, healed.remembered) == ("intact", True, False)
    assert model.read_bytes() == whole
    time.sleep(STEP_SECONDS)
    assert check(model, cache).remembered
    assert check(model, cache).evidence is Evidence.CACHED


def test_a_gate_does_not_heal_what_was_modified(model: Path, cache: VerdictCache) -> None:
    flip(model)
    damaged = model.read_bytes()
    found = check(model, cache, heal=True)
    assert (found.verdict, found.healed, found.exit_code) == ("damaged", False, 1)
    assert "bitward repair" in found.message
    assert model.read_bytes() == damaged


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_gate_does_not_heal_by_the_sidecar_of_a_stranger(model: Path, cache: VerdictCache) -> None:
    write_and_restore_the_times(model)
    os.chown(model, 1000, 1000)
    os.chown(f"{model}.ward", 1001, 1001)
    found = check(model, cache, heal=True)
    assert (found.verdict, found.healed, "neither root nor" in found.message) == ("damaged", False, True)
    os.chown(f"{model}.ward", 1000, 1000)
    assert check(model, cache, heal=True).healed


@pytest.mark.parametrize("repair_is_pending", [False, True])
def test_a_gate_heals_no_other_file_than_it_verified(
    model: Path, cache: VerdictCache, monkeypatch: pytest.MonkeyPatch, *, repair_is_pending: bool
) -> None:
    """Somebody puts another file in its place after the verification and before the repair, with damage of its own."""
    write_and_restore_the_times(model)
    if repair_is_pending:
        Path(f"{model}.ward-journal").write_bytes(b"torn")
    other = model.with_name("other")
    shutil.copy2(model, other)
    flip(other, 21_000)
    os.utime(other, ns=(0, model.stat().st_mtime_ns))
    verified, before = model.read_bytes(), other.read_bytes()

    def swapped_in_between(ward: str, owner: int) -> bool:
        model.rename(model.with_name("kept"))
        other.rename(model)
        return may_vouch(ward, owner)

    may_vouch = gate_check._may_vouch
    monkeypatch.setattr(gate_check, "_may_vouch", swapped_in_between)
    found = check(model, cache, heal=True)
    assert (found.verdict, found.healed, found.exit_code) == ("unverifiable", False, 3)
    assert "was replaced" in found.message
    assert (model.read_bytes(), model.with_name("kept").read_bytes()) == (before, verified)
    assert Path(f"{model}.ward-journal").exists() is repair_is_pending
    monkeypatch.undo()
    assert check(model, cache, heal=True).healed


def test_not_remembered_while_somebody_has_it_open_for_writing(model: Path, cache: VerdictCache) -> None:
    with model.open("r+b"):
        found = check(model, cache)
        assert (found.verdict, found.remembered) == ("intact", False)
    assert check(model, cache).remembered


def test_not_remembered_in_the_step_of_a_write(model: Path, cache: VerdictCache) -> None:
    """A file that was just written may be written again under the same time stamp."""
    model.touch()
    assert not check(model, cache).remembered
    time.sleep(STEP_SECONDS)
    assert check(model, cache).remembered


# ------------------------------------------------------------------------------------------------------ hostile and damaged caches


@pytest.fixture
def entry(model: Path, cache: VerdictCache) -> Iterator[Path]:
    """The one entry of a cache that works."""
    assert check(model, cache).remembered
    (found,) = Path(cache.folder).iterdir()
    yield found
    assert check(model, cache).verdict == "intact"


def misses(model: Path, cache: VerdictCache) -> bool:
    return check(model, cache, jobs=1).evidence is Evidence.FULL


def test_every_flipped_bit_of_an_entry_is_a_miss(entry: Path) -> None:
    data = entry.read_bytes()
    assert _from_bytes(data) is not None
    for bit in range(len(data) * 8):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        assert _from_bytes(bytes(wrong)) in (None, _from_bytes(data)), bit  # a space outside the entry may become another
    assert all(_from_bytes(data[:length]) is None for length in range(len(data)))


def _now() -> Moment:
    from bitward_agent.gate.verdict_cache import now

    return now()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "[" * 3000, '{"entry": 1, "check": 2}', "x" * 10_000, '{"entry": "{}", "check": "00"}']
)
def test_nonsense_is_a_miss(model: Path, cache: VerdictCache, entry: Path, text: str) -> None:
    entry.write_text(text)
    assert misses(model, cache)


def test_entries_and_folders_of_others_are_not_believed(model: Path, cache: VerdictCache, entry: Path) -> None:
    entry.chmod(0o666)
    assert misses(model, cache)
    assert not misses(model, cache)  # it was written anew
    os.link(entry, entry.with_name("another-name"))
    assert misses(model, cache)
    entry.with_name("another-name").unlink()
    kept = entry.read_bytes()
    entry.unlink()
    elsewhere = entry.parent.parent / "elsewhere"
    elsewhere.write_bytes(kept)
    entry.symlink_to(elsewhere)
    assert misses(model, cache)
    Path(cache.folder).chmod(0o777)
    assert misses(model, cache)
    assert "not ours alone" in check(model, cache).message
    Path(cache.folder).chmod(0o700)
    if os.geteuid() == 0:
        os.chown(entry, 12345, 12345)
        assert misses(model, cache)
        os.chown(cache.folder, 12345, 12345)
        assert misses(model, cache)
        os.chown(cache.folder, 0, 0)


def test_a_cache_that_cannot_be_written_costs_a_reading(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("/proc/nowhere", str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        found = check(model, VerdictCache(folder))
        assert (found.verdict, found.evidence, found.remembered) == ("intact", Evidence.FULL, False)
        assert folder in found.message


def test_a_full_disk_costs_a_reading(model: Path, tmp_path: Path) -> None:
    import subprocess

    place = tmp_path / "tiny"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", place], check=False).returncode:
        pytest.skip("mounting a tiny file system needs root")
    try:
        (place / "filler").write_bytes(b"x" * 4096)
        found = check(model, VerdictCache(str(place / "cache")))
        assert (found.verdict, found.remembered) == ("intact", False)
        assert check(model, VerdictCache(str(place / "cache"))).evidence is Evidence.FULL
    finally:
        subprocess.run(["umount", place], check=True)


def _remember_many(folder: str, seed: int, count: int) -> int:
    cache, began = VerdictCache(folder), _now()
    kept = 0
    for number in range(count):
        one = FileIdentity(1, number, seed, 1, 1)
        kept += not cache.remember(one, one, "00", began)
        found = cache.look_up(one, one, max_age_seconds=60).found
        assert found is None or found.file == one  # another process may have written it over
    return kept


def test_many_processes_at_once(tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    with ProcessPoolExecutor(4) as pool:
        assert list(pool.map(_remember_many, [folder] * 4, range(4), [100] * 4)) == [100] * 4
    names = os.listdir(folder)
    assert len(names) == 100
    assert all(json.loads((tmp_path / "cache" / name).read_bytes())["check"] for name in names)


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitward_agent.gate.verdict_cache.ENTRIES_LIMIT", 50)
    assert ENTRIES_LIMIT > 50
    left = tmp_path / "cache" / ".left.behind"
    left.parent.mkdir(mode=0o700)
    left.write_text("")
    os.utime(left, (0, 0))
    assert _remember_many(str(tmp_path / "cache"), 0, 300) == 300
    assert len(os.listdir(tmp_path / "cache")) <= 50 + 64
    assert not left.exists()


def test_where_it_is() -> None:
    assert default_folder({"BITWARD_CACHE_DIR": "/x/y"}) == "/x/y"
    usual = default_folder({"XDG_CACHE_HOME": "/x"})
    assert usual == ("/var/cache/bitward" if os.geteuid() == 0 else "/x/bitward")


# ------------------------------------------------------------------------------------------------------------- when to trust; pure

S = NANOSECONDS
FILE, WARD = FileIdentity(1, 2, 3, 10 * S + 1, 10 * S + 1), FileIdentity(1, 3, 4, 11 * S + 1, 11 * S + 1)
KEPT = Remembered(FILE, WARD, "00", Moment(100 * S, "boot", 50 * S))


@pytest.mark.parametrize(
    ("moment", "trusted"),
    [
        (Moment(100 * S, "boot", 50 * S), True),
        (Moment(160 * S, "boot", 110 * S), True),
        (Moment(160 * S + 1, "boot", 110 * S), False),  # too old by the wall's clock
        (Moment(120 * S, "boot", 110 * S + 1), False),  # by the other: somebody set the clock back
        (Moment(100 * S - 1, "boot", 60 * S), False),  # the clock lies before the verification
        (Moment(101 * S, "another", 51 * S), False),  # a crash may have lost a time, and kept what was written
        (Moment(101 * S, "", 51 * S), False),
        (Moment(101 * S, "boot", 49 * S), False),
    ],
)
def test_age_by_two_clocks(moment: Moment, trusted: bool) -> None:
    assert (why_not_trusted(KEPT, FILE, WARD, moment, 60) == "") is trusted


@pytest.mark.parametrize("name", ["device", "inode", "size", "mtime_ns", "ctime_ns"])
def test_every_part_of_both_identities_counts(name: str) -> None:
    for shift in (-1, 1):
        moved = replace(FILE, **{name: getattr(FILE, name) + shift})
        assert why_not_trusted(KEPT, moved, WARD, KEPT.began, 60)
        moved = replace(WARD, **{name: getattr(WARD, name) + shift})
        assert why_not_trusted(KEPT, FILE, moved, KEPT.began, 60)


@pytest.mark.parametrize(
    ("ctime_ns", "began_ns", "remembered"),
    [
        (10 * S + 1, 10 * S + 1 + S // 10, True),
        (10 * S + 1, 10 * S + S // 10, False),
        (10 * S, 12 * S, False),  # no fraction: the file system may keep whole seconds
        (10 * S, 12 * S + S // 10, True),
        (99 * S + 1, 50 * S, False),  # it lies in the future
    ],
)
def test_racily_clean(ctime_ns: int, began_ns: int, remembered: bool) -> None:
    file = FileIdentity(1, 2, 3, 1, ctime_ns)
    assert (why_not_remembered(file, replace(WARD, mtime_ns=1, ctime_ns=1), Moment(began_ns, "", 0)) == "") is remembered
