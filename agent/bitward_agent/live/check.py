"""One image of a checkpoint in a process's memory against its sidecar. Only reads.

Bad blocks get their right bytes from the mapped file, where it is right; else from parity, decoded over what is in memory. Tensors that the
process has changed itself are told apart (``judging``) before a flip of them is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bitward_agent.findings import Damage, FileVerification, Flip, LiveReport, ProgressSink, Verdict
from bitward_agent.flips import count_flips, list_flips
from bitward_agent.io import Range
from bitward_agent.live.image import BaseImage, Image, outside, overlaps
from bitward_agent.live.judging import SpanDifferences
from bitward_agent.live.maps import View
from bitward_agent.live.memory import ProcessMemory
from bitward_agent.locate import Locator
from bitward_agent.medium import MEMORY, UNKNOWN, UncachedReader, medium_of
from bitward_agent.rewrite import Differences, is_rewrite
from bitward_agent.scan import ScanResult, scan
from bitward_agent.verify import FlipBudget, OpenPair
from bitward_formats.blocks import Block
from bitward_formats.digest import leaf_function
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Role, Span

Bytes = npt.NDArray[np.uint8]
Wanted = Callable[[Span], bool]

_DECODED_LIMIT_BYTES = 64 << 20
"""Most bytes that parity restores for one image: as much is kept in memory until it is judged. More damage than this is the file's."""
_SETTLED_ELEMENTS = 1024
"""So many elements that look changed settle it for their tensor; the rest of it is not read again."""
_CHANGED_NAMES_LIMIT = 1000
_MEDIUM_CHECKS_LIMIT = 256


@dataclass(frozen=True, slots=True)
class LiveBlock:
    """A bad block as mapped. ``in_file`` is what the file has there, ``correct`` what a leaf vouches for (or ``None``).

    Where the block is not mapped ``found`` equals ``correct``, so that only what the process sees counts. ``source``: reference (the file
    itself), parity or none.
    """

    block: Block
    found: Bytes
    in_file: Bytes
    correct: Bytes | None
    source: str
    unreadable: bool

    @property
    def is_own(self) -> bool:
        """Whether what is wrong lies in the process's copies, not in the page cache."""
        return self.correct is not None and bool(((self.found != self.correct) & (self.found != self.in_file)).any())


