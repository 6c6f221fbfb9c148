"""How sure a model is of its predictions, without labels: the mutual information of predictions and small perturbations.

The model predicts the calibration text several times, each time with a little Gaussian noise on the hidden state that enters each block.
The entropy of the mean prediction less the mean entropy of the predictions (BALD, Houlsby et al. 2011) is what the perturbations decide:
small in a model that has learned what it says, large in one whose parts do not fit together. UQ-Merge (Qu et al., Findings of ACL 2025)
ranks the models to be merged by such a number. The same seed gives each candidate the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitward_agent.diagnosis.objectives import Batch, causal_loss, masked_loss, passage_loss
from bitward_agent.diagnosis.subject import Subject
from bitward_formats.frozen import dataclass

PERTURBATIONS = 6
NOISE_SHARE = 0.1
"""Standard deviation of the noise of all blocks together by that of each hidden state: small enough that a sound model hardly minds."""
_MEDIAN_TO_DEVIATION = 1.4826
"""The deviation is told by the median: language models have a few channels a thousand times larger than the others."""
_POSITIONS_LIMIT = 256
"""Positions that are predicted: with 150,000 tokens their distributions take 150 MB."""
_TEMPERATURE = 0.05

Predictor = Callable[[nn.Module, Batch], Tensor]
"""``predict(model, batch)``: logits, float [positions, classes]."""


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """In nats per position: ``mutual_information`` is the difference of the other two; all infinite if predictions are no numbers."""

    mutual_information: float
    predictive_entropy: float
    expected_entropy: float


def predictor_of(subject: Subject) -> Predictor | None:
    """What the model predicts, by the loss it is watched with; ``None`` for a loss that somebody else defined."""
    known: tuple[tuple[object, Predictor], ...] = (
        (causal_loss, _causal_logits),
        (masked_loss, _masked_logits),
        (passage_loss, _passage_logits),
    )
    return next((predict for loss, predict in known if loss is subject.loss), None)


def uncertainty(
    model: nn.Module, blocks: list[nn.Module], predict: Predictor, batch: Batch, *, perturbations: int = PERTURBATIONS, seed: int = 0
) -> Uncertainty:
    """Run the model ``perturbations`` times with noise on what its blocks are fed with. Without blocks there is no noise, and it is 0."""
    total: Tensor | None = None
    entropies = 0.0
    for number in range(perturbations):
        with torch.no_grad(), _noise(blocks, seed * 1_000_003 + number):
            shares = functional.log_softmax(predict(model, batch)[:_POSITIONS_LIMIT].float(), dim=-1).exp()
        entropies += _entropy(shares)
        total = shares if total is None else total.add_(shares)
    assert total is not None
    predictive = _entropy(total / perturbations)
    expected = entropies / perturbations
    if not (math.isfinite(predictive) and math.isfinite(expected)):
        return Uncertainty(math.inf, math.inf, math.inf)
    return Uncertainty(max(0.0, predictive - expected), predictive, expected)


def _entropy(shares: Tensor) -> float:
    """Mean entropy of distributions, nats; NaN if one is none."""
    return float(torch.special.entr(shares).sum(-1).mean())


@contextmanager
def _noise(blocks: list[nn.Module], seed: int) -> Iterator[None]:
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    share = _MEDIAN_TO_DEVIATION * NOISE_SHARE / math.sqrt(max(1, len(blocks)))

    def disturb(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = arguments[0]
        scale = hidden.float().abs().median(dim=-1, keepdim=True).values * share
        noise = torch.randn(hidden.shape, generator=generator).to(hidden.device) * scale
        return (hidden + noise.to(hidden.dtype), *arguments[1:]), keywords

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(disturb, with_kwargs=True).remove)
        yield


def _causal_logits(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(**batch.inputs, use_cache=False).logits
    return logits[:, :-1].reshape(-1, logits.shape[-1])


def _masked_logits(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(**batch.inputs).logits
    return logits[batch.labels >= 0]


def _passage_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Which passage follows which, as the passage loss sees it."""
    hidden = model(**batch.inputs).last_hidden_state
    weight = batch.inputs["attention_mask"].unsqueeze(-1)
    pooled = functional.normalize((hidden * weight).sum(1).float() / weight.sum(1).clamp(min=1), dim=-1)
    return pooled[0::2] @ pooled[1::2].T / _TEMPERATURE
