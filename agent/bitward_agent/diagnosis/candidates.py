"""Which bits of which weights to try: ranked by one backward pass and by how unusual each weight is for its place.

The loss that would be won by changing weight w to w' is −g (w' − w) to the first order. Over all bits of all weights that says little:
un-flips that make a weight huge swamp the ranking, for which the first order means nothing. So there are several kinds of candidates:

- *shrink*: g·w > 0, the weight seems too large or of the wrong sign. Ranked by g·w, what setting it to zero would win, and by g·w
  together with how unusual the weight is (``WeightPrior``);
- *grow*: a weight far smaller than is usual at its place, for which a bit turned from 0 to 1 gives a usual one. Ranked by −g (w' − w);
- *against*: the most negative g·w. Either the weight is too small, by not so much that it would be unusual; or its sign was turned and
  it is one of the few weights for which the loss is so curved that the gradient points the wrong way;
- *tiny*: the few smallest weights for their places, whatever their gradient: the first order says nothing about a weight that would grow
  a thousandfold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.tensor_bits import FORMS, flipped
from bitward_agent.diagnosis.weight_prior import WeightPrior

_AT_ONCE = 1 << 19
"""Elements that are looked at together: some ten arrays of 2 MB each."""
_PER_PART = 32
_AGAINST_PER_PART = 6
_UNUSUAL_PER_VECTOR = 8
_TINY_PER_PART = 2
_TINY_OCTAVES = 4.0
"""A weight this many octaves below what is usual at its place may have been shrunk by a flip."""
_SMALL_OCTAVES = 1.5
"""The same in norms and biases, whose values lie close together."""
_USUAL_OCTAVES = (-3.0, 5.0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One bit of one weight. ``element`` counts in row-major order; ``gain`` is the first-order gain in nats per item, ``prior_nats`` how
    much more usual the weight would be with the bit turned back."""

    parameter: str
    element: int
    bit: int
    kind: str
    gain: float
    prior_nats: float

    @property
    def weight(self) -> tuple[str, int]:
        """Which weight it is about."""
        return self.parameter, self.element


