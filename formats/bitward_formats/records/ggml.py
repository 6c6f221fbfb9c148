"""The quantised types of ggml (as in GGUF files): which bits of a block are whose.

Source: the block structures of ggml (``src/ggml-common.h``) and their dequantisation (``src/ggml-quants.c``; ``gguf-py/gguf/quants.py``
reckons the same in NumPy). Q8_1 and Q8_K are intermediate forms that files do not hold; they are here because the types have numbers.
A big-endian machine stores the words of these structures most significant byte first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bitward_formats.records.forms import Number
from bitward_formats.records.plain import ELEMENT_TYPES, ElementType, Family, decode
from bitward_formats.records.quantised import Block, code, lanes, packed_scale, real_scale

NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values of the codes of IQ4_NL and IQ4_XS."""

_SUPER = 256
"""Elements of a super-block."""


def _f4(bits: int) -> float:
    return float(decode(ELEMENT_TYPES["F4"], bits))


def _signed_byte(bits: int) -> float:
    return bits - 256 if bits & 128 else bits


def _power(_type: ElementType, bits: int) -> float:
    """E8M0 as ggml takes it: no code is NaN."""
    return math.ldexp(1.0, bits - 127)


def _float_without_sign(_type: ElementType, bits: int) -> float:
    """UE4M3 as ggml takes it: bit 7 says nothing, and 7f is zero."""
    mantissa, exponent = bits & 7, bits >> 3 & 15
    return 0.0 if bits == 0x7F else math.ldexp(mantissa | 8, exponent - 10) if exponent else math.ldexp(mantissa, -9)


