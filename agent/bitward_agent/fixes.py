"""What a repair could write: for each bad block the bytes that a digest vouches for, and where they come from. Only reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitward_agent.flips import count_flips
from bitward_agent.locate import Locator, Outcome
from bitward_agent.scan import ScanResult
from bitward_agent.sources import Source
from bitward_formats.blocks import Block

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


def decisions(locator: Locator, result: ScanResult, sources: Sequence[Source], *, best_effort: bool) -> Iterator[Decision]:
    """For every bad block: parity first, then the sources in order, then, if asked for, what the codes agree on."""
    for outcomes in locator.outcomes(result.bad_blocks, result.unreadable):
        for outcome in outcomes:
            yield Decision(outcome, _fix(locator, outcome, sources, best_effort=best_effort))


def _fix(locator: Locator, outcome: Outcome, sources: Sequence[Source], *, best_effort: bool) -> Fix | None:
    if outcome.correct is not None:
        return _make(outcome, outcome.correct, "parity", vouched=True)
    for source in sources:
        for candidate in source.candidates(outcome.block):
            data = np.frombuffer(candidate, np.uint8)
            if locator.is_leaf(outcome.block, data):
                return _make(outcome, data, source.name, vouched=True)
    if best_effort and outcome.agreed is not None and not outcome.unreadable and (outcome.agreed != outcome.found).any():
        return _make(outcome, outcome.agreed, "parity", vouched=False)
    return None


def _make(outcome: Outcome, after: Bytes, source: str, *, vouched: bool) -> Fix:
    flips = 0 if outcome.unreadable else count_flips(outcome.found, after)
    return Fix(outcome.block, outcome.found, after, source, vouched, flips)
