"""Putting a module right whose output departs from a trace, when its inputs are right.

Three forms of modules are understood: linear layers (and the transposed ones of GPT-2), embeddings, and whatever else has vectors with one
weight per channel: norms, biases. A linear layer and an embedding give, in each channel, sums over their inputs; that this is so is
checked on the numbers before it is relied on. Everything is done on sums: at most the input's three sums per feature are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.fingerprints import fingerprint, projection
from bitward_agent.diagnosis.tensor_bits import FORMS, element_view, flip_in_place, flipped
from bitward_agent.diagnosis.weight_lines import LineSolution, Turn, solve_line

_LINES_LIMIT = 256
"""Departing channels of one module that are solved; more is no matter of flipped bits."""
_MOST_NATS = 20.0
"""What one sum can say at most."""


@dataclass(frozen=True, slots=True)
class Change:
    """One weight put right. ``bit`` is None where more than one bit of it was wrong; ``rivals`` counts other single bits of the same line
    that would explain the sums as well; ``misfit`` is what the explanation leaves, in tolerances. ``evidence_nats``: how much the three
    sums were off before, in logarithms of tolerances, less that of the number of explanations there are to choose from."""

    parameter: str
    element: int
    bit: int | None
    before: float
    after: float
    rivals: int
    misfit: float
    evidence_nats: float


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """A module that just ran: its input, its output as float32, how to run it again, and the sums (float64 [channels, 3]) that it should
    give within ``tolerance``. ``names`` are the parameters' by identity."""

    name: str
    module: nn.Module
    inputs: Tensor | None
    output: Tensor
    again: Callable[[], Tensor]
    right: Tensor
    tolerance: Tensor
    names: Mapping[int, str]

    def departing(self, sums: Tensor) -> list[int]:
        """The channels whose sums are not within tolerance (NaN is not)."""
        fits = ((sums - self.right).abs() <= self.tolerance).all(1)
        return [int(one) for one in torch.nonzero(~fits).view(-1)]

    def evidence_nats(self, channel: int, explanations: int) -> float:
        """See ``Change``."""
        away = ((fingerprint(self.output)[channel] - self.right[channel]).abs() / self.tolerance[channel]).clamp(min=1).log()
        return float(away.nan_to_num(_MOST_NATS).clamp(max=_MOST_NATS).sum()) - math.log(max(1, explanations))


@dataclass(slots=True)
class Mended:
    """``whole``: the module gives what it should now. ``undo`` takes the changes back."""

    output: Tensor
    whole: bool
    changes: tuple[Change, ...]
    undo: list[Callable[[], None]] = field(default_factory=list)


def mend(call: ModuleCall, departing: Sequence[int]) -> Mended:
    """Look for what is wrong in the departing channels, change it, and see whether the module then gives what it should.

    If it does not, nothing stays changed.
    """
    mended = Mended(call.output, False, ())
    if len(departing) > _LINES_LIMIT:
        return mended
    left = list(departing)
    if isinstance(call.module, nn.Embedding) or _matrix(call.module) is not None:
        left = _mend_lines(call, left, mended)
    if left:
        left = _mend_vectors(call, left, mended)
    if mended.changes:
        output = call.again()
        if not left and not call.departing(fingerprint(output)):
            mended.output, mended.whole = output, True
            return mended
        while mended.undo:
            mended.undo.pop()()
        mended.changes = ()
    return mended


def _matrix(module: nn.Module) -> Tensor | None:
    """A linear layer's weight as [channels, inputs]; None for other modules."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or weight.dtype not in FORMS:
        return None
    if isinstance(module, nn.Linear):
        return weight.data
    return weight.data.T if type(module).__name__ == "Conv1D" else None


def _mend_lines(call: ModuleCall, channels: list[int], mended: Mended) -> list[int]:
    """Solve each departing channel's line; returns the channels that could not be."""
    weight, places, sums = _line_inputs(call)
    if weight is None or not bool(sums.isfinite().all()):
        return channels
    bias = getattr(call.module, "bias", None)
    if isinstance(bias, nn.Parameter) and bias.dtype == weight.dtype:  # one input more, which is always 1
        sums = torch.cat([sums, _sums_of_ones(call).unsqueeze(0)])
    else:
        bias = None
    left = []
    for channel in channels:
        line = (weight[channel, places] if places is not None else weight[channel]).cpu()
        inputs = len(line)
        if bias is not None:
            line = torch.cat([line, bias.data[channel : channel + 1].cpu()])
        solution = solve_line(line, sums, call.right[channel], call.tolerance[channel])
        if solution is None:
            left.append(channel)
            continue
        evidence = call.evidence_nats(channel, line.numel() * FORMS[line.dtype].bits)
        for turn in solution.turns:
            before = float(line[turn.place])
            if bias is not None and turn.place == inputs:
                _apply(call, mended, bias, channel, turn, solution, before, evidence)
                continue
            place = turn.place if places is None else int(places[turn.place])
            assert isinstance(call.module.weight, nn.Parameter)
            _apply(call, mended, call.module.weight, _element(call.module, channel, place), turn, solution, before, evidence)
    return left


