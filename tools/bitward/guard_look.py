"""One look at the tensors of one file in this process's memory: what differs from the sidecar, and putting flips right."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from bitward.guard_tensors import Elements, HeldTensor
from bitward_agent.findings import Damage, FileVerification, GuardedTensor, ProgressSink, Verdict
from bitward_agent.io import Range
from bitward_agent.live.check import ImageCheck, LiveBlock, LiveDescriber, verdict_of
from bitward_agent.live.image import BaseImage
from bitward_agent.verify import FlipBudget, OpenPair, unverifiable
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Span

REPAIRABLE = "repairable"
"""What is said of a tensor that could be put right, and was not asked to be."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's place in a file, and its elements in memory in the order of the file's bytes."""

    held: HeldTensor
    span: Span
    elements: Elements


class HeldImage(BaseImage):
    """A file's bytes, where a tensor is held those of its elements in memory."""

    def __init__(self, pair: OpenPair, places: Sequence[Place]) -> None:
        self.places = {place.span.offset: place for place in places}
        super().__init__(pair.file, tuple(sorted((place.span.offset, place.span.end) for place in places)))
        self._whole = self.own

    def place_at(self, offset: int) -> Place:
        """The held tensor that has this byte of the file."""
        return self.places[self._whole[bisect_right(self._whole, (offset, 1 << 63)) - 1][0]]

    def read_own(self, view: memoryview, offset: int) -> list[Range]:
        """See ``BaseImage``: never across two tensors' borders, as ``own`` has one range for each."""
        place = self.place_at(offset)
        start, size = offset - place.span.offset, place.elements.item_bytes
        first, end = start // size, -(-(start + len(view)) // size)
        data = place.elements.read(first, end - first)
        view[:] = data[start - first * size : start - first * size + len(view)].data
        return []


class Look:
    """Compares held tensors with one file's sidecar and, with ``heal``, puts right what a leaf vouches for. ``repaired`` counts blocks."""

    def __init__(self, shown: str, pair: OpenPair, places: Sequence[Place], *, heal: bool) -> None:
        self._shown, self._pair, self._places, self._heal = shown, pair, places, heal
        self._image = HeldImage(pair, places)
        self._check = ImageCheck(pair, self._image, self._image.own)
        self._damage: list[Damage] = []
        self._left: dict[int, str] = {}
        self.repaired = self.remaining = 0

    def run(self, pace: ProgressSink) -> None:
        """Look once. ``pace`` is called after each piece that was read, and may hold it up."""
        self._check.run(1, pace)
        describe = LiveDescriber(self._check, FlipBudget())
        try:
            for one in self._check.damaged():
                finding = describe(one)
                self._damage.append(finding)
                why = "not repairable with what is at hand" if not finding.repairable else self._healed(one) if self._heal else REPAIRABLE
                if why:
                    self._left[one.block.span.offset] = why
                    self.remaining += 1
                else:
                    self.repaired += 1
        finally:
            describe.close()

    def _healed(self, one: LiveBlock) -> str:
        """Put the elements of a block right in place; "" or why that was not done."""
        block, correct = one.block, one.correct
        assert correct is not None
        place = self._image.place_at(block.offset)
        size, start = place.elements.item_bytes, block.offset - block.span.offset
        first, count = start // size, block.length // size
        now = place.elements.read(first, count)
        if self._check.is_leaf(block, now):
            return ""  # under another name, a moment ago
        if (now != one.found).any():
            return "the program is at work on it"
        try:
            for at in sorted({int(byte) // size for byte in (one.found != correct).nonzero()[0]}):
                if (place.elements.read(first + at, 1) != one.found[at * size : (at + 1) * size]).any():
                    return "the program is at work on it"
                place.elements.write(first + at, correct[at * size : (at + 1) * size].tobytes())
        except (ValueError, RuntimeError) as error:
            return f"cannot be written: {error}"
        return "" if self._check.is_leaf(block, place.elements.read(first, count)) else "the program is at work on it"

    def report(self) -> FileVerification:
        """What was found, before anything was healed."""
        pair, check = self._pair, self._check
        if pair.file.state() != pair.state:
            told = "the file changes while it is read: check again when its writer is done"
            return unverifiable(self._shown, pair.state.size, pair.sidecar_report(), told)
        verdict, message = verdict_of(check, self._damage)
        block = pair.sidecar.superblock
        return FileVerification(
            *(self._shown, verdict, check.result.scanned_bytes, block.root.hex(), block.origin_label, pair.modified, pair.sidecar_report()),
            damage=tuple(self._damage),
            damaged_blocks=len(self._damage),
            message=message,
        )

    def tensors(self) -> list[GuardedTensor]:
        """Each tensor's state now."""
        found = []
        for place in self._places:
            verdict, message = Verdict.INTACT, ""
            if place.span.offset in self._left:
                verdict, message = Verdict.DAMAGED, self._left[place.span.offset]
            elif self._check.is_rewritten or place.span.offset in self._check.changed:
                verdict = Verdict.CHANGED
            found.append(GuardedTensor(place.held.name, self._shown, verdict, message))
        return found
