"""Arithmetic in GF(2^8) with the polynomial 0x11d and the generator 2, on arrays of bytes (SPEC, section 6)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

POLYNOMIAL = 0x11D
ORDER = 255
"""Non-zero elements: powers of the generator repeat after so many."""


def _tables() -> tuple[Bytes, npt.NDArray[np.int16]]:
    power = np.zeros(2 * ORDER, np.uint8)
    logarithm = np.zeros(256, np.int16)
    value = 1
    for exponent in range(ORDER):
        power[exponent] = power[exponent + ORDER] = value
        logarithm[value] = exponent
        value <<= 1
        if value & 0x100:
            value ^= POLYNOMIAL
    return power, logarithm


POWER, LOGARITHM = _tables()


def multiply_by_power(values: Bytes, exponents: npt.NDArray[np.int16] | int) -> Bytes:
    """values · 2^exponents, element by element; exponents may be negative."""
    product: Bytes = POWER[(LOGARITHM[values] + np.asarray(exponents)) % ORDER]
    product[values == 0] = 0
    return product


def divide(dividends: Bytes, divisors: Bytes) -> Bytes:
    """dividends / divisors, element by element; a zero divisor is the caller's fault and gives no meaning."""
    quotient: Bytes = POWER[(LOGARITHM[dividends] - LOGARITHM[divisors]) % ORDER]
    quotient[dividends == 0] = 0
    return quotient
