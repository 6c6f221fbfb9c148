"""Other values for whole tensors of the model in memory, on trial or for good, and what they do to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.objectives import Batch
from bitward_agent.diagnosis.pieces import BlockCall, Pieces
from bitward_agent.diagnosis.subject import ModelError, Subject
from bitward_agent.diagnosis.writing import Patch
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """New values of one parameter, by torch's name for it; of the parameter's shape, on the CPU or its device."""

    parameter: str
    values: Tensor


@contextmanager
def replaced(parameters: Mapping[str, nn.Parameter], changes: Sequence[Change]) -> Iterator[None]:
    """Parameters with other values, which get their own back, bit by bit, whatever happens. Holds a copy of what is changed."""
    before = {one.parameter: parameters[one.parameter].detach().clone() for one in changes}
    try:
        apply_changes(parameters, changes)
        yield
    finally:
        apply_changes(parameters, [Change(name, values) for name, values in before.items()])


def apply_changes(parameters: Mapping[str, nn.Parameter], changes: Sequence[Change]) -> None:
    """Set parameters for good, in memory.

    Raises:
        ValueError: The shapes differ: torch would stretch the values instead.
    """
    for one in changes:
        parameter = parameters[one.parameter]
        if parameter.shape != one.values.shape:
            raise ValueError(f"{one.parameter}: values of shape {tuple(one.values.shape)} for one of {tuple(parameter.shape)}")
        with torch.no_grad():
            parameter.data.copy_(one.values)


class ChangeTrials:
    """Losses of some batches with tensors changed. Holds the hidden states before each block, so that only what follows a change runs.

    The hidden states are those of the model as it was when this was made: make a new one after a change for good.
    """

    def __init__(self, pieces: Pieces, parameters: Mapping[str, nn.Parameter], batches: Sequence[Batch]) -> None:
        self.pieces, self.parameters, self.batches = pieces, parameters, tuple(batches)
        self._calls: list[list[BlockCall]] = []
        losses: list[Tensor] = []
        for batch in self.batches:
            if pieces.blocks:
                calls, found = pieces.calls(batch)
                self._calls.append(calls)
            else:
                found = pieces.losses(batch)
            losses.append(found)
        self.before = torch.cat(losses)

    def with_changes(self, changes: Sequence[Change]) -> Tensor:
        """The loss of each item with some tensors changed, float32 on the CPU."""
        with replaced(self.parameters, changes):
            return self.now([one.parameter for one in changes])

    def now(self, names: Sequence[str]) -> Tensor:
        """The loss of each item as the model is, where nothing but the parameters ``names`` differs from what it was."""
        first = self._first_block(names)
        if first is None:
            return torch.cat([self.pieces.losses(batch) for batch in self.batches])
        return torch.cat(
            [self.pieces.losses_from(first, calls[first], batch) for calls, batch in zip(self._calls, self.batches, strict=True)]
        )

    def _first_block(self, names: Sequence[str]) -> int | None:
        """The first block that must run, ``None`` if all must, and what comes before them."""
        if not self.pieces.blocks:
            return None
        first = len(self.pieces.blocks) - 1
        for name in names:
            number = self.pieces.block_of(self.parameters[name])
            if number is not None:
                first = min(first, number)
            elif name not in self.pieces.after_blocks:
                return None
        return first


def patches_of(subject: Subject, names: Iterable[str]) -> tuple[Patch, ...]:
    """The bytes of parameters as they are in memory now, for their places in the files.

    Raises:
        ModelError: A parameter is no plain copy of a tensor of the files, so that it cannot be written.
    """
    parameters = dict(subject.model.named_parameters())
    patches = []
    for name in dict.fromkeys(names):
        place = subject.places.get(name)
        if place is None:
            raise ModelError(f"{name}: is no plain copy of a tensor in the model's files and cannot be written to them")
        data = parameters[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        patches += [Patch(one.path, one.tensor, one.offset, data) for one in (place, *subject.twins.get(name, ()))]
    return tuple(patches)


def mean_loss(losses: Tensor) -> float | None:
    """The mean over items, ``None`` where it is no finite number."""
    mean = float(losses.double().mean())
    return mean if math.isfinite(mean) else None


def gain_z(before: Tensor, after: Tensor) -> float | None:
    """How many standard errors of the mean paired difference the loss fell by; ``None`` where a loss is no finite number."""
    gained = (before - after).double()
    if not bool(gained.isfinite().all()) or gained.numel() < 2:
        return None
    error = float(gained.std()) / math.sqrt(gained.numel())
    return float(gained.mean()) / max(error, 1e-9)
