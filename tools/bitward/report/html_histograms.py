"""Exponent histograms of tensors as SVG, with the value that was found and the one that belongs there marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bitward.report.html_page import name, text
from bitward.report.numbers import value_pair
from bitward_agent.diagnosis.facts import Suspect

if TYPE_CHECKING:
    from bitward_agent.diagnosis.triage import ExponentHistogram

_WIDTH, _HEIGHT = 640, 150
_LEFT, _TOP, _BOTTOM = 64, 34, 22
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
XOf = Callable[[int], float]
"""From an exponent to pixels."""
_BARS_LIMIT = 600
"""More exponents than this (of 64-bit floats) are drawn from where the counts begin."""


def histogram(one: ExponentHistogram, suspects: Sequence[Suspect]) -> list[str]:
    """HTML of one tensor's histogram. The first of ``suspects`` is marked, of the others only what was found."""
    filled = [at for at, count in enumerate(one.counts) if count > 0]
    if not filled:
        return []
    exponents = {one.first - one.bias + at: one.counts[at] for at in filled[-_BARS_LIMIT:]}
    marks = [(_exponent(suspect.found, one.bias), "found") for suspect in suspects]
    marks += [(_exponent(suspect.correct, one.bias), "right") for suspect in suspects[:1] if suspect.correct is not None]
    least, most = -one.bias, one.bias + 1
    zeros = 0
    if len(exponents) > 1 and not any(exponent == least for exponent, _ in marks):
        zeros = exponents.pop(least, 0)  # they would stretch the axis
    shown = [*exponents, *(exponent for exponent, _ in marks)]
    low, high = max(least, min(shown) - 2), min(most, max(shown) + 2)
    low = max(low, high - 2 * _BARS_LIMIT)
    step = (_WIDTH - _LEFT - 8) / (high - low + 1)
    top = max(exponents.values())

    def x_of(exponent: int) -> float:
        return _LEFT + (exponent - low) * step

    def height_of(count: int) -> float:
        return (_HEIGHT - _TOP - _BOTTOM) * (math.log10(count) + 0.35) / (math.log10(top) + 0.35)

    floor = _HEIGHT - _BOTTOM
    label = text(f"Exponents of {one.tensor}: {len(filled)} different, {sum(one.counts):,} numbers", 300)
    lines = [f'<svg role="img" aria-label="{label}" width="{_WIDTH}" height="{_HEIGHT}">']
    for decade in range(0, int(math.log10(top)) + 1, max(1, int(math.log10(top)) // 3)):
        y = floor - height_of(10**decade)
        lines.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10**decade:,}</text>')
    for exponent, count in exponents.items():
        if low <= exponent <= high:
            bar = height_of(count)
            title = f"<title>2{str(exponent).translate(_SUPERSCRIPTS)}: {count:,}</title>"
            box = f'x="{x_of(exponent):.1f}" y="{floor - bar:.1f}" width="{max(1.0, step - 1):.1f}" height="{bar:.1f}"'
            lines.append(f'<rect class="bar" {box}>{title}</rect>')
    lines.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{floor}" y2="{floor}"/>')
    ticks = next(one for one in (1, 2, 4, 8, 16, 32, 64, 128, 256) if (high - low) / one <= 12 or one == 256)
    for exponent in range(-(-low // ticks) * ticks, high + 1, ticks):
        power = f"2{str(exponent).translate(_SUPERSCRIPTS)}"
        lines.append(f'<text x="{x_of(exponent) + step / 2:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{power}</text>')
    lines += _mark_lines(suspects, marks, x_of, step)
    lines.append("</svg>")
    part = f", part {one.part}" if one.part else ""
    caption = f"{text(one.dtype)}{part}: how many numbers have each exponent; the height is logarithmic."
    if zeros:
        caption += f" {zeros:,} {'is' if zeros == 1 else 'are'} zero or next to it, and not shown."
    return [f'<h3>{name(one.tensor)}</h3><figure class="scroll" tabindex="0">', *lines, f"<figcaption>{caption}</figcaption></figure>"]


def _mark_lines(suspects: Sequence[Suspect], marks: Sequence[tuple[int, str]], x_of: XOf, step: float) -> list[str]:
    """A line at each marked exponent; words beside the first that was found and what belongs there, on two levels."""
    lines = []
    words = value_pair(suspects[0].found, suspects[0].correct if suspects[0].correct is not None else "") if suspects else ("", "")
    said: set[str] = set()
    for exponent, kind in dict.fromkeys(marks):
        x = x_of(exponent) + step / 2
        y = 24 if kind == "right" else 12
        lines.append(f'<line class="l-{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 3}" y2="{_HEIGHT - _BOTTOM}"/>')
        if kind not in said:
            said.add(kind)
            anchor = "end" if x > _WIDTH / 2 else "start"
            value = words[0] if kind == "found" else words[1]
            told = f"found {value}" if kind == "found" else f"belongs: {value}"
            shift = -5 if anchor == "end" else 5
            lines.append(f'<text class="{kind}" x="{x + shift:.1f}" y="{y}" text-anchor="{anchor}">{text(told, 40)}</text>')
    return lines


def _exponent(value: float | int | str | None, bias: int) -> int:
    """The exponent of a value as a float of this bias has it; infinity and NaN have the largest, zero the least."""
    try:
        number = float(value) if value is not None else 0.0
    except ValueError:
        return bias + 1
    if not math.isfinite(number):
        return bias + 1
    if number == 0:
        return -bias
    return max(-bias, min(bias + 1, math.frexp(number)[1] - 1))
