"""What ``explain`` promises holds: damage up to the guarantee always comes back, byte for byte."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from bitward_agent.explain import explain_file
from bitward_agent.findings import Verdict
from bitward_agent.protect import Protection, preset_groups, protect_file
from bitward_agent.repair import RepairRequest, repair_file
from bitward_agent.sources.local import LocalSource
from bitward_agent.verify import open_sidecar, verify_file
from bitward_formats.groups import LaneGroup, LaneGroups, Selector
from checkpoints import safetensors_bytes

NARROW = (LaneGroup(Selector.ALL, 11, 6),)
"""The standard preset with stripes so narrow that a few megabytes make several of them."""
BY_KIND = (LaneGroup(Selector.CRITICAL, 8, 6), LaneGroup(Selector.OTHER, 11, 0))


class Bench:
    """A protected file that can be hurt and looked at again and again."""

    def __init__(self, folder: Path, content: bytes, groups: LaneGroups) -> None:
        self.file, self.ward = folder / "model.safetensors", folder / "model.safetensors.ward"
        self.file.write_bytes(content)
        self.clean = content
        protect_file(str(self.file), str(self.ward), Protection(groups, "custom", 1))
        self.times = (self.file.stat().st_atime_ns, self.file.stat().st_mtime_ns)

    def hurt(self, content: bytes, *, keep_mtime: bool = True) -> None:
        self.file.write_bytes(content)
        if keep_mtime:
            os.utime(self.file, ns=self.times)
        else:
            os.utime(self.file, ns=(self.times[0], self.times[1] + 10**9))

    def repair(self, *, best_effort: bool = False) -> int:
        return repair_file(str(self.file), str(self.ward), RepairRequest(best_effort=best_effort)).exit_code

    def comes_back(self, content: bytes) -> bool:
        self.hurt(content)
        found = verify_file(str(self.file), str(self.ward))
        assert found.verdict is Verdict.DAMAGED
        assert found.exit_code == 1, "verify must promise what repair then does"
        assert self.repair() == 0
        return self.file.read_bytes() == self.clean


def checkpoint(seed: int, megabytes: float = 3.0) -> bytes:
    """Tensors of several types, large and small, of normal weights."""
    rng = np.random.default_rng(seed)
    count = int(megabytes * 1e6 / 2)
    half = (rng.standard_normal(count // 2).astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    single = rng.standard_normal(count // 4).astype("<f4") * np.float32(0.03)
    norms = rng.standard_normal(577).astype("<f4")
    return safetensors_bytes(
        {
            "embed": ("BF16", (half.size,), half.tobytes()),
            "norm": ("F32", (norms.size,), norms.tobytes()),
            "dense": ("F32", (single.size,), single.tobytes()),
            "ids": ("I64", (5,), np.arange(5, dtype="<i8").tobytes()),
        }
    )


@pytest.fixture
def narrow(tmp_path: Path) -> Bench:
    return Bench(tmp_path, checkpoint(1), NARROW)


def many_short_tensors(seed: int) -> bytes:
    """Large tensors between flocks of tensors of 20 to 64 KB, which are packed into slots that other stripes hold."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(10):
        sizes = [int(rng.integers(2, 9)) * 65536, *(int(size) for size in rng.integers(20_000, 64_000, rng.integers(2, 9)))]
        for index, size in enumerate(sizes):
            tensors[f"{layer}.{index}"] = ("U8", (size,), rng.bytes(size))
    return safetensors_bytes(tensors)


@pytest.mark.parametrize("seed", range(6))
def test_the_promised_burst_holds_where_short_blocks_crowd(tmp_path: Path, seed: int) -> None:
    """Every start at a block's border, where a burst touches most: the worst is tried for real."""
    bench = Bench(tmp_path, many_short_tensors(seed), (LaneGroup(Selector.ALL, 11, 8 + seed),))
    length = explain_file(str(bench.file), str(bench.ward)).longest_burst_bytes
    ward, sidecar, _ = open_sidecar(str(bench.ward))
    ward.close()
    rng = random.Random(seed)
    ends = [block.end - 1 for block in sidecar.plan.table if block.end - 1 + length <= len(bench.clean)]
    assert length > 0
    for start in rng.sample(ends, min(12, len(ends))):
        assert bench.comes_back(bench.clean[:start] + rng.randbytes(length) + bench.clean[start + length :]), start


