"""What a repair could write: for each bad block the bytes that a digest vouches for, and where they come from. Only reads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bitward_agent.flips import count_flips
from bitward_agent.locate import Locator, Outcome
from bitward_agent.scan import ScanResult
from bitward_agent.sourcing import Sourcing
from bitward_formats.blocks import Block
from bitward_formats.frozen import dataclass

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Fix:
    """New bytes for a block. ``vouched`` is false where no digest speaks for them: those are written in best-effort repair only."""

    block: Block
    before: Bytes
    after: Bytes
    source: str
    vouched: bool
    flip_count: int


@dataclass(frozen=True, slots=True)
class Decision:
    """A bad block's outcome and what can be done about it; ``fix`` is ``None`` if nothing can."""

    outcome: Outcome
    fix: Fix | None

    @property
    def is_solved(self) -> bool:
        return self.fix is not None and self.fix.vouched


def decisions(
    locator: Locator, result: ScanResult, sourcing: Sourcing | None = None, *, best_effort: bool = False
) -> Iterator[Decision]:
    """For every bad block: parity first, then the sources in order, then, if asked for, what the codes agree on.

    Sources are asked when parity has done what it can, for all that is left at once: so neighbours are fetched together. Of what is left
    only the numbers are kept meanwhile.
    """
    left: list[int] = []
    for outcomes in locator.outcomes(result.bad_blocks, result.unreadable):
        for outcome in outcomes:
            if outcome.correct is not None:
                yield Decision(outcome, _make(outcome, outcome.correct, "parity", vouched=True))
            elif sourcing:
                left.append(outcome.block.number)
            else:
                yield Decision(outcome, _guess(outcome) if best_effort else None)
    if sourcing and left:
        yield from _from_sources(locator, result, sourcing, left, best_effort=best_effort)


def _from_sources(locator: Locator, result: ScanResult, sourcing: Sourcing, left: list[int], *, best_effort: bool) -> Iterator[Decision]:
    missing = set(left)
    wanted = [locator.table[number] for number in sorted(left)]
    file_bytes = locator.sidecar.superblock.file_bytes
    fetched = sourcing.fetch(wanted, file_bytes, lambda block, data: locator.is_leaf(block, np.frombuffer(data, np.uint8)))
    for block, data, source in fetched:
        missing.discard(block.number)
        outcome = locator.as_found(block.number, result.unreadable)
        yield Decision(outcome, _make(outcome, np.frombuffer(data, np.uint8), source, vouched=True))
    if not best_effort:
        for number in sorted(missing):
            yield Decision(locator.as_found(number, result.unreadable), None)
    elif missing:
        # What the codes agree on was not kept: decode once more.
        for outcomes in locator.outcomes(result.bad_blocks, result.unreadable):
            for outcome in outcomes:
                if outcome.block.number in missing:
                    yield Decision(outcome, _guess(outcome))


def _guess(outcome: Outcome) -> Fix | None:
    """What both codes agree on, for which no digest speaks."""
    if outcome.agreed is not None and not outcome.unreadable and (outcome.agreed != outcome.found).any():
        return _make(outcome, outcome.agreed, "parity", vouched=False)
    return None


def _make(outcome: Outcome, after: Bytes, source: str, *, vouched: bool) -> Fix:
    flips = 0 if outcome.unreadable else count_flips(outcome.found, after)
    return Fix(outcome.block, outcome.found, after, source, vouched, flips)
