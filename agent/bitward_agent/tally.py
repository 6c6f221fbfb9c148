"""What the decisions about a file's bad blocks add up to: fixes to write, damage that stays, and lines for the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from bitward_agent.findings import Damage, Write
from bitward_agent.fixes import Decision, Fix
from bitward_agent.judge import DamageDescriber
from bitward_agent.rewrite import Differences
from bitward_formats.digest import LeafHash, leaf_function
from bitward_formats.spans import Role

BATCH_BYTES = 32 << 20
"""Bytes of blocks that one journal covers; more damage is repaired in several rounds, so that memory stays bounded."""


@dataclass(slots=True)
class Tally:
    """What the decisions of a file add up to."""

    fixes: list[Fix] = field(default_factory=list)
    fixes_bytes: int = 0
    overflow: bool = False
    remaining: list[Damage] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    solved: int = 0
    unsolved: int = 0
    differences: Differences = field(default_factory=Differences)

    def add(self, decision: Decision, describe: DamageDescriber, size: int) -> None:
        self.differences.add(decision.outcome, size)
        if decision.is_solved:
            self.solved += 1
        else:
            self.unsolved += 1
            self.remaining.append(describe(decision.outcome))
        if decision.fix is None:
            return
        fix = decision.fix
        self.writes.append(write_of(fix))
        self.fixes_bytes += 2 * fix.block.length
        if self.fixes_bytes > 2 * BATCH_BYTES:
            self.overflow = True
            self.fixes.clear()
        if not self.overflow:
            self.fixes.append(fix)


def write_of(fix: Fix) -> Write:
    """A fix as the report tells it."""
    block = fix.block
    tensor = block.span.name if block.span.role is Role.TENSOR else None
    leaf = leaf_function(LeafHash.XXH3)
    before, after = (leaf(data.tobytes(), block.index, block.length).hex() for data in (fix.before, fix.after))
    return Write(tensor, block.index, block.offset, block.length, fix.source, fix.flip_count, fix.vouched, before, after)
