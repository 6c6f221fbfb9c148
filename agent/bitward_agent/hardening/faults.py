"""Fault models of a campaign: which bits of a model are turned, drawn from a seed.

- *rate*: each parameter is hit with this probability, in one bit drawn evenly from its bits (the fault model of FlipGuard's table);
- *bit-error rate*: each bit is turned with this probability;
- *targeted*: bits that were chosen beforehand (``targets``).

The same seed, level, trial and files turn the same bits. Flips are drawn and made a piece of a tensor at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from bitward_agent.errors import InputError
from bitward_agent.hardening.float_tensors import Bits, FloatTensor, float_tensors, rewrite
from bitward_agent.io import OpenFile
from bitward_formats.frozen import dataclass


class FaultKind(StrEnum):
    RATE = "rate"
    BER = "ber"
    TARGETED = "targeted"


@dataclass(frozen=True, slots=True)
class FaultLevel:
    """``amount`` is the share of parameters, the share of bits, or for targeted faults how many bits."""

    kind: FaultKind
    amount: float

    def check(self) -> None:
        """Raises InputError if there is no such level."""
        if self.kind is FaultKind.TARGETED:
            if self.amount < 1 or self.amount != int(self.amount):
                raise InputError("the number of targeted flips must be a whole number above 0")
        elif not 0 < self.amount <= 1:
            raise InputError(f"a {self.kind} must be above 0 and at most 1, not {self.amount}")


@dataclass(frozen=True, slots=True)
class Target:
    """A bit chosen beforehand: of the file by its index in the list of files, the tensor by its name; ``element`` counts row-major.

    ``gain_nats`` is the first-order increase of the loss that its flip should bring.
    """

    file: int
    tensor: str
    element: int
    bit: int
    gain_nats: float


@dataclass(frozen=True, slots=True)
class Component:
    """Which tensors may be hit: names that match a regular expression, and among them those that ``known`` holds (all, if ``None``)."""

    pattern: str = ""
    known: frozenset[str] | None = None

    def tensors(self, file: OpenFile) -> list[FloatTensor]:
        """The tensors of an open file that may be hit."""
        try:
            matches = re.compile(self.pattern).search
        except re.error as error:
            raise InputError(f"--component {self.pattern!r}: no regular expression: {error}") from error
        return [one for one in float_tensors(file) if matches(one.name) and (self.known is None or one.name in self.known)]


@dataclass(frozen=True, slots=True)
class Injected:
    """What was done: tensors that could be hit, their parameters, and the bits that were turned."""

    tensors: int
    parameters: int
    flips: int


Draw = Callable[[int, Bits], Bits]
"""``draw(first, bits)``: a mask of the bits to turn in a piece of a tensor, of the piece's type and length."""


def inject(paths: Sequence[str], level: FaultLevel, component: Component, seed: Sequence[int], targets: Sequence[Target] = ()) -> Injected:
    """Turn bits in files, in place; their times stay as they were, as with rot.

    Raises:
        InputError: There is nothing that could be hit.
        UnreadableError, WriteError: A file cannot be read or written.
    """
    level.check()
    tensors = parameters = flips = 0
    for number, path in enumerate(paths):
        times = os.stat(path)
        by_tensor = _by_tensor(targets, number)
        with OpenFile(path, write=True) as file:
            for place, tensor in enumerate(component.tensors(file)):
                tensors, parameters = tensors + 1, parameters + tensor.elements
                draw = _draw(level, np.random.default_rng([*seed, number, place]), by_tensor.get(tensor.name, ()))
                flips += _turn(file, tensor, draw)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if not tensors:
        raise InputError("no tensor of floats matches: nothing can be hit")
    return Injected(tensors, parameters, flips)


def _by_tensor(targets: Sequence[Target], file: int) -> Mapping[str, list[Target]]:
    found: dict[str, list[Target]] = {}
    for target in targets:
        if target.file == file:
            found.setdefault(target.tensor, []).append(target)
    return found


def _turn(file: OpenFile, tensor: FloatTensor, draw: Draw) -> int:
    count = 0

    def change(first: int, bits: Bits) -> Bits | None:
        nonlocal count
        mask = draw(first, bits)
        turned = int(np.bitwise_count(mask).sum())
        count += turned
        return bits ^ mask if turned else None

    rewrite(file, tensor, change)
    return count


def _draw(level: FaultLevel, rng: np.random.Generator, targets: Sequence[Target]) -> Draw:
    if level.kind is FaultKind.RATE:
        return lambda _, bits: _by_rate(bits, level.amount, rng)
    if level.kind is FaultKind.BER:
        return lambda _, bits: _by_bit(bits, level.amount, rng)
    return lambda first, bits: _chosen(first, bits, targets)


def _by_rate(bits: Bits, rate: float, rng: np.random.Generator) -> Bits:
    """One bit in each element that is hit."""
    hit = np.flatnonzero(rng.random(bits.size) < rate)
    mask = np.zeros_like(bits)
    mask[hit] = _ones(rng.integers(0, bits.itemsize * 8, hit.size), bits)
    return mask


def _by_bit(bits: Bits, rate: float, rng: np.random.Generator) -> Bits:
    """Each bit by itself, lane by lane."""
    mask = np.zeros_like(bits)
    for bit in range(bits.itemsize * 8):
        hit = rng.random(bits.size, dtype=np.float32) < rate if rate > 1e-4 else _few(bits.size, rate, rng)
        mask[hit] |= bits.dtype.type(1 << bit)
    return mask


def _few(size: int, rate: float, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Distinct places; their number is binomial. For rates below what float32 resolves well, and much quicker."""
    return rng.choice(size, int(rng.binomial(size, rate)), replace=False).astype(np.intp)


def _chosen(first: int, bits: Bits, targets: Sequence[Target]) -> Bits:
    mask = np.zeros_like(bits)
    for target in targets:
        if first <= target.element < first + bits.size:
            mask[target.element - first] ^= bits.dtype.type(1 << target.bit)
    return mask


def _ones(positions: npt.NDArray[np.integer], bits: Bits) -> Bits:
    return np.left_shift(bits.dtype.type(1), positions.astype(bits.dtype))
