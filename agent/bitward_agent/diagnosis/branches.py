"""The branches of a block: the modules whose output is added to the residual stream, found by the numbers.

A block's input goes round its attention and its feed-forward part; what these give is added to it. Which modules these are is not taken
from their names. While a block runs, every tensor of the hidden state's shape that a module takes or gives is noted; a module is a
branch if what it gives, added to a tensor that was there before (the block's input, what a norm gave, an earlier sum), is what the next
norm takes or the block gives. Where two modules are added at once (GPT-NeoX, Falcon), pairs are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.pieces import BlockCall

_MODULES_LIMIT = 64
"""Modules of a block that are looked at; blocks have a dozen."""
_TOLERANCE = 2.0**-6
"""Of the largest entry: two roundings of bfloat16, with room."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A module's output: its name in the block, the step at which it was given, the tensor."""

    name: str
    step: int
    values: Tensor


@contextmanager
def scaled(module: nn.Module, factor: float) -> Iterator[None]:
    """While this holds, what ``module`` gives (the first of a tuple) is multiplied by ``factor``; 0 gives zeros, even for NaN."""

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (_times(output[0], factor), *output[1:])
        return _times(output, factor)

    handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _times(output: Tensor, factor: float) -> Tensor:
    return torch.zeros_like(output) if factor == 0 else output * factor


def branch_names(blocks: Sequence[nn.Module], calls: Sequence[BlockCall]) -> list[str]:
    """The names, in a block, of its branches in the order in which they run; empty if the numbers show none.

    Blocks are of one class, so the first whose numbers are finite tells for all.
    """
    for block, call in zip(blocks, calls, strict=True):
        if bool(call.hidden.isfinite().all()):
            outputs, targets, bases = _look(block, call)
            if all(bool(one.values.isfinite().all()) for one in (*outputs, *targets)):
                return _matching(outputs, targets, bases)
    return []


def _look(block: nn.Module, call: BlockCall) -> tuple[list[Taken], list[Taken], list[Taken]]:
    """(what modules gave, sums that may be explained, tensors that may be one part of a sum)."""
    shape = call.hidden.shape
    outputs: list[Taken] = []
    targets: list[Taken] = []
    bases = [Taken("", 0, call.hidden)]
    steps = iter(range(1, 1 << 20))

    def after(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            given = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(given, Tensor) or given.shape != shape:
                return
            one = Taken(name, next(steps), given.detach().clone())
            taken = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None
            if _is_norm(module):
                bases.append(one)
                if taken is not None and taken.shape == shape:
                    targets.append(Taken(name, one.step, taken.detach().clone()))
            outputs.append(one)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in list(block.named_modules())[1:_MODULES_LIMIT]:
            hooks.callback(module.register_forward_hook(after(name, module)).remove)
        output = block(call.hidden, *call.arguments, **call.keywords)
    whole = output if isinstance(output, Tensor) else output[0]
    targets.append(Taken("", next(steps), whole.detach()))
    return outputs, targets, bases


def _is_norm(module: nn.Module) -> bool:
    """A module without parts whose own parameters are vectors."""
    parameters = list(module.parameters(recurse=False))
    return not any(True for _ in module.children()) and bool(parameters) and all(one.dim() == 1 for one in parameters)


def _matching(outputs: list[Taken], targets: list[Taken], bases: list[Taken]) -> list[str]:
    found: list[str] = []
    sums = list(bases)
    for target in sorted(targets, key=lambda one: one.step):
        before = [one for one in outputs if one.step < target.step]
        starts = [one for one in sums if one.step < target.step]
        names = _explain(target, starts, before)
        found += [name for name in names if name not in found]
        sums.append(target)
    return _outermost(found, outputs)


def _explain(target: Taken, bases: list[Taken], outputs: list[Taken]) -> list[str]:
    """The names of one or two modules whose outputs, with a base, make the target."""
    scale = float(target.values.abs().max())
    for count in (1, 2):
        for base in reversed(bases):
            left = target.values.float() - base.values.float()
            if float(left.abs().max()) <= _TOLERANCE * scale * 2.0**-4:
                return []  # the tensor itself, handed on
            for parts in combinations([one for one in outputs if one.step > base.step or base.step == 0], count):
                rest = left - sum(one.values.float() for one in parts)
                if float(rest.abs().max()) <= _TOLERANCE * float(left.abs().max()):
                    return [one.name for one in parts]
    return []


def _outermost(names: list[str], outputs: list[Taken]) -> list[str]:
    """Of modules that gave the same tensor, the one that holds the others."""
    values = {one.name: one.values for one in outputs}
    kept: list[str] = []
    for name in names:
        holders = [other for other in values if name.startswith(f"{other}.") and torch.equal(values[other], values[name])]
        best = min([*holders, name], key=len)
        if best not in kept:
            kept.append(best)
    return kept
