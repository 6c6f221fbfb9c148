"""How usual a value is for its place in a tensor, learned from the tensor itself.

A weight is compared with the mean magnitudes of its row and of its column, each without the weight itself: |w| ∕ (row × column ∕ tensor).
How often each such ratio occurs in the tensor, counted in half octaves, is the prior of a value. Trained outliers are part of the counts:
a tensor with heavy tails finds a large weight less surprising than a narrow one.

The vectors of norms and biases are compared with the same place in the layers around them: what a channel is worth changes little from
layer to layer, and much from channel to channel.

Weights that once were quantised have few values in each group of neighbours. So it is also learned how often the exact value of a weight
recurs among the 32 of its group, and how often a value with a turned bit does: where the two differ a value that recurs is likelier.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitward_agent.diagnosis.tensor_bits import FORMS, flipped

_BINS_PER_OCTAVE = 2
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -140, 20
_BINS = (_HIGHEST_OCTAVE - _LOWEST_OCTAVE) * _BINS_PER_OCTAVE
_AT_ONCE = 1 << 20
"""Elements that are turned to float32 at once: a few arrays of 4 MB each."""
_SAMPLE = 1 << 20
"""Most elements of a tensor that are counted."""
_DECAY_UP = 0.5
"""Above what was seen each half octave is this much rarer than the one before."""
_DECAY_DOWN = 2.0**-0.5
"""Below it half as many per octave: near zero, values of whatever smooth distribution are spread evenly."""
_FLOOR_NATS = -100.0
_LAYERS_AROUND = 2
_NUMBER = re.compile(r"\d+")
_LEAST_SHAPE = 2.0**-12
"""Places that are next to nothing in the layers around: how far below the mean they lie says little."""
_GROUP = 32
"""Weights that share a scale in the usual quantised types (ggml's Q4 to Q8, MX)."""
_RECURRENCE_SAMPLE = 2048
_SEED = 20250101


class WeightPrior:
    """The prior of one tensor's values. ``weight``: float tensor of any shape, read once; the last dimension counts as the column.

    ``neighbours``: for a vector the same vectors of the layers around it.
    """

    def __init__(self, weight: Tensor, neighbours: Sequence[Tensor] = ()) -> None:
        matrix = weight.detach().reshape(-1, weight.shape[-1]) if weight.dim() > 1 else weight.detach().reshape(1, -1)
        self._matrix = matrix
        largest: tuple[float, ...] = ()
        self.row_sums = torch.empty(matrix.shape[0], dtype=torch.float32)
        self.column_sums = torch.zeros(matrix.shape[1], dtype=torch.float32)
        rows_at_once = max(1, _AT_ONCE // max(1, matrix.shape[1]))
        for low in range(0, matrix.shape[0], rows_at_once):
            magnitudes = _finite(matrix[low : low + rows_at_once].float().abs())
            tops = [*largest, *magnitudes.reshape(-1).topk(min(2, magnitudes.numel())).values.tolist()]
            largest = tuple(sorted(tops, reverse=True)[:2])
            self.row_sums[low : low + rows_at_once] = magnitudes.sum(1).cpu()
            self.column_sums += magnitudes.sum(0).cpu()
        self.total = float(self.row_sums.sum())
        self.largest = largest
        """The two largest magnitudes, the larger first."""
        self.shape_of_neighbours = _relative_median(neighbours) if matrix.shape[0] == 1 and neighbours else None
        """Float32 [columns]: how large each place is in the layers around, as multiples of their means; ``None`` without such layers."""
        self._log_share = self._count()
        self._recurs_nats, self._is_new_nats = self._learn_recurrence()

    def scale(self, row: Tensor, column: Tensor, without: Tensor) -> Tensor:
        """The usual magnitude at places, of which ``without`` (float magnitudes) are the values there now."""
        rows, columns = self._matrix.shape
        without = _finite(without)
        if rows == 1:
            mean = (self.total - without) / max(1, columns - 1)
            return (mean if self.shape_of_neighbours is None else mean * self.shape_of_neighbours[column]).clamp(min=1e-30)
        in_row = (self.row_sums[row] - without) / max(1, columns - 1)
        in_column = (self.column_sums[column] - without) / max(1, rows - 1)
        overall = (self.total - without) / max(1, rows * columns - 1)
        return (in_row.clamp(min=1e-30) * in_column.clamp(min=1e-30) / overall.clamp(min=1e-30)).clamp(min=1e-30)

    def scales(self, low: int, high: int) -> Tensor:
        """The usual magnitude at every place of rows ``low .. high``: float32 [rows, columns], from means with each weight in them."""
        rows, columns = self._matrix.shape
        if rows == 1:
            shape = torch.ones(columns) if self.shape_of_neighbours is None else self.shape_of_neighbours
            return (shape * self.total / max(1, columns)).clamp(min=1e-30).unsqueeze(0)
        overall = max(self.total / (rows * columns), 1e-30)
        return torch.outer(self.row_sums[low:high] / columns / overall, self.column_sums / rows).clamp(min=1e-30)

    def log_prior(self, magnitudes: Tensor, scale: Tensor, *, present: bool = False) -> Tensor:
        """Nats, for magnitudes at places whose usual magnitude is ``scale``; not comparable between tensors of other sizes.

        ``present``: the magnitudes stand in the tensor now, so that each is counted without itself.
        """
        octaves = torch.log2(magnitudes.clamp(min=1e-38) / scale)
        at = ((octaves - _LOWEST_OCTAVE) * _BINS_PER_OCTAVE).nan_to_num(0.0).clamp(0, _BINS - 1)
        shares = self._log_share_without_one if present else self._log_share
        prior = torch.where(magnitudes == 0, self._log_zero_share, shares[at.long()])
        return torch.where(magnitudes.isfinite(), prior, torch.full_like(prior, _FLOOR_NATS))

    def recurrence_nats(self, elements: Tensor, values: Tensor) -> Tensor:
        """Nats for ``values`` (of the tensor's dtype) at ``elements`` (row-major numbers), from whether they recur in their groups."""
        if self._recurs_nats == 0.0:
            return torch.zeros(elements.shape)
        return torch.where(self._recurs(elements, values), self._recurs_nats, self._is_new_nats)

    def _recurs(self, elements: Tensor, values: Tensor) -> Tensor:
        first = torch.div(elements, _GROUP, rounding_mode="floor") * _GROUP
        places = first.unsqueeze(1) + torch.arange(_GROUP)
        groups = self._matrix.reshape(-1)[places.to(self._matrix.device)].cpu()
        return ((groups == values.cpu().unsqueeze(1)) & (places != elements.unsqueeze(1))).any(1)

    def _learn_recurrence(self) -> tuple[float, float]:
        """What is learned of recurrence, in nats: (a value recurs, it does not)."""
        columns = self._matrix.shape[1]
        if columns % _GROUP or self._matrix.dtype not in FORMS or self._matrix.numel() < _RECURRENCE_SAMPLE:
            return 0.0, 0.0
        generator = torch.Generator().manual_seed(_SEED)
        elements = torch.randint(0, self._matrix.numel(), (_RECURRENCE_SAMPLE,), generator=generator)
        values = self._matrix.reshape(-1)[elements.to(self._matrix.device)].cpu()
        low_exponent = FORMS[self._matrix.dtype].mantissa_bits
        true_share = float(self._recurs(elements, values).float().mean())
        flipped_share = sum(float(self._recurs(elements, flipped(values, low_exponent + up)).float().mean()) for up in (0, 1, 2)) / 3
        n = _RECURRENCE_SAMPLE
        true_share, flipped_share = ((share * n + 1) / (n + 2) for share in (true_share, flipped_share))
        return math.log(true_share / flipped_share), math.log((1 - true_share) / (1 - flipped_share))

    def _count(self) -> Tensor:
        rows, columns = self._matrix.shape
        row_step = max(1, -(-rows * columns // _SAMPLE))
        picked = torch.arange(0, rows, row_step)
        part = _finite(self._matrix[picked].float().abs().cpu())
        scale = self.scale(picked.unsqueeze(1), torch.arange(columns).unsqueeze(0), part)
        kept = part > 0
        at = ((torch.log2(part[kept] / scale[kept]) - _LOWEST_OCTAVE) * _BINS_PER_OCTAVE).clamp(0, _BINS - 1).long()
        self._log_zero_share = math.log((float((~kept).sum()) + 0.5) / (kept.numel() + 1))
        counts = torch.bincount(at, minlength=_BINS).float()
        alone = torch.nonzero(counts == 1).view(-1).tolist()
        log_share = _smoothed(counts)
        self._log_share_without_one = log_share.clone()
        for bin_alone in alone:
            others = counts.clone()
            others[bin_alone] = 0
            self._log_share_without_one[bin_alone] = _smoothed(others)[bin_alone]
        return log_share


def _relative_median(vectors: Sequence[Tensor]) -> Tensor:
    """The median of the vectors' magnitudes, place by place, each as multiples of its own mean."""
    magnitudes = _finite(torch.stack([one.detach().reshape(-1).float().abs().cpu() for one in vectors]))
    relative = magnitudes / magnitudes.mean(1, keepdim=True).clamp(min=1e-30)
    return relative.quantile(0.5, dim=0).clamp(min=_LEAST_SHAPE)


def _finite(magnitudes: Tensor) -> Tensor:
    """What is no finite number counts as zero, so that one such element does not spoil what is known of the others."""
    return magnitudes.nan_to_num(0.0, 0.0, 0.0)


def _smoothed(counts: Tensor) -> Tensor:
    """Counts to log shares, where empty bins get less the farther they are from what was seen."""
    total = float(counts.sum()) + 1.0
    listed = counts.tolist()
    above, below = [0.0] * len(listed), [0.0] * len(listed)
    running = 0.0
    for at, one in enumerate(listed):
        running = max(running * _DECAY_UP, min(one, 1.0))
        above[at] = running
    running = 0.0
    for at in range(len(listed) - 1, -1, -1):
        running = max(running * _DECAY_DOWN, min(listed[at], 1.0))
        below[at] = running
    shares = [max(one, rise, fall) for one, rise, fall in zip(listed, above, below, strict=True)]
    return torch.tensor([max(_FLOOR_NATS, math.log(max(share, 1e-300) / total)) for share in shares])


def neighbours_of(name: str, parameters: Mapping[str, Tensor]) -> list[str]:
    """The same parameter in up to two layers before and two after: names that differ in their numbers alone, in the order of these."""
    pattern, shape = _NUMBER.sub("#", name), parameters[name].shape
    family = [one for one in parameters if _NUMBER.sub("#", one) == pattern and parameters[one].shape == shape]
    family.sort(key=lambda one: [int(number) for number in _NUMBER.findall(one)])
    at = family.index(name)
    return [*family[max(0, at - _LAYERS_AROUND) : at], *family[at + 1 : at + 1 + _LAYERS_AROUND]]
