"""Residual-path perturbation: attenuate what a branch adds to the residual stream, and watch the loss.

In a model that is right each branch is needed: with less of it the loss rises. If a branch carries a fault, less of it is less of the
fault, and the loss falls, or becomes a number. Hidden states before each block are held, so a trial runs only what follows. First each
branch is cut off on a quarter of the text, then those that look worst are attenuated to several degrees on all of it. For 30 blocks
this costs some eighteen forward passes of the text: three for each group of five layers.

(Cutting off whole groups of layers at once, to save more, was tried: the first layers cannot be missed, so their group is always the
worst; and in a model with norms attenuating a huge value a little changes nothing.)

Perturbing the residual path to find faults is BitFlipScope's idea (Karamat, Saif, Chamon, arXiv:2512.22174).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from bitward_agent.diagnosis.branches import branch_names, scaled
from bitward_agent.diagnosis.facts import BlockScore
from bitward_agent.diagnosis.objectives import Batch, LossFunction, TokenBatch, passage_loss
from bitward_agent.diagnosis.pieces import BlockCall, Pieces

BRANCHES_LOOKED_INTO = 6
_FIRST_LOOK_SHARE = 4
"""One row in so many is used for the first look."""
FACTORS = (0.0, 0.5, 0.8)
"""A strong fault is gone with its branch; a weak one shows where most of the branch is left."""
LEAST_GAIN_SHARE = 0.01
"""In SmolLM2 as it is, attenuating one branch of sixty wins 0.7 % of the loss."""
NEVER_FINITE = -1e30
"""The score of a branch without which the loss is no number still."""


@dataclass(frozen=True, slots=True)
class BranchTrial:
    """What attenuating a branch did. ``branch`` is the module's name; ``factor`` the best of those tried, ``loss`` what it led to, in nats
    per item (not finite if none was); ``gain`` is loss before less loss after, infinite where only the loss after is finite."""

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
    passes: float

    @property
    def best(self) -> BranchTrial | None:
        """The branch whose attenuation helps most; None where none helps."""
        return self.trials[0] if self.trials and self.trials[0].gain > 0 else None

    @property
    def stands_out(self) -> bool:
        """Whether the best branch wins more than a branch of a right model may."""
        best = self.best
        return best is not None and (not math.isfinite(self.loss) or best.gain >= LEAST_GAIN_SHARE * self.loss)


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
    """Look for branches whose attenuation lowers the loss of ``batch``; ``thorough`` tries every branch to every degree.

    A model that is no chain of blocks, or whose blocks add nothing to a residual stream, has no trials.
    """
    probe = BranchProbe(pieces, batch)
    branches = [(number, name, module) for number, listed in enumerate(probe.branches) for name, module in listed]
    if not branches:
        return Perturbation(probe.loss, (), probe.passes)
    passes = 0.0
    if not thorough:
        small, share = _part_of(batch, pieces.loss)
        look = probe if share == 1 else BranchProbe(pieces, small)
        first = [(look.with_factor([module], number, 0.0), number, name, module) for number, name, module in branches if not stop()]
        passes = 0.0 if look is probe else look.passes * share
        first.sort(key=lambda one: one[0] if math.isfinite(one[0]) else math.inf)
        branches = [one[1:] for one in first[:BRANCHES_LOOKED_INTO]]
    trials = [_best_factor(probe, number, name, module) for number, name, module in branches if not stop()]
    trials.sort(key=lambda one: (-one.gain, one.loss if math.isfinite(one.loss) else math.inf))
    return Perturbation(probe.loss, tuple(trials), probe.passes + passes)


def _part_of(batch: Batch, loss: LossFunction) -> tuple[Batch, float]:
    """Some rows of a batch, and which share they are; the whole where rows are weighed against each other."""
    if not isinstance(batch, TokenBatch) or loss is passage_loss or batch.rows < _FIRST_LOOK_SHARE:
        return batch, 1.0
    rows = batch.rows // _FIRST_LOOK_SHARE
    return batch.part(rows, batch.labels.shape[1]), rows / batch.rows


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