def _line_inputs(call: ModuleCall) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """The weight as [channels, inputs], the inputs that occur (None: all), and their sums, float64 [inputs, 3]."""
    nothing = torch.zeros(0, dtype=torch.float64)
    if call.inputs is None:
        return None, None, nothing
    weight: Tensor | None
    if isinstance(call.module, nn.Embedding):
        tokens = call.inputs.reshape(-1)
        seen, which = tokens.unique(return_inverse=True)
        sums = torch.zeros(len(seen), call.right.shape[1], dtype=torch.float64, device=tokens.device)
        sums.index_add_(0, which, projection(len(tokens), tokens.device).T.double())
        weight, places = call.module.weight.data.T, seen.cpu()
        if call.module.weight.dtype not in FORMS:
            return None, None, nothing
    else:
        weight, places, sums = _matrix(call.module), None, fingerprint(call.inputs)
        if weight is None or len(sums) != weight.shape[1]:
            return None, None, nothing
    factor = _factor(call, weight, places, sums.cpu())
    return (None, None, nothing) if factor is None else (weight, places, sums.cpu() * factor)


def _factor(call: ModuleCall, weight: Tensor, places: Tensor | None, sums: Tensor) -> float | None:
    """What the module multiplies its sums by (1, but for embeddings that scale); None if it computes something else."""
    given = fingerprint(call.output)
    good = torch.nonzero(((given - call.right).abs() <= call.tolerance).all(1)).view(-1)[:32]
    if not len(good):
        return 1.0
    lines = weight[good] if places is None else weight[good][:, places.to(weight.device)]
    expected = lines.cpu().double() @ sums
    bias = _bias_sums(call)
    given = given[good] - (0 if bias is None else bias[good])
    factor = float((given * expected).sum() / expected.square().sum().clamp(min=1e-300))
    factor = 1.0 if abs(factor - 1) < 1e-4 else factor
    fits = ((given - factor * expected).abs() <= 8 * call.tolerance[good]).all()
    return factor if bool(fits) and factor != 0 else None


def _bias_sums(call: ModuleCall) -> Tensor | None:
    """What the bias adds to the sums: float64 [channels, 3]."""
    bias = getattr(call.module, "bias", None)
    if not isinstance(bias, nn.Parameter):
        return None
    return bias.detach().double().cpu().unsqueeze(1) * _sums_of_ones(call)


def _sums_of_ones(call: ModuleCall) -> Tensor:
    """The three sums of a feature that is 1 for every token."""
    tokens = call.output.numel() // call.output.shape[-1]
    return projection(tokens, torch.device("cpu")).double().sum(1)


def _element(module: nn.Module, channel: int, place: int) -> int:
    """The row-major number of the weight that ties input ``place`` to ``channel``."""
    columns = int(getattr(module, "weight").shape[1])  # noqa: B009 - a module's attributes are tensors or modules to mypy
    return channel * columns + place if isinstance(module, nn.Linear) else place * columns + channel


def _apply(
    call: ModuleCall, mended: Mended, parameter: nn.Parameter, element: int, turn: Turn, solution: LineSolution, before: float, nats: float
) -> None:
    if turn.bit is not None:
        flip_in_place(parameter, element, turn.bit)
        mended.undo.append(partial(flip_in_place, parameter, element, turn.bit))
    else:
        kept = element_view(parameter, element).clone()
        element_view(parameter, element).fill_(turn.value)
        mended.undo.append(partial(_put_back, parameter, element, kept))
    name = call.names[id(parameter)]
    mended.changes += (Change(name, element, turn.bit, before, turn.value, solution.rivals, solution.misfit, nats),)


def _put_back(parameter: nn.Parameter, element: int, kept: Tensor) -> None:
    element_view(parameter, element).copy_(kept)


def _mend_vectors(call: ModuleCall, channels: list[int], mended: Mended) -> list[int]:
    """Weights and biases of one element per channel: each bit is turned in all departing channels at once, and the module run again.

    Channels do not mix in such modules, so one run tells for every channel whether its bit was it.
    """
    left = set(channels)
    found: dict[int, tuple[float, nn.Parameter, int]] = {}
    rivals: dict[int, int] = {}
    at = torch.tensor(channels)
    for parameter in call.module.parameters(recurse=False):
        if parameter.dim() != 1 or len(parameter) != len(call.right) or parameter.dtype not in FORMS:
            continue
        kept = parameter.data[at.to(parameter.device)].clone()
        for bit in range(FORMS[parameter.dtype].bits):
            turned = flipped(kept, bit)
            parameter.data[at] = torch.where(turned.isfinite(), turned, kept)
            misfits = ((fingerprint(call.again())[at] - call.right[at]).abs() / call.tolerance[at]).amax(1).nan_to_num(math.inf)
            parameter.data[at] = kept
            for number in torch.nonzero(misfits <= 1).view(-1).tolist():
                channel, misfit = channels[number], float(misfits[number])
                rivals[channel] = rivals.get(channel, -1) + 1
                if channel not in found or misfit < found[channel][0]:
                    found[channel] = (misfit, parameter, bit)
    for channel, (misfit, parameter, bit) in found.items():
        before = float(parameter.data[channel])
        evidence = call.evidence_nats(channel, FORMS[parameter.dtype].bits)
        flip_in_place(parameter, channel, bit)
        mended.undo.append(partial(flip_in_place, parameter, channel, bit))
        name, after = call.names[id(parameter)], float(parameter.data[channel])
        change = Change(name, channel, bit, before, after, rivals[channel], misfit, evidence)
        mended.changes += (change,)
        left.discard(channel)
    return sorted(left)
