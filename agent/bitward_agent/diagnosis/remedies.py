"""What can be done to weights when no single bit explains the fault and no good copy is at hand: clamp outliers, quieten a branch.

Both give new values to try; nothing here runs the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.changes import Change
from bitward_formats.frozen import dataclass

_MEDIAN_TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution by the median of its magnitudes."""
CLAMP_DEVIATIONS = (4.0, 8.0, 16.0)
"""Ends of the range that are tried: trained rows have few weights beyond 4 deviations, rows with outlier features some beyond 8."""
ATTENUATIONS = (0.0, 0.5)
_WILD_TIMES = 8.0
_WILD_SHARE = 0.05
"""A row whose deviation is 8 times the tensor's, or of which one weight in 20 is an outlier, is taken for noise from end to end."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Option:
    """One remedy of a way, with ``what`` it does to which tensors, and ``touched``, the number of elements that it changes."""

    what: str
    changes: tuple[Change, ...]
    touched: int


def row_deviations(matrix: Tensor) -> Tensor:
    """The standard deviation of each row as its median tells it, so that outliers count for nothing: float32 [rows, 1].

    A row of which most is zero, or not finite, gets the tensor's.
    """
    parts = [_medians(matrix[low : low + _ROWS_AT_ONCE]) for low in range(0, matrix.shape[0], _ROWS_AT_ONCE)]
    medians = torch.cat(parts)
    usable = medians[medians > 0]
    if not usable.numel():
        return torch.zeros_like(medians)
    return torch.where(medians > 0, medians, usable.median()) * _MEDIAN_TO_DEVIATION


def _medians(rows: Tensor) -> Tensor:
    return rows.float().abs().nan_to_num(0.0, 0.0, 0.0).median(dim=1, keepdim=True).values


def clamp_options(name: str, parameter: Tensor, rows: tuple[int, ...] = ()) -> list[Option]:
    """The tensor with values beyond its rows' range brought to the end of the range, or to zero; NaN always to zero.

    Args:
        rows: rows (first index) to which this is confined; all rows if empty.
    """
    if not parameter.is_floating_point() or parameter.numel() < 8:
        return []
    weight = parameter.detach()
    matrix = weight.reshape(-1, weight.shape[-1]) if weight.dim() > 1 else weight.reshape(1, -1)
    deviations = row_deviations(matrix)
    chosen = torch.ones(matrix.shape[0], 1, dtype=torch.bool, device=matrix.device)
    if rows:
        per_row = matrix.shape[0] // weight.shape[0] if weight.dim() > 1 else 1
        chosen[:] = False
        for row in rows:
            if weight.dim() > 1 and 0 <= row < weight.shape[0]:
                chosen[row * per_row : (row + 1) * per_row] = True
    where = f"rows {', '.join(map(str, rows[:4]))} of {name}" if rows else name
    options = _without_wild_rows(name, weight, matrix, deviations, chosen)
    seen: set[int] = set()
    for times in CLAMP_DEVIATIONS:
        limit = (deviations * times).to(matrix.dtype)
        outside = chosen & (limit > 0) & ~(matrix.abs() <= limit)
        touched = int(outside.sum())
        if not touched or touched in seen or touched * 4 > matrix.numel():
            continue
        seen.add(touched)
        ends = torch.where(matrix.isnan(), torch.zeros_like(matrix), torch.maximum(torch.minimum(matrix, limit), -limit))
        for what, instead in (("brought to the range's end", ends), ("set to zero", torch.zeros_like(matrix))):
            values = torch.where(outside, instead, matrix).view(weight.shape)
            what = f"{touched:,} values of {where} beyond {times:g} deviations of their row {what}"
            options.append(Option(what, (Change(name, values),), touched))
    return options


def _without_wild_rows(name: str, weight: Tensor, matrix: Tensor, deviations: Tensor, chosen: Tensor) -> list[Option]:
    """The tensor with rows set to zero that hold noise rather than outliers; nothing if there are none, or too many."""
    if matrix.shape[0] < 8:
        return []
    usual = deviations.median()
    outliers = ~(matrix.abs() <= (usual * _WILD_TIMES).to(matrix.dtype))
    wild = chosen & ((deviations > _WILD_TIMES * usual) | (outliers.float().mean(1, keepdim=True) > _WILD_SHARE))
    count = int(wild.sum())
    if not count or count * 4 > matrix.shape[0]:
        return []
    values = torch.where(wild, torch.zeros_like(matrix), matrix).view(weight.shape)
    return [Option(f"{count:,} rows of noise in {name} set to zero", (Change(name, values),), count * matrix.shape[1])]


def branches(block: nn.Module, hidden_size: int) -> list[tuple[str, nn.Module]]:
    """The modules of a block that write into the residual stream, by name: of each child the last linear one of that width."""
    found: list[tuple[str, nn.Module]] = []
    for child_name, child in block.named_children():
        last: tuple[str, nn.Module] | None = None
        for name, module in child.named_modules():
            weight = getattr(module, "weight", None)
            width = getattr(module, "out_features", getattr(module, "nf", None))
            if isinstance(weight, nn.Parameter) and weight.dim() == 2 and width == hidden_size:
                last = f"{child_name}.{name}" if name else child_name, module
        if last is not None:
            found.append(last)
    return found


def attenuation_options(block_name: str, block: nn.Module, hidden_size: int, names: dict[int, str]) -> list[Option]:
    """Each branch of the block made weaker: the weights and biases of its output projection times a factor. ``names``: by id."""
    options: list[Option] = []
    for branch, module in branches(block, hidden_size):
        own = [one for one in module.parameters(recurse=False) if id(one) in names and one.is_floating_point()]
        for factor in ATTENUATIONS:
            changes = tuple(Change(names[id(one)], _scaled(one.detach(), factor)) for one in own)
            what = f"{block_name}.{branch} " + ("switched off" if factor == 0 else f"at {factor:.0%} of its strength")
            options.append(Option(what, changes, sum(one.numel() for one in own)))
    return options


def _scaled(values: Tensor, factor: float) -> Tensor:
    """Zero times infinity is no number; what is not finite is zero here."""
    return values.nan_to_num(0.0, 0.0, 0.0) * factor
