"""Comparing a model with a reference of the same architecture, whatever the reference's element type or quantisation.

Two comparisons. *By behaviour*: the reference runs, and each module of the model under diagnosis is fed with what the reference's module
got; so every module has right inputs, and a departing channel is its own. *By weights*: tensor by tensor. Where the reference, rounded to
the model's element type, has the same weights but for a few, those few are the damage. Where it is quantised, the differences have a size
that is usual in their row and their neighbourhood; a weight far beyond that is suspected if turning one bit brings it back within.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.departures import suspect_at
from bitward_agent.diagnosis.facts import BlockScore, Suspect
from bitward_agent.diagnosis.fingerprints import fingerprint, watched
from bitward_agent.diagnosis.pieces import find_blocks
from bitward_agent.diagnosis.subject import ModelError, Subject
from bitward_agent.diagnosis.tensor_bits import FORMS, flipped
from bitward_agent.diagnosis.trace import run_inputs, run_model, usual_size
from bitward_agent.errors import InputError

SAME_SHARE = 2.0**-10
"""If fewer weights than this share differ, the reference has the same weights; the others are damage."""
_AT_ONCE = 1 << 22
_NEIGHBOURS = 32
"""Weights that share a scale in ggml's formats; wider blocks of others have their scales in groups of this size or of multiples."""
_FAR = 12.0
"""Medians of the usual difference. Rounding to a grid makes differences of at most two medians where weights fill the grid."""
_NEAR = 4.0
_BEYOND_GRID = 3.0
_SUSPECTS_LIMIT = 4096
_ROUNDING = 1e-5
"""Of a module's usual sum: more than float32 makes of the same weights."""
_OWN_ROUNDING = 1e-4
"""Of a channel's own sum, which in a few channels is thousands of times the usual."""


@dataclass(frozen=True, slots=True)
class ModuleDeparture:
    """A module that gives something else than the reference's from the same input: its worst channel, and by how many medians."""

    module: str
    channel: int
    ratio: float


def load_reference(source: str, subject: Subject) -> nn.Module:
    """Load a reference: a directory, or a GGUF file (which transformers dequantises to float32).

    Raises:
        InputError: There is none, or it is of another architecture.
        ModelError: It cannot be loaded.
    """
    path = Path(source)
    model_class = type(subject.model)
    loader = getattr(model_class, "from_pretrained", None)
    if loader is None:
        raise InputError(f"{source}: a factory's model cannot be compared with files")
    if not path.exists():
        raise InputError(f"{source}: no such reference")
    keywords = {"gguf_file": path.name, "dtype": torch.float32} if path.is_file() else {"dtype": "auto"}
    try:
        with redirect_stderr(StringIO()):  # its progress bar
            model = loader(path.parent if path.is_file() else path, local_files_only=True, attn_implementation="eager", **keywords)
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise ModelError(f"{source}: transformers cannot load this reference: {type(error).__name__}: {reason}") from error
    model = model.eval().requires_grad_(False).to(subject.device())
    _check_same(source, subject.model, model)
    assert isinstance(model, nn.Module)
    return model


def _check_same(source: str, model: nn.Module, reference: nn.Module) -> None:
    theirs = {name: one.shape for name, one in reference.named_parameters()}
    for name, one in model.named_parameters():
        if theirs.get(name) != one.shape:
            raise InputError(f"{source}: not of the same architecture: {name} is {tuple(theirs.get(name, ())) or 'missing'}")


def compare_modules(subject: Subject, reference: nn.Module) -> list[ModuleDeparture]:
    """Feed each module with what the reference's got; the worst first. Costs one forward pass and one call of each module."""
    found: list[ModuleDeparture] = []

    def see(name: str, _: nn.Module, inputs: Tensor | None, output: Tensor, __: Callable[[], Tensor]) -> Tensor:
        if inputs is None:
            return output
        right = fingerprint(output)
        given: list[Tensor] = []
        ours = subject.model.get_submodule(name)
        with _watched_alone(ours, given):
            try:
                ours(inputs)
            except TypeError:  # it takes more than one argument
                return output
        if given and given[0].shape == right.shape:
            found.append(_departure(name, given[0], right))
        return output

    with watched(reference, see):
        run_model(subject, reference, run_inputs(subject))
    return sorted(found, key=lambda one: -one.ratio)


def _watched_alone(module: nn.Module, given: list[Tensor]) -> AbstractContextManager[None]:
    """Run one module in float32 and take the fingerprint of what it gives."""

    def take(_: str, __: nn.Module, ___: Tensor | None, output: Tensor, ____: Callable[[], Tensor]) -> Tensor:
        given.append(fingerprint(output))
        return output

    return watched(module, take)


def _departure(name: str, given: Tensor, right: Tensor) -> ModuleDeparture:
    away = (given - right).abs().amax(1).nan_to_num(math.inf)
    finite = away[away.isfinite()]
    usual = max(float(finite.median()) if len(finite) else 0.0, _ROUNDING * usual_size(right))
    ratios = away / torch.clamp(_OWN_ROUNDING * right.abs().amax(1), min=usual)
    channel = int(ratios.argmax())
    return ModuleDeparture(name, channel, float(ratios[channel]))


def module_scores(subject: Subject, departures: Iterable[ModuleDeparture]) -> list[BlockScore]:
    """For each block the worst of its modules, in medians of what is usual in the module."""
    names, _ = find_blocks(subject.model)
    scores: dict[str, float] = {}
    for one in departures:
        part = next((name for name in names if one.module.startswith(f"{name}.")), one.module)
        scores[part] = max(scores.get(part, 0.0), min(one.ratio, 1e30))
    return [BlockScore(part, "differential", score) for part, score in sorted(scores.items(), key=lambda one: -one[1])]


