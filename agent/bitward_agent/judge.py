"""Changed or damaged, repairable or lost: what a scan's bad blocks amount to."""

from __future__ import annotations

from collections.abc import Iterator

from bitward_agent.findings import Damage, Flip, Progress, ProgressSink, Verdict
from bitward_agent.flips import count_flips, list_flips
from bitward_agent.locate import Locator, Outcome
from bitward_agent.medium import UNKNOWN, UncachedReader, medium_of
from bitward_agent.rewrite import Differences, is_rewrite
from bitward_agent.scan import ScanResult
from bitward_agent.verify import FlipBudget, OpenPair
from bitward_formats.digest import leaf_function
from bitward_formats.frozen import dataclass
from bitward_formats.spans import BLOCK_LIMIT_BYTES, Role

_MEDIUM_CHECKS_LIMIT = 256
"""Blocks of one file that are read again around the page cache; the rest is told as unknown."""


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    damage: tuple[Damage, ...]
    notes: tuple[str, ...]


def judge(pair: OpenPair, result: ScanResult, excess: int, budget: FlipBudget, progress: ProgressSink | None = None) -> Judgement:
    """Decode all bad blocks and name every flip that can be named."""
    damage: list[Damage] = []
    differences = Differences()
    describe = DamageDescriber(pair, budget)
    try:
        for outcome in _flat(Locator(pair.file, pair.ward, pair.sidecar), result):
            differences.add(outcome, pair.state.size)
            if differences.unsolved and is_rewrite(pair, differences):
                break  # one such block decides; the others need not be decoded
            damage.append(describe(outcome))
            if progress:
                progress(Progress("locate", pair.file.path, len(damage) * BLOCK_LIMIT_BYTES, len(result.bad_blocks) * BLOCK_LIMIT_BYTES))
    finally:
        describe.close()
    if is_rewrite(pair, differences):
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
        self._reader = UncachedReader(pair.file.fd)
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

    def __call__(self, outcome: Outcome) -> Damage:
        """The finding of one bad block."""
        right, block = outcome.correct, outcome.block
        missing = block.end > self._pair.state.size
        count = 0
        flips: tuple[Flip, ...] = ()
        if right is not None and not outcome.unreadable:
            count = count_flips(outcome.found, right)
            flips = list_flips(block, outcome.found, right, self._budget.take(count))
        return Damage(
            tensor=block.span.name if block.span.role is Role.TENSOR else None,
            block=block.index,
            offset=block.offset,
            length=block.length,
            repairable=right is not None,
            source="parity" if right is not None else "none",
            medium=self._medium(outcome),
            flip_count=count,
            flips=flips,
            unreadable=outcome.unreadable and not missing,
            missing=missing,
        )
