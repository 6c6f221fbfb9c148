"""What is read out of a process's maps, its page map and its memory; and what looks changed rather than flipped."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from bitward_agent.errors import ProcessError
from bitward_agent.findings import Verdict
from bitward_agent.live.check import ViewCheck, verify_view
from bitward_agent.live.files import match_live_files, open_live_pair
from bitward_agent.live.image import outside, overlaps
from bitward_agent.live.judging import SpanDifferences, element_bytes
from bitward_agent.live.maps import View, mapped_files, parse_maps
from bitward_agent.live.memory import PAGE_BYTES, ProcessMemory
from bitward_agent.verify import FlipBudget
from bitward_formats import records
from bitward_formats.spans import Role, Span
from live.children import checkpoint, child, flip_in_memory

SEED = 99
LINE = b"7f00a000-7f00c000 rw-p 00003000 fe:01 77                   "


def test_lines_of_maps() -> None:
    text = LINE + b"/a file\\012with (deleted) (deleted)\n"
    text += b"7f00c000-7f00d000 r--p 00005000 fe:01 77  /x\n55-56 r-xp 0 00:00 0 [stack]\n66-67 rw-p 0 00:00 0\n"
    (file,) = mapped_files(parse_maps(text))
    assert (file.device, file.inode) == ((0xFE, 1), 77)
    assert file.names[1] == "/a file\\012with (deleted)"
    assert "/a file\nwith (deleted)" in file.names
    (view,) = file.views
    assert view.ranges == ((0x3000, 0x6000),)
    assert view.base + 0x3000 == 0x7F00A000
    assert view.mappings[0].name == "7f00a000-7f00c000"
    assert not view.shared


def test_views_are_told_apart() -> None:
    text = LINE + b"/x\n" + LINE.replace(b"rw-p", b"r--s") + b"/x\n" + LINE.replace(b"00003000", b"00004000") + b"/x\n"
    (file,) = mapped_files(parse_maps(text))
    assert len(file.views) == 3


@pytest.mark.parametrize("line", [b"zz", b"1-2-3 rw-p 0 0:0 1 /x", b"1-2 rw-p x 0:0 1 /x", b"1-2 rw-p 0 00 1 /x", LINE[:30]])
def test_a_line_that_is_none(line: bytes) -> None:
    with pytest.raises(ProcessError, match="line 2"):
        parse_maps(LINE + b"/x\n" + line + b"\n")


def test_ranges() -> None:
    ranges = ((2, 4), (6, 9))
    assert list(overlaps(ranges, 3, 8)) == [(3, 4), (6, 8)]
    assert list(outside(ranges, 0, 12)) == [(0, 2), (4, 6), (9, 12)]
    assert list(outside(ranges, 2, 4)) == []
    assert list(outside((), 1, 2)) == [(1, 2)]


def test_own_pages_are_told(tmp_path: Path) -> None:
    """This very process: one page of four is written to, and one that is split off by its protection still belongs to the view."""
    path = tmp_path / "pages"
    path.write_bytes(os.urandom(4 * PAGE_BYTES))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    assert len(mapped[:]) == 4 * PAGE_BYTES
    mapped[2 * PAGE_BYTES + 5] ^= 1
    anchor = ctypes.c_char.from_buffer(mapped)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(PAGE_BYTES), mmap.PROT_READ) == 0
    with ProcessMemory(os.getpid()) as memory:
        (found,) = [one for one in mapped_files(memory.maps()) if one.path == str(path)]
        (view,) = found.views
        assert len(view.mappings) == 2
        assert memory.own_ranges(view) == ((2 * PAGE_BYTES, 3 * PAGE_BYTES),)
        seen = bytearray(4 * PAGE_BYTES)
        assert memory.read_into(memoryview(seen), view.base) == []
        assert bytes(seen) == mapped[:]
        past = bytearray(PAGE_BYTES)
        assert memory.read_into(memoryview(past), 8) == [(8, 8 + PAGE_BYTES)]
    del anchor
    mapped.close()


class _Silent(ProcessMemory):
    """As a kernel that keeps its page maps to itself."""

    def own_ranges(self, view: View) -> None:  # type: ignore[override]
        return None


def test_without_page_maps_bytes_are_compared(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    with child("private", path) as process:
        flip_in_memory(process.pid, path, 5000, 6)
        with _Silent(process.pid) as memory:
            (live,), absent = match_live_files(memory, [(str(path), f"{path}.ward", str(path))])
            assert absent == ()
            pair = open_live_pair(memory, live)
            check = ViewCheck(pair, memory, live.mapped.views[0])
            check.run()
            found = verify_view(check, str(path), FlipBudget(), deleted=False)
            pair.close()
    assert found.verdict is Verdict.DAMAGED
    assert [(one.offset, one.bit % 8) for block in found.damage for one in block.flips] == [(5000, 6)]
    assert found.damage[0].medium == "memory"
    assert found.live is not None
    assert found.live.own_bytes is None


def span(count: int, label: str = "F32") -> Span:
    kind = records.kind_of(label)
    return Span(Role.TENSOR, kind, 0, count * kind.record_bytes, label, (count,), "t")


def judged(right: np.ndarray, found: np.ndarray, label: str = "F32") -> bool:
    tally = SpanDifferences(span(right.size, label))
    tally.add(0, found.view(np.uint8), right.view(np.uint8))
    return tally.is_change


def test_flips_are_no_change() -> None:
    drawn = np.random.default_rng(SEED)
    print("seed", SEED)
    right = (drawn.standard_normal(20_000) * 0.05).astype(np.float32)
    for count in (1, 2, 15, 17, 400):
        found = right.copy()
        for place in drawn.choice(20_000, count, replace=False):
            found.view(np.uint32)[place] ^= np.uint32(1 << int(drawn.integers(3, 32)))
        assert not judged(right, found)
    assert not judged(right, right.copy())
    tiny = right[:7].copy()
    tiny.view(np.uint32)[3] ^= np.uint32(1 << 30)
    assert not judged(right[:7], tiny)


@pytest.mark.parametrize("part", [slice(0, 20_000), slice(300, 700), slice(19_990, 20_000), slice(5, 6)])
def test_arithmetic_and_assignment_are_changes(part: slice) -> None:
    right = (np.random.default_rng(SEED).standard_normal(20_000) * 0.05).astype(np.float32)
    scaled, stepped = (lambda one: one * np.float32(1.001)), (lambda one: one - np.float32(1e-3))
    for change in (scaled, stepped, lambda one: one[::-1] * np.float32(3), np.zeros_like):
        found = right.copy()
        found[part] = change(right[part])
        assert judged(right, found)


def test_smallest_steps_of_16_bit_floats_are_changes() -> None:
    right = np.random.default_rng(SEED).integers(0x3A00, 0x3E00, 5000).astype(np.uint16)
    for count in (3, 40, 5000):
        found = right.copy()
        found[:count] += np.uint16(1)
        assert judged(right, found, "BF16")


def test_what_counts_as_an_element() -> None:
    assert element_bytes(span(8, "F32")) == 4
    assert element_bytes(span(8, "BF16")) == 2
    assert element_bytes(span(8, "Q4_0")) == 1
