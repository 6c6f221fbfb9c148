"""What a model is asked to be good at, without labels: the losses that a diagnosis watches.

- causal language models: the next token of the calibration text;
- masked language models: tokens hidden at fixed places;
- encoders: which passage follows which, by the cosine of mean-pooled hidden states (InfoNCE, van den Oord et al. 2018, with the
  temperature 0.05 of SimCSE, Gao et al. 2021).

Each gives one loss per item (token or passage), in nats, as float32, so that two models can be compared item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Batch = Any
"""What a loss takes: for models of tokens ``TokenBatch``, for others whatever their factory gave."""
LossFunction = Callable[[nn.Module, Batch], Tensor]
"""``loss(model, batch)``: a 1-D float tensor of one loss per item."""

_NO_LABEL = -100
_MASK_EVERY = 7
_TEMPERATURE = 0.05
_ROWS_AT_ONCE = 64
"""Rows of logits that are turned to float32 at once: 64 × 50,000 entries are 13 MB."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """``inputs``: what the model is called with (``input_ids`` int64 [rows, tokens] and so on); ``labels`` likewise, -100 where none."""

    inputs: Mapping[str, Tensor]
    labels: Tensor

    @property
    def rows(self) -> int:
        return int(self.labels.shape[0])

    def part(self, rows: int, tokens: int) -> TokenBatch:
        """The first tokens of the first rows of it."""
        return TokenBatch({name: one[:rows, :tokens] for name, one in self.inputs.items()}, self.labels[:rows, :tokens])


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device: within tuples, lists, mappings and dataclasses, and of whatever moves itself (``to``).

    What holds nothing that lies elsewhere comes back as the same object, as a loss may know its batches by identity.
    """
    if isinstance(batch, Tensor) or (not isinstance(batch, type) and callable(getattr(batch, "to", None))):
        return batch.to(device)
    if isinstance(batch, Mapping):
        moved = {name: on_device(one, device) for name, one in batch.items()}
        return batch if all(moved[name] is one for name, one in batch.items()) else moved
    if isinstance(batch, (tuple, list)):
        items = [on_device(one, device) for one in batch]
        if all(new is old for new, old in zip(items, batch, strict=True)):
            return batch
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if is_dataclass(batch) and not isinstance(batch, type):
        old = {one.name: getattr(batch, one.name) for one in fields(batch) if one.init}
        new = {name: on_device(one, device) for name, one in old.items()}
        return batch if all(new[name] is one for name, one in old.items()) else replace(batch, **new)
    return batch


def causal_loss(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Negative log-likelihood of each next token: float32 [rows × (tokens − 1)]."""
    logits = model(**batch.inputs, use_cache=False).logits
    # The last position of each row has no next token; it is left out of the losses, since leaving it out of the logits would copy them.
    nothing = torch.full_like(batch.labels[:, :1], _NO_LABEL)
    losses = _cross_entropies(logits.reshape(-1, logits.shape[-1]), torch.cat((batch.labels[:, 1:], nothing), 1).reshape(-1))
    return losses.view(batch.labels.shape)[:, :-1].reshape(-1)


def masked_loss(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Negative log-likelihood of each hidden token."""
    logits = model(**batch.inputs).logits
    hidden = batch.labels >= 0
    return _cross_entropies(logits[hidden], batch.labels[hidden])


def passage_loss(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Rows 2i and 2i + 1 are neighbours in the text: the loss of telling each row's neighbour among all rows of the other half."""
    hidden = model(**batch.inputs).last_hidden_state
    weight = batch.inputs["attention_mask"].unsqueeze(-1)
    pooled = functional.normalize((hidden * weight).sum(1).float() / weight.sum(1).clamp(min=1), dim=-1)
    similarity = pooled[0::2] @ pooled[1::2].T / _TEMPERATURE
    target = torch.arange(similarity.shape[0], device=similarity.device)
    forth = functional.cross_entropy(similarity, target, reduction="none")
    back = functional.cross_entropy(similarity.T, target, reduction="none")
    return (forth + back) / 2


def hide_tokens(rows: Tensor, mask_token: int) -> tuple[Tensor, Tensor]:
    """Every seventh token replaced by the mask token: (inputs, labels with -100 elsewhere)."""
    places = torch.arange(rows.shape[1], device=rows.device) % _MASK_EVERY == _MASK_EVERY // 2
    labels = torch.where(places, rows, torch.full_like(rows, _NO_LABEL))
    return torch.where(places, torch.full_like(rows, mask_token), rows), labels


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """``logits``: float [items, vocabulary]; ``labels``: int64 [items]. Returns float32 [items]."""
    losses: Tensor = _CrossEntropies.apply(logits, labels)
    return losses


class _CrossEntropies(torch.autograd.Function):  # type: ignore[misc]
    """Cross entropies in float32 whose gradient is made a few rows at a time: torch's own hold the logits three times over, in float32.

    The gradient by the logits is (softmax − one at the label) × the gradient by the loss. It can be taken once, not twice.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        parts = [
            functional.cross_entropy(logits[low : low + _ROWS_AT_ONCE].float(), labels[low : low + _ROWS_AT_ONCE], reduction="none")
            for low in range(0, logits.shape[0], _ROWS_AT_ONCE)
        ]
        return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        by_loss = gradients[0].float() * (labels != _NO_LABEL)
        by_logits = torch.empty_like(logits)
        for low in range(0, logits.shape[0], _ROWS_AT_ONCE):
            part = torch.softmax(logits[low : low + _ROWS_AT_ONCE].float(), -1)
            part[torch.arange(part.shape[0], device=part.device), labels[low : low + _ROWS_AT_ONCE].clamp(min=0)] -= 1
            by_logits[low : low + _ROWS_AT_ONCE] = part.mul_(by_loss[low : low + _ROWS_AT_ONCE, None])
        return by_logits, None
