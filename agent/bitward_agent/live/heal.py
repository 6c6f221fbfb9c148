"""Putting flips in a process's memory right, while it runs: aligned words are written through ``/proc/PID/mem``.

Only bytes that a leaf vouches for are written, and only where memory still holds what was judged; afterwards the block is read again and
held against its leaf. The process is not stopped. What can race is told in ADR 0018.
"""

from __future__ import annotations

import os

import numpy as np

from bitward_agent.errors import ProcessError
from bitward_agent.findings import Write
from bitward_agent.flips import count_flips
from bitward_agent.io import reason
from bitward_agent.live.check import LiveBlock, ViewCheck
from bitward_agent.live.image import Image, outside
from bitward_agent.live.maps import mapped_files
from bitward_agent.live.memory import WORD_BYTES
from bitward_formats.spans import Role


def is_still_mapped(check: ViewCheck) -> bool:
    """Whether the process still has this view: its addresses may stand for something else by now."""
    memory, view = check.memory, check.view
    first = view.mappings[0]
    now = [one for file in mapped_files(memory.maps()) for one in file.views if (file.device, file.inode) == (first.device, first.inode)]
    same = [one for one in now if (one.base, one.shared) == (view.base, view.shared)]
    return any(one.ranges == view.ranges for one in same)


def heal_block(check: ViewCheck, one: LiveBlock) -> bool:
    """Write the words of a block that differ; whether the process now sees what a leaf vouches for.

    Raises:
        ProcessError: the process ended, or the kernel refuses to write.
    """
    assert one.correct is not None
    memory, base, block = check.memory, check.view.base, one.block
    words = sorted({(base + block.offset + int(at)) // WORD_BYTES * WORD_BYTES for at in (one.found != one.correct).nonzero()[0]})
    current = bytearray(WORD_BYTES)
    for address in words:
        if memory.read_into(memoryview(current), address):
            return False
        low = max(address, base + block.offset)
        high = min(address + WORD_BYTES, base + block.end)
        at, length = low - base - block.offset, high - low
        if current[low - address : high - address] != one.found[at : at + length].tobytes():
            return False  # the process is at work there
        wanted = bytearray(current)
        wanted[low - address : high - address] = one.correct[at : at + length].tobytes()
        memory.write_word(address, bytes(wanted))
    return _reads_right(check, one)


def heal_file_block(check: ViewCheck, one: LiveBlock, fd: int) -> bool:
    """Write the differing bytes of a block into a mapped file that has no name any more, so that every process that maps it is healed.

    Raises:
        ProcessError: it cannot be written.
    """
    assert one.correct is not None
    try:
        for at in (one.in_file != one.correct).nonzero()[0]:
            os.pwrite(fd, one.correct[at : at + 1].tobytes(), one.block.offset + int(at))
    except OSError as error:
        raise ProcessError(f"{check.pair.file.path}: cannot write at byte {one.block.offset}: {reason(error)}") from error
    return check.is_leaf(one.block, check.live_block(one.block.number).in_file)


def _reads_right(check: ViewCheck, one: LiveBlock) -> bool:
    """Whether what is mapped of the block reads back as right, through the process's own eyes."""
    seen = np.zeros(one.block.length, np.uint8)
    mapped = Image(check.pair.file, check.memory, check.view.base, check.ranges)
    lost = mapped.read_into(memoryview(seen), one.block.offset)  # type: ignore[arg-type]  # arrays are buffers
    assert one.correct is not None
    for low, high in outside(check.ranges, one.block.offset, one.block.end):
        seen[low - one.block.offset : high - one.block.offset] = one.correct[low - one.block.offset : high - one.block.offset]
    return not lost and check.is_leaf(one.block, seen)


def write_of(one: LiveBlock, path: str) -> Write:
    """A healed block as the report tells it."""
    assert one.correct is not None
    block = one.block
    tensor = block.span.name if block.span.role is Role.TENSOR else None
    source = path if one.source == "reference" else one.source
    return Write(tensor, block.index, block.offset, block.length, source, count_flips(one.found, one.correct))