def test_a_burst_as_long_as_promised_comes_back_wherever_it_lies(narrow: Bench) -> None:
    length = explain_file(str(narrow.file), str(narrow.ward)).longest_burst_bytes
    assert length > 65536
    size = len(narrow.clean)
    seed = 7
    print("seed", seed)
    rng = random.Random(seed)
    starts = [0, 1, size - length, size // 2, *(rng.randrange(size - length) for _ in range(12))]
    for start in starts:
        assert narrow.comes_back(narrow.clean[:start] + rng.randbytes(length) + narrow.clean[start + length :]), start


@pytest.mark.parametrize("groups", [NARROW, BY_KIND, preset_groups("lean"), preset_groups("strong")], ids=["all", "kind", "lean", "strong"])
def test_one_flip_in_every_lane_of_every_cell_comes_back(tmp_path: Path, groups: LaneGroups) -> None:
    bench = Bench(tmp_path, checkpoint(2, 0.6), groups)
    seed = 11
    print("seed", seed)
    rng = np.random.default_rng(seed)
    ward, sidecar, _ = open_sidecar(str(bench.ward))
    ward.close()
    hurt = np.frombuffer(bench.clean, np.uint8).copy()
    flips = 0
    for block in sidecar.plan.table:
        record = block.span.kind.record_bytes
        for group in groups:
            lanes = np.flatnonzero(np.unpackbits(np.frombuffer(group.mask(block.span.kind), np.uint8), bitorder="little"))
            for first in range(0, block.length // record, 1 << group.cell_log2):
                count = min(1 << group.cell_log2, block.length // record - first)
                at = block.offset + (first + rng.integers(0, count, lanes.size)) * record + lanes // 8
                np.bitwise_xor.at(hurt, at, (1 << (lanes % 8)).astype(np.uint8))
                flips += lanes.size
    assert flips > 1000
    assert bench.comes_back(hurt.tobytes())


def test_two_lost_slots_of_every_stripe_come_back(narrow: Bench) -> None:
    seed = 13
    print("seed", seed)
    rng = random.Random(seed)
    ward, sidecar, _ = open_sidecar(str(narrow.ward))
    ward.close()
    for _ in range(4):
        hurt = bytearray(narrow.clean)
        for zone in sidecar.plan.geometry.zones:
            for stripe in range(zone.stripe_count):
                length = zone.stripe_length(stripe)
                for position in rng.sample(range(length), min(2, length)):
                    for piece in zone.code_class.pieces(zone.slot(stripe, position)):
                        hurt[piece.block.offset : piece.block.end] = rng.randbytes(piece.block.length)
        assert narrow.comes_back(bytes(hurt))


def test_three_lost_slots_of_a_stripe_are_told_as_beyond_repair(narrow: Bench) -> None:
    ward, sidecar, _ = open_sidecar(str(narrow.ward))
    ward.close()
    zone = sidecar.plan.geometry.zones[0]
    hurt = bytearray(narrow.clean)
    for position in range(3):
        for piece in zone.code_class.pieces(zone.slot(0, position)):
            hurt[piece.block.offset : piece.block.end] = random.Random(position).randbytes(piece.block.length)
    narrow.hurt(bytes(hurt))
    assert verify_file(str(narrow.file), str(narrow.ward)).exit_code == 4
    assert narrow.repair() == 4
    assert narrow.file.read_bytes() == bytes(hurt), "nothing may be written that no digest vouches for"


def _flip_share(content: bytes, share: float, seed: int) -> tuple[bytes, np.ndarray, int]:
    """FlipGuard's fault model on one F32 tensor: a share of the parameters gets one random bit flipped each."""
    rng = np.random.default_rng(seed)
    start = 8 + int.from_bytes(content[:8], "little")
    words = np.frombuffer(content, np.uint8)[start:].copy().view("<u4")
    chosen = rng.choice(words.size, int(words.size * share), replace=False)
    words[chosen] ^= np.uint32(1) << rng.integers(0, 32, chosen.size).astype(np.uint32)
    return content[:start] + words.tobytes(), chosen, start


def _big_f32(seed: int, count: int = 2_000_000) -> bytes:
    values = np.random.default_rng(seed).standard_normal(count).astype("<f4") * np.float32(0.04)
    return safetensors_bytes({"w": ("F32", (count,), values.tobytes())})


@pytest.mark.parametrize(("preset", "share"), [("standard", 0.005), ("strong", 0.01)])
def test_a_share_of_the_parameters_flipped(tmp_path: Path, preset: str, share: float) -> None:
    bench = Bench(tmp_path, _big_f32(3), preset_groups(preset))
    hurt, _, _ = _flip_share(bench.clean, share, seed=5)
    bench.hurt(hurt)
    assert bench.repair() == 0
    assert bench.file.read_bytes() == bench.clean


def test_best_effort_makes_no_right_bit_wrong(tmp_path: Path) -> None:
    """Three times the rate of the paper is beyond the code: what is written is right, and most sign and exponent bits are among it."""
    bench = Bench(tmp_path, _big_f32(4, 1_000_000), preset_groups("strong"))
    hurt, _, start = _flip_share(bench.clean, 0.03, seed=6)
    bench.hurt(hurt)
    assert bench.repair(best_effort=True) == 4
    contents = (bench.clean, hurt, bench.file.read_bytes())
    clean, before, after = (np.frombuffer(data, np.uint8)[start:].view("<u4") for data in contents)
    critical = np.uint32(0xFF800000)
    damaged, left = (clean ^ before) & critical, (clean ^ after) & critical
    assert np.bitwise_count(left & ~damaged).sum() == 0
    assert np.bitwise_count(left & damaged).sum() <= 0.001 * np.bitwise_count(damaged).sum()


def test_rewritten_files_are_changed_not_damaged(narrow: Bench) -> None:
    narrow.hurt(checkpoint(99), keep_mtime=False)
    found = verify_file(str(narrow.file), str(narrow.ward))
    assert (found.verdict, found.exit_code) == (Verdict.CHANGED, 5)
    assert narrow.repair() == 5
    assert narrow.file.read_bytes() == checkpoint(99)
    assert narrow.repair(best_effort=True) == 5
    assert narrow.file.read_bytes() == checkpoint(99)


def test_a_flip_in_a_file_with_a_new_time_is_damage(narrow: Bench) -> None:
    hurt = bytearray(narrow.clean)
    hurt[len(hurt) // 2] ^= 0x40
    narrow.hurt(bytes(hurt), keep_mtime=False)
    found = verify_file(str(narrow.file), str(narrow.ward))
    assert (found.verdict, found.modified, found.exit_code) == (Verdict.DAMAGED, True, 1)
    assert [(flip.offset, flip.bit % 8) for one in found.damage for flip in one.flips] == [(len(hurt) // 2, 6)]
    assert narrow.repair() == 0
    assert narrow.file.read_bytes() == narrow.clean


@pytest.mark.parametrize("kept", [0, 1, 1000, 200_000])
def test_a_torn_file_is_damage_however_much_is_gone(narrow: Bench, kept: int) -> None:
    narrow.hurt(narrow.clean[:kept], keep_mtime=False)
    found = verify_file(str(narrow.file), str(narrow.ward))
    assert (found.verdict, found.exit_code) == (Verdict.DAMAGED, 4)
    assert narrow.repair() == 4


def test_a_small_text_with_new_contents_is_changed(tmp_path: Path) -> None:
    file, ward = tmp_path / "config.json", tmp_path / "config.json.ward"
    file.write_text('{"hidden_size": 384, "layers": 6, "note": "as it was delivered"}' * 20)
    protect_file(str(file), str(ward), Protection(preset_groups("standard"), "standard", 1))
    edited = file.read_text().replace("384", "1024")
    file.write_text(edited)
    os.utime(file, ns=(1, 1))
    assert verify_file(str(file), str(ward)).verdict is Verdict.CHANGED
    assert repair_file(str(file), str(ward), RepairRequest()).exit_code == 5
    assert file.read_text() == edited


def test_what_a_source_has_helps_parity_with_the_rest(narrow: Bench, tmp_path: Path) -> None:
    """Three lost blocks of one stripe, of which a copy has one: parity does the other two."""
    ward, sidecar, _ = open_sidecar(str(narrow.ward))
    ward.close()
    zone = sidecar.plan.geometry.zones[0]
    hurt, copy = bytearray(narrow.clean), bytearray(narrow.clean)
    for position in range(3):
        for piece in zone.code_class.pieces(zone.slot(0, position)):
            noise = random.Random(position).randbytes(piece.block.length)
            hurt[piece.block.offset : piece.block.end] = noise
            if position:
                copy[piece.block.offset : piece.block.end] = noise
    narrow.hurt(bytes(hurt))
    (tmp_path / "copy").write_bytes(bytes(copy))
    source = LocalSource(str(tmp_path / "copy"), str(narrow.file))
    done = repair_file(str(narrow.file), str(narrow.ward), RepairRequest(sources=(source,)))
    source.close()
    assert (done.exit_code, done.repaired, done.remaining) == (0, 3, 0)
    assert {write.source for write in done.writes} == {"parity", str(tmp_path / "copy")}
    assert narrow.file.read_bytes() == narrow.clean


def test_two_flips_of_a_lane_beside_two_lost_blocks(tmp_path: Path) -> None:
    """The leaf alone decides a pair of flips; that block known, parity has only two left to restore."""
    bench = Bench(tmp_path, np.random.default_rng(8).bytes(5 * 65536), (LaneGroup(Selector.ALL, 11, 6),))
    hurt = bytearray(bench.clean)
    hurt[: 2 * 65536] = random.Random(1).randbytes(2 * 65536)
    for at in (3 * 65536 + 10, 3 * 65536 + 700):
        hurt[at] ^= 0x08
    assert bench.comes_back(bytes(hurt))


def test_lanes_without_any_code_are_told_and_do_not_crash(tmp_path: Path) -> None:
    """On opaque bytes the group of the other lanes is empty: there is nothing but the leaves."""
    bench = Bench(tmp_path, os.urandom(5 * 65536), (LaneGroup(Selector.OTHER, 11, 0),))
    bench.hurt(bytes([bench.clean[0] ^ 1]) + bench.clean[1:])
    assert verify_file(str(bench.file), str(bench.ward)).exit_code == 4
    assert bench.repair() == 4