def compare_weights(subject: Subject, reference: nn.Module) -> tuple[list[Suspect], list[str]]:
    """Suspects, the strongest first, and notes about tensors that have nothing in common."""
    theirs = dict(reference.named_parameters())
    suspects: list[Suspect] = []
    notes: list[str] = []
    for name, parameter in subject.model.named_parameters():
        if parameter.dtype not in FORMS:
            continue
        right = theirs[name].detach()
        rounded = right.to(parameter.dtype)
        integer = FORMS[parameter.dtype].integer
        differing = torch.nonzero((parameter.data.contiguous().view(integer) != rounded.contiguous().view(integer)).view(-1)).view(-1)
        if len(differing) <= max(8, parameter.numel() * SAME_SHARE):
            suspects += _exact(subject, name, parameter.data, rounded, differing[:_SUSPECTS_LIMIT])
        elif parameter.dim() < 2:
            notes.append(f"{name}: the reference has another vector")
        else:
            suspects += _outliers(subject, name, parameter.data, right)
        if len(suspects) > _SUSPECTS_LIMIT:
            notes.append(f"more than {_SUSPECTS_LIMIT:,} weights differ; the rest was not looked at")
            break
    return sorted(suspects, key=lambda one: -one.score_nats), notes


def _exact(subject: Subject, name: str, parameter: Tensor, right: Tensor, differing: Tensor) -> Iterable[Suspect]:
    form = FORMS[parameter.dtype]
    ours = parameter.contiguous().view(form.integer).view(-1)[differing]
    theirs = right.contiguous().view(form.integer).view(-1)[differing]
    mask = (1 << form.bits) - 1
    for element, found, correct in zip(differing.tolist(), ours.tolist(), theirs.tolist(), strict=True):
        turned = (found ^ correct) & mask
        bit = turned.bit_length() - 1 if turned.bit_count() == 1 else None
        values = (float(parameter.view(-1)[element]), float(right.reshape(-1)[element]))
        same = "the reference has the same weights but for a few" if bit is not None else "several bits differ from the reference"
        yield suspect_at(subject, name, element, bit, values, "reference", 60.0, same)


def _outliers(subject: Subject, name: str, weights: Tensor, right: Tensor) -> Iterable[Suspect]:
    """Weights whose difference is far beyond what is usual around them, and which one bit brings back."""
    columns = weights.shape[-1]
    ours, theirs = weights.reshape(-1, columns), right.reshape(-1, columns)
    group = _NEIGHBOURS if columns % _NEIGHBOURS == 0 else columns
    grid = _grid(ours, theirs, group)
    rows_at_once = max(1, _AT_ONCE // columns)
    for low in range(0, ours.shape[0], rows_at_once):
        part, good = ours[low : low + rows_at_once], theirs[low : low + rows_at_once].float()
        usual, farthest = _usual(part, good, group, grid)
        away = (part.float() - good).abs().nan_to_num(math.inf, math.inf)
        for place in torch.nonzero((away > torch.maximum(_FAR * usual, farthest)).view(-1)).view(-1).tolist()[:_SUSPECTS_LIMIT]:
            suspect = _brought_back(subject, name, (part, good, usual), low * columns, place)
            if suspect is not None:
                yield suspect


def _usual(part: Tensor, good: Tensor, group: int, grid: float) -> tuple[Tensor, Tensor]:
    """(the usual difference at each weight, three times the largest that rounding to a grid makes there)."""
    rows, columns = part.shape
    away = (part.float() - good).abs().nan_to_num(math.inf, math.inf)
    by_group = away.view(rows, columns // group, group)
    local = by_group.median(2, keepdim=True).values.expand_as(by_group).reshape(rows, columns)
    row = away.median(1, keepdim=True).values
    rounding = good.abs() * 2.0 ** -FORMS[part.dtype].mantissa_bits
    largest = good.abs().view(rows, columns // group, group).amax(2, keepdim=True).expand_as(by_group).reshape(rows, columns)
    return torch.maximum(torch.maximum(local, row), rounding).clamp(min=1e-30), _BEYOND_GRID * grid * largest


def _grid(ours: Tensor, theirs: Tensor, group: int) -> float:
    """How far quantisation moves weights at most, as a share of the largest of their group: what nearly all of a sample keep to."""
    step = max(1, ours.numel() // (1 << 20))
    part, good = ours[::step].float(), theirs[::step].float()
    grouped = (part - good).abs().nan_to_num(0.0, 0.0).view(-1, group)
    shares = grouped.amax(1) / good.abs().view(-1, group).amax(1).clamp(min=1e-30)
    return float(shares.float().kthvalue(max(1, int(len(shares) * 0.98))).values)


def _brought_back(subject: Subject, name: str, parts: tuple[Tensor, Tensor, Tensor], first: int, place: int) -> Suspect | None:
    part, good, usual = parts
    value = part.reshape(-1)[place : place + 1]
    right, near = float(good.reshape(-1)[place]), float(usual.reshape(-1)[place])
    bits = range(FORMS[part.dtype].bits)
    turned = [float(flipped(value, bit)) for bit in bits]
    left, bit = min((abs(one - right) if math.isfinite(one) else math.inf, bit) for bit, one in zip(bits, turned, strict=True))
    if left > _NEAR * near:
        return None
    away = abs(float(value) - right) / near
    score = min(60.0, math.log(2) * away) if math.isfinite(away) else 60.0
    words = f"the reference has {right:.6g}; differences around it are of {near:.2g}"
    return suspect_at(subject, name, first + place, bit, (float(value), turned[bit]), "reference", score, words)
