"""What may have stood in lost parts of tensors: values like those beside them, and the neutral ones in the middle."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.changes import Change
from bitward_agent.diagnosis.tensor_bits import FORMS
from bitward_formats.frozen import dataclass

_POOL_LEAST = 32
_POOL_MOST = 1 << 18
_TRIES = 16
_NEUTRAL_DEVIATIONS = 0.25
"""A mean of less than this many deviations is taken for zero: weights are centred, the gains of norms are not."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A lost range of a parameter's elements, half-open, in row-major order. ``bits`` of each may be wrong; -1 for all."""

    parameter: str
    low: int
    high: int
    bits: int = -1


class LostContents:
    """Plausible contents of all lost ranges of one parameter. Its pools are values that were not lost.

    The values are those of the same rows where enough of these are left, else of the whole tensor, else of its likes: tensors of the
    same name in other blocks, or of the same shape if it has one dimension. Parameters named in ``hurt`` lost something and are no likes.
    """

    def __init__(self, name: str, parameters: Mapping[str, nn.Parameter], lost: Sequence[Lost], hurt: Collection[str]) -> None:
        self.name, self.parameter, self.lost = name, parameters[name], tuple(lost)
        self._parameters = parameters
        self._likes = _likes(name, parameters, hurt)
        self._pools = [self._pool(one) for one in self.lost]

    @property
    def known(self) -> bool:
        """Whether there is anything to compare with."""
        return all(pool.numel() for pool in self._pools)

    def deviation(self, at: int) -> float:
        """The standard deviation of what may stand in lost range ``at``."""
        return float(self._pools[at].std()) if self._pools[at].numel() > 1 else 0.0

    def neutral(self) -> Change:
        """The parameter with every lost value in the middle of what is usual."""
        return self._with([torch.full((one.high - one.low,), self._middle(at)) for at, one in enumerate(self.lost)])

    def sampled(self, generator: torch.Generator) -> Change:
        """The parameter with values drawn from the pools."""
        return self._with([self._draw(at, one, generator) for at, one in enumerate(self.lost)])

    def against(self, slopes: Sequence[Tensor], generator: torch.Generator) -> Change:
        """Values of usual size, each on that side of the middle to which the loss rises; ``slopes``: gradients of the lost ranges."""
        made = []
        for at, (one, slope) in enumerate(zip(self.lost, slopes, strict=True)):
            middle = self._middle(at)
            made.append(middle + (self._draw(at, one, generator) - middle).abs() * slope.sign())
        return self._with(made)

    def _middle(self, at: int) -> float:
        pool = self._pools[at]
        if not pool.numel():
            return 0.0
        mean = float(pool.mean())
        return mean if abs(mean) > _NEUTRAL_DEVIATIONS * self.deviation(at) else 0.0

    def _draw(self, at: int, one: Lost, generator: torch.Generator) -> Tensor:
        pool = self._pools[at]
        if not pool.numel():
            return torch.zeros(one.high - one.low)
        return pool[torch.randint(pool.numel(), (one.high - one.low,), generator=generator)]

    def _with(self, contents: Sequence[Tensor]) -> Change:
        """A copy of the parameter with these float32 contents in the lost ranges, in the bits that are lost."""
        values = self.parameter.detach().clone().contiguous()
        for one, new in zip(self.lost, contents, strict=True):
            _put(values.view(-1)[one.low : one.high], new, one.bits)
        return Change(self.name, values)

    def _pool(self, one: Lost) -> Tensor:
        """Finite float32 values on the CPU that may be like those lost."""
        flat = self.parameter.detach().reshape(-1)
        keep = torch.ones(flat.numel(), dtype=torch.bool)
        for other in self.lost:
            keep[other.low : other.high] = False
        columns = self.parameter.shape[-1] if self.parameter.dim() > 1 else flat.numel()
        first, last = one.low // columns * columns, -(-one.high // columns) * columns
        near = _finite(flat[first:last], keep[first:last])
        if near.numel() >= max(_POOL_LEAST, columns // 4):
            return near
        whole = _finite(flat, keep)
        if whole.numel() >= _POOL_LEAST:
            return whole
        everything = torch.ones(one.high - one.low, dtype=torch.bool)
        parts = [_finite(self._parameters[name].detach().reshape(-1)[one.low : one.high], everything) for name in self._likes]
        return torch.cat(parts) if parts else torch.empty(0)

    def peers(self, generator: torch.Generator) -> list[Change] | None:
        """The lost ranges neutral, and for each another range of its length neutral as well; ``None`` where there is none.

        What that costs more than the lost ranges alone is what it costs to lose ranges of this kind, as far as these are alike.
        """
        neutral = self.neutral()
        flat = neutral.values.view(-1)
        changes = {self.name: neutral}
        for at, one in enumerate(self.lost):
            low = self._other_range(one, generator)
            middle = torch.full((one.high - one.low,), self._middle(at))
            if low is not None:
                _put(flat[low : low + one.high - one.low], middle, one.bits)
            elif self._likes:
                like = self._likes[int(torch.randint(len(self._likes), (), generator=generator))]
                other = changes.get(like) or Change(like, self._parameters[like].detach().clone().contiguous())
                _put(other.values.view(-1)[one.low : one.high], middle, one.bits)
                changes[like] = other
            else:
                return None
        return list(changes.values())

    def _other_range(self, one: Lost, generator: torch.Generator) -> int | None:
        """The first element of a range as long as ``one`` that touches nothing lost; ``None`` if some tries find none."""
        length, count = one.high - one.low, self.parameter.numel()
        for _ in range(_TRIES):
            low = int(torch.randint(max(1, count - length + 1), (), generator=generator))
            if low + length <= count and all(low + length <= other.low or other.high <= low for other in self.lost):
                return low
        return None


def _put(here: Tensor, new: Tensor, bits: int) -> None:
    """Set a contiguous part of a tensor to float32 values, in those bits of its elements that ``bits`` has."""
    part = new.to(here.dtype).to(here.device)
    form = FORMS.get(here.dtype)
    if bits != -1 and form is not None:
        part = ((here.view(form.integer) & ~bits) | (part.view(form.integer) & bits)).view(here.dtype)
    here.copy_(part)


def _likes(name: str, parameters: Mapping[str, nn.Parameter], hurt: Collection[str]) -> list[str]:
    """Whole parameters like this one: of its name in other blocks, else vectors of its length and kind (gains or biases)."""
    own = parameters[name]
    able = [other for other, values in parameters.items() if other not in hurt and values.shape == own.shape]
    likeness = re.sub(r"\d+", "#", name)
    same = [other for other in able if re.sub(r"\d+", "#", other) == likeness]
    if same or own.dim() != 1:
        return same
    return [other for other in able if other.rpartition(".")[2] == name.rpartition(".")[2]]


def _finite(values: Tensor, keep: Tensor) -> Tensor:
    kept = values.cpu()[keep].float()
    kept = kept[kept.isfinite()]
    return kept[:: max(1, kept.numel() // _POOL_MOST)]
