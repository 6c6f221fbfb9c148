"""Erasures of the outer code (SPEC, section 6, *Decoding*): lost parts of one or two slots of a stripe, from P and Q.

Works on *lines*: eight rows, each a number, whose bits at one place make a symbol of GF(2^8).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from bitward_formats.reference.limits import ROWS_PER_SYMBOL
from bitward_formats.reference.outer import times_alpha

POLYNOMIAL = 0x11D

Line = list[int]
ZERO_LINE: Line = [0] * ROWS_PER_SYMBOL


def multiply(a: int, b: int) -> int:
    """The product of two elements of GF(2^8)."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= POLYNOMIAL
        b >>= 1
    return product


def inverse(a: int) -> int:
    """The element whose product with ``a`` is 1, found by trying all."""
    return next(b for b in range(1, 256) if multiply(a, b) == 1)


def coefficient(position: int, slot_count: int) -> int:
    """α^(k−1−p): what Q multiplies the slot at a position with."""
    power = 1
    for _ in range(slot_count - 1 - position):
        power = multiply(power, 2)
    return power


def scale(line: Line, factor: int) -> Line:
    """All symbols of a line times one element."""
    product = ZERO_LINE
    while factor:
        if factor & 1:
            product = add(product, line)
        line = times_alpha(line)
        factor >>= 1
    return product


def add(a: Line, b: Line) -> Line:
    """The sum, which is also the difference, symbol by symbol."""
    return [x ^ y for x, y in zip(a, b, strict=True)]


def any_row(line: Line) -> int:
    """The symbols of which any row has a one."""
    symbols = 0
    for row in line:
        symbols |= row
    return symbols


def solve_line(data: Sequence[Line], erased: Sequence[int], p: Line, q: Line, p_known: int, q_known: int) -> list[tuple[int, int, Line]]:
    """Recover erased symbols of one line of a stripe.

    ``data`` has the line of each slot, zero where it is erased; ``erased`` the set of erased symbols of each slot, ``p_known`` and
    ``q_known`` those of which all eight rows of P and Q were read, each a number with one bit per symbol. Returns (position, symbols,
    rows): ``rows`` are right at ``symbols``.
    """
    slot_count = len(data)
    coefficients = [coefficient(position, slot_count) for position in range(slot_count)]
    p_syndrome, q_syndrome = p, q
    for position, line in enumerate(data):
        p_syndrome = add(p_syndrome, line)
        q_syndrome = add(q_syndrome, scale(line, coefficients[position]))
    lossy = [position for position in range(slot_count) if erased[position]]
    solutions = []
    for a in lossy:
        alone = erased[a] & ~_erased_elsewhere(erased, (a,))
        solutions.append((a, alone & p_known, p_syndrome))
        solutions.append((a, alone & ~p_known & q_known, scale(q_syndrome, inverse(coefficients[a]))))
    for a, b in combinations(lossy, 2):
        both = erased[a] & erased[b] & ~_erased_elsewhere(erased, (a, b)) & p_known & q_known
        if both:
            # P = A + B and Q = αA + βB, so A = (Q + βP) / (α + β); the powers of α differ, so the divisor is not zero.
            divisor = inverse(coefficients[a] ^ coefficients[b])
            first = scale(add(q_syndrome, scale(p_syndrome, coefficients[b])), divisor)
            solutions.append((a, both, first))
            solutions.append((b, both, add(p_syndrome, first)))
    return solutions


def _erased_elsewhere(erased: Sequence[int], positions: Sequence[int]) -> int:
    """The symbols erased in any slot but those at the positions."""
    return any_row([symbols for position, symbols in enumerate(erased) if position not in positions])
