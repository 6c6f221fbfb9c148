"""Damage in words: one line for a flipped bit, one for a block that is lost as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from bitward.report.names import printable_tensor, printable_text
from bitward.report.numbers import count, exact_size, value_pair
from bitward.report.style import Style
from bitward_agent.findings import Damage, Flip

LINE_LIMIT = 20
"""Most lines of flips and blocks for people; JSON has them all."""

WHOLESALE_FLIPS = 64
"""A block with more wrong bits than this is told as one: nobody reads the bits of a lost block one by one."""


@dataclass(slots=True)
class LineBudget:
    """How many lines of damage may still be printed; one budget for a whole report."""

    left: int = LINE_LIMIT

    def take(self) -> bool:
        if self.left <= 0:
            return False
        self.left -= 1
        return True


def element_name(tensor: str, index: tuple[int, ...]) -> str:
    """``name[1203, 77]``; a scalar has no brackets."""
    where = f"[{', '.join(map(str, index))}]" if index else ""
    return printable_tensor(tensor) + where


def flip_line(flip: Flip, style: Style) -> str:
    """One wrong bit: where it is, which bit, what stands there and what belongs there."""
    if flip.tensor is None:
        place = f"byte {flip.offset:,}"
        found, correct = (f"0x{one:02x}" if isinstance(one, int) else printable_text(str(one)) for one in (flip.found, flip.correct))
    else:
        place = element_name(flip.tensor, flip.index)
        found, correct = map(printable_text, value_pair(flip.found, flip.correct))
    kind = "" if flip.field == "raw" else f" ({printable_text(flip.field)})"
    return f"{style.strong(place)}  bit {flip.bit}{kind}  {style.bad(found)}, was {style.good(correct)}"


def remedy(one: Damage) -> str:
    """Whether a block can come back, and where from."""
    return f"repairable from {printable_text(one.source)}" if one.repairable else "not repairable with what is at hand"


def block_line(one: Damage, style: Style, last: Damage | None = None) -> str:
    """A block that is told as a whole: lost, unreadable, or with too many wrong bits to name.

    With ``last`` it stands for all blocks from ``one`` to that one, whose bits ``one`` counts.
    """
    end = last or one
    length = end.offset + end.length - one.offset
    blocks = f"block {one.block:,}" if last is None else f"blocks {one.block:,} to {end.block:,}"
    if one.tensor is None:
        place = f"bytes {one.offset:,} to {one.offset + length - 1:,}"
    elif one.flips:
        place = f"{element_name(one.tensor, one.flips[0].index)} … {blocks}"
    else:
        place = f"{printable_tensor(one.tensor)} {blocks}"
    if one.missing:
        state = "missing"
    elif one.unreadable:
        state = "cannot be read (I/O error)"
    elif one.flip_count:
        state = count(one.flip_count, "bit") + " wrong"
    else:
        state = "contents wrong"
    told = style.good(remedy(one)) if one.repairable else style.bad(remedy(one))
    return f"{style.strong(place)}: {exact_size(length)}, {state}, {told}"


def _listed_singly(one: Damage) -> bool:
    return bool(one.flips) and one.flip_count <= WHOLESALE_FLIPS and not one.unreadable


def _goes_on(one: Damage, following: Damage) -> bool:
    """Whether two lost blocks lie side by side and the same is to be said of both: a lost region is one thing to a reader."""
    same = (one.tensor, one.repairable, one.source, one.unreadable, one.flip_count == 0)
    other = (following.tensor, following.repairable, following.source, following.unreadable, following.flip_count == 0)
    return same == other and following.block == one.block + 1 and following.offset == one.offset + one.length


def _regions(damage: Iterable[Damage]) -> Iterator[list[Damage]]:
    """The damage in order, neighbouring lost blocks together."""
    region: list[Damage] = []
    for one in damage:
        if region and not _listed_singly(one) and not _listed_singly(region[-1]) and _goes_on(region[-1], one):
            region.append(one)
            continue
        if region:
            yield region
        region = [one]
    if region:
        yield region


def _region_line(region: list[Damage], style: Style) -> str:
    if len(region) == 1:
        return block_line(region[0], style)
    return block_line(replace(region[0], flip_count=sum(one.flip_count for one in region)), style, region[-1])


def damage_lines(damage: Iterable[Damage], budget: LineBudget, style: Style, *, unlisted: int = 0) -> Iterator[str]:
    """Lines for some damage, as far as the budget goes, then how many more there are.

    ``unlisted`` counts blocks that the report itself left out.
    """
    left_out = unlisted
    for region in _regions(damage):
        one = region[0]
        if _listed_singly(one):
            shown = 0
            for flip in one.flips:
                if not budget.take():
                    break
                yield flip_line(flip, style) + ("" if one.repairable else style.bad(f"  {remedy(one)}"))
                shown += 1
            left_out += one.flip_count - shown
        elif budget.take():
            yield _region_line(region, style)
        else:
            left_out += len(region)
    if left_out:
        yield style.dim(f"… and {left_out:,} more (use --json)")


def summary(damage: tuple[Damage, ...], block_count: int) -> str:
    """``1,000 bits wrong in 412 blocks, all repairable from parity``."""
    bits = sum(one.flip_count for one in damage)
    unknown = any(one.flip_count == 0 for one in damage)
    blocks = count(max(block_count, len(damage)), "block")
    head = f"{'at least ' if unknown else ''}{count(bits, 'bit')} wrong in {blocks}" if bits else f"{blocks} damaged"
    lost = [one for one in damage if not one.repairable]
    if not lost:
        sources = ", ".join(sorted({printable_text(one.source) for one in damage})) or "parity"
        return f"{head}, repairable from {sources}"
    if len(lost) == len(damage):
        return f"{head}, not repairable with what is at hand"
    return f"{head}, of which {count(len(lost), 'block')} cannot be repaired with what is at hand"


def memory_note(damage: tuple[Damage, ...]) -> str:
    """A line for damage that lies in memory and not on the disk, else nothing."""
    in_memory = sum(one.medium == "memory" for one in damage)
    if not in_memory:
        return ""
    return f"{count(in_memory, 'block')} right on the disk and wrong in the page cache: this machine's memory, not its disk, is at fault"