def _halves(at: int, elements: int, high_at: int | None = None) -> list[Number]:
    """Nibbles: the first half of the elements in the low ones, the second in the high ones; with one more bit each from ``high_at`` on."""
    half = elements // 2
    high = [() if high_at is None else lanes(high_at, e, 1) for e in range(elements)]
    return [code(lanes(at + e % half, e // half * 4, 4) + high[e], e) for e in range(elements)]


def _simple(bits: int, offset: int, *, minimum: bool = False) -> Block:
    """Q4_0, Q4_1, Q5_0, Q5_1: 32 elements."""
    head = 4 if minimum else 2
    codes = _halves(head, 32) if bits == 4 else _halves(head + 4, 32, high_at=head)
    words = [(at, 2) for at in range(0, head, 2)] + ([(head, 4)] if bits == 5 else [])
    size = head + 16 + (4 if bits == 5 else 0)
    minima = [real_scale(2)] if minimum else []
    return Block(size, 32, [real_scale(0)], codes, minima, words=words, meaning=lambda q: q - offset)


def _q8_0() -> Block:
    return Block(34, 32, [real_scale(0)], [code(lanes(2 + e, 0, 8), e) for e in range(32)], words=[(0, 2)], meaning=_signed_byte)


def _q8_1() -> Block:
    codes = [code(lanes(4 + e, 0, 8), e) for e in range(32)]
    return Block(36, 32, [real_scale(0)], codes, others=[real_scale(2)], words=[(0, 2), (2, 2)], meaning=_signed_byte)


def _q8_k() -> Block:
    sums = [Number(16 * j, lanes(260 + 2 * j, 0, 16), ElementType(Family.SIGNED, 16), "raw") for j in range(16)]
    codes = [code(lanes(4 + e, 0, 8), e) for e in range(_SUPER)]
    words = [(0, 4), *((260 + 2 * j, 2) for j in range(16))]
    return Block(292, _SUPER, [real_scale(0, "F32")], codes, others=sums, words=words, meaning=_signed_byte)


def _small(bits: int, elements: int, meaning: Callable[[int], float]) -> Block:
    """Q1_0 and Q2_0: codes of a few bits, one after the other."""
    per_byte = 8 // bits
    codes = [code(lanes(2 + e // per_byte, e % per_byte * bits, bits), e) for e in range(elements)]
    return Block(2 + elements // per_byte, elements, [real_scale(0)], codes, words=[(0, 2)], meaning=meaning)


def _pairs(at: int, e: int) -> tuple[int, ...]:
    """Two bits of an element of a super-block: 32 bytes hold 128 elements, each stretch of 32 two bits further up."""
    return lanes(at + e // 128 * 32 + e % 32, e // 32 % 4 * 2, 2)


def _nibble(at: int, e: int) -> tuple[int, ...]:
    """Four bits of an element of a super-block: 32 bytes hold 64 elements."""
    return lanes(at + e // 64 * 32 + e % 32, e // 32 % 2 * 4, 4)


def _q2_k() -> Block:
    return Block(
        *(84, _SUPER, [real_scale(80)], [code(_pairs(16, e), e) for e in range(_SUPER)], [real_scale(82)]),
        factors=[packed_scale(lanes(j, 0, 4), 16 * j) for j in range(16)],
        minimum_factors=[packed_scale(lanes(j, 4, 4), 16 * j) for j in range(16)],
        words=[(80, 2), (82, 2)],
        meaning=float,
        minimum_sign=-1,
    )


def _q3_k() -> Block:
    codes = [code(_pairs(32, e) + lanes(e % 32, e // 32, 1), e) for e in range(_SUPER)]
    factors = [packed_scale(lanes(96 + j % 8, j // 8 * 4, 4) + lanes(104 + j % 4, j // 4 * 2, 2), 16 * j) for j in range(16)]
    words = [(108, 2)]
    return Block(110, _SUPER, [real_scale(108)], codes, factors=factors, words=words, meaning=lambda q: q - 4, factor_offset=-32)


def _k_factors(at: int, base: int) -> list[Number]:
    """Eight factors (``base`` 0) or minimum factors (4) of six bits in twelve bytes: Q4_K and Q5_K."""
    first = [packed_scale(lanes(at + base + j, 0, 6), 32 * j) for j in range(4)]
    rest = [packed_scale(lanes(at + 8 + j, base, 4) + lanes(at + base + j, 6, 2), 32 * (j + 4)) for j in range(4)]
    return first + rest


def _q4_k(high_at: int | None = None) -> Block:
    """Q4_K, and with a fifth bit of each code from ``high_at`` on Q5_K."""
    at = 16 if high_at is None else high_at + 32
    high = [() if high_at is None else lanes(high_at + e % 32, e // 32, 1) for e in range(_SUPER)]
    return Block(
        *(at + 128, _SUPER, [real_scale(0)], [code(_nibble(at, e) + high[e], e) for e in range(_SUPER)], [real_scale(2)]),
        *(_k_factors(4, 0), _k_factors(4, 4)),
        words=[(0, 2), (2, 2)],
        meaning=float,
        minimum_sign=-1,
    )


def _q6_k() -> Block:
    codes = [code(lanes(e // 128 * 64 + e % 64, e // 64 % 2 * 4, 4) + _pairs(128, e), e) for e in range(_SUPER)]
    factors = [packed_scale(lanes(192 + j, 0, 8), 16 * j, signed=True) for j in range(16)]
    return Block(210, _SUPER, [real_scale(208)], codes, factors=factors, words=[(208, 2)], meaning=lambda q: q - 32)


def _tq1_0() -> Block:
    firsts = [*range(32), *range(160, 176), *range(240, 244)]
    return Block(54, _SUPER, [real_scale(52)], others=[code(lanes(j, 0, 8), e) for j, e in enumerate(firsts)], words=[(52, 2)])


def _tq2_0() -> Block:
    codes = [code(_pairs(0, e), e) for e in range(_SUPER)]
    return Block(66, _SUPER, [real_scale(64)], codes, words=[(64, 2)], meaning=lambda q: q - 1)


def _mxfp4() -> Block:
    return Block(17, 32, [real_scale(0, "F8_E8M0")], _halves(1, 32), meaning=_f4, scale_value=_power)


def _nvfp4() -> Block:
    scales = [real_scale(s, "F8_E4M3", 16 * s) for s in range(4)]
    codes = [code(lanes(4 + e // 16 * 8 + e % 8, e // 8 % 2 * 4, 4), e) for e in range(64)]
    return Block(36, 64, scales, codes, meaning=_f4, scale_value=_float_without_sign)


def _iq4_nl() -> Block:
    return Block(18, 32, [real_scale(0)], _halves(2, 32), words=[(0, 2)], meaning=lambda q: NONLINEAR[q])


def _iq4_xs() -> Block:
    codes = [code(lanes(8 + e // 32 * 16 + e % 16, e // 16 % 2 * 4, 4), e) for e in range(_SUPER)]
    factors = [packed_scale(lanes(4 + j // 2, j % 2 * 4, 4) + lanes(2, 2 * j, 2), 32 * j) for j in range(8)]
    words = [(0, 2), (2, 2)]
    return Block(136, _SUPER, [real_scale(0)], codes, factors=factors, words=words, meaning=lambda q: NONLINEAR[q], factor_offset=-32)


BLOCKS: dict[str, Callable[[], Block]] = {
    "Q4_0": lambda: _simple(4, 8),
    "Q4_1": lambda: _simple(4, 0, minimum=True),
    "Q5_0": lambda: _simple(5, 16),
    "Q5_1": lambda: _simple(5, 0, minimum=True),
    "Q8_0": _q8_0,
    "Q8_1": _q8_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": lambda: _q4_k(high_at=16),
    "Q6_K": _q6_k,
    "Q8_K": _q8_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    "Q1_0": lambda: _small(1, 128, lambda q: 1 if q else -1),
    "Q2_0": lambda: _small(2, 64, lambda q: q - 1),
}
"""The types whose codes mean one element each (and TQ1_0), by ggml's names."""
