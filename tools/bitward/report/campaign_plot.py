"""The plot of a campaign: the metric over the amount of damage, a line for each defence. SVG by hand: no library, script or font.

Colours follow the reader's light or dark setting. Perplexity has a logarithmic axis; values that are not finite lie on its top edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bitward.report.campaign_text import cells_of, levels_of, metric_text
from bitward_agent.hardening.campaign_facts import CampaignCell, CampaignReport
from bitward_formats.frozen import dataclass

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 150, 44, 64
_STEPS = 5
_TOP_DECADES = 12.0
"""Perplexities beyond 10^12 times the clean one are drawn at the edge: how much worse says nothing."""

STYLE = """
.plot{--ink:#1d2430;--dim:#667085;--grid:#e4e7ec;--paper:#ffffff;--none:#c0392b;--flipguard:#b7791f;--strong:#2563a8;--repair:#1f8a4c}
@media (prefers-color-scheme: dark){
.plot{--ink:#e6e9ef;--dim:#98a2b3;--grid:#2b3342;--paper:#141922;--none:#f0776a;--flipguard:#e0b15a;--strong:#72a9ea;--repair:#62c98d}}
.plot text{font-family:system-ui,sans-serif;font-size:12px;fill:var(--ink)} .plot .dim{fill:var(--dim)}
.plot .grid{stroke:var(--grid)} .plot .clean{stroke:var(--dim);stroke-dasharray:4 4}
"""


@dataclass(frozen=True, slots=True)
class _Axis:
    """From a metric's value to a height. ``low`` and ``high`` are in the axis's own unit (decades, or shares)."""

    low: float
    high: float
    logarithmic: bool

    def y(self, value: float | None) -> float:
        """Pixels from the top; ``None`` lies at the worst edge."""
        if value is None:
            place = 1.0 if self.logarithmic else 0.0
        else:
            own = math.log10(max(value, 1e-300)) if self.logarithmic else value
            place = (own - self.low) / (self.high - self.low)
        return _TOP + (1 - min(1.0, max(0.0, place))) * (_HEIGHT - _TOP - _BOTTOM)

    def ticks(self) -> list[float]:
        """Values in the metric's unit."""
        steps = [self.low + (self.high - self.low) * number / _STEPS for number in range(_STEPS + 1)]
        return [10**one for one in steps] if self.logarithmic else steps


def _axis(report: CampaignReport) -> _Axis:
    values = [report.clean, *(one for cell in report.cells for one in (cell.median, cell.lowest, cell.highest) if one is not None)]
    if report.metric == "accuracy":
        return _Axis(min(0.4, *values), 1.0, logarithmic=False)
    decades = [math.log10(max(one, 1e-300)) for one in values]
    low = math.log10(report.clean) - 0.1
    high = min(max(decades), low + _TOP_DECADES)
    return _Axis(low, max(high, low + 1.0) + 0.2, logarithmic=True)


def campaign_svg(report: CampaignReport) -> str:
    """The plot as one SVG document."""
    axis = _axis(report)
    levels = levels_of(report)
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(levels))
    centres = {level: _LEFT + step * (number + 0.5) for number, level in enumerate(levels)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}"',
        f' width="{_WIDTH}" height="{_HEIGHT}" role="img">',
        f"<title>{escape(f'{report.metric} after faults, by defence')}</title>",
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>',
        f'<text x="{_LEFT}" y="24">{escape(_title(report))}</text>',
        *_grid(report, axis),
        *(_level_label(level, x) for level, x in centres.items()),
    ]
    defences = list(dict.fromkeys(cell.defence for cell in report.cells))
    ends: list[tuple[float, str]] = []
    for place, defence in enumerate(defences):
        shift = (place - (len(defences) - 1) / 2) * min(9.0, step / 8)  # side by side, so that equal values stay visible
        cells = [(centres[level] + shift, cell) for level in levels for cell in cells_of(report, level) if cell.defence == defence]
        parts += _line(report, axis, defence, cells)
        ends.append((axis.y(cells[-1][1].median), defence))
    parts += _names(ends)
    return "".join([*parts, "</svg>"])


def _title(report: CampaignReport) -> str:
    scale = " (logarithmic)" if report.metric == "perplexity" else ""
    return f"{report.metric}{scale} of {report.architecture}, clean {metric_text(report.clean, report.metric)}"


def _grid(report: CampaignReport, axis: _Axis) -> list[str]:
    parts = []
    for value in axis.ticks():
        y = axis.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shown = f"{100 * value:.0f} %" if report.metric == "accuracy" else f"{value:.2g}" if value >= 1000 else f"{value:.3g}"
        parts.append(f'<text class="dim" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(shown)}</text>')
    y = axis.y(report.clean)
    return [*parts, f'<line class="clean" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>']


def _level_label(level: tuple[str, float], x: float) -> str:
    fault, amount = level
    first = f"{amount:g} flips" if fault == "targeted" else f"{100 * amount:g} %" if amount >= 1e-5 else f"{amount:g}"
    second = {"rate": "of parameters", "ber": "of bits", "targeted": "by gradient"}[fault]
    y = _HEIGHT - _BOTTOM + 22
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(first)}</text>'
        f'<text class="dim" x="{x:.1f}" y="{y + 16}" text-anchor="middle">{second}</text>'
    )


def _line(report: CampaignReport, axis: _Axis, defence: str, cells: Sequence[tuple[float, CampaignCell]]) -> list[str]:
    colour = f"var(--{defence})"
    parts = []
    for fault in dict.fromkeys(cell.fault for _, cell in cells):  # amounts of different kinds are no continuation of each other
        points = " ".join(f"{x:.1f},{axis.y(cell.median):.1f}" for x, cell in cells if cell.fault == fault)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for x, cell in cells:
        if cell.lowest is not None and cell.highest is not None and cell.trials > 1:
            low, high = axis.y(cell.lowest), axis.y(None if cell.not_finite and axis.logarithmic else cell.highest)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
        fill = colour if cell.median is not None else "var(--paper)"
        told = f"{defence}: {metric_text(cell.median, report.metric)}, {cell.wrong_bits:,} bits wrong"
        y = axis.y(cell.median)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"><title>{escape(told)}</title></circle>')
    return parts


def _names(ends: Sequence[tuple[float, str]]) -> list[str]:
    """The defences' names at the ends of their lines, moved apart where lines meet."""
    parts = []
    above = -math.inf
    for y, defence in sorted(ends):
        above = max(y, above + 16)
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{above + 4:.1f}" style="fill:var(--{defence})">{escape(defence)}</text>')
    return parts
