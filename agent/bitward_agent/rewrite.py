"""Rewritten or damaged: the judgement about a file that differs from its sidecar and whose size or time tell of a writer."""

from __future__ import annotations

from dataclasses import dataclass

from bitward_agent.locate import Outcome
from bitward_agent.verify import OpenPair
from bitward_formats.readers.opaque import NAME as OPAQUE

APPENDED_LIMIT_BYTES = 1 << 20
"""A modified file with more bytes than this at its end was rewritten, not damaged."""
DENSE_SHARE = 0.01
"""From this share of differing bits on, differences that reach across the file look like new contents."""
_RESIZED_BITS = 64
"""A file of another size that also differs in more bits than this before its end was edited."""


@dataclass(slots=True)
class Differences:
    """What decoding told of the bad blocks: how many bits differ, over which range, and whether every block was solved.

    ``unsolved_present`` counts the unsolved ones that the file has in full; the others lie behind the end of a torn file.
    """

    bits: int = 0
    low: int | None = None
    high: int = 0
    solved: int = 0
    unsolved: int = 0
    unsolved_present: int = 0

    def add(self, outcome: Outcome, size: int) -> None:
        """Take in one bad block of a file of ``size`` bytes; bytes that are missing or unreadable do not count as different."""
        if outcome.correct is None:
            self.unsolved += 1
            self.unsolved_present += outcome.block.end <= size
            return
        self.solved += 1
        block = outcome.block
        there = max(0, min(block.length, size - block.offset))
        if outcome.unreadable and block.end <= size:
            return
        difference = outcome.found[:there] ^ outcome.correct[:there]
        places = difference.nonzero()[0]
        if places.size:
            self.bits += sum(int(value).bit_count() for value in difference[places].tolist())
            first = block.offset + int(places[0])
            self.low = first if self.low is None else min(self.low, first)
            self.high = max(self.high, block.offset + int(places[-1]) + 1)


def is_rewrite(pair: OpenPair, differences: Differences) -> bool:
    """Whether the file was rewritten rather than damaged.

    Size or time must tell of a writer. Then something beyond the code's reach decides: a rewrite of a large file practically never
    lies within. A small file's parity reaches everything, so there new contents tell by being dense and everywhere, or by a new
    size together with changes before the end. A file that only ends too early was torn, not rewritten.
    """
    if not pair.modified:
        return False
    opaque = pair.sidecar.layout.format_name == OPAQUE
    if pair.excess_bytes > (0 if opaque and pair.has_new_mtime else APPENDED_LIMIT_BYTES):
        return True  # logs and texts grow at their end; a checkpoint does not
    recorded = pair.sidecar.superblock.file_bytes
    if differences.unsolved:
        return differences.unsolved_present > 0 or pair.state.size >= recorded
    if pair.state.size != recorded:
        return differences.bits > _RESIZED_BITS
    wide = 2 * (differences.high - (differences.low or 0)) > recorded
    return wide and differences.bits > DENSE_SHARE * 8 * recorded
