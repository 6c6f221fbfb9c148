"""Residual-path perturbation: attenuate what a branch adds to the residual stream, and watch the loss.

In a model that is right each branch is needed: with less of it the loss rises. If a branch carries a fault, less of it is less of the fault, and
the loss falls, or becomes a number. Hidden states before each block are held, so a trial runs only what follows. First whole groups of
layers are attenuated a little, then single branches of the groups that look worst, those with strong factors as well.

The method, without a way to find the branches or the cost told here, is BitFlipScope's (Karamat et al., arXiv:2512.22174).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from bitward_agent.diagnosis.branches import branch_names, scaled
from bitward_agent.diagnosis.facts import BlockScore
from bitward_agent.diagnosis.objectives import Batch
from bitward_agent.diagnosis.pieces import BlockCall, Pieces

GROUPS = 6
GROUPS_LOOKED_INTO = 2
GROUP_FACTOR = 0.8
FACTORS = (0.0, 0.5, 0.8)
"""A strong fault is gone with its branch; a weak one shows where most of the branch is left."""
NEVER_FINITE = -1e30


@dataclass(frozen=True, slots=True)
class BranchTrial:
    """What attenuating a branch did. ``branch`` is the module's name; ``factor`` the best of those tried, ``loss`` what it led to, in nats per item
    (not finite if none was); ``gain`` is loss before less loss after, infinite where only the loss after is finite."""

    block: int
    branch: str
    factor: float
    loss: float
    gain: float


@dataclass(frozen=True, slots=True)
class Perturbation:
    """All trials, the best first. ``loss``: without any attenuation. ``passes``: the cost in forward passes of the whole model."""

    loss: float
    trials: tuple[BranchTrial, ...]
    groups: tuple[tuple[tuple[int, ...], float], ...]
    passes: float

    @property
    def best(self) -> BranchTrial | None:
        """The branch whose attenuation helps most; None where none helps."""
        return self.trials[0] if self.trials and self.trials[0].gain > 0 else None


class BranchProbe:
    """Runs a model with branches attenuated. Holds one hidden state per block of the model as it was when this was made."""

    def __init__(self, pieces: Pieces, batch: Batch) -> None:
        self._pieces, self._batch = pieces, batch
        self._calls: list[BlockCall] = []
        self.loss = math.nan
        if pieces.blocks:
            self._calls, losses = pieces.calls(batch)
            self.loss = float(losses.mean())
        names = branch_names(pieces.blocks, self._calls)
        self.branches = [[(f"{whole}.{name}", block.get_submodule(name)) for name in names] for whole, block in self._named()]
        self.passes = 1.0

    def _named(self) -> Sequence[tuple[str, nn.Module]]:
        return list(zip(self._pieces.block_names, self._pieces.blocks, strict=True))

    def with_factor(self, modules: Sequence[nn.Module], first_block: int, factor: float) -> float:
        """The mean loss with what ``modules`` give multiplied; ``first_block`` is the earliest that holds one of them."""
        count = len(self._pieces.blocks)
        self.passes += (count - first_block) / count
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(scaled(module, factor))
            return float(self._pieces.losses_from(first_block, self._calls[first_block], self._batch).mean())

    def gain(self, loss: float) -> float:
        """How much better ``loss`` is than the model's."""
        if not math.isfinite(loss):
            return -math.inf
        return self.loss - loss if math.isfinite(self.loss) else math.inf


def perturb(pieces: Pieces, batch: Batch, *, thorough: bool = False, stop: Callable[[], bool] = lambda: False) -> Perturbation:
    """Look for branches whose attenuation lowers the loss of ``batch``; ``thorough`` looks into every group of layers.

    A model that is no chain of blocks, or whose blocks add nothing to a residual stream, has no trials.
    """
    probe = BranchProbe(pieces, batch)
    if not any(probe.branches):
        return Perturbation(probe.loss, (), (), probe.passes)
    groups = _groups(len(pieces.blocks))
    scores: list[tuple[tuple[int, ...], float]] = []
    for group in groups:
        if thorough or stop():
            break
        modules = [module for number in group for _, module in probe.branches[number]]
        # Where the loss is no number, only cutting a branch off can make it one.
        scores.append((group, probe.gain(probe.with_factor(modules, group[0], _group_factor(probe.loss)))))
    scores.sort(key=lambda one: -one[1])
    chosen = groups if thorough else [group for group, _ in scores[:GROUPS_LOOKED_INTO]]
    trials = [
        _best_factor(probe, number, name, module)
        for group in chosen
        for number in group
        for name, module in probe.branches[number]
        if not stop()
    ]
    trials.sort(key=lambda one: (-one.gain, one.loss if math.isfinite(one.loss) else math.inf))
    return Perturbation(probe.loss, tuple(trials), tuple(scores), probe.passes)


def _group_factor(loss: float) -> float:
    return GROUP_FACTOR if math.isfinite(loss) else 0.0


def _groups(blocks: int) -> list[tuple[int, ...]]:
    """Consecutive blocks in at most ``GROUPS`` groups of nearly equal size."""
    count = min(GROUPS, blocks)
    bounds = [blocks * one // count for one in range(count + 1)]
    return [tuple(range(low, high)) for low, high in zip(bounds, bounds[1:], strict=False)]


def _best_factor(probe: BranchProbe, number: int, name: str, module: nn.Module) -> BranchTrial:
    tried = [(factor, probe.with_factor([module], number, factor)) for factor in FACTORS]
    factor, loss = min(tried, key=lambda one: one[1] if math.isfinite(one[1]) else math.inf)
    return BranchTrial(number, name, factor, loss, probe.gain(loss))


def branch_scores(found: Perturbation) -> list[BlockScore]:
    """The trials as scores: nats won; where the loss was no number, the negative of the loss that was reached."""
    scores = []
    for one in found.trials:
        score = one.gain if math.isfinite(one.gain) else -one.loss if one.gain > 0 else NEVER_FINITE
        scores.append(BlockScore(one.branch, "perturbation", score))
    return scores
