"""Damage on purpose: exactly what was asked for, the same for the same seed, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import checkpoints
from bitward.inject import FLIPS_LISTED_LIMIT, InjectReport, inject
from bitward.inject_places import InjectRefusedError

TENSORS = checkpoints.many_dtypes()
FLOAT_CRITICAL = {"F64": range(52, 64), "F32": range(23, 32), "F16": range(10, 16), "BF16": range(7, 16)}


def changed_bits(before: bytes, after: bytes) -> list[tuple[int, int]]:
    assert len(before) == len(after)
    different = (index for index, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
    return [(index, bit) for index in different for bit in range(8) if (before[index] ^ after[index]) >> bit & 1]


def place(flip: object, data: bytes) -> tuple[int, int]:
    """(offset, bit of the byte) of a named flip, worked out from the header by itself."""
    tensor, index, bit = flip.tensor, flip.index, flip.bit  # type: ignore[attr-defined]
    start = 8 + int.from_bytes(data[:8], "little")
    for name, (_, dims, content) in TENSORS.items():
        if name == tensor:
            count = 1
            number = 0
            for dim, coordinate in zip(dims, index, strict=True):
                number = number * dim + coordinate
                count *= dim
            return start + number * (len(content) // count) + bit // 8, bit % 8
        start += len(content)
    assert tensor is None
    return flip.offset, bit  # type: ignore[attr-defined]


@pytest.mark.parametrize("lanes", ["all", "critical", "14", "30", "3"])
@pytest.mark.parametrize("count", [1, 2, 500])
def test_flips_are_where_the_report_says(small_checkpoint: Path, lanes: str, count: int) -> None:
    before = small_checkpoint.read_bytes()
    done = inject(small_checkpoint, flips=count, lanes=lanes, seed=5)
    after = small_checkpoint.read_bytes()
    changed = changed_bits(before, after)
    assert len(changed) == done.flip_count == len(done.flips) == count
    assert sorted(place(flip, before) for flip in done.flips) == changed
    assert [flip.offset for flip in done.flips] == [offset for offset, _ in changed]
    for flip in done.flips:
        dtype = TENSORS[flip.tensor][0] if flip.tensor else ""
        if lanes == "critical" and dtype in FLOAT_CRITICAL:
            assert flip.bit in FLOAT_CRITICAL[dtype]
        if lanes.isdigit():
            assert flip.bit == int(lanes)
        if lanes != "all":
            assert flip.tensor is not None


def test_the_same_seed_does_the_same_and_another_does_not(small_checkpoint: Path, tmp_path: Path) -> None:
    clean = small_checkpoint.read_bytes()

    def once(seed: int) -> tuple[bytes, InjectReport]:
        small_checkpoint.write_bytes(clean)
        done = inject(small_checkpoint, flips=50, burst_bytes=36, zero_bytes=512, seed=seed)
        return small_checkpoint.read_bytes(), done

    assert once(1) == once(1)
    assert once(1)[0] != once(2)[0]


def test_flipping_twice_restores(small_checkpoint: Path) -> None:
    before = small_checkpoint.read_bytes()
    inject(small_checkpoint, flips=100, seed=9)
    assert small_checkpoint.read_bytes() != before
    # Any bit of the file: drawn from its size alone, whatever the first round did to the header.
    inject(small_checkpoint, flips=100, seed=9)
    assert small_checkpoint.read_bytes() == before


def test_burst_and_zeros(small_checkpoint: Path) -> None:
    before = small_checkpoint.read_bytes()
    done = inject(small_checkpoint, burst_bytes=36, zero_bytes=4096, flips=20, seed=3)
    after = small_checkpoint.read_bytes()
    assert done.burst is not None
    assert done.zero is not None
    burst = range(done.burst.offset, done.burst.offset + 36)
    zero = range(done.zero.offset, done.zero.offset + 4096)
    assert not set(burst) & set(zero)
    assert all(before[index] != after[index] for index in burst)
    assert not any(after[zero.start : zero.stop])
    changed = changed_bits(before, after)
    assert done.burst.changed_bits == sum(offset in burst for offset, _ in changed)
    assert done.zero.changed_bits == sum(offset in zero for offset, _ in changed)
    assert sorted(place(flip, before) for flip in done.flips) == [one for one in changed if one[0] not in burst and one[0] not in zero]


def test_rate_flips_one_bit_in_about_that_share_of_the_elements(small_checkpoint: Path) -> None:
    before = small_checkpoint.read_bytes()
    done = inject(small_checkpoint, rate=0.05, seed=4)
    elements = {(flip.tensor, flip.index) for flip in done.flips}
    assert len(elements) == done.flip_count == len(changed_bits(before, small_checkpoint.read_bytes()))
    total = sum(len(data) // {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8}.get(dtype, 1) for dtype, _, data in TENSORS.values())
    assert abs(done.flip_count - 0.05 * total) < 5 * (0.05 * total) ** 0.5


def test_rate_one_hits_every_element(tmp_path: Path) -> None:
    path = checkpoints.write_safetensors(tmp_path / "m.safetensors", {"w": ("BF16", (10, 10), bytes(200))})
    done = inject(path, rate=1.0, lanes="critical", seed=4)
    assert [flip.index for flip in done.flips] == [(row, column) for row in range(10) for column in range(10)]
    assert all(flip.bit >= 7 for flip in done.flips)


def test_every_bit_can_be_flipped_and_not_one_more(tmp_path: Path) -> None:
    path = tmp_path / "blob.bin"
    path.write_bytes(bytes(100))
    with pytest.raises(InjectRefusedError, match="only 800"):
        inject(path, flips=801, seed=1)
    assert path.read_bytes() == bytes(100)
    inject(path, flips=800, seed=1)
    assert path.read_bytes() == b"\xff" * 100


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3"])
def test_elements_smaller_than_a_byte_are_named(tmp_path: Path, dtype: str) -> None:
    bits = 4 if dtype == "F4" else 6
    path = checkpoints.write_safetensors(tmp_path / "m.safetensors", {"w": (dtype, (8, 5), bytes(40 * bits // 8))})
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    done = inject(path, rate=1.0, lanes=str(bits - 1), seed=1)
    values = int.from_bytes(path.read_bytes()[start:], "little")
    assert values == sum(1 << (bits * element + bits - 1) for element in range(40))
    assert [flip.index for flip in done.flips] == [(row, column) for row in range(8) for column in range(5)]


def test_times_are_kept_only_if_asked(small_checkpoint: Path) -> None:
    os.utime(small_checkpoint, ns=(10**18, 10**18))
    inject(small_checkpoint, flips=1, seed=1, keep_mtime=True)
    assert small_checkpoint.stat().st_mtime_ns == 10**18
    inject(small_checkpoint, flips=1, seed=1)
    assert small_checkpoint.stat().st_mtime_ns != 10**18


def test_a_link_is_followed_and_named(small_checkpoint: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(small_checkpoint)
    done = inject(link, flips=1, seed=1)
    assert done.via_link
    assert done.target == str(small_checkpoint.resolve())
    assert link.is_symlink()


def test_lists_are_cut_and_counts_are_not(tmp_path: Path) -> None:
    path = tmp_path / "blob.bin"
    path.write_bytes(bytes(100_000))
    done = inject(path, flips=FLIPS_LISTED_LIMIT + 7, seed=1)
    assert done.flip_count == FLIPS_LISTED_LIMIT + 7
    assert len(done.flips) == FLIPS_LISTED_LIMIT
    assert int.from_bytes(path.read_bytes(), "little").bit_count() == done.flip_count


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "nothing to do"),
        ({"flips": 1, "rate": 0.5}, "exclude"),
        ({"rate": 0.0}, "above 0"),
        ({"rate": 1.5}, "above 0"),
        ({"rate": float("nan")}, "above 0"),
        ({"flips": 1, "lanes": "64"}, "no tensor"),
        ({"flips": 1, "lanes": "sign"}, "lanes"),
        ({"flips": -1}, "negative"),
        ({"burst_bytes": 10**9}, "longer than the file"),
        ({"zero_bytes": 10**9}, "longer than the file"),
        ({"flips": 10**9, "zero_bytes": 10}, "flips asked for"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(small_checkpoint: Path, options: dict[str, object], reason: str) -> None:
    before = small_checkpoint.read_bytes()
    with pytest.raises(InjectRefusedError, match=reason):
        inject(small_checkpoint, seed=1, **options)  # type: ignore[arg-type]
    assert small_checkpoint.read_bytes() == before


def test_empty_files_directories_and_pipes_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InjectRefusedError, match="empty"):
        inject(empty, flips=1, seed=1)
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(InjectRefusedError, match="not a regular file"):
            inject(path, flips=1, seed=1)
    with pytest.raises(FileNotFoundError):
        inject(tmp_path / "nowhere", flips=1, seed=1)
