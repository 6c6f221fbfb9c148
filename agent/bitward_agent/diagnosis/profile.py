"""The self-referential search: gradients propose un-flips, trials decide, text that took no part in choosing confirms.

One round: a backward pass over the choosing batch ranks candidates (``candidates``), each is tried for real on that batch, the best weights
with every bit that matters on more text, where what the text says (nats won over all its items) and what the tensor says (how usual the
value would be) are added. What then wins on the held-out text by enough, in size and in standard errors, is turned for good, and another
round looks for the next fault. In a model without a fault the first round confirms nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.candidates import Candidate, Ranking
from bitward_agent.diagnosis.pieces import Pieces
from bitward_agent.diagnosis.subject import Subject
from bitward_agent.diagnosis.tensor_bits import FORMS, element_view, flip_in_place, flipped
from bitward_agent.diagnosis.trials import Trials
from bitward_agent.diagnosis.weight_prior import WeightPrior

WEIGHTS_TRIED = 20
"""Weights of each ranking that are tried for real."""
_WEIGHTS_REFINED = 5
_REFINING_BATCHES = 2
_CHOOSING_ITEMS = 256
_TEXT_WEIGHT = 0.5
_LEAST_PRIOR_NATS = -12.0
LEAST_GAIN_SHARE = 0.003
"""An un-flip must win this share of the held-out loss: in clean models the best of all bits wins less (docs/diagnosis.md)."""
LEAST_GAIN_Z = 2.5
"""…and so many standard errors of the mean difference by item."""


@dataclass(frozen=True, slots=True)
class Found:
    """An un-flip that the held-out text confirmed. Losses are means over the held-out items, in nats."""

    parameter: str
    element: int
    bit: int
    before: float
    after: float
    loss_before: float
    loss_after: float
    gain_z: float
    prior_nats: float
    rank: int


class Profile:
    """The search on one model. ``names`` of parameters are torch's; the model's weights are changed by what is confirmed."""

    def __init__(self, subject: Subject, *, stop: Callable[[], bool] = lambda: False) -> None:
        self.subject, self._stop = subject, stop
        self.pieces = Pieces(subject.model, subject.loss, subject.choosing)
        self.parameters: Mapping[str, nn.Parameter] = dict(subject.model.named_parameters())
        self._names = {id(one): name for name, one in self.parameters.items()}
        self._priors: dict[str, WeightPrior] = {}

    def prior_of(self, name: str) -> WeightPrior:
        """The prior of a parameter's values, made when first asked for and again after a change."""
        if name not in self._priors:
            self._priors[name] = WeightPrior(self.parameters[name])
        return self._priors[name]

    def run(self, limit: int = 16) -> list[Found]:
        """Rounds until nothing more is confirmed, ``limit`` un-flips are made or ``stop`` says so."""
        found: list[Found] = []
        while len(found) < limit and not self._stop():
            new = self.round()
            if new is None:
                break
            found.append(new)
        return found

    def round(self) -> Found | None:
        """Look for one fault; if it is confirmed its bit is turned in the model."""
        ranking = Ranking(self._names, self.prior_of)
        self.pieces.backward(self.subject.choosing, ranking.see)
        weights = self._promising(ranking.best(WEIGHTS_TRIED))
        if not weights or self._stop():
            return None
        batches = (self.subject.choosing, *self.subject.holdout[:_REFINING_BATCHES])
        trials = [Trials(self.pieces, self.parameters, batch) for batch in batches]
        self.options = [one for weight in weights for one in self._bits_of(weight, trials)]
        if not self.options:
            return None
        best = max(self.options, key=_evidence)
        return self._confirm(best, list(weights).index(best.weight))

    def _promising(self, candidates: list[Candidate]) -> list[tuple[str, int]]:
        """The weights whose candidates win most when they are tried, on part of the text at first, best first."""
        quick = Trials(self.pieces, self.parameters, self.subject.quick)
        share = max(1, quick.losses.numel())
        tried: dict[tuple[str, int], float] = {}
        for one in candidates:
            if self._stop():
                break
            gain = _gain(quick, one.parameter, one.element, one.bit) / share
            if gain > 0:
                score = gain * _CHOOSING_ITEMS + one.prior_nats
                tried[one.weight] = max(score, tried.get(one.weight, -math.inf))
        return sorted(tried, key=lambda weight: -tried[weight])[:_WEIGHTS_REFINED]

    def _bits_of(self, weight: tuple[str, int], trials: list[Trials]) -> list[Candidate]:
        """Every bit of a weight that matters, tried on more text; ``gain`` is the sum over all items, in nats."""
        name, element = weight
        parameter = self.parameters[name]
        prior = self.prior_of(name)
        value = element_view(parameter, element).cpu()
        columns = prior.column_sums.numel()
        row, column = torch.tensor([element // columns]), torch.tensor([element % columns])
        scale = prior.scale(row, column, value.float().abs())
        now = float(prior.log_prior(value.float().abs(), scale))
        listed = []
        for bit in FORMS[parameter.dtype].weighty:
            changed = flipped(value, bit).float()
            likelier = float(prior.log_prior(changed.abs(), scale)) - now
            if not bool(changed.isfinite()) or likelier < _LEAST_PRIOR_NATS:
                continue
            gain = sum(_gain(one, name, element, bit) for one in trials)
            listed.append(Candidate(name, element, bit, "refined", gain, likelier))
        return listed

    def _confirm(self, one: Candidate, rank: int) -> Found | None:
        parameter = self.parameters[one.parameter]
        before_items = self._held_out()
        before = float(element_view(parameter, one.element))
        flip_in_place(parameter, one.element, one.bit)
        after_items = self._held_out()
        gained = before_items - after_items
        loss_before, loss_after = float(before_items.mean()), float(after_items.mean())
        deviation = float(gained.std()) / math.sqrt(gained.numel())
        z = float(gained.mean()) / max(deviation, 1e-9)
        self.last = (one, loss_before, loss_after, z)
        if loss_before - loss_after < LEAST_GAIN_SHARE * loss_after or z < LEAST_GAIN_Z:
            flip_in_place(parameter, one.element, one.bit)
            return None
        self._priors.pop(one.parameter, None)
        after = float(element_view(parameter, one.element))
        return Found(one.parameter, one.element, one.bit, before, after, loss_before, loss_after, z, one.prior_nats, rank)

    def _held_out(self) -> Tensor:
        return torch.cat([self.pieces.losses(batch) for batch in self.subject.holdout])


def _evidence(one: Candidate) -> float:
    """Nats for a bit: what the text says, at a discount (its optimum is not where training left the weight), and what the tensor says."""
    return _TEXT_WEIGHT * one.gain + one.prior_nats


def _gain(trials: Trials, name: str, element: int, bit: int) -> float:
    """Nats won over all items; nothing can be said for a loss that is no number any more."""
    gain = float((trials.losses - trials.with_bits(name, element, [bit])).sum())
    return gain if math.isfinite(gain) else -math.inf
