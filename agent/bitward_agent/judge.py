"""Changed or damaged, repairable or lost: what a scan's bad blocks amount to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bitward_agent.findings import Damage, Verdict
from bitward_agent.flips import count_flips, list_flips
from bitward_agent.locate import Locator, Outcome
from bitward_agent.medium import UNKNOWN, UncachedReader, medium_of
from bitward_agent.scan import ScanResult
from bitward_agent.verify import APPENDED_LIMIT_BYTES, FlipBudget, OpenPair
from bitward_formats.digest import leaf_function
from bitward_formats.spans import Role

_MEDIUM_CHECKS_LIMIT = 256
"""Blocks of one file that are read again around the page cache; the rest is told as unknown."""


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    damage: tuple[Damage, ...]
    notes: tuple[str, ...]


def present_blocks_match(pair: OpenPair, result: ScanResult) -> bool:
    """Whether a file that is too short is otherwise the old one: every block that is there in full has its digest."""
    size, table = pair.state.size, pair.sidecar.plan.table
    return size < pair.sidecar.superblock.file_bytes and all(table[number].end > size for number in result.bad_blocks)


def is_rewrite(pair: OpenPair, result: ScanResult, excess: int, *, all_solved: bool) -> bool:
    """Whether the file was rewritten rather than damaged.

    Size or time must tell of a writer, and something must be beyond the code's reach: a rewrite practically never lies within.
    A file that only ends too early was torn, not rewritten.
    """
    if not pair.modified:
        return False
    if excess > APPENDED_LIMIT_BYTES:
        return True
    return not all_solved and not present_blocks_match(pair, result)


def judge(pair: OpenPair, result: ScanResult, excess: int, budget: FlipBudget) -> Judgement:
    """Decode all bad blocks and name every flip that can be named."""
    damage: list[Damage] = []
    all_solved = True
    describe = DamageDescriber(pair, budget)
    try:
        stoppable = pair.modified and not present_blocks_match(pair, result)
        for outcome in _flat(Locator(pair.file, pair.ward, pair.sidecar), result):
            all_solved &= outcome.correct is not None
            if stoppable and not all_solved:
                break
            damage.append(describe(outcome))
    finally:
        describe.close()
    if is_rewrite(pair, result, excess, all_solved=all_solved):
        note = f"rewritten since it was protected: {len(result.bad_blocks)} blocks differ; if that was meant, protect it again"
        return Judgement(Verdict.CHANGED, (), (note,))
    if excess:
        damage.append(Damage(None, pair.sidecar.plan.table.count, pair.sidecar.superblock.file_bytes, excess, True, "parity", UNKNOWN, 0))
    damage.sort(key=lambda one: one.offset)
    notes = []
    if pair.state.size < pair.sidecar.superblock.file_bytes:
        notes.append(f"the file is {pair.sidecar.superblock.file_bytes - pair.state.size} bytes too short")
    if excess:
        notes.append(f"the file has {excess} bytes too many at its end")
    return Judgement(Verdict.DAMAGED, tuple(damage), tuple(notes))


def _flat(locator: Locator, result: ScanResult) -> Iterator[Outcome]:
    for outcomes in locator.outcomes(result.bad_blocks, result.unreadable):
        yield from outcomes


class DamageDescriber:
    """Turns outcomes into findings; keeps the uncached reader and the budget of flips that may be listed."""

    def __init__(self, pair: OpenPair, budget: FlipBudget) -> None:
        self._pair, self._budget = pair, budget
        self._reader = UncachedReader(pair.file.path)
        self._leaf = leaf_function(pair.sidecar.superblock.leaf_hash)
        self._checks_left = _MEDIUM_CHECKS_LIMIT

    def close(self) -> None:
        self._reader.close()

    def _medium(self, outcome: Outcome) -> str:
        self._checks_left -= 1
        if outcome.unreadable or self._checks_left < 0:
            return "disk" if outcome.unreadable and outcome.block.end <= self._pair.state.size else UNKNOWN
        expected = self._pair.sidecar.leaf(outcome.block.number)
        return medium_of(self._reader, outcome.block, outcome.found.tobytes(), expected, self._leaf)

    def __call__(self, outcome: Outcome, source: str | None = None, correct: np.ndarray | None = None) -> Damage:
        """The finding of one bad block; ``source`` and ``correct`` override what parity says."""
        right = outcome.correct if correct is None else correct
        block = outcome.block
        count, flips = 0, ()
        if right is not None and not outcome.unreadable:
            count = count_flips(outcome.found, right)
            flips = list_flips(block, outcome.found, right, self._budget.take(count))
        return Damage(
            tensor=block.span.name if block.span.role is Role.TENSOR else None,
            block=block.index,
            offset=block.offset,
            length=block.length,
            repairable=right is not None,
            source=source or ("parity" if right is not None else "none"),
            medium=self._medium(outcome),
            flip_count=count,
            flips=flips,
            unreadable=outcome.unreadable,
        )
