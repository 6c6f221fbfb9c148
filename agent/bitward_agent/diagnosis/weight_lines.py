"""Which weight of a line of a matrix is wrong, from three sums over the line that are known to be right.

A *line* is what makes one output channel: a row of a linear layer's weight, a column of an embedding's. For each of the line's inputs j the
sums are known too: u_j, three numbers. If the right sums are s and the line's weights are w, then s = Σ w_j u_j; if one weight is wrong
by d then s − Σ w_j u_j = d·u_j, three equations for j and d, where d can only be what turning a bit makes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitward_agent.diagnosis.tensor_bits import FORMS, flipped

_MONSTER = 1e6
"""A weight this many times the line's median would drown the others in rounding: it is left out, and what it should be is solved for."""
_MONSTERS_LIMIT = 2
_BEAM = 48
"""First turns that are tried with a second one."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One bit of the line's weight number ``place`` turned; ``bit`` is None where the weight has more than one wrong bit and ``value`` is
    what it should be."""

    place: int
    bit: int | None
    value: float


@dataclass(frozen=True, slots=True)
class LineSolution:
    """What puts the line right. ``misfit`` is what is left, in tolerances (1 or less); ``rivals`` counts other turns that would fit
    as well."""

    turns: tuple[Turn, ...]
    misfit: float
    rivals: int


def solve_line(weights: Tensor, sums: Tensor, right: Tensor, tolerance: Tensor) -> LineSolution | None:
    """Find one or two wrong bits, or one wrong weight, of a line.

    ``weights``: [inputs], any dtype with known bits; ``sums``: float64 [inputs, 3]; ``right``: float64 [3], what the line should give less
    any bias; ``tolerance``: float64 [3].
    """
    values = weights.double()
    monsters = _monsters(values)
    if len(monsters) > _MONSTERS_LIMIT:
        return None
    calm = values.clone()
    calm[monsters] = 0
    missing = right - calm @ sums
    if monsters:
        return _solve_monsters(weights, sums, missing, tolerance, monsters)
    changes = _changes(weights)
    one = _one_turn(weights, changes, sums, missing, tolerance)
    return one or _one_value(weights, sums, missing, tolerance) or _two_turns(weights, changes, sums, missing, tolerance)


def _monsters(values: Tensor) -> list[int]:
    finite = values[values.isfinite()].abs()
    usual = float(finite[finite > 0].median()) if bool((finite > 0).any()) else 1.0
    return [int(one) for one in torch.nonzero(~(values.abs() <= _MONSTER * usual)).view(-1)]


def _changes(weights: Tensor) -> Tensor:
    """What turning each bit adds: float64 [inputs, bits]; NaN where the result would not be finite."""
    turned = torch.stack([flipped(weights, bit).double() for bit in range(FORMS[weights.dtype].bits)], dim=1)
    return torch.where(turned.isfinite(), turned - weights.double().unsqueeze(1), math.nan)


def _misfits(changes: Tensor, sums: Tensor, missing: Tensor, tolerance: Tensor) -> Tensor:
    """[inputs, bits]: the largest of the three differences that is left, in tolerances."""
    left = (missing - changes.unsqueeze(2) * sums.unsqueeze(1)).abs() / tolerance
    return left.amax(2).nan_to_num(math.inf, math.inf, math.inf)


def _one_turn(weights: Tensor, changes: Tensor, sums: Tensor, missing: Tensor, tolerance: Tensor) -> LineSolution | None:
    misfits = _misfits(changes, sums, missing, tolerance)
    best = int(misfits.argmin())
    misfit = float(misfits.view(-1)[best])
    if misfit > 1:
        return None
    place, bit = divmod(best, changes.shape[1])
    return LineSolution((_turn(weights, place, bit),), misfit, int((misfits <= 1).sum()) - 1)


def _two_turns(weights: Tensor, changes: Tensor, sums: Tensor, missing: Tensor, tolerance: Tensor) -> LineSolution | None:
    misfits = _misfits(changes, sums, missing, tolerance)
    firsts = misfits.view(-1).topk(min(_BEAM, misfits.numel()), largest=False).indices.tolist()
    best: LineSolution | None = None
    for first in firsts:
        place, bit = divmod(first, changes.shape[1])
        if not math.isfinite(float(changes[place, bit])):
            continue
        rest = _one_turn(weights, changes, sums, missing - changes[place, bit] * sums[place], tolerance)
        if rest is not None and (best is None or rest.misfit < best.misfit):
            best = LineSolution((_turn(weights, place, bit), *rest.turns), rest.misfit, rest.rivals)
    return best


def _one_value(weights: Tensor, sums: Tensor, missing: Tensor, tolerance: Tensor) -> LineSolution | None:
    """One weight that is wrong in several bits: its right value by least squares, rounded to what its element type can hold."""
    squares = sums.square().sum(1)
    change = torch.where(squares > 0, sums @ missing / squares.clamp(min=1e-300), 0.0)
    wanted = (weights.double() + change).to(weights.dtype)
    left = (missing - (wanted.double() - weights.double()).unsqueeze(1) * sums).abs() / tolerance
    misfits = left.amax(1).nan_to_num(math.inf, math.inf, math.inf)
    place = int(misfits.argmin())
    if float(misfits[place]) > 1:
        return None
    return LineSolution((Turn(place, None, float(wanted[place])),), float(misfits[place]), int((misfits <= 1).sum()) - 1)


def _solve_monsters(weights: Tensor, sums: Tensor, missing: Tensor, tolerance: Tensor, places: Sequence[int]) -> LineSolution | None:
    """``missing`` is what the right values of the weights at ``places`` give together: try what one turn each makes of them."""
    bits = FORMS[weights.dtype].bits
    options = [[(bit, float(flipped(weights[place : place + 1], bit).double())) for bit in range(bits)] for place in places]
    combined: list[tuple[tuple[tuple[int, float], ...], Tensor]] = [((), missing)]
    for place, listed in zip(places, options, strict=True):
        combined = [
            ((*chosen, (bit, value)), left - value * sums[place])
            for chosen, left in combined
            for bit, value in listed
            if math.isfinite(value)
        ]
    if not combined:
        return None
    misfits = (torch.stack([left for _, left in combined]).abs() / tolerance).amax(1)
    best = int(misfits.argmin())
    if float(misfits[best]) > 1:
        return None
    turns = tuple(Turn(place, bit, value) for place, (bit, value) in zip(places, combined[best][0], strict=True))
    return LineSolution(turns, float(misfits[best]), int((misfits <= 1).sum()) - 1)


def _turn(weights: Tensor, place: int, bit: int) -> Turn:
    return Turn(place, bit, float(flipped(weights[place : place + 1], bit)))