class ImageCheck:
    """Scans and judges one image of a file; ``ranges`` are the bytes of the file that are in it, the others are not looked at.

    ``changed``: offset and name of each span that was changed on purpose; ``bad``: numbers of blocks.
    """

    def __init__(
        self, pair: OpenPair, image: BaseImage, ranges: Sequence[Range], wanted: Wanted | None = None, *, is_cache: bool = False
    ) -> None:
        """``is_cache``: the image is nothing but the page cache, so that the file's own rules judge it."""
        self.pair, self.image, self.ranges, self.is_cache = pair, image, _clipped(ranges, pair.sidecar.superblock.file_bytes), is_cache
        self._wanted = wanted
        self._leaf = leaf_function(pair.sidecar.superblock.leaf_hash)
        self.table = pair.sidecar.plan.table
        self._decoded: dict[int, Bytes] = {}
        self._from_file: list[Range] = []
        self.result = ScanResult((), (), 0)
        self.bad: tuple[int, ...] = ()
        self.changed: dict[int, str] = {}
        self.is_rewritten = False

    def is_wanted(self, span: Span) -> bool:
        mapped = any(True for _ in overlaps(self.ranges, span.offset, span.end))
        return mapped and (self._wanted is None or self._wanted(span))

    def run(self, jobs: int | None = None, progress: ProgressSink | None = None) -> None:
        """Read everything that is mapped and judge what differs."""
        self.result = scan(self.image, self.pair.sidecar, jobs=jobs, progress=progress, wanted=self.is_wanted)
        self.bad = tuple(number for number in self.result.bad_blocks if self._is_mapped(self.table[number]))
        self._decode()
        if not self.is_rewritten:
            self._judge()

    def _is_mapped(self, block: Block) -> bool:
        return any(True for _ in overlaps(self.ranges, block.offset, block.end))

    def is_partial(self, block: Block) -> bool:
        """Whether part of the block is not mapped."""
        return any(True for _ in outside(self.ranges, block.offset, block.end))

    def _in_file(self, block: Block) -> Bytes:
        data = np.zeros(block.length, np.uint8)
        self.pair.file.read_into(memoryview(data), block.offset)  # type: ignore[arg-type]  # arrays are buffers
        return data

    def is_leaf(self, block: Block, data: Bytes) -> bool:
        """Whether these bytes are what was protected."""
        return self._leaf(memoryview(data), block.index, block.length) == self.pair.sidecar.leaf(block.number)  # type: ignore[arg-type]

    def _decode(self) -> None:
        """Parity for the blocks of which the file itself is wrong; the others count as known meanwhile."""
        unsolved = []
        for number in self.bad:
            block = self.table[number]
            if self.is_leaf(block, self._in_file(block)):
                self._from_file.append((block.offset, block.end))
            else:
                unsolved.append(number)
        if not unsolved:
            return
        locator = Locator(self.image.without(self._from_file), self.pair.ward, self.pair.sidecar)
        differences, kept = Differences(), 0
        for outcomes in locator.outcomes(unsolved, self.result.unreadable):
            for outcome in outcomes:
                differences.add(outcome, self.pair.state.size)
                if outcome.correct is not None and kept < _DECODED_LIMIT_BYTES:
                    self._decoded[outcome.block.number] = outcome.correct
                    kept += outcome.block.length
            if differences.unsolved and is_rewrite(self.pair, differences):
                break
        self.is_rewritten = is_rewrite(self.pair, differences)

    def live_block(self, number: int) -> LiveBlock:
        """One bad block, read anew."""
        block = self.table[number]
        found = np.zeros(block.length, np.uint8)
        lost = self.image.read_into(memoryview(found), block.offset)  # type: ignore[arg-type]  # arrays are buffers
        in_file = self._in_file(block)
        correct, source = self._decoded.get(number), "parity"
        if self.is_leaf(block, in_file):
            correct, source = in_file, "reference"
        if correct is None:
            source = "none"
        else:
            for low, high in outside(self.ranges, block.offset, block.end):
                found[low - block.offset : high - block.offset] = correct[low - block.offset : high - block.offset]
        return LiveBlock(block, found, in_file, correct, source, bool(lost))

    def _judge(self) -> None:
        """Which tensors the process itself changed. What is also wrong in the file was not done by the process."""
        if self.is_cache:
            return  # these are the file's own pages, and the file is judged by its own rules
        tallies: dict[int, SpanDifferences] = {}
        settled: set[int] = set()
        for number in self.bad:
            span = self.table[number].span
            if span.offset in settled:
                continue
            one = self.live_block(number)
            if one.correct is None or one.unreadable:
                continue
            tally = tallies.setdefault(span.offset, SpanDifferences(span))
            own = np.where(one.found != one.in_file, one.found, one.correct)
            tally.add(one.block.offset - span.offset, own, one.correct)
            if tally.is_change and tally.elements > _SETTLED_ELEMENTS:
                settled.add(span.offset)
        changed = [tally.span for at, tally in tallies.items() if at in settled or tally.is_change]
        self.changed = {span.offset: span.name or f"bytes {span.offset} to {span.end - 1}" for span in changed}

    def damaged(self) -> Iterator[LiveBlock]:
        """The bad blocks of tensors that the process did not change, in the order of their offsets, and that it sees as wrong."""
        if self.is_rewritten:
            return
        for number in self.bad:
            if self.table[number].span.offset not in self.changed:
                one = self.live_block(number)
                if one.correct is None or one.unreadable or (one.found != one.correct).any():
                    yield one


