"""The exponent guard: the first of FlipGuard's two measures, mask and clip.

In a trained model nearly all weights are below 2 in magnitude, so that the top bit of their exponents is 0 nearly everywhere. A flip there
makes a weight 2^128 times as large. The guard notes for each tensor what that bit is, the few elements in which it is the other way, and
the range of the values of either kind. Applied to a damaged model it sets the bit back and clips what is then still out of range. A clean
model it leaves as it is, bit for bit, which is checked and not believed.

After Chen et al., "Bit-Flip Error Resilience in LLMs: A Comprehensive Analysis and Defense Framework" (EMNLP 2025), which names exponent
bit protection. The list of exceptions is ours: one weight of 2.1 in a tensor would else leave its top bit unguarded (of the 211 float
tensors of SmolLM2-135M two in three have such weights, 1,347 in all), or would have to be changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitward_agent.hardening.float_tensors import Bits, FloatTensor, Values, bits_of, float_tensors, pieces, rewrite, values_of
from bitward_agent.io import OpenFile
from bitward_formats.frozen import dataclass

EXCEPTIONS_LIMIT = 4096
"""Most exceptions of one tensor; with more, or with more than one element in 64 (a norm's weights may lie around 2), the top bit is not
guarded, the range alone."""
_EXCEPTIONS_SHARE = 64


@dataclass(frozen=True, slots=True)
class Range:
    """Closed."""

    lowest: float
    highest: float

    def with_values(self, values: Values) -> Range:
        """The range that holds these values too."""
        if not values.size:
            return self
        return Range(min(self.lowest, float(values.min())), max(self.highest, float(values.max())))


_NOTHING = Range(math.inf, -math.inf)


@dataclass(frozen=True, slots=True)
class TensorGuard:
    """``top_bit`` is what the top exponent bit is in all elements but the ``exceptions`` (row-major, ascending), or ``None`` where it is
    not guarded. ``usual`` is the range of the elements, ``whole`` that with the exceptions."""

    name: str
    dtype: str
    elements: int
    top_bit: int | None
    exceptions: tuple[int, ...]
    usual: Range
    whole: Range


@dataclass(frozen=True, slots=True)
class FileGuard:
    """Guards of one file by its name relative to the model. ``unguarded`` are float tensors with values that are not finite."""

    file: str
    tensors: tuple[TensorGuard, ...]
    unguarded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuardedFile:
    """What applying a guard did: elements whose bit was set back, those that were clipped, tensors that are not there as they were."""

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


class _Kind:
    """The elements whose top bit is 0, or those whose bit is 1: how many, where the first of them are, their range."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0
        self.places: list[int] = []
        self.range = _NOTHING

    def see(self, first: int, chosen: npt.NDArray[np.bool_], values: Values) -> None:
        count = int(np.count_nonzero(chosen))
        if not count:
            return
        self.count += count
        self.range = self.range.with_values(values if count == values.size else values[chosen])
        if len(self.places) < self._limit:
            self.places += (np.flatnonzero(chosen)[: self._limit - len(self.places)] + first).tolist()


def _measure_tensor(file: OpenFile, tensor: FloatTensor) -> TensorGuard | None:
    limit = min(EXCEPTIONS_LIMIT, tensor.elements // _EXCEPTIONS_SHARE)
    kinds = (_Kind(limit), _Kind(limit))
    for first, bits in pieces(file, tensor):
        values = values_of(bits, tensor.dtype)
        if not (math.isfinite(values.min()) and math.isfinite(values.max())):  # NaN shows in both
            return None
        ones = bits & bits.dtype.type(1 << tensor.top_exponent_bit) != 0
        kinds[1].see(first, ones, values)
        kinds[0].see(first, ~ones, values)
    rare, usual = sorted(kinds, key=lambda kind: kind.count)
    ranges = [kind.range for kind in kinds if kind.count]
    whole = Range(min(one.lowest for one in ranges), max(one.highest for one in ranges))
    if rare.count > limit:
        return TensorGuard(tensor.name, tensor.dtype, tensor.elements, None, (), whole, whole)
    return TensorGuard(tensor.name, tensor.dtype, tensor.elements, kinds.index(usual), tuple(rare.places), usual.range, whole)


def mask_and_clip(first: int, bits: Bits, guard: TensorGuard) -> tuple[Bits, int, int]:
    """Guarded bits (a new array) of the elements from ``first`` on, and how many were masked and how many clipped.

    NaN becomes zero, or the bound next to it.
    """
    guarded = bits.copy()
    places = np.array(guard.exceptions, np.int64) - first
    exceptions = places[(places >= 0) & (places < bits.size)]
    if guard.top_bit is not None:
        one = bits.dtype.type(1 << (bits.dtype.itemsize * 8 - 2))
        if guard.top_bit:
            guarded |= one
            guarded[exceptions] &= ~one
        else:
            guarded &= ~one
            guarded[exceptions] |= one
    masked = int(np.count_nonzero(guarded != bits))
    kept = guarded[exceptions]
    clipped = _clip(guarded, guard.usual, guard.dtype)
    if exceptions.size:
        clipped -= int(np.count_nonzero(guarded[exceptions] != kept))
        clipped += _clip(kept, guard.whole, guard.dtype)
        guarded[exceptions] = kept
    return guarded, masked, clipped


def _clip(bits: Bits, within: Range, dtype: str) -> int:
    """Clip in place; returns how many elements were."""
    values = values_of(bits, dtype)
    too_low, too_high, not_a_number = values < within.lowest, values > within.highest, np.isnan(values)
    bits[too_low] = bits_of(within.lowest, dtype)
    bits[too_high] = bits_of(within.highest, dtype)
    bits[not_a_number] = bits_of(min(max(0.0, within.lowest), within.highest), dtype)
    return int(np.count_nonzero(too_low | too_high | not_a_number))


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
            masked_here, clipped_here = _apply_to_tensor(file, tensor, one)
            masked, clipped = masked + masked_here, clipped + clipped_here
    return GuardedFile(guard.file, masked, clipped, tuple(left_out))


def _apply_to_tensor(file: OpenFile, tensor: FloatTensor, guard: TensorGuard) -> tuple[int, int]:
    masked = clipped = 0

    def change(first: int, bits: Bits) -> Bits | None:
        nonlocal masked, clipped
        new, masked_here, clipped_here = mask_and_clip(first, bits, guard)
        masked, clipped = masked + masked_here, clipped + clipped_here
        return new if masked_here or clipped_here else None

    rewrite(file, tensor, change)
    return masked, clipped


def would_change(path: str, guard: FileGuard) -> int:
    """How many elements of a file the guard would change: the lossless check. 0 for the file that it was measured on."""
    count = 0
    by_name = {one.name: one for one in guard.tensors}
    with OpenFile(path) as file:
        for tensor in float_tensors(file):
            if tensor.name in by_name:
                for first, bits in pieces(file, tensor):
                    new, _, _ = mask_and_clip(first, bits, by_name[tensor.name])
                    count += int(np.count_nonzero(new != bits))
    return count


def guarded_elements(guards: Sequence[FileGuard]) -> tuple[int, int]:
    """(elements whose top exponent bit is guarded, all elements that have at least a range)."""
    tensors = [one for guard in guards for one in guard.tensors]
    return sum(one.elements for one in tensors if one.top_bit is not None), sum(one.elements for one in tensors)
