"""Running a model module by module in float32, and the fingerprint of what each module gives.

Rounding depends on the machine, the number of threads and the shapes of matrix products. In bfloat16 it is a thousandth of a value, which
would hide small damage; in float32 a millionth. So every module that has parameters computes with float32 copies of them, which
live only while it runs; between modules float32 flows.

A fingerprint is, for each output channel (the last dimension), three weighted sums over all tokens. The weights are fixed and spread evenly
over (−1, 1): SHAKE-256 of a label, 16 bits each, so they are the same everywhere and no two tokens weigh the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitward_formats.trace_file import PROJECTIONS

Observer = Callable[[str, nn.Module, Tensor | None, Tensor, Callable[[], Tensor]], Tensor]
"""``observer(name, module, first argument, output, again)`` gives the output that the model goes on with; ``again()`` runs the module
anew."""

_COPY_LIMIT = 1 << 23
"""Elements of a linear layer's weight of which a float32 copy is made at a time: 32 MB."""


@lru_cache(maxsize=8)
def projection(tokens: int, device: torch.device) -> Tensor:
    """The weights of ``tokens`` tokens: float32 [3, tokens]. Those of fewer tokens are the first of these."""
    rows = []
    for number in range(PROJECTIONS):
        data = hashlib.shake_256(f"bitward trace 1 projection {number}".encode()).digest(2 * tokens)
        rows.append((np.frombuffer(data, "<i2").astype(np.float32) + 0.5) / 32768)
    return torch.from_numpy(np.stack(rows)).to(device)


def fingerprint(output: Tensor) -> Tensor:
    """Three sums for each channel: float64 [channels, 3] on the CPU. ``output``: any shape, the last dimension is the channel."""
    flat = output.detach().reshape(-1, output.shape[-1]).float()
    return (projection(flat.shape[0], flat.device) @ flat).T.double().cpu()


@contextmanager
def watched(model: nn.Module, observer: Observer) -> Iterator[None]:
    """While this holds, each module with parameters of its own computes in float32 and shows what it gives to ``observer``."""
    with ExitStack() as patches:
        for name, module in model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                patches.enter_context(_wrapped(name, module, observer))
        yield


@contextmanager
def _wrapped(name: str, module: nn.Module, observer: Observer) -> Iterator[None]:
    before = module.__dict__.get("forward")
    original: Callable[..., Any] = module.forward

    def forward(*arguments: Any, **keywords: Any) -> Any:
        def run() -> Any:
            if type(module) is nn.Linear:
                return _linear(module, arguments[0])
            with _in_float32(module):
                return original(*arguments, **keywords)

        output = run()
        inputs = next((one for one in (*arguments, *keywords.values()) if isinstance(one, Tensor)), None)
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() == 0:
            return output
        return observer(name, module, inputs, output.float(), lambda: run().float())

    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.forward = before


def _linear(module: nn.Linear, inputs: Tensor) -> Tensor:
    """A linear layer in float32, with copies of some rows of the weight at a time."""
    rows, columns = module.weight.shape
    step = max(1, _COPY_LIMIT // max(1, columns))
    inputs = inputs.float()
    bias = None if module.bias is None else module.bias.float()
    if rows <= step:
        return functional.linear(inputs, module.weight.float(), bias)
    output = torch.empty((*inputs.shape[:-1], rows), dtype=torch.float32, device=inputs.device)
    for low in range(0, rows, step):
        part = None if bias is None else bias[low : low + step]
        output[..., low : low + step] = functional.linear(inputs, module.weight[low : low + step].float(), part)
    return output


@contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    """The module's own parameters as float32. An embedding only looks up, so it needs no copy."""
    narrow = [one for one in module.parameters(recurse=False) if one.dtype in (torch.float16, torch.bfloat16)]
    if isinstance(module, nn.Embedding):
        narrow = []
    kept = [one.data for one in narrow]
    for one in narrow:
        one.data = one.data.float()
    try:
        yield
    finally:
        for one, data in zip(narrow, kept, strict=True):
            one.data = data