class ViewCheck(ImageCheck):
    """The image is a view that another process has of the file."""

    def __init__(self, pair: OpenPair, memory: ProcessMemory, view: View, wanted: Wanted | None = None) -> None:
        self.memory, self.view = memory, view
        told = memory.own_ranges(view)
        self.own_bytes = None if told is None else sum(high - low for low, high in _clipped(told, pair.sidecar.superblock.file_bytes))
        # Where the kernel does not tell which pages are copies, all are read as if they were.
        image = Image(pair.file, memory, view.base, view.ranges if told is None else told)
        super().__init__(pair, image, view.ranges, wanted, is_cache=view.shared)

    def report(self, deleted: bool) -> LiveReport:
        """What there is to say of the view itself."""
        partial = {self.table.at_offset(at).number for at in _edges(self.ranges, self.pair.sidecar.superblock.file_bytes)}
        return LiveReport(
            pid=self.memory.pid,
            process=self.memory.process,
            mapping="shared" if self.view.shared else "private",
            addresses=tuple(one.name for one in self.view.mappings[:_CHANGED_NAMES_LIMIT]),
            mapped_bytes=sum(high - low for low, high in self.ranges),
            own_bytes=self.own_bytes,
            partial_blocks=sum(self.is_partial(self.table[number]) for number in partial),
            changed=tuple(name for _, name in sorted(self.changed.items()))[:_CHANGED_NAMES_LIMIT],
            deleted=deleted,
        )


def _clipped(ranges: Sequence[Range], file_bytes: int) -> tuple[Range, ...]:
    return tuple(overlaps(ranges, 0, file_bytes))


def _edges(ranges: Sequence[Range], file_bytes: int) -> Iterator[int]:
    """Bytes in the blocks that the ranges may cut."""
    for low, high in ranges:
        yield low
        yield min(high, file_bytes) - 1


class LiveDescriber:
    """Turns bad blocks of a view into findings."""

    def __init__(self, check: ImageCheck, budget: FlipBudget) -> None:
        self._check, self._budget = check, budget
        self._reader = UncachedReader(check.pair.file.fd)
        self._leaf = leaf_function(check.pair.sidecar.superblock.leaf_hash)
        self._checks_left = _MEDIUM_CHECKS_LIMIT

    def close(self) -> None:
        self._reader.close()

    def _medium(self, one: LiveBlock) -> str:
        if one.is_own:
            return MEMORY
        self._checks_left -= 1
        if self._checks_left < 0:
            return UNKNOWN
        return medium_of(self._reader, one.block, one.in_file.tobytes(), self._check.pair.sidecar.leaf(one.block.number), self._leaf)

    def __call__(self, one: LiveBlock) -> Damage:
        """The finding of one bad block."""
        block, count = one.block, 0
        flips: tuple[Flip, ...] = ()
        if one.correct is not None and not one.unreadable:
            count = count_flips(one.found, one.correct)
            flips = list_flips(block, one.found, one.correct, self._budget.take(count))
        return Damage(
            tensor=block.span.name if block.span.role is Role.TENSOR else None,
            block=block.index,
            offset=block.offset,
            length=block.length,
            repairable=one.correct is not None and not one.unreadable,
            source=one.source,
            medium=self._medium(one),
            flip_count=count,
            flips=flips,
            unreadable=one.unreadable,
        )


def verdict_of(check: ImageCheck, damage: Sequence[Damage]) -> tuple[Verdict, str]:
    """The verdict on a view, and what is to be said with it."""
    if check.is_rewritten:
        return Verdict.CHANGED, "the file that it maps is not the one that was protected: rewritten, or replaced after it was mapped"
    notes = []
    if check.changed:
        names = "tensors" if len(check.changed) > 1 else "tensor"
        notes.append(f"the process itself has changed {len(check.changed)} {names}: what differs there is left alone")
    if damage:
        return Verdict.DAMAGED, "; ".join(notes)
    return (Verdict.CHANGED if check.changed else Verdict.INTACT), "; ".join(notes)


def verify_view(check: ViewCheck, shown: str, budget: FlipBudget, *, deleted: bool) -> FileVerification:
    """The report on a view that was run."""
    describe = LiveDescriber(check, budget)
    try:
        damage = tuple(describe(one) for one in check.damaged())
    finally:
        describe.close()
    verdict, message = verdict_of(check, damage)
    pair = check.pair
    block = pair.sidecar.superblock
    return FileVerification(
        *(shown, verdict, check.result.scanned_bytes, block.root.hex(), block.origin_label, pair.modified, pair.sidecar_report()),
        damage=damage,
        damaged_blocks=len(damage),
        message=message,
        live=check.report(deleted),
    )
