"""The bits whose flip should raise the loss most: gradient × change, from one backward pass, as an attacker would rank them.

Only flips that keep a weight within its tensor's own range are ranked. Beyond it the first order means nothing (a weight of 2^120 breaks
any model), and such faults are found at a glance.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.pieces import Pieces
from bitward_agent.diagnosis.subject import Subject
from bitward_agent.diagnosis.tensor_bits import FORMS, flipped
from bitward_agent.hardening.faults import Component, Target
from bitward_agent.io import OpenFile

_AT_ONCE = 1 << 22
"""Elements that are looked at together."""
TARGETS_LIMIT = 100_000


def worst_flips(subject: Subject, count: int, component: Component) -> list[Target]:
    """The ``count`` flips with the largest first-order increase of the loss, largest first; of each weight the worst bit alone.

    Fewer come back where fewer would raise the loss.
    """
    count = min(count, TARGETS_LIMIT)
    allowed = [_allowed(path, component) for path in subject.files]
    files = {path: number for number, path in enumerate(subject.files)}
    names = {id(one): name for name, one in subject.model.named_parameters()}
    best: list[tuple[float, int, Target]] = []
    order = itertools.count()

    def see(parameter: nn.Parameter, gradient: Tensor) -> None:
        place = subject.places.get(names[id(parameter)])
        if place is None or parameter.dtype not in FORMS or place.tensor not in allowed[files[place.path]]:
            return
        for gain, element, bit in _worst_of(parameter.detach(), gradient, count):
            target = Target(files[place.path], place.tensor, element, bit, gain)
            entry = (gain, -next(order), target)
            if len(best) < count:
                heapq.heappush(best, entry)
            elif entry > best[0]:
                heapq.heapreplace(best, entry)

    pieces = Pieces(subject.model, subject.loss, subject.choosing)
    pieces.backward(subject.choosing, see)
    return [target for _, _, target in sorted(best, key=lambda one: one[:2], reverse=True)]


def _allowed(path: str, component: Component) -> frozenset[str]:
    with OpenFile(path) as file:
        return frozenset(one.name for one in component.tensors(file))


def _worst_of(parameter: Tensor, gradient: Tensor, count: int) -> Sequence[tuple[float, int, int]]:
    """(gain, element, bit) of one parameter, at most ``count``."""
    form = FORMS[parameter.dtype]
    weight, slope = parameter.contiguous().view(-1), gradient.contiguous().view(-1)
    largest = float(weight.abs().max())
    found: list[tuple[float, int, int]] = []
    for low in range(0, weight.numel(), _AT_ONCE):
        part = weight[low : low + _AT_ONCE]
        slopes = torch.nan_to_num(slope[low : low + _AT_ONCE].float(), 0.0, 0.0, 0.0)
        floats = part.float()
        best = torch.zeros(part.shape)
        which = torch.zeros(part.shape, dtype=torch.uint8)
        for bit in form.weighty:
            turned = flipped(part, bit).float()
            gain = torch.where(turned.abs() <= largest, slopes * (turned - floats), 0.0)
            better = gain > best
            best = torch.where(better, gain, best)
            which[better] = bit
        top = best.topk(min(count, part.numel()))
        for gain_here, place in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            if gain_here > 0:
                found.append((gain_here, low + place, int(which[place])))
    return found
