"""The exponent guard: the first of FlipGuard's two measures, mask and clip.

In a trained model nearly all weights are below 2 in magnitude, so that the top bit of their exponents is 0 in all elements of a tensor. A
flip there makes a weight 2^128 times as large. The guard notes for each tensor what that bit is in all of its elements, if it is the
same, and the range of its values. Applied to a damaged model it sets the bit back and clips what is then still out of range. A clean model
it leaves as it is, bit for bit, which is checked and not believed.

After Chen et al., "Bit-Flip Error Resilience in LLMs: A Comprehensive Analysis and Defense Framework" (EMNLP 2025), which names exponent
bit protection; the range of each tensor is ours to choose: the tightest that changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bitward_agent.hardening.float_tensors import Bits, FloatTensor, bits_of, float_tensors, pieces, rewrite, values_of
from bitward_agent.io import OpenFile
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class TensorGuard:
    """``top_bit`` is what the top exponent bit is in all elements, or ``None`` where it is not the same in all; the range is closed."""

    name: str
    dtype: str
    elements: int
    top_bit: int | None
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class FileGuard:
    """Guards of one file by its name relative to the model. ``unguarded`` are float tensors with values that are not finite."""

    file: str
    tensors: tuple[TensorGuard, ...]
    unguarded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardedFile:
    """What applying a guard did: elements whose bit was set back, and those that were clipped."""

    file: str
    masked: int
    clipped: int
    missing: tuple[str, ...] = ()


def measure(path: str, name: str) -> FileGuard:
    """Look at all float tensors of a file once, a piece at a time. ``name`` is what the guard calls the file.

    Raises:
        UnreadableError: The file cannot be read.
    """
    guards: list[TensorGuard] = []
    unguarded: list[str] = []
    with OpenFile(path) as file:
        for tensor in float_tensors(file):
            guard = _measure_tensor(file, tensor)
            if guard is None:
                unguarded.append(tensor.name)
            else:
                guards.append(guard)
    return FileGuard(name, tuple(guards), tuple(unguarded))


def _measure_tensor(file: OpenFile, tensor: FloatTensor) -> TensorGuard | None:
    lowest, highest = math.inf, -math.inf
    ones = 0
    for _, bits in pieces(file, tensor):
        values = values_of(bits, tensor.dtype)
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):  # NaN shows in both
            return None
        lowest, highest = min(lowest, low), max(highest, high)
        ones += int(np.count_nonzero(bits & bits.dtype.type(1 << tensor.top_exponent_bit)))
    top = {0: 0, tensor.elements: 1}.get(ones)
    return TensorGuard(tensor.name, tensor.dtype, tensor.elements, top, lowest, highest)


def mask_and_clip(bits: Bits, guard: TensorGuard) -> tuple[Bits, int, int]:
    """Guarded bits (a new array), and how many elements were masked and how many clipped. NaN becomes zero, or the bound next to it."""
    one = bits.dtype.type(1 << (bits.dtype.itemsize * 8 - 2))
    guarded = bits.copy()
    if guard.top_bit == 0:
        guarded &= ~one
    elif guard.top_bit == 1:
        guarded |= one
    masked = int(np.count_nonzero(guarded != bits))
    values = values_of(guarded, guard.dtype)
    too_low, too_high, not_a_number = values < guard.lowest, values > guard.highest, np.isnan(values)
    guarded[too_low] = bits_of(guard.lowest, guard.dtype)
    guarded[too_high] = bits_of(guard.highest, guard.dtype)
    guarded[not_a_number] = bits_of(min(max(0.0, guard.lowest), guard.highest), guard.dtype)
    return guarded, masked, int(np.count_nonzero(too_low | too_high | not_a_number))


def apply(path: str, guard: FileGuard) -> GuardedFile:
    """Mask and clip the tensors of a file in place. Tensors that the guard does not know stay as they are.

    A tensor that is no longer what the guard says it was (type, number of elements) is left alone and named as missing.

    Raises:
        UnreadableError, WriteError: The file cannot be read or written.
    """
    masked = clipped = 0
    left_out: list[str] = []
    with OpenFile(path, write=True) as file:
        there = {tensor.name: tensor for tensor in float_tensors(file)}
        for one in guard.tensors:
            tensor = there.get(one.name)
            if tensor is None or (tensor.dtype, tensor.elements) != (one.dtype, one.elements):
                left_out.append(one.name)
                continue
            counts = [0, 0]

            def change(_: int, bits: Bits, one: TensorGuard = one, counts: list[int] = counts) -> Bits | None:
                new, masked_here, clipped_here = mask_and_clip(bits, one)
                counts[0] += masked_here
                counts[1] += clipped_here
                return new if masked_here or clipped_here else None

            rewrite(file, tensor, change)
            masked, clipped = masked + counts[0], clipped + counts[1]
    return GuardedFile(guard.file, masked, clipped, tuple(left_out))


def would_change(path: str, guard: FileGuard) -> int:
    """How many elements of a file the guard would change: the lossless check. 0 for the file that it was measured on."""
    count = 0
    by_name = {one.name: one for one in guard.tensors}
    with OpenFile(path) as file:
        for tensor in float_tensors(file):
            if tensor.name in by_name:
                for _, bits in pieces(file, tensor):
                    new, _, _ = mask_and_clip(bits, by_name[tensor.name])
                    count += int(np.count_nonzero(new != bits))
    return count


def masked_share(guards: Sequence[FileGuard]) -> float:
    """The share of guarded elements whose top exponent bit is guarded; the others have their range only."""
    everything = sum(one.elements for guard in guards for one in guard.tensors)
    return sum(one.elements for guard in guards for one in guard.tensors if one.top_bit is not None) / max(1, everything)