class Ranking:
    """Collects candidates as gradients come in, tensor by tensor; holds a few per tensor."""

    def __init__(self, names: dict[int, str], prior_of: Callable[[str], WeightPrior]) -> None:
        self._names, self._prior_of = names, prior_of
        self._found: list[Candidate] = []
        self._vectors: set[str] = set()
        self.sensitivity: dict[str, float] = {}
        """Per parameter the root of the summed squares of gradient × weight, in nats."""

    def see(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Take the gradient of one parameter. Gradients that are not finite count as zero."""
        if parameter.dtype not in FORMS or parameter.numel() < 2:
            return
        name = self._names[id(parameter)]
        prior = self._prior_of(name)
        weight, slope = parameter.detach().reshape(-1), gradient.reshape(-1)
        columns = prior.column_sums.numel()
        step = max(1, _AT_ONCE // columns) * columns
        for low in range(0, weight.numel(), step):
            self._see_part(name, _Part(weight[low : low + step], slope[low : low + step], low, prior))

    def _see_part(self, name: str, part: _Part) -> None:
        pull = (part.slope * part.weight.float()).nan_to_num(0.0, math.inf, -math.inf)  # topk takes NaN for the largest
        self.sensitivity[name] = math.hypot(self.sensitivity.get(name, 0.0), float(pull.norm()))
        count = min(_PER_PART, pull.numel())
        shrinking = pull.topk(count).indices
        self._found += _best_bits(name, part, shrinking[pull[shrinking] > 0], "shrink")
        few = part.prior.row_sums.numel() == 1
        if few:
            self._vectors.add(name)
        against = pull.topk(count if few else min(_AGAINST_PER_PART, count), largest=False).indices
        self._found += _best_bits(name, part, against[pull[against] < 0], "against")
        self._found += _best_bits(name, part, _growing(part, count), "grow")
        if not few:
            self._found += _best_bits(name, part, _smallest(part), "tiny")

    def best(self, count: int) -> list[Candidate]:
        """The candidates to try, the most promising first: the best ``count`` weights of each kind of ranking with their likeliest bits."""
        of_kind = {kind: [one for one in self._found if one.kind == kind] for kind in ("shrink", "grow", "against", "tiny")}
        chosen: dict[tuple[str, int, int], Candidate] = {}
        vectors = [one for one in self._found if one.parameter in self._vectors]
        lists = [
            # Norms and biases have few weights, each of which matters: they would not get far among the millions of the others.
            _first_weights(sorted(vectors, key=lambda one: -abs(one.gain)), count),
            _first_weights(sorted(vectors, key=lambda one: -one.prior_nats), count),
            _first_weights(sorted(of_kind["shrink"], key=lambda one: -one.gain), count),
            _first_weights(sorted(of_kind["shrink"], key=_mixed, reverse=True), count),
            _first_weights(sorted(of_kind["grow"], key=_mixed, reverse=True), count),
            _first_weights(sorted(of_kind["against"], key=lambda one: -abs(one.gain)), count // 2),
            _first_weights(sorted(of_kind["tiny"], key=lambda one: -one.prior_nats), count // 4),
        ]
        for place in range(max(map(len, lists))):
            for ranked in lists:
                if place < len(ranked):
                    one = ranked[place]
                    chosen.setdefault((one.parameter, one.element, one.bit), one)
        return list(chosen.values())


def _mixed(one: Candidate) -> float:
    """Nats: the surprise of the weight, and twice the logarithm of the gain (tried on some forty faults; one or three do worse)."""
    return one.prior_nats + 2 * math.log(max(abs(one.gain), 1e-12))


def _first_weights(ranked: Iterable[Candidate], count: int) -> list[Candidate]:
    """The candidates of the first ``count`` weights."""
    weights: set[tuple[str, int]] = set()
    taken: list[Candidate] = []
    for one in ranked:
        if one.weight not in weights and len(weights) == count:
            continue
        weights.add(one.weight)
        taken.append(one)
    return taken


class _Part:
    """Whole rows of a tensor, flat: ``weight``, float32 ``slope`` (the gradient), the number of the first element, the tensor's prior."""

    def __init__(self, weight: Tensor, gradient: Tensor, first: int, prior: WeightPrior) -> None:
        self.weight, self.first, self.prior = weight, first, prior
        self.slope = torch.nan_to_num(gradient.float(), 0.0, 0.0, 0.0)

    def scale(self, elements: Tensor, magnitudes: Tensor) -> Tensor:
        """The usual magnitude at elements of the part, on the CPU."""
        columns = self.prior.column_sums.numel()
        whole = elements.cpu() + self.first
        return self.prior.scale(torch.div(whole, columns, rounding_mode="floor"), whole % columns, magnitudes)


def _best_bits(name: str, part: _Part, elements: Tensor, kind: str) -> list[Candidate]:
    """For each element the likeliest exponent bit to turn, and unless it grows the sign as well."""
    if not elements.numel():
        return []
    form = FORMS[part.weight.dtype]
    values = part.weight[elements].cpu()
    floats = values.float()
    slopes = part.slope[elements].cpu()
    scale = part.scale(elements, floats.abs())
    whole = elements.cpu() + part.first
    now = part.prior.log_prior(floats.abs(), scale, present=True) + part.prior.recurrence_nats(whole, values)
    options = []
    for bit in form.exponent:
        changed = flipped(values, bit)
        turned = changed.float()
        fits = turned.isfinite() & ((turned.abs() < floats.abs()) if kind == "shrink" else (turned.abs() > floats.abs()))
        likely = part.prior.log_prior(turned.abs(), scale) + part.prior.recurrence_nats(whole, changed)
        options.append(torch.where(fits, likely, -math.inf))
    best, which = torch.stack(options).max(0)
    bits = which + form.mantissa_bits
    turned = torch.stack([flipped(values, bit).float() for bit in form.exponent]).gather(0, which.unsqueeze(0))[0]
    gains = -slopes * (turned - floats)
    found = [
        Candidate(name, element, bit, kind, gain, likelier)
        for element, bit, gain, likelier in zip(whole.tolist(), bits.tolist(), gains.tolist(), (best - now).tolist(), strict=True)
        if math.isfinite(likelier)
    ]
    if kind not in ("grow", "tiny"):
        pulls = (2 * slopes * floats).abs().tolist()
        likelier = (part.prior.recurrence_nats(whole, -values) - part.prior.recurrence_nats(whole, values)).tolist()
        signs = zip(whole.tolist(), pulls, likelier, strict=True)
        found += [Candidate(name, element, form.sign, kind, gain, more) for element, gain, more in signs]
    return found


def _smallest(part: _Part) -> Tensor:
    """The smallest elements for their places; zeros are no flips of trained weights, there are too many of them."""
    columns = part.prior.column_sums.numel()
    first_row = part.first // columns
    shares = part.weight.float().abs()
    shares[shares == 0] = math.inf
    shares /= part.prior.scales(first_row, first_row + part.weight.numel() // columns).view(-1).to(part.weight.device)
    least = shares.topk(min(_TINY_PER_PART, shares.numel()), largest=False)
    return least.indices[least.values < 2.0**-_TINY_OCTAVES]


def _growing(part: _Part, count: int) -> Tensor:
    """The elements far below their usual magnitude that a bit turned to 1 would make usual, best first."""
    columns = part.prior.column_sums.numel()
    first_row = part.first // columns
    usual = part.prior.scales(first_row, first_row + part.weight.numel() // columns).view(-1).to(part.weight.device)
    octaves = _SMALL_OCTAVES if part.prior.row_sums.numel() == 1 else _TINY_OCTAVES
    elements = torch.nonzero(part.weight.float().abs() < usual * 2.0**-octaves).view(-1)
    if not elements.numel():
        return elements
    values, slopes, usual_there = part.weight[elements], part.slope[elements], usual[elements]
    best = torch.zeros(elements.shape, dtype=torch.float32, device=part.weight.device)
    low, high = (2.0**octaves for octaves in _USUAL_OCTAVES)
    for bit in FORMS[part.weight.dtype].exponent:
        turned = flipped(values, bit).float()
        size = turned.abs() / usual_there
        fits = (size > low) & (size < high)
        best = torch.where(fits, torch.maximum(best, -slopes * (turned - values.float())), best)
    top = best.topk(min(count, best.numel()))
    found = elements[top.indices[top.values > 0]]
    if part.prior.row_sums.numel() > 1:
        return found
    # So large a change of a norm's weight is beyond the first order: the most unusual are taken whatever it says.
    # Zeros among them are no flips: they would only hide what is.
    shares = part.weight[elements].float().abs() / usual[elements]
    shares[shares == 0] = math.inf
    smallest = shares.topk(min(_UNUSUAL_PER_VECTOR, elements.numel()), largest=False)
    return torch.unique(torch.cat((found, elements[smallest.indices[smallest.values.isfinite()]])))
