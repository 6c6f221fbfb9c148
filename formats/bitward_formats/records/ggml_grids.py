"""The types of ggml whose codes are places in a codebook of vectors: IQ1, IQ2 and IQ3 (but for IQ4, all of them are).

A code means eight elements at once (four in IQ3); its signs stand apart, as seven bits for eight elements whose last is their parity, or
as one bit for each. The codebooks are not here, so codes are told as they are. Sources as for ``ggml``.
"""

from __future__ import annotations

from collections.abc import Callable

from bitward_formats.records.forms import Number
from bitward_formats.records.quantised import Block, code, lanes, packed_scale, real_scale

_SUPER = 256


def _nibble_scales(at: int, count: int) -> list[Number]:
    """``count`` scales of four bits, the lower nibble first; together they cover a super-block."""
    return [packed_scale(lanes(at + j // 2, j % 2 * 4, 4), _SUPER // count * j) for j in range(count)]


def _signs_and_scales(at: int, step: int) -> tuple[list[Number], list[Number]]:
    """Eight words of 32 bits, ``step`` bytes apart: four times seven bits of signs, then a scale of four bits; each for 32 elements."""
    signs = [code(lanes(at + step * (j // 4), 7 * (j % 4), 7), 8 * j) for j in range(32)]
    return signs, [packed_scale(lanes(at + step * g, 28, 4), 32 * g) for g in range(8)]


def _iq2_xxs() -> Block:
    # One word of four codes, one of signs and a scale, for each 32 elements.
    grid = [code(lanes(2 + j // 4 * 8 + j % 4, 0, 8), 8 * j) for j in range(32)]
    signs, factors = _signs_and_scales(6, 8)
    words = [(0, 2), *((2 + 4 * j, 4) for j in range(16))]
    return Block(66, _SUPER, [real_scale(0)], factors=factors, others=grid + signs, words=words)


def _iq2_xs() -> Block:
    grid = [code(lanes(2 + 2 * j, 0, 9), 8 * j) for j in range(32)]
    signs = [code(lanes(2 + 2 * j, 9, 7), 8 * j) for j in range(32)]
    words = [(0, 2), *((2 + 2 * j, 2) for j in range(32))]
    return Block(74, _SUPER, [real_scale(0)], factors=_nibble_scales(66, 16), others=grid + signs, words=words)


def _iq2_s() -> Block:
    grid = [code(lanes(2 + j, 0, 8) + lanes(66 + j // 4, j % 4 * 2, 2), 8 * j) for j in range(32)]
    signs = [code(lanes(34, e, 1), e) for e in range(_SUPER)]
    return Block(82, _SUPER, [real_scale(0)], factors=_nibble_scales(74, 16), others=grid + signs, words=[(0, 2)])


def _iq3_xxs() -> Block:
    grid = [code(lanes(2 + j, 0, 8), 4 * j) for j in range(64)]
    signs, factors = _signs_and_scales(66, 4)
    words = [(0, 2), *((66 + 4 * g, 4) for g in range(8))]
    return Block(98, _SUPER, [real_scale(0)], factors=factors, others=grid + signs, words=words)


def _iq3_s() -> Block:
    grid = [code(lanes(2 + j, 0, 8) + lanes(66, j, 1), 4 * j) for j in range(64)]
    signs = [code(lanes(74, e, 1), e) for e in range(_SUPER)]
    return Block(110, _SUPER, [real_scale(0)], factors=_nibble_scales(106, 8), others=grid + signs, words=[(0, 2)])


def _iq1_s() -> Block:
    grid = [code(lanes(2 + j, 0, 8) + lanes(34 + j // 4 * 2, j % 4 * 3, 3), 8 * j) for j in range(32)]
    factors = [packed_scale(lanes(34 + 2 * g, 12, 3), 32 * g) for g in range(8)]
    shifts = [code(lanes(34 + 2 * g, 15, 1), 32 * g) for g in range(8)]
    words = [(0, 2), *((34 + 2 * g, 2) for g in range(8))]
    return Block(50, _SUPER, [real_scale(0)], factors=factors, others=grid + shifts, words=words)


def _iq1_m() -> Block:
    grid = [code(lanes(j, 0, 8) + lanes(32 + j // 2, j % 2 * 4, 3), 8 * j) for j in range(32)]
    shifts = [code(lanes(32 + j // 2, j % 2 * 4 + 3, 1), 8 * j) for j in range(32)]
    # The upper nibbles of four words are the block's scale, the rest four packed scales each.
    whole = Number(0, sum((lanes(48 + 2 * g, 12, 4) for g in range(4)), ()), real_scale(0).type, "scale")
    factors = [packed_scale(lanes(48 + j // 4 * 2, j % 4 * 3, 3), 16 * j) for j in range(16)]
    return Block(56, _SUPER, [whole], factors=factors, others=grid + shifts, words=[(48 + 2 * g, 2) for g in range(4)])


GRID_BLOCKS: dict[str, Callable[[], Block]] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ3_XXS": _iq3_xxs,
    "IQ1_S": _iq1_s,
    "IQ3_S": _iq3_s,
    "IQ2_S": _iq2_s,
    "IQ1_M": _iq1_m,
}
"""By ggml's names."""
