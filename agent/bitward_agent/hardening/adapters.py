"""What of a model is trained: low-rank additions to its linear layers (LoRA, Hu et al. 2021), or all of its weights.

Both give the current weights of the model as tensors that gradients flow through; nothing in the model is replaced. Trained numbers are
float32 whatever the model's own type is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.subject import ModelError

DEFAULT_RANK = 8
_GAIN = 2.0
"""How much an addition counts: LoRA's alpha over rank."""


class Trained(Protocol):
    """Weights in training."""

    def numbers(self) -> list[Tensor]:
        """What an optimiser changes."""

    def weights(self) -> dict[str, Tensor]:
        """The weights that differ from the model's, by parameter name: in its dtype and shape, with gradients."""


class LowRank:
    """``W + gain · B A`` for each linear layer whose weight is large enough; A is random, B starts at zero, so nothing changes at first."""

    def __init__(self, model: nn.Module, allowed: Mapping[str, nn.Parameter], rank: int, generator: torch.Generator) -> None:
        """``allowed``: parameters that may be trained, by name.

        Raises:
            ModelError: No linear layer is among them.
        """
        tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - tied
        self._base: dict[str, nn.Parameter] = {}
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, parameter in allowed.items():
            if id(parameter) in linear and min(parameter.shape) > rank:
                rows, columns = parameter.shape
                down = torch.randn(rank, columns, generator=generator) / columns**0.5
                self._base[name] = parameter
                self._pairs[name] = (down.requires_grad_(), torch.zeros(rows, rank).requires_grad_())
        if not self._pairs:
            raise ModelError("no linear layer that low-rank additions could be made to; ask for full fine-tuning")

    def numbers(self) -> list[Tensor]:
        """A and B of all layers."""
        return [one for pair in self._pairs.values() for one in pair]

    def weights(self) -> dict[str, Tensor]:
        """See ``Trained``."""
        return {
            name: (base.detach().float() + _GAIN * (self._pairs[name][1] @ self._pairs[name][0])).to(base.dtype)
            for name, base in self._base.items()
        }


class Full:
    """All parameters, as float32 copies."""

    def __init__(self, allowed: Mapping[str, nn.Parameter]) -> None:
        self._dtypes = {name: one.dtype for name, one in allowed.items()}
        self._copies = {name: one.detach().float().clone().requires_grad_() for name, one in allowed.items()}

    def numbers(self) -> list[Tensor]:
        """The copies."""
        return list(self._copies.values())

    def weights(self) -> dict[str, Tensor]:
        """See ``Trained``."""
        return {name: one.to(self._dtypes[name]) for name, one in self._copies.items()}
