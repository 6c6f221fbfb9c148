"""Numbers for people: sizes, rates, counts, times and element values."""

from __future__ import annotations

from math import isfinite

_DECIMAL_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
_VALUE_DIGITS = (4, 6, 9, 17)
"""Significant digits to try until two values look different; 9 tell any two F32 apart, 17 any two F64."""


def count(number: int, noun: str = "", plural: str = "") -> str:
    """``12,345 flips``; ``1 flip``. The plural is the noun with an s unless given."""
    if not noun:
        return f"{number:,}"
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size(byte_count: float) -> str:
    """A size in decimal units: ``90.9 MB``."""
    value = float(byte_count)
    for unit in _DECIMAL_UNITS:
        if value < 999.5 or unit == _DECIMAL_UNITS[-1]:
            break
        value /= 1000
    if unit == "bytes":
        return count(round(value), "byte")
    return f"{value:.3g} {unit}"


def exact_size(byte_count: int) -> str:
    """A size that people know by its binary name: ``64 KiB``, ``36 bytes``; otherwise as ``size``."""
    if byte_count >= 1 << 20 and byte_count % (1 << 20) == 0:
        return f"{byte_count >> 20:,} MiB"
    if 1 << 10 <= byte_count < 1 << 20 and byte_count % (1 << 10) == 0:
        return f"{byte_count >> 10:,} KiB"
    return size(byte_count) if byte_count >= 100_000 else count(byte_count, "byte")


def seconds(duration: float) -> str:
    """A duration: ``0.02 s``, ``12.3 s``, ``3 min 20 s``."""
    if duration < 0.0095:
        return f"{duration * 1000:.1f} ms"
    if duration < 10:
        return f"{duration:.2f} s"
    if duration < 60:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s"


def rate(byte_count: int, duration: float) -> str:
    """Bytes per second, or nothing if it cannot be told."""
    if duration <= 0 or byte_count <= 0:
        return ""
    return f"{size(byte_count / duration)}/s"


def share(part: int, whole: int) -> str:
    """``part`` of ``whole`` in per cent, or how many times ``whole`` if it is much more."""
    if not whole:
        return "–"
    return f"{100 * part / whole:.2f} %" if part < 10 * whole else f"{part / whole:,.0f} ×"


def _value(value: float | int | str, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}g}" if isfinite(value) else str(value)
    return str(value)


def value_pair(found: float | int | str, correct: float | int | str) -> tuple[str, str]:
    """Two values, short, but with as many digits as it takes to see that they differ."""
    pairs = ((_value(found, digits), _value(correct, digits)) for digits in _VALUE_DIGITS)
    most = _VALUE_DIGITS[-1]
    return next((pair for pair in pairs if pair[0] != pair[1]), (_value(found, most), _value(correct, most)))
